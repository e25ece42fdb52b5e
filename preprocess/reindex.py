"""Another clip geometry from the stored maps, without decoding: `python -m preprocess.reindex STORE --clips 8x8`.

Without --clips the index is rebuilt from the packs. Scores come from the stored float32 T-motion and equal those of a
run with that geometry; thresholds and hot masks come from the float16 maps, so cells at the threshold may differ.
"""

import argparse
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from shared import cli, motion
from shared.cli import Progress, RequestError
from shared.clips import ClipGeometry, ClipIndexer
from shared.recipe import recipe_hash
from shared.store.chunks import decode_rows
from shared.store.clip_tables import ClipTables
from shared.store.index import Index, publish, read_failures, write_failures
from shared.store.layout import ArrayLayout, damage_stops, document_bytes, frame_arrays, group_document
from shared.store.lock import store_lock
from shared.store.packs import sweep_partials, write_array
from shared.store.rebuild import build_index
from shared.store.record import fsync_directory, read_json, write_atomic, write_json_atomic, write_synced
from shared.store.shards import ReadCounts, ShardReader
from shared.store.tables import PackRow
from shared.store.verify import ROOT, hash_file, read_root, read_whole, seal_attributes

READ_FRAMES = 1024  # frames of maps held at a time


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code. Raises RequestError for shared.cli.command."""
    parser = argparse.ArgumentParser(prog="python -m preprocess.reindex", description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--clips", metavar="LxS", help="frames by stride, such as 8x8")
    args = parser.parse_args(argv)
    store = args.store.absolute()
    if not (store / "store.json").is_file():
        raise RequestError(f"{store} is no store: it has no store.json; expected what preprocess.run has made")
    try:
        geometry = args.clips and ClipGeometry.parse(args.clips)
    except ValueError as error:
        raise RequestError(f"--clips: {error}") from None
    with store_lock(store), damage_stops(store):
        sweep_partials(store)
        packs, videos, failures = build_index(store, Index.load(store) if geometry else None)
        known = {row.video for row in failures} | {row.id for row in videos}
        failures += [row for row in read_failures(store) if row.video not in known]
        if geometry:
            packs, added = add_everywhere(store, packs, geometry)
        publish(store, packs, videos)
        write_failures(store, failures)
    if geometry:
        print(f"clips {geometry}: added to {added:,} of {len(packs):,} packs of {store}")
    else:
        print(f"index of {store} rebuilt from {len(packs):,} packs: {len(videos):,} videos, {len(failures):,} failures")
    return cli.DONE


def add_everywhere(store: Path, packs: list[PackRow], geometry: ClipGeometry) -> tuple[list[PackRow], int]:
    """Every pack with the geometry, and how many lacked it. store.json names it once all packs have it."""
    document = read_json(store / "store.json")
    recipe = document["recipe"]
    border = recipe["motion"]["border_px"]
    if border % motion.CELL:
        raise RequestError(f"{store} was made with motion.border_px={border}, which maps of {motion.CELL} px cells "
                           f"cannot tell; run preprocess.run with --set clips.geometries=... into another --store")
    progress, added, out = Progress(f"clips {geometry}", sum(row.frames for row in packs)), 0, []
    done = 0
    for row in packs:
        if str(geometry) not in read_root(store / row.path)["clips"]:
            row = add_geometry(store, row, geometry, recipe["clips"]["step"], border // motion.CELL)
            added += 1
        out.append(row)
        done += row.frames
        progress.update(done, f"{added:,} packs")
    progress.close()
    if str(geometry) not in recipe["clips"]["geometries"]:
        recipe["clips"]["geometries"].append(str(geometry))
        document["recipe_hash"] = recipe_hash(recipe)
        write_json_atomic(store / "store.json", document)
    return out, added


def add_geometry(store: Path, row: PackRow, geometry: ClipGeometry, step: int, border: int) -> PackRow:
    """Write clips/LxS into a committed pack and list it in the pack's attributes; returns the pack's new row.

    The group has its name only when it is whole, and the attributes name it after that: a pack is good at any moment.
    """
    path = store / row.path
    attributes = read_root(path)
    frame_size = tuple(attributes["frame_size"])
    group = path / "clips" / str(geometry)
    hidden = path.parent / f".{row.pack}.{geometry}.partial"
    shutil.rmtree(hidden, ignore_errors=True)
    if group.exists():   # a run that was killed before it changed the attributes
        shutil.rmtree(group)
    tables = ClipTables(hidden, geometry, frame_size)
    for clips in _clips_of(path, attributes, geometry, step, border):
        tables.add(clips)
    write_synced(hidden / "clips" / str(geometry) / ROOT, document_bytes(group_document({})))
    for layout, values in tables.finish().items():
        write_array(hidden, layout, values)
    for folder, _, _ in os.walk(hidden):
        fsync_directory(folder)
    os.rename(hidden / "clips" / str(geometry), group)
    fsync_directory(group.parent)
    shutil.rmtree(hidden)
    files = {f"clips/{geometry}/{file.relative_to(group).as_posix()}": hash_file(file)
             for file in sorted(group.rglob("*")) if file.is_file()}
    attributes["clips"] = [*attributes["clips"], str(geometry)]
    attributes = seal_attributes(path, attributes, {**attributes["files"], **files})
    write_atomic(path / ROOT, document_bytes(group_document(attributes)))
    return replace(row, files={**row.files, **files, ROOT: hash_file(path / ROOT)})


def _clips_of(path: Path, attributes: dict, geometry: ClipGeometry, step: int, border: int):
    """The ClipIndex of every video of a pack, from its stored maps and T-motion."""
    layouts = {layout.name: layout for layout in frame_arrays(tuple(attributes["frame_size"]), False, False)}
    frames, layout = attributes["frames"], layouts["st_motion"]
    t_motion = read_whole(path, layouts["t_motion"], frames)
    shard = ShardReader(path / layout.file, layout.chunks(frames))
    try:
        for video in attributes["videos"]:
            indexer = ClipIndexer(geometry, step)
            first, last = video["first_frame"], video["first_frame"] + video["frames"]
            for start in range(first, last, READ_FRAMES):
                stop = min(start + READ_FRAMES, last)
                cells = _read_rows(shard, layout, start, stop).astype(np.float32)
                indexer.append(motion.zero_border(cells, border), t_motion[start:stop])
            yield indexer.finish()
    finally:
        shard.close()


def _read_rows(shard: ShardReader, layout: ArrayLayout, start: int, stop: int) -> np.ndarray:
    count = layout.chunk_rows
    first = start // count
    out = np.empty((-(-stop // count) - first, count, *layout.row), layout.dtype)
    for chunk, payload in zip(out, shard.read(np.arange(first, first + len(out)), ReadCounts())):
        decode_rows(payload, chunk)
    return out.reshape(-1, *layout.row)[start - first * count:stop - first * count]


if __name__ == "__main__":
    cli.command(main)
