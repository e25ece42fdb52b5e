"""Order and batches against a single process; the ring; workers that fail, die, or lose their parent."""

import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from shared.cli import RequestError, Stopped
from shared.clips.data import ClipData
from shared.clips.loader import PART, PREFETCH, Loader, Sampler
from shared.clips.ring import Place, Ring, SlotWriter

REPOSITORY = Path(__file__).resolve().parents[3]
LENGTHS = {f"v{n:02}": (24 + n, 32, 40 + 8 * (n % 3)) for n in range(14)}


@pytest.fixture(scope="module")
def store(tmp_path_factory, make_clip_store):
    return make_clip_store(tmp_path_factory.mktemp("loader") / "store", LENGTHS)


@pytest.fixture
def data(store, sampling, augment):
    return ClipData([store], sampling(), augment(), seed=4)


def content(batch):
    """A batch's bytes, copied out of the ring."""
    crops, motion, _ = batch.arrays()
    return (batch.epoch, batch.step, batch.ids.tolist(), batch.order.tolist(), batch.views.tobytes(),
            [[crop.numpy().tobytes() for crop in row] for row in crops], [maps.numpy().tobytes() for maps in motion])


def take(loader, count):
    out = []
    for batch in loader:
        out.append(content(batch))
        if len(out) == count:
            return out


# --- order


@pytest.mark.parametrize("world", [1, 2, 4])
def test_global_batches_are_the_same_for_every_world_size(world):
    samplers = [Sampler(30, 8, seed=3, rank=rank, world=world) for rank in range(world)]
    single = Sampler(30, 8, seed=3)
    for epoch in range(3):
        seen = []
        for step in range(single.steps):
            batch = np.concatenate([sampler.numbers(epoch, step) for sampler in samplers])
            assert batch.tolist() == single.numbers(epoch, step).tolist()
            seen += batch.tolist()
        assert len(seen) == len(set(seen)) == 24 and set(seen) <= set(range(30))
    assert single.numbers(0, 0).tolist() != single.numbers(1, 0).tolist()
    assert single.numbers(0, 0).tolist() != Sampler(30, 8, seed=4).numbers(0, 0).tolist()


def test_every_video_has_its_turn():
    sampler = Sampler(10, 4)
    drawn = [sampler.numbers(epoch, step) for epoch in range(9) for step in range(sampler.steps)]
    assert set(np.concatenate(drawn)) == set(range(10))


def test_batches_that_cannot_be_are_refused():
    with pytest.raises(RequestError, match="optimise.batch is 9 over 2 ranks; expected a multiple of 2"):
        Sampler(30, 9, world=2)
    with pytest.raises(RequestError, match="7 videos are long enough for a clip; expected at most that many"):
        Sampler(7, 8, world=2)
    assert Sampler(7, 6, world=2).steps == 1


def test_a_position_of_another_order_is_refused():
    sampler = Sampler(30, 8, seed=3)
    sampler.epoch, sampler.step = 5, 2
    state = sampler.state_dict()
    resumed = Sampler(30, 8, seed=3, rank=1, world=2)
    resumed.load_state_dict(state)
    assert (resumed.epoch, resumed.step) == (5, 2)
    for other, what in ((Sampler(31, 8, seed=3), "videos 30"), (Sampler(30, 4, seed=3), "batch 8"),
                        (Sampler(30, 8), "seed 3")):
        with pytest.raises(RequestError, match=what):
            other.load_state_dict(state)


# --- ring


def test_places_read_back_what_was_written():
    ring, rng = Ring(3, 5000), np.random.default_rng(0)
    writer = SlotWriter(ring.slot(4))
    kinds = ((3, 5, 7), "u1"), ((2, 9), "f2"), ((1,), "u1")
    arrays = [rng.integers(0, 200, shape).astype(kind) for shape, kind in kinds]
    for array in arrays:
        writer.allocate(array.shape, array.dtype)[...] = array
    places = writer.take()
    assert not writer.take() and writer.used <= ring.capacity
    for array, place in zip(arrays, places):
        assert np.array_equal(place.view(ring.slot(1)).numpy(), array)          # slot 4 of 3 is slot 1
        assert np.array_equal(place.view(ring.slot(1).clone()).numpy(), array)
    with pytest.raises(ValueError, match="of a slot of"):
        writer.allocate((ring.capacity,), np.dtype("u1"))
    assert Place(64, (2, 3), np.dtype("f2")).end == 76


def test_the_largest_sample_fits(tmp_path, make_clip_store, sampling, augment):
    store = make_clip_store(tmp_path / "store", {"a": (20, 64, 96), "b": (20, 64, 88), "c": 20, "d": 20, "e": 20})
    whole = sampling(sa=False, area_min=1.0, aspect_min=1.0, aspect_max=2.0)
    data = ClipData([store], whole, augment())
    for batch in (1, 5):
        loader = Loader(data, Sampler(5, batch))
        assert len(take(loader, 8)) == 8


