"""What changes in a store without decoding: `python -m preprocess.reindex STORE`.

--clips 8x8 adds a clip geometry from the stored maps; --annotations CSV (path, label, split, group) gives the packed
videos other labels, groups and splits; --drop ID... and --drop-missing VIDEOS take videos out of what counts. Without
any of them the index, and what else is lost or damaged beside the packs, is rebuilt from packs and records.
Scores of clips come from the stored float32 T-motion and equal those of a
run with that geometry; thresholds and hot masks come from the float16 maps, so cells at the threshold may differ.
"""

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from preprocess import relabel
from preprocess.life import Life, await_silence
from shared import cli, motion
from shared.cli import Progress, RequestError, plural
from shared.clips.index import ClipGeometry, ClipIndexer
from shared.datasets.sources import HELP
from shared.recipes.preprocessing import description_fault, read_description, recipe_hash
from shared.store.clip_tables import ClipTables
from shared.store.committed import sweep_partials
from shared.store.index import Index, publish, write_failures
from shared.store.layout import (
    FORMAT,
    StoreError,
    damage_stops,
    document_bytes,
    frame_arrays,
    group_document,
)
from shared.store.lease import held
from shared.store.lock import store_lock
from shared.store.objects import fetched, upload_pack
from shared.store.packs import write_array
from shared.store.place import ObjectPath, Place, store_argument
from shared.store.rebuild import build_index, with_unpacked
from shared.store.record import each_record, fsync_directory, run_name, write_atomic, write_json_atomic, write_synced
from shared.store.shards import ReadCounts, ShardReader
from shared.store.tables import PackRow
from shared.store.verify import ROOT, hash_file, read_root, read_whole, seal_attributes

