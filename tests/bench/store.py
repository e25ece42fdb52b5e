"""The store against its peers, as ratios of CPU time in one run on one machine.

    python tests/bench/store.py [--rounds N] [--clips N]

Sources: the 340x256 Kinetics clips beside the repository, else videos that PyAV writes here. Every figure is a median
of interleaved rounds of process CPU time, page cache warm. A clip is 16 frames at stride 2 with its ST-motion.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import lmdb
import numpy as np
import simplejpeg
import zarr
from floors import tell
from numcodecs import zstd
from seek import pyav_seek

import shared.store.codecs  # noqa: F401
from shared import motion
from shared.clips.index import ClipGeometry, ClipIndexer
from shared.store.chunks import encode_jpeg
from shared.store.index import Index, PackRow, VideoRow, publish
from shared.store.packs import PackWriter
from shared.store.reader import StoreReader
from shared.store.shards import ReadCounts
from shared.videos.decode import open_video

REAL = Path(__file__).resolve().parents[3] / "shared/data/videos/kinetics"
CLIP = ClipGeometry(16, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--clips", type=int, default=40, help="clips a round")
    parser.add_argument("--only", choices=["writer", "memory", "index", "read"], nargs="*")
    parser.add_argument("--grow", type=int, help=argparse.SUPPRESS)  # in a child: write so many frames, say peak memory
    args = parser.parse_args()
    if args.grow:
        return grow(args.grow)
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    print(f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, numpy {np.__version__}, "
          f"zarr {zarr.__version__}, simplejpeg {simplejpeg.__version__}, PyAV {av.__version__}, "
          f"lmdb {lmdb.__version__}\n")
    with tempfile.TemporaryDirectory() as folder:
        only = args.only or ["writer", "memory", "index", "read"]
        videos = sources(Path(folder))
        contents = [load(path) for path in videos]
        if "writer" in only:
            table("writer", writing(contents, args.rounds))
        if "memory" in only:
            table("memory: peak of a process that writes one pack", memory())
        if "index" in only:
            table("index of 240,000 videos, 3,750 packs", opening(Path(folder) / "large"))
        if "read" in only:
            ids = write(Path(folder) / "store", contents, videos)
            table("clip read", reading(Path(folder) / "store", ids, videos, Path(folder) / "lmdb", args))


def table(title: str, rows: list[tuple[str, str, str, str]]) -> None:
    """rows: what, figure, ratio, target."""
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    print(title)
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(row, widths))) + f"  {row[3]}".rstrip())
    print(flush=True)


def interleaved(functions: dict, rounds: int) -> dict[str, float]:
    """Median CPU seconds of each function over interleaved rounds; the first round warms up.

    Each round starts with another function: what ran before decides whether large arrays come from fresh pages, which
    is up to a fifth of a clip's time.
    """
    seconds, names = {name: [] for name in functions}, list(functions)
    for number in range(rounds + 1):
        for name in names[number % len(names):] + names[:number % len(names)]:
            function = functions[name]
            start = time.process_time()
            result = function()
            if number:
                seconds[name].append(time.process_time() - start)
            if isinstance(result, tempfile.TemporaryDirectory):
                result.cleanup()
    return {name: statistics.median(values) for name, values in seconds.items()}


def sources(folder: Path) -> list[Path]:
    real = [path for path in sorted(REAL.rglob("*.mp4")) if path.stat().st_size > 200_000][:10]
    if real:
        return real
    rng = np.random.default_rng(0)
    texture = np.kron(rng.integers(0, 256, (80, 100, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    paths = []
    for number in range(6):
        paths.append(folder / f"made{number}.mp4")
        with av.open(str(paths[-1]), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(30), options={"g": "250", "crf": "23"})
            stream.width, stream.height, stream.pix_fmt = 344, 256, "yuv420p"
            for t in range(300):
                y, x = 40 + round(30 * np.sin(t / 20 + number)), 40 + t % 200
                noisy = texture[y:y + 256, x:x + 344].astype(int) + rng.integers(-6, 7, (256, 344, 3))
                frame = av.VideoFrame.from_ndarray(noisy.clip(0, 255).astype(np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return paths


def load(path: Path):
    """rgb (T, H, W, 3), st_motion (T, h, w), t_motion (T,) and clips, from OpenCV's DIS flow: fast, and real maps."""
    with open_video(path) as video:
        rgb = np.concatenate(list(video))
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    grey, maps = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in rgb], []
    for one, two in zip(grey, grey[1:]):
        flow = dis.calc(one, two, None).transpose(2, 0, 1)[None]
        fine = np.sqrt((motion.motion_boundary(flow)[0] ** 2).sum(axis=0))
        maps.append(fine.reshape(fine.shape[0] // 8, 8, fine.shape[1] // 8, 8).mean(axis=(1, 3)))
    maps = np.stack([*maps, maps[-1]])
    indexer = ClipIndexer(CLIP, 4)
    indexer.append(maps, maps.mean(axis=(1, 2)))
    return rgb, maps, maps.mean(axis=(1, 2)), {str(CLIP): indexer.finish()}


def write(store: Path, contents, paths) -> list[str]:
    """One pack a frame size; returns the ids of the videos."""
    packs, rows, ids = [], [], []
    for size in sorted({content[0].shape[1:3] for content in contents}):
        writer = PackWriter(store, f"p{size[0]}x{size[1]}", size, geometries=[CLIP], attributes={"backend": "none"})
        for path, (rgb, maps, t_motion, clips) in zip(paths, contents):
            if rgb.shape[1:3] == size:
                writer.begin_video()
                for a in range(0, len(rgb), 64):
                    writer.append(rgb[a:a + 64], maps[a:a + 64], t_motion[a:a + 64])
                ids.append(writer.end_video(VideoRow(path.stem, str(path)), clips).id)
        row, videos = writer.commit()
        packs.append(row)
        rows += videos
    publish(store, packs, rows)
    return ids


def writing(contents, rounds):
    contents = [content for content in contents if content[0].shape[1:] == contents[0][0].shape[1:]] * 3
    frames = sum(len(content[0]) for content in contents)
    paths = [Path(f"{i}.mp4") for i in range(len(contents))]

    def encode():
        for rgb, *_ in contents:
            for frame in rgb:
                encode_jpeg(frame, 85)

    def plain():
        with tempfile.TemporaryFile(buffering=0) as file:
            for rgb, *_ in contents:
                for a in range(0, len(rgb), 64):
                    file.write(b"".join([encode_jpeg(frame, 85) for frame in rgb[a:a + 64]]))
            os.fsync(file.fileno())

    def pack():
        folder = tempfile.TemporaryDirectory()
        write(Path(folder.name), contents, paths)
        return folder
    seconds = interleaved({"encode": encode, "plain": plain, "pack": pack}, rounds)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), contents, paths)
        files = sum(len(row.files) for row in Index.load(folder).pack_rows()) / len(Index.load(folder).packs)

    tell("store: files a pack", files)
    tell("store: pack over encoding alone", seconds["pack"] / seconds["encode"])

    def row(name, what, target):
        return what, f"{1e3 * seconds[name] / frames:.3f} ms/frame", f"{seconds[name] / seconds['encode']:.2f}", target
    return [row("encode", "JPEG encoding alone", ""),
            row("plain", "JPEGs written to one file, flushed", "the kernel's part"),
            row("pack", "pack with maps and clips, flushed, read back, published", "target 1.10 at most"),
            ("files a pack", f"{files:g}", "", "target 26 at most")]


