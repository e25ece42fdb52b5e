"""Which flow keeps the motion maps? Presets and scales against true flow, and against `reference` on real videos.

    python tests/bench/truth.py [--seeds 3] [--videos 8] [--real 12] [--frames 64]

Maps come from preprocessing's own stages. Of a clip's bordered S-motion: r, the correlation of its cells with the true
map's; hot IoU, of the cells above the 90th percentile, where true flow is smooth but at the object's rim fewer than a
tenth: then as many of the hottest; object, the moving object's share in the hot cells over the largest that as many
cells can hold. Of a real video's clips: the rank correlation of their scores with those by
`reference`, and how many lie on the same side of the video's median. ms: CPU time a pair, all schemes in turn on each
video. The rule by which docs/experiments.md chooses the `motion` recipe's flow is computed at the end.
Ground truth and real videos come from ../shared/data.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from flow import DATA, ground_truth, machine, table
from scipy.stats import spearmanr

from preprocess.flow import flow_window
from preprocess.stages import flow_parameters, motion_arrays
from preprocess.synthetic import make_videos
from shared import motion
from shared.clips.index import ClipGeometry, above, clip_median, clip_scores, clip_starts, hot_mask
from shared.datasets.truth import load_truth
from shared.recipes.preprocessing import load_pipeline
from shared.videos.decode import VideoError, open_video

SCHEMES = {"reference": ["preset=reference"], "default": ["preset=default"], "fast": ["preset=fast"],
           "default, half size": ["preset=default", "flow.scale=0.5"], "half": ["preset=half"]}
RECIPES = {name: load_pipeline("folder", settings=[*settings, "backend=cpu"]).recipe
           for name, settings in SCHEMES.items()}
CLIP = ClipGeometry(16, 2)
LENGTH = 16                 # frames of a generated clip, at stride 1
MOVING = 0.25               # px/frame beside the camera: what moves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--videos", type=int, default=8, help="generated ones a seed")
    parser.add_argument("--real", type=int, default=12, help="real videos, in turn from all sets")
    parser.add_argument("--frames", type=int, default=64, help="of each real video")
    args = parser.parse_args()
    print(machine())
    for name in SCHEMES:                             # compile
        maps_of(name, np.zeros((2, 64, 64), np.uint8))
    true = generated(args.seeds, args.videos)
    show(f"generated videos, {args.seeds} seeds x {args.videos} videos of 256x344, against true flow", true)
    real = {}
    if DATA.is_dir():
        show("Middlebury and FlyingChairs pairs at short side 256, against true flow", pairs())
        real = videos(args.real, args.frames)
        show(f"real videos, {args.real} x {args.frames} frames, against `reference`", real)
    decide(true, real)


def maps_of(name: str, grey):
    """Bordered maps (T, h, w) and T-motion (T,) of grey frames (T + 1, H, W), and CPU ms a pair."""
    recipe, began = RECIPES[name], time.thread_time()
    flow = flow_window(grey, flow_parameters(recipe), "cpu")
    spent = 1000 * (time.thread_time() - began) / len(flow)
    arrays = motion_arrays(flow, recipe, {})
    return motion.zero_border(arrays["st_motion"], 1), arrays["t_motion"], spent


def hottest(s_map, count: int):
    """(h, w) bool: the `count` cells with the largest values."""
    hot = np.zeros(s_map.size, bool)
    hot[np.argsort(s_map, axis=None, kind="stable")[s_map.size - count:]] = True
    return hot.reshape(s_map.shape)


def iou(a, b) -> float:
    return (a & b).sum() / max(1, (a | b).sum())


def generated(seeds: int, count: int):
    """Scheme -> measure -> values, one a video in which something moves."""
    found = defaultdict(lambda: defaultdict(list))
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            for path in make_videos(Path(folder), videos=count, seed=500 + seed, backgrounds=count, textures=count,
                                    frames=LENGTH + 1, height=256, width=344):
                with open_video(path) as video:
                    frames = np.concatenate(list(video))
                grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
                mask, flow = (values[:LENGTH] for values in load_truth(path))
                camera = np.median(flow, axis=(2, 3), keepdims=True)
                moving = mask & (np.abs(flow - camera).max(axis=1) > MOVING)
                if not moving.any():
                    continue
                target = motion.s_motion(motion.zero_border(motion.pool(motion.motion_map(flow)), 1))
                hot_truth = hot_mask(target)[1]
                covers = motion.pool(moving.astype(np.float32)).mean(0)
                for name in SCHEMES:
                    maps, _, spent = maps_of(name, grey)
                    got = motion.s_motion(maps)
                    hot = hottest(got, hot_truth.sum())
                    found[name]["ms"].append(spent)
                    found[name]["r"].append(np.corrcoef(got.ravel(), target.ravel())[0, 1])
                    found[name]["hot IoU"].append(iou(hot, hot_truth))
                    found[name]["object"].append(covers[hot].sum() / np.sort(covers.ravel())[-hot.sum():].sum())
    return found


def pairs():
    """As `generated`, of single pairs; cells of unknown flow count as still."""
    found = defaultdict(lambda: defaultdict(list))
    for _, first, second, flow, known in ground_truth():
        first, second, flow, known = (x[..., :x.shape[-2] // 8 * 8, :x.shape[-1] // 8 * 8]
                                      for x in (first, second, flow, known))
        cells = motion.pool(known.astype(np.float32)) == 1
        target = motion.zero_border(motion.pool(motion.motion_map(np.ascontiguousarray(flow[None], np.float32))[0]), 1)
        hot_truth = hot_mask(target * cells)[1]
        for name in SCHEMES:
            maps, _, spent = maps_of(name, np.stack([first, second]))
            found[name]["ms"].append(spent)
            found[name]["r"].append(np.corrcoef(maps[0][cells], target[cells])[0, 1])
            found[name]["hot IoU"].append(iou(hottest(maps[0] * cells, hot_truth.sum()), hot_truth))
    return found


def real_videos(count: int):
    """Paths, in turn from every data set."""
    sets = [sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".avi", ".mp4", ".mkv", ".webm"))
            for folder in sorted((DATA / "videos").iterdir()) if folder.is_dir()]
    return [files[k * len(files) // max(1, count // len(sets) + 1)] for k in range(count // len(sets) + 1)
            for files in sets if files][:count]


def videos(count: int, limit: int):
    """As `generated`, of real videos against `reference`, clips of 16x2 every 4 frames."""
    found = defaultdict(lambda: defaultdict(list))
    for path in real_videos(count):
        try:
            with open_video(path, window=limit) as video:
                frames = next(iter(video))[:limit]
        except VideoError:
            continue
        starts = clip_starts(len(frames) - 1, CLIP, 4)
        if len(starts) < 3:
            continue
        grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
        theirs = None
        for name in SCHEMES:                         # `reference` is the first
            maps, t_motion, spent = maps_of(name, grey)
            scores = clip_scores(t_motion, starts, CLIP)
            clips = [motion.s_motion(maps[start:start + CLIP.span:CLIP.stride]) for start in starts]
            theirs = theirs or (scores, clips)
            if not scores.any() or scores.min() == scores.max():
                break                                # a still video ranks nothing
            found[name]["ms"].append(spent)
            found[name]["score rank"].append(spearmanr(scores, theirs[0]).statistic)
            found[name]["same side"].append(np.mean(above(scores, clip_median(scores))
                                                    == above(theirs[0], clip_median(theirs[0]))))
            found[name]["r"].append(np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1]
                                             for a, b in zip(clips, theirs[1])]))
            found[name]["hot IoU"].append(np.mean([iou(hot_mask(a)[1], hot_mask(b)[1])
                                                   for a, b in zip(clips, theirs[1])]))
    return found


def show(title: str, found) -> None:
    measures = list(found["default"])
    table(title + f" ({len(found['default']['ms'])} of them, means)", ("", *measures, "cost over default"),
          [(name, *(f"{np.mean(values[m]):.3f}" for m in measures),
            f"{np.mean(values['ms']) / np.mean(found['default']['ms']):.3f}") for name, values in found.items()])


def decide(true, real) -> None:
    """The cheapest scheme whose hot IoU and object cover lie at most .02 under `default`'s, and whose clip scores rank
    with `reference`'s no more than .02 worse than `default`'s do."""
    if not real:
        print("\nno real videos in ../shared/data: no decision")
        return
    means = {name: [np.mean(true[name]["hot IoU"]), np.mean(true[name]["object"]), np.mean(real[name]["score rank"])]
             for name in SCHEMES}
    kept = [name for name in SCHEMES if all(a >= b - 0.02 for a, b in zip(means[name], means["default"]))]
    cheapest = min(kept, key=lambda name: np.mean(true[name]["ms"]))
    print(f"\nwithin .02 of default: {', '.join(kept)}; the cheapest of them: {cheapest}")


if __name__ == "__main__":
    main()
