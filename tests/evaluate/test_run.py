"""The command as people run it: what it writes, what it refuses, in one line, and what the page shows."""

import base64
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from evaluate import folds, run
from evaluate.features.encoders import open_encoder, weights_hash
from evaluate.frozen import linear, retrieval
from evaluate.report.pictures import curves_figure
from shared import cli
from shared.cli import RequestError
from shared.nn.distributed import World

FAST = ["--set", "run.threads=1", "--set", "clips=2", "--set", "run.device=cpu"]


@pytest.fixture
def evaluate(store, tmp_path):
    """evaluate(protocol, checkpoint, *more, out="out", where=store) -> its metrics.json."""
    def call(protocol, checkpoint, *more, out="out", where=store):
        argv = ["--protocol", protocol, "--checkpoint", *([checkpoint] if isinstance(checkpoint, str) else checkpoint),
                "--store", str(where), "--out", str(tmp_path / out), *more, *FAST]
        assert run.main(argv) == cli.DONE
        return json.loads((tmp_path / out / "metrics.json").read_text())
    return call


@pytest.mark.slow
def test_a_split_on_the_spot(evaluate, moving, tmp_path):
    found = evaluate("linear", "mean-image", "--holdout", "0.3", "--seeds", "2", where=moving)
    assert {name: found["splits"][name] for name in ("train", "test")} == {
        part: [f"holdout 0.3 by video, seed {seed}: {part}" for seed in (0, 1)] for part in ("train", "test")}
    assert [run["counts"]["test_videos"] for run in found["runs"]] == [6, 6]
    assert [run["counts"]["train_videos"] for run in found["runs"]] == [12, 12]
    assert "holdout 0.3 by video, seed 0" in (tmp_path / "out/report.html").read_text()
    grouped = evaluate("retrieval", "mean-image", "--holdout", "0.3", "--by", "group", where=moving, out="grouped")
    assert grouped["runs"][0]["counts"]["test_videos"] in (2, 8)


@pytest.mark.parametrize("more, message", [
    (["--holdout", "1.5"], "expected a share between 0 and 1"), (["--holdout", "nan"], "expected a share"),
    (["--holdout", "0.2", "--test-split", "test"], "makes both splits"), (["--by", "group"], "goes with --holdout"),
])
def test_splits_on_the_spot_that_cannot_be(evaluate, more, message):
    with pytest.raises(RequestError, match=message):
        evaluate("linear", "mean-image", *more)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["linear", "retrieval"])
def test_so_many_training_samples(evaluate, tmp_path, protocol):
    found = evaluate(protocol, "mean-image", "--samples", "5", "--seeds", "2")
    assert found["splits"]["train"] == ["train"] and found["splits"]["samples"] == 5
    assert [run["counts"]["train_videos"] for run in found["runs"]] == [5, 5]
    assert any("Learnt from 5 training videos, drawn by the seed" in note for note in found["notes"])
    assert "training samples" in (tmp_path / "out/report.html").read_text()
    assert len(found["interval"]) and found["metrics"] == found["mean"]         # the headline is of both seeds
    other = evaluate(protocol, "mean-image", "--samples", "4", "--holdout", "0.3", out="held")
    assert other["runs"][0]["counts"]["train_videos"] == 4


@pytest.mark.slow
def test_who_learns_from_all_videos_beside_a_sample_says_so(evaluate, tmp_path):
    evaluate("linear,background", "mean-image", "--samples", "5", "--seeds", "2", "--set", "clip=2x1")
    linear, background = (json.loads((tmp_path / "out" / name / "metrics.json").read_text())
                          for name in ("linear", "background"))
    said = "--samples 5 does not apply to background, which took all training videos."
    assert said in background["notes"] and said not in linear["notes"]
    assert all(table["title"].endswith(" (first of 2 runs)") for table in background["tables"])


@pytest.mark.parametrize("more, message", [
    (["--samples", "0"], "expected 1 or more"), (["--samples", "2"], "9 labelled videos of 3 classes"),
    (["--samples", "10"], "no more than there are"), (["--samples", "5", "--leave-out", "group"], "name one by"),
])
def test_so_many_samples_cannot_be(evaluate, more, message):
    with pytest.raises(RequestError, match=message):
        evaluate("linear", "mean-image", *more)


