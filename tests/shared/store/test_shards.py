"""Shard files: zarr-python is the oracle of writer and reader."""

import os

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

from shared.store.chunks import decode_rows, encode_rows, seal
from shared.store.layout import ArrayLayout, StoreError, document_bytes
from shared.store.shards import FrameWriter, ReadCounts, RowWriter, ShardReader, ShardWriter, write_all

dtypes = st.sampled_from(["u1", "<f2", "<f4", "<i4", "<i8"])
rows_shape = st.lists(st.integers(1, 5), max_size=3).map(tuple)


def layout(dtype, row, chunk_rows):
    dims = tuple(f"d{i}" for i in range(1 + len(row)))
    return ArrayLayout("a", dtype, dims, row, "frames", chunk_rows, {"units": "1"})


def values(seed, rows, row, dtype):
    raw = np.random.default_rng(seed).integers(0, 100, (rows, *row))
    return raw.astype(dtype) * (raw > 50).astype(dtype)  # many zeros, whole zero chunks too


def read_all(path, spec, rows):
    reader = ShardReader(path / spec.file, spec.chunks(rows))
    out = np.empty((spec.chunks(rows) * spec.chunk_rows, *spec.row), spec.dtype)
    counts = ReadCounts()
    for i, payload in enumerate(reader.read(np.arange(spec.chunks(rows)), counts)):
        decode_rows(payload, out[i * spec.chunk_rows:(i + 1) * spec.chunk_rows])
    reader.close()
    assert counts.ranges == 1 and counts.bytes_read == counts.bytes_used
    return out[:rows]


@settings(max_examples=60, deadline=None)
@given(dtypes, rows_shape, st.integers(1, 17), st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_zarr_reads_what_the_writer_streamed(tmp_path_factory, dtype, row, chunk_rows, appends):
    path, spec, rows = tmp_path_factory.mktemp("shard"), layout(dtype, row, chunk_rows), sum(appends)
    expected = values(rows, rows, row, dtype)
    (path / "a").mkdir()
    writer = RowWriter(path / spec.file, spec)
    at = 0
    for count in appends:
        writer.add(expected[at:at + count])
        at += count
        assert writer.rows == at
    writer.finish()
    (path / spec.metadata_file).write_bytes(document_bytes(spec.document(rows)))
    array = zarr.open_array(path / "a", mode="r")
    assert array.dtype == np.dtype(dtype)
    assert np.array_equal(array[:], expected)
    assert np.array_equal(read_all(path, spec, rows), expected)


@settings(max_examples=60, deadline=None)
@given(dtypes, rows_shape, st.integers(1, 17), st.integers(1, 80))
def test_the_reader_reads_what_zarr_wrote(tmp_path_factory, dtype, row, chunk_rows, rows):
    path, spec = tmp_path_factory.mktemp("shard"), layout(dtype, row, chunk_rows)
    expected = values(rows, rows, row, dtype)
    extent = spec.document(rows)["chunk_grid"]["configuration"]["chunk_shape"]
    array = zarr.create_array(
        str(path / "a"), shape=expected.shape, dtype=dtype, chunks=(chunk_rows, *row), shards=tuple(extent),
        fill_value=0, serializer=BytesCodec(), compressors=[ZstdCodec(level=3), Crc32cCodec()],
        config={"write_empty_chunks": True},
        chunk_key_encoding={"name": "default", "separator": "."})
    array[:] = expected
    assert np.array_equal(read_all(path, spec, rows), expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 9), st.booleans()), min_size=1, max_size=8))
def test_even_frames_lie_before_odd_ones_and_aborts_leave_no_trace(tmp_path_factory, videos):
    """videos: (frames, frames an append, kept or aborted)."""
    path = tmp_path_factory.mktemp("rgb") / "rgb"
    path.mkdir()
    writer, expected, physical = FrameWriter(path / "c"), [], []
    for v, (frames, window, kept) in enumerate(videos):
        mark = writer.mark()
        jpegs = [f"{v}.{t}".encode() * (1 + (v + t) % 3) for t in range(frames)]
        for a in range(0, frames, window):
            writer.add(jpegs[a:a + window])
        if kept:
            writer.end_video()
            expected += jpegs
            physical += jpegs[::2] + jpegs[1::2]
        else:
            writer.rollback(mark)
    writer.finish()
    writer.close()
    assert (path / "c").read_bytes().startswith(b"".join(map(seal, physical)))
    if expected:
        reader = ShardReader(path / "c", len(expected))
        payloads = reader.read(np.arange(len(expected)), ReadCounts())
        assert [payload.tobytes() for payload in payloads] == expected
        assert reader.data_size == sum(len(jpeg) + 4 for jpeg in physical)


def test_a_large_video_spools_to_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("shared.store.shards.SPOOL", 1000)
    (tmp_path / "rgb").mkdir()
    writer = FrameWriter(tmp_path / "rgb" / "c")
    jpegs = [bytes([t]) * 100 for t in range(99)]
    writer.add(jpegs[:50])
    assert writer.spooled == 25 * 104
    writer.rollback((0, 0))
    for a in range(0, 99, 9):
        writer.add(jpegs[a:a + 9])
    writer.end_video()
    writer.add(jpegs[:3])
    writer.end_video()
    writer.finish()
    writer.close()
    reader = ShardReader(tmp_path / "rgb" / "c", 102)
    assert [p.tobytes() for p in reader.read(np.arange(102), ReadCounts())] == jpegs + jpegs[:3]
    assert {path.name for path in (tmp_path / "rgb").iterdir()} == {"c"}


