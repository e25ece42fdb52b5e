"""Video files -> RGB frames (PyAV).

T frames, HxW pixels. Every decoder and scaler runs on one thread: with frame threads a damaged stream decodes to other
pixels from run to run.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import av
import cv2
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from shared.cli import plural

MIN_SIDE = 16  # px; TV-L1's coarsest scale needs this much
MAX_FPS = 1000.0  # above it a header's rate is a time base, not a rate
ASSUMED_FPS = 25.0  # where a file states no usable rate
MIN_BYTES_PER_FRAME = 8  # container overhead alone; bounds what a damaged header may claim
UNSPECIFIED_MATRIX, RESERVED_MATRIX = 2, 3  # ISO/IEC 23091-2, MatrixCoefficients

# Full chroma and accurate rounding: without them swscale is about 1.3 grey levels dark and halves the chroma's width.
# Bit-exact keeps its SIMD paths from giving different pixels on different processors.
SCALER = (Interpolation.AREA | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
          | Interpolation.ACCURATE_RND | Interpolation.BITEXACT)
SUBSAMPLED = "yuv420p", "yuv422p"  # limited range, 8 bits: nearly all videos


class VideoError(Exception):
    """A video that cannot be used, or not beyond its first `frames` frames.

    reason: one short line without the path; stage: `open`, `probe` or `decode`.
    """

    def __init__(self, reason: str, stage: str, frames: int = 0):
        super().__init__(reason, stage, frames)  # all of them, so that the error survives pickling
        self.reason, self.stage, self.frames = reason, stage, frames

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Probe:
    """What a file says of itself; estimates for a plan, never the truth of its frames.

    duration_s in seconds, fps in frames/s, source sides in px as displayed (rotation applied).
    """

    frames: int
    duration_s: float
    fps: float
    source_height: int
    source_width: int
    note: str = ""


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
def open_video(path: str | Path, short_side: int = 256, multiple: int = 8, window: int = 64) -> Iterator["Decoder"]:
    """A `Decoder` of the file's first video stream, closed on leaving.

    Raises VideoError: no such file, no video, no first frame, or frames too small.
    """
    with _open(path) as (container, stream):
        yield Decoder(container, stream, short_side, multiple, window)


class Decoder:
    """Iterates once over a video's frames, in windows (n, H, W, 3) uint8 RGB, 1 <= n <= `window`.

    Frames are those a full decode gives, in display order, none repeated or dropped for the sake of a rate. Pixels
    count as square. Matrix and range are the stream's own; unspecified ones are read as ffmpeg does: BT.601, limited
    range (full for JPEG and RGB formats). Rotation and mirroring by the display matrix are applied.
    Memory: one window, the one the caller still holds, and the codec's reference frames.

    On damage after n frames the good ones are yielded first, then VideoError is raised with `.frames` = n; so too
    where size or orientation changes in mid-stream.
    fps in frames/s; source_height, source_width in px as displayed; frame_size (H, W); frames: yielded or waiting so
    far; note: what was odd, complete after the last window.
    """

    def __init__(self, container, stream, short_side: int, multiple: int, window: int):
        self.window = window
        self.frames = self.corrupt = 0
        self.fps, self._fps_note = _rate(stream)
        decoded = _decoded(container, stream)
        first = next(decoded)
        self._decoded = chain([first], decoded)
        self._coded, self._orientation = (first.height, first.width), _orientation(first)
        self.source_height, self.source_width = _displayed(first)
        self.frame_size = frame_size(self.source_height, self.source_width, short_side, multiple)
        self._scaled = _scaled(*self._coded, short_side)
        self._shrinker, self._reformatter = VideoReformatter(), VideoReformatter()

    @property
    def note(self) -> str:
        corrupt = f"{plural(self.corrupt, 'frame')} flagged corrupt" if self.corrupt else ""
        return "; ".join(filter(None, (self._fps_note, corrupt)))

    def __iter__(self) -> Iterator[np.ndarray]:
        shape = (self.window, *self.frame_size, 3)
        frames, filled = np.empty(shape, np.uint8), 0
        try:
            for frame in self._decoded:
                self._convert(frame, out=frames[filled])
                filled += 1
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

    def _convert(self, frame, out: np.ndarray) -> None:
        if (frame.height, frame.width) != self._coded or _orientation(frame) != self._orientation:
            height, width = _displayed(frame)
            raise VideoError(f"size or orientation changes at frame {self.frames}: {height}x{width} px after "
                             f"{self.source_height}x{self.source_width}", "decode", self.frames)
        if frame.colorspace == RESERVED_MATRIX:  # swscale refuses it; real files carry it by mistake
            frame.colorspace = UNSPECIFIED_MATRIX
        height, width = self._scaled
        try:
            if (height, width) != self._coded and frame.format.name in SUBSAMPLED:
                # Planes are scaled first, at 16 bits, and the small picture converted: about 0.6 of the time at 720p,
                # and no value moves by more than 1 grey level.
                frame = self._shrinker.reformat(frame, width, height, "yuv444p16le", interpolation=SCALER, threads=1)
            # Planar, which swscale writes in half the time of rgb24.
            gbr = self._reformatter.reformat(frame, width, height, "gbrp", interpolation=SCALER,
                                             dst_color_range=ColorRange.JPEG, threads=1)
        except av.error.FFmpegError as error:
            raise VideoError(f"{frame.format.name} pixels with colour matrix {frame.colorspace} cannot become RGB: "
                             f"{_words(error)}", "decode", self.frames) from error
        green, blue, red = (_turn(np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)[:, :width],
                                  self._orientation) for plane in gbr.planes)
        top, left = ((have - keep) // 2 for have, keep in zip(red.shape, self.frame_size))
        inside = np.s_[top:top + out.shape[0], left:left + out.shape[1]]
        cv2.merge([np.ascontiguousarray(plane[inside]) for plane in (red, green, blue)], out)


def probe(path: str | Path) -> Probe:
    """Length, rate and size from the headers; the first frame too is decoded, since PyAV shows rotation only there.

    Where headers lack the frame count it is duration times rate; a count the file's bytes cannot hold is clamped.
    Raises VideoError: no such file, no video, no first frame, or frames too small.
    """
    with _open(path) as (container, stream):
        height, width = _displayed(next(_decoded(container, stream)))
        frame_size(height, width)  # refuses frames too small
        fps, note = _rate(stream)
        if stream.duration:
            duration = float(stream.duration * stream.time_base)
        else:
            duration = (container.duration or 0) / av.time_base
        frames = stream.frames if stream.frames > 0 else round(max(duration, 0.0) * fps)
        most = max(1, os.path.getsize(path) // MIN_BYTES_PER_FRAME)
        if not 1 <= frames <= most:
            note = "; ".join(filter(None, (note, f"headers claim {plural(frames, 'frame')}")))
            frames = min(max(frames, 1), most)
            duration = frames / fps
        return Probe(frames, duration if duration > 0 else frames / fps, fps, height, width, note)


def count_frames(path: str | Path) -> int:
    """Frames that a full decode gives, those before the damage in a damaged file. Raises VideoError where none."""
    with _open(path) as (container, stream):
        try:
            return sum(1 for _ in _decoded(container, stream))
        except VideoError as error:
            if not error.frames:
                raise
            return error.frames


@contextmanager
def _open(path):
    """(container, video stream), closed on leaving. Raises VideoError."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoError(f"cannot be opened: {_words(error)}", "open") from error
    if not stat.S_ISREG(status.st_mode):
        raise VideoError("not a file", "open")
    if status.st_size == 0:
        raise VideoError("empty file (0 bytes)", "open")
    try:
        # `file:` and the whitelist: neither a name nor a playlist inside the file may lead to the network.
        container = av.open(f"file:{os.fspath(path)}", metadata_errors="replace",
                            container_options={"protocol_whitelist": "file"})
    except PermissionError as error:
        raise VideoError(f"cannot be opened: {_words(error)}", "open") from error
    except av.error.FFmpegError as error:
        raise VideoError(f"not a video: {_words(error)}", "open") from error
    with container:
        # The first, not ffmpeg's "best" (the largest): what readers of the published sets take. Cover art is no video.
        stream = next((stream for stream in container.streams.video
                       if av.stream.Disposition.attached_pic not in stream.disposition), None)
        if stream is None:
            raise VideoError("no video stream", "open")
        if stream.codec_context is None:
            raise VideoError("no decoder for its codec", "open")
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        yield container, stream


