"""Random access to the videos of a store: one range a stride-2 clip, one more for its maps.

n frames asked for, HxW pixels, hxw motion cells, L sampled frames, C clips.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from shared.cli import typed
from shared.clips.index import ClipGeometry, ClipIndex
from shared.clips.masking import TokenMotion, high_bin, token_motion
from shared.store.chunks import crc32c, decode_jpeg, decode_rows
from shared.store.index import Index
from shared.store.layout import ArrayLayout, StoreError, clip_arrays, frame_arrays
from shared.store.place import Place, as_place
from shared.store.shards import GAP, ReadCounts, ShardReader, index_bytes
from shared.store.tables import PackRow
from shared.store.verify import read_whole


class OpenPack:
    """The files of one pack, opened when first needed. Every error is a StoreError that names the file."""

    def __init__(self, store: Place, row: PackRow):
        self.path, self.row = as_place(store) / row.path, row
        self.frame_size = self._frame_size()
        self.layouts = {layout.name: layout for layout in frame_arrays(self.frame_size, edges=True, flow=True)}
        rgb = self.layouts["rgb"]
        if self._size(rgb) < index_bytes(rgb.chunks(row.frames)) or row.videos > row.frames:
            raise StoreError(f"{self.path}: the index says {row.frames} frames in {row.videos} videos, more than its "
                             f"{rgb.file} can hold")
        self.shards: dict[str, ShardReader] = {}
        self.arrays: dict[str, np.ndarray] = {}

    def _document(self, name: str) -> dict:
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise StoreError(f"{self.path / name}: {error.strerror}") from error
        if (len(data), crc32c(data)) != self.row.files.get(name):
            raise StoreError(f"{self.path / name}: size or checksum differ from the index")
        return json.loads(data)

    def _frame_size(self) -> tuple[int, int]:
        """(H, W), by the pack's place and by its frames alike."""
        size = tuple(map(int, self.row.path.split("/")[1].split("x")))
        document = self._document("rgb/zarr.json")
        if not isinstance(document, dict) or document.get("shape") != [self.row.frames, *size, 3]:
            raise StoreError(f"{self.path}/rgb/zarr.json: is not of {self.row.frames} frames of {size[0]}x{size[1]}")
        return size

    def _size(self, layout: ArrayLayout) -> int:
        """Bytes of the data file, as the index has it."""
        if layout.file not in self.row.files:
            raise StoreError(f"{self.path}: keeps no {layout.name}")
        return self.row.files[layout.file][0]

    def clip_layouts(self, geometry: ClipGeometry) -> dict[str, ArrayLayout]:
        return {layout.name.rpartition("/")[2]: layout for layout in clip_arrays(geometry, self.frame_size)}

    def shard(self, layout: ArrayLayout, rows: int) -> ShardReader:
        shard = self.shards.get(layout.name)
        if shard is None:
            shard = ShardReader(self.path / layout.file, layout.chunks(rows), self._size(layout))
            self.shards[layout.name] = shard
        return shard

    def array(self, layout: ArrayLayout, rows: int) -> np.ndarray:
        """An array that is one chunk, kept in memory once read."""
        values = self.arrays.get(layout.name)
        if values is None:
            values = read_whole(self.path, layout, rows)
            self.arrays[layout.name] = values
        return values

    def close(self) -> None:
        for shard in self.shards.values():
            shard.close()