# --- batches


def test_workers_change_nothing(data):
    batches = {workers: take(Loader(data, Sampler(len(data), 6, seed=1), workers), 8) for workers in (0, 1, 2)}
    assert batches[0] == batches[1] == batches[2]
    assert [batch[:2] for batch in batches[0]] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]


def test_a_batch_is_its_videos_samples(data, store, sampling, augment):
    with Loader(data, sampler := Sampler(len(data), 6, seed=1), 2) as loader:
        for batch, _ in zip(loader, range(4)):
            crops, motion, _ = batch.arrays()
            assert batch.ids.tolist() == sampler.numbers(batch.epoch, batch.step).tolist()
            for i, number in enumerate(batch.ids.tolist()):
                sample = data.sample(number, batch.epoch)
                assert batch.order[i] == sample.order and batch.views[i].tobytes() == sample.views.tobytes()
                assert all(np.array_equal(a, b) for a, b in zip(crops[i], sample.crops))
                assert np.array_equal(motion[i], sample.motion)
    without = ClipData([store], sampling(keys=1), augment(), motion=False)
    for batch, _ in zip(Loader(without, Sampler(len(without), 6)), range(2)):
        crops, motion, _ = batch.arrays()
        assert motion is None and [len(row) for row in crops] == [2] * 6 and not batch.order.any()


