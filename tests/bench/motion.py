"""Is the motion right? Mass inside true moving masks under a panning camera, and what drawn boxes really cover.

    python tests/bench/motion.py [--flow cpu|cuda|opencv]

Synthetic videos with known masks: the share of the motion map's mass within 8 pixels of the true moving object, beside
the share of the area; flow magnitude for comparison, which a pan fills. Then the crops that the 1/8 index offers,
measured on the full-resolution S-motion: the share of its pixels above the 90th percentile that a drawn box covers.
"""

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np

from preprocess.flow import resolve, tvl1
from preprocess.synthetic import make_videos
from shared import motion
from shared.clips import index
from shared.clips.index import ClipGeometry
from shared.datasets.catalog import open_catalog
from shared.datasets.truth import load_truth
from shared.videos.decode import open_video

REAL = Path(__file__).resolve().parents[3] / "shared/data/videos"
NEAR = np.ones((17, 17), np.uint8)   # 8 px around the object: half of TV-L1's smoothing and the 8 px cell
CLIP = ClipGeometry(16, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flow", default="auto")
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--boxes", type=int, default=50, help="drawn a clip")
    args = parser.parse_args()
    backend = resolve(args.flow)
    with tempfile.TemporaryDirectory() as temporary:
        make_videos(Path(temporary), videos=args.videos, seed=11, backgrounds=8, textures=8)
        synthetic = [Path(temporary) / video.path for video in open_catalog("folder", Path(temporary)).videos]
        masses(synthetic, backend)
        coverage("synthetic", synthetic, backend, args.boxes)
    if REAL.is_dir():
        real = [REAL / video.path for video in open_catalog("folder", REAL).videos]
        coverage("real", real[::max(1, len(real) // 12)][:12], backend, args.boxes)


def maps_of(path: Path, backend: str, limit: int = 64):
    """Flow (T, 2, H, W) and motion map (T, H, W) of a video's first frames."""
    with open_video(path) as video:
        frames = next(iter(video))[:limit]
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    flow = motion.to_host(tvl1(grey[:-1], grey[1:], backend=backend))
    return flow, motion.motion_map(flow)


def masses(paths: list[Path], backend: str) -> None:
    rows = []
    for path in paths:
        flow, maps = maps_of(path, backend)
        mask, true_flow = load_truth(path)
        camera = np.median(true_flow[:len(maps)], axis=(2, 3), keepdims=True)      # the pan, px/frame
        moving = np.abs(true_flow[:len(maps)] - camera).max(axis=1) > 0.25
        pan = np.hypot(*camera[:, :, 0, 0].T)
        for t in range(len(maps)):
            if not moving[t].any():
                continue
            near = cv2.dilate((mask[t] & moving[t]).astype(np.uint8), NEAR).astype(bool)
            magnitude = np.hypot(*flow[t])
            rows.append((pan[t], near.mean(), maps[t][near].sum() / maps[t].sum(),
                         magnitude[near].sum() / magnitude.sum()))
    rows = np.array(rows)
    print(f"\nmass near the moving object, {len(paths)} synthetic videos, flow on {backend}")
    print(f"{'camera':>12} {'frames':>7} {'area':>7} {'motion map':>11} {'flow magnitude':>15} {'map over area':>14}")
    for name, keep in (("still", rows[:, 0] < 0.05), ("panning", rows[:, 0] >= 0.05)):
        area, mass, magnitude = rows[keep, 1:].mean(axis=0)
        print(f"{name:>12} {keep.sum():>7} {area:>7.1%} {mass:>11.1%} {magnitude:>15.1%} {mass / area:>14.1f}")


def coverage(name: str, paths: list[Path], backend: str, boxes: int) -> None:
    rng = np.random.default_rng(0)
    drawn, fallback = [], 0
    for path in paths:
        _, maps = maps_of(path, backend)
        bordered = motion.zero_border(maps, 8)
        for start in index.clip_starts(len(maps), CLIP, 8):
            s_full = motion.s_motion(bordered[start:start + CLIP.span:CLIP.stride])
            hot = s_full > np.percentile(s_full, 90)
            mask = index.hot_mask(motion.pool(s_full))[1]
            for _ in range(boxes):
                box = index.draw_crop(rng, mask)
                inside = np.s_[box.y:box.y + box.h, box.x:box.x + box.w]
                cells = np.kron(mask, np.ones((motion.CELL, motion.CELL), bool))
                fallback += cells[inside].sum() < 0.8 * cells.sum()
                drawn.append(hot[inside].sum() / max(1, hot.sum()))
    drawn = np.array(drawn)
    print(f"\n{name}: {len(drawn):,} boxes, {fallback / len(drawn):.2%} below 80 % of the hot cells (fallback); of the "
          f"hot pixels at full resolution they cover")
    print(f"  median {np.median(drawn):.1%}, 10th percentile {np.percentile(drawn, 10):.1%}, "
          f"at least 80 % in {np.mean(drawn >= 0.8):.1%} of the boxes, at least 70 % in {np.mean(drawn >= 0.7):.1%}")


if __name__ == "__main__":
    main()
