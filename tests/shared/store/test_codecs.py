"""The JPEG codec inside plain zarr-python."""

import subprocess
import sys

import numpy as np
import pytest
import simplejpeg
import zarr
from zarr.codecs import Crc32cCodec

from shared.store.codecs import JPEGCodec


def test_zarr_writes_and_reads_through_the_codec(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 24, 32, 3), np.uint8)
    array = zarr.create_array(str(tmp_path / "a"), shape=frames.shape, dtype="u1", chunks=(1, 24, 32, 3),
                              serializer=JPEGCodec(quality=70), compressors=[Crc32cCodec()])
    array[:] = frames
    again = zarr.open_array(tmp_path / "a", mode="r")
    expected = [simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(f, 70, "RGB", "420"), "RGB") for f in frames]
    assert np.array_equal(again[:], np.stack(expected))
    assert np.array_equal(again[3, 5:9, 2:7], expected[3][5:9, 2:7])


@pytest.mark.parametrize("configuration", [{"quality": 0}, {"quality": 101}, {"subsampling": "444"}])
def test_settings_that_the_codec_does_not_have(configuration):
    with pytest.raises(ValueError, match="motionpack.jpeg"):
        JPEGCodec.from_dict({"name": "motionpack.jpeg", "configuration": configuration})


def test_arrays_that_are_no_rgb_frames(tmp_path):
    for shape, dtype in (((5, 24, 32), "u1"), ((5, 24, 32, 4), "u1"), ((5, 24, 32, 3), "u2")):
        with pytest.raises(ValueError, match="motionpack.jpeg holds uint8"):
            zarr.create_array(str(tmp_path / "a"), shape=shape, dtype=dtype, chunks=(1, *shape[1:]),
                              serializer=JPEGCodec())


def test_reading_does_not_import_zarr(request):
    """Loader workers start without zarr-python."""
    code = "import sys, shared.store.reader, shared.store.packs; sys.exit('zarr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=request.config.rootpath).returncode == 0
