"""Decoding: CPU per frame by source size, and memory against the length of the film.

    python tests/bench/decode.py [--repeats N] [--minutes M]

Interleaved repeats, medians of CPU time. `decode` is PyAV's decoding alone on one thread; `fast` adds PyAV's default
conversion at the source's size (no scaling, swscale's fast path); `frames` is shared.videos.decode.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import av
import cv2
import numpy as np
from floors import tell

from shared.videos.decode import open_video

SIZES = [(240, 320), (256, 340), (360, 480), (480, 640), (720, 1280), (1080, 1920)]  # height, width
CHILD = """
import json, sys
from shared.videos.decode import open_video
with open_video(sys.argv[1]) as video:
    frames = sum(len(window) for window in video)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([frames, int(peak) / 1024]))
"""


def film(path: Path, height: int, width: int, frames: int) -> Path:
    """An H.264 film of `frames` frames: a textured picture that drifts, 50 pictures repeated."""
    rng = np.random.default_rng(0)
    field = cv2.GaussianBlur(rng.normal(size=(height + 100, width + 100, 3)).astype(np.float32), (0, 0), 2)
    field = cv2.normalize(field, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    pictures = [av.VideoFrame.from_ndarray(np.ascontiguousarray(field[t:t + height, 2 * t:2 * t + width]), "rgb24")
                .reformat(format="yuv420p") for t in range(50)]
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"crf": "23", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for t in range(frames):
            picture = pictures[t % len(pictures)]
            picture.pts = t
            output.mux(stream.encode(picture))
        output.mux(stream.encode())
    return path


def plain_frames(path: Path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count, stream.codec_context.thread_type = 1, "NONE"
        yield from container.decode(stream)


def decode_only(path: Path) -> None:
    for _ in plain_frames(path):
        pass


def fast(path: Path) -> None:
    for frame in plain_frames(path):
        frame.to_ndarray(format="rgb24")


def ours(path: Path) -> None:
    with open_video(path) as video:
        for _ in video:
            pass


def cpu_ms(function, path: Path, frames: int) -> float:
    start = time.process_time()
    function(path)
    return 1000 * (time.process_time() - start) / frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--minutes", type=int, default=15, help="length of the long film (default 15)")
    args = parser.parse_args()
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    print(f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, PyAV {av.__version__}, "
          f"FFmpeg {av.ffmpeg_version_info}, numpy {np.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        speed(Path(folder), args.repeats)
        memory(Path(folder), args.minutes)


def speed(folder: Path, repeats: int, frames: int = 100) -> None:
    print(f"\n{'source':>10} {'kept':>8} {'decode':>8} {'fast':>8} {'frames':>8}   ms CPU a frame"
          f"   {'decode/frames':>13} {'frames/fast':>12}")
    methods = [decode_only, fast, ours]
    for height, width in SIZES:
        path = film(folder / f"{height}.mp4", height, width, frames)
        with open_video(path) as video:
            kept = "x".join(map(str, video.frame_size))
        runs = [[cpu_ms(method, path, frames) for method in methods] for _ in range(repeats)]
        a, b, c = (median(column) for column in zip(*runs))
        print(f"{f'{height}x{width}':>10} {kept:>8} {a:8.2f} {b:8.2f} {c:8.2f} {'':16} {a / c:13.0%} {c / b:12.2f}")


def memory(folder: Path, minutes: int) -> None:
    peaks = {}
    for length in (1, minutes):
        path = film(folder / f"{length}min.mp4", 240, 320, length * 60 * 25)
        done = subprocess.run([sys.executable, "-c", CHILD, str(path)], check=True, capture_output=True, text=True)
        frames, peaks[length] = json.loads(done.stdout)
        print(f"\nfilm of {length} min, 240x320, {frames} frames: peak RSS {peaks[length]:.1f} MiB", end="")
    tell("decode: memory of a long film over a short one", peaks[minutes] / peaks[1])
    print(f"\npeak RSS, {minutes} min over 1 min: {peaks[minutes] / peaks[1]:.3f}")


if __name__ == "__main__":
    main()
