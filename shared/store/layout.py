"""Store format 1 as code: what arrays a pack holds, and the zarr.json of each before its data exists.

T frames, HxW pixels, hxw motion cells of 8x8 pixels, V videos, C clips of one geometry.
"""

import errno
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shared.cli import Stopped, typed
from shared.clips.index import ClipGeometry
from shared.motion import CELL

FORMAT = 1
JPEG_CODEC = "motionpack.jpeg"
JPEG_QUALITY = 85
ZSTD_LEVEL = 1  # level 3 takes 10 % longer for maps and 65 % for edges, to save 0 and 4 % of their bytes
EDGE_MAX = 10.0  # px/frame per px, stored as 255
HALF_MAX = 65504.0  # the largest finite float16

MOTION = "px/frame per px"
HALF = "float16; larger values are stored as 65504"


class StoreError(Exception):
    """Something in a store is damaged, missing or not as the format says."""


@contextmanager
def damage_stops(store: Path) -> Iterator[None]:
    """For commands: a StoreError becomes Stopped, which says what helps and where to look further."""
    try:
        yield
    except StoreError as error:
        if unreached(error):
            raise Stopped(error) from error
        helps = cure(str(error), store)
        raise Stopped(f"{error}; {helps + '; ' if helps else ''}`python -m preprocess.check {typed(store)}` lists all "
                      "that is damaged") from error


def unreached(error: StoreError) -> bool:
    """Whether files could not be asked for at all (no connection, no permission, too many open), so that nothing says
    that they are damaged; a lost file and a failing disk are damage."""
    cause = error.__cause__
    while isinstance(cause, StoreError):
        cause = cause.__cause__
    return isinstance(cause, OSError) and cause.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO)


# What a fault's text says, first match first, and what helps.
CURES = [(re.compile(pattern, re.DOTALL), text) for pattern, text in (
    (r".*(has no clips |keeps no )|store\.json: format ", ""),  # nothing is damaged
    (r".* lacks clips ", "`python -m preprocess.reindex {store} --clips LxS` adds clips from the stored maps"),
    (r".* does not belong to ", "move away what does not belong"),
    (r".*: the index does not list it|.* differs from the index", "preprocess.run, run again, takes in what the packs "
     "hold; `python -m preprocess.reindex {store}` does it at once"),
    (r"packs/\d+x\d+/[^/]+: is missing", "run preprocess.run again: it makes lost packs anew"),
    (r"(pack \S+, video .*?: )?packs/", "delete the damaged pack's folder and run preprocess.run again"),
    (r"(index|current|store\.json|failures\.(csv|crc32c))\b", "`python -m preprocess.reindex {store}` rebuilds index, "
     "failures.csv and store.json from packs and records"),
    (r"records/", "delete the damaged record: nothing but the history needs it"))]


def cure(fault: str, store: Path) -> str:
    """What helps against a fault that a StoreError or preprocess.check names; "" where nothing general does."""
    fault = fault.replace(f"{store}/", "")
    return next((text.format(store=typed(store)) for pattern, text in CURES if pattern.match(fault)), "")


def crc_text(value: int) -> str:
    """A CRC-32C as the store writes it: eight hexadecimal digits."""
    return f"{value:08x}"


@dataclass(frozen=True)
class ArrayLayout:
    """One array of a pack. `row` is the shape without axis 0; `length` says what axis 0 counts.

    chunk_rows is the number of rows of an inner chunk of the one shard file, None for an array that is one chunk.
    """

    name: str
    dtype: str
    dims: tuple[str, ...]
    row: tuple[int, ...]
    length: str  # "frames", "videos", "bounds" (videos + 1) or "clips"
    chunk_rows: int | None
    attributes: dict = field(compare=False)
    jpeg_quality: int | None = None

    @property
    def file(self) -> str:
        """The one data file, relative to the pack; absent when the array has no rows."""
        return f"{self.name}/c" + ".0" * (1 + len(self.row))

    @property
    def metadata_file(self) -> str:
        return f"{self.name}/zarr.json"

    def chunks(self, rows: int) -> int:
        """Inner chunks that `rows` rows take."""
        return -(-rows // self.chunk_rows)

    def document(self, rows: int) -> dict:
        """The array's zarr.json for `rows` rows (Zarr v3 core, sharding_indexed)."""
        inner = self._codecs()
        extent = max(1, rows)
        if self.chunk_rows:
            extent = self.chunk_rows * max(1, self.chunks(rows))
            inner = [{"name": "sharding_indexed", "configuration": {
                "chunk_shape": [self.chunk_rows, *self.row], "codecs": inner,
                "index_codecs": [_little(), {"name": "crc32c"}], "index_location": "end"}}]
        dtype = np.dtype(self.dtype)
        return {
            "zarr_format": 3, "node_type": "array", "shape": [rows, *self.row], "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [extent, *self.row]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": 0.0 if dtype.kind == "f" else 0, "codecs": inner,
            "attributes": self.attributes, "dimension_names": list(self.dims), "storage_transformers": [],
        }

    def _codecs(self) -> list[dict]:
        if self.jpeg_quality:
            jpeg = {"name": JPEG_CODEC, "configuration": {"quality": self.jpeg_quality, "subsampling": "420"}}
            return [jpeg, {"name": "crc32c"}]
        array = _little() if np.dtype(self.dtype).itemsize > 1 else {"name": "bytes"}
        return [array, {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}}, {"name": "crc32c"}]


