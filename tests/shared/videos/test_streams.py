"""Which stream of a file is read, and which of its frames are good: files with one fault each, made here and found."""

import struct
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest

from shared.videos.decode import GoodRun, good_runs, open_video, probe
from shared.videos.streams import COUNTED_BYTES, LEADING_PACKETS, Frames, VideoError, count_packets, open_source
from tests.shared.videos.test_decode import count_frames, read, read_damaged, scene, write

KEY = {"g": "20"}
X265 = {"x265-params": "keyint=20:min-keyint=20:log-level=none"}
CODECS = [  # file, encoder, options: key frames at 0, 20, 40 (MPEG-2: every 18)
    ("a.mp4", "libx264", {"qp": "20", **KEY}), ("a.mkv", "libx264", {"qp": "20", **KEY}),
    ("a.ts", "libx264", {"qp": "20", **KEY}), ("a.mov", "libx264", {"qp": "20", **KEY}),
    ("a.flv", "flv", KEY), ("a.avi", "mpeg4", KEY), ("a.mkv", "mpeg4", KEY), ("a.mp4", "libx265", X265),
    ("a.mkv", "libx265", X265), ("a.ts", "libx265", X265), ("a.webm", "libvpx-vp9", KEY),
    ("a.mpg", "mpeg2video", {"bf": "2", **KEY}), ("a.ts", "mpeg2video", {"bf": "2", **KEY}), ("a.avi", "mjpeg", {})]


def copied(source, path, keep=lambda number: True, change=lambda number, data: data, container_format=None,
           timed=True):
    """The video packets of a file, those kept, with changed bytes, in a new file."""
    with av.open(str(source)) as old, av.open(str(path), "w", format=container_format) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if packet.size and keep(number):
                data = change(number, bytes(packet))
                if data != bytes(packet):
                    other = av.Packet(data)
                    other.pts, other.dts, other.time_base = packet.pts, packet.dts, packet.time_base
                    other.is_keyframe, packet = packet.is_keyframe, other
                packet.stream = stream
                new.mux(packet)
    return path


def film(path, codec, options, frames=60):
    pix_fmt = {"mjpeg": "yuvj420p"}.get(codec, "yuv420p")
    return write(path, scene(frames, 64, 96), codec, pix_fmt, options=options)


def zeroed(*places):
    return lambda number, data: bytes(len(data)) if number in places else data


def garbled(place):
    return lambda number, data: data[:5] + b"\xff" * 40 if number == place else data


# --- damage at the start: packets that cannot be decoded come off, and no gap in time arises

@pytest.mark.parametrize("name, codec, options", CODECS)
def test_a_stream_joined_between_key_frames_begins_at_the_next_one(tmp_path, name, codec, options):
    whole = film(tmp_path / name, codec, options)
    path = copied(whole, tmp_path / f"cut{name}", keep=lambda number: number >= 7)
    wanted = read(whole)
    with open_video(path) as video:
        frames = np.concatenate(list(video))
        lost = video.first
    first = len(wanted) - len(frames)
    assert first == (7 if codec == "mjpeg" else 21 if codec == "mpeg2video" else 20) and lost in (0, 12, 13, 14)
    assert (video.note == "") == (lost == 0)
    np.testing.assert_array_equal(frames, wanted[first:])
    assert probe(path).source_width == 96 and count_frames(path) == len(frames)


@pytest.mark.parametrize("name, codec, options", CODECS)
def test_a_bad_first_packet_costs_what_rests_on_it(tmp_path, name, codec, options):
    whole = film(tmp_path / name, codec, options)
    path = copied(whole, tmp_path / f"bad{name}", change=garbled(0))
    wanted = read(whole)
    with open_video(path) as video:
        frames = np.concatenate(list(video))
    first = len(wanted) - len(frames)
    assert first in (1, 18, 20, 21), first
    np.testing.assert_array_equal(frames, wanted[first:])
    assert video.note == f"starts at frame {video.first}: what comes before cannot be decoded"
    assert abs(video.first - first) <= 1