class StoreReader:
    """Frames, motion and clips of the videos that a store's index lists.

    store: folder, or URL such as s3://bucket/prefix; max_open: packs kept open at most (up to four files each and one
    a clip geometry); gap: bytes read in vain rather than in another range; index: one that is loaded already. Building
    one opens nothing. A reader belongs to one thread; it survives fork, and a pickle carries the index but no open
    file. Of objects a range is a request, and only indices are kept. `counts[array]` says what was read.
    Every method raises StoreError, naming pack and video, for an unknown id and for bytes that fail their checksum.
    """

    def __init__(self, store: Place | str, max_open: int = 64, gap: int = GAP, index: Index | None = None):
        if max_open < 1:
            raise ValueError(f"max_open {max_open}; expected at least 1")
        self.store, self.max_open, self.gap = as_place(store), max_open, gap
        self.counts: dict[str, ReadCounts] = {}
        self._index = index
        self._packs: OrderedDict[str, OpenPack] = OrderedDict()

    @property
    def index(self) -> Index:
        if self._index is None:
            self._index = Index.load(self.store)
        return self._index

    def __getstate__(self):
        return {**self.__dict__, "_index": self.index, "_packs": OrderedDict()}

    def _total(self, what: str) -> int:
        return sum(getattr(counts, what) for counts in self.counts.values())

    ranges_read = property(lambda self: self._total("ranges"), doc="Ranges read so far, all arrays together.")
    bytes_read = property(lambda self: self._total("bytes_read"), doc="Bytes read so far.")
    bytes_used = property(lambda self: self._total("bytes_used"), doc="Bytes of the chunks that were asked for.")

    def frames(self, video: str, indices: Sequence[int]) -> np.ndarray:
        """(n, H, W, 3) uint8 RGB of the frames `indices`, counted from the video's first; repeats are allowed."""
        def read(pack, first, frames):
            layout = pack.layouts["rgb"]
            payloads = self._payloads(pack, layout, pack.row.frames, self._frame_rows(indices, first, frames))
            out = np.empty((len(payloads), *layout.row), np.uint8)
            for payload, frame in zip(payloads, out):
                decode_jpeg(payload, frame)
            return out
        return self._read(video, read)

    def frame_sizes(self, video: str) -> np.ndarray:
        """(frames,) uint64 bytes of every stored frame; only the shard's index is read."""
        return self._read(video, lambda pack, first, frames: pack.shard(
            pack.layouts["rgb"], pack.row.frames).nbytes[first:first + frames])

    def frame_checksums(self, video: str, indices: Sequence[int]) -> list[int]:
        """CRC-32C of the frames `indices` as they are stored: equal pictures have equal ones."""
        return self._read(video, lambda pack, first, frames: [crc32c(payload) for payload in self._payloads(
            pack, pack.layouts["rgb"], pack.row.frames, self._frame_rows(indices, first, frames))])

    def motion(self, video: str, start: int, stop: int) -> np.ndarray:
        """(stop - start, h, w) float16 ST-motion, px/frame per px, of the video's frames start to stop - 1."""
        def read(pack, first, frames):
            if not 0 <= start <= stop <= frames:
                raise StoreError(f"frames {start} to {stop}, expected 0 to {frames}")
            return self._rows(pack, pack.layouts["st_motion"], pack.row.frames, first + start, first + stop)
        return self._read(video, read)

    def edges(self, video: str, indices: Sequence[int]) -> np.ndarray:
        """(n, 2, H/2, W/2) uint8; `chunks.decode_edges` gives |grad u|, |grad v| in px/frame per px."""
        return self._stack(video, "edges", indices)

    def flow(self, video: str, indices: Sequence[int]) -> np.ndarray:
        """(n, 2, H/2, W/2) float16, full-resolution px/frame, right and down."""
        return self._stack(video, "flow", indices)

    def clip(self, video: str, start: int, geometry: ClipGeometry | str) -> tuple[np.ndarray, np.ndarray]:
        """The clip's frames (L, H, W, 3) uint8 and their ST-motion (L, h, w) float16, px/frame per px.

        geometry: or its text, such as `16x2`; ValueError for another.
        """
        geometry = ClipGeometry.parse(geometry) if isinstance(geometry, str) else geometry
        frames = self.frames(video, range(start, start + geometry.span, geometry.stride))
        return frames, self.motion(video, start, start + geometry.span)[::geometry.stride]

    def tokens(self, video: str, start: int, patch: int = 16, tubelet: int = 2, *,
               geometry: ClipGeometry | str = "16x2", box: tuple[int, int, int, int] | None = None,
               size: int | tuple[int, int] | None = None, ratio: float = 0.5) -> TokenMotion:
        """Motion of every token that a video transformer makes of a clip, from the stored ST-motion.

        start: the clip's first frame, counted from the video's; geometry: its frames and their stride; patch: pixels a
        side of a token; tubelet: sampled frames of one; box: the crop that the network is given, (y, x, height, width)
        in pixels of the stored frame, by default all of it; size: pixels a side that the crop is resized to, one number
        or (H, W), by default its own; ratio: share of the tokens in the high bin.
        Returns motion (T', H', W') float32, px/frame per px, and high, bool: `shared.clips.masking` says more, and
        draws masks by them. Cells at the frame's edge, where flow is unreliable (docs/method.md 1.1), count as stored.
        ValueError for a box outside of the frame, no whole token, a ratio that is none.
        """
        geometry = ClipGeometry.parse(geometry) if isinstance(geometry, str) else geometry
        maps = self.motion(video, start, start + geometry.span)[::geometry.stride]
        motion = token_motion(maps, patch, tubelet, box, size)
        return TokenMotion(motion, high_bin(motion, ratio))

    def t_motion(self, video: str) -> np.ndarray:
        """(frames,) float32 T-motion of every frame, px/frame per px."""
        def read(pack, first, frames):
            return pack.array(pack.layouts["t_motion"], pack.row.frames)[first:first + frames]
        return self._read(video, read)

    def clips(self, video: str, geometry: ClipGeometry | str) -> ClipIndex:
        """The index of the video's clips; C = 0 for a video shorter than the span."""
        geometry = ClipGeometry.parse(geometry) if isinstance(geometry, str) else geometry

        def read(pack, first, frames):
            arrays = pack.clip_layouts(geometry)
            if arrays["start"].metadata_file not in pack.row.files:
                raise StoreError(f"has no clips {geometry}; add them with `python -m preprocess.reindex "
                                 f"{typed(self.store)} --clips {geometry}`")
            offsets = pack.array(pack.layouts["frame_offset"], pack.row.videos + 1)
            place = int(np.searchsorted(offsets, first, "right")) - 1
            bounds = pack.array(arrays["offset"], pack.row.videos + 1)
            if not 0 <= place < pack.row.videos or offsets[place] != first:
                raise StoreError(f"frame {first} of the pack, where none of its videos begins")
            a, b, count = int(bounds[place]), int(bounds[place + 1]), int(bounds[-1])
            if not 0 <= a <= b <= count <= pack.row.frames:
                raise StoreError(f"clips {geometry}: {a} to {b} of {count} clips in {pack.row.frames} frames")
            columns = {name: pack.array(arrays[name], count)[a:b] for name in ("start", "score", "s_p90")}
            return ClipIndex(**columns, hot_mask=self._rows(pack, arrays["hot_mask"], count, a, b),
                             median=float(pack.array(arrays["median"], pack.row.videos)[place]))
        return self._read(video, read)

    def close(self) -> None:
        """Close all files; the reader opens them again when needed."""
        while self._packs:
            self._packs.popitem()[1].close()

    def _read(self, video: str, read):
        position = self.index.position(video)
        name = self.index.pack[position]
        try:
            pack = self._open(name)
            return read(pack, int(self.index.first_frame[position]), int(self.index.frames[position]))
        except (StoreError, ValueError) as error:
            raise StoreError(f"pack {name}, video {video!r}: {error}") from error

    def _open(self, name: str) -> OpenPack:
        pack = self._packs.get(name)
        if pack is None:
            while len(self._packs) >= self.max_open:
                self._packs.popitem(last=False)[1].close()
            pack = self._packs[name] = OpenPack(self.store, self.index.pack_row(name))
        else:
            self._packs.move_to_end(name)
        return pack

    @staticmethod
    def _frame_rows(indices: Sequence[int], first: int, frames: int) -> np.ndarray:
        rows = np.asarray(indices, np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < frames:
            raise StoreError(f"frames {rows.min()} to {rows.max()}, expected 0 to {frames - 1}")
        return rows + first

    def _payloads(self, pack: OpenPack, layout: ArrayLayout, rows: int, chunks: np.ndarray) -> list[np.ndarray]:
        if not len(chunks):
            return []
        counts = self.counts.setdefault(layout.name, ReadCounts())
        return pack.shard(layout, rows).read(chunks, counts, self.gap)

    def _rows(self, pack: OpenPack, layout: ArrayLayout, rows: int, start: int, stop: int) -> np.ndarray:
        if start == stop:
            return np.empty((0, *layout.row), layout.dtype)
        counts = self.counts.setdefault(layout.name, ReadCounts())
        return pack.shard(layout, rows).rows(layout, start, stop, counts, self.gap)

    def _stack(self, video: str, array: str, indices: Sequence[int]) -> np.ndarray:
        def read(pack, first, frames):
            layout = pack.layouts[array]
            chunks = self._frame_rows(indices, first, frames)
            out = np.empty((len(chunks), *layout.row), layout.dtype)
            for payload, row in zip(self._payloads(pack, layout, pack.row.frames, chunks), out):
                decode_rows(payload, row)
            return out
        return self._read(video, read)