class Page(HTMLParser):
    """What a browser would fetch for a page, its pictures, and its text."""

    def __init__(self, path):
        super().__init__()
        self.fetched, self.pictures, self.text = [], [], ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "src" and value.startswith("data:image/png;base64,"):
                self.pictures.append(base64.b64decode(value.partition(",")[2]))
            elif name in ("src", "href", "srcset", "data"):
                self.fetched.append(value)

    def handle_data(self, data):
        self.text += data.replace("\u00a0", " ")


@pytest.mark.slow
def test_linear_writes_numbers_and_a_page_of_its_own(evaluate, checkpoint, store, tmp_path, capsys):
    before = weights_hash(open_encoder(str(checkpoint)).net)
    found = evaluate("linear", str(checkpoint))
    assert weights_hash(open_encoder(str(checkpoint)).net) == before
    assert found["protocol"] == "linear" and set(found["metrics"]) == {"top1", "mean_class"}
    assert found["metrics"]["top1"] == 100                       # the classes are colours
    assert found["chance"]["top1"] == pytest.approx(100 / 3) and found["spread"] == {"top1": None, "mean_class": None}
    assert found["splits"] == {"train": ["train"], "test": ["test"], "leave_out": None} and found["seeds"] == [0]
    counts = found["counts"]
    assert (counts["train_videos"], counts["test_videos"], counts["classes"], counts["looped"]) == (9, 9, 3, 1)
    assert found["settings"]["view"] == {"clips": 2, "clip": "8x2", "size": 48, "short_edge": 55}
    assert found["checkpoint"]["step"] == 20 and len(found["checkpoint"]["sha256"]) == 64
    assert any("6 test videos of test were in the pre-training list 'train2'" in note for note in found["notes"])
    page = Page(tmp_path / "out" / "report.html")
    assert not page.fetched and len(page.pictures) == 3          # confusion, curves, store
    assert all(picture.startswith(b"\x89PNG") for picture in page.pictures)
    assert re.search("Learning curves of the pre-training of .*last.pt, 2 logged steps", page.text)
    assert "Top-1 accuracy: 100.0 % on 9 test videos, 95 % 70 to 100: above chance, which is 33.3 %." in page.text
    assert not re.search(r"@import|url\(|<script|<link", (tmp_path / "out" / "report.html").read_text())
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and said[0].startswith("linear: top1 100.0 % (chance 33.3 %), mean_class 100.0 %")


@pytest.mark.slow
def test_retrieval_shares_the_features(evaluate, checkpoint, tmp_path):
    first = evaluate("linear", str(checkpoint), out="linear")
    found = evaluate("retrieval", str(checkpoint), out="retrieval")
    assert "clips_extracted" in first["counts"] and "clips_extracted" not in found["counts"]
    assert set(found["metrics"]) == {"r@1", "r@5"}               # nine videos hold no ten neighbours
    assert found["metrics"]["r@1"] == 100 and found["chance"]["r@1"] == pytest.approx(100 / 3)
    assert (tmp_path / "retrieval/runs/00-train-test-seed0/neighbours.png").stat().st_size > 20_000


@pytest.mark.slow
def test_several_splits_have_a_headline_and_a_mean(evaluate, checkpoint):
    found = evaluate("linear", str(checkpoint), "--train-split", "train,train2", "--test-split", "test,test2",
                     "--set", "classifier=softmax", "--set", "epochs=1", "--set", "lr=0.0001", "--seeds", "2")
    runs = {(one["train_split"], one["seed"]): one["metrics"]["top1"] for one in found["runs"]}
    assert list(runs) == [("train", 0), ("train", 1), ("train2", 0), ("train2", 1)]
    assert found["metrics"]["top1"] == pytest.approx((runs["train", 0] + runs["train", 1]) / 2)
    assert found["mean"]["top1"] == pytest.approx(np.mean(list(runs.values())))
    assert found["spread"]["top1"] == pytest.approx(np.std(list(runs.values()), ddof=1))
    assert found["splits"]["train"] == ["train", "train2"] and found["splits"]["test"] == ["test", "test2"]
    low, high = found["interval"]["top1"]                       # of the two seeds on the first pair of splits
    assert low <= found["metrics"]["top1"] <= high