def test_partial_writes_go_on(tmp_path, monkeypatch):
    """The kernel may take any number of bytes and at most some buffers of a call."""
    real, calls = os.pwritev, []

    def stingy(fd, parts, offset):
        calls.append(len(parts))
        return real(fd, [b"".join(parts)[:7]], offset)
    monkeypatch.setattr(os, "pwritev", stingy)
    monkeypatch.setattr("shared.store.shards.PARTS", 3)
    parts = [b"a" * 5, b"", b"b" * 9, b"c" * 7, b"d"]
    with open(tmp_path / "x", "wb") as file:
        assert write_all(file.fileno(), parts, 2) == 24
    assert (tmp_path / "x").read_bytes() == b"\0\0" + b"".join(parts)
    assert max(calls) == 3 and len(calls) >= 4


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 5), st.integers(1, 7))
def test_rows_rollback_restores_the_unfinished_chunk(tmp_path_factory, appends, aborted_at, chunk_rows):
    path, spec = tmp_path_factory.mktemp("shard"), layout("<f2", (2, 3), chunk_rows)
    (path / "a").mkdir()
    writer, kept = RowWriter(path / spec.file, spec), []
    for i, count in enumerate(appends):
        part, mark = values(i, count, (2, 3), "<f2"), writer.mark()
        if i == aborted_at:
            writer.add(part)
            writer.add(part + 1)
            writer.rollback(mark)
        else:
            writer.add(part)
            kept.append(part)
    writer.finish()
    if kept:
        assert np.array_equal(read_all(path, spec, len(np.concatenate(kept))), np.concatenate(kept))


@pytest.fixture
def shard(tmp_path):
    """Ten chunks of 100 to 109 bytes and their checksums."""
    chunks = [bytes([i]) * (100 + i) for i in range(10)]
    writer = ShardWriter(tmp_path / "c")
    writer.put(chunks)
    writer.finish()
    return tmp_path / "c", chunks


@pytest.mark.parametrize("wanted, gap, ranges", [
    ([2, 3, 4], 0, 1), ([4, 2, 3], 0, 1), ([0, 9], 0, 2), ([0, 9], 10_000, 1), ([0, 2, 4], 104, 3), ([0, 2, 4], 107, 1),
    ([5, 5, 5], 0, 1), ([], 0, 0)])
def test_near_ranges_are_read_as_one(shard, wanted, gap, ranges):
    path, chunks = shard
    counts, reader = ReadCounts(), ShardReader(path, 10)
    assert [p.tobytes() for p in reader.read(np.array(wanted, int), counts, gap)] == [chunks[i] for i in wanted]
    assert counts.ranges == ranges
    assert counts.bytes_used == sum(len(chunks[i]) + 4 for i in set(wanted)) <= counts.bytes_read
    if gap == 0:
        assert counts.bytes_read == counts.bytes_used


def test_every_flipped_bit_of_the_index_is_noticed(shard):
    path, chunks = shard
    good = path.read_bytes()
    for at in range(len(good) - (16 * 10 + 4), len(good)):
        for bit in range(8):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1:])
            with pytest.raises(StoreError, match="index: bad checksum"):
                ShardReader(path, 10)


def test_every_flipped_byte_of_the_data_is_noticed(shard):
    path, chunks = shard
    good = path.read_bytes()
    for at in range(len(good) - (16 * 10 + 4)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1:])
        with pytest.raises(StoreError, match=r"chunk \d: bad checksum"):
            ShardReader(path, 10).read(np.arange(10), ReadCounts())


@pytest.mark.parametrize("size", [0, 3, 100, 1208])
def test_a_truncated_shard_is_noticed(shard, size):
    path, _ = shard
    whole = path.read_bytes()
    assert len(whole) == 1045 + 40 + 164
    path.write_bytes(whole[:size])
    with pytest.raises(StoreError):
        ShardReader(path, 10)
    with pytest.raises(StoreError, match=f"{size} bytes, expected 1249"):
        ShardReader(path, 10, size=1249)


def test_another_number_of_chunks_or_no_file_is_noticed(shard, tmp_path):
    with pytest.raises(StoreError):
        ShardReader(shard[0], 9)
    with pytest.raises(StoreError, match="No such file"):
        ShardReader(tmp_path / "none", 9)


def test_zarr_pads_the_last_chunk_as_we_do(tmp_path):
    spec = layout("<f4", (3,), 8)
    (tmp_path / "a").mkdir()
    writer = RowWriter(tmp_path / spec.file, spec)
    writer.add(np.ones((3, 3), "<f4"))
    writer.finish()
    payload = ShardReader(tmp_path / spec.file, 1).read(np.array([0]), ReadCounts())[0]
    padded = np.zeros((8, 3), "<f4")
    padded[:3] = 1
    assert payload.tobytes() == encode_rows(padded)
