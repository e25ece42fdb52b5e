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

from shared.store.chunks import encode_rows, seal, unseal
from shared.store.layout import ArrayLayout, StoreError

ENTRY = 16  # bytes of an index entry: offset and size, uint64 little-endian
SPOOL = 16 << 20  # bytes of odd frames kept in memory before they go to a temporary file
GAP = 64 << 10  # bytes that may be read in vain to save a range


def write_all(fd: int, data: bytes, offset: int) -> int:
    """pwrite all of `data`; returns the offset behind it."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
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

    def put(self, sealed: Sequence[bytes]) -> None:
        """Append chunks."""
        end = write_all(self.file.fileno(), b"".join(sealed), self.size)
        for chunk in sealed:
            self.index.extend((self.size, len(chunk)))
            self.size += len(chunk)
        assert end == self.size

    def mark(self) -> tuple[int, int]:
        return self.size, len(self.index)

    def rollback(self, mark: tuple[int, int]) -> None:
        self.size = mark[0]
        del self.index[mark[1]:]
        os.ftruncate(self.file.fileno(), self.size)

    def finish(self) -> None:
        """Write the index and flush the file to disk."""
        self.size = write_all(self.file.fileno(), seal(np.frombuffer(self.index, "<u8").tobytes()), self.size)
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
        self.put([seal(encode_rows(rows[i:i + count])) for i in range(0, whole, count)])
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
            self.put([seal(encode_rows(last))])
            self.pending = self._empty()
        super().finish()


class FrameWriter(ShardWriter):
    """The rgb shard: each video's even frames stream to the file, its odd ones wait and follow at its end."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.spool = tempfile.SpooledTemporaryFile(SPOOL, dir=path.parent)
        self.spooled = 0
        self.video = 0  # the first chunk of the video under way

    def add(self, jpegs: Sequence[bytes]) -> None:
        """Append the next frames of the video under way."""
        sealed = [seal(jpeg) for jpeg in jpegs]
        odd = (self.chunks - self.video) % 2
        end = write_all(self.file.fileno(), b"".join(sealed[odd::2]), self.size)
        self.spool.write(b"".join(sealed[1 - odd::2]))
        for chunk in sealed:
            # An odd frame's offset is that in the spool until `end_video` knows where the spool lands.
            self.index.extend((self.spooled if odd else self.size, len(chunk)))
            self.spooled, self.size = self.spooled + odd * len(chunk), self.size + (1 - odd) * len(chunk)
            odd = 1 - odd
        assert end == self.size

    def end_video(self) -> None:
        for i in range(2 * self.video + 2, len(self.index), 4):
            self.index[i] += self.size
        self.spool.seek(0)
        while block := self.spool.read(1 << 20):
            self.size = write_all(self.file.fileno(), block, self.size)
        self._next_video()

    def rollback(self, mark) -> None:
        super().rollback(mark)
        self._next_video()

    def _next_video(self) -> None:
        self.spool.seek(0)
        self.spool.truncate()
        self.spooled, self.video = 0, self.chunks

    def close(self) -> None:
        self.spool.close()
        super().close()


@dataclass
class ReadCounts:
    """What was read: ranges (system calls), bytes_read, and bytes_used (those of the chunks asked for)."""

    ranges: int = 0
    bytes_read: int = 0
    bytes_used: int = 0


class ShardReader:
    """Chunks of one shard file by ranges.

    chunks: how many the shard holds; size: bytes of the file, or None.
    Raises StoreError when the file is missing, has another size, or its index does not match its checksum.
    """

    def __init__(self, path: Path, chunks: int, size: int | None = None):
        self.path = path
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

    def pread(self, start: int, stop: int) -> bytes:
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

    def close(self) -> None:
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
