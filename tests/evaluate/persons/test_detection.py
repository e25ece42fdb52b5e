"""AVA from its official files to frame mAP: keyframes, exclusions, label map, boxes given and boxes of a detector."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evaluate import run
from evaluate.finetuned.labelled import Cropping
from evaluate.persons.finetune import PersonClips, PersonSamples
from evaluate.persons.keyframes import KeyframeView, Placed, place, start_of
from shared import cli
from shared.cli import RequestError
from shared.clips.index import ClipGeometry
from shared.datasets.ava import LABEL_MAP, Persons, read_annotations
from shared.store.index import Index

ACTIONS = {"stand": (12, (60, -60, -60)), "walk": (14, (-60, 60, -60)), "sit": (11, (-60, -60, 60))}
RATE, SECONDS = 8, 6                      # cut from second 900: keyframes at 902 to 904
LEFT, RIGHT = (0.0, 0.1, 0.45, 0.9), (0.55, 0.1, 1.0, 0.9)
MOVIES = {"train": ["-5KQ66BBWC4", "_a9SWtcaNj8", "tr-3", "tr-4"], "val": ["1j20qq1JyX4", "val-2"]}
FAST = ["--set", "run.threads=1", "--set", "run.workers=0", "--set", "run.device=cpu"]


def persons(movie, second):
    """Two persons a keyframe, left and right, whose actions change from keyframe to keyframe."""
    names, at = list(ACTIONS), sum(map(ord, movie)) + second
    return [(LEFT, names[at % 3]), (RIGHT, names[(at * 2 + second) % 3])]


def annotate(folder):
    """The official files of v2.2, with an action beyond the label map and a second of each part excluded."""
    folder.mkdir(parents=True)
    for part, movies in MOVIES.items():
        rows = []
        for movie in movies:
            for second in (902, 903, 904):
                for number, (box, name) in enumerate(persons(movie, second)):
                    cells = [movie, f"{second:04d}", *(f"{value:.3f}" for value in box)]
                    rows += [",".join([*cells, str(ACTIONS[name][0]), str(number)]),
                             ",".join([*cells, "2", str(number)])]         # crawl: one of the 20 that do not count
        (folder / f"ava_{part}_v2.2.csv").write_text("\r\n".join(rows) + "\r\n")
        (folder / f"ava_{part}_excluded_timestamps_v2.2.csv").write_text(f"{movies[0]},0903\n")
    (folder / LABEL_MAP).write_text("".join(
        f'item {{\n  name: "{name}"\n  id: {number}\n}}\n' for name, (number, _) in ACTIONS.items())
        + 'item {\n  name: "swim"\n  id: 80\n}\n')
    return folder


@pytest.fixture(scope="module")
def ava(tmp_path_factory, film, pack):
    """(store, annotations): movies cut from second 900, a coloured person on either side about each keyframe."""
    base = tmp_path_factory.mktemp("ava")
    annotations = annotate(base / "annotations")
    for seed, movie in enumerate(movie for movies in MOVIES.values() for movie in movies):
        rng = np.random.default_rng(seed)
        noise = rng.integers(-25, 26, (SECONDS * RATE, 4, 6, 3)).repeat(16, 1).repeat(16, 2)
        frames = 128 + noise
        for second in (902, 903, 904):
            about = slice(int((second - 900.5) * RATE), int((second - 899.5) * RATE))
            for box, name in persons(movie, second):
                columns = slice(round(box[0] * 96), round(box[2] * 96))
                frames[about, 6:58, columns] = frames[about, 6:58, columns] // 4 + 96 + np.array(ACTIONS[name][1])
        film(base / "movies" / f"{movie}.mp4", frames.clip(0, 255).astype(np.uint8), RATE)
    return pack("ava", base / "movies", annotations, base / "store"), annotations


def evaluate(store, annotations, out, *more):
    argv = ["--protocol", "detection", "--checkpoint", "random:r2plus1d_tiny:0", "--store", str(store),
            "--annotations", str(annotations), "--out", str(out), "--set", "detection.clip=4x1",
            "--set", "softmax.lr=0.02", *more, *FAST]
    assert run.main(argv) == cli.DONE
    return json.loads((out / "metrics.json").read_text())


def test_from_files_to_frame_map(ava, tmp_path):
    found = evaluate(*ava, tmp_path / "out")
    counts = found["counts"]
    assert (counts["train_persons"], counts["test_persons"], counts["test_keyframes"]) == (22, 10, 5)   # 2 s excluded
    assert (counts["actions"], counts["actions_scored"], counts["excluded_seconds"]) == (4, 3, 2)
    assert found["metrics"]["map"] > 85 and found["chance"]["map"] == pytest.approx(100 / 3)    # actions are colours
    assert any("begin at second 900" in note for note in found["notes"])
    assert {row[0] for row in found["tables"][0]["rows"]} == set(ACTIONS)


@pytest.mark.slow
def test_boxes_of_a_detector(ava, tmp_path):
    """Near boxes find the persons; unsure ones and those at keyframes without any row, which the sure ones there would
    make worse, are left out; at a keyframe that shows nobody they are wrong."""
    store, annotations = ava
    annotations = shutil.copytree(annotations, tmp_path / "annotations")
    rows = [f"{movie},{second:04d},{','.join(f'{value + 0.02:.3f}' for value in box)},,{score}"
            for movie in MOVIES["val"] for second in (902, 903, 904) for (box, _), score in
            zip(persons(movie, second), (0.95, 0.81))]
    strange = [f"val-2,0905,{','.join(map(str, LEFT))},,0.99", f"elsewhere,0902,{','.join(map(str, LEFT))},,0.99"]
    (tmp_path / "boxes.csv").write_text("\n".join([*rows, "val-2,0904,0.4,0.4,0.6,0.6,,0.3", *strange]))
    more = ("--set", f"boxes={tmp_path / 'boxes.csv'}")
    found = evaluate(store, annotations, tmp_path / "near", *more)
    assert found["counts"]["test_persons"] == 10 and found["metrics"]["map"] > 85 and not found["chance"]
    assert found["counts"]["boxes_ignored"] == 2 + 1                        # at an excluded second, at 905
    with (annotations / "ava_val_v2.2.csv").open("a") as file:
        file.write("val-2,0905\r\n")
    judged = evaluate(store, annotations, tmp_path / "judged", *more)
    assert judged["counts"]["test_persons"] == 11 and judged["counts"]["boxes_ignored"] == 2
    assert judged["metrics"]["map"] < found["metrics"]["map"]
    sure = evaluate(store, annotations, tmp_path / "sure", *more, "--set", "box_score=0.9", "--set", "iou=0.99")
    assert sure["counts"]["test_persons"] == 5 + 1 and sure["metrics"]["map"] == 0      # one at 905


def test_official_files_are_read(ava):
    said = read_annotations(ava[1])
    assert said.actions == ("sit", "stand", "walk", "swim")                # by id
    assert said.excluded == {("-5KQ66BBWC4", 903), ("1j20qq1JyX4", 903)} and len(said.persons) == 32
    first = said.persons.take(np.array([0]))
    assert first.video == ["-5KQ66BBWC4"] and first.second.tolist() == [902] and first.box.tolist() == [list(LEFT)]
    assert first.acts.sum() == 1 and not said.persons.acts[:, 3].any()     # crawl is no action of the label map


def test_keyframes_are_placed_by_length(ava):
    store, annotations = ava
    index, persons = Index.load(store), read_annotations(annotations).persons
    position = index.position("tr-3")
    placed = place(index, np.array([position]), persons, -1)
    assert placed.frame.tolist() == [16, 16, 24, 24, 32, 32] and placed.within.all() and placed.cut == 1
    assert place(index, np.array([position]), persons, 901).frame.tolist() == [8, 8, 16, 16, 24, 24]
    late = place(index, np.array([position]), persons, 898)
    assert late.within.tolist() == [True] * 4 + [False] * 2
    index.note[position] = "starts at frame 20: what comes before cannot be decoded"
    found = place(index, np.array([position]), persons, 900)
    assert found.frame.tolist() == [-4, -4, 4, 4, 12, 12] and found.within.tolist() == [False] * 2 + [True] * 4
    index.note[position] = ""
    seconds = np.array([902, 904])
    assert start_of(index, position, seconds, -1) == 900
    index.frames[position] = 905 * RATE                                    # the whole movie
    assert start_of(index, position, seconds, -1) == 0
    index.frames[position] = 3 * RATE
    with pytest.raises(RequestError, match="tr-3 is 3 s long, but its keyframes stand at 902 to 904 s"):
        start_of(index, position, seconds, -1)


@pytest.mark.slow
def test_persons_beyond_their_videos_count_as_missed(ava, tmp_path):
    found = evaluate(*ava, tmp_path / "out", "--set", "start_s=898")
    assert found["counts"]["test_persons"] == 6 and found["counts"]["true_persons"] == 10
    assert any("4 test persons" in note and "count as not found" in note for note in found["notes"])


@pytest.mark.parametrize("more, parts", [
    (["--checkpoint", "mean-image"], ["mean-image", "no positions"]),
    (["--set", "start_s=2000"], ["no person of split 'train'", "start_s"]),
    (["--set", "boxes=none.csv"], ["'none.csv'", "no file"]),
    (["--set", "iou=0"], ["detection.iou is 0"]),
])
def test_refusals(ava, tmp_path, more, parts):
    with pytest.raises(RequestError) as caught:
        evaluate(*ava, tmp_path / "out", *more)
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.slow
def test_finetuned_from_files_to_frame_map(ava, tmp_path):
    argv = ("--set", "detection.classifier=finetune", "--set", "finetune.steps=25", "--set", "finetune.batch=8",
            "--set", "finetune.accumulate=1", "--set", "finetune.lr=0.02", "--set", "finetune.dropout=0",
            "--set", "finetune.bn_group=8")
    found = evaluate(*ava, tmp_path / "out", *argv)
    assert found["metrics"]["map"] > found["chance"]["map"] + 20 and "softmax" not in found["settings"]
    again = evaluate(*ava, tmp_path / "out", *argv)                       # what was trained is read
    assert again["metrics"] == found["metrics"] and "persons_extracted" not in again["counts"]


def test_boxes_go_with_their_crops_and_flips(write_store, tmp_path):
    """A white person on black: in every crop, flipped or not, the box is where the white is, and its middle is seen."""
    rng, boxes, videos = np.random.default_rng(3), [], {}
    for number in range(4):
        top, left, high, wide = rng.integers(0, 34), rng.integers(0, 44), rng.integers(12, 30), rng.integers(12, 36)
        frames = np.zeros((20, 64, 80, 3), np.uint8)
        frames[:, top:top + high, left:left + wide] = 255
        videos[f"v{number}"] = {"rgb": frames}
        boxes.append((left / 80, top / 64, (left + wide) / 80, (top + high) / 64))
    store, count = write_store(tmp_path / "store", videos, ()), len(boxes)
    placed = Placed(Persons(sorted(videos), np.arange(count), np.array(boxes), np.ones((count, 1), bool),
                            np.ones(count)), np.arange(count), np.array([0, 5, 10, 19]), np.ones(count, bool))
    geometry = ClipGeometry.parse("4x2")
    clips = PersonClips(store, PersonSamples.of(placed, "train", ("stand",)), KeyframeView(geometry, 48, 7),
                        Cropping(geometry, 0.1, 0.5, 0.75, 1.33), True, seed=0)
    assert [clips.numbers(number, rng).tolist() for number in range(count)] == [
        [0, 0, 0, 2], [1, 3, 5, 7], [6, 8, 10, 12], [15, 17, 19, 19]]
    flips = set()
    for number in range(count):
        for epoch in range(30):
            sample = clips.sample(number, epoch)
            batch = SimpleNamespace(ids=torch.tensor([number]), views=sample.views[None])
            (x1, y1, x2, y2), flipped = clips.boxes(batch)[0], bool(sample.views["flip"][0])
            crop = sample.crops[0][0, :, :, 0] > 128
            crop = crop[:, ::-1] if flipped else crop
            height, width = crop.shape
            rows, columns = (np.arange(side) + 0.5 for side in crop.shape)
            inside = ((rows > y1 * height) & (rows < y2 * height))[:, None] & ((columns > x1 * width)
                                                                              & (columns < x2 * width))
            assert (inside != crop).mean() < 0.04 and inside.any()        # JPEG rounds the edges off
            assert -1e-6 <= (x1 + x2) / 2 <= 1 + 1e-6 and -1e-6 <= (y1 + y2) / 2 <= 1 + 1e-6
            flips.add(flipped)
    assert flips == {True, False}
