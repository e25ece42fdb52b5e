"""What metrics.json and the page say of the runs, and what they warn of."""

import dataclasses
import os

import numpy as np
import pytest

from evaluate.features.encoders import open_encoder
from evaluate.folds import check_unseen
from evaluate.holdout import held_out, holdout_names
from evaluate.protocol import Result, Table
from evaluate.report import page, results
from evaluate.report.words import sentence
from shared.cli import RequestError
from shared.nn.distributed import World
from shared.recipes.training import load_training
from shared.store.index import Index


@pytest.mark.parametrize("dataset, seen", [("ucf101", 9), ("folder", 0)])
def test_videos_of_another_store_were_not_trained_on(store, dataset, seen):
    """Published lists are the same everywhere; two stores of folders share the names of their splits at most."""
    index, document = Index.load(store), {"dataset": dataset}
    trained = {"dataset": dataset, "split": "train", "store": "elsewhere", "index": "000001-00000000"}

    def said(**more):
        encoder = dataclasses.replace(open_encoder("mean-image"), provenance={"kind": "checkpoint",
                                                                              "stores": [{**trained, **more}]})
        return results.notes([encoder], index, document, pairs, World())

    pairs = [(None, None)]
    here = ["9 test videos of the store were in the pre-training list 'train', which saw them without labels."]
    assert said() == (here if seen else [])
    assert said(store=str(store)) == said(index=index.generation) == here
    pairs = [("test", None)]                                      # --leave-out group --train-split test
    assert said(store=str(store)) == []


def test_labels_learnt_from_a_split_made_on_the_spot_are_told(store):
    """finetuned.pt of one draw, asked about another of the same videos."""
    index = Index.load(store)
    (train, _), (_, asked) = holdout_names(0.3, "video", 0), holdout_names(0.3, "video", 1)
    trained = {"dataset": "folder", "split": train, "store": "moved", "index": index.generation, "labels": True}
    encoder = dataclasses.replace(open_encoder("mean-image"), provenance={"kind": "checkpoint", "stores": [trained]})
    both = len(np.intersect1d(held_out(index, train), held_out(index, asked)))
    said = results.notes([encoder], index, {"dataset": "folder"}, [(train, asked)], World())
    assert both and len(said) == 1 and f"{both} test video" in said[0] and "WITH their labels" in said[0]
    trained["index"] = "000002-00000000"
    assert not results.notes([encoder], index, {"dataset": "folder"}, [(train, asked)], World())
    trained["store"] = os.path.relpath(store)
    assert results.notes([encoder], index, {"dataset": "folder"}, [(train, asked)], World()) == said


def test_groups_of_other_peoples_stores_share_names_at_most(store):
    """A checkpoint that left groups out is refused on the groups that it trained on, not on others of their names."""
    index = Index.load(store)
    trained = {"dataset": "folder", "store": "elsewhere", "index": index.generation, "left_out": ["x"],
               "groups": sorted(set(index.group))}
    encoder = dataclasses.replace(open_encoder("mean-image"), provenance={"kind": "checkpoint", "stores": [trained]})
    with pytest.raises(RequestError, match="left out group x and was trained on"):
        check_unseen(index, "folder", encoder, [None])
    trained["index"] = "000001-00000000"
    check_unseen(index, "folder", encoder, [None])


def test_several_pairs_of_splits_are_no_mean_of_runs():
    """The headline is of the first pair; mean and spread, over all, say so."""
    runs = [results.Run("c", f"train{n}", f"test{n}", 0, Result({"top1": value}, {"top1": 25.0}, trials={"top1": 40},
                                                                counts={"test_videos": 40}))
            for n, value in enumerate((70.0, 50.0, 45.0))]
    found = results.summarise("linear", runs, {}, [{"checkpoint": "c"}], {"store": "s"})
    assert sentence(found) == (
        "Top-1 accuracy: 70.0 % on 40 test videos, the first of 3 pairs of splits, 95 % 55 to 82: above chance, which "
        "is 25.0 %; mean over all pairs 55.0 % ± 13.2 %.")
    assert results.summary_line(found, "r").startswith(
        "linear: top1 70.0 % (chance 25.0 %), over 3 pairs of splits 55.0 % ± 13.2 %; 40 test videos; 3 runs")


def test_imagenet_weights_are_missed_where_the_paper_has_them(store):
    """MCL's numbers start from them; MaCLR's reconstruction does not (docs/method.md 2)."""
    def said(pipeline):
        recipe = load_training(pipeline).recipe.to_dict()
        encoder = dataclasses.replace(open_encoder("mean-image"), provenance={"kind": "checkpoint", "recipe": recipe})
        return results.notes([encoder], Index.load(store), {"dataset": "folder"}, [], World())

    assert ["without ImageNet weights" in note for note in said("mcl")] == [True]
    assert said("maclr") == said("maclr-tiny") == said("mcl-tiny") == []


def test_what_not_every_run_measures_has_no_mean(tmp_path):
    """A small second split has no ten neighbours."""
    runs = [results.Run("c", "train1", "test1", 0, Result({"r@1": 50.0, "r@10": 90.0}, {"r@1": 10.0, "r@10": 60.0})),
            results.Run("c", "train2", "test2", 0, Result({"r@1": 40.0}, {"r@1": 12.0}))]
    found = results.summarise("retrieval", runs, {}, [{"checkpoint": "c"}], {"store": "s"})
    assert (found["metrics"], found["mean"], found["chance"]) == ({"r@1": 50}, {"r@1": 45}, {"r@1": 10})
    assert [one["metrics"].get("r@10") for one in found["runs"]] == [90, None]
    assert found["notes"] == ["r@10 is left out: not all runs have measured it."]
    assert "r@10 is left out" in page.write_report(tmp_path, found, [], "title").read_text()


def test_nothing_is_minus_nought():
    table = Table("t", ("a", "b"), [("x", -0.04), ("y", -0.06)])
    assert [line.split() for line in page.table_text(table).splitlines()[1:]] == [["x", "0.0"], ["y", "-0.1"]]
    assert ">0.0<" in page.table_html(table) and "-0.0" not in page.table_html(table)
