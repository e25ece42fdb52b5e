"""`motionpack.jpeg` for zarr-python: one RGB frame a chunk. Only inspection needs it; our own reader does not.

Zarr finds it through the entry point group `zarr.codecs`, or after `import shared.store.codecs`.
"""

from dataclasses import dataclass

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.common import parse_named_configuration
from zarr.registry import register_codec

from shared.store.chunks import decode_jpeg, encode_jpeg
from shared.store.layout import JPEG_CODEC, JPEG_QUALITY


@dataclass(frozen=True)
class JPEGCodec(ArrayBytesCodec):
    """(1, H, W, 3) uint8 RGB <-> JPEG, 4:2:0."""

    is_fixed_size = False

    quality: int = JPEG_QUALITY
    subsampling: str = "420"

    def __post_init__(self):
        if self.subsampling != "420" or not 1 <= self.quality <= 100:
            raise ValueError(f"{JPEG_CODEC} with quality {self.quality} and subsampling {self.subsampling!r}; "
                             "expected 1 to 100 and '420'")

    @classmethod
    def from_dict(cls, data):
        _, configuration = parse_named_configuration(data, JPEG_CODEC, require_configuration=False)
        return cls(**(configuration or {}))

    def to_dict(self):
        return {"name": JPEG_CODEC, "configuration": {"quality": self.quality, "subsampling": self.subsampling}}

    def validate(self, *, shape, dtype, chunk_grid) -> None:
        if len(shape) != 4 or shape[3] != 3 or dtype.to_native_dtype() != np.uint8:
            raise ValueError(f"{JPEG_CODEC} holds uint8 (T, H, W, 3), not {dtype} {shape}")

    def _decode_sync(self, chunk_bytes, chunk_spec):
        out = np.empty(chunk_spec.shape, np.uint8)
        decode_jpeg(chunk_bytes.as_numpy_array(), out.reshape(chunk_spec.shape[1:]))
        return chunk_spec.prototype.nd_buffer.from_numpy_array(out)

    def _encode_sync(self, chunk_array, chunk_spec):
        frame = np.ascontiguousarray(chunk_array.as_numpy_array()).reshape(chunk_spec.shape[1:])
        return chunk_spec.prototype.buffer.from_bytes(encode_jpeg(frame, self.quality))

    async def _decode_single(self, chunk_bytes, chunk_spec):
        return self._decode_sync(chunk_bytes, chunk_spec)

    async def _encode_single(self, chunk_array, chunk_spec):
        return self._encode_sync(chunk_array, chunk_spec)

    def compute_encoded_size(self, input_byte_length, chunk_spec):
        raise NotImplementedError("a JPEG has no fixed size")


register_codec(JPEG_CODEC, JPEGCodec)