READ_FRAMES = 1024  # frames of maps held at a time
PUBLISH_S = 60      # seconds between publications


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code. Raises RequestError and Stopped for shared.cli.command."""
    parser = cli.Arguments(prog="python -m preprocess.reindex", description=__doc__)
    parser.add_argument("store", type=store_argument, help="a folder, or a URL such as s3://bucket/prefix")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--clips", metavar="LxS", help="frames by stride, such as 8x8")
    asked.add_argument("--annotations", type=cli.local, metavar="CSV", help="path,label,split,group of packed videos")
    asked.add_argument("--drop", nargs="+", action="extend", metavar="ID", help="videos that shall count no more")
    asked.add_argument("--drop-missing", nargs="+", action="extend", metavar="VIDEOS",
                       help=f"drop the videos that are no longer in these sources, as --videos names them: {HELP}")
    args = parser.parse_args(argv)
    store = args.store.absolute()
    if not (store / "packs").is_dir():
        raise RequestError(f"{store} is no store: it has no packs; expected what preprocess.run has made")
    try:
        geometry = args.clips and ClipGeometry.parse(args.clips)
    except ValueError as error:
        raise RequestError(f"--clips: {error}") from None
    with damage_stops(store), store_lock(store), closing(Life(store, run_name(str(os.getpid())))) as life:
        life.state = "reindexing"
        life.start()      # a part that comes meanwhile sees that it must wait
        await_silence(store, life.path.name)
        sweep_partials(store)
        if geometry:
            add_everywhere(store, geometry)
        elif args.annotations:
            print(relabel.annotate(store, args.annotations))
        elif args.drop:
            print(relabel.drop(store, args.drop))
        elif args.drop_missing:
            gone = relabel.missing(store, args.drop_missing)
            there = " and ".join(args.drop_missing)
            print(relabel.drop(store, gone, f"not under {there} any more") if gone else
                  f"nothing to drop: every video of {store} is under {there}")
        else:
            rebuild(store)
    return cli.DONE


def rebuild(store: Place) -> None:
    """Index, failures.csv and store.json anew: from the packs, the old failures if they are whole, and the records."""
    restored = restore_description(store)
    packs, videos, failures = build_index(store)
    publish(store, packs, videos)
    try:
        failures = with_unpacked(store, videos, failures)
    except StoreError as error:
        restored += f"; {error}, so failures that no pack knows are tried again by the next run"
    write_failures(store, failures)
    print(f"index of {store} rebuilt from {plural(len(packs), 'pack')}: {plural(len(videos), 'video')}, "
          f"{plural(len(failures), 'failure')}{restored}")


def restore_description(store: Place) -> str:
    """store.json from the newest record, where it is lost or damaged; returns what to say of it."""
    try:
        read_description(store)
        return ""
    except (FileNotFoundError, StoreError):
        pass
    for path, record in reversed(list(each_record(store))):
        if isinstance(record, StoreError):
            continue
        document = {"format": FORMAT, **{key: record.get(key) for key in ("dataset", "classes", "recipe")},
                    "recipe_hash": ""}
        if not description_fault(document):
            write_json_atomic(store / "store.json", {**document, "recipe_hash": recipe_hash(document["recipe"])})
            return f"; store.json restored from {path.name}"
    raise StoreError(f"{store / 'store.json'} is lost and no record is whole: the recipe is unknown")


def add_everywhere(store: Place, geometry: ClipGeometry) -> None:
    """Give every pack the geometry; store.json names it once all have it.

    The index is published now and then and in any case at the end, so that an interrupted reindex leaves a good store.
    """
    document = read_description(store)
    recipe = document["recipe"]
    border = recipe["motion"]["border_px"]
    if border % motion.CELL:
        clips = ",".join([*recipe["clips"]["geometries"], str(geometry)])
        raise RequestError(f"{store} was made with motion.border_px={border}, which maps of {motion.CELL} px cells "
                           f"cannot tell; add --set geometries={clips} to the preprocess.run that "
                           "made it, with another --store")
    rows, videos, failures = build_index(store, Index.load(store))
    failures = with_unpacked(store, videos, failures)
    packs = {row.pack: row for row in rows}
    progress, added, done = Progress(f"clips {geometry}", sum(row.frames for row in rows)), 0, 0
    published = time.monotonic()
    try:
        for row in rows:
            if str(geometry) not in read_root(store / row.path)["clips"]:
                packs[row.pack] = add_to_pack(store, row, geometry, recipe["clips"]["step"], border // motion.CELL)
                added += 1
            done += row.frames
            progress.update(done, plural(added, "pack"))
            if time.monotonic() - published > PUBLISH_S:
                publish(store, list(packs.values()), videos)
                published = time.monotonic()
    finally:
        publish(store, list(packs.values()), videos)
        write_failures(store, failures)
    progress.close()
    if str(geometry) not in recipe["clips"]["geometries"]:
        recipe["clips"]["geometries"].append(str(geometry))
        document["recipe_hash"] = recipe_hash(recipe)
        write_json_atomic(store / "store.json", document)
    print(f"clips {geometry}: added to {added:,} of {plural(len(rows), 'pack')} of {store}")


def add_to_pack(store: Place, row: PackRow, geometry: ClipGeometry, step: int, border: int) -> PackRow:
    """`add_geometry`; on object storage to a copy of the pack without its frames, whose new files then join the pack,
    the root last: until it names them no reader looks for them."""
    with fetched(store, row.path, without=("rgb", "edges", "flow")) as folder:
        new = add_geometry(folder, row, geometry, step, border)
        if isinstance(store, ObjectPath):
            held(store)
            added = {name: entry for name, entry in new.files.items() if row.files.get(name) != entry}
            upload_pack(folder / row.path, store, row.path, added)
        return new


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
                cells = shard.rows(layout, start, stop, ReadCounts()).astype(np.float32)
                indexer.append(motion.zero_border(cells, border), t_motion[start:stop])
            yield indexer.finish()
    finally:
        shard.close()


if __name__ == "__main__":
    cli.command(main)
