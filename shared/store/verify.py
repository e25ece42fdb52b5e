"""Every byte of a pack against its checksums, and every count against every other."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from shared.clips.index import ClipGeometry
from shared.store.chunks import crc32c, decode_rows, unseal
from shared.store.layout import (
    FORMAT,
    ArrayLayout,
    StoreError,
    clip_arrays,
    crc_text,
    document_bytes,
    frame_arrays,
    group_document,
    pack_groups,
)
from shared.store.place import Place, as_place
from shared.store.record import PARTIAL
from shared.store.shards import ShardReader
from shared.store.tables import DROPPED, FailureRow, PackRow, VideoRow

BLOCK = 512 << 10  # bytes read at once, few enough to stay in the cache for two checksums
ROOT = "zarr.json"


def attributes_crc(attributes: dict) -> str:
    """The checksum that a pack's attributes carry under `crc32c`, over all other keys."""
    rest = {key: value for key, value in attributes.items() if key != "crc32c"}
    return crc_text(crc32c(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode("ascii")))


def seal_attributes(path: Path, attributes: dict, files: dict[str, tuple[int, int]]) -> dict:
    """The attributes with what they say of the pack's other files: `files`, `chunks` and their own `crc32c`.

    files: {name: (bytes, CRC-32C)}, without the root's zarr.json.
    """
    sealed = {**attributes, "files": {name: list(entry) for name, entry in files.items()},
              "chunks": payload_crcs(path, files)}
    return {**sealed, "crc32c": attributes_crc(sealed)}


def read_root(path: Place, strict: bool = False) -> dict:
    """The attributes of the pack at `path`. Raises StoreError when they are damaged or of another format.

    strict: every byte around the attributes must be as we write it too.
    """
    file = as_place(path) / ROOT
    try:
        return parse_root(file.read_bytes(), file, strict)
    except OSError as error:
        raise StoreError(f"{file}: {error.strerror}") from error


def parse_root(data: bytes, file, strict: bool = False) -> dict:
    """As `read_root`, from the bytes of `file`."""
    try:
        attributes = json.loads(data)["attributes"]
        good = attributes["crc32c"] == attributes_crc(attributes) and attributes["format"] == FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{file}: is no pack's zarr.json of format {FORMAT}: {error}") from error
    if not good or strict and data != document_bytes(group_document(attributes)):
        raise StoreError(f"{file}: the attributes do not match their checksum, or are not of format {FORMAT}")
    return attributes


def root_rows(attributes: dict) -> tuple[list[VideoRow], list[FailureRow]]:
    """The videos that count and the failures, as a pack's attributes list them; a dropped video's frames stay there."""
    failures = [FailureRow(**row) for row in attributes["failures"]]
    dropped = {row.video for row in failures if row.stage == DROPPED}
    return [VideoRow.from_document(row) for row in attributes["videos"] if row["id"] not in dropped], failures


def files_on_disk(path: Path) -> set[str]:
    """Every file of the pack at `path`, relative to it; a root that a killed reindex left half-written is none."""
    names = {os.path.relpath(os.path.join(folder, name), path) for folder, _, names in os.walk(path) for name in names}
    return {name for name in names if not (name.startswith(f".{ROOT}.") and PARTIAL.fullmatch(name))}


def hash_file(path: Path) -> tuple[int, int]:
    """(bytes, CRC-32C) of a file."""
    size = crc = 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(BLOCK):
            size, crc = size + len(block), crc32c(block, crc)
    return size, crc


def hash_shard(path: Path, chunks: int, name: str) -> tuple[tuple[int, int], list[str]]:
    """(bytes, CRC-32C) of a shard file and its problems, every chunk's checksum compared in the same pass."""
    try:
        shard = ShardReader(path, chunks)
    except StoreError as error:
        return (hash_file(path) if path.exists() else (0, 0)), [str(error).replace(str(path), name, 1)]
    try:
        order = np.argsort(shard.offset)
        starts, stops = shard.offset[order].astype(np.int64), (shard.offset + shard.nbytes)[order].astype(np.int64)
        if chunks and (starts[0] or stops[-1] != shard.data_size or (starts[1:] != stops[:-1]).any()):
            return hash_file(path), [f"{name}: its chunks leave gaps or overlap"]
        crc, problems, at = 0, [], 0
        begins, ends = starts.tolist(), stops.tolist()
        while at < chunks:
            to = max(at + 1, int(np.searchsorted(stops, begins[at] + BLOCK, "right")))
            block = np.frombuffer(shard.pread(begins[at], ends[to - 1]), np.uint8)
            crc = crc32c(block, crc)
            for i in range(at, to):
                try:
                    unseal(block[begins[i] - begins[at]:ends[i] - begins[at]])
                except ValueError as error:
                    problems.append(f"{name}: chunk {order[i]}: {error}")
            at = to
        tail = shard.pread(shard.data_size, shard.size)
        return (shard.size, crc32c(tail, crc)), problems
    finally:
        shard.close()


def read_whole(path: Place, layout: ArrayLayout, rows: int) -> np.ndarray:
    """An array that is one chunk. Raises StoreError."""
    out = np.zeros((max(1, rows), *layout.row), layout.dtype)
    if rows:
        try:
            decode_rows(unseal(np.frombuffer((path / layout.file).read_bytes(), np.uint8)), out)
        except OSError as error:
            raise StoreError(f"{path / layout.file}: {error.strerror}") from error
        except ValueError as error:
            raise StoreError(f"{path / layout.file}: {error}") from error
    return out[:rows]


