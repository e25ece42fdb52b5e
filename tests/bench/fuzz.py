"""Fuzz: mutated videos through the real command, and what becomes of each.

    python tests/bench/fuzz.py [--files N] [--seed S] [--batch N] [--keep DIR]

Takes the real files of ../shared/data (those of `odd` as they are, others remuxed or encoded anew into mp4, mkv, webm,
avi, ts and mpg), damages them, and gives every batch to `python -m preprocess.run` with a worker process, as users do.
No file may end a run, go on past its limit, or be kept with a number of frames that differs from what plain PyAV
decodes without a word about it; `python -m preprocess.check` has to find every store whole. Exit code 1 otherwise, and
the files in question stay in --keep.
"""

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av

from shared.store.index import Index, read_failures
from shared.videos.isolate import ChildProcess, Died
from shared.videos.streams import LENIENT

DATA = Path(__file__).resolve().parents[3] / "shared/data"
FRAMES, SIDE, LARGEST = 48, 96, 400_000   # of a source: frames, px high, bytes
CONTAINERS = {"mp4": ("libx264", "mpeg4", "libx265"), "mkv": ("libx264", "libx265", "mjpeg", "ffv1"),
              "webm": ("libvpx", "libvpx-vp9"), "avi": ("mpeg4", "mjpeg"), "ts": ("libx264", "mpeg2video"),
              "mpg": ("mpeg1video", "mpeg2video")}
COPIED = {"h264": ("mp4", "mkv", "ts", "avi"), "mpeg4": ("avi", "mp4", "mkv"), "hevc": ("mp4", "mkv", "ts"),
          "vp8": ("webm", "mkv"), "vp9": ("webm", "mkv", "mp4"), "mpeg2video": ("mpg", "ts"), "mjpeg": ("avi", "mkv")}
QUIET = {"libx265": {"x265-params": "log-level=none:keyint=16"}}
LIMITS = "--set", "run.time_limit_s=600", "--set", "run.memory_gb=2"
CHEAP = ("--flow", "opencv", "--set", "short_side=48", "--set", "scales=1", "--set", "warps=1", "--set", "iterations=1",
         "--set", "geometries=8x2", "--set", "run.threads=1")
PATIENCE_S = 3600


# --- sources

def encoded(source: Path, path: Path, codec: str) -> Path:
    """The first frames of a real video, small, by another codec."""
    pix_fmt = {"mjpeg": "yuvj420p", "ffv1": "yuv420p"}.get(codec, "yuv420p")
    with av.open(str(source), **LENIENT) as old, av.open(str(path), "w") as new:
        stream = new.add_stream(codec, rate=25, options=QUIET.get(codec, {}))
        stream.codec_context.thread_count, stream.codec_context.gop_size = 1, 16
        for number, frame in zip(range(FRAMES), old.decode(video=0)):
            width = round(frame.width * SIDE / frame.height / 2) * 2
            if number == 0:
                stream.height, stream.width, stream.pix_fmt = SIDE, width, pix_fmt
            picture = frame.reformat(width, SIDE, pix_fmt)
            picture.pts, picture.time_base, picture.pict_type = number, Fraction(1, 25), 0
            new.mux(stream.encode(picture))
        new.mux(stream.encode())
    return path


def remuxed(source: Path, path: Path) -> Path:
    """The first packets of a real video in another container."""
    with av.open(str(source), **LENIENT) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        for _, packet in zip(range(FRAMES), old.demux(video=0)):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return path


def sources(data: Path, folder: Path, rng: random.Random) -> list[Path]:
    """Small good (and odd) files of every container, the same for the same seed."""
    found = sorted(path for path in (data / "odd").iterdir() if 0 < path.stat().st_size < LARGEST)
    real = sorted(path for path in (data / "videos").glob("*/*/*.*") if path.stat().st_size < 8_000_000)
    for container, codecs in CONTAINERS.items():
        for codec in codecs:
            for number, source in enumerate(rng.sample(real, 2)):
                found.append(encoded(source, folder / f"{codec}{number}.{container}", codec))
    for source in rng.sample(real, 12):
        with av.open(str(source), **LENIENT) as container:
            codec = container.streams.video[0].codec_context.name
        for kind in COPIED.get(codec, ()):
            try:
                found.append(remuxed(source, folder / f"{source.stem[:40]}.{kind}"))
            except (OSError, ValueError):   # a codec's variant that this container does not take
                (folder / f"{source.stem[:40]}.{kind}").unlink(missing_ok=True)
    return [path for path in found if path.stat().st_size < LARGEST]


