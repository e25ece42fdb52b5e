"""What a version left on people's disks: a store, runs, an ablation, features, a classifier, an export, evaluations.

    python tests/kept/make.py CHECKOUT FOLDER

runs the commands of the version in CHECKOUT, with this Python's packages, in FOLDER (absent or empty; its path goes
into the records) and packs it as COMMIT.tar.xz here. test_kept.py holds the archives' checksums and goes on with them.
"""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

TINY = "width=2", "hidden=8", "dim=8", "batch=4", "bn_group=2", "queue=24", "size=32"
STEPS = "steps=6", "checkpoint_steps=1", "keep=9", "images_every=0", "run.workers=0", "run.threads=1"
FEATURES = "features.clips=2", "run.workers=1", "run.threads=1"
FINETUNE = "finetune.steps=30", "finetune.batch=4", "finetune.accumulate=1", "finetune.bn_group=2"
FILMS = "from preprocess.synthetic import make_videos; make_videos(" \
    "'videos', videos=8, seed=1, backgrounds=2, textures=3, frames=36, height=48, width=64)"
SAVE_AT_ONCE = "import sys; from evaluate import run, supervised; supervised.CHECKPOINT_S = 0; run.main(sys.argv[1:])"


class Version:
    """The commands of one checkout, run in one folder."""

    def __init__(self, checkout: Path, folder: Path):
        self.checkout, self.folder = checkout, folder
        self.environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}

    def start(self, *words: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, *words], cwd=self.folder, env=self.environment)

    def run(self, *words: str, settings: tuple[str, ...] = ()) -> None:
        flags = [flag for setting in settings for flag in ("--set", setting)]
        if code := self.start(*words, *flags).wait():
            raise SystemExit(f"{' '.join(words)} ended with {code}")

    def train(self, name: str, pipeline: str, *settings: str, at: int) -> None:
        """A whole run, put back to step `at` as if it had been killed there; metrics.jsonl keeps the rows beyond it."""
        self.run(str(self.checkout / "train/main.py"), "--pipeline", pipeline, "--store", "store", "--run", name,
                 settings=(*TINY, *STEPS, *settings))
        for path in (self.folder / name / "checkpoints").iterdir():
            if path.name != f"step-{at:08d}.pt":
                path.unlink()
        (self.folder / name / "last.pt").unlink()
        (self.folder / name / "last.pt").symlink_to(f"checkpoints/step-{at:08d}.pt")

    def finetune(self, out: str, killed: bool) -> None:
        words = ["--protocol", "finetune", "--checkpoint", "mcl/last.pt", "--store", "store", "--out", out]
        if not killed:
            return self.run("-m", "evaluate.run", *words, settings=(*FEATURES, *FINETUNE))
        flags = [flag for setting in (*FEATURES, *FINETUNE) for flag in ("--set", setting)]
        process = self.start("-c", SAVE_AT_ONCE, *words, *flags)
        while process.poll() is None and not list((self.folder / out).rglob("training.pt")):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()


def make(version: Version) -> None:
    """Everything, in the order in which a user comes by it."""
    version.run("-c", FILMS)
    films = sorted(path.relative_to(version.folder / "videos") for path in version.folder.glob("videos/*/*.mp4"))
    rows = [f"{film},{'still' if i % 2 else 'moving'},{'train' if i < 4 else 'test'},g{i // 2}"
            for i, film in enumerate(films)]
    (version.folder / "videos.csv").write_text("\n".join(["path,label,split,group", *rows, ""]))
    for other in (*version.folder.glob("videos/*/*.npz"), *version.folder.glob("videos/*.*")):
        other.unlink()
    version.run("-m", "preprocess.run", "--dataset", "folder", "--recipe", "tiny", "--videos", "videos",
                "--annotations", "videos.csv", "--store", "store", "--engine", "serial", "--flow", "cpu",
                settings=("threads=1", "edges=true", "geometries=16x2,8x2,4x4"))
    version.train("mcl", "mcl-tiny", at=4)
    version.train("released", "mcl-tiny", "form=released", at=4)
    version.train("s3d", "moco-tiny", "backbone=s3d", "width=1", "clip=16x2", at=1)
    version.train("maclr", "maclr-tiny", "motion_width=1", at=4)
    version.run("-m", "evaluate.export", "--checkpoint", "s3d/last.pt", "--out", "s3d.safetensors")
    for name, checkpoint in (("mcl", "mcl/last.pt"), ("s3d", "s3d.safetensors")):
        version.run("-m", "evaluate.run", "--protocol", "linear,retrieval", "--checkpoint", checkpoint, "--store",
                    "store", "--out", f"results/{name}", settings=FEATURES)
    version.finetune("classifier", killed=False)
    version.finetune("classifier-killed", killed=True)
    version.run("-m", "evaluate.ablation", "--store", "store", "--rows", "moco", "--seeds", "1",
                "--protocols", "retrieval", "--out", "ablation", "--set-evaluation", "clips=2",
                settings=(*TINY, *STEPS[:2], "keep=1"))
    for pattern in ("*.png", "*.html", "tensorboard", "logs"):     # most of the room, and nothing reads them
        for path in version.folder.rglob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def main() -> None:
    checkout, folder = (Path(word).absolute() for word in sys.argv[1:])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True,
                            check=True).stdout.strip()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty")
    make(Version(checkout, folder))
    path = Path(__file__).with_name(f"{commit}.tar.xz")
    with tarfile.open(path, "w:xz") as archive:
        archive.add(folder, ".")
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
