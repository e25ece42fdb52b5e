"""What a tar or a zip archive holds, by its headers alone: which videos lie where, and what WebDataset's fields say.

Nothing is unpacked, and no name in an archive becomes a path of this machine: a member is a span of its bytes.
"""

import json
import os
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath

from shared.cli import RequestError, plural, size
from shared.datasets.listing import ENDINGS, is_video
from shared.store.place import Place
from shared.videos.files import RangeFile, Span

TAR, ZIP = ".tar", ".zip"
COMPRESSED = tuple(f".tar.{ending}" for ending in ("gz", "bz2", "xz", "zst", "lz4")) + (".tgz", ".tbz2", ".txz")
MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
METHODS = {8: "deflate", 9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstd", 95: "xz"}
BLOCK = 1 << 16          # bytes of a request for headers: small members that follow come along
TAIL = 1 << 20           # of a zip archive, where its list is
HEADER_BYTES = 1 << 28   # of one header or list; what declares more is damaged
FIELD_BYTES = 1 << 20    # of a .json, .cls or .txt
NAME_BYTES = 4096        # of a member's name, as of a path
ENCRYPTED = 0x1          # APPNOTE.TXT 4.4.4
LINK = "a link in an archive, without bytes of its own; pack the file itself"
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error, ValueError, OverflowError, RecursionError,
          NotImplementedError, EOFError, IndexError, RuntimeError)     # of archives that are none, or cut, or worse


@dataclass(frozen=True)
class Fields:
    """Where label, split and group of a video KEY.mp4 stand beside it: `cls` or `txt`, all of KEY.cls or KEY.txt, or
    `json.NAME`, of KEY.json; None: nowhere."""

    label: str | None = None
    split: str | None = None
    group: str | None = None

    def named(self) -> dict[str, str]:
        return {name: value for name, value in asdict(self).items() if value}


@dataclass(frozen=True)
class Contents:
    """What an archive holds. videos: name -> (offset, bytes, fault, {label, split, group} as its fields have them);
    refused: name -> why such a member is not taken; others: how many members are none of these; damage: why what
    follows the last of them could not be read."""

    videos: dict[str, tuple[int, int, str, dict[str, str]]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    others: int = 0
    damage: str = ""

    def spans(self, archive: Place, version: str) -> Iterator[tuple[str, Span]]:
        kind = "zip" if is_zip(archive) else "tar"
        for name, (offset, count, fault, _) in self.videos.items():
            yield name, Span(archive, offset, count, version, sys.intern(os.path.splitext(name)[1]), kind, fault)


@dataclass(frozen=True)
class _Member:
    """fault: why it cannot be read; packed: how it is compressed; read: gives its first bytes."""

    name: str
    offset: int
    size: int
    fault: str
    packed: str
    read: Callable[[int], bytes]


def is_zip(archive: Place) -> bool:
    return archive.suffix.lower() == ZIP


def read_contents(archive: Place, version: str, fields: Fields) -> tuple[Contents, int]:
    """The archive's contents, and how many requests they took.

    Raises RequestError for what cannot be read by range, OSError where the archive cannot be read or has changed.
    """
    whole = int(version.partition(":")[0])
    file = RangeFile(archive, 0, whole, version, first=BLOCK, ahead=BLOCK, kept=2)
    wanted = {f".{value.partition('.')[0]}" for value in fields.named().values()}
    videos, texts, refused, others, damage = {}, {}, {}, 0, ""
    try:
        for member in _zip_members(file) if is_zip(archive) else _tar_members(file):
            name, ending = _clean(member.name), os.path.splitext(member.name)[1].lower()
            if not name and ending in ENDINGS:
                refused[member.name[:NAME_BYTES]] = "its name leads out of the archive, or is none"
            elif not is_video(name):
                others += 1
                if name and ending in wanted and not member.fault and member.size <= FIELD_BYTES:
                    texts[name] = _text(member)
            elif member.packed:
                raise RequestError(
                    f"{archive}: {name[:200]} is compressed ({member.packed}), which cannot be read by range; pack the "
                    "videos anew without compression (zip -0 -r NEW.zip FOLDER), or give the unpacked folder")
            else:
                beyond = "" if member.offset + member.size <= whole else (
                    f"declares {size(member.size)}, and the archive ends before that: it is cut off or damaged")
                videos[name] = member.offset, member.size, member.fault or beyond     # of two the later, as tar unpacks
    except RequestError:
        raise     # which is a ValueError
    except BROKEN as error:
        why = " ".join(str(error).split()) or type(error).__name__
        damage = f"damaged after {plural(len(videos) + others, 'member')}: {why}"
        if packed := next((kind for magic, kind in MAGIC.items() if _start(file).startswith(magic)), ""):
            raise RequestError(f"{archive} is compressed ({packed}), which cannot be read by range; decompress it "
                               "(gunzip, unzstd, ...) and give the plain .tar") from None
    finally:
        file.close()
    videos = {name: (*found, _told(name, texts, fields)) for name, found in videos.items()}
    return Contents(videos, refused, others, damage), file.requests


def _text(member: _Member) -> str:
    try:
        return member.read(FIELD_BYTES).decode("utf-8", "replace").strip()
    except BROKEN:
        return ""


def _start(file: RangeFile) -> bytes:
    file.seek(0)
    return file.read(8)


def _clean(name: str) -> str:
    """The member's name as a path inside the archive; empty for one that is absolute, climbs, or is no name."""
    path = PurePosixPath(name)
    bad = path.is_absolute() or ".." in path.parts or "\0" in name or len(os.fsencode(name)) > NAME_BYTES
    return "" if bad or not path.name else str(path)


def _tar_members(file: RangeFile) -> Iterator[_Member]:
    """Every member in order. Raises one of BROKEN where the headers cannot be read on."""
    tar = tarfile.TarFile(fileobj=_Bounded(file), errors="surrogateescape")
    offset = 0
    while True:
        file.seek(offset)
        try:
            info = tarfile.TarInfo.fromtarfile(tar)
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):
            return     # the mark of the end, or the end without one
        if tar.offset <= offset:
            raise tarfile.ReadError(f"the header at byte {offset:,} leads backwards")
        offset = tar.offset
        if info.isdir():
            continue
        fault = "a sparse file in an archive; pack it without --sparse" if info.issparse() else \
            LINK if info.issym() or info.islnk() else "" if info.isreg() else "not a file"

        def read(count: int, info=info) -> bytes:
            file.seek(info.offset_data)
            return file.read(min(count, info.size))

        yield _Member(info.name, info.offset_data, info.size, fault, "", read)