# --- mutations

def span(data: bytes, rng: random.Random) -> slice:
    """Some bytes, few or many."""
    length = min(len(data), max(1, int(len(data) * 10 ** rng.uniform(-4, -0.3))))
    start = rng.randrange(len(data) - length + 1)
    return slice(start, start + length)


def flip(data: bytes, rng: random.Random, other: bytes) -> bytes:
    out, within = bytearray(data), rng.choice((len(data), len(data), 1024, 64))
    for _ in range(rng.choice((1, 3, 10, 100, 1000))):
        out[rng.randrange(min(within, len(out)))] ^= 1 << rng.randrange(8)
    return bytes(out)


def number(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """A field of the header, or of anywhere, becomes extreme."""
    place = rng.randrange(max(1, min(rng.choice((200, 1000, len(data))), len(data) - 4)))
    value = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\1\0\0\0"))
    return data[:place] + value + data[place + 4:]


def cut_end(data: bytes, rng: random.Random, other: bytes) -> bytes:
    return data[:max(1, int(len(data) * rng.random()))]


def cut_start(data: bytes, rng: random.Random, other: bytes) -> bytes:
    return data[min(len(data) - 1, int(len(data) * rng.random() ** 3)):]


def cut_inside(data: bytes, rng: random.Random, other: bytes) -> bytes:
    gone = span(data, rng)
    return data[:gone.start] + data[gone.stop:] or b"\0"


def double(data: bytes, rng: random.Random, other: bytes) -> bytes:
    twice = span(data, rng)
    return data[:twice.stop] + data[twice] + data[twice.stop:]


def blank(data: bytes, rng: random.Random, other: bytes) -> bytes:
    gone = span(data, rng)
    fill = rng.choice((b"\0", b"\xff"))
    return data[:gone.start] + fill * (gone.stop - gone.start) + data[gone.stop:]


def garbage(data: bytes, rng: random.Random, other: bytes) -> bytes:
    gone = span(data, rng)
    return data[:gone.start] + rng.randbytes(gone.stop - gone.start) + data[rng.choice((gone.start, gone.stop)):]


def swap_header(data: bytes, rng: random.Random, other: bytes) -> bytes:
    length = rng.choice((16, 64, 256, 1024, 4096))
    return other[:length] + data[length:] or b"\0"


def exchange(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """Two stretches change places."""
    a, b = sorted((span(data, rng), span(data, rng)), key=lambda part: part.start)
    if a.stop > b.start:
        return data + data
    return data[:a.start] + data[b] + data[a.stop:b.start] + data[a] + data[b.stop:]


def appended(data: bytes, rng: random.Random, other: bytes) -> bytes:
    return data + other


MUTATIONS: tuple[Callable[[bytes, random.Random, bytes], bytes], ...] = (
    flip, flip, flip, number, number, cut_end, cut_start, cut_inside, double, blank, garbage, swap_header, exchange,
    appended)


def mutated(files: list[Path], folder: Path, count: int, rng: random.Random) -> Iterator[Path]:
    """`count` damaged files, one mutation each and now and then two."""
    for name in range(count):
        source, other = rng.choice(files), rng.choice(files)
        data, changes = source.read_bytes(), []
        for _ in range(rng.choice((1, 1, 1, 2))):
            change = rng.choice(MUTATIONS)
            changes.append(change.__name__)
            data = change(data, rng, other.read_bytes())[:2 * LARGEST]
        path = folder / f"{name:04d}-{'-'.join(changes)}-{re.sub('[^A-Za-z0-9]', '', source.stem)[:20]}{source.suffix}"
        path.write_bytes(data)
        yield path


# --- what becomes of them

def plain_count(path: Path) -> tuple[int, str]:
    """Frames of the first video stream that plain PyAV decodes before the first error, and that error."""
    frames = 0
    try:
        with av.open(f"file:{path}", **LENIENT) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count, stream.codec_context.thread_type = 1, "NONE"
            for _ in container.decode(stream):
                frames += 1
    except IndexError:
        return frames, ""   # PyAV at the end of a file in which a stream showed only on the way, after all packets
    except (av.error.FFmpegError, AttributeError) as error:
        return frames, type(error).__name__
    return frames, ""


@dataclass
class Tally:
    """Outcomes by kind, and the files that must not be."""

    outcomes: Counter = field(default_factory=Counter)
    wrong: dict[str, list[str]] = field(default_factory=dict)

    def blame(self, kind: str, what: str) -> None:
        self.wrong.setdefault(kind, []).append(what)
        print(f"WRONG   {kind}: {what}", file=sys.stderr, flush=True)


def judge(folder: Path, store: Path, tally: Tally, child: ChildProcess) -> None:
    """Every file of the batch has its row; a count that differs from plain decoding is told."""
    index = Index.load(store)
    failures = {row.video: row for row in read_failures(store)}
    for path in sorted(folder.iterdir()):
        kept, failure = path.name in index, failures.get(path.name)
        if not kept and not failure:
            tally.blame("without a row", path.name)
            continue
        row = index.row(path.name) if kept else None
        reason = re.sub(r"\d[\d,]*", "N", re.split("[:;]", failure.reason)[0]) if failure else ""
        tally.outcomes[("kept in part: " if kept else "failed: ") + reason if failure else
                       "kept with a note" if row.note else "kept whole"] += 1
        if kept and not failure and not row.note:
            try:
                plain = child.call(plain_count, path, limit_s=60)
            except Died as death:
                plain = f"plain decoding {death}"
            if plain != (row.frames, ""):
                tally.blame("another count, unsaid", f"{path.name}: {row.frames}, plain {plain}")


def command(module: str, *words: str) -> tuple[int, str]:
    """Exit code (-1: it went on past PATIENCE_S) and the last words of a command."""
    try:
        done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True, errors="replace",
                              timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        return -1, "no end"
    return done.returncode, " ".join((done.stdout + done.stderr).split())[-400:]


def fuzz(files: list[Path], work: Path, count: int, rng: random.Random, batch: int, keep: Path | None = None) -> Tally:
    """Damage `count` of the files in batches and preprocess them under `work`."""
    tally, child = Tally(), ChildProcess()
    try:
        for at in range(0, count, batch):
            folder, store = work / f"batch{at}", work / f"store{at}"
            folder.mkdir()
            for path in mutated(files, folder, min(batch, count - at), rng):
                path.rename(path.with_name(f"b{at}-{path.name}"))
            code, words = command("preprocess.run", "--dataset", "folder", "--videos", str(folder), "--store",
                                  str(store), "--workers", "2", *CHEAP, *LIMITS)
            if code not in (0, 1):
                tally.blame("a run that ended", f"{folder.name}: exit {code}: {words}")
            else:
                judge(folder, store, tally, child)
                code, words = command("preprocess.check", str(store))
                if code:
                    tally.blame("a store that is not whole", f"{folder.name}: {words}")
            if keep:
                suspects = " ".join(what for part in tally.wrong.values() for what in part)
                for path in folder.iterdir():
                    if path.name in suspects or folder.name in suspects:
                        keep.mkdir(parents=True, exist_ok=True)
                        shutil.copy(path, keep)
            shutil.rmtree(folder)
            shutil.rmtree(store, ignore_errors=True)
            print(f"{min(at + batch, count):,} of {count:,} files", file=sys.stderr, flush=True)
    finally:
        child.close()
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--keep", type=Path, help="where files go that were treated wrongly")
    parser.add_argument("--data", type=Path, default=DATA)
    args = parser.parse_args()
    began = time.monotonic()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        work = Path(folder)
        (work / "sources").mkdir()
        files = sources(args.data, work / "sources", rng)
        tally = fuzz(files, work, args.files, rng, args.batch, args.keep)
    print(f"{args.files:,} files of {len(files)} sources, seed {args.seed}, "
          f"{time.monotonic() - began:.0f} s, PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}")
    for outcome, files in tally.outcomes.most_common():
        print(f"{files:6,}  {outcome}")
    for kind, what in tally.wrong.items():
        print(f"WRONG   {kind}: {len(what)}", *what, sep="\n        ")
    print("nothing ended a run, went past its limit or passed with a wrong count unsaid" if not tally.wrong else "")
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
