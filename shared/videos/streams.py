"""Video files -> decoded frames, numbered as in the file: which stream is read, and which frames are good (PyAV).

Every decoder runs on one thread: with frame threads a damaged stream decodes to other pixels from run to run.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain

import av
import numpy as np
from av.format import Flags
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition

from shared.cli import plural
from shared.videos.files import VideoError, VideoFile, open_container, size_of, words

READING = 2  # the rules by which files are read, kept in recipes (`frames.reading`); 1: those of the first version
MAX_FPS = 1000.0  # above it a header's rate is a time base, not a rate
ASSUMED_FPS = 25.0  # where a file states no usable rate
LEADING_PACKETS = 1000  # before the first good frame: more than any usual distance between key frames
READ_ERRORS = 100  # of the container, one after another, before it counts as read
COUNTED_BYTES = 1 << 24  # of a file whose packets are counted; what lies beyond is estimated
SAME_TIME = 0.9  # of the fullest stream's seconds
LENIENT = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}  # PyAV 19 never raises
PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image


@dataclass(frozen=True)
class Source:
    """An open file and the stream of it that is read. note: which, where there are several."""

    container: av.container.InputContainer
    stream: av.VideoStream
    note: str = ""

    @property
    def fps(self) -> float | None:
        """Frames/s; None where the file states no usable rate."""
        return _fps(self.stream)

    @property
    def duration_s(self) -> float:
        """By the headers, the stream's own before the file's; 0 where there is none, or where it would be the time from
        the first stamp to the last and stamps may start over (MPEG-TS and -PS)."""
        stream = self.stream
        if self.container.format.flags & Flags.ts_discont.value:
            return 0.0
        if stream.duration:
            seconds = float(stream.duration * stream.time_base)
        else:
            seconds = _seconds(stream.metadata.get("DURATION", "")) or (self.container.duration or 0) / av.time_base
        return max(seconds, 0.0)


@contextmanager
def open_source(path: VideoFile, fullest: bool = True) -> Iterator[Source]:
    """The file's video stream, and of several the one with the most frames (fullest=False: the first).

    Cover art and thumbnails are no video. Raises VideoError: no such file, no video, no decoder.
    """
    with open_container(path, **LENIENT) as container:
        streams = [stream for stream in container.streams.video if not stream.disposition & PICTURES]
        if not streams:
            raise VideoError("no video stream", "open")
        usable = [stream for stream in streams if stream.codec_context is not None]
        if not usable:
            raise VideoError("no decoder for its codec", "open")
        stream, note = usable[0], ""
        if fullest and len(usable) > 1:
            stream, note = _fullest(path, usable)
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        yield Source(container, stream, note)


def _fullest(path, streams: list[av.VideoStream]) -> tuple[av.VideoStream, str]:
    """Of several streams the one with the most frames, and a note that says so.

    One that comes before it counts as equal if it shows the same time, at down to half the rate.
    """
    counts = {stream.index: stream.frames for stream in streams}
    if not all(counts.values()):
        counts, _ = count_packets(path, list(counts))
    seconds = {stream.index: counts[stream.index] / (_fps(stream) or ASSUMED_FPS) for stream in streams}
    fullest = max(counts, key=counts.get)
    best = next(stream for stream in streams if 2 * counts[stream.index] >= counts[fullest]
                and seconds[stream.index] >= SAME_TIME * seconds[fullest])
    others = ", ".join(f"{counts[stream.index]:,}" for stream in streams if stream is not best)
    return best, (f"video stream {streams.index(best) + 1} of {len(streams)} is read: "
                  f"{plural(counts[best.index], 'frame')}, elsewhere {others}")


def _fps(stream: av.VideoStream) -> float | None:
    rates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
    return next((float(rate) for rate in rates if rate and 0 < rate <= MAX_FPS), None)


def count_packets(path: VideoFile, streams: list[int]) -> tuple[dict[int, int], bool]:
    """Packets by the index of their stream, without decoding, and whether all were counted: beyond COUNTED_BYTES they
    are estimated from the file's bytes."""
    counts, end, size = dict.fromkeys(streams, 0), 0, size_of(path)
    with open_container(path, **LENIENT) as container:
        for packet in _packets(container, [container.streams[index] for index in streams]):
            if isinstance(packet, Exception) or not packet.size:
                continue
            counts[packet.stream_index] += not packet.is_discard
            end = max(end, (packet.pos or 0) + packet.size)
            if COUNTED_BYTES < end < size:
                return {index: round(count * size / end) for index, count in counts.items()}, False
    return counts, True


def _packets(container, streams: list) -> Iterator[av.Packet | av.error.FFmpegError]:
    """Every packet, the empty one at the end included, and every error in reading them."""
    errors = 0
    while errors < READ_ERRORS:
        try:
            for packet in container.demux(streams):
                errors = 0
                yield packet
            return
        except IndexError:
            return   # at the end: PyAV flushes also a stream that showed only on the way (MPEG-TS), which it lacks
        except av.error.FFmpegError as error:
            errors += 1
            yield error


class NoKeyFrame(VideoError):
    """Nothing of the stream is marked as a key frame, and nothing of it is damaged."""