@pytest.mark.slow
def test_leaving_a_group_out_asks_every_video_once(evaluate, checkpoint):
    found = evaluate("linear", str(checkpoint), "--leave-out", "group")
    assert found["counts"]["test_videos"] == 18 and found["counts"]["folds"] == 3
    assert found["counts"]["train_videos"] == 12
    assert found["splits"] == {"train": [None], "test": [None], "leave_out": "group"}
    assert evaluate("retrieval", "mean-image", "--leave-out", "group", out="other")["metrics"]["r@1"] == 100


@pytest.mark.slow
def test_a_checkpoint_that_left_groups_out_is_asked_about_them_alone(evaluate, make_checkpoint):
    """What it was trained on is refused; where it left nothing out, a note says what it saw."""
    path = make_checkpoint("mcl-tiny", "leave_out=g1")
    state = torch.load(path, weights_only=True)
    state["provenance"]["stores"][0] |= {"left_out": ["g1"], "groups": ["g0", "g2"]}
    torch.save(state, path)
    found = evaluate("linear", str(path), "--leave-out", "group=g1")
    assert found["splits"] == {"train": ["leave-out group g1: train"], "test": ["leave-out group g1: test"],
                               "leave_out": None}
    assert found["counts"]["train_videos"] == 12 and found["counts"]["test_videos"] == 6
    assert not any("pre-training list" in note for note in found["notes"])
    for more in (["--leave-out", "group"], ["--leave-out", "group=g1", "--leave-out", "group=g2"], ["--holdout", "0.5"],
                 ["--train-split", "train2", "--test-split", "test2"]):
        with pytest.raises(RequestError, match="left out group g1 and was trained on g[02].*, which the test asks "
                                               "about; ask with --leave-out group=g1, or"):
            evaluate("linear", str(path), *more, out="other")
    state["provenance"]["stores"][0]["dataset"] = "another"            # whose groups are others
    torch.save(state, path)
    assert evaluate("retrieval", str(path), "--leave-out", "group=g2", out="other")["counts"]["test_videos"] == 6


@pytest.mark.parametrize("more, message", [
    (["group=g9"], "--leave-out group=g9: no labelled video of .* is of that group; known: g0, g1, g2"),
    (["grup"], "--leave-out grup; expected `group`"), (["group="], "--leave-out group=; expected"),
    (["group", "group=g1"], "expected `group` alone"), (["group=g1", "group=g1"], "each group=NAME once"),
    (["group=g1", "--test-split", "test"], "makes both splits"),
])
def test_groups_that_cannot_be_left_out(evaluate, more, message):
    words = [part for word in more for part in (["--leave-out", word] if word.startswith("g") else [word])]
    with pytest.raises(RequestError, match=message):
        evaluate("linear", "mean-image", *words)


def test_a_store_holds_no_results(evaluate, store):
    with pytest.raises(RequestError, match="is a store of videos"):
        evaluate("linear", "mean-image", out=store)


def test_every_rank_names_the_runs_alike_and_every_pair_of_splits_has_every_seed(store, tmp_path, monkeypatch):
    """What a rank reads of an earlier run lies where rank 0 has written it."""
    asked = []
    monkeypatch.setattr(run, "open_world", lambda device: World(rank=1, size=2))
    monkeypatch.setattr(retrieval, "run", lambda request: asked.append((request.out.name, request.encoder.text)))
    assert run.main(["--protocol", "retrieval", "--checkpoint", "random:r2plus1d_tiny", "--store", str(store), "--out",
                     str(tmp_path / "out"), "--train-split", "train,train2", "--test-split", "test,test2", "--seeds",
                     "2", *FAST]) == cli.DONE
    assert asked == [
        ("00-train-test-seed0", "random:r2plus1d_tiny:0"), ("01-train-test-seed1", "random:r2plus1d_tiny:1"),
        ("02-train2-test2-seed0", "random:r2plus1d_tiny:0"), ("03-train2-test2-seed1", "random:r2plus1d_tiny:1")]


