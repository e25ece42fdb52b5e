"""What a bare GPU machine without network needs beside this repository: `make gpu-kit` fills gpu-kit/.

wheels/ (what docs/gpu.md names), clips/ (a few real videos, a folder a set; where none are at hand generated ones, a
folder a class), flow.npz (grey frames of theirs, and the CPU backend's flow). At most 55 MiB, so that all fits into 60
with the repository.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from preprocess.flow import PRESETS, flow_window, parameters
from preprocess.synthetic import make_videos
from shared.cli import size

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT.parent / "shared/data/videos"
WHEELS = "zarr", "numcodecs", "donfig", "google-crc32c", "simplejpeg", "kornia", "kornia_rs", "av"
PLATFORMS = "manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"
LIMIT = 55 << 20
FRAMES, PAIRS, SIZE = 6, 2, (256, 340)      # frames to time with; pairs whose flow is kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kit", type=Path, nargs="?", default=ROOT / "gpu-kit")
    parser.add_argument("--python", default="3.12", help="of the GPU machine (default 3.12)")
    args = parser.parse_args()
    shutil.rmtree(args.kit, ignore_errors=True)
    wheels(args.kit / "wheels", args.python)
    clips(args.kit / "clips")
    flow(args.kit)
    total = sum(file.stat().st_size for file in args.kit.rglob("*") if file.is_file())
    print(f"{args.kit}: {size(total)}")
    if total > LIMIT:
        print(f"error: the kit has {size(total)}, expected at most {size(LIMIT)}; leave clips out", file=sys.stderr)
        return 2
    return 0


def wheels(folder: Path, python: str) -> None:
    """Of the packages that such a machine lacks, by constraints.txt, and of this one, for its entry points."""
    pins = dict(line.strip().lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()
                if "==" in line and not line.startswith("#"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    subprocess.run([*pip, "download", "--no-deps", "--only-binary=:all:", "--python-version", python,
                    "--implementation", "cp", *platforms, "-d", folder,
                    *(f"{name}=={pins[name]}" for name in WHEELS)], check=True)
    subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, ROOT], check=True)


def clips(folder: Path) -> None:
    """Real videos of three to twelve seconds where ../shared/data is beside the repository, else made ones."""
    if not DATA.is_dir():
        make_videos(folder, videos=16, seed=0, backgrounds=4, textures=4, frames=96, height=256, width=340)
        return
    files = [*sorted((DATA / "kinetics").glob("*/*.mp4"), key=lambda file: file.stat().st_size)[:3],
             *sorted((DATA / "ucf101").glob("*/*"))[:2],
             *(file for step in sorted((DATA / "handwash12").glob("Step_*"))
               for file in sorted(step.glob("*.mp4"))[:1])]
    for file in files:
        (folder / file.parents[1].name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / file.parents[1].name / file.name)


def flow(kit: Path) -> None:
    frames = []
    for file in sorted((kit / "clips").glob("*/*"), key=lambda file: -file.stat().st_size):
        video = cv2.VideoCapture(str(file))
        while len(frames) < FRAMES and (found := video.read())[0]:
            frames.append(cv2.resize(cv2.cvtColor(found[1], cv2.COLOR_BGR2GRAY), SIZE[::-1],
                                     interpolation=cv2.INTER_AREA))
    frames = np.stack(frames)
    known = {f"flow_{preset}": flow_window(frames[:PAIRS + 1], parameters(preset), "cpu").astype(np.float16)
             for preset in PRESETS}
    np.savez_compressed(kit / "flow.npz", frames=frames, pairs=PAIRS, **known)


if __name__ == "__main__":
    sys.exit(main())