def payload_crcs(path: Path, files: Iterable[str]) -> dict[str, str]:
    """{name: the checksum at its end} of the files that are one chunk.

    A file that ends in its own CRC-32C always has the same CRC-32C, whatever it holds, so the list of files alone
    would not notice two of them changing places.
    """
    return {name: (path / name).read_bytes()[-4:][::-1].hex() for name in sorted(files) if name.endswith("/c.0")}


def verify_arrays(path: Path, attributes: dict) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Every file below the root's zarr.json: {name: (bytes, CRC-32C)}, and what is wrong with them.

    attributes: frame_size, frames, edges, flow, jpeg_quality, clips and videos, as the root holds them.
    """
    files, problems = {}, []
    frame_size, videos = tuple(attributes["frame_size"]), attributes["videos"]
    geometries = [ClipGeometry.parse(text) for text in attributes["clips"]]
    rows = {"frames": attributes["frames"], "videos": len(videos), "bounds": len(videos) + 1}
    frames = [0, *np.cumsum([video["frames"] for video in videos], dtype=np.int64).tolist()]
    if frames[-1] != rows["frames"] or [video["first_frame"] for video in videos] != frames[:-1]:
        problems.append(f"{ROOT}: the videos' frames do not add up to {rows['frames']}")

    def whole(layout, count):
        try:
            return read_whole(path, layout, count)
        except StoreError as error:
            problems.append(str(error).removeprefix(f"{path}/"))

    def check(layouts, rows):
        for layout in layouts:
            count = rows[layout.length]
            document(layout.metadata_file, layout.document(count))
            if count and layout.chunk_rows:
                files[layout.file], found = hash_shard(path / layout.file, layout.chunks(count), layout.file)
                problems.extend(found)
            elif count and (path / layout.file).exists():
                files[layout.file] = hash_file(path / layout.file)
                whole(layout, count)
            elif count:
                problems.append(f"{layout.file}: is missing")

    def document(name, expected):
        try:
            data = (path / name).read_bytes()
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
            return
        files[name] = len(data), crc32c(data)
        if data != document_bytes(expected):
            problems.append(f"{name}: is not what format {FORMAT} prescribes")

    for group in pack_groups(geometries):
        document(f"{group}/zarr.json", group_document({}))
    layouts = frame_arrays(frame_size, attributes["edges"], attributes["flow"], attributes["jpeg_quality"])
    check(layouts, rows)
    offset = whole(layouts[-1], rows["bounds"])
    if offset is not None and offset.tolist() != frames:
        problems.append("frame_offset: does not agree with the videos' frames")
    for geometry in geometries:
        arrays = {layout.name.rpartition("/")[2]: layout for layout in clip_arrays(geometry, frame_size)}
        bounds = whole(arrays["offset"], rows["bounds"])
        if bounds is None:
            continue
        check(arrays.values(), {**rows, "clips": int(bounds[-1])})
        start, median = whole(arrays["start"], int(bounds[-1])), whole(arrays["median"], len(videos))
        if start is not None and median is not None:
            problems += _clip_problems(geometry, bounds, start, median, np.diff(frames))
    unlisted = files_on_disk(path) - set(files) - {ROOT}
    problems += [f"{name}: does not belong to the pack" for name in sorted(unlisted)]
    return files, problems


def _clip_problems(geometry, bounds, start, median, frames) -> Iterator[str]:
    counts = np.diff(bounds)
    if bounds[0] or (counts < 0).any():
        yield f"clips/{geometry}/offset: does not rise from 0"
        return
    latest = np.repeat(frames, counts) - geometry.span
    if (start < 0).any() or (start > latest).any():
        yield f"clips/{geometry}/start: a clip leaves its video"
    if (np.isnan(median) != (counts == 0)).any():
        yield f"clips/{geometry}/median: NaN and videos without clips do not agree"


def verify_pack(store: Path, pack: PackRow, videos: Sequence[VideoRow] | None = None,
                attributes: dict | None = None) -> list[str]:
    """What is wrong with a pack: every file against the pack's own list, every chunk, every count, and the pack
    against its row in the index; [] when all is well.

    videos: the index's rows of the pack; each must stand in the pack's attributes word for word. attributes: what
    `read_root` gave, strict, if the caller has read it.
    """
    path = Path(store) / pack.path
    if not path.is_dir():
        return [f"{pack.path}: is missing"]
    try:
        attributes = attributes or read_root(path, strict=True)
        files, problems = verify_arrays(path, attributes)
        files[ROOT] = hash_file(path / ROOT)
    except StoreError as error:
        return [str(error).removeprefix(f"{store}/")]
    listed = {name: tuple(entry) for name, entry in attributes["files"].items()} | {ROOT: files[ROOT]}
    for name in sorted(set(files) | set(listed)):
        if name not in files:
            problems.append(f"{name}: is missing")
        elif files[name] != listed.get(name):
            problems.append(f"{name}: size or checksum differ from the pack's list")
    if attributes["chunks"] != payload_crcs(path, set(files) - {ROOT}):
        problems.append(f"{ROOT}: lists other chunk checksums than there are")
    known = {row["id"]: row for row in attributes["videos"]}
    differing = [row.id for row in videos or () if known.get(row.id) != row.document()]
    problems += [f"{ROOT}: video {id!r} differs from the index" for id in differing]
    problems = [f"{pack.path}/{problem}" for problem in dict.fromkeys(problems)]
    same = (pack.pack, pack.frames, pack.videos, pack.backend) == (
        attributes["pack"], attributes["frames"], len(attributes["videos"]), attributes["backend"])
    if not problems and not (same and files == pack.files):
        # Such as a pack that got another clip geometry after the index was written.
        return [f"{pack.path}: is whole, but its row of files and counts differs from the index"]
    return problems