def _little() -> dict:
    return {"name": "bytes", "configuration": {"endian": "little"}}


def group_document(attributes: dict) -> dict:
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def document_bytes(document: dict) -> bytes:
    """ASCII, so that paths which are no UTF-8 survive as escaped surrogates."""
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode("ascii")


def cells(frame_size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) pixels -> (h, w) motion cells."""
    return frame_size[0] // CELL, frame_size[1] // CELL


def mask_bytes(frame_size: tuple[int, int]) -> int:
    """Bytes of one packed hot mask, ceil(hw / 8)."""
    h, w = cells(frame_size)
    return -(-h * w // 8)


def frame_arrays(frame_size: tuple[int, int], edges: bool, flow: bool, jpeg_quality: int = JPEG_QUALITY):
    """The arrays with a row a frame that live in shard files, and t_motion and frame_offset."""
    height, width = frame_size
    h, w = cells(frame_size)
    half = (2, height // 2, width // 2)
    arrays = [
        ArrayLayout("rgb", "u1", ("frame", "y", "x", "channel"), (height, width, 3), "frames", 1,
                    {"units": "sRGB, 0-255", "channels": ["red", "green", "blue"],
                     "physical_order": "the even frames of each video, then its odd frames"}, jpeg_quality),
        ArrayLayout("st_motion", "<f2", ("frame", "cell_y", "cell_x"), (h, w), "frames", 16,
                    {"units": MOTION, "encoding": HALF, "cell": f"{CELL}x{CELL} pixels",
                     "description": "ST-motion: mean motion map magnitude of the cell (MCL Eq. 1)"}),
    ]
    if edges:
        arrays.append(ArrayLayout("edges", "u1", ("frame", "gradient", "y", "x"), half, "frames", 1,
                                  {"units": MOTION, "channels": ["abs grad u", "abs grad v"],
                                   "decoding": f"value = {EDGE_MAX:g} * (q / 255) ** 2", "resolution": "1/2"}))
    if flow:
        arrays.append(ArrayLayout("flow", "<f2", ("frame", "component", "y", "x"), half, "frames", 1,
                                  {"units": "full-resolution px/frame", "encoding": HALF,
                                   "channels": ["right", "down"], "resolution": "1/2"}))
    arrays.append(ArrayLayout("t_motion", "<f4", ("frame",), (), "frames", None,
                              {"units": MOTION,
                               "description": "T-motion: mean of the bordered motion map (MCL Eq. 2)"}))
    arrays.append(ArrayLayout("frame_offset", "<i8", ("video_bound",), (), "bounds", None,
                              {"units": "frames", "description": "first frame of each video, then the total"}))
    return arrays


def clip_arrays(geometry: ClipGeometry, frame_size: tuple[int, int]):
    """The arrays of the group clips/LxS."""
    group = f"clips/{geometry}"

    def whole(name, dtype, length, units, description):
        return ArrayLayout(f"{group}/{name}", dtype, ({"clips": "clip", "videos": "video"}.get(length, "video_bound"),),
                           (), length, None, {"units": units, "description": description})

    mask = ArrayLayout(f"{group}/hot_mask", "u1", ("clip", "byte"), (mask_bytes(frame_size),), "clips", 32, {
        "units": "bits", "bit_order": "C order over (cell_y, cell_x), most significant bit first, zero padded",
        "description": "cells of the bordered S-motion above its 90th percentile"})
    return [
        whole("start", "<i4", "clips", "frames", "first frame of the clip, counted from its video's first"),
        whole("score", "<f4", "clips", MOTION, "mean t_motion over the sampled frames"),
        whole("s_p90", "<f4", "clips", MOTION, "90th percentile of the bordered S-motion"),
        mask,
        whole("offset", "<i8", "bounds", "clips", "first clip of each video, then the total"),
        whole("median", "<f4", "videos", MOTION, "median score of the video's clips, NaN without clips"),
    ]


def pack_groups(geometries: Sequence[ClipGeometry]) -> list[str]:
    """The groups below the root."""
    return ["clips", *(f"clips/{geometry}" for geometry in geometries)]
