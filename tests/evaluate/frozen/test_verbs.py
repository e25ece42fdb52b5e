"""VidSitu from its official files to its three metrics, and the metrics against answers counted by hand."""

import json

import numpy as np
import pytest

from evaluate import run
from evaluate.frozen.verbs import counted_verbs, events_of, score, window_of
from shared import cli
from shared.cli import RequestError
from shared.store.index import Index

COLOURS = {"run.01": (60, -60, -60), "speak.01": (-60, 60, -60), "walk.02": (-60, -60, 60)}
VERBS = list(COLOURS)
SPLITS = {"train": 6, "valid": 3}          # clips
FAST = ["--set", "run.threads=1", "--set", "run.workers=0", "--set", "clips=2", "--set", "run.device=cpu"]


def clip_id(part, number):
    return f"v_{part}-_{number}_seg_{10 * number}_{10 * number + 10}"


def verbs_of(part, number):
    """The verbs of a clip's five events: every event of a clip has another neighbour, so no clip is of one colour."""
    return [VERBS[(number * (part == "train") + event * (1 + number % 2)) % 3] for event in range(5)]


def annotate(folder):
    """The official files: one annotation a training clip, three a validation clip, and ten annotators' verbs."""
    for name in ("split_files", "vseg_ann_files", "vinfo_files"):
        (folder / name).mkdir(parents=True)

    def dump(name, document):
        (folder / name).write_text(json.dumps(document))

    def annotation(clip, verbs):
        return {f"Ev{event + 1}": {"vid_uid": clip[2:], "vid_seg_int": clip, "EvRel": "Causes",
                                   "Arg_List": {"Arg0": "0"}, "Args": {"Arg0": "a man"}, "Verb": verb.split(".")[0],
                                   "VerbID": verb}
                for event, verb in enumerate(verbs)}

    for part, count in SPLITS.items():
        clips = [clip_id(part, number) for number in range(count)]
        dump(f"split_files/vseg_split_{part}_lb.json", clips)
        said = [annotation(clip, verbs_of(part, number)) for number, clip in enumerate(clips)
                for _ in range(3 if part == "valid" else 1)]
        dump(f"vseg_ann_files/vsann_{part}_lb.json", said)
        info = [{"vid_uid": clip[2:], "genres": ["Drama"], "duration": 120, "name": clip, "text": "", "start": 0,
                 "end": 10, "vid_seg_int": clip, "movie_name": "m", "upload_year": 2011, "clip_name": "c",
                 "imdb_id": "t", "year_rel": 2011} for clip in clips]
        if part == "valid":
            for number, row in enumerate(info):
                ids = {f"Ev{event + 1}": [verb] * 8 + ["look.01", VERBS[(VERBS.index(verb) + 1) % 3]]
                       for event, verb in enumerate(verbs_of(part, number))}
                row |= {"vb_to_use": {}, "vb_lst": ids, "vbid_lst": ids}
        dump(f"vinfo_files/vinfo_{part}_lb.json", info)
    for part in ("testvb", "testsrl", "testevrel"):
        dump(f"split_files/vseg_split_{part}_lb.json", [clip_id("test", 0)])
    dump("vseg_ann_files/vsann_testsrl_noann_lb.json", [{"Ev1": {}}])
    return folder


@pytest.fixture(scope="module")
def vidsitu(tmp_path_factory, film, pack, make_video):
    """(store, annotations): clips of 10 seconds at 8 frames/s whose colour is the verb, two seconds each."""
    base = tmp_path_factory.mktemp("vidsitu")
    annotations = annotate(base / "vidsitu_annotations")
    clips = [(clip_id(part, number), verbs_of(part, number)) for part, count in SPLITS.items()
             for number in range(count)]
    for seed, (clip, verbs) in enumerate([*clips, (clip_id("test", 0), VERBS[:1] * 5)]):
        frames = np.concatenate([make_video(16, 10 * seed + event, COLOURS[verb]) for event, verb in enumerate(verbs)])
        film(base / "videos" / f"{clip}.mp4", frames)
    return pack("vidsitu", base / "videos", annotations, base / "store"), annotations


def evaluate(store, annotations, out, *more):
    argv = ["--protocol", "verbs", "--checkpoint", "random:r2plus1d_tiny:0", "--store", str(store), "--annotations",
            str(annotations), "--out", str(out), *more, *FAST]
    assert run.main(argv) == cli.DONE
    return json.loads((out / "metrics.json").read_text())


