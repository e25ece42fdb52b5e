"""Encodings against the obvious versions."""

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from shared.store.chunks import (
    crc32c,
    decode_edges,
    decode_jpeg,
    decode_rows,
    encode_jpeg,
    encode_rows,
    half,
    quantise_edges,
    seal,
    unseal,
)


def slow_crc32c(data: bytes) -> int:
    """CRC-32C bit by bit (Castagnoli polynomial, reflected)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@given(st.binary(max_size=40), st.integers(0, 40))
def test_crc32c_is_the_bitwise_one_and_can_go_on(data, cut):
    assert crc32c(data) == slow_crc32c(data)
    assert crc32c(data[cut:], crc32c(data[:cut])) == crc32c(data)


@given(st.binary(max_size=60), st.integers(0, 8 * 64 - 1))
def test_any_flipped_bit_is_noticed(payload, bit):
    chunk = np.frombuffer(seal(payload), np.uint8).copy()
    assert unseal(chunk).tobytes() == payload
    chunk[bit // 8 % len(chunk)] ^= 1 << bit % 8
    with pytest.raises(ValueError, match="checksum"):
        unseal(chunk)


def test_a_chunk_shorter_than_its_checksum_is_noticed():
    for size in range(4):
        with pytest.raises(ValueError, match="checksum"):
            unseal(np.zeros(size, np.uint8))


@given(st.lists(st.floats(0, 20, width=32), min_size=1, max_size=50))
def test_edges_quantise_like_the_float64_formula(values):
    values = np.array(values, np.float32)
    exact = 255 * np.sqrt(np.minimum(values.astype(np.float64), 10) / 10)
    q = quantise_edges(values)
    assert q.dtype == np.uint8
    assert np.abs(q - exact).max() <= 0.5 + 1e-4
    # The step of the square-root scale at value v is 2 sqrt(10 v) / 255, half of it is the most one can lose.
    bounded = np.minimum(values, 10)
    assert (np.abs(decode_edges(q) - bounded) <= np.sqrt(10 * bounded) / 255 + 10 / 4 / 255 ** 2 + 1e-5).all()


def test_edges_round_trip_every_code():
    codes = np.arange(256, dtype=np.uint8)
    assert (quantise_edges(decode_edges(codes)) == codes).all()
    assert decode_edges(np.uint8(0)) == 0 and decode_edges(np.uint8(255)) == 10


def test_edges_leave_their_input_alone():
    values = np.full((2, 3), 20, np.float32)
    quantise_edges(values)
    assert (values == 20).all()


def test_half_never_makes_infinity_of_a_finite_number():
    values = np.array([0, 1e-9, 65504, 65520, 1e30, -1e30], np.float32)
    assert half(values).tolist() == [0, 0, 65504, 65504, 65504, -65504]


def test_half_rounds_like_numpy_at_every_half_every_tie_and_beside_them():
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)  # every finite one from 0 up
    ties = (halves[1:] + halves[:-1]) / 2
    values = np.concatenate([halves, ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(0))])
    values = np.concatenate([values, -values]).reshape(2, -1)
    assert np.array_equal(half(values).view(np.uint16), values.astype(np.float16).view(np.uint16))


@given(st.lists(st.floats(-65504, 65504, width=32), max_size=40))
def test_half_rounds_like_numpy(values):
    values = np.array(values, np.float32)
    assert np.array_equal(half(values).view(np.uint16), values.astype(np.float16).view(np.uint16))


def test_half_of_a_view_of_another_type():
    values = np.arange(24, dtype=np.float64).reshape(2, 3, 4)[:, ::2, ::-1]
    assert np.array_equal(half(values), values)


def test_rows_round_trip_and_refuse_another_size():
    rows = np.random.default_rng(0).random((16, 3, 5)).astype("<f2")
    payload, out = encode_rows(rows), np.empty((16, 3, 5), "<f2")
    decode_rows(payload, out)
    assert (out == rows).all()
    for wrong in (np.empty((15, 3, 5), "<f2"), np.empty((17, 3, 5), "<f2")):
        with pytest.raises(ValueError):
            decode_rows(payload, wrong)


def test_jpeg_is_420_at_the_quality_asked_for():
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    payload = encode_jpeg(frame, 85)
    assert simplejpeg.decode_jpeg_header(payload)[:2] == (48, 64)
    assert simplejpeg.decode_jpeg_header(payload)[3] == "420"
    assert len(encode_jpeg(frame, 50)) < len(payload) < len(encode_jpeg(frame, 95))
    out = np.empty((48, 64, 3), np.uint8)
    decode_jpeg(payload, out)
    assert (out == simplejpeg.decode_jpeg(payload, "RGB")).all()


@pytest.mark.parametrize("shape", [(40, 64, 3), (48, 72, 3), (64, 48, 3)])
def test_a_jpeg_of_another_size_is_refused(shape):
    payload = encode_jpeg(np.zeros((48, 64, 3), np.uint8), 85)
    with pytest.raises(ValueError):
        decode_jpeg(payload, np.empty(shape, np.uint8))
