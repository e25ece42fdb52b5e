"""What the store's bytes do to edges: |grad u| and |grad v| in 8 bits beside the full float32 values.

    python tests/bench/edges.py [--flow auto|cpu|cuda|opencv] [--preset PRESET] [--frames N] [--real N]

The first frames of synthetic and, where at hand, of real videos: flow, edges, means over 2x2 pixels, as preprocessing
stores them. Error of q in value = 10 (q/255)^2, alone and over the value; beside it edges derived from stored flow
(means over 2x2 pixels in half precision), which MaCLR's motion pathway therefore does not read (docs/method.md 2.1).
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from preprocess.flow import flow_window, parameters, resolve
from preprocess.synthetic import make_videos
from shared import motion
from shared.datasets.catalog import open_catalog
from shared.store.chunks import decode_edges, half, quantise_edges
from shared.store.layout import EDGE_MAX
from shared.videos.decode import open_video

REAL = Path(__file__).resolve().parents[3] / "shared/data/videos"
MOVING = 0.1         # px/frame per px: what counts as an edge of motion in the relative error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flow", default="auto")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--frames", type=int, default=24, help="of each video")
    parser.add_argument("--real", type=int, default=24, help="real videos, evenly from all of them")
    args = parser.parse_args()
    backend = resolve(args.flow)
    print(f"edges, flow on {backend}, preset {args.preset}; px/frame per px")
    print(f"{'videos':>24} {'values':>12} {'mean':>7} {'over 10':>8} {'error: mean':>12} {'99 %':>8} {'largest':>8} "
          f"{f'of values > {MOVING}':>16} {'energy kept':>12} {'from stored flow: mean error, energy':>37}")
    with tempfile.TemporaryDirectory() as folder:
        make_videos(Path(folder), videos=12, seed=11, backgrounds=6, textures=6, frames=args.frames)
        report("synthetic", [Path(folder) / video.path for video in open_catalog("folder", Path(folder)).videos],
               backend, args)
    for dataset in sorted(path for path in REAL.iterdir() if path.is_dir()) if REAL.is_dir() else ():
        videos = sorted(path for path in dataset.rglob("*") if path.suffix.lower() in (".avi", ".mp4", ".mkv", ".webm"))
        if videos:
            report(dataset.name, videos[::max(1, len(videos) // args.real)][:args.real], backend, args)


def report(name: str, paths: Sequence[Path], backend: str, args) -> None:
    """One line: all values of all videos together."""
    exact, stored, derived = (np.concatenate(parts) for parts in zip(*(values(path, backend, args) for path in paths)))
    bounded = np.minimum(exact, EDGE_MAX)
    error, other = np.abs(stored - bounded), np.abs(derived - bounded)
    moving = bounded > MOVING
    kept, left = (np.square(values).sum() / np.square(bounded).sum() for values in (stored, derived))
    print(f"{f'{name} ({len(paths)})':>24} {exact.size:>12,} {exact.mean():>7.4f} {(exact > EDGE_MAX).mean():>8.2e} "
          f"{error.mean():>12.5f} {np.percentile(error, 99):>8.4f} {error.max():>8.4f} "
          f"{(error[moving] / bounded[moving]).mean():>16.2%} {kept:>12.2%} {other.mean():>23.5f}, {left:>12.1%}")


def values(path: Path, backend: str, args) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges of a video's first frames at half size: exact, as stored, and from stored flow; flat, px/frame per px."""
    with open_video(path, window=args.frames) as video:
        frames = next(iter(video))
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    settings = parameters(args.preset)
    stored = round(2 * settings.scale)     # pixels of the flow a stored pixel
    flow = motion.to_host(flow_window(grey, settings, backend))
    exact = motion.pool(motion.edges(flow), stored)
    # Derivatives between half-size cells are per 2 pixels.
    derived = motion.edges(half(motion.pool(flow, stored) * (2 / stored)).astype(np.float32)) / 2
    return exact.ravel(), decode_edges(quantise_edges(exact)).ravel(), derived.ravel()


if __name__ == "__main__":
    main()
