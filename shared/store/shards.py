"""Zarr v3 shard files, streamed out and read by ranges (sharding_indexed, index at the end, CRC-32C).

zarr-python builds a shard whole in memory and re-reads its index on every call; these writers keep 16 B a chunk, and
the reader keeps the index. A shard holds chunks along axis 0 only; a chunk is an encoded payload and its checksum.
"""

import os
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.store.chunks import checksum, decode_rows, encode_rows, unseal
from shared.store.layout import ArrayLayout, StoreError
from shared.store.place import ObjectPath, Place

ENTRY = 16  # bytes of an index entry: offset and size, uint64 little-endian
SPOOL = 16 << 20  # bytes of odd frames kept in memory before they go to a temporary file
PARTS = 512  # buffers handed to the kernel at once; it takes 1024
GAP = 64 << 10  # bytes that may be read in vain to save a range


def write_all(fd: int, parts: Sequence[bytes], offset: int) -> int:
    """Write all parts behind one another at `offset`, without joining them; returns the offset behind the last."""
    parts, at = list(parts), 0
    while at < len(parts):
        try:
            written = os.pwritev(fd, parts[at:at + PARTS], offset)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.readlink(f"/proc/self/fd/{fd}")) from error
        offset += written
        while at < len(parts) and written >= len(parts[at]):
            written -= len(parts[at])
            at += 1
        if written:
            parts[at] = memoryview(parts[at])[written:]
    return offset


def index_bytes(chunks: int) -> int:
    """Size of the index of a shard with so many chunks, its checksum counted."""
    return ENTRY * chunks + 4


class ShardWriter:
    """One shard file that grows chunk by chunk; `mark` and `rollback` undo everything since."""

    def __init__(self, path: Path):
        self.file = open(path, "xb", buffering=0)
        self.size = 0
        self.index = array("Q")

    @property
    def chunks(self) -> int:
        return len(self.index) // 2

    def put(self, payloads: Sequence[bytes]) -> None:
        """Append chunks, each followed by its checksum."""
        for payload in payloads:
            self.index.extend((self.size, len(payload) + 4))
            self.size += len(payload) + 4
        self._write(payloads, self.size)

    def _write(self, payloads: Sequence[bytes], end: int) -> None:
        """Write sealed chunks that end at `end`."""
        parts = [part for payload in payloads for part in (payload, checksum(payload))]
        write_all(self.file.fileno(), parts, end - sum(map(len, parts)))

    def mark(self) -> tuple[int, int]:
        return self.size, len(self.index)

    def rollback(self, mark: tuple[int, int]) -> None:
        self.size = mark[0]
        del self.index[mark[1]:]
        os.ftruncate(self.file.fileno(), self.size)

    def finish(self) -> None:
        """Write the index and flush the file to disk."""
        index = np.frombuffer(self.index, "<u8").tobytes()
        self.size = write_all(self.file.fileno(), [index, checksum(index)], self.size)
        os.fsync(self.file.fileno())
        self.file.close()

    def close(self) -> None:
        self.file.close()


class RowWriter(ShardWriter):
    """A shard whose chunks hold `layout.chunk_rows` rows; the rows of an unfinished chunk wait."""

    def __init__(self, path: Path, layout: ArrayLayout):
        super().__init__(path)
        self.layout = layout
        self.pending = self._empty()
        self.rows = 0

    def _empty(self) -> np.ndarray:
        return np.zeros((0, *self.layout.row), self.layout.dtype)

    def add(self, rows: np.ndarray) -> None:
        """rows: (n, *layout.row) in the stored dtype."""
        count = self.layout.chunk_rows
        rows = np.concatenate([self.pending, rows]) if len(self.pending) else rows
        whole = len(rows) - len(rows) % count
        self.put([encode_rows(rows[i:i + count]) for i in range(0, whole, count)])
        self.pending = rows[whole:].copy()
        self.rows = self.chunks * count + len(self.pending)

    def mark(self):
        return super().mark(), self.pending, self.rows

    def rollback(self, mark) -> None:
        super().rollback(mark[0])
        self.pending, self.rows = mark[1], mark[2]

    def finish(self) -> None:
        if len(self.pending):
            last = np.zeros((self.layout.chunk_rows, *self.layout.row), self.layout.dtype)
            last[:len(self.pending)] = self.pending
            self.put([encode_rows(last)])
            self.pending = self._empty()
        super().finish()