def _zip_members(file: RangeFile) -> Iterator[_Member]:
    file.ahead = TAIL
    file.seek(max(0, file.size - TAIL))
    file.read(1)     # the list, in one request
    with zipfile.ZipFile(_Bounded(file)) as archive:
        file.ahead = BLOCK
        for info in archive.infolist():
            if info.is_dir():
                continue
            kind = stat.S_IFMT(info.external_attr >> 16)
            packed = "" if info.compress_type == zipfile.ZIP_STORED else \
                METHODS.get(info.compress_type, f"method {info.compress_type}")
            fault = "encrypted in its archive; pack it without a password" if info.flag_bits & ENCRYPTED else \
                LINK if kind == stat.S_IFLNK else \
                "not a file" if kind not in (0, stat.S_IFREG) else \
                f"declares {size(info.file_size)}, and {size(info.compress_size)} are stored" \
                if not packed and info.file_size != info.compress_size else ""

            def read(count: int, info=info) -> bytes:
                with archive.open(info) as member:
                    return member.read(count)

            yield _Member(info.filename, info.header_offset, info.file_size, fault, packed, read)


class _Bounded:
    """The file for readers of headers, which take a length from what they read."""

    def __init__(self, file: RangeFile):
        self.file, self.seek, self.tell, self.seekable = file, file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        count = self.file.size - self.file.position if count < 0 else count
        if count > HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size(count)}")
        return self.file.read(count)


def _told(name: str, texts: Mapping[str, str], fields: Fields) -> dict[str, str]:
    """The values of the fields, of the files beside the video that bear its KEY: its name up to the last dot or, as
    WebDataset has it, up to the first."""
    folder, slash, file = name.rpartition("/")
    keys = [folder + slash + key for key in (file.rpartition(".")[0], file.partition(".")[0])]
    out = {}
    for field_name, source in fields.named().items():
        ending, _, path = source.partition(".")
        text = next((texts[f"{key}.{ending}"] for key in keys if f"{key}.{ending}" in texts), None)
        value = text if ending != "json" or text is None else _in_json(text, path)
        if value is not None:
            out[field_name] = value
    return out


def _in_json(text: str, path: str) -> str | None:
    """The text or number at a dotted path of a JSON document; None for what is not there or neither."""
    try:
        found = json.loads(text)
        for key in path.split("."):
            found = found[key]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    return str(found).strip() if isinstance(found, (str, int, float)) else None
