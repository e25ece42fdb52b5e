"""Fine-tuning: it learns, goes on where it was stopped, is the same on any ranks, answers with the mean of views."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch

from evaluate import run
from evaluate.features.cache import FeatureCache
from evaluate.features.encoders import open_encoder, weights_hash
from evaluate.features.extract import extract
from evaluate.finetuned import job, supervised
from evaluate.finetuned.classifier import Probabilities, answering
from evaluate.finetuned.finetune import CropsView
from evaluate.finetuned.labelled import Cropping, LabelledClips
from evaluate.folds import Samples
from evaluate.protocol import load_settings
from evaluate.report import results
from shared import cli
from shared.cli import RequestError, Stopped
from shared.clips.index import ClipGeometry
from shared.clips.resampling import MEAN, STD, resize
from shared.nn.checkpoint import load_finetuned
from shared.nn.distributed import World
from shared.store.index import Index
from shared.store.reader import StoreReader

FAST = {"run.device": "cpu", "run.threads": 1, "run.workers": 0, "features.clips": 1, "finetune.crops": 1,
        "finetune.rand_n": 0, "finetune.batch": 8, "finetune.accumulate": 1, "finetune.bn_group": 4,
        "finetune.dropout": 0.5}
FRESH = "random:r2plus1d_tiny:1"
LEARNING = {"steps": 30, "lr": 0.03, "dropout": 0.0, "features.clips": 2, "crops": 3}


def arguments(store, out, checkpoint=FRESH, **changes):
    settings = FAST | {key if "." in key else f"finetune.{key}": value for key, value in changes.items()}
    return ["--protocol", "finetune", "--checkpoint", str(checkpoint), "--store", str(store), "--out", str(out),
            *(part for key, value in settings.items() for part in ("--set", f"{key}={value}"))]


@pytest.fixture
def finetune(store, tmp_path):
    """finetune(out, *more, where=store, checkpoint=FRESH, **settings) -> metrics.json, the content of finetuned.pt."""
    def call(out, *more, where=store, checkpoint=FRESH, **settings):
        assert run.main([*arguments(where, tmp_path / out, checkpoint, **settings), *more]) == cli.DONE
        return json.loads((tmp_path / out / "metrics.json").read_text()), trained(tmp_path / out)
    return call


def trained(out):
    return torch.load(next((out / "runs").glob("*/finetuned.pt")), weights_only=True)


@pytest.fixture(scope="module")
def learnt(store, tmp_path_factory):
    """OUT of a fine-tuning of the three colours."""
    out = tmp_path_factory.mktemp("learnt") / "out"
    assert run.main(arguments(store, out, **LEARNING)) == cli.DONE
    return out


def test_it_learns_and_says_so(learnt):
    found, state = json.loads((learnt / "metrics.json").read_text()), trained(learnt)
    losses = [loss for _, loss, _ in state["curve"]]
    assert len(losses) == 30 and np.mean(losses[-8:]) < 0.75 * np.mean(losses[:4])
    assert set(found["metrics"]) == {"top1", "mean_class"} and found["metrics"]["top1"] > 80
    assert found["chance"]["top1"] == pytest.approx(100 / 3)
    counts = found["counts"]
    assert (counts["train_videos"], counts["test_videos"], counts["classes"], counts["looped"]) == (9, 9, 3, 1)
    assert (counts["updates"], counts["epochs"], counts["crops"], counts["clips_per_video"]) == (30, 30, 3, 2)
    assert found["settings"]["finetune"]["bn_group"] == 4
    assert (learnt / "report.html").read_text().count("data:image/png") == 3      # curve, confusion, store
    assert not list(learnt.glob("runs/*/training.pt")) and state["classes"] == ["a", "b", "c"]
    assert state["provenance"]["stores"][-1]["labels"] and state["provenance"]["start"]["checkpoint"] == FRESH


def test_its_file_is_a_classifier_and_a_checkpoint(learnt, store):
    path = next(learnt.glob("runs/*/finetuned.pt"))
    found = load_finetuned(path)
    assert found.head.weight.shape == (3, 48) and found.classes == ["a", "b", "c"] and not found.backbone.training
    assert weights_hash(open_encoder(str(path)).net) == weights_hash(found.backbone) != weights_hash(
        open_encoder(FRESH).net)
    index, document = Index.load(store), json.loads((store / "store.json").read_text())
    note, = results.notes([open_encoder(str(path))], index, document, [("train2", "test2")], World())
    assert note.startswith("6 test videos of test2 were in the training list 'train' of this checkpoint, WITH")
    assert results.origin(open_encoder(str(path)))["kind"] == "finetuned"


def test_what_is_trained_is_not_trained_again(learnt, store, tmp_path):
    learnt = shutil.copytree(learnt, tmp_path / "out")            # the other tests read it too
    path = next(learnt.glob("runs/*/finetuned.pt"))
    before = path.stat()
    assert run.main(arguments(store, learnt, **LEARNING | {"crops": 1})) == cli.DONE       # only the test differs
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_ino == before.st_ino
    with pytest.raises(RequestError, match=r"finetuned.pt was made from another request: finetune.lr: stored 0.03, "
                                           r"asked 0.04; use its settings or another --out"):
        run.main(arguments(store, learnt, **LEARNING | {"lr": 0.04}))


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(finetune, store, tmp_path, monkeypatch):
    settings = dict(steps=5, accumulate=2, batch=4, rand_n=1)
    metrics, unbroken = finetune("unbroken", **settings)
    backward, calls = job.Job.backward, []

    def stopping(job, *args):
        calls.append(1)
        if len(calls) == 6:                      # within the third update
            os.kill(os.getpid(), signal.SIGTERM)
        return backward(job, *args)
    monkeypatch.setattr(job.Job, "backward", stopping)
    with pytest.raises(Stopped, match="SIGTERM after update 3 of 5; the same command goes on"):
        finetune("broken", **settings)
    monkeypatch.undo()
    assert torch.load(next(tmp_path.glob("broken/runs/*/training.pt")), weights_only=True)["step"] == 3
    with pytest.raises(RequestError, match="training.pt was made from another request: finetune.dropout"):
        finetune("broken", **settings | {"dropout": 0.1})
    again, resumed = finetune("broken", **settings)
    assert_same(resumed, unbroken)
    assert again["metrics"] == metrics["metrics"]


def assert_same(found, expected, **tolerance):
    """Weights and curve, bit for bit unless a tolerance is given."""
    for part in ("backbone", "head"):
        assert found[part].keys() == expected[part].keys()
        for name, value in expected[part].items():
            torch.testing.assert_close(found[part][name], value, **(tolerance or dict(rtol=0, atol=0)), msg=name)
    np.testing.assert_allclose(found["curve"], expected["curve"], rtol=tolerance.get("rtol", 0))


KILLED = """
import os, signal, sys
from evaluate import run
from evaluate.finetuned import job
update = job.Job.update
def killing(job, optimizer, trained, rate, logs, number, curve):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    update(job, optimizer, trained, rate, logs, number, curve)
job.Job.update, job.CHECKPOINT_S = killing, 0
run.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(finetune, store, tmp_path):
    settings = {"steps": 4, "run.workers": 1}
    _, unbroken = finetune("unbroken", **settings)
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments(store, tmp_path / "broken", **settings)],
                          capture_output=True, timeout=600)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert torch.load(next(tmp_path.glob("broken/runs/*/training.pt")), weights_only=True)["step"] == 3
    (next(tmp_path.glob("broken/runs/*")) / ".finetuned.pt.1.partial").write_bytes(b"half")
    _, resumed = finetune("broken", **settings)
    assert_same(resumed, unbroken)
    assert not list(tmp_path.glob("broken/runs/*/.*.partial"))