def test_the_c_that_is_told_is_one_that_was_taken(evaluate, monkeypatch):
    """Of several folds the middle one."""
    taken, scores = iter([0.1, 10.0, 0.1]), linear.svm_scores
    monkeypatch.setattr(linear, "svm_scores", lambda *args: dataclasses.replace(scores(*args), c=next(taken)))
    assert evaluate("linear", "mean-image", "--leave-out", "group")["counts"]["c"] == 0.1


@pytest.mark.parametrize("row, losses, accuracies", [
    ({"inter": 3.0, "mal": 1.0, "in_batch_accuracy": 0.1, "queue_accuracy": 0.2}, ["loss", "inter", "mal"],
     ["in batch accuracy", "queue accuracy"]),
    ({"vv": 3.0, "vm": 1.0, "in_batch_accuracy": 0.1, "in_batch_accuracy_vv": 0.1, "in_batch_accuracy_vm": 0.2},
     ["loss", "vv", "vm"], ["vv", "vm"]),
    ({"accuracy": 0.5}, ["loss"], ["accuracy"])])
def test_learning_curves_of_every_term(row, losses, accuracies):
    figure = curves_figure([{"step": step, "loss": 4.0, **row} for step in (1, 2, 3)])
    named = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes]
    assert named == [losses, accuracies]
    assert all(len({line.get_color() for line in axes.lines}) == len(names) for axes, names in zip(figure.axes, named))


@pytest.mark.slow
def test_untrained_seeds_spread(evaluate):
    found = evaluate("retrieval", "random:r2plus1d_tiny", "--seeds", "2")
    assert [one["checkpoint"] for one in found["runs"]] == ["random:r2plus1d_tiny:0", "random:r2plus1d_tiny:1"]
    assert all(value is not None for value in found["spread"].values())


@pytest.mark.slow
def test_seeds_that_change_nothing_are_said(evaluate, checkpoint):
    found = evaluate("linear", str(checkpoint), "--seeds", "2")
    assert any("nothing in them depends on the seed" in note for note in found["notes"])


@pytest.mark.slow
def test_several_checkpoints_are_one_methods_seeds(evaluate):
    found = evaluate("linear", ["random:r2plus1d_tiny:0", "random:r2plus1d_tiny:1"])
    assert len(found["checkpoints"]) == 2 and len(found["runs"]) == 2
    with pytest.raises(RequestError, match="are one method's seeds"):
        evaluate("linear", ["random:r2plus1d_tiny:0", "mean-image"], out="other")


def test_the_same_weights_are_no_second_seed(evaluate, checkpoint, tmp_path):
    copy = shutil.copy(checkpoint, tmp_path / "copy.pt")
    for others in ([str(copy)], [str(checkpoint)]):
        with pytest.raises(RequestError, match="expected each once, and these hold the same weights twice"):
            evaluate("linear", [str(checkpoint), *others])


@pytest.mark.slow
def test_compare_puts_runs_side_by_side(evaluate, checkpoint, tmp_path, capsys):
    evaluate("linear", str(checkpoint), out="ours")
    evaluate("linear", "mean-image", out="image")
    evaluate("retrieval", "random:r2plus1d_tiny", "--seeds", "2", out="untrained")
    capsys.readouterr()
    folders = [str(tmp_path / name) for name in ("ours", "image", "untrained")]
    assert run.main(["--compare", *folders, "--out", str(tmp_path / "compare")]) == cli.DONE
    lines = capsys.readouterr().out.splitlines()                  # long names of columns take several
    rows = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert lines[0].split()[:2] == ["evaluation", "runs"] and rows["ours"][:4] == ["ours", "1", "100.0", "%"]
    assert "±" in rows["untrained"] and rows["untrained"][2] == "-"
    found = json.loads((tmp_path / "compare/metrics.json").read_text())
    assert found["protocol"] == "compare" and found["metrics"]["ours/top1"] == 100
    assert found["notes"] == ["linear: image had another view than ours."]
    page = Page(tmp_path / "compare/report.html")
    # Side by side, the confusion that both linear runs share, neighbours, learning curves, and the store once.
    assert not page.fetched and len(page.pictures) == len(set(page.pictures)) == 5
    assert "Per class, hardest first" in page.text