def _decoded(container, stream):
    """Every decoded frame. Raises VideoError at the first damage, and where there is no frame at all."""
    count = 0
    try:
        for frame in container.decode(stream):
            yield frame
            count += 1
    except av.error.FFmpegError as error:
        after = f"damaged after {plural(count, 'frame')}" if count else "no frame could be decoded"
        raise VideoError(f"{after}: {_words(error)}", "decode", count) from error
    if not count:
        raise VideoError("no frame could be decoded", "decode")


def _rate(stream) -> tuple[float, str]:
    """Frames/s, and a note where it is assumed."""
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 0 < rate <= MAX_FPS:
            return float(rate), ""
    return ASSUMED_FPS, f"no frame rate, {ASSUMED_FPS:g} assumed"


def _orientation(frame) -> tuple[bool, bool, bool]:
    """(transpose, flip rows, flip columns) from the display matrix, rounded to right angles.

    libavutil/display.h: (x, y) of the coded frame goes to (a x + c y, b x + d y), rows [a b u], [c d v], [x y w].
    """
    side = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if side is None:
        return False, False, False
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(side), np.int32)[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def _turn(picture: np.ndarray, orientation: tuple[bool, bool, bool]) -> np.ndarray:
    """A view of (H, W) as displayed."""
    transpose, flip_rows, flip_columns = orientation
    if transpose:
        picture = picture.swapaxes(0, 1)
    return picture[::-1 if flip_rows else 1, ::-1 if flip_columns else 1]


def _displayed(frame) -> tuple[int, int]:
    """Height and width in px after rotation."""
    return (frame.width, frame.height) if _orientation(frame)[0] else (frame.height, frame.width)


def _words(error: OSError | av.error.FFmpegError) -> str:
    """The error's words without its number and path."""
    words = (error.strerror or type(error).__name__).removesuffix(" found when processing input")
    return words[:1].lower() + words[1:]
