"""What a video is opened from: a file, or a span of bytes of an archive or an object, which is read where it lies.

A span is given to the decoder as a file object, read by range with read-ahead; memory holds a few ranges of it, however
long it is, and nothing is unpacked.
"""

import errno
import os
import stat
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import av

from shared.store.place import ObjectPath, Place

FIRST = 1 << 20    # bytes of the first request of a video: most headers
AHEAD = 4 << 20    # bytes of every later one
KEPT = 4           # ranges held: a file's index, its pictures, its sound
ZIP_HEADER = struct.Struct("<4s22x2H")    # APPNOTE.TXT 4.3.7: signature, ..., lengths of name and extra field
FREE = 3           # requests beside those for AHEAD bytes each
CANNOT = "cannot be opened"
_recent = threading.local()


class VideoError(Exception):
    """A video that cannot be used, or not beyond its first `frames` frames.

    reason: one short line without the path; stage: `open`, `probe` or `decode`.
    """

    def __init__(self, reason: str, stage: str, frames: int = 0):
        super().__init__(reason, stage, frames)  # all of them, so that the error survives pickling
        self.reason, self.stage, self.frames = reason, stage, frames

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, slots=True)
class Span:
    """A video's bytes: `size` of them, from `offset` on, of the file or object `place`.

    version: of the whole place when it was looked at, `<bytes>:<time of change, or ETag>`; what has another is not
    read. ending: of the video's name, since decoders guess by it. kind: `object`, all of the place; `tar`; `zip`, where
    the bytes follow a header at `offset`. fault: why it cannot be read, where that is known.
    """

    place: Place
    offset: int
    size: int
    version: str
    ending: str
    kind: str = "object"
    fault: str = ""

    @property
    def state(self) -> str:
        """What tells its bytes from others, as far as that shows without reading them."""
        return self.version if self.kind == "object" else f"{self.version}:{self.offset}:{self.size}"

    @property
    def requests(self) -> int:
        """At most so many requests to read it once from end to end; 0 on this machine's disks."""
        return FREE + -(-self.size // AHEAD) if isinstance(self.place, ObjectPath) else 0


class Drawn(ABC):
    """A video that is no file: its frames are drawn when they are asked for. place: what they are drawn from."""

    place: Place

    @abstractmethod
    def open(self, window: int) -> AbstractContextManager:
        """What `shared.videos.decode.Decoder` is of a file."""

    @abstractmethod
    def probe(self):
        """Its `shared.videos.decode.Probe`."""


VideoFile = str | Path | Span | Drawn


def span_of(place: ObjectPath, state: str) -> Span:
    """All of an object, as its listing has it (`ObjectPath.states`)."""
    return Span(place, 0, int(state.partition(":")[0]), state, place.suffix)


def state_of(place: Path) -> str:
    """The version of a file: bytes and time of change. Raises OSError."""
    found = os.stat(place)
    return f"{found.st_size}:{found.st_mtime_ns}"


class RangeFile:
    """A binary file object on `size` bytes of a file or an object, from `offset` on, for reading.

    Of an object `first` bytes are asked for, then `ahead` at a time, a request each, and `kept` ranges are held;
    `ranges` may be those of an earlier one. Raises OSError, ESTALE where the place is not at `version` any more.
    """

    def __init__(self, place: Place, offset: int, size: int, version: str, first: int = FIRST, ahead: int = AHEAD,
                 kept: int = KEPT, ranges: list | None = None):
        self.place, self.offset, self.size, self.version = place, offset, size, version
        self.first, self.ahead, self.kept = first, ahead, kept
        self.ranges: list[tuple[int, bytes]] = [] if ranges is None else ranges
        self.position = self.requests = 0
        self.error: OSError | None = None
        self.local = None
        if isinstance(place, Path):
            self.local = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
            found = os.fstat(self.local)
            if version and f"{found.st_size}:{found.st_mtime_ns}" != version:
                self.close()
                raise changed(place)

    def read(self, count: int = -1) -> bytes:
        """As a file's, but never less than asked for before the end."""
        left, parts = self.size - self.position, []
        left = left if count < 0 else min(count, left)
        try:
            while left > 0 and (part := self._part(left)):
                parts.append(part)
                self.position += len(part)
                left -= len(part)
        except OSError as error:
            self.error = error     # the decoder may make something else of it
            raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _part(self, count: int) -> bytes:
        at = self.offset + self.position
        if self.local is not None:
            return os.pread(self.local, count, at)
        for number, (start, data) in enumerate(self.ranges):
            if start <= at < start + len(data):
                self.ranges.insert(0, self.ranges.pop(number))
                return data[at - start:at - start + count]
        stop = min([at + (self.ahead if self.ranges else self.first), self.offset + self.size,
                    *(start for start, _ in self.ranges if start > at)])
        self.requests += 1
        data = self.place.read_range(at, stop, self.version.partition(":")[2])
        self.ranges[:] = [(at, data), *self.ranges[:self.kept - 1]]
        return data[:count]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(self.place))
        self.position = start + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if self.local is not None:
            os.close(self.local)
            self.local = None


