"""Feature extraction beside the bare forward: clips/s of the network alone on clips in memory, and of `evaluate`.

    python tests/bench/features.py [--store STORE] [--videos N] [--device cuda] [--backbones r2plus1d_tiny ...]

Without a store, synthetic videos of 240x320 pixels are preprocessed first. Both passes run interleaved; medians.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from evaluate.features.encoders import Encoder, open_encoder
from evaluate.features.extract import View, compute, read_ahead
from evaluate.protocol import load_settings
from preprocess import run as preprocess
from preprocess.machine import device, versions
from shared.clips.resampling import resize
from shared.nn.distributed import World, choose_device
from shared.store.reader import StoreReader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: its default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backbones", nargs="+", default=["r2plus1d_tiny"])
    args = parser.parse_args()
    print(device("cpu"), versions())
    if args.threads:
        torch.set_num_threads(args.threads)
    temporary = Path(tempfile.mkdtemp(prefix="motionpack-bench-"))
    try:
        store = args.store or make_store(temporary)
        for name in args.backbones:
            measure(name, store, args)
    finally:
        shutil.rmtree(temporary)


def make_store(folder: Path) -> Path:
    dials = {"generate.videos": 16, "backgrounds": 2, "textures": 4, "generate.frames": 64, "height": 240, "width": 320}
    settings = [word for key, value in dials.items() for word in ("--set", f"{key}={value}")]
    preprocess.main(["--dataset", "synthetic", "--videos", str(folder / "videos"), "--store", str(folder / "store"),
                     "--engine", "serial", *settings])
    return folder / "store"


def measure(name: str, store: Path, args: argparse.Namespace) -> None:
    """Print clips/s of both and their ratio."""
    settings = load_settings("linear", [f"run.device={args.device}"])
    world = World(device=choose_device(args.device))
    encoder: Encoder = open_encoder(f"random:{name}:0", world.device)
    view, reader = View.of(settings.features, encoder), StoreReader(store)
    positions = np.arange(min(args.videos, len(reader.index)))
    frames, places, _ = next(read_ahead(reader, positions[:1], view, replace(settings.run, workers=0)))
    images = resize(torch.from_numpy(frames).to(world.device), view.size)
    clips = images[:, torch.from_numpy(places).to(world.device)].transpose(0, 1)

    def bare() -> float:
        with torch.no_grad():
            encoder.net(clips).cpu()
            started = time.perf_counter()
            for _ in positions:
                encoder.net(clips).cpu()
        return len(positions) * len(clips) / (time.perf_counter() - started)

    def whole() -> float:
        started = time.perf_counter()
        count = sum(some for _, _, some in compute(encoder, reader, positions, view, settings.run, world))
        return count / (time.perf_counter() - started)

    pairs = [(bare(), whole()) for _ in range(args.rounds)]
    alone, all_in = (statistics.median(column) for column in zip(*pairs))
    ratio = statistics.median(b / a for a, b in pairs)
    where = f"{world.device.type}, {torch.get_num_threads()} threads"
    print(f"{name:14} clips {view.geometry} of {view.size} px on {where}: bare forward {alone:.1f} clips/s, "
          f"extraction {all_in:.1f} clips/s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