@pytest.mark.slow
def test_several_protocols_in_one_command(evaluate, checkpoint, tmp_path, capsys):
    """The numbers of each by itself, the features once, and one report of all; a setting goes where it belongs."""
    both = evaluate("retrieval,linear", str(checkpoint), "--set", "c=2.0", "--set", "shown=2", out="both")
    assert both["protocol"] == "compare" and [one["protocol"] for one in both["runs"]] == ["retrieval", "linear"]
    linear, retrieval = (json.loads((tmp_path / "both" / name / "metrics.json").read_text())
                         for name in ("linear", "retrieval"))
    assert linear["settings"]["linear"]["c"] == 2 and retrieval["settings"]["retrieval"]["shown"] == 2
    assert "clips_extracted" in retrieval["counts"] and "clips_extracted" not in linear["counts"]
    assert linear["metrics"] == evaluate("linear", str(checkpoint), "--set", "c=2.0", out="alone")["metrics"]
    page = Page(tmp_path / "both/report.html")
    assert not page.fetched and len(page.pictures) == len(set(page.pictures)) == 4
    assert page.text.count("Top-1 accuracy: ") == page.text.count("R@1: ") == 1
    assert capsys.readouterr().out.splitlines()[-2].startswith("look at")
    with pytest.raises(RequestError, match="both is a comparison itself; give the folders .*: .*retrieval .*linear"):
        run.main(["--compare", str(tmp_path / "alone"), str(tmp_path / "both"), "--out", str(tmp_path / "no")])
    for more, message in ((["--set", "blok=2"], "'blok' is no setting"), (["--set", "epochs=0"], "is 0; expected"),
                          (["--against", "x.pt"], "--against does not apply to retrieval")):
        with pytest.raises(RequestError, match=message):
            evaluate("retrieval,linear", str(checkpoint), *more, out="no")
    with pytest.raises(RequestError, match="expected each once"):
        evaluate("linear,linear", str(checkpoint), out="no")
    assert not (tmp_path / "no").exists()
    evaluate("linear,retrieval", str(checkpoint), out="beside")      # finds the features of the evaluations beside
    assert "clips_extracted" not in json.loads((tmp_path / "beside/linear/metrics.json").read_text())["counts"]


@pytest.mark.slow
def test_compare_makes_one_report_of_a_checkpoints_protocols(evaluate, checkpoint, tmp_path, capsys):
    """More metrics than columns: a line each, one column for the checkpoint, and what was measured beside it."""
    for protocol in ("linear", "retrieval"):
        evaluate(protocol, str(checkpoint), out=protocol)
    path = tmp_path / "retrieval/metrics.json"
    document = json.loads(path.read_text())
    document["beside"] = {"random": {"r@1": 41.5}}
    document["metrics"] |= {f"m{i}": -2.0 * i for i in range(4)}
    path.write_text(json.dumps(document))
    capsys.readouterr()
    argv = ["--compare", str(tmp_path / "linear"), str(tmp_path / "retrieval"), "--out", str(tmp_path / "all")]
    assert run.main(argv) == cli.DONE
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["score", "run/last.pt", "chance", "random"]
    assert "linear: top-1 accuracy 100.0 % 33.3 % -".split() == lines[1]
    assert "retrieval: R@1 100.0 % 33.3 % 41.5 %".split() in lines and "retrieval: m3 -6.0 % - -".split() in lines
    (tmp_path / "linear/store.png").unlink()
    with pytest.raises(RequestError, match="store.png is gone, which the report of .*linear shows"):
        run.main(argv)


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory, write_store, make_video):
    """No labels, no groups, no splits but train."""
    videos = {f"v{i}": dict(rgb=make_video(20, i), splits=("train",)) for i in range(3)}
    return write_store(tmp_path_factory.mktemp("unlabelled") / "store", videos, ())


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory, write_store, make_video):
    """Class b is in the test split only; a video has no label; `one` holds one class."""
    kinds = [(0, "a", "train"), (0, "a", "train"), (-1, "", "train"), (0, "a", "test"), (1, "b", "test")]
    videos = {f"v{i}": dict(rgb=make_video(20, i), label=label, class_name=name, splits=(split,))
              for i, (label, name, split) in enumerate(kinds)}
    return write_store(tmp_path_factory.mktemp("lopsided") / "store", videos)


