"""The picture of a frame: every pixel format against a reference, orientation that is told once, pixels not square."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import Interpolation, VideoReformatter

from shared.videos.decode import good_runs, open_video, probe
from tests.shared.videos.test_decode import count_frames, read, read_damaged, scene, turned, write

EXACT = Interpolation.AREA | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND

UNREAD = "rgb4", "bgr4"  # two pixels a byte: swscale does not read them, and the video fails with that reason


# --- pixel formats

def raw(path, frame):
    """The frame's own bytes in a file; None where no file can say what they are."""
    try:
        write(path, [frame], "rawvideo", frame.format.name)
        with av.open(str(path)) as container:
            return path if next(container.decode(video=0)).format.name == frame.format.name else None
    except (OSError, ValueError):
        return None


def filled(name, on, height=48, width=64):
    """A frame of which every bit is set, or none is."""
    frame = av.VideoFrame(width, height, name)
    bits = frame.format.components[0].bits
    word = bytes([255 * on]) * 2
    if 8 < bits < 16 and name.startswith(("gbr", "gray")) and "msb" not in name:   # the others of 16 bits stay unset
        word = (on * (2 ** bits - 1)).to_bytes(2, "big" if name.endswith("be") else "little")
    for plane in frame.planes:
        plane.update(word * (plane.buffer_size // 2))
    return frame


def software_formats():
    for name in sorted(av.video.format.names):
        try:
            filled(name, False)
        except (OSError, ValueError):
            continue   # pictures in a device's memory
        yield name


def test_every_pixel_format_gives_its_picture(tmp_path):
    """Written by swscale from 16 bits, read back, against the picture itself; and blackest and whitest of all."""
    truth = scene(1, 64, 96, blur=8)[0]
    deep = av.VideoFrame.from_ndarray(truth.astype(np.uint16) * 257, "rgb48le")
    tried, poor = set(), {}
    for name in software_formats():
        try:
            frame = VideoReformatter().reformat(deep, 96, 64, name, interpolation=EXACT, threads=1)
        except OSError:
            continue   # swscale does not write it
        if name in UNREAD or min(component.bits for component in frame.format.components) < 8:
            continue   # what swscale writes of under 8 bits is no reference
        if (path := raw(tmp_path / "a.nut", frame)) is None:
            continue
        tried.add(name)
        kind = frame.format
        grey = len([c for c in kind.components if not c.is_alpha]) == 1 and not kind.has_palette
        wanted = (truth @ [0.299, 0.587, 0.114])[..., None] if grey else truth
        step = max(256 / 2 ** component.bits for component in kind.components)
        got = read(path)[0].astype(float)
        if np.abs(got - wanted).mean() > 1 + step / 2 or abs((got - wanted).mean()) > 1 + step / 16:
            poor[name] = np.abs(got - wanted).mean(), (got - wanted).mean()
    assert len(tried) > 120 and {"yuv410p", "nv12", "uyvy422", "gbrpf32le", "yuv444p16be", "gray12le"} <= tried
    assert not poor.keys() - {"xyz12le", "xyz12be"}, poor   # DCI's XYZ has no value for the blue of sRGB's white


def test_black_is_0_and_white_is_255(tmp_path):
    """Formats of which all bits unset are black, all set white: RGB of every depth, grey, Bayer, palettes."""
    tried = set()
    for name in software_formats():
        kind = av.VideoFormat(name)
        if "f16" in name or "f32" in name or name in UNREAD or name.endswith("4_byte") or not (
                kind.is_rgb or kind.has_palette or name.startswith(("gray", "ya"))):
            continue
        for on in (False, True):
            if path := raw(tmp_path / "a.nut", filled(name, on)):
                tried.add(name)
                assert np.abs(read(path)[0].astype(int) - 255 * on).max() <= 1, (name, on)
    assert len(tried) > 60


@pytest.mark.parametrize("name, shifts, bits", [
    ("rgb555le", (10, 5, 0), (5, 5, 5)), ("bgr555be", (0, 5, 10), (5, 5, 5)), ("rgb565le", (11, 5, 0), (5, 6, 5)),
    ("bgr565le", (0, 5, 11), (5, 6, 5)), ("rgb444be", (8, 4, 0), (4, 4, 4)), ("bgr444le", (0, 4, 8), (4, 4, 4))])
def test_rgb_of_15_and_16_bits_against_its_definition(tmp_path, name, shifts, bits):
    rng = np.random.default_rng(0)
    values = [rng.integers(0, 2 ** n, (48, 64)) for n in bits]
    words = sum(value << shift for value, shift in zip(values, shifts))
    frame = av.VideoFrame(64, 48, name)
    rows = np.zeros((48, frame.planes[0].line_size // 2), ">u2" if name.endswith("be") else "<u2")
    rows[:, :64] = words
    frame.planes[0].update(rows.tobytes())
    wanted = np.stack([value * 255 / (2 ** n - 1) for value, n in zip(values, bits)], -1)
    path = raw(tmp_path / "a.nut", frame)
    assert np.abs(read(path)[0] - wanted).max() <= 1
    small = read(path, short_side=24)[0]     # scaled before it is stretched
    assert np.abs(small - wanted.reshape(24, 2, 32, 2, 3).mean((1, 3))).max() <= 2.5
    before = read(path, reading=1)[0]        # as stores of before have it
    assert np.abs(before - np.stack([value << 8 - n for value, n in zip(values, bits)], -1)).max() <= 1


def test_a_format_that_swscale_gets_wrong_is_an_error_and_no_wrong_grey(tmp_path):
    path = write(tmp_path / "grey.exr", [filled("grayf32le", False)], "exr", "grayf32le")
    frames, error = read_damaged(path)
    assert frames is None and error.reason.startswith("grayf32le pixels with colour matrix") and error.stage == "decode"


# --- orientation

def told_once(source, path, settings):
    """A copy whose first picture carries the display orientation, and no other."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        tell = BitStreamFilterContext(f"h264_metadata=display_orientation=insert:{settings}", old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            for out in (tell.filter(packet) if number == 0 else [packet]):
                if out.size:
                    out.stream = stream
                    new.mux(out)
    return path


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts", "mov"])
@pytest.mark.parametrize("settings", ["rotate=90", "rotate=180", "rotate=270", "flip=horizontal",
                                      "rotate=90:flip=vertical"])
def test_an_orientation_told_once_holds(tmp_path, container, settings):
    options = {"qp": "9", "g": "6"}
    plain = write(tmp_path / f"plain.{container}", scene(12, 64, 96), "libx264", "yuv420p", options=options)
    path = told_once(plain, tmp_path / f"told.{container}", settings)
    upright = read(plain)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        assert [bool(frame.side_data.get("DISPLAYMATRIX")) for frame in frames[:3]] == [True, False, False]
        turn = frames[0].rotation // 90
    got = read(path)
    assert got.shape[0] == 12 == count_frames(path) and len(good_runs(path)) == 1
    turned = np.rot90(upright, turn, (1, 2))
    flips = [turned, turned[:, ::-1], turned[:, :, ::-1]]
    assert any(np.array_equal(got, picture) for picture in (flips[1:] if "flip" in settings else flips[:1]))
    assert (probe(path).source_height, probe(path).source_width) == got.shape[1:3]


# --- pixels that are not square

def shaped(path, aspect, height=64, width=96, codec="libx264", matrix=None):
    """A film whose stream says that a pixel is `aspect` as wide as high."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25, options={"qp": "5"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for picture in scene(4, height, width):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        output.mux(stream.encode())
    return path


@pytest.mark.parametrize("name, codec", [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.ts", "libx264"),
                                         ("a.h264", "libx264"), ("a.avi", "mpeg4"), ("a.mov", "mpeg4"),
                                         ("a.mpg", "mpeg2video")])
@pytest.mark.parametrize("aspect, sides", [(Fraction(4, 3), (64, 128)), (Fraction(3, 4), (85, 96))])
def test_the_narrower_side_of_a_pixel_is_widened(tmp_path, name, codec, aspect, sides):
    path = shaped(tmp_path / name, aspect, codec=codec)
    if codec == "mpeg2video":   # which knows some shapes of the whole picture only, and takes the nearest
        with av.open(str(path)) as container:
            aspect = container.streams.video[0].sample_aspect_ratio
        sides = (64, round(96 * aspect)) if aspect > 1 else (round(64 / aspect), 96)
    told = probe(path)
    assert (told.source_height, told.source_width) == sides != (64, 96)
    note = f"pixels of {aspect.numerator}:{aspect.denominator} made square"
    assert told.note == note and good_runs(path)[0].height == sides[0]
    with open_video(path) as video:
        assert video.note == note and video.frame_size == tuple(side // 8 * 8 for side in sides)
        frames = np.concatenate(list(video))
    plain = read(path, square_pixels=False).astype(float)
    assert plain.shape[1:3] == (64, 96)
    # What is wider is the same picture.
    assert np.abs(frames.mean((1, 2)) - plain.mean((1, 2))).max() < 3
    small = read(path, short_side=32)
    assert small.shape[1:3] == tuple(int(side * 32 / min(sides) + 0.5) // 8 * 8 for side in sides)


@pytest.mark.parametrize("pasp, sides, note", [
    ((2, 1), (64, 192), "pixels of 2:1 made square"), ((1, 2), (128, 96), "pixels of 1:2 made square"),
    ((1, 1), (64, 96), ""), ((1, 255), (64, 96), "pixels of 1:255 taken as square")])
def test_the_container_has_the_last_word(tmp_path, pasp, sides, note):
    path = shaped(tmp_path / "a.mp4", Fraction(4, 3))
    data, box = path.read_bytes(), b"pasp" + struct.pack(">II", 4, 3)
    assert data.count(box) == 1
    path.write_bytes(data.replace(box, b"pasp" + struct.pack(">II", *pasp)))
    told = probe(path)
    assert (told.source_height, told.source_width, told.note) == (*sides, note)


def test_a_turned_film_is_widened_as_it_was_taken(tmp_path):
    path = turned(shaped(tmp_path / "a.mp4", Fraction(4, 3)), (0, 1, -1, 0))
    told, frames = probe(path), read(path)
    assert (told.source_height, told.source_width) == (128, 64) == frames.shape[1:3]
    np.testing.assert_array_equal(frames, np.rot90(read(tmp_path / "a.mp4"), -1, (1, 2)))


def test_the_frames_of_square_pixels_are_those_of_before(tmp_path):
    path = write(tmp_path / "a.mp4", scene(4, 64, 96), "libx264", "yuv420p")
    for short_side in (256, 40):
        np.testing.assert_array_equal(read(path, short_side=short_side),
                                      read(path, short_side=short_side, square_pixels=False, reading=1))