class Frames:
    """Iterates once over a stream's good frames in display order, as (number, frame).

    Numbers are the file's, from 0; what cannot be decoded has its numbers too, one a packet. So a number that does not
    follow the one before tells of a gap, which `damage` explains; (number, None) is a gap at the end. After damage
    frames are good again from the next key frame on, as where a stream begins between two key frames.
    orientation: of the last frame; it holds until another is told, as H.264 may tell it once.
    unmarked: take a stream of which nothing is marked as a key frame as it comes.

    Raises VideoError where there is no good frame at all.
    """

    def __init__(self, source: Source, unmarked: bool = False):
        self.source, self.unmarked = source, unmarked
        self.orientation = False, False, False
        self.damage = ""
        self.joined = False  # the stream begins between two key frames

    def __iter__(self) -> Iterator[tuple[int, av.VideoFrame | None]]:
        number, last, started = 0, None, False   # number: of the next frame; last: time stamp of the one before
        lost: list[int | None] | None = []       # time stamps of the packets since the last good frame; None: all well
        for stamps, frames, error in self._decoded():
            if lost is not None:
                lost += stamps
            for place, frame in enumerate(frames):
                self.orientation = _orientation(frame) or self.orientation
                if lost is not None:
                    whole = not (started or self.damage or self.joined and not self.unmarked)
                    if not (whole or frame.key_frame):
                        continue
                    number += 0 if whole else max(int(started), _before(lost, frame.pts))
                    lost, started = None, True
                elif error and not self._follows(frame, last, *stamps):
                    stamps = [*stamps, *(late.pts for late in frames[place:])]
                    break
                yield number, frame
                number, last = number + 1, frame.pts
            if error and lost is None:
                lost = stamps
            if not started and len(lost) > LEADING_PACKETS:
                break
        if not started:
            self._nothing(len(lost))
        if lost is not None:
            yield number + len(lost), None

    def _decoded(self) -> Iterator[tuple[list[int | None], list[av.VideoFrame], Exception | None]]:
        """Of every packet its time stamp, frames, and error; after an error the frames that waited for their turn."""
        codec = self.source.stream.codec_context
        first = True
        for packet in _packets(self.source.container, [self.source.stream]):
            error = packet if isinstance(packet, Exception) else None
            stamps, frames = [None], []
            if not error:
                if first:
                    self.joined, first = not packet.is_keyframe, False
                stamps = [packet.pts] if packet.size and not packet.is_discard else []
                try:
                    frames = packet.decode()
                except av.error.FFmpegError as problem:
                    error, stamps = problem, [packet.pts]
            if error:
                self.damage = words(error)
                with suppress(av.error.FFmpegError):
                    frames = codec.decode(None)
                codec.flush_buffers()
            yield stamps, frames, error

    def _follows(self, frame, last: int | None, bad: int | None) -> bool:
        """Whether the decoder held back no frame between the last one and this one when the bad packet came."""
        if None in (frame.pts, last, bad, self.source.fps):
            return False
        return last < frame.pts < bad and (frame.pts - last) * self.source.stream.time_base * self.source.fps < 1.5

    def _nothing(self, packets: int) -> None:
        if self.joined and not self.damage and not self.unmarked:
            raise NoKeyFrame("no key frame was found", "decode")
        within = f" in its first {LEADING_PACKETS:,} packets" if packets > LEADING_PACKETS else ""
        raise VideoError(": ".join(filter(None, (f"no frame could be decoded{within}", self.damage))), "decode")


@contextmanager
def open_frames(path: VideoFile, reading: int = READING) -> Iterator[tuple[Frames, Iterator]]:
    """The file's `Frames` and an iterator over them, of which the first is decoded. Raises VideoError."""
    for unmarked in (reading < 2, True):
        with open_source(path, fullest=reading > 1) as source:
            frames = Frames(source, unmarked)
            numbered = iter(frames)
            try:
                first = next(numbered)
            except NoKeyFrame:
                continue   # it is taken as it comes
            yield frames, chain([first], numbered)
            return


def _seconds(text: str) -> float:
    """Of a Matroska track's tag DURATION, such as 00:01:02.500000000; 0 for what is none."""
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", text)
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else 0.0


def _before(stamps: list[int | None], pts: int | None) -> int:
    """How many of these packets, in decoding order, are shown before the key frame `pts`: those before its own, and
    those after it with an earlier time stamp. Without time stamps all but the last."""
    if pts is None or pts not in stamps:
        return len(stamps) - 1
    own = len(stamps) - 1 - stamps[::-1].index(pts)     # the last of that time: a damaged copy may come before it
    return own + sum(stamp is not None and stamp < pts for stamp in stamps[own:])


def _orientation(frame) -> tuple[bool, bool, bool] | None:
    """(transpose, flip rows, flip columns) from the display matrix, rounded to right angles; None without one.

    libavutil/display.h: (x, y) of the coded frame goes to (a x + c y, b x + d y), rows [a b u], [c d v], [x y w].
    """
    side = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if side is None:
        return None
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(side), np.int32)[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0