def grow(frames: int) -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (64, 256, 344, 3), np.uint8)
    maps = rng.random((64, 32, 43), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        writer = PackWriter(Path(folder), "p", (256, 344), geometries=[], attributes={"backend": "none"})
        for number in range(0, frames, 320):
            writer.begin_video()
            for _ in range(5):
                writer.append(rgb, maps, maps.mean(axis=(1, 2)))
            writer.end_video(VideoRow(str(number), "x"), {})
        writer.commit()
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))  # ru_maxrss would count the parent's
    print(int(status["VmHWM"].split()[0]) / 1024)


def memory():
    peaks = {frames: float(subprocess.run([sys.executable, __file__, "--grow", str(frames)], check=True, text=True,
                                          capture_output=True).stdout) for frames in (640, 2560, 10240)}
    first = next(iter(peaks.values()))
    tell("store: memory, 10,240 frames over 640", peaks[10240] / first)
    return [(f"{frames:,} frames of noise", f"{peak:.0f} MB", f"{peak / first:.2f}", "target flat" * (peak != first))
            for frames, peak in peaks.items()]


def opening(store: Path):
    names = ["", "clips/", "clips/16x2/", *(f"{name}/" for name in ("rgb", "st_motion", "t_motion", "frame_offset"))]
    files = {f"{name}zarr.json": (1000, 0x12345678) for name in names} | {f"{i}/c.0.0": (10 ** 6, i) for i in range(16)}
    packs = [PackRow(f"p{i:06d}", f"packs/256x344/p{i:06d}", 19200, 64, "cpu", files) for i in range(3750)]
    rows = [VideoRow(f"{i % 400:03d}/{i:011d}_000010_000020", f"{i % 400:03d}/{i:011d}_000010_000020.mp4",
                     f"p{i // 64:06d}", i % 64 * 300, 300, i % 400, f"class {i % 400}", "", ("train",), 30000 / 1001,
                     256, 340) for i in range(240_000)]
    publish(store, packs, rows)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        index = Index.load(store)
        index.in_split("train")
        times.append(time.perf_counter() - start)
    return [("opened, checked, one split listed", f"{statistics.median(times):.2f} s", "", "target 1 s at most")]