@pytest.mark.parametrize("more, message", [
    (["--train-split", "trian"], r"--train-split 'trian': .* has no such split; did you mean 'train\d?'\?"),
    (["--test-split", "val"], "--test-split 'val': .* has no such split; known: test, test2, train, train2"),
    (["--train-split", "train", "--test-split", "train"], "'train' and --test-split 'train' share 9 videos"),
    (["--train-split", "train,train2"], "names 2 splits, --test-split 1"),
    (["--train-split", "train", "--test-split", "test2"], "share 6 videos of .*; expected splits that share none"),
    (["--leave-out", "group", "--test-split", "test"], "with a --test-split"),
    (["--against", "x.pt"], "--against does not apply to linear"),
    (["--seeds", "0"], "--seeds 0; expected 1 or more"),
    (["--set", "clssifier=svm"], "did you mean 'classifier'"),
    (["--set", "classifier=tree"], "expected svm or softmax"),
    (["--set", "finetune.dropout=0.1"], "linear does not read it, verbs, detection, finetune would; leave it out"),
    (["--set", "c=-1.0"], "linear.c is -1.0"),
    (["--beside", "moments", "--set", "pool=moments"], "--beside moments puts .* and features.pool is moments already"),
])
def test_requests_that_cannot_be(evaluate, more, message):
    with pytest.raises(RequestError, match=message):
        evaluate("linear", "random:r2plus1d_tiny", *more)


@pytest.mark.parametrize("checkpoint, message", [
    ("absent.pt", "absent.pt does not exist"), ("random:r2plus1d_tny", "did you mean 'r2plus1d_tiny'"),
    ("random:", "expected random:NAME"), ("random:r2plus1d_tiny:x", "expected random:NAME"),
    ("absent.safetensors", "absent.safetensors does not exist"),
])
def test_checkpoints_that_are_none(evaluate, checkpoint, message):
    with pytest.raises(RequestError, match=message):
        evaluate("linear", checkpoint)