def changed(place: Place) -> OSError:
    return OSError(errno.ESTALE, "has changed since it was looked at", str(place))


def size_of(path: VideoFile) -> int:
    return path.size if isinstance(path, Span) else os.path.getsize(path)


@contextmanager
def open_container(path: VideoFile, **options) -> Iterator[av.container.InputContainer]:
    """The file, opened by PyAV with these options. Raises VideoError for what is no video or cannot be read, OSError
    where the archive or the storage that holds it has gone, or changed."""
    opened = _span(path) if isinstance(path, Span) else _file(path)
    with opened as (source, protocols):
        try:
            # The whitelist: neither a name nor a playlist inside the file may lead anywhere else.
            container = av.open(source, container_options={"protocol_whitelist": protocols}, **options)
        except PermissionError as error:
            raise VideoError(f"{CANNOT}: {words(error)}", "open") from error
        except av.error.FFmpegError as error:
            raise VideoError(f"not a video: {words(error)}", "open") from error
        with container:
            yield container


@contextmanager
def _file(path: str | Path) -> Iterator[tuple[str, str]]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoError(f"{CANNOT}: {words(error)}", "open") from error
    if not stat.S_ISREG(status.st_mode):
        raise VideoError("not a file", "open")
    if status.st_size == 0:
        raise VideoError("empty file (0 bytes)", "open")
    yield f"file:{os.fspath(path)}", "file"


@contextmanager
def _span(span: Span) -> Iterator[tuple[RangeFile, str]]:
    """Its bytes as a file object. One that this thread reads again finds the ranges that it has left."""
    if span.fault:
        raise VideoError(span.fault, "open")
    if span.size == 0:
        raise VideoError("empty file (0 bytes)", "open")
    known, ranges = getattr(_recent, "ranges", (None, []))
    if known != span:
        ranges = []
    _recent.ranges = span, ranges
    file = None
    try:
        file = RangeFile(span.place, span.offset, span.size, span.version, ranges=ranges)
        if span.kind == "zip":
            _skip_header(file, span)
        file.name = f"video{span.ending}"
        yield file, "none"
    except Exception as error:
        failed = file.error if file is not None else error if isinstance(error, OSError) else None
        if failed is None:
            raise      # not of the storage
        raise _told(span, failed) from error
    finally:
        if file is not None:
            file.close()
    if file.error is not None:     # the decoder took it for the file's end
        raise _told(span, file.error) from file.error


def _skip_header(file: RangeFile, span: Span) -> None:
    """From a zip member's header to its bytes."""
    whole = int(span.version.partition(":")[0])
    file.size = min(span.size + ZIP_HEADER.size + 2 * 0xffff, whole - span.offset)
    header = file.read(ZIP_HEADER.size)
    mark, name, extra = ZIP_HEADER.unpack(header) if len(header) == ZIP_HEADER.size else (b"", 0, 0)
    file.offset += ZIP_HEADER.size + name + extra
    if mark != b"PK\3\4" or file.offset + span.size > whole:
        raise VideoError("the archive's list leads to no such member; the archive is damaged", "open")
    file.size, file.position = span.size, 0


def _told(span: Span, error: OSError) -> Exception:
    """A video that cannot be had alone is its own failure; an archive or a bucket is everyone's."""
    if span.kind != "object" or "bucket" in str(error.strerror):
        return error
    if error.errno == errno.ESTALE:
        return VideoError("has changed since it was listed", "open")
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return VideoError(f"{CANNOT}: {words(error)}", "open")
    return error


def words(error: OSError | av.error.FFmpegError) -> str:
    """The error's words without its number and path."""
    text = (error.strerror or type(error).__name__).removesuffix(" found when processing input")
    return text[:1].lower() + text[1:]
