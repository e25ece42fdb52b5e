"""Packs of real videos with the flow of the GPU: their arrays beside the CPU's, frames a second, and where time goes.

Each video stands in the set several times under other names, so that there is enough to do. Dry run: CPU twice.
"""

import sys

import numpy as np
from stage import Stage

from shared.store.reader import StoreReader

COPIES = 3


def main():
    stage = Stage("packs", __doc__)
    videos = stage.fresh("videos")
    for file in sorted((stage.kit / "clips").glob("*/*")):
        for copy in range(1 if stage.small else COPIES):
            link = videos / file.parent.name / f"{file.stem}_{copy}{file.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    stores = {}
    for backend in dict.fromkeys((stage.device, "cpu")):
        store = stores[backend] = stage.fresh(f"store-{backend}")
        seconds, printed = stage.command("-m", "preprocess.run", "--dataset", "folder", "--videos", videos, "--store",
                                         store, "--flow", backend, "--engine", "serial", "--set",
                                         "clips.geometries=[16x2, 8x2]")
        frames = sum(row.frames for row in StoreReader(store).index.rows())
        stage.put(f"{backend}.frames_a_second", frames / seconds, f"frames/s of the whole command, {frames} frames")
        print(printed[-1500:])
    compare(stage, StoreReader(stores[stage.device]), StoreReader(stores["cpu"]))


def compare(stage, ours, theirs):
    """Frames, motion maps and clip tables of two stores of the same videos."""
    same = masks = total = 0
    distance = largest = thresholds = 0.0
    rows = ours.index.rows()
    for row in rows:
        one, other = (np.asarray(store.motion(row.id, 0, row.frames), np.float32) for store in (ours, theirs))
        gap = np.abs(one - other)
        distance, largest, total = distance + float(gap.sum()), max(largest, float(gap.max())), total + gap.size
        same += ours.frame_checksums(row.id, range(row.frames)) == theirs.frame_checksums(row.id, range(row.frames))
        a, b = (store.clips(row.id, "8x2") for store in (ours, theirs))
        masks += np.array_equal(a.hot_mask, b.hot_mask)
        thresholds = max(thresholds, float(np.abs(a.s_p90 - b.s_p90).max(initial=0)))
    stage.put("videos_with_the_cpus_frames", same / len(rows), "share")
    stage.put("videos_with_the_cpus_hot_masks", masks / len(rows), "share")
    stage.put("threshold.largest_difference", thresholds, "px/frame per px")
    stage.put("motion.mean_difference", distance / total, "px/frame per px")
    stage.put("motion.largest_difference", largest, "px/frame per px")


if __name__ == "__main__":
    sys.exit(main())