def reading(store, ids, paths, database, args):
    reader = StoreReader(store)
    rng, by_id = np.random.default_rng(1), {path.stem: path for path in paths}
    clips = []
    for _ in range(args.clips):
        row = reader.index.row(str(rng.choice(ids)))
        clips.append((row, int(rng.integers(0, row.frames - CLIP.span + 1))))
    groups = {row.pack: zarr.open_group(store / row.path, mode="r") for row in reader.index.pack_rows()}
    arrays = {name: (group["rgb"], group["st_motion"]) for name, group in groups.items()}
    environment = fill_lmdb(database, reader, ids)
    shapes = {name: rgb.shape[1:] for name, (rgb, _) in arrays.items()}

    def ours(row, start):
        return reader.clip(row.id, start, CLIP)

    def ours_rgb(row, start):
        return reader.frames(row.id, range(start, start + CLIP.span, 2))

    def by_zarr(row, start):
        rgb, motion = arrays[row.pack]
        a = row.first_frame + start
        return rgb[a:a + CLIP.span:2], motion[a:a + CLIP.span:2]

    def lmdb_stacked(row, start):
        with environment.begin(buffers=True) as transaction:
            return np.stack([simplejpeg.decode_jpeg(transaction.get(f"{row.id}/{t}".encode()), "RGB")
                             for t in range(start, start + CLIP.span, 2)])

    def lmdb_in_place(row, start):
        out = np.empty((CLIP.length, *shapes[row.pack]), np.uint8)
        with environment.begin(buffers=True) as transaction:
            for frame, t in zip(out, range(start, start + CLIP.span, 2)):
                simplejpeg.decode_jpeg(transaction.get(f"{row.id}/{t}".encode()), "RGB", buffer=frame)
        return out

    def lmdb_maps(row, start):
        height, width, _ = shapes[row.pack]
        with environment.begin(buffers=True) as transaction:
            maps = np.stack([np.frombuffer(zstd.decompress(transaction.get(f"{row.id}/{t}/m".encode())), "<f2")
                             for t in range(start, start + CLIP.span, 2)])
        return lmdb_stacked(row, start), maps.reshape(CLIP.length, height // 8, width // 8)

    def by_pyav(row, start):
        return pyav_seek(by_id[row.id], start, CLIP)

    for row, start in clips[:5]:
        for mine, theirs in zip(ours(row, start), by_zarr(row, start)):
            assert np.array_equal(mine, theirs)
        for mine, theirs in zip(ours(row, start), lmdb_maps(row, start)):
            assert np.array_equal(mine, theirs)
        assert len(by_pyav(row, start)) == CLIP.length
    counting = StoreReader(store)
    for row, start in clips:
        counting.clip(row.id, start, CLIP)
    rgb, maps = counting.counts["rgb"], counting.counts["st_motion"]

    peers = {"this reader": ours, "this reader, frames only": ours_rgb, "zarr-python, same pack": by_zarr,
             "LMDB of JPEGs, frames only, stacked": lmdb_stacked, "LMDB, frames only, decoded in place": lmdb_in_place,
             "LMDB of JPEGs and maps": lmdb_maps, "PyAV seek in the source, frames only": by_pyav}
    targets = {"zarr-python, same pack": "target 1.9 at least", "PyAV seek in the source, frames only":
               "target 8 at least", "LMDB of JPEGs and maps": "target 1.0 at least"}
    seconds = interleaved({name: (lambda f=function: [f(row, start) for row, start in clips])
                           for name, function in peers.items()}, args.rounds)
    mine = seconds["this reader"]
    tell("store: clip by zarr-python over ours", seconds["zarr-python, same pack"] / mine)
    tell("store: clip by PyAV over ours", seconds["PyAV seek in the source, frames only"] / mine)
    tell("store: ranges a clip, frames", rgb.ranges / len(clips))
    tell("store: rgb bytes read over used", rgb.bytes_read / rgb.bytes_used)
    rows = [(name, f"{1e3 * value / len(clips):.2f} ms/clip", f"{value / mine:.2f}", targets.get(name, ""))
            for name, value in seconds.items()]
    return rows + [
        ("ranges a clip: frames, maps", f"{rgb.ranges / len(clips):g}, {maps.ranges / len(clips):g}", "",
         "target 1, 1"),
        ("rgb bytes read / used", f"{rgb.bytes_read / rgb.bytes_used:.3f}", "", "target 1.05 at most"),
        ("rgb bytes a clip", f"{rgb.bytes_read / len(clips) / 1e3:.0f} kB", "", "")]


def fill_lmdb(path: Path, reader: StoreReader, ids) -> lmdb.Environment:
    environment = lmdb.open(str(path), map_size=4 << 30, lock=False)
    with environment.begin(write=True) as transaction:
        for video in ids:
            row = reader.index.row(video)
            pack = reader._open(row.pack)
            shard = pack.shard(pack.layouts["rgb"], pack.row.frames)
            payloads = shard.read(np.arange(row.first_frame, row.first_frame + row.frames), ReadCounts())
            for t, (payload, motion) in enumerate(zip(payloads, reader.motion(video, 0, row.frames))):
                transaction.put(f"{video}/{t}".encode(), payload.tobytes())
                transaction.put(f"{video}/{t}/m".encode(), zstd.compress(np.ascontiguousarray(motion), 3))
    return environment


if __name__ == "__main__":
    main()
