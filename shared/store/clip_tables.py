"""The group clips/LxS of a pack while it is written: hot masks stream to their shard, the rest is 16 B a clip."""

from array import array
from pathlib import Path

import numpy as np

from shared.clips.index import ClipGeometry, ClipIndex
from shared.store.layout import clip_arrays
from shared.store.shards import RowWriter


class ClipTables:
    """Collects the ClipIndex of one video after another."""

    def __init__(self, path: Path, geometry: ClipGeometry, frame_size: tuple[int, int]):
        self.geometry = geometry
        self.layouts = {layout.name.rpartition("/")[2]: layout for layout in clip_arrays(geometry, frame_size)}
        self.columns = {"start": array("i"), "score": array("f"), "s_p90": array("f"),
                        "offset": array("q", [0]), "median": array("f")}
        mask = self.layouts["hot_mask"]
        (path / mask.name).mkdir(parents=True)
        self.masks = RowWriter(path / mask.file, mask)

    def check(self, clips: ClipIndex, frames: int) -> None:
        """Raises ValueError unless `clips` can be those of a video of so many frames."""
        count, width = len(clips.start), self.layouts["hot_mask"].row[0]
        start = np.asarray(clips.start)
        shapes = (np.shape(clips.score), np.shape(clips.s_p90), np.shape(clips.hot_mask))
        if shapes != ((count,), (count,), (count, width)) or np.asarray(clips.hot_mask).dtype != np.uint8:
            raise ValueError(f"clips {self.geometry}: {count} starts, score, s_p90 and hot_mask {shapes}; "
                             f"expected ({count},), ({count},) and ({count}, {width}) uint8")
        if count and (start.min() < 0 or start.max() + self.geometry.span > frames):
            raise ValueError(f"clips {self.geometry}: starts {start.min()} to {start.max()} in {frames} frames; "
                             f"expected 0 to {frames - self.geometry.span}")
        if np.isnan(clips.median) != (count == 0):
            raise ValueError(f"clips {self.geometry}: median {clips.median} of {count} clips")

    def add(self, clips: ClipIndex) -> None:
        self.masks.add(np.asarray(clips.hot_mask))
        for name in ("start", "score", "s_p90"):
            self.columns[name].frombytes(np.asarray(getattr(clips, name), self.layouts[name].dtype).tobytes())
        self.columns["offset"].append(len(self.columns["start"]))
        self.columns["median"].append(clips.median)

    def mark(self):
        return self.masks.mark(), {name: len(column) for name, column in self.columns.items()}

    def rollback(self, mark) -> None:
        self.masks.rollback(mark[0])
        for name, length in mark[1].items():
            del self.columns[name][length:]

    def finish(self) -> dict:
        """Close the mask shard; returns {layout: its values, or the number of rows of the shard}."""
        rows = self.masks.rows
        self.masks.finish()
        values = {layout: np.frombuffer(self.columns[name], layout.dtype) if name in self.columns else rows
                  for name, layout in self.layouts.items()}
        return values

    def close(self) -> None:
        self.masks.close()
