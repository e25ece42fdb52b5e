"""Do encoders see motion? Encoders of every kind before look-alikes, appearance-free twins and rendered people.

    python tests/bench/instruments.py OUT [--steps 400] [--mocap FOLDER]

Three stores are made: generated look-alikes (`lookalikes`), generated videos of eight motions with their twins
(linear accuracy on both, the share kept), and, where it is there, ../shared/data/videos/mocap10, whose classes are
motions and whose styles are looks (`lookalikes`). Rows: an untrained net, the mean image, hand-made motion, temporal
moments of the untrained net, an untrained VideoMAE with a tiny configuration, and `moco-tiny` and `mcl-v1-tiny` trained
on the generated videos. One seed each: what it shows is the instruments, not a ranking. The same command goes on.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

from preprocess.machine import device, versions

ROOT = Path(__file__).resolve().parents[2]
MOCAP = ROOT.parent / "shared/data/videos/mocap10"
SIZE = ("height=64", "width=64", "short_side=64")
NET = "random:r2plus1d_tiny:0"
TRAINED = "moco-tiny", "mcl-v1-tiny"
FEATURES = ("features.size=64", "features.clips=5", "features.clip=16x2")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--mocap", type=Path, default=MOCAP)
    args = parser.parse_args()
    print(device("cpu"), versions())
    stores = make_stores(args.out, args.mocap)
    for pipeline in TRAINED:
        once(args.out / pipeline / "last.pt", "train/main.py", "--pipeline", pipeline, "--store", stores["moving"],
             "--out", args.out / pipeline, "--resume", "auto", *settings(f"steps={args.steps}", "size=32"))
    rows = {"untrained": (NET,), "mean image": ("mean-image",), "frame difference": ("frame-difference",),
            "motion history": ("motion-history",), "untrained, moments": (NET, "features.pool=moments"),
            "tiny VideoMAE, untrained": (f"hf:{tiny_vit(args.out)}",),
            **{pipeline: (args.out / pipeline / "last.pt",) for pipeline in TRAINED}}
    table = []
    for name, (checkpoint, *more) in rows.items():
        cells = [name]
        for key, flags in (("alike", ["--protocol", "lookalikes"]),
                           ("moving", ["--protocol", "linear", "--twins", stores["twins"]]),
                           ("mocap", ["--protocol", "lookalikes", *settings("lookalikes.motion=class",
                                                                            "lookalikes.look=group")])):
            if key not in stores:
                continue
            out = args.out / "results" / f"{key}-{name}".replace(" ", "_").replace(",", "")
            once(out / "metrics.json", "-m", "evaluate.run", *flags, "--checkpoint", checkpoint, "--store", stores[key],
                 "--out", out, *settings(*FEATURES, *more))
            cells += said(json.loads((out / "metrics.json").read_text()))
        table.append(cells)
        print(" | ".join(cells), flush=True)
    return 0


def make_stores(out: Path, mocap: Path) -> dict[str, Path]:
    """By name; made where they are not yet."""
    stores = {name: out / name for name in ("alike", "moving", "twins")}
    generated = "--dataset", "synthetic", *settings("generate.frames=48", "geometries=16x2,8x2", *SIZE)
    once(None, "-m", "preprocess.run", *generated, "--videos", out / "alike-videos", "--store",
         stores["alike"], *settings("generate.lookalikes=5", "generate.videos=180"))
    once(None, "-m", "preprocess.run", *generated, "--videos", out / "moving-videos", "--store",
         stores["moving"], *settings("generate.videos=240", "textures=20"))
    once(None, "-m", "preprocess.twins", stores["moving"], "--out", stores["twins"])
    if mocap.is_dir():
        stores["mocap"], listed = out / "mocap", out / "mocap.csv"
        with listed.open("w", newline="") as file:
            csv.writer(file).writerows([("path", "label", "group"), *(
                (f"{video.parent.name}/{video.name}", video.parent.name, video.stem.rpartition("_")[0])
                for video in sorted(mocap.glob("*/*.mp4")))])
        once(None, "-m", "preprocess.run", "--dataset", "folder", "--videos", mocap, "--store",
             stores["mocap"], "--annotations", listed, *settings("geometries=16x2", "short_side=64"))
    return stores


def tiny_vit(out: Path) -> Path:
    """A VideoMAE of two layers and 32 channels, as save_pretrained leaves it, with random weights."""
    import torch
    from transformers import VideoMAEConfig, VideoMAEModel

    folder = out / "videomae"
    if not folder.is_dir():
        torch.manual_seed(0)
        VideoMAEModel(VideoMAEConfig(image_size=64, num_frames=16, hidden_size=32, num_hidden_layers=2,
                                     num_attention_heads=4, intermediate_size=64)).save_pretrained(folder)
    return folder


def said(found: dict) -> list[str]:
    """The first score of a result beside its interval and its chance, or of twins beside the videos'."""
    if "twins" in found:
        score = found["twins"]["scores"]["top1"]
        kept = "-" if score["kept"] is None else f"{score['kept']:.0f}"
        return [f"{score['videos']:.1f}", f"{score['twins']:.1f}", f"{score['chance']:.1f}", kept]
    name = next(iter(found["metrics"]))
    low, high = found["interval"][name]
    return [f"{found['metrics'][name]:.1f} ({low:.1f} to {high:.1f})", f"{found['chance'][name]:.1f}"]


def settings(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--set", text)]


def once(made: Path | None, *words) -> None:
    """A command of ours, unless what it makes is there. Ends the program where it fails."""
    if made and made.exists():
        return
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode not in (0, 1) or made and not made.exists():
        raise SystemExit(f"{' '.join(map(str, words))} left with {done.returncode}:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