def test_foreign_files_are_no_checkpoints(evaluate, checkpoint, tmp_path):
    torch.save({"state_dict": {"conv1.weight": torch.zeros(3)}}, tmp_path / "foreign.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    state = torch.load(checkpoint, weights_only=True)
    state["recipe"]["model"]["backbone"] = "r2plus1d_18"
    torch.save(state, tmp_path / "other.pt")
    for name, message in (("foreign.pt", "is no checkpoint of motionpack: it has no"),
                          ("other.pt", "holds other weights"),
                          ("text.pt", "is no checkpoint of motionpack, or is damaged")):
        with pytest.raises(RequestError, match=message):
            evaluate("linear", str(tmp_path / name))


@pytest.mark.parametrize("protocol", ["linear", "retrieval"])
def test_a_store_without_labels(evaluate, unlabelled, protocol, monkeypatch):
    """Refused before its features are extracted."""
    monkeypatch.setattr(folds, "extract", None)
    with pytest.raises(RequestError, match="has no split 'test' nor 'test1' nor 'val'; it has train: choose with "
                                           "--test-split, or `python -m preprocess.reindex [^`]* --annotations CSV`$"):
        evaluate(protocol, "mean-image", where=unlabelled)
    with pytest.raises(RequestError, match="no video of the store has a label"):
        evaluate(protocol, "mean-image", "--leave-out", "group", where=unlabelled)


def test_no_advice_that_the_protocol_would_refuse(evaluate, unlabelled):
    with pytest.raises(RequestError, match="it has train: choose with --test-split, or `python -m preprocess"):
        evaluate("finetune", "random:r2plus1d_tiny", where=unlabelled)


def test_classes_that_nothing_can_learn(evaluate, lopsided):
    with pytest.raises(RequestError, match="class 'b' has 1 video in split 'test' and none in split 'train'"):
        evaluate("linear", "mean-image", where=lopsided)
    found = evaluate("retrieval", "mean-image", where=lopsided, out="retrieval")
    assert found["metrics"]["r@1"] == 50 and found["counts"]["unlabelled"] == 1
    assert any("1 video without a label is left out" in note for note in found["notes"])
    with pytest.raises(RequestError, match="4 videos of 4 of .* without a group"):
        evaluate("linear", "mean-image", "--leave-out", "group", where=lopsided)


@pytest.mark.slow
def test_results_of_another_protocol_are_not_overwritten(evaluate, tmp_path):
    evaluate("linear", "mean-image")
    with pytest.raises(RequestError, match="holds the results of linear; choose another folder for retrieval"):
        evaluate("retrieval", "mean-image")
    evaluate("linear", "mean-image")                              # again is fine


@pytest.mark.parametrize("name, said", [
    ("report.html", "holds report.html"), ("curves.png", "holds curves.png"), ("runs/a", "holds runs"),
    ("thesis.tex", "holds thesis.tex"), ("checkpoints/step-00000003.pt", "is a training run"),
    ("metrics.jsonl", "holds metrics.jsonl"), ("store.json", "is a store of videos"), ("metrics.json", "is no result")])
@pytest.mark.parametrize("protocol", ["linear", "linear,retrieval"])
def test_what_is_no_evaluations_is_not_written_into(evaluate, tmp_path, name, said, protocol):
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(RequestError, match=said):
        evaluate(protocol, "mean-image")
    with pytest.raises(RequestError, match=said):
        run.main(["--compare", "a", "b", "--out", str(tmp_path / "out")])
    assert file.read_text() == "mine" and sorted(tmp_path.glob("out/*")) == [tmp_path / "out" / name.split("/")[0]]


@pytest.mark.slow
def test_what_only_an_evaluation_left_is_taken_again(evaluate, tmp_path):
    """Also where it was killed before it had results; an evaluation beside is no stranger."""
    (tmp_path / "out/runs/00-train-test-seed0").mkdir(parents=True)
    (tmp_path / "out/.lock").touch()
    evaluate("retrieval", "mean-image", out="out/retrieval")
    evaluate("linear", "mean-image")
    (tmp_path / "out/curves-2.png").touch()                       # of several checkpoints
    evaluate("linear", "mean-image")
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(RequestError, match="holds notes.txt, which is no evaluation's; choose another folder"):
        evaluate("linear", "mean-image")


def test_an_out_is_one_process_at_a_time(evaluate, tmp_path):
    (tmp_path / "out").mkdir()
    lock = cli.hold(tmp_path / "out", "--out")
    with pytest.raises(RequestError, match="out is in use by another process; wait for its end, or choose another"):
        evaluate("linear", "mean-image")
    os.close(lock)
    evaluate("linear", "mean-image")
    evaluate("linear", "mean-image")                              # the first has let go of it


@pytest.mark.parametrize("argv, message", [
    (["--compare", "a"], "--out is missing"), (["--compare", "a", "--out", "b"], "expected two or more"),
    (["--compare", "a", "c", "--out", "b"], "a holds no metrics.json"), ([], "--protocol is missing"),
    (["--compare", "a", "c", "--out", "b", "--seeds", "2", "--store", "s"], "--store does not go with it"),
    (["--compare", "a", "c", "--out", "b", "--seeds", "2"], "--seeds does not go with it"),
    (["--compare", "a", "c", "--out", "b", "--set", "clips=2"], "--set does not go with it"),
    (["--protocol", "linera", "--checkpoint", "x", "--store", "s", "--out", "o"], "did you mean 'linear'"),
])
def test_commands_that_are_incomplete(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=message):
        run.main(argv)


@pytest.mark.slow
def test_the_process_says_one_line_and_leaves_with_two(store, tmp_path):
    done = subprocess.run([sys.executable, "-m", "evaluate.run", "--protocol", "linear", "--checkpoint", "mean-image",
                           "--store", str(store), "--out", str(tmp_path / "o"), "--train-split", "no"],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == cli.REFUSED and not done.stdout
    assert done.stderr.startswith("error: --train-split 'no'") and len(done.stderr.splitlines()) == 1
