"""All clips of a store as one Parquet file, a row a clip: for people who keep their video files and train on those."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as arrow
from pyarrow import parquet

from shared.cli import Progress, RequestError, plural
from shared.clips.index import ClipGeometry, above, unpack_mask
from shared.motion import CELL, s_motion, zero_border
from shared.recipes.preprocessing import Recipe
from shared.store.objects import whole
from shared.store.reader import StoreReader

ROWS = 4096          # of a row group, at least
FRAMES = 1024        # frames of maps held at a time
CELLS = "s_motion"
COLUMNS = (("video", arrow.string()), ("path", arrow.string()), ("class", arrow.string()), ("split", arrow.string()),
           ("start", arrow.int32()), ("source_start", arrow.int64()), ("score", arrow.float32()),
           ("median", arrow.float32()), ("above_median", arrow.bool_()), ("threshold", arrow.float32()),
           ("rows", arrow.int32()), ("columns", arrow.int32()), ("hot_mask", arrow.list_(arrow.bool_())),
           (CELLS, arrow.list_(arrow.float32())))
PLAIN = [name for name, kind in COLUMNS if not arrow.types.is_list(kind)]


def write_table(out: Path, reader: StoreReader, recipe: Recipe, geometry: ClipGeometry) -> str:
    """Write the file, whole or not at all, in the order of ids and starts (columns: docs/tokens.md); returns what to
    say of it.

    Memory holds a row group and a piece of a video, however many and long these are. Raises RequestError where another
    process has made the file meanwhile.
    """
    schema = arrow.schema(COLUMNS, {"clips": str(geometry), "cell_px": str(CELL), "unit": "px/frame per px",
                                    "store": str(reader.store), "index": reader.index.generation})
    progress, clips, without = Progress(f"table {geometry}", len(reader.index)), 0, 0
    pending: list[arrow.RecordBatch] = []
    # The cells are float16 in float32, which every reader of Parquet knows: their low bytes are zeros, and take next to
    # no room where the bytes of many lie side by side.
    with whole(out) as local, open(local, "wb") as file, parquet.ParquetWriter(
            file, schema, compression="zstd", use_dictionary=PLAIN, write_statistics=PLAIN,
            use_byte_stream_split=[f"{CELLS}.list.element"]) as writer:

        def flush() -> None:
            writer.write_table(arrow.Table.from_batches(pending, schema))
            pending.clear()

        for position in range(len(reader.index)):
            before = clips
            for batch in _batches(reader, position, geometry, -(-recipe.motion.border_px // CELL), schema):
                pending.append(batch)
                clips += batch.num_rows
                if sum(one.num_rows for one in pending) >= ROWS:
                    flush()
            without += clips == before
            progress.update(position + 1, plural(clips, "clip"))
        flush()
        if out.exists():
            raise RequestError(f"--table {out} was made by somebody else meanwhile; it is left as it is")
    progress.close(text=plural(clips, "clip"))
    short = f"; {plural(without, 'video is', 'videos are')} too short for one" if without else ""
    return f"{out}: {plural(clips, 'clip')} of {geometry} of {plural(len(reader.index) - without, 'video')}{short}"


def _batches(reader: StoreReader, position: int, geometry: ClipGeometry, border: int,
             schema: arrow.Schema) -> Iterator[arrow.RecordBatch]:
    """The rows of a video. border: cells at the frame's edge that count as still, as they do in scores and masks."""
    row, first = reader.index.row(position), 0
    clips = reader.clips(row.id, geometry)
    moving = above(clips.score, clips.median) if len(clips.start) else None
    skipped = reader.index.file_start(position)
    while first < len(clips.start):
        begin = int(clips.start[first])
        end = max(first + 1, int(np.searchsorted(clips.start, begin + FRAMES - geometry.span, "right")))
        some, starts = slice(first, end), clips.start[first:end]
        maps = reader.motion(row.id, begin, int(starts[-1]) + geometry.span).astype(np.float32)
        maps = zero_border(maps, border)
        cells = np.stack([s_motion(maps[at:at + geometry.span:geometry.stride]) for at in starts - begin])
        hot = np.stack([unpack_mask(packed, maps.shape[1:]) for packed in clips.hot_mask[some]])
        text = [row.id, row.path, row.class_name, ";".join(row.splits)]
        columns = [[word.encode("utf-8", "replace").decode()] * len(starts) for word in text]
        columns += [starts, starts.astype(np.int64) + skipped, clips.score[some],
                    np.full(len(starts), clips.median, np.float32), moving[some], clips.s_p90[some],
                    *(np.full(len(starts), side, np.int32) for side in maps.shape[1:])]
        arrays = [arrow.array(column, kind) for column, (_, kind) in zip(columns, COLUMNS)]
        offsets = np.arange(len(starts) + 1, dtype=np.int32) * cells[0].size
        cells = np.minimum(cells, np.finfo(np.float16).max).astype(np.float16).astype(np.float32)
        arrays += [arrow.ListArray.from_arrays(offsets, arrow.array(values.ravel())) for values in (hot, cells)]
        yield arrow.RecordBatch.from_arrays(arrays, schema=schema)
        first = end