def test_a_bad_copy_of_the_first_packet_is_said_too(tmp_path):
    """Both have the same time stamp."""
    whole = write(tmp_path / "a.mkv", scene(5, 64, 96), "mjpeg", "yuvj420p")
    with av.open(str(whole)) as old, av.open(str(tmp_path / "twice.mkv"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if packet.size:
                bad = av.Packet(bytes(packet.size))
                bad.pts, bad.dts, bad.time_base = packet.pts, packet.dts, packet.time_base
                for one in (bad, packet) if number == 0 else (packet,):
                    one.stream = stream
                    new.mux(one)
    with open_video(tmp_path / "twice.mkv") as video:
        assert len(np.concatenate(list(video))) == 5
        assert video.note == "starts at frame 1: what comes before cannot be decoded"


def test_leading_packets_are_skipped_up_to_a_bound(tmp_path):
    whole = write(tmp_path / "a.avi", np.zeros((60, 16, 16, 3), np.uint8), "mjpeg", "yuvj420p")
    with pytest.raises(VideoError, match="^no frame could be decoded: invalid data$") as caught:
        good_runs(copied(whole, tmp_path / "none.avi", change=lambda number, data: bytes(len(data))))
    assert (caught.value.stage, caught.value.frames) == ("decode", 0)
    data, path = bytes(20), tmp_path / "long.avi"
    with av.open(str(whole)) as old, av.open(str(path), "w") as new:
        stream, good = new.add_stream_from_template(old.streams.video[0]), bytes(next(old.demux(video=0)))
        for number in range(LEADING_PACKETS + 20):
            packet = av.Packet(data if number < LEADING_PACKETS + 10 else good)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 25), stream
            new.mux(packet)
    with pytest.raises(VideoError, match="^no frame could be decoded in its first 1,000 packets: invalid data$"):
        probe(path)


def test_a_stream_without_key_frame_marks_is_taken_as_it_comes(tmp_path):
    whole = film(tmp_path / "a.avi", "mpeg4", {"g": "600"}, frames=30)
    path = copied(whole, tmp_path / "cut.avi", keep=lambda number: number >= 7)   # grey, but all that there is
    assert good_runs(path) == [GoodRun(0, 23, 64, 96)] and len(read(path)) == 23


# --- damage in mid-stream: a run ends, and the next key frame begins another

def runs_of(path):
    return [(run.first, run.frames) for run in good_runs(path)]


@pytest.mark.parametrize("name, codec, options", [case for case in CODECS if case[0][1:] not in (".ts", ".mpg")])
def test_a_bad_packet_ends_a_run_and_the_next_key_frame_begins_another(tmp_path, name, codec, options):
    whole = film(tmp_path / name, codec, options)
    wanted = read(whole)
    path = copied(whole, tmp_path / f"bad{name}", change=(garbled if codec == "libvpx-vp9" else zeroed)(25))
    (_, before), (second, after) = runs_of(path)
    assert 20 <= before <= 25 and (second, after) == ((26, 34) if codec == "mjpeg" else (40, 20))
    for first, count in ((0, before), (second, after)):
        with open_video(path, first=first) as video:
            if first:
                frames = np.concatenate(list(video))
        if not first:
            frames, error = read_damaged(path, window=7)
            assert error.reason.startswith(f"damaged after {before} frames: ")
        np.testing.assert_array_equal(frames, wanted[first:first + count])


def test_every_run_between_several_bad_packets_is_found(tmp_path):
    whole = film(tmp_path / "a.avi", "mjpeg", {})
    path = copied(whole, tmp_path / "bad.avi", change=zeroed(0, 7, 8, 30, 59))
    assert runs_of(path) == [(1, 6), (9, 21), (31, 28)] and count_frames(path) == 28
    frames, error = read_damaged(path, first=31)
    np.testing.assert_array_equal(frames, read(whole)[31:59])
    assert error.reason.startswith("damaged after 59 frames") and error.frames == 28
    with open_video(path, first=31) as video:
        assert video.note == "starts at frame 31: its longest run of good frames"


def test_frames_that_waited_for_their_turn_are_kept_up_to_the_first_gap(tmp_path):
    """With B-frames the decoder holds good frames back when the bad packet comes."""
    whole = film(tmp_path / "a.mp4", "libx264", {"qp": "20", "g": "30", "bf": "2", "b_strategy": "0"})
    with av.open(str(whole)) as container:
        stamps = [packet.pts for packet in container.demux(video=0) if packet.size]
    order, wanted = sorted(stamps), read(whole)
    for bad in range(8, 20):
        path = copied(whole, tmp_path / "bad.mp4", change=zeroed(bad))
        (first, count), (second, rest) = runs_of(path)
        # All that is shown before the first packet that is missing when the bad one comes.
        come = set(stamps[:bad])
        assert first == 0 and count == next(n for n, stamp in enumerate(order) if stamp not in come)
        assert second == 30 and rest == 30
        np.testing.assert_array_equal(read_damaged(path)[0], wanted[:count])


# --- several streams

def muxed(path, *films, disposition=None):
    """The video packets of several files as streams of one."""
    old = [av.open(str(film)) for film in films]
    with av.open(str(path), "w") as new:
        streams = [new.add_stream_from_template(one.streams.video[0]) for one in old]
        if disposition is not None:
            streams[0].disposition = disposition
        packets = [(packet, stream) for one, stream in zip(old, streams)
                   for packet in one.demux(video=0) if packet.size]
        for packet, stream in sorted(packets, key=lambda pair: pair[0].dts * pair[0].time_base):
            packet.stream = stream
            new.mux(packet)
    for one in old:
        one.close()
    return path


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts", "mov", "avi"])
def test_of_several_streams_the_one_with_the_most_frames_is_read(tmp_path, container):
    codec, pix_fmt = ("mpeg4", "yuv420p") if container in ("avi", "ts") else ("mjpeg", "yuvj420p")
    thumbnail = write(tmp_path / "thumbnail.avi", scene(1, 32, 48), codec, pix_fmt)
    whole = film(tmp_path / "film.avi", "mpeg4", KEY, frames=30)
    for films, place in (((thumbnail, whole), 2), ((whole, thumbnail), 1)):
        path = muxed(tmp_path / f"{place}.{container}", *films)
        note = f"video stream {place} of 2 is read: 30 frames, elsewhere 1"
        with open_video(path) as video:
            assert len(np.concatenate(list(video))) == 30 and video.note == note
            assert (video.source_height, video.source_width) == (64, 96)
        told = probe(path)
        assert (told.source_height, told.source_width, told.note) == (64, 96, note)
        assert abs(told.frames - 30) <= 1 and count_frames(path) == 30
        with open_source(path, fullest=False) as source:     # as stores of before are read
            assert source.stream.index == 0 and source.note == ""


def test_the_first_of_streams_that_show_the_same_time_is_read(tmp_path, data_root):
    films = [film(tmp_path / f"{n}.mp4", "libx264", {"qp": "20"}, frames=30) for n in (1, 2)]
    with open_video(muxed(tmp_path / "two.mp4", *films)) as video:
        assert video.note == "video stream 1 of 2 is read: 30 frames, elsewhere 30"
    with open_video(data_root / "odd/torchcodec_nasa_13013.mp4") as video:      # 13 s at 25 and at 29.97 frames/s
        assert video.note == "video stream 1 of 2 is read: 325 frames, elsewhere 390"


def test_an_attached_picture_is_never_the_film(tmp_path):
    picture = write(tmp_path / "picture.avi", scene(1, 32, 48), "mjpeg", "yuvj420p")
    whole = film(tmp_path / "film.mp4", "libx264", {"qp": "20"}, frames=3)
    path = muxed(tmp_path / "a.mp4", picture, whole, disposition=av.stream.Disposition.attached_pic)
    with open_video(path) as video:
        assert len(np.concatenate(list(video))) == 3 and video.note == ""


# --- length

def live(path, whole):
    """The film as a recorder writes it that cannot go back to the header: no duration, no index."""
    class Pipe:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            return self.file.write(data)

    kind = {".mkv": "matroska", ".ts": "mpegts"}.get(path.suffix, path.suffix[1:])
    with open(path, "wb") as file, av.open(str(whole)) as old, av.open(Pipe(file), "w", format=kind) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    return path


@pytest.mark.parametrize("container, codec", [("webm", "libvpx"), ("webm", "libvpx-vp9"), ("mkv", "libx264"),
                                              ("mkv", "mpeg4"), ("flv", "flv"), ("ts", "libx264")])
def test_packets_are_counted_where_the_header_has_no_duration(tmp_path, container, codec):
    whole = film(tmp_path / f"whole.{'mkv' if container == 'ts' else container}", codec, KEY)
    path = live(tmp_path / f"live.{container}", whole)
    told = probe(path)
    # The length of a live FLV is read off its last time stamp.
    assert (told.frames, told.basis) == ((59, "duration") if container == "flv" else (60, "packets"))
    assert told.duration_s == pytest.approx(2.4, abs=0.1)


@pytest.mark.parametrize("name, codec", [("a.ts", "libx264"), ("a.ts", "mpeg2video"), ("a.mpg", "mpeg2video")])
def test_a_recording_whose_time_stamps_start_over_is_counted(tmp_path, name, codec):
    """Pieces of a transport or program stream are joined by appending them; the last stamp tells one piece's time."""
    piece = film(tmp_path / name, codec, KEY)
    path = tmp_path / f"three{name}"
    path.write_bytes(3 * piece.read_bytes())
    told, one = probe(path), read(piece)
    assert (told.frames, told.basis) == (180, "packets") and runs_of(path) == [(0, 180)]
    np.testing.assert_array_equal(read(path)[60:120], one)


def test_a_stream_that_shows_only_on_the_way_ends_nothing(tmp_path):
    """PyAV flushes at the end also a stream that it has no object for, if its memory so happens: an IndexError."""
    with open_source(film(tmp_path / "a.ts", "mpeg2video", KEY, frames=30)) as source:
        class Grown:
            def demux(self, streams):
                yield from source.container.demux(streams)
                raise IndexError("list index out of range")

        frames = list(Frames(replace(source, container=Grown())))
    assert [number for number, _ in frames] == list(range(30)) and all(frame for _, frame in frames)


def test_what_lies_beyond_is_estimated_from_the_bytes(tmp_path, monkeypatch):
    path = live(tmp_path / "live.mkv", film(tmp_path / "a.mkv", "mjpeg", {}, frames=60))
    monkeypatch.setattr("shared.videos.streams.COUNTED_BYTES", path.stat().st_size // 3)
    counts, whole = count_packets(path, [0])
    assert not whole and abs(counts[0] - 60) < 15 and COUNTED_BYTES > 1 << 20
    told = probe(path)
    assert told.basis == "bytes" and told.frames == counts[0]


def test_a_fragmented_file_has_the_frames_of_all_its_fragments(tmp_path):
    """Its header has the count of the first one only, or none."""
    whole = film(tmp_path / "whole.mp4", "libx264", {"qp": "20", **KEY})
    for flags, basis in (("frag_keyframe", "packets"), ("frag_keyframe+empty_moov", "duration")):
        with av.open(str(whole)) as old, av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": flags}) as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    new.mux(packet)
        told = probe(tmp_path / "a.mp4")
        assert (told.frames, told.basis) == (60, basis)


def test_a_duration_that_the_bytes_belie_is_not_believed(tmp_path):
    """A Matroska header of 40 ms, and one of 40,000 hours."""
    whole = write(tmp_path / "a.mkv", np.random.default_rng(0).integers(0, 255, (60, 48, 64, 3), dtype=np.uint8))
    data = whole.read_bytes()
    place = data.index(b"\x44\x89\x88") + 3
    assert struct.unpack(">d", data[place:place + 8])[0] == 2400
    tag = data.index(b"DURATION")
    for milliseconds in (40.0, 1.44e11):
        path = tmp_path / f"{milliseconds}.mkv"
        path.write_bytes((data[:place] + struct.pack(">d", milliseconds) + data[place + 8:]).replace(
            data[tag:tag + 8], b"DURATIOX"))
        told = probe(path)
        assert (told.frames, told.basis) == (60, "packets") and told.note.startswith("headers claim ")


def test_a_track_is_as_long_as_its_own_tag_says(tmp_path):
    """The file is as long as its longest track, which may be the sound."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output:
        sound, stream = output.add_stream("pcm_s16le", rate=8000, layout="mono"), output.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for frame in scene(10):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        output.mux(stream.encode())
        noise = av.AudioFrame.from_ndarray(np.zeros((1, 20_000), np.int16), "s16", "mono")
        noise.sample_rate = 8000
        output.mux(sound.encode(noise))
        output.mux(sound.encode())
    told = probe(path)
    assert (told.frames, told.basis) == (10, "duration")
