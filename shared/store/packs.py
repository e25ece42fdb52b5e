"""Packs: written in a hidden folder while videos stream in, and renamed once every byte is on disk and checked.

T frames, HxW pixels, hxw motion cells.
"""

import dataclasses
import os
import shutil
import time
from array import array
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from shared.clips.index import ClipGeometry, ClipIndex
from shared.motion import CELL
from shared.store.chunks import encode_jpeg, encode_rows, half, quantise_edges, seal
from shared.store.clip_tables import ClipTables
from shared.store.committed import load_pack
from shared.store.layout import (
    FORMAT,
    JPEG_QUALITY,
    ArrayLayout,
    StoreError,
    document_bytes,
    frame_arrays,
    group_document,
    pack_groups,
)
from shared.store.objects import Scratch, unique_path, upload_pack
from shared.store.place import ObjectPath, Place, as_place
from shared.store.record import fsync_directory, hidden_name, write_synced
from shared.store.shards import FrameWriter, RowWriter
from shared.store.tables import FailureRow, PackRow, VideoRow
from shared.store.verify import ROOT, hash_file, seal_attributes, verify_arrays

ENCODE_RUN = 8  # frames that one thread encodes at a time


class PackWriter:
    """Writes one pack, video by video, in memory that does not grow with the frames (16 B of shard index each).

    store: folder, or URL, whose packs pass through TMPDIR; name: the pack's, unique in the store; frame_size: (H, W),
    multiples of 8; geometries: of the clip indices; edges, flow: whether those arrays are kept; executor: threads that
    encode JPEG, None for this one; attributes: what the pack says of itself, `backend` (of the flow) and the recipe
    hash among it.
    Raises ValueError for arguments that no pack can have. cpu_seconds: thread CPU time by stage: `encode` (JPEG),
    `write` (the maps' compression, checksums, files, fsync), `verify`.
    """

    def __init__(self, store: Place | str, name: str, frame_size: tuple[int, int], *,
                 geometries: Sequence[ClipGeometry], edges: bool = False, flow: bool = False,
                 jpeg_quality: int = JPEG_QUALITY, executor: Executor | None = None, attributes: dict):
        height, width = frame_size
        if height < CELL or width < CELL or height % CELL or width % CELL:
            raise ValueError(f"frame size {height}x{width}; expected multiples of {CELL}")
        if not name or name.startswith(".") or set(name) & set("/,;:\"\n\r"):
            raise ValueError(f"pack name {name!r}; expected one path component without , ; : quotes or a leading dot")
        self.store, self.name = as_place(store), name
        self.path = f"packs/{height}x{width}/{name}"
        self.executor, self.quality = executor, jpeg_quality
        self.attributes = {"format": FORMAT, "pack": name, "frame_size": [height, width], "edges": edges, "flow": flow,
                           "jpeg_quality": jpeg_quality, "clips": [str(geometry) for geometry in geometries]}
        if set(attributes) & {*self.attributes, "frames", "videos", "failures", "files", "chunks", "crc32c"}:
            raise ValueError(f"attributes {sorted(attributes)} overlap the pack's own")
        if not isinstance(attributes.get("backend"), str):
            raise ValueError("attributes name no flow `backend`")
        self.attributes.update(attributes)
        self.cpu_seconds = {"encode": 0.0, "write": 0.0, "verify": 0.0}
        self.rows: list[VideoRow] = []
        self.t_motion, self.offset = array("f"), array("q", [0])
        self.marks = None  # the state before the video under way

        self.scratch = Scratch() if isinstance(self.store, ObjectPath) else None
        parent = (self.scratch.folder if self.scratch else self.store) / "packs" / f"{height}x{width}"
        parent.mkdir(parents=True, exist_ok=True)
        self.hidden = hidden_name(parent / name)
        self.hidden.mkdir()
        self.layouts = {layout.name: layout for layout in frame_arrays((height, width), edges, flow, jpeg_quality)}
        for layout in self.layouts.values():
            (self.hidden / layout.name).mkdir()
        self.rgb = FrameWriter(self.hidden / self.layouts["rgb"].file)
        self.maps = {name: RowWriter(self.hidden / layout.file, layout) for name, layout in self.layouts.items()
                     if layout.chunk_rows and name != "rgb"}
        self.clips = {str(geometry): ClipTables(self.hidden, geometry, (height, width)) for geometry in geometries}

    @property
    def videos(self) -> int:
        """Videos ended so far."""
        return len(self.rows)

    @property
    def frames(self) -> int:
        """Frames so far, those of the video under way counted."""
        return len(self.t_motion)

    @contextmanager
    def _stage(self, stage: str):
        start = time.thread_time()
        yield
        self.cpu_seconds[stage] += time.thread_time() - start

    def begin_video(self) -> None:
        self._expect_video(False)
        self.marks = ([(shard, shard.mark()) for shard in self._writers()], len(self.t_motion))

    def append(self, rgb, st_motion, t_motion, edges=None, flow=None) -> None:
        """The next n >= 1 frames of the video: rgb (n, H, W, 3) uint8; st_motion (n, h, w), t_motion (n,) float32,
        px/frame per px; edges (n, 2, H/2, W/2) float32, px/frame per px; flow the same shape, px/frame.

        Raises ValueError for another shape or values that are not finite. After any error call `abort_video`.
        """
        self._expect_video(True)
        rows = {"st_motion": st_motion, "t_motion": t_motion, "edges": edges, "flow": flow}
        count = len(rgb)
        self._check("rgb", rgb, count)
        if not count or rgb.dtype != np.uint8:
            raise ValueError(f"{count} frames of {rgb.dtype}; expected at least one, uint8")
        for name, values in rows.items():
            if (name in self.layouts) != (values is not None):
                raise ValueError(f"{name} is {'missing' if values is None else 'not kept by this pack'}")
            if values is not None:
                self._check(name, values, count)
                if not np.isfinite(values).all():
                    raise ValueError(f"{name} holds values that are not finite")
        # Each run is written while the processor's cache still holds it, and while other threads encode the next.
        runs = [rgb[i:i + ENCODE_RUN] for i in range(0, count, ENCODE_RUN)]
        encode = map if self.executor is None or len(runs) == 1 else self.executor.map
        for jpegs, seconds in encode(_encode_run, runs, [self.quality] * len(runs)):
            self.cpu_seconds["encode"] += seconds
            with self._stage("write"):
                self.rgb.add(jpegs)
        with self._stage("write"):
            for name, shard in self.maps.items():
                shard.add(quantise_edges(rows[name]) if name == "edges" else half(rows[name]))
            self.t_motion.frombytes(np.asarray(t_motion, "<f4").tobytes())

    def _check(self, name, values, count) -> None:
        expected = (count, *self.layouts[name].row)
        if np.shape(values) != expected:
            raise ValueError(f"{name} has shape {np.shape(values)}; expected {expected}")

    def end_video(self, row: VideoRow, clips: dict[str, ClipIndex]) -> VideoRow:
        """Close the video: its row (pack, first_frame and frames are filled in and returned) and its clips by `LxS`.

        Raises ValueError for a video without frames, an id that the pack has, or clips that do not fit the frames.
        """
        self._expect_video(True)
        first, last = self.offset[-1], len(self.t_motion)
        row = dataclasses.replace(row, pack=self.name, first_frame=first, frames=last - first)
        counts = {self.rgb.chunks, *(shard.rows for shard in self.maps.values())}
        if first == last or counts != {last}:
            raise ValueError(f"video {row.id!r} has {last - first} whole frames; expected at least one and no failed "
                             "append; call abort_video")
        if row.id in {other.id for other in self.rows}:
            raise ValueError(f"video {row.id!r} is in the pack already")
        if set(clips) != set(self.clips):
            raise ValueError(f"clips of {sorted(clips)}; expected {sorted(self.clips)}")
        row.document()
        for name, tables in self.clips.items():
            tables.check(clips[name], row.frames)
        with self._stage("write"):
            self.rgb.end_video()
            for name, tables in self.clips.items():
                tables.add(clips[name])
        self.offset.append(last)
        self.rows.append(row)
        self.marks = None
        return row

    def abort_video(self) -> None:
        """Forget the video under way, all of it; nothing happens when there is none."""
        if self.marks:
            shards, frames = self.marks
            for shard, mark in shards:
                shard.rollback(mark)
            del self.t_motion[frames:]
            self.marks = None

    def commit(self, failures: Sequence[FailureRow] = ()) -> tuple[PackRow, list[VideoRow]]:
        """Flush, verify and name the pack (or upload it); returns its row and those of its videos.

        failures: what failed in the task, kept in the pack's attributes. If a pack of this name is there already, it
        is kept and its rows are returned. Raises StoreError if what was written does not read back.
        """
        self._expect_video(False)
        with self._stage("write"):
            self._finish()
        with self._stage("verify"):
            attributes = {**self.attributes, "frames": self.frames, "videos": [row.document() for row in self.rows],
                          "failures": [dataclasses.asdict(row) for row in failures]}
            files, problems = verify_arrays(self.hidden, attributes)
            if problems:
                raise StoreError(f"what was written for {self.path} does not read back: {'; '.join(problems[:5])}")
        with self._stage("write"):
            attributes = seal_attributes(self.hidden, attributes, files)
            # zarr-python shows whatever has a root, so the root comes last.
            write_synced(self.hidden / ROOT, document_bytes(group_document(attributes)))
            files = {**files, ROOT: hash_file(self.hidden / ROOT)}
            for folder, _, _ in os.walk(self.hidden):
                fsync_directory(folder)
            row = PackRow(self.name, self.path, self.frames, self.videos, attributes["backend"], files)
            if self.scratch:
                row = dataclasses.replace(row, path=unique_path(self.path))
                upload_pack(self.hidden, self.store, row.path, files)
                self.discard()
                return row, self.rows
            target = self.store / self.path
            try:
                os.rename(self.hidden, target)
            except OSError:
                if (target / ROOT).exists():
                    self.discard()
                    return load_pack(self.store, self.path)[:2]
                if not target.exists():
                    raise
                os.rename(target, hidden_name(target))  # a pack that lost its root is none
                os.rename(self.hidden, target)
            for folder in (self.hidden.parent, self.store / "packs", self.store):
                fsync_directory(folder)
        return row, self.rows

    def _finish(self) -> None:
        """Everything but the root's zarr.json, each file flushed to disk."""
        arrays = {self.layouts["rgb"]: self.rgb.chunks}
        arrays |= {shard.layout: shard.rows for shard in self.maps.values()}
        arrays[self.layouts["t_motion"]] = np.frombuffer(self.t_motion, "<f4")
        arrays[self.layouts["frame_offset"]] = np.frombuffer(self.offset, "<i8")
        for shard in (self.rgb, *self.maps.values()):
            shard.finish()
        self.rgb.close()
        for tables in self.clips.values():
            arrays |= tables.finish()
        for group in pack_groups(tables.geometry for tables in self.clips.values()):
            (self.hidden / group).mkdir(exist_ok=True)
            write_synced(self.hidden / group / ROOT, document_bytes(group_document({})))
        for layout, values in arrays.items():
            write_array(self.hidden, layout, values)

    def discard(self) -> None:
        """Remove what is not committed; harmless at any time."""
        for writer in self._writers():
            writer.close()
        if self.hidden.exists():
            shutil.rmtree(self.hidden)
        if self.scratch:
            self.scratch.close()

    def _writers(self) -> list:
        return [self.rgb, *self.maps.values(), *self.clips.values()]

    def _expect_video(self, begun: bool) -> None:
        if (self.marks is not None) != begun:
            raise RuntimeError("no video has begun" if begun else "a video is under way; end or abort it first")


def _encode_run(frames: np.ndarray, quality: int) -> tuple[list[bytes], float]:
    start = time.thread_time()
    jpegs = [encode_jpeg(np.ascontiguousarray(frame), quality) for frame in frames]
    return jpegs, time.thread_time() - start


def write_array(folder: Path, layout: ArrayLayout, values: np.ndarray | int) -> None:
    """An array's zarr.json and its data, flushed to disk.

    values: those of an array that is one chunk; the number of rows of one whose shard file is finished already.
    """
    rows = values if layout.chunk_rows else len(values)
    (folder / layout.name).mkdir(parents=True, exist_ok=True)
    write_synced(folder / layout.metadata_file, document_bytes(layout.document(rows)))
    if layout.chunk_rows and not rows:
        (folder / layout.file).unlink()  # an array without rows has no chunk
    elif rows and not layout.chunk_rows:
        write_synced(folder / layout.file, seal(encode_rows(values)))
