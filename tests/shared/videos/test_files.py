"""Bytes where they lie: a span reads as a file does, with few requests and little memory, and tells whose fault it
is."""

import errno
import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.videos.decode import open_video, probe
from shared.videos.files import AHEAD, FIRST, KEPT, RangeFile, Span, VideoError, state_of
from tests.shared.videos.test_decode import scene, write

DATA = np.random.default_rng(5).bytes(1000)


class Counted:
    """An object that notes what is asked of it."""

    def __init__(self, data: bytes):
        self.data, self.asked = data, []

    def read_range(self, start: int, stop: int, etag: str) -> bytes:
        self.asked.append((start, stop))
        return self.data[start:stop]


@given(offset=st.integers(0, 300), size=st.integers(0, 700), first=st.integers(1, 90), ahead=st.integers(1, 200),
       steps=st.lists(st.tuples(st.integers(0, 2), st.integers(-300, 800), st.integers(-1, 250)), max_size=30))
def test_it_reads_what_a_file_reads(offset, size, first, ahead, steps):
    place, oracle = Counted(DATA), io.BytesIO(DATA[offset:offset + size])
    file = RangeFile(place, offset, size, "", first, ahead, kept=3)
    for whence, to, count in steps:
        if (target := (0, oracle.tell(), size)[whence] + to) < 0:
            with pytest.raises(OSError, match="Invalid argument"):
                file.seek(to, whence)
            continue
        assert file.seek(to, whence) == oracle.seek(target) == file.tell()
        assert file.read(count) == oracle.read(count) and file.tell() == oracle.tell()
        assert len(file.ranges) <= 3 and sum(len(data) for _, data in file.ranges) <= 3 * max(first, ahead)
    assert all(offset <= start < stop <= offset + size for start, stop in place.asked)


def test_from_end_to_end_it_takes_the_size_over_the_read_ahead():
    place = Counted(DATA)
    file = RangeFile(place, 100, 800, "", first=50, ahead=200)
    while file.read(32):
        pass
    assert place.asked == [(100, 150), (150, 350), (350, 550), (550, 750), (750, 900)] and file.requests == 5


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "video.mp4"
    write(path, scene(20), "libx264", "yuv420p")
    return path


@pytest.fixture
def archive(video, tmp_path):
    """A zip file with the video, and where its header lies."""
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("before.txt", "x" * 777)
        out.write(video, "a/video.mp4")
        return path, out.getinfo("a/video.mp4").header_offset


def frames(file) -> np.ndarray:
    with open_video(file) as decoder:
        return np.concatenate(list(decoder))


def test_a_span_decodes_as_its_file_does(video, archive):
    path, offset = archive
    size, version = video.stat().st_size, state_of(path)
    start = path.read_bytes().index(video.read_bytes())
    for span in (Span(path, offset, size, version, ".mp4", "zip"), Span(path, start, size, version, ".mp4", "tar")):
        assert probe(span) == probe(video)
        np.testing.assert_array_equal(frames(span), frames(video))


class Far:
    """A member of 2 GiB whose index is at its end: what lies between is never sent."""

    SIZE = 2 << 30

    def __init__(self, video: bytes):
        at = video.index(b"moov") - 4
        head, self.tail = video[:at], video[at:]
        data = head.index(b"mdat") - 4
        # The media data with a length of 64 bits, for which muxers leave 8 bytes free, so that it may be so long.
        assert head[data - 4:data] == b"free"
        length = self.SIZE - len(self.tail) - data + 8
        self.head = head[:data - 8] + (1).to_bytes(4, "big") + b"mdat" + length.to_bytes(8, "big") + head[data + 8:]
        self.asked = 0

    def read_range(self, start: int, stop: int, etag: str) -> bytes:
        self.asked += 1
        assert stop - start <= AHEAD
        out, end = bytearray(stop - start), self.SIZE - len(self.tail)
        for at, part in ((0, self.head), (end, self.tail)):
            low, high = max(start, at), min(stop, at + len(part))
            if low < high:
                out[low - start:high - start] = part[low - at:high - at]
        return bytes(out)


def test_a_member_of_2_gib_with_its_index_at_the_end_takes_two_requests(video):
    place = Far(video.read_bytes())
    file = RangeFile(place, 0, place.SIZE, "")
    file.seek(-1, 2)
    assert place.asked == 0
    span = Span(place, 0, place.SIZE, "", ".mp4", "tar")
    found = probe(span)
    assert (found.frames, found.source_height) == (20, 48) and place.asked == 2
    assert KEPT * AHEAD + FIRST < 20 << 20


@pytest.mark.parametrize("kind, error, told", [
    ("object", FileNotFoundError(errno.ENOENT, "No such file or directory"), "cannot be opened: no such file"),
    ("object", PermissionError(errno.EACCES, "Forbidden"), "cannot be opened: forbidden"),
    ("object", OSError(errno.ESTALE, "has changed"), "has changed since it was listed")])
def test_an_object_that_cannot_be_had_is_a_failure_of_its_own(kind, error, told):
    place = Counted(b"")
    place.read_range = lambda *_: (_ for _ in ()).throw(error)
    with pytest.raises(VideoError, match=told):
        probe(Span(place, 0, 1000, "1000:x", ".mp4", kind))


@pytest.mark.parametrize("kind, error", [
    ("tar", FileNotFoundError(errno.ENOENT, "No such file or directory")),
    ("tar", OSError(errno.ESTALE, "has changed")),
    ("object", OSError(errno.EREMOTEIO, "EndpointConnectionError")),
    ("object", FileNotFoundError(errno.ENOENT, "The specified bucket does not exist"))])
def test_storage_that_fails_is_no_failure_of_the_video(video, kind, error):
    """Whenever it comes: at the first byte, or when the decoder would take it for the end."""
    data = video.read_bytes()
    for after in (0, 1):
        place = Counted(data + bytes(3 << 20))

        def fail(start, stop, etag, place=place, after=after):
            if len(place.asked) >= after:
                raise error
            return Counted.read_range(place, start, min(stop, start + 3000), etag)
        place.read_range = fail
        place.asked = []
        with pytest.raises(OSError) as caught:
            frames(Span(place, 0, len(place.data), f"{len(place.data)}:x", ".mp4", kind))
        assert caught.value.errno == error.errno


def test_an_archive_that_has_changed_is_not_read(video, archive):
    path, offset = archive
    span = Span(path, offset, video.stat().st_size, state_of(path), ".mp4", "zip")
    with open(path, "ab") as file:
        file.write(b"x")
    with pytest.raises(OSError, match="has changed since it was looked at"):
        probe(span)


def test_a_list_that_leads_nowhere_is_told(video, archive):
    path, offset = archive
    for wrong in (0, 1, offset + 2):
        with pytest.raises(VideoError, match="the archive's list leads to no such member|not a video"):
            probe(Span(path, wrong, video.stat().st_size, state_of(path), ".mp4", "zip"))
    for fault, size in (("", 0), ("a link", 100)):
        with pytest.raises(VideoError, match=fault or "empty file"):
            probe(Span(path, 0, size, state_of(path), ".mp4", "tar", fault))


def test_nothing_in_a_member_leads_elsewhere(video, tmp_path):
    """A playlist in an archive that names files of this machine."""
    for text in (f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:{video}\n#EXT-X-ENDLIST\n",
                 f"ffconcat version 1.0\nfile '{video}'\n"):
        path = tmp_path / "list.tar"
        path.write_text(text)
        with pytest.raises(VideoError):
            frames(Span(path, 0, len(text), state_of(path), ".mp4", "tar"))
