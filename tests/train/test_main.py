"""The whole command on a real store: what a run leaves, refusals, kills and resumptions."""

import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.cli import RequestError, Stopped, hold
from shared.clips.data import ClipData
from shared.clips.index import ClipGeometry
from shared.clips.loader import Sampler
from shared.nn.backbones import build_backbone
from shared.nn.checkpoint import load, load_backbone
from shared.nn.distributed import World
from shared.recipes.training import load_training
from shared.schedule import Schedule
from shared.store.index import Index
from train import main
from train.moco import KeyShuffle

ROOT = Path(main.__file__).resolve().parents[1]
TIMES = {"clips_per_s", "data_wait"}
SMALL = ["--pipeline", "mcl-tiny", *(word for setting in (
    "size=24", "batch=4", "bn_group=2", "model.hidden=16", "queue=40", "steps=8", "checkpoint_steps=3", "workers=0",
    "threads=1", "images_every=3", "every_epochs=3") for word in ("--set", setting))]
STEPS = 40   # of a run that is stopped on its way, with seconds left on any machine
LONG = ["--set", f"steps={STEPS}"]


@pytest.fixture(scope="session")
def store(small_videos, tmp_path_factory):
    """Twelve synthetic videos, preprocessed, eight of them in `train`: two steps an epoch of four."""
    from preprocess import run

    store = tmp_path_factory.mktemp("train") / "store"
    assert run.main(["--dataset", "folder", "--videos", str(small_videos), "--store", str(store), "--engine", "serial",
                     "--set", "geometries=8x2", "--set", "preset=fast"]) == 0
    return store


def command(store, run, *more):
    return [*SMALL, "--store", str(store), "--out", str(run), *more]


def train(store, run, *more):
    """Exit code of the command run in this process."""
    return main.main(command(store, run, *more))


def rows(run):
    """metrics.jsonl without what depends on the clock: {step: row}; every step once."""
    parsed = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len({row["step"] for row in parsed}) == len(parsed)
    return {row["step"]: {key: value for key, value in row.items() if key not in TIMES} for row in parsed}


