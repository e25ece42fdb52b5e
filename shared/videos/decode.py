"""Video files -> RGB frames (PyAV).

T frames, HxW pixels. Every scaler runs on one thread, as every decoder does (shared.videos.streams).
"""

import errno
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import chain

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from shared.cli import plural
from shared.videos.files import Drawn, VideoError, VideoFile, size_of, words
from shared.videos.streams import ASSUMED_FPS, READING, Frames, Source, count_packets, open_frames

MIN_SIDE = 16  # px; TV-L1's coarsest scale needs this much
MIN_BYTES_PER_FRAME = 8  # container overhead alone; bounds what a damaged header may claim
SMALL = 1 << 16  # bytes; in a file so small a frame may take any number of them
ESTIMATES = "duration", "bytes"  # what a probe's count rests on where it is none
MAX_ASPECT = 8  # of a pixel, either way; beyond it a header is wrong
UNSPECIFIED_MATRIX, RESERVED_MATRIX = 2, 3  # ISO/IEC 23091-2, MatrixCoefficients
WHITE = {1: 255, 2: 255, 3: 252, 4: 240, 5: 248, 6: 252}  # what swscale makes of RGB's largest value of so many bits
UNREADABLE = "grayf", "yaf"  # swscale takes these floating-point greys for limited range, or ends the process

# Full chroma and accurate rounding: without them swscale is about 1.3 grey levels dark and halves the chroma's width.
# Bit-exact keeps its SIMD paths from giving different pixels on different processors.
SCALER = (Interpolation.AREA | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
          | Interpolation.ACCURATE_RND | Interpolation.BITEXACT)
SUBSAMPLED = "yuv420p", "yuv422p"  # limited range, 8 bits: nearly all videos


@dataclass(frozen=True)
class Probe:
    """What a file says of itself; estimates for a plan, never the truth of its frames.

    duration_s in seconds, fps in frames/s, source sides in px as displayed (rotated, with square pixels).
    basis: what `frames` rests on: `count` in the headers, `duration` times rate, or `packets` or `bytes` of the file.
    """

    frames: int
    duration_s: float
    fps: float
    source_height: int
    source_width: int
    note: str = ""
    basis: str = "count"


@dataclass(frozen=True)
class GoodRun:
    """Good frames in a row, of one size. first: the number of the first in the file; height, width: px as displayed."""

    first: int
    frames: int
    height: int
    width: int


def frame_size(source_height: int, source_width: int, short_side: int = 256, multiple: int = 8) -> tuple[int, int]:
    """(H, W) of the frames to keep, px: scaled down to `short_side`, then cropped to multiples of `multiple`.

    Never enlarged. Raises VideoError where a side ends up under 16 px.
    """
    height, width = (side - side % multiple for side in _scaled(source_height, source_width, short_side))
    if min(height, width) < MIN_SIDE:
        raise VideoError(f"frames of {source_height}x{source_width} px become {height}x{width}; "
                         f"at least {MIN_SIDE}x{MIN_SIDE} is needed", "probe")
    return height, width