@pytest.mark.slow
def test_two_ranks_train_and_test_as_one(finetune, store, tmp_path):
    """BN statistics are of groups of 4 clips, those of a rank, so that nothing but rounding differs."""
    settings = {"steps": 3, "rand_n": 1, "momentum": 0.5}
    metrics, alone = finetune("alone", **settings)
    master = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(master.port),
             "TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "evaluate.run", *arguments(store, tmp_path / "two", **settings)]
    ranks = [subprocess.Popen(command, env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for rank in range(2)]
    try:
        for process in ranks:
            said, _ = process.communicate(timeout=600)
            assert process.returncode == 0, said
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    found = json.loads((tmp_path / "two/metrics.json").read_text())
    state = trained(tmp_path / "two")
    assert state["provenance"]["world_size"] == 2
    assert_same(state, alone, rtol=2e-4, atol=2e-5)
    assert found["counts"]["test_videos"] == 9 and found["metrics"].keys() == metrics["metrics"].keys()


@pytest.mark.slow
def test_forwards_add_up_to_an_update(finetune):
    """Twice 4 clips are 8 clips in BN groups of 4, but for the running statistics' order."""
    settings = {"steps": 2, "dropout": 0.0}
    _, twice = finetune("twice", batch=4, accumulate=2, **settings)
    _, once = finetune("once", batch=8, accumulate=1, **settings)
    for part in ("backbone", "head"):
        for name, value in once[part].items():
            if "running" not in name and "tracked" not in name:
                torch.testing.assert_close(twice[part][name], value, rtol=2e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize("height, width", [(48, 80), (80, 48), (64, 64), (48, 49)])
@pytest.mark.parametrize("size", [40, 32])
@pytest.mark.parametrize("crops", [1, 3])
def test_crops_lie_where_those_of_a_resized_frame_do(height, width, size, crops):
    view = CropsView(1, ClipGeometry(8, 2), size, 40, crops)
    ramps = np.broadcast_arrays(3 * np.arange(width), 3 * np.arange(height)[:, None], 100)
    frame = np.stack(ramps, -1).astype(np.uint8)
    short = min(height, width)
    whole = np.asarray(PIL.Image.fromarray(frame).resize(
        (round(width * 40 / short), round(height * 40 / short)), PIL.Image.BILINEAR)).astype(float)
    down, across = (whole.shape[axis] - size for axis in (0, 1))
    places = [(down / 2, 0), (down / 2, across / 2), (down / 2, across)] if width >= height else \
        [(0, across / 2), (down / 2, across / 2), (down, across / 2)]
    places = places if crops == 3 else places[1:2]
    band = frame[view.crop(height, width)]
    squares = view.squares(*band.shape[:2])
    assert sum(count for _, _, count in squares) == crops
    if height == width and size == 40 and crops == 3:
        assert len(squares) == 1
    found = [255 * resize(torch.from_numpy(np.ascontiguousarray(band[None, rows, columns])), size)[:, 0].numpy()
             for rows, columns, count in squares for _ in range(count)]
    for image, (top, left) in zip(found, places):
        expected = whole[round(top):round(top) + size, round(left):round(left) + size].transpose(2, 0, 1)
        assert np.abs(image - expected)[:, 2:-2, 2:-2].max() < 6      # two pixels of the ramp


def test_the_answer_is_the_mean_softmax_over_all_views(learnt, store, tmp_path):
    found = load_finetuned(next(learnt.glob("runs/*/finetuned.pt")))
    start = open_encoder(FRESH)
    classifier = supervised.Classifier(found.backbone, found.classes)
    classifier.head = found.head
    assert isinstance(answering(start, classifier).net, Probabilities)
    view = CropsView(3, ClipGeometry(8, 2), 48, 55, 3)
    settings = load_settings("finetune", ["run.threads=1", "run.workers=0", "run.batch=2"])
    answers = extract(answering(start, classifier), store, "test", view, settings.run,
                      FeatureCache(tmp_path / "features"), World())
    reader, mean, std = StoreReader(store), torch.tensor(MEAN).view(3, 1, 1, 1), torch.tensor(STD).view(3, 1, 1, 1)
    for video, answer in zip(answers.ids[:3], answers.vectors):
        count, total = int(reader.index.row(video).frames), []
        for start_frame in np.linspace(0, count - 15, 3).round().astype(int):
            frames = reader.frames(video, range(start_frame, start_frame + 15, 2))
            for left in (0, 12, 24):                                      # 80 pixels wide, squares of 56
                crop = torch.from_numpy(frames[:, 4:60, left:left + 56].copy())
                with torch.no_grad():
                    logits = classifier.eval()((resize(crop, 48) - mean)[None] / std)
                total.append(torch.softmax(logits, 1)[0])
        np.testing.assert_allclose(answer, torch.stack(total).mean(0).numpy(), atol=2e-4)


def test_samples_are_functions_of_seed_epoch_and_number(store):
    cropping, samples = Cropping(ClipGeometry(8, 2), 0.2, 1.0, 0.75, 1.33), Samples.of_split(Index.load(store), "train")
    assert samples.classes == ["a", "b", "c"] and np.bincount(samples.labels).tolist() == [3, 3, 3]
    data, other = (LabelledClips(store, samples, cropping, True, seed) for seed in (0, 1))
    assert data.short == 1 and len(data) == 9
    starts = []
    for number in range(9):
        one, same = data.sample(number, 2), data.sample(number, 2)
        assert np.array_equal(one.crops[0], same.crops[0]) and one.views == same.views
        frames = data.indexes[0].frames[samples.positions[number]]
        for epoch in range(20):
            start = int(data.sample(number, epoch).views["start"][0])
            assert 0 <= start <= max(0, frames - 15)
            starts.append(start)
    assert len(set(starts)) > 10
    assert any(data.sample(n, 0).views != other.sample(n, 0).views for n in range(9))
    short = int(np.flatnonzero(data.indexes[0].frames[samples.positions] == 9)[0])
    looped = Cropping(ClipGeometry(8, 2), 1.0, 1.0, 1.25, 1.25)          # the whole frame: 64x80
    clip = LabelledClips(store, samples, looped, False, 0).sample(short, 0).crops[0]
    assert clip.shape == (8, 64, 80, 3)
    video = data.indexes[0].id[samples.positions[short]]
    assert np.array_equal(clip, data.reader(0).frames(video, [0, 2, 4, 6, 8, 1, 3, 5]))


def test_windows_hold_their_clips(store):
    index = Index.load(store)
    position = index.position("b2")                                      # 26 frames
    windows = Samples("events", np.full(4, position), np.array([0, 4, 10, 22]), np.array([20, 26, 14, 26]),
                      np.array([0, 1, 0, 1]), ["x", "y"])
    data = LabelledClips(store, windows, Cropping(ClipGeometry(8, 2), 0.2, 1.0, 0.75, 1.33), False, 0)
    starts = [{int(data.sample(n, epoch).views["start"][0]) for epoch in range(60)} for n in range(4)]
    assert starts[0] == set(range(6)) and starts[1] == set(range(4, 12))
    assert starts[2] == {4} and starts[3] == {11}                        # about the middle; within the video
    assert data.classes == ["x", "y"] and not any(data.sample(0, e).views["flip"][0] for e in range(20))


def test_classes_that_tell_left_from_right_are_not_flipped():
    auto = load_settings("finetune", []).finetune
    always = load_settings("finetune", ["flip=true"]).finetune
    never = load_settings("finetune", ["flip=false"]).finetune
    for settings, dataset, expected in ((auto, "ssv2", False), (auto, "ucf101", True), (always, "ssv2", True),
                                        (never, "ucf101", False)):
        assert supervised.flips(settings, {"dataset": dataset}) is expected


@pytest.mark.parametrize("changes, message", [
    (dict(batch=64), r"finetune.batch is 64 .* split 'train' holds 9 labelled samples; .* --set finetune.batch=8$"),
    (dict(bn_group=3), "finetune.batch is 8 over 1 process, finetune.bn_group 3, .* --set finetune.batch=6$"),
    (dict(dropout=1.0), "finetune.dropout is 1.0; expected at least 0 and below 1"),
    (dict(crops=2), "finetune.crops is 2; expected 1"), (dict(flip="sometimes"), "expected auto, true or false"),
    (dict(test_size=99), "finetune.test_size is 99 px and the short edge 55 px"),
    (dict(momentum=0.0), "nesterov is true without momentum"), (dict(area_min=2.0), "finetune.area_min is 2.0"),
    (dict(precision="half"), "expected float32 or bf16"), (dict(rand_m=31), "finetune.rand_m is 31"),
    (dict(checkpoint="mean-image"), "checkpoint mean-image has no weights to train"),
])
def test_requests_that_cannot_be(finetune, changes, message):
    with pytest.raises(RequestError, match=message):
        finetune("out", **changes)


def test_videos_without_labels_and_classes_that_nothing_can_learn(finetune, write_store, make_video, tmp_path):
    kinds = [(0, "a", "train"), (0, "a", "train"), (-1, "", "train"), (1, "b", "test"), (-1, "", "val")]
    videos = {f"v{i}": dict(rgb=make_video(20, i), label=label, class_name=name, splits=(split,))
              for i, (label, name, split) in enumerate(kinds)}
    where = write_store(tmp_path / "store", videos)
    with pytest.raises(RequestError, match="class 'b' has 1 video in split 'test' and none in split 'train'"):
        finetune("out", where=where)
    with pytest.raises(RequestError, match="no video of split 'val' has a label; this protocol needs classes"):
        finetune("out", "--train-split", "val", where=where)
    with pytest.raises(RequestError, match="--leave-out group does not apply to finetune"):
        finetune("out", "--leave-out", "group", where=where)


@pytest.mark.slow
def test_a_supervised_checkpoint_trains_on_in_bf16(finetune, learnt):
    start = next(learnt.glob("runs/*/finetuned.pt"))
    found, state = finetune("bf16", checkpoint=start, precision="bf16", steps=2)
    assert found["checkpoint"]["kind"] == "finetuned" and state["provenance"]["start"]["pipeline"] == "finetune"
    assert [store["labels"] for store in state["provenance"]["stores"]] == [True, True]
    assert all(value.dtype != torch.bfloat16 for value in state["backbone"].values())
    assert np.isfinite([loss for _, loss, _ in state["curve"]]).all()