@pytest.fixture(scope="module")
def unbroken(store, tmp_path_factory):
    """A run from beginning to end, in a process of its own."""
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    done = subprocess.run([sys.executable, str(ROOT / "train/main.py"), *command(store, run)], capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return run, done.stdout


def test_what_a_run_leaves(unbroken, store):
    run, said = unbroken
    assert sorted(entry.name for entry in run.iterdir() if not entry.name.startswith(".")) == [
        "checkpoints", "last.pt", "metrics.jsonl", "tensorboard"]
    assert sorted(os.listdir(run / "checkpoints")) == ["epoch-0003.pt", "step-00000003.pt", "step-00000008.pt"]
    found = rows(run)
    assert list(found) == list(range(1, 9))
    for row in found.values():
        assert {"step", "epoch", "loss", "inter", "intra", "order", "mal", "mal_st", "mal_s", "mal_t", "lr",
                "grad_norm", "in_batch_accuracy", "queue_accuracy", "same_video_negatives", "dead_maps",
                "zero_targets"} <= row.keys()
        assert row["epoch"] == (row["step"] - 1) // 2
        weighted = row["inter"] + row["intra"] + row["order"] * row["epoch"] / 4 + 2 * row["mal"]
        assert row["loss"] == pytest.approx(weighted, rel=1e-5)
        assert row["lr"] == pytest.approx(0.04 * (1 + math.cos(math.pi * (row["step"] - 1) / 8)) / 2)
    state = load(run / "last.pt")
    assert state["step"] == 8 and state["learner"]["queue.pointer"] == 8 * 12 % 40 and len(state["rng"]) == 1
    assert state["sampler"]["epoch"] == 4 and state["sampler"]["step"] == 0
    backbone, provenance = load_backbone(run / "last.pt")
    assert backbone(torch.zeros(1, 3, 8, 24, 24)).shape == (1, backbone.features)
    assert provenance["stores"][0]["split"] == "train" and provenance["stores"][0]["videos"] == 8
    assert provenance["bn_group"] == 2 and provenance["init"] is None and provenance["threads"] == 1
    for text in ("pipeline mcl-tiny", "8 videos of split train", "memory   at most: process", "last.pt"):
        assert text in said


def test_tensorboard_has_scalars_and_images(unbroken):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _ = unbroken
    events = EventAccumulator(str(run / "tensorboard"), {"images": 0, "scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 9))
    tag, = events.Tags()["images"]
    pictures = events.Images(tag)
    assert [event.step for event in pictures] == [1, 7]
    # four clips: query, target, Grad-CAM and three keys; views of 24 px enlarged to 96, two white pixels around each
    assert (pictures[0].height, pictures[0].width) == (4 * 100, 6 * 100)


def test_another_recipe_data_or_folder_is_refused(unbroken, store, tmp_path, quiet_torch):
    run, _ = unbroken
    before = (run / "metrics.jsonl").read_bytes()
    for more, message in (
            ([], "is not empty; go on with it by --resume auto"),
            (["--resume", "auto", "--set", "lr=0.1"], "another recipe: optimise.lr: stored 0.04, asked 0.1"),
            (["--resume", "auto", "--set", "steps=7"], "optimise.steps: stored 8, asked 7")):
        with pytest.raises(RequestError, match=re.escape(message)):
            train(store, run, *more)
    other = tmp_path / "store"
    shutil.copytree(store, other)
    assert train(other, run, "--resume", "auto") == 0      # the same store elsewhere
    from shared.store.index import publish
    index = Index.load(other)
    publish(other, index.pack_rows(), [row for row in index.rows() if row.id != index.id[index.in_split("train")[0]]])
    with pytest.raises(RequestError, match="store 1 has other videos .*; store 1.videos: stored 8, asked 7"):
        train(other, run, "--resume", "auto")
    assert (run / "metrics.jsonl").read_bytes() == before
    (run / "train.log").touch()                            # what people keep beside a run
    assert train(store, run, "--resume", "auto") == 0
    lock = hold(run, "--out")
    with pytest.raises(RequestError, match="is in use by another process; wait for its end, or choose another"):
        train(store, run, "--resume", "auto")
    os.close(lock)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    (tmp_path / "mine/checkpoints").mkdir()      # of another trainer
    with pytest.raises(RequestError, match="is no run of train/main.py: it holds thesis.tex"):
        train(store, tmp_path / "mine", "--resume", "auto")


@pytest.mark.parametrize("more, message", [
    (["--split", "test9"], "has no split 'test9'; it has test, train"),
    (["--set", "clip=8x4"], "preprocess.reindex"),
    (["--set", "batch=16"], "--set batch=8"),
    (["--set", "bn_group=3"], "--set batch="),
    (["--set", "backbone=r2plus1d_tin"], "did you mean 'r2plus1d_tiny'"),
    (["--init", "nowhere.pth"], "leave out --init"),
    (["--resume", "yes"], "invalid choice: 'yes'"),
    (["--pipelin", "mcl"], "did you mean '--pipeline'"),
])
def test_mistakes_leave_nothing(store, tmp_path, quiet_torch, more, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        train(store, tmp_path / "run", *more)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_goes_on_for_longer(unbroken, store, tmp_path, quiet_torch, capsys):
    run = shutil.copytree(unbroken[0], tmp_path / "run", symlinks=True)
    longer = ["--resume", "auto", "--set", "steps=12"]
    with pytest.raises(RequestError, match="another recipe: optimise.steps: stored 8, asked 6"):
        train(store, run, "--resume", "auto", "--set", "steps=6")
    with pytest.raises(RequestError, match="another recipe: optimise.lr: stored [^;]*; use its"):
        train(store, run, *longer, "--set", "lr=0.5")
    assert train(store, run, *longer) == 0
    assert "longer   from 8 to 12 steps at step 8: the learning rate's cosine" in capsys.readouterr().out
    found, before = rows(run), rows(unbroken[0])
    assert list(found) == list(range(1, 13)) and all(found[step] == before[step] for step in before)
    state = load(run / "last.pt")
    assert state["provenance"]["longer"] == [{"step": 8, "from": 8, "to": 12}]
    schedule = Schedule(**state["scheduler"])
    assert schedule.steps == 12 and found[9]["lr"] == schedule.rate(8)
    assert train(store, run, "--resume", "auto", "--set", "epochs=7", "--set", "steps=0") == 0   # two steps an epoch
    assert list(rows(run)) == list(range(1, 15))


def test_a_relabelled_store_resumes(unbroken, store, tmp_path, quiet_torch):
    """Labels and other videos of the store may change; the videos that were used may not."""
    from preprocess import reindex

    run = shutil.copytree(unbroken[0], tmp_path / "run", symlinks=True)
    other = shutil.copytree(store, tmp_path / "other")
    rows = Index.load(other).rows()
    csv = tmp_path / "other.csv"
    csv.write_text("path,label,split\n" + "".join(f"{row.path},thing,{';'.join(row.splits)}\n" for row in rows))
    assert reindex.main([str(other), "--annotations", str(csv)]) == 0
    assert reindex.main([str(other), "--drop", next(row.id for row in rows if row.splits == ("test",))]) == 0
    assert reindex.main([str(other), "--clips", "4x1"]) == 0
    assert train(other, run, "--resume", "auto", "--set", "steps=9") == 0
    assert reindex.main([str(other), "--drop", next(row.id for row in rows if row.splits == ("train",))]) == 0
    with pytest.raises(RequestError, match="made from other data: store 1 has other videos in that split now"):
        train(other, run, "--resume", "auto", "--set", "steps=10")


def test_a_store_that_is_none(tmp_path, quiet_torch):
    with pytest.raises(RequestError, match="is no store"):
        train(tmp_path, tmp_path / "run")


@pytest.mark.slow
def test_packs_in_object_storage(unbroken, store, bucket, tmp_path, quiet_torch):
    """From s3:// by two workers: the same losses as from a folder."""
    import s3fs

    s3fs.S3FileSystem().put(str(store), f"{bucket}/store", recursive=True)
    assert train(f"{bucket}/store", tmp_path, "--set", "workers=2") == 0
    assert rows(tmp_path) == rows(unbroken[0])
    assert load(tmp_path / "last.pt")["provenance"]["stores"][0]["store"] == f"{bucket}/store"


def test_two_stores_and_a_split(store, tmp_path, quiet_torch):
    """A video of the one and its namesake of the other are two; the checkpoint says which videos were chosen."""
    other = tmp_path / "other"
    shutil.copytree(store, other)
    run = tmp_path / "run"
    assert train(store, run, "--store", str(other), "--split", "test", "--set", "steps=2") == 0
    state = load(run / "last.pt")
    assert [(entry["store"], entry["split"], entry["videos"]) for entry in state["provenance"]["stores"]] == [
        (str(store), "test", 4), (str(other), "test", 4)]
    assert state["epoch"] == 1 and set(state["learner"]["queue.ids"].tolist()) == {-1, *range(8)}
    (run / "last.pt").resolve().unlink()
    with pytest.raises(RequestError, match="last.pt leads to checkpoints/step-00000002.pt, which is gone"):
        train(store, run, "--store", str(other), "--split", "test", "--set", "steps=2", "--resume", "auto")
    assert list(rows(run)) == [1, 2]


@pytest.mark.slow
def test_imagenet_weights_and_their_hash(store, tmp_path, quiet_torch):
    """R(2+1)D-50 on small clips from a file in torchvision's layout; resumed, it needs the file no more."""
    file, run = tmp_path / "resnet50.pth", tmp_path / "run"
    torch.manual_seed(0)
    plain = {name.removeprefix("stem.").removeprefix("stages."): value.squeeze(2) if value.dim() == 5 else value
             for name, value in build_backbone("r2d_50").state_dict().items()}
    torch.save(plain, file)
    more = [word for setting in ("backbone=r2plus1d_50", "size=32", "images_every=0", "steps=1") for word in
            ("--set", setting)]
    assert train(store, run, *more, "--init", str(file)) == 0
    init = load(run / "last.pt")["provenance"]["init"]
    assert init["file"] == "resnet50.pth" and init["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (init["loaded"], init["identities"]) == (len(plain), 16)
    torch.save(plain | {"conv1.weight": plain["conv1.weight"] + 1}, file)
    with pytest.raises(RequestError, match="did not start from --init resnet50.pth; leave --init out"):
        train(store, run, *more, "--init", str(file), "--resume", "auto")
    assert train(store, run, *more, "--resume", "auto") == 0
    assert load(run / "last.pt")["provenance"]["init"] == init


@pytest.mark.parametrize("group, advice", [(2, "set --set batch=2, with another --out .*, or use"), (4, "; use a")])
def test_a_device_without_room_is_told_with_the_batch_to_set(store, tmp_path, quiet_torch, monkeypatch, group, advice):
    """No GPU here: its allocator's own words."""
    def forward(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of ...")
    monkeypatch.setattr("train.moco.Learner.forward", forward)
    with pytest.raises(Stopped, match=r"a step of optimise.batch 4 does not fit into the memory of cpu \(CUDA out of "
                       r"memory. Tried to allocate 2.00 GiB\)") as stop:
        main.main(command(store, tmp_path / "run", "--set", f"bn_group={group}"))
    assert re.search(advice, str(stop.value)) and "\n" not in str(stop.value)


def test_stops_before_an_update_that_is_not_finite(store, tmp_path, quiet_torch):
    with pytest.raises(Stopped) as stop:
        train(store, tmp_path, *"--set lr=1e30 --set checkpoint_steps=1 --set images_every=0".split())
    line = str(stop.value)
    step = int(re.search(r"step (\d+) is not finite, before the update: .*loss (nan|inf)", line)[1])
    assert 1 < step <= 4 and f"the last checkpoint is of step {step - 1}" in line
    videos = re.search(r"videos (.*?);", line)[1].split(", ")
    assert len(videos) == 4 and set(videos) <= set(Index.load(store).id)
    assert load(tmp_path / "last.pt")["step"] == step - 1 and list(rows(tmp_path)) == list(range(1, step))


def test_rows_beyond_the_checkpoint_are_written_anew(unbroken, store, tmp_path, quiet_torch):
    """Resumed in another process from the middle, with workers, and with a torn last row."""
    run = tmp_path / "run"
    shutil.copytree(unbroken[0], run, symlinks=True)
    (run / "last.pt").unlink()
    (run / "last.pt").symlink_to("checkpoints/step-00000003.pt")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "lo')
    assert train(store, run, "--resume", "auto", "--set", "workers=2") == 0
    assert rows(run) == rows(unbroken[0])


def start(store, run, *more, ranks=1):
    """The command in a process group of its own."""
    python = [sys.executable]
    if ranks > 1:
        python = [str(Path(sys.executable).with_name("torchrun")), "--standalone", f"--nproc-per-node={ranks}",
                  "--local-addr=127.0.0.1"]
    return subprocess.Popen([*python, str(ROOT / "train/main.py"), *command(store, run, *more)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_the_flag_of_before_is_named(store, tmp_path):
    with pytest.raises(RequestError, match="--run is spelt --out"):
        main.arguments(["--pipeline", "mcl-tiny", "--store", str(store), "--run", str(tmp_path)])


def wait_for_rows(process, run, count):
    """Until `count` rows are logged; the process must not end before."""
    path, deadline = run / "metrics.jsonl", time.monotonic() + 300
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.01)


def test_interrupted_it_saves_and_says_how_to_go_on(store, tmp_path, quiet_torch):
    run = tmp_path / "run"

    def interrupt():
        while not (run / "metrics.jsonl").exists() or len(rows_there(run)) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(Stopped, match=r"interrupted after step \d+ of 100000; .*last.pt holds it; .*--resume auto"):
        train(store, run, "--set", "steps=100000", "--set", "checkpoint_steps=0")
    thread.join()
    done = load(run / "last.pt")["step"]
    assert done >= 2 and list(rows(run)) == list(range(1, done + 1))


@pytest.fixture(scope="module")
def long(store, tmp_path_factory):
    """A run of `STEPS` steps from beginning to end."""
    run = tmp_path_factory.mktemp("runs") / "long"
    process = start(store, run, *LONG)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return run


@pytest.mark.slow
@pytest.mark.parametrize("number, word", [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "SIGTERM")])
def test_ctrl_c_in_a_terminal(long, store, tmp_path, number, word):
    """It reaches the whole process group, workers too; exit code 3, and a resumed run is as one unbroken."""
    run = tmp_path / "run"
    process = start(store, run, *LONG, "--set", "checkpoint_steps=0", "--set", "workers=2")
    try:
        wait_for_rows(process, run, 2)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 3
    assert f"{word} after step" in errors and "--resume auto" in errors and "Traceback" not in errors
    done = load(run / "last.pt")["step"]
    assert list(rows(run)) == list(range(1, done + 1)) and done < STEPS
    process = start(store, run, *LONG, "--resume", "auto")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert rows(run) == rows(long)


@pytest.mark.slow
@pytest.mark.parametrize("ranks, workers, kills", [(1, 0, (1, 4, 23)), (1, 2, (5,)), (2, 0, (2, 18)), (2, 2, (4,))])
def test_killed_at_any_step_and_resumed_as_one_never_killed(store, tmp_path, ranks, workers, kills):
    settings = [*LONG, "--set", f"workers={workers}"]
    process = start(store, tmp_path / "whole", *settings, ranks=ranks)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    for count in kills:
        run = tmp_path / f"killed-{count}"
        process = start(store, run, *settings, ranks=ranks)
        try:
            wait_for_rows(process, run, count)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            kill_children(run)
        process.communicate()
        assert len(rows_there(run)) < STEPS
        process = start(store, run, *settings, "--resume", "auto", ranks=ranks)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert rows(run) == rows(tmp_path / "whole")
    whole, resumed = load(tmp_path / "whole/last.pt"), load(run / "last.pt")
    assert all(torch.equal(value, whole["learner"][name]) for name, value in resumed["learner"].items())


def rows_there(run):
    return [line for line in (run / "metrics.jsonl").read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def kill_children(run):
    """Torchrun's ranks have sessions of their own: those of this run, by its folder on their command line."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        if str(run) in (process.info["cmdline"] or ()):
            process.kill()
            process.wait()


@pytest.mark.slow
def test_torchrun_told_to_stop_waits_for_no_rank(store, tmp_path):
    """It hands the signal to its ranks once, and kills after half a minute those that wait for another."""
    run = tmp_path / "run"
    process = start(store, run, *LONG, "--set", "checkpoint_steps=0", "--set", "workers=1", ranks=2)
    try:
        wait_for_rows(process, run, 2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
        kill_children(run)
    assert errors.count("interrupted after step") == 1 and "forcefully exiting" not in errors
    done = load(run / "last.pt")["step"]
    assert list(rows(run)) == list(range(1, done + 1)) and done < STEPS


@pytest.mark.slow
def test_another_number_of_processes(store, tmp_path, quiet_torch):
    run = tmp_path / "run"
    process = start(store, run, *LONG, ranks=2)
    wait_for_rows(process, run, 4)
    os.killpg(process.pid, signal.SIGKILL)
    kill_children(run)
    process.communicate()
    kept = load(run / "last.pt")["step"]
    assert 3 <= kept < STEPS
    with pytest.raises(RequestError, match="made by 2 processes and this run has 1.*add --set reshard=true"):
        train(store, run, *LONG, "--resume", "auto")
    assert train(store, run, *LONG, "--resume", "auto", "--set", "reshard=true") == 0
    assert list(rows(run)) == list(range(1, STEPS + 1))
    assert load(run / "last.pt")["provenance"]["resharded"] == [{"step": kept, "from": 2, "to": 1}]


@pytest.mark.slow
def test_under_torchrun_rank_0_alone_speaks(store, tmp_path):
    process = start(store, tmp_path / "run", "--set", "epohs=3", ranks=2)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert [line for line in errors.splitlines() if line.startswith("error:")] == [
        "error: --set 'epohs' is no setting; did you mean 'epochs'?"]
    last = [line for line in errors.splitlines() if line.strip("= ")][-1]      # below torchrun's own traceback
    assert last == "  traceback : error: --set 'epohs' is no setting; did you mean 'epochs'?"
    assert "stopping ..." not in errors and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_hand_made_checkpoints_are_not_resumed(unbroken, store, tmp_path, quiet_torch):
    """Wrong kinds and shapes in what only going on reads: one line each."""
    run, good = tmp_path / "run", load(unbroken[0] / "last.pt")
    run.mkdir()
    optimizer = good["optimizer"]
    narrow = {number: {"momentum_buffer": torch.zeros(3)} for number in optimizer["state"]}
    for change in ({"provenance": {}}, {"provenance": {**good["provenance"], "world_size": "x"}}, {"rng": []},
                   {"step": 10 ** 9}, {"step": "x"}, {"optimizer": {}}, {"optimizer": {**optimizer, "state": narrow}},
                   {"sampler": None}, {"rng": [None]}):
        torch.save({**good, **change}, run / "last.pt")
        with pytest.raises(RequestError) as caught:
            train(store, run, "--resume", "auto")
        assert "last.pt" in str(caught.value) and "\n" not in str(caught.value), change.keys()


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("bn", ["auto", "split", "none"])
@pytest.mark.parametrize("pipeline, clip", [("moco-tiny", ["clip=8x2"]),
                                            ("maclr-tiny", ["clip=4x4", "motion_clip=8x2"])])
def test_what_a_message_suggests_is_taken(pipeline, clip, ranks, bn):
    """In one step: batch, ranks, BN groups, clips and how many videos are long enough are looked at together."""
    def look(settings):
        """The recipe and the videos of 15 frames, too short for the clips that were asked, and of 15 and more."""
        recipe = load_training(pipeline, settings).recipe
        data = ClipData.__new__(ClipData)
        data.geometry, data.maclr, data._kept = recipe.sampling.geometry, recipe.maclr, {ClipGeometry(4, 2)}
        data.span = max(data.geometry.span, recipe.maclr.geometry.span if recipe.maclr else 0)
        data._frames = np.array([9] * short + [16] * videos)
        data.videos = np.flatnonzero(data._frames >= data.span)
        data.short = len(data._frames) - len(data)
        main.check_batch(recipe, data, world)
        return recipe, len(data)

    world = World(size=ranks)
    for short, videos, batch, group in ((0, 7, 32, 8), (0, 8, 64, 32), (9, 30, 6, 4), (0, 30, 4, 1), (9, 5, 5, 2),
                                        (9, 0, 3, 2), (0, 100, 7, 7), (0, 3, 9, 8), (40, 3, 9, 8), (40, 30, 36, 8),
                                        (40, 30, 99, 9)):
        asked = [*clip, f"batch={batch}", f"bn_group={group}", f"bn={bn}"]
        try:
            ways = [[]]
            look(asked)
        except RequestError as error:
            ways = [re.findall(r"--set (\S+)", way.rstrip(";")) for way in re.split("; or ", str(error))]
            assert all(ways) or "bring more" in str(error) and videos + short < 2 * ranks, str(error)
            if short and videos < batch:
                assert "clip=4x2" in ways[-1], str(error)           # what the store holds, not the longest that fits
        for added in filter(None, ways):
            recipe, enough = look([*asked, *added])
            assert Sampler(enough, recipe.optimise.batch, world=ranks).steps
            KeyShuffle.choose(bn, recipe.contrast.bn_group, recipe.optimise.batch // ranks, 0, world)