class FrameWriter(ShardWriter):
    """The rgb shard: each video's even frames stream to the file, its odd ones wait and follow at its end."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.waiting: list[bytes] = []  # odd frames, a checksum behind each
        self.spool = None  # a temporary file for those that are too many for memory
        self.spooled = self.waiting_bytes = 0
        self.video = 0  # the first chunk of the video under way

    def add(self, jpegs: Sequence[bytes]) -> None:
        """Append the next frames of the video under way."""
        odd, even_jpegs = (self.chunks - self.video) % 2, []
        for jpeg in jpegs:
            size = len(jpeg) + 4
            if odd:
                # Counted from the first odd frame until `end_video` knows where that one lands.
                self.index.extend((self.spooled + self.waiting_bytes, size))
                self.waiting += jpeg, checksum(jpeg)
                self.waiting_bytes += size
            else:
                self.index.extend((self.size, size))
                even_jpegs.append(jpeg)
                self.size += size
            odd = 1 - odd
        self._write(even_jpegs, self.size)
        if self.waiting_bytes > SPOOL:
            if self.spool is None:
                self.spool = tempfile.TemporaryFile(dir=Path(self.file.name).parent, buffering=0)
            self.spooled = write_all(self.spool.fileno(), self.waiting, self.spooled)
            self.waiting, self.waiting_bytes = [], 0

    def end_video(self) -> None:
        for i in range(2 * self.video + 2, len(self.index), 4):
            self.index[i] += self.size
        if self.spooled:
            self.spool.seek(0)
            while block := self.spool.read(1 << 20):
                self.size = write_all(self.file.fileno(), [block], self.size)
        self.size = write_all(self.file.fileno(), self.waiting, self.size)
        self._next_video()

    def rollback(self, mark) -> None:
        super().rollback(mark)
        self._next_video()

    def _next_video(self) -> None:
        if self.spooled:
            self.spool.truncate(0)
        self.waiting, self.waiting_bytes, self.spooled, self.video = [], 0, 0, self.chunks

    def close(self) -> None:
        if self.spool is not None:
            self.spool.close()
        super().close()


@dataclass
class ReadCounts:
    """What was read: ranges (system calls or requests), bytes_read, and bytes_used (those of the chunks asked for)."""

    ranges: int = 0
    bytes_read: int = 0
    bytes_used: int = 0


class ShardReader:
    """Chunks of one shard file by ranges: of a file that stays open, or of an object, a request each.

    chunks: how many the shard holds; size: bytes of the file, or None where it may be asked for (not of an object).
    Raises StoreError when the file is missing, has another size, or its index does not match its checksum.
    """

    def __init__(self, path: Place, chunks: int, size: int | None = None):
        self.path, self.file = path, None
        if isinstance(path, ObjectPath):
            if size is None:
                raise ValueError(f"{path}: the size of an object is the index's to say")
            total = self.size = size
        else:
            self.file = open_data(path, size)
            self.fd = self.file.fileno()
            total = self.size = os.fstat(self.fd).st_size
        self.data_size = total - index_bytes(chunks)
        try:
            index = unseal(np.frombuffer(self.pread(max(0, self.data_size), total), np.uint8))
        except ValueError as error:
            raise StoreError(f"{path}: index: {error}") from error
        if len(index) != ENTRY * chunks:
            raise StoreError(f"{path}: {total} bytes are too few for {chunks} chunks")
        entries = index.view("<u8").reshape(chunks, 2)
        self.offset, self.nbytes = entries[:, 0], entries[:, 1]
        if (self.nbytes > self.data_size - np.minimum(self.offset, self.data_size)).any():
            raise StoreError(f"{path}: index: a chunk lies outside of the file's {self.data_size} bytes")

    def pread(self, start: int, stop: int) -> bytes:
        if self.file is None:
            return self._request(start, stop)
        parts, at = [], start
        while at < stop:
            try:
                part = os.pread(self.fd, stop - at, at)
            except OSError as error:
                raise StoreError(f"{self.path}: {error.strerror}") from error
            if not part:
                raise StoreError(f"{self.path}: ends at byte {at}, expected {stop}")
            parts.append(part)
            at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _request(self, start: int, stop: int) -> bytes:
        try:
            data = self.path.read_range(start, stop) if start < stop else b""
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from error
        if len(data) != stop - start:
            raise StoreError(f"{self.path}: ends at byte {start + len(data)}, expected {stop}")
        return data

    def read(self, chunks: Sequence[int] | np.ndarray, counts: ReadCounts, gap: int = GAP) -> list[np.ndarray]:
        """The payloads of `chunks`, in that order; ranges at most `gap` bytes apart are read as one."""
        starts, sizes = self.offset[chunks].tolist(), self.nbytes[chunks].tolist()
        payloads = [None] * len(starts)
        for run in _runs(starts, sizes, gap):
            first, stop = starts[run[0]], max(starts[i] + sizes[i] for i in run)
            data = np.frombuffer(self.pread(first, stop), np.uint8)
            counts.ranges += 1
            counts.bytes_read += stop - first
            counts.bytes_used += sum({starts[i]: sizes[i] for i in run}.values())
            for i in run:
                try:
                    payloads[i] = unseal(data[starts[i] - first:starts[i] - first + sizes[i]])
                except ValueError as error:
                    raise StoreError(f"{self.path}: chunk {chunks[i]}: {error}") from error
        return payloads

    def rows(self, layout: ArrayLayout, start: int, stop: int, counts: ReadCounts, gap: int = GAP) -> np.ndarray:
        """Rows start to stop - 1 of a shard whose chunks hold several rows. Raises StoreError, and ValueError where a
        chunk holds another number of bytes."""
        count, first = layout.chunk_rows, start // layout.chunk_rows
        chunks = np.arange(first, -(-stop // count) if stop > start else first)
        out = np.empty((len(chunks) * count, *layout.row), layout.dtype)
        for i, payload in enumerate(self.read(chunks, counts, gap)):
            decode_rows(payload, out[i * count:(i + 1) * count])
        return out[start - first * count:stop - first * count]

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def open_data(path: Path, size: int | None):
    """Open a data file, checking its size first. Raises StoreError."""
    try:
        file = open(path, "rb", buffering=0)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    found = os.fstat(file.fileno()).st_size
    if size is not None and found != size:
        file.close()
        raise StoreError(f"{path}: {found} bytes, expected {size}")
    return file


def _runs(starts: list[int], sizes: list[int], gap: int) -> Iterable[list[int]]:
    """Positions grouped by nearness on disk, each group sorted by offset."""
    run, end = [], 0
    for i in sorted(range(len(starts)), key=starts.__getitem__):
        if run and starts[i] - end > gap:
            yield run
            run = []
        run.append(i)
        end = max(end, starts[i] + sizes[i])
    if run:
        yield run
