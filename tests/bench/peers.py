"""The pipeline of four passes that is usual today, beside ours, on the same clips: time, bytes, files, agreement.

    python tests/bench/peers.py [VIDEOS] [--limit N] [--frames N]

Written from its public description. First OpenCV's flow of every pair, by TV-L1 at its defaults (or by DIS), clipped to
+-20 px, u and v as JPEG of 8 bits; frames and flow go into one LMDB each. A second pass reads the flow back and writes
motion maps as JPEG into a third LMDB, a third pass reads those for the clips' scores. (The fourth, which makes JPEG
files before the LMDBs, is left out, in its favour.) Ours makes one pack, by the presets named.
Time is CPU time of one thread. Agreement is with the maps of our preset `reference`, which is OpenCV's TV-L1 in 32
bits: the rank of a video's clip scores, averaged over the videos, and the IoU of its clips' hot cells. VIDEOS: a folder
of <class>/<video>; default: the real videos beside the repository, else synthetic ones.
"""

import argparse
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import lmdb
import numpy as np
import zarr
from flow import machine, table
from pipeline import pack_tasks, videos_root
from scipy.stats import spearmanr

import shared.store.codecs  # noqa: F401  the frames' JPEG, for zarr
from preprocess.task import PackTask, make_pack
from shared import motion
from shared.clips.index import ClipGeometry, clip_scores, clip_starts, hot_mask

PRESETS = "default", "fast", "half"
CLIP, STEP = ClipGeometry(16, 2), 4
BOUND = 20        # px: flow of 8 bits goes from -BOUND to BOUND
QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 95]   # OpenCV's own default


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="?", type=Path)
    parser.add_argument("--limit", type=int, default=3, help="videos, evenly chosen (default 3)")
    parser.add_argument("--frames", type=int, default=48, help="of each (default 48)")
    args = parser.parse_args()
    print(machine())
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="motionpack-bench-") as folder:
        folder = Path(folder)
        root = videos_root(args.videos, folder, args.limit)
        tasks = {preset: replace(pack_tasks(root, folder / preset, preset, args.limit)[0],
                                 sample_frames=args.frames) for preset in ("reference", *PRESETS)}
        found = {}
        for preset, task in tasks.items():
            make_pack(replace(task, sample_frames=2, trial=True))   # loads and compiles
            found[f"ours, {preset}"] = measured(folder / preset, partial(ours, task))
        task = tasks["default"]
        for name, method in {"OpenCV TV-L1": cv2.optflow.createOptFlow_DualTVL1(),
                             "OpenCV DIS": cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)}.items():
            found[f"four passes, {name}"] = measured(folder / name, partial(theirs, task, folder / name, method))
        report(found)


def measured(folder: Path, work) -> dict:
    """What `work` returned (of every video its clips' scores and S-motions), CPU seconds, and what it left on disk."""
    folder.mkdir(exist_ok=True)
    began = time.process_time()
    clips = work()
    seconds = time.process_time() - began
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {"clips": clips, "seconds": seconds, "bytes": sum(path.stat().st_size for path in files), "files":
            len(files)}


def ours(task: PackTask) -> list:
    """The pack; its clips' scores are in it, their S-motions are means of its maps."""
    pack = zarr.open_group(task.store / make_pack(task).pack.path, mode="r")
    maps, bounds = pack["st_motion"][:].astype(np.float32), pack["frame_offset"][:]
    of_clip, scores = pack[f"clips/{CLIP}/offset"][:], pack[f"clips/{CLIP}/score"][:]
    return [(scores[a:b], s_motions(maps[first:last]))
            for a, b, first, last in zip(of_clip, of_clip[1:], bounds, bounds[1:])]


def theirs(task: PackTask, folder: Path, method) -> list:
    """Every pass reads what the one before it wrote."""
    ids = [video.id for video in task.videos]
    with database(folder / "frames") as frames, database(folder / "flow") as flow:
        for video in task.videos:
            write_flow(task.root / video.path, video.id, task.frame_size, task.sample_frames, frames, flow, method)
    with database(folder / "flow") as flow, database(folder / "maps") as maps:
        for video in ids:
            write_maps(video, flow, maps)
    with database(folder / "maps") as maps:
        return [score(video, maps) for video in ids]


