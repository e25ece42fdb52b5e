"""The bytes of one inner chunk: JPEG or zstd, sealed by its CRC-32C; and the two lossy encodings of the maps."""

import google_crc32c
import numpy as np
import simplejpeg
from numcodecs import zstd

from shared.store.layout import EDGE_MAX, HALF_MAX, ZSTD_LEVEL

HALF_BLOCK = 16384  # values that `half` converts at a time, few enough for the cache


def crc32c(data, start: int = 0) -> int:
    """CRC-32C of bytes or of a contiguous array, going on from `start`."""
    return google_crc32c.extend(start, data)


def checksum(payload: bytes) -> bytes:
    """The four bytes that Zarr's crc32c codec puts behind a payload."""
    return google_crc32c.value(payload).to_bytes(4, "little")


def seal(payload: bytes) -> bytes:
    """The payload followed by its CRC-32C."""
    return payload + checksum(payload)


def unseal(chunk: np.ndarray) -> np.ndarray:
    """(n,) uint8 -> the n - 4 bytes of the payload, a view. Raises ValueError on a bad checksum."""
    payload = chunk[:-4]
    if len(chunk) < 4 or google_crc32c.value(payload) != int.from_bytes(chunk[-4:].tobytes(), "little"):
        raise ValueError("bad checksum")
    return payload


def encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
    """(H, W, 3) uint8 RGB -> JPEG, 4:2:0. Releases the interpreter lock."""
    return simplejpeg.encode_jpeg(frame, quality, "RGB", "420")


def decode_jpeg(payload, out: np.ndarray) -> None:
    """JPEG -> `out` (H, W, 3) uint8 RGB, C-contiguous. Raises ValueError for no JPEG or one of another size."""
    frame = simplejpeg.decode_jpeg(payload, "RGB", buffer=out)
    if frame.shape != out.shape:
        raise ValueError(f"the JPEG is {frame.shape[:2]}, expected {out.shape[:2]}")


def encode_rows(rows: np.ndarray) -> bytes:
    """An array in its stored dtype -> zstd."""
    return zstd.compress(np.ascontiguousarray(rows), ZSTD_LEVEL)


def decode_rows(payload, out: np.ndarray) -> None:
    """zstd -> `out`, C-contiguous, in the stored dtype. Raises ValueError when the size differs."""
    try:
        data = zstd.decompress(payload)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    if len(data) != out.nbytes:  # numcodecs would leave the rest of a larger `out` as it is
        raise ValueError(f"{len(data)} bytes, expected {out.nbytes}")
    out[...] = np.frombuffer(data, out.dtype).reshape(out.shape)


def half(values: np.ndarray) -> np.ndarray:
    """float32 -> float16, rounded to nearest even; what lies beyond +-65504 becomes +-65504 instead of infinity.

    numpy's own cast takes 30 times longer where results are subnormal (below 6e-5), as in the maps of still scenes;
    so normal numbers are rounded as integers here, and subnormal ones by adding 0.5, whose last bit is 2^-24.
    """
    values = np.ascontiguousarray(values, np.float32)
    if values.size and (values.max() > HALF_MAX or values.min() < -HALF_MAX):
        values = np.clip(values, -HALF_MAX, HALF_MAX)
    out = np.empty(values.shape, "<u2")
    bits, rounded = values.reshape(-1).view(np.uint32), out.reshape(-1)
    for start in range(0, bits.size, HALF_BLOCK):
        block = bits[start:start + HALF_BLOCK]
        magnitude = block & np.uint32(0x7FFFFFFF)
        subnormal = (magnitude.view(np.float32) + np.float32(0.5)).view(np.uint32)
        subnormal -= np.uint32(0x3F000000)  # the bits of 0.5
        normal = (magnitude >> 13) & np.uint32(1)  # a tie goes to the even one
        normal += magnitude
        normal += np.uint32(0xC8000FFF)  # the exponent's bias from 127 to 15, and just below half a unit
        normal >>= 13
        both = np.where(magnitude < np.uint32(113 << 23), subnormal, normal)
        both |= (block >> 16) & np.uint32(0x8000)
        rounded[start:start + HALF_BLOCK] = both
    return out.view("<f2")


def quantise_edges(values: np.ndarray) -> np.ndarray:
    """|gradient| in px/frame per px -> uint8 q with value = 10 (q/255)^2 (format 1); clipped to [0, 10]."""
    scaled = np.clip(values, 0, EDGE_MAX)
    scaled *= scaled.dtype.type(255.0 ** 2 / EDGE_MAX)
    return np.rint(np.sqrt(scaled, out=scaled), out=scaled).astype(np.uint8)


_EDGES = (EDGE_MAX * (np.arange(256) / 255.0) ** 2).astype(np.float32)


def decode_edges(q: np.ndarray) -> np.ndarray:
    """uint8 -> |gradient| float32, px/frame per px, in [0, 10]."""
    return _EDGES[q]