@pytest.mark.slow
def test_a_slot_is_not_written_while_its_batch_is_in_hand(data):
    """Batches of one part, two and three: workers run ahead as far as they may while the batch is looked at."""
    for batch_size in (2, PART + 2, 2 * PART + 2):
        with Loader(data, Sampler(len(data), batch_size, seed=2), 2) as loader:
            assert loader.ring.slots == -(-batch_size // PART) + 2 * PREFETCH
            for batch, _ in zip(loader, range(6)):
                at_once = content(batch)
                time.sleep(0.1)
                assert content(batch) == at_once


def test_ranks_share_the_global_batch(data):
    whole = take(Loader(data, Sampler(len(data), 6, seed=1)), 3)
    halves = [take(Loader(data, Sampler(len(data), 6, seed=1, rank=rank, world=2)), 3) for rank in (0, 1)]
    for all_of, one, two in zip(whole, *halves):
        assert all_of[2] == one[2] + two[2] and all_of[5] == one[5] + two[5]
        assert all_of[4] == one[4] + two[4]


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_in_mid_epoch_the_batches_go_on(data, workers):
    expected = take(Loader(data, Sampler(len(data), 4, seed=1), workers), 7)
    sampler = Sampler(len(data), 4, seed=1)
    first = take(Loader(data, sampler, workers), 4)
    state = sampler.state_dict()
    assert (state["epoch"], state["step"]) == (1, 1)
    resumed = Sampler(len(data), 4, seed=1)
    resumed.load_state_dict(state)
    assert first + take(Loader(data, resumed, workers), 3) == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_generators_are_left_alone(data, workers):
    torch.manual_seed(0), np.random.seed(0)
    take(Loader(data, Sampler(len(data), 4), workers), 3)
    drawn = torch.rand(1), np.random.rand()
    torch.manual_seed(0), np.random.seed(0)
    assert drawn == (torch.rand(1), np.random.rand())


# --- failures


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_in_mid_training_stops_with_pack_and_video(tmp_path, make_clip_store, sampling, augment, workers):
    store = make_clip_store(tmp_path / "store", dict.fromkeys("abcdefgh", 30))
    data = ClipData([store], sampling(), augment())
    [path] = store.glob("packs/*/*/rgb/c*")
    children = set(psutil.Process().children())
    with pytest.raises(Stopped) as caught:
        for batch in Loader(data, Sampler(8, 4), workers):
            if batch.epoch == 2:
                raw = bytearray(path.read_bytes())
                raw[:len(raw) * 3 // 4:50] = bytes(len(raw[:len(raw) * 3 // 4:50]))
                with open(path, "r+b") as file:
                    file.write(raw)
            assert batch.epoch < 9
    message = str(caught.value)
    assert "pack p32x40, video '" in message and "bad checksum" in message
    assert f"`python -m preprocess.check {store}`" in message and "\n" not in message
    assert set(psutil.Process().children()) <= children


@pytest.mark.slow
def test_a_killed_worker_stops_the_run(data):
    before = set(psutil.Process().children())
    with pytest.raises(Stopped, match="a loader worker died: DataLoader worker .*lower --set workers"):
        for batch in Loader(data, Sampler(len(data), 4), 2):
            workers = set(psutil.Process().children()) - before
            if batch.epoch == 1:
                for worker in workers:
                    os.kill(worker.pid, signal.SIGKILL)
            assert batch.epoch < 50
    assert set(psutil.Process().children()) <= before


def test_a_bug_in_a_worker_keeps_its_traceback(data, monkeypatch):
    monkeypatch.setattr(ClipData, "sample", lambda *_: {}["nowhere"])
    with pytest.raises(KeyError, match="Original Traceback"):
        take(Loader(data, Sampler(len(data), 4), 1), 1)


def test_a_store_out_of_reach_is_not_called_damaged(data):
    """No more files may be opened: the pack is well, and nobody is told to delete it."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)  # the next free descriptor: everything from it on is refused
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limit[1]))
    try:
        with pytest.raises(Stopped) as stop:
            take(Loader(data, Sampler(len(data), 4)), 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert re.match(r"pack \S+, video '.*: Too many open files$", str(stop.value))


SCRIPT = """
import sys, time
from shared import cli
from shared.clips.data import ClipData
from shared.clips.loader import Loader, Sampler
from shared.recipes.pretraining import Augment, Sampling
def main(argv):
    sampling = Sampling("4x2", 24, True, 1.0, "half", True, "paper", 0.2, 1.0, 0.75, 1.3333, 0.8, 3)
    data = ClipData([argv[0]], sampling, Augment(*[0.0] * 7, 0.1, 2.0, 0.5))
    with Loader(data, Sampler(len(data), 4), 2) as loader:
        for batch in loader:
            if batch.epoch == 1 and batch.step == 0:
                print("running", flush=True)
            time.sleep(0.05)
cli.command(main)
"""


@pytest.fixture
def running(store):
    """A process that loads with two workers, in a group of its own: (process, workers); all are gone afterwards."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(store)], cwd=REPOSITORY, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
    workers = []
    try:
        assert process.stdout.readline() == "running\n", process.stderr.read()
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) == 2
        yield process, workers
    finally:
        for each in (process, *workers):
            if psutil.pid_exists(each.pid):
                each.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number, word", [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "SIGTERM")])
def test_ctrl_c_and_sigterm_leave_no_worker(running, number, word):
    process, workers = running
    os.killpg(process.pid, number)  # as a terminal does, and `timeout`: all processes at once
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3 and err.splitlines()[-1].startswith(f"stopped: {word}")
    assert err.count("stopping ...") == 1 and "Traceback" not in err
    assert not psutil.wait_procs(workers, timeout=30)[1]


@pytest.mark.slow
def test_workers_outlive_a_sigterm_of_the_group(running):
    process, workers = running
    for worker in workers:  # what the group's SIGTERM does to them, while the loop may still need them for its step
        worker.terminate()
    assert not psutil.wait_procs(workers, timeout=1)[0]
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3 and "worker died" not in err
    assert not psutil.wait_procs(workers, timeout=30)[1]


def test_workers_die_with_a_parent_that_is_killed(running):
    process, workers = running
    files = {file.path for each in (process.pid, *(worker.pid for worker in workers))
             for file in psutil.Process(each).memory_maps(grouped=False) if file.path.startswith("/dev/shm")}
    process.kill()
    assert not psutil.wait_procs(workers, timeout=30)[1]
    assert not any(Path(file).exists() for file in files)  # the ring has no name; nor has anything of torch's


# --- memory, device


@pytest.mark.slow
def test_memory_of_a_worker_stays_flat_over_2000_samples(data):
    def anonymous(process):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        return int(status["RssAnon"].split()[0]) / 1024  # MB, without the ring
    before, marks = set(psutil.Process().children()), []
    with Loader(data, Sampler(len(data), 4), 1) as loader:
        for count, _ in enumerate(loader):
            [worker] = set(psutil.Process().children()) - before
            if count * 4 in (400, 2400):
                marks.append(anonymous(worker))
            if len(marks) == 2:
                break
    assert marks[1] < marks[0] + 4, marks


def test_workers_end_where_memory_cannot_be_locked(data, monkeypatch):
    def refused(code):
        raise RuntimeError(f"out of memory ({code})")

    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaHostRegister=lambda *_: 2))
    monkeypatch.setattr(torch.cuda, "check_error", refused)
    loader = Loader(data, Sampler(len(data), 6), 2, "cuda")
    with pytest.raises(Stopped, match=r"could not be locked .*\(out of memory \(2\)\)") as raised:  # holds the iterator
        next(iter(loader))
    assert raised and not multiprocessing.active_children()


@pytest.mark.gpu
def test_pinned_copies_equal_the_hosts(gpu, data):
    with Loader(data, Sampler(len(data), 6), 2, gpu) as loader:
        for batch, _ in zip(loader, range(6)):
            assert all(slot.is_pinned() for _, slot in batch.parts)
            (crops, motion, _), (there, maps, _) = batch.arrays(), batch.arrays(gpu)
            for row, copies in zip(crops, there):
                assert all(torch.equal(crop, copy.cpu()) for crop, copy in zip(row, copies))
            assert all(torch.equal(one, other.cpu()) for one, other in zip(motion, maps))