@contextmanager
def database(folder: Path):
    """A transaction of it, committed at the end."""
    with lmdb.open(str(folder), map_size=1 << 36) as environment, environment.begin(write=True) as transaction:
        yield transaction


def write_flow(path: Path, video: str, size: tuple[int, int], limit: int, frames, flow, method) -> None:
    """Frames scaled and cropped as ours are, and the flow to the next one, as JPEG."""
    (height, width), before = size, None
    film = cv2.VideoCapture(str(path))
    for number in range(limit):
        read, frame = film.read()
        if not read:
            break
        scale = max(height / frame.shape[0], width / frame.shape[1])
        if scale != 1:
            frame = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
        frame = frame[top:top + height, left:left + width]
        grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        put(frames, video, number, frame)
        if before is not None:
            for name, values in zip("uv", cv2.split(method.calc(before, grey, None))):
                put(flow, f"{video}/{name}", number - 1, np.round((values + BOUND) * (255 / (2 * BOUND))).clip(0, 255))
        before = grey


def write_maps(video: str, flow, maps) -> None:
    """Magnitudes of the gradients of u and v in grey values of the flow's JPEG, as JPEG of 8 bits."""
    for number, (u, v) in enumerate(zip(read(flow, f"{video}/u"), read(flow, f"{video}/v"))):
        put(maps, video, number, motion.motion_map(np.stack([u, v])[None].astype(np.float32))[0].clip(0, 255))


def score(video: str, maps) -> tuple:
    """Scores and S-motions of the video's clips; the last frame repeats the map before it, as ours does."""
    cells = motion.pool(np.stack([*read(maps, video)]).astype(np.float32))
    cells = np.concatenate([cells, cells[-1:]])
    t_motion = motion.t_motion(motion.zero_border(cells, 1))
    return clip_scores(t_motion, clip_starts(len(cells), CLIP, STEP), CLIP), s_motions(cells)


def put(database, video: str, number: int, image: np.ndarray) -> None:
    database.put(f"{video}/{number:06}".encode(), cv2.imencode(".jpg", image.astype(np.uint8), QUALITY)[1].tobytes())


def read(database, video: str):
    cursor, prefix = database.cursor(), f"{video}/".encode()
    cursor.set_range(prefix)
    for key, value in cursor:
        if not key.startswith(prefix):
            return
        yield cv2.imdecode(np.frombuffer(value, np.uint8), cv2.IMREAD_GRAYSCALE)


def s_motions(cells: np.ndarray) -> list[np.ndarray]:
    """Of every clip the mean of its bordered maps (h, w)."""
    bordered = motion.zero_border(cells, 1)
    return [motion.s_motion(bordered[start:start + CLIP.span:CLIP.stride])
            for start in clip_starts(len(cells), CLIP, STEP)]


def report(found: dict) -> None:
    truth, default = found["ours, reference"]["clips"], found["ours, default"]
    rows = []
    for name, row in found.items():
        ranks = [spearmanr(a, b).statistic for (a, _), (b, _) in zip(row["clips"], truth) if len(set(b)) > 1]
        hot = [(hot_mask(a)[1], hot_mask(b)[1]) for (_, mine), (_, right) in zip(row["clips"], truth)
               for a, b in zip(mine, right)]
        rows.append((name, row["seconds"], row["seconds"] / default["seconds"], row["bytes"] / 1e6, row["files"],
                     float(np.mean(ranks)), float(np.mean([(a & b).sum() / (a | b).sum() for a, b in hot]))))
    table(f"{len(truth)} videos, {sum(len(scores) for scores, _ in truth)} clips",
          ("", "CPU s", "over default", "MB", "files", "score rank", "hot IoU"), rows)


if __name__ == "__main__":
    main()
