"""Peak memory of preprocessing a 1-minute and a 15-minute film: it must not grow with the length.

    python tests/bench/memory.py [--minutes 1 15] [--size 240x320]
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
from floors import tell

FPS = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, nargs="*", default=[1, 15])
    parser.add_argument("--size", default="240x320")
    parser.add_argument("--film", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.film:
        preprocess(args.film)
        return
    height, width = map(int, args.size.split("x"))
    peaks = []
    with tempfile.TemporaryDirectory() as temporary:
        for minutes in args.minutes:
            folder = Path(temporary) / f"{minutes:g}"
            folder.mkdir()
            write_film(folder / "film.mp4", round(minutes * 60 * FPS), height, width)
            out = subprocess.run([sys.executable, __file__, "--film", str(folder)], check=True, text=True,
                                 stdout=subprocess.PIPE).stdout.splitlines()[-1]
            frames, peak = out.split()
            peaks.append(float(peak))
            print(f"{minutes:g} minutes, {int(frames):,} frames of {args.size}: peak {float(peak):.0f} MB", flush=True)
    tell("memory: a long film over a short one", peaks[-1] / peaks[0])
    print(f"last over first: {peaks[-1] / peaks[0]:.3f}")


def write_film(path: Path, frames: int, height: int, width: int) -> None:
    """A still noise background with a bright block that wanders."""
    background = np.random.default_rng(0).integers(60, 160, (height, width, 3), np.uint8)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", FPS, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for t in range(frames):
            picture = background.copy()
            x = 2 * t % (width - 40)
            picture[height // 3:height // 3 + 40, x:x + 40] = 230
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        file.mux(stream.encode())


def preprocess(folder: Path) -> None:
    from preprocess.run import main as run
    from shared.store.index import Index
    store = folder / "store"
    run(["--dataset", "folder", "--videos", str(folder), "--store", str(store), "--set", "preset=fast",
         "--set", "warps=1"])
    print(Index.load(store).frames.sum(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)


if __name__ == "__main__":
    main()