def _scaled(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Sides in px after scaling the short one down to `short_side`, aspect kept with rounding."""
    short = min(height, width)
    if short <= short_side:
        return height, width
    return tuple((side * short_side + short // 2) // short for side in (height, width))


@contextmanager
def open_video(path: VideoFile, short_side: int = 256, multiple: int = 8, window: int = 64, square_pixels: bool = True,
               reading: int = READING, first: int = 0, wanted: Container[int] | None = None) -> Iterator["Decoder"]:
    """A `Decoder` of the file's video stream, closed on leaving. It reads one run of good frames: that which holds the
    frame number `first` of the file, from there on, or the next one; of it only those of `wanted`, numbered from the
    run's first, where it is given.

    Raises VideoError: no such file, no video, no such frame, or frames too small.
    """
    if isinstance(path, Drawn):
        with path.open(window) as drawn:
            yield drawn
        return
    with open_frames(path, reading) as (frames, numbered):
        yield Decoder(frames, numbered, short_side, multiple, window, square_pixels, reading, first, wanted)


class Decoder:
    """Iterates once over a run of good frames, in windows (n, H, W, 3) uint8 RGB, 1 <= n <= `window`; where only some
    are wanted, the others are decoded and counted, and an empty window says now and then that it is at work.

    Frames are those a full decode gives, in display order, none repeated or dropped for the sake of a rate. Pixels
    that are not square are made so, by widening their narrower side (square_pixels). Matrix and range are the
    stream's own; unspecified ones are read as ffmpeg does: BT.601, limited range (full for JPEG and RGB formats).
    Rotation and mirroring by the display matrix are applied.
    Memory: one window, the one the caller still holds, and the codec's reference frames.

    Where the run ends by damage after n frames the good ones are yielded first, then VideoError is raised with
    `.frames` = n; so too where size or orientation changes in mid-stream.
    fps in frames/s; source_height, source_width in px as displayed; frame_size (H, W); first: the number in the file
    of the run's first frame; frames: yielded or waiting so far; note: what was odd, complete after the last window.
    """

    def __init__(self, frames: Frames, numbered: Iterator, short_side: int, multiple: int, window: int,
                 square_pixels: bool, reading: int, first: int, wanted: Container[int] | None):
        self.window, self.wanted = window, wanted
        self.frames = self.corrupt = 0
        self.fps = frames.source.fps or ASSUMED_FPS
        self.first, frame = next(((number, frame) for number, frame in numbered if number >= first), (0, None))
        if frame is None:
            raise VideoError(f"no good frame from number {first} on", "decode")
        self._file, self._numbered = frames, chain([(self.first, frame)], numbered)
        self._coded, self._orientation = (frame.height, frame.width), frames.orientation
        aspect, aspect_note = _pixel_aspect(frames.source) if square_pixels else (Fraction(1), "")
        square = _squared(*self._coded, aspect)
        self.source_height, self.source_width = _turned(*square, self._orientation)
        self.frame_size = frame_size(self.source_height, self.source_width, short_side, multiple)
        self._scaled = _scaled(*square, short_side)
        self._shrinker, self._reformatter = VideoReformatter(), VideoReformatter()
        self._stretches = reading > 1
        why = "its longest run of good frames" if first else "what comes before cannot be decoded"
        self._notes = [frames.source.note, _rate_note(frames.source),
                       f"starts at frame {self.first}: {why}" if self.first else "", aspect_note]

    @property
    def note(self) -> str:
        corrupt = f"{plural(self.corrupt, 'frame')} flagged corrupt" if self.corrupt else ""
        return "; ".join(filter(None, (*self._notes, corrupt)))

    def __iter__(self) -> Iterator[np.ndarray]:
        shape = (self.window, *self.frame_size, 3)
        frames, filled = np.empty(shape, np.uint8), 0
        try:
            for number, frame in self._numbered:
                self._check(number, frame)
                if self.wanted is None or self.frames in self.wanted:
                    self._convert(frame, out=frames[filled])
                    filled += 1
                elif self.frames % self.window == 0:
                    yield frames[:0]
                self.frames += 1
                self.corrupt += frame.is_corrupt
                if filled == self.window:
                    yield frames
                    frames, filled = np.empty(shape, np.uint8), 0
        except VideoError:
            if filled:
                yield frames[:filled]
            raise
        if filled:
            yield frames[:filled]

    def _check(self, number: int, frame) -> None:
        """Raise VideoError where the run ends before this frame."""
        end = self.first + self.frames
        if frame is None or number != end:
            raise VideoError(f"damaged after {plural(end, 'frame')}: {self._file.damage}", "decode", self.frames)
        if ((frame.height, frame.width), self._file.orientation) != (self._coded, self._orientation):
            height, width = _turned(frame.height, frame.width, self._file.orientation)
            before = "x".join(map(str, _turned(*self._coded, self._orientation)))
            raise VideoError(f"size or orientation changes at frame {end}: {height}x{width} px after {before}",
                             "decode", self.frames)

    def _convert(self, frame, out: np.ndarray) -> None:
        pixels = frame.format.name
        if frame.colorspace == RESERVED_MATRIX:  # swscale refuses it; real files carry it by mistake
            frame.colorspace = UNSPECIFIED_MATRIX
        height, width = self._scaled
        try:
            if pixels.startswith(UNREADABLE):
                raise av.error.ArgumentError(errno.EINVAL, "no conversion is known")
            if (height, width) != self._coded and pixels in SUBSAMPLED:
                # Planes are scaled first, at 16 bits, and the small picture converted: about 0.6 of the time at 720p,
                # and no value moves by more than 1 grey level.
                frame = self._shrinker.reformat(frame, width, height, "yuv444p16le", interpolation=SCALER, threads=1)
            # Planar, which swscale writes in half the time of rgb24.
            gbr = self._reformatter.reformat(frame, width, height, "gbrp", interpolation=SCALER,
                                             dst_color_range=ColorRange.JPEG, threads=1)
        except av.error.FFmpegError as error:
            raise VideoError(f"{pixels} pixels with colour matrix {frame.colorspace} cannot become RGB: "
                             f"{words(error)}", "decode", self.frames) from error
        green, blue, red = (_turn(np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)[:, :width],
                                  self._orientation) for plane in gbr.planes)
        top, left = ((have - keep) // 2 for have, keep in zip(red.shape, self.frame_size))
        inside = np.s_[top:top + out.shape[0], left:left + out.shape[1]]
        planes = [np.ascontiguousarray(plane[inside]) for plane in (red, green, blue)]
        if self._stretches and (tables := _stretch(pixels)):
            planes = [cv2.LUT(plane, table) for plane, table in zip(planes, tables)]
        cv2.merge(planes, out)


def good_runs(path: VideoFile, square_pixels: bool = True, reading: int = READING) -> list[GoodRun]:
    """Every run of good frames of one size and orientation, in the file's order; all of it is decoded.

    Raises VideoError where there is none.
    """
    if isinstance(path, Drawn):
        whole = path.probe()
        return [GoodRun(0, whole.frames, whole.source_height, whole.source_width)]
    runs, shape = [], None
    with open_frames(path, reading) as (frames, numbered):
        for number, frame in numbered:
            if frame is None:
                break
            here = frame.height, frame.width, frames.orientation
            if here == shape and number == runs[-1].first + runs[-1].frames:
                runs[-1] = replace(runs[-1], frames=runs[-1].frames + 1)
                continue
            aspect = _pixel_aspect(frames.source)[0] if square_pixels else Fraction(1)
            runs.append(GoodRun(number, 1, *_turned(*_squared(*here[:2], aspect), frames.orientation)))
            shape = here
    return runs


def probe(path: VideoFile, square_pixels: bool = True, reading: int = READING) -> Probe:
    """Length, rate and size from the headers; the first frame too is decoded, since PyAV shows rotation only there.

    Where headers lack the frame count it is duration times rate. Where they lack both, or claim what does not go with
    the file's bytes, its packets are counted.
    Raises VideoError: no such file, no video, no first frame, or frames too small.
    """
    if isinstance(path, Drawn):
        return path.probe()
    with open_frames(path, reading) as (frames, numbered):
        _, first = next(numbered)
        source, stream = frames.source, frames.source.stream
        aspect, aspect_note = _pixel_aspect(source) if square_pixels else (Fraction(1), "")
        height, width = _turned(*_squared(first.height, first.width, aspect), frames.orientation)
        frame_size(height, width)  # refuses frames too small
        fps, duration = source.fps or ASSUMED_FPS, source.duration_s
        count, basis = (stream.frames, "count") if stream.frames > 0 else (round(duration * fps), "duration")
        notes = [source.note, _rate_note(source), aspect_note]
        size = size_of(path)
        # A fragmented MP4's count may be of its first fragment only.
        if round(duration * fps) > 2 * count or \
                not 0 < MIN_BYTES_PER_FRAME * count <= size <= max(count * first.height * first.width, SMALL):
            if count:
                notes.append(f"headers claim {plural(count, 'frame')}")
            counts, whole = count_packets(path, [stream.index])
            count, basis = max(1, counts[stream.index]), "packets" if whole else "bytes"
            duration = count / fps
    return Probe(count, duration or count / fps, fps, height, width, "; ".join(filter(None, notes)), basis)


def _rate_note(source: Source) -> str:
    return "" if source.fps else f"no frame rate, {ASSUMED_FPS:g} assumed"


def _pixel_aspect(source: Source) -> tuple[Fraction, str]:
    """A pixel's width over its height, by the container or else by the codec, and a note where it is not square."""
    stream = source.stream
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
    if aspect == 1 or aspect < 0:
        return Fraction(1), ""
    if not 1 <= MAX_ASPECT * aspect <= MAX_ASPECT ** 2:
        return Fraction(1), f"pixels of {aspect.numerator}:{aspect.denominator} taken as square"
    return aspect, f"pixels of {aspect.numerator}:{aspect.denominator} made square"


def _squared(height: int, width: int, aspect: Fraction) -> tuple[int, int]:
    """Sides in px once pixels of this aspect are square: the narrower side of a pixel is widened, nothing is shrunk."""
    if aspect > 1:
        return height, (2 * width * aspect.numerator + aspect.denominator) // (2 * aspect.denominator)
    return (2 * height * aspect.denominator + aspect.numerator) // (2 * aspect.numerator), width


def _turned(height: int, width: int, orientation: tuple[bool, bool, bool]) -> tuple[int, int]:
    """Height and width in px as displayed."""
    return (width, height) if orientation[0] else (height, width)


def _turn(picture: np.ndarray, orientation: tuple[bool, bool, bool]) -> np.ndarray:
    """A view of (H, W) as displayed."""
    transpose, flip_rows, flip_columns = orientation
    if transpose:
        picture = picture.swapaxes(0, 1)
    return picture[::-1 if flip_rows else 1, ::-1 if flip_columns else 1]


@cache
def _stretch(pixels: str) -> list[np.ndarray] | None:
    """For red, green and blue a table that makes white 255, where a channel has under 8 bits (15- and 16-bit RGB)."""
    kind = av.VideoFormat(pixels)
    bits = [component.bits for component in kind.components[:3]]
    if not kind.is_rgb or kind.is_bayer or kind.has_palette or len(bits) < 3 or min(bits) >= 8:
        return None
    return [np.minimum(255, np.round(np.arange(256) * 255 / WHITE[n])).astype(np.uint8) for n in bits]