@pytest.mark.slow
def test_from_files_to_metrics(vidsitu, tmp_path):
    store, annotations = vidsitu
    found = evaluate(store, annotations, tmp_path / "out", "--set", "recall_events=3")
    assert found["splits"] == {"train": ["train"], "test": ["val"], "leave_out": None}    # val before test here
    counts = found["counts"]
    assert (counts["train_events"], counts["test_events"], counts["verbs"]) == (30, 15, 3)
    assert counts["clips_without_verbs"] == 0 and counts["verbs_in_recall"] == 3
    assert found["metrics"]["accuracy@1"] > 90                        # the verbs are colours
    assert found["metrics"]["accuracy@5"] == found["metrics"]["recall@5"] == 100      # there are but three
    assert found["chance"]["accuracy@1"] < 75 and set(found["chance"]) == set(found["metrics"])
    assert [row[0] for row in found["tables"][0]["rows"]] and "finetune" not in found["settings"]
    again = evaluate(store, annotations, tmp_path / "again", "--set", "recall_events=3")
    assert again["metrics"] == found["metrics"] and "clips_extracted" not in again["counts"]       # the cache beside


@pytest.mark.slow
def test_finetuned_from_files_to_metrics(vidsitu, tmp_path):
    store, annotations = vidsitu
    found = evaluate(store, annotations, tmp_path / "out", "--set", "recall_events=3",
                     "--set", "verbs.classifier=finetune", "--set", "finetune.steps=30",
                     "--set", "finetune.batch=8", "--set", "finetune.accumulate=1",
                     "--set", "finetune.lr=0.05", "--set", "finetune.dropout=0")
    assert found["metrics"]["accuracy@1"] > found["chance"]["accuracy@1"] + 20
    assert "softmax" not in found["settings"] and (tmp_path / "out/runs/00-train-val-seed0/finetuned.pt").is_file()


def test_an_event_is_two_seconds_of_its_clip(vidsitu):
    index = Index.load(vidsitu[0])
    position = index.position(clip_id("valid", 1))
    assert [window_of(index, 5 * position + event) for event in range(5)] == [
        (position, 16 * event, 16 * event + 16) for event in range(5)]
    index.frames[position] = 50                                            # a download that ends early
    assert [window_of(index, 5 * position + event)[1:] for event in range(5)] == [
        (0, 16), (16, 32), (32, 48), (48, 50), (49, 50)]
    index.note[position] = "starts at frame 20: what comes before cannot be decoded"
    assert [window_of(index, 5 * position + event)[1:] for event in range(5)] == [
        (0, 1), (0, 12), (12, 28), (28, 44), (44, 50)]
    events = events_of(index, np.arange(len(index)), {clip_id("valid", 1): tuple("abcde")})
    assert events.items.tolist() == list(range(5 * position, 5 * position + 5)) and events.silent == len(index) - 1


def test_metrics_counted_by_hand():
    named = [["a"] * 9 + ["b"], ["a", "a", "b", "b", "c", "d", "e", "f", "g", "h"], ["z"] * 10,
             ["b"] * 9 + ["a"]]
    answers = np.array([["b", "c", "d", "e", "f"],      # first right; a is missed
                        ["x", "y", "b", "c", "d"],      # third right; of a and b, b is found
                        ["a", "b", "c", "d", "e"],      # wrong: nobody learnt z
                        ["c", "d", "a", "f", "b"]])     # fifth right; a, which one annotator named, is no recall
    assert counted_verbs(named, 1) == {"a": 2, "b": 2, "z": 1} and counted_verbs(named, 2) == {"a": 2, "b": 2}
    metrics, recall = score(answers, named, counted_verbs(named, 2))
    assert metrics == {"accuracy@1": 25, "accuracy@5": 75, "recall@5": pytest.approx(50)}
    assert recall == {"a": 0.0, "b": 1.0}
    assert score(answers, named, counted_verbs(named, 1))[0]["recall@5"] == pytest.approx(100 / 3)


@pytest.mark.parametrize("more, parts", [
    (["--test-split", "test"], ["'test'", "none of its clips (1) has verbs", "not public"]),
    (["--set", "recall_events=14"], ["recall_events is 14", "15 events", "set recall_events lower"]),
    (["--set", "verbs.classifier=svm"], ["'svm'", "softmax or finetune"]),
    (["--leave-out", "group"], ["--leave-out group", "verbs"]),
])
def test_refusals(vidsitu, tmp_path, more, parts):
    with pytest.raises(RequestError) as caught:
        evaluate(*vidsitu, tmp_path / "out", *more)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_annotations_are_asked_for(vidsitu, tmp_path):
    store, annotations = vidsitu
    argv = ["--checkpoint", "mean-image", "--store", str(store), "--out", str(tmp_path / "out")]
    with pytest.raises(RequestError, match="--annotations is missing; verbs reads"):
        run.main(["--protocol", "verbs", *argv])
    with pytest.raises(RequestError, match="--annotations does not apply to linear"):
        run.main(["--protocol", "linear", "--annotations", str(annotations), *argv])
    with pytest.raises(RequestError, match="no split_files/vseg_split"):
        evaluate(store, tmp_path, tmp_path / "out")
