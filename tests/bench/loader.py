"""Clips a core, the ring against the stock queue, PyAV seek, and a worker's memory: `python tests/bench/loader.py`.

CPU time, medians of interleaved rounds. A clip is 16 frames at stride 2, decoded once, with its crop; a query and its
first key are two crops of one clip. Real videos where they are at hand, else made ones. `--store` takes a finished one.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import psutil
import torch
from seek import pyav_seek
from store import CLIP, interleaved, load, sources, table, write
from torch.utils.data import DataLoader, Dataset

from shared.clips.data import ClipData
from shared.clips.loader import PART, PREFETCH, Loader, Sampler
from shared.recipes.preprocessing import load_pipeline
from shared.recipes.training import load_training
from shared.store.index import Index, publish
from shared.store.record import write_json_atomic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--samples", type=int, default=24, help="samples a round")
    parser.add_argument("--only", choices=["clips", "transfer", "memory"], nargs="*")
    args = parser.parse_args()
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    print(f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, numpy {np.__version__}, "
          f"torch {torch.__version__}, PyAV {av.__version__}\n")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store, only = Path(folder) / "store", args.only or ["clips", "transfer", "memory"]
        paths = sources(Path(folder))
        prepare(store, paths)
        if "clips" in only:
            table("clips in one process", clips(store, paths, args))
        if "transfer" in only:
            table("one worker: CPU of the worker and of the training process", transfer(store, args))
        if "memory" in only:
            table("anonymous memory of a worker", memory(store))


def prepare(store: Path, paths: list[Path]) -> None:
    """A store that training takes: every video in `train`."""
    write(store, [load(path) for path in paths], paths)
    index = Index.load(store)
    publish(store, index.pack_rows(), [replace(row, splits=("train",)) for row in index.rows()])
    recipe = load_pipeline("folder", settings=[f"clips.geometries=[{CLIP}]"]).recipe.to_dict()
    write_json_atomic(store / "store.json", {"format": 1, "dataset": "folder", "recipe_hash": "", "classes": [],
                                             "recipe": recipe})


def clip_data(store: Path, name: str) -> ClipData:
    recipe = load_training(name).recipe
    return ClipData([store], recipe.sampling, recipe.augment, motion=name.startswith("mcl"))


def clips(store: Path, paths: list[Path], args) -> list[tuple[str, str, str, str]]:
    kinds = {name: clip_data(store, name) for name in ("moco", "mcl-moco", "mcl")}
    by_id = {path.stem: path for path in paths}
    keys = [(i % len(kinds["mcl"]), i) for i in range(args.samples)]
    counted = {name: sum(len(set(data.sample(*key).views["start"].tolist())) for key in keys)
               for name, data in kinds.items()}
    starts = [(data.name(number), int(data.sample(number, epoch).views["start"][0]))
              for data in [kinds["moco"]] for number, epoch in keys]

    def seek(video: str, start: int) -> np.ndarray:
        return pyav_seek(by_id[video], start, CLIP)
    # A ring's pages are there already: so are the crops' here.
    pool = np.empty(1 << 28, np.uint8)

    def read(data: ClipData) -> None:
        for number, epoch in keys:
            used = 0

            def allocate(shape, dtype):
                nonlocal used
                first, used = used, -(-(used + int(np.prod(shape)) * dtype.itemsize) // 64) * 64
                return pool[first:first + int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)
            data.sample(number, epoch, allocate)
    seconds = interleaved({name: (lambda d=data: read(d)) for name, data in kinds.items()}
                          | {"seek": lambda: [seek(*key) for key in starts]}, args.rounds)
    per_seek = seconds["seek"] / len(starts)
    words = {"moco": "moco: query and k1, two plain crops of one clip",
             "mcl-moco": "mcl-moco: the same, motion-focused, with the query's map",
             "mcl": "mcl: query, k1, k2, k3: four crops of three clips, motion-focused, map"}
    rows = []
    for name, data in kinds.items():
        per_clip, views = seconds[name] / counted[name], data.sampling.keys + 1
        rows.append((words[name], f"{1e3 * per_clip:.2f} ms/clip", f"{1 / per_clip:.0f} clips/s",
                     f"{views * len(keys) / seconds[name]:.0f} crops/s, {per_seek / per_clip:.1f} times PyAV seek; "
                     "target 150, 8"))
    return rows + [("PyAV seek in the source, frames only", f"{1e3 * per_seek:.2f} ms/clip",
                    f"{1 / per_seek:.0f} clips/s", "")]


class Stock(Dataset):
    """The same samples as tensors through the queue that torch's loader has."""

    def __init__(self, data: ClipData, sampler: Sampler):
        self.data, self.sampler = data, sampler

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, part: int):
        step, place = divmod(part, -(-self.sampler.batch // PART))
        numbers = self.sampler.numbers(*divmod(step, self.sampler.steps))[place * PART:(place + 1) * PART]
        samples = [self.data.sample(number, step // self.sampler.steps) for number in numbers.tolist()]
        return [([torch.from_numpy(crop) for crop in sample.crops],
                 None if sample.motion is None else torch.from_numpy(sample.motion)) for sample in samples]


def transfer(store: Path, args) -> list[tuple[str, str, str, str]]:
    data = clip_data(store, "mcl")
    batch, batches = min(8, len(data)), 3 * args.rounds
    here, results = psutil.Process(), {}

    def run(name: str, start_of, touch) -> None:
        before = set(here.children())
        iterator = start_of()
        next(iterator)
        [worker] = set(here.children()) - before
        for _ in range(4):  # slots and pools fill
            next(iterator)
        start = sum(worker.cpu_times()[:2]), time.process_time()
        for _ in range(batches):
            touch(next(iterator))
        results.setdefault(name, []).append((sum(worker.cpu_times()[:2]) - start[0], time.process_time() - start[1]))
    parts = -(-batch // PART)
    for _ in range(3):
        with Loader(data, Sampler(len(data), batch), 1) as loader:
            run("ring", lambda: iter(loader),
                lambda b: [crop[0, 0, 0, 0].item() for row in b.arrays()[0] for crop in row])
        stock = DataLoader(Stock(data, Sampler(len(data), batch)), batch_size=None, num_workers=1,
                           prefetch_factor=PREFETCH, multiprocessing_context="fork")
        run("stock", lambda: zip(*[iter(stock)] * parts),
            lambda b: [crop[0, 0, 0, 0].item() for part in b for crops, _ in part for crop in crops])
    epochs = [divmod(step, len(data) // batch) for step in range(5, 5 + batches)]
    sampler = Sampler(len(data), batch)
    count = sum(len(set(data.sample(number, epoch).views["start"].tolist()))
                for epoch, step in epochs for number in sampler.numbers(epoch, step).tolist())
    start = time.process_time()
    for epoch, step in epochs:
        for number in sampler.numbers(epoch, step).tolist():
            data.sample(number, epoch)
    alone = time.process_time() - start
    rows = [("no transfer: the same samples here, in fresh memory", f"{1e3 * alone / count:.2f} ms/clip", "", "")]
    for name, words in (("ring", "ring of shared memory"), ("stock", "stock queue of tensors")):
        worker, main = (statistics.median(pair[i] for pair in results[name]) / count for i in (0, 1))
        rows.append((words, f"{1e3 * worker:.2f} + {1e3 * main:.2f} ms/clip", f"{1 / (worker + main):.0f} clips/s",
                     f"the training process's share {main / (worker + main):.1%}"))
    return rows


def memory(store: Path) -> list[tuple[str, str, str, str]]:
    data, before, rows, samples = clip_data(store, "mcl"), set(psutil.Process().children()), [], 0
    batch = min(8, len(data))
    with Loader(data, Sampler(len(data), batch), 1) as loader:
        for _ in loader:
            samples += batch
            if samples // batch in (100 // batch, 1000 // batch, 2100 // batch):
                [worker] = set(psutil.Process().children()) - before
                status = dict(line.split(":", 1) for line in open(f"/proc/{worker.pid}/status"))
                kilobytes = int(status["RssAnon"].split()[0])
                rows.append((f"after {samples:,} samples", f"{kilobytes / 1024:.1f} MB", "", ""))
            if len(rows) == 3:
                return rows


if __name__ == "__main__":
    main()
