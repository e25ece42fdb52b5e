"""What a run leaves behind beside its checkpoints: metrics.jsonl, TensorBoard's files, pictures, its own lock.

B clips, L frames of SxS pixels, h'xw' cells of maps.
"""

import json
import resource
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from shared.cli import RequestError, hold, writing
from shared.clips.resampling import MEAN, STD
from shared.clips.views import Views
from shared.saliency import normalised, similarity_cam
from shared.store.record import write_atomic
from train.moco import Learner

LOCK, METRICS, BOARD, LAST, CHECKPOINTS = ".lock", "metrics.jsonl", "tensorboard", "last.pt", "checkpoints"
SHOWN = 4                                        # clips a picture
SIDE, GAP = 96, 2                                # least pixels a view in it, and of white around each
COLOURS = ((0, 0, 0), (0.45, 0.05, 0.45), (0.95, 0.4, 0.1), (1, 1, 0.6))    # of a map, from 0 to 1


def claim(run: Path, resume: bool) -> int:
    """Make RUN, or take it up again; returns the descriptor whose lock says that it is in use.

    Raises RequestError where RUN is not empty and not to be resumed, where it is no run, or where it is in use.
    """
    if run.is_file():
        raise RequestError(f"--out {run} is a file; expected a folder")
    there = {entry.name for entry in run.iterdir() if not entry.name.startswith(".")} if run.is_dir() else set()
    foreign = sorted(there - {METRICS, BOARD, LAST, CHECKPOINTS})
    if foreign and not there & {METRICS, LAST}:      # else files that somebody keeps beside a run
        raise RequestError(f"--out {run} is no run of train/main.py: it holds {foreign[0]}; choose a new folder")
    if there and not resume:
        raise RequestError(f"--out {run} is not empty; go on with it by --resume auto, or choose a new folder")
    run.mkdir(parents=True, exist_ok=True)
    lock = hold(run, "--out")
    for name in (run, run / CHECKPOINTS):        # what a killed run left half-written
        for entry in name.glob(".*.partial") if name.is_dir() else ():
            entry.unlink()
    return lock


class Record:
    """Rank 0's metrics.jsonl and TensorBoard files. `step` steps are done already: rows after them are dropped."""

    def __init__(self, run: Path, step: int):
        path = run / METRICS
        rows = []
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
            # The row that a killed run was writing may be torn; it is beyond the checkpoint, as all after it.
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            rows.append(line)
        write_atomic(path, b"".join(rows))
        self.run, self.file = run, open(path, "a", encoding="ascii")
        with writing(run / BOARD):
            self.board = SummaryWriter(str(run / BOARD), purge_step=step + 1)

    def row(self, row: dict) -> None:
        """One logged step: a line of JSON, handed to the kernel at once, and TensorBoard's scalars."""
        with writing(self.file.name):
            self.file.write(json.dumps(row, allow_nan=False) + "\n")
            self.file.flush()
        with writing(self.run / BOARD):
            for name, value in row.items():
                if name != "step":
                    self.board.add_scalar(name, value, row["step"])

    def picture(self, learner: Learner, views: Views, step: int) -> None:
        with writing(self.run / BOARD):
            self.board.add_image("query, motion, Grad-CAM, keys", picture(learner, views), step)

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_) -> None:
        with writing(self.file.name):
            self.file.close()
        with writing(self.run / BOARD):
            self.board.close()


class Meter:
    """Clips (queries of all ranks) a second, and the share of the time that went into waiting for data."""

    def __init__(self, batch: int):
        self.batch, self.clips, self.waited, self.since = batch, 0, 0.0, time.monotonic()

    def add(self, waited: float) -> None:
        """One more step; waited: seconds of it for data."""
        self.clips, self.waited = self.clips + self.batch, self.waited + waited

    def rates(self) -> dict[str, float]:
        elapsed = time.monotonic() - self.since
        return {"clips_per_s": self.clips / elapsed, "data_wait": min(1.0, self.waited / elapsed)}

    def line(self, logs: dict[str, float]) -> str:
        rates = self.rates()
        return (f"{rates['clips_per_s']:.1f} clips/s, {rates['data_wait']:.0%} waiting for data, loss "
                f"{logs['loss']:.3f}, in-batch accuracy {logs['in_batch_accuracy']:.2f}")


@torch.no_grad()
def picture(learner: Learner, views: Views) -> Tensor:
    """(3, H, W) in [0, 1]: a row a clip; the query's middle frame, its S-motion target or mean motion input where there
    is one, the Grad-CAM of its similarity to k1, and the middle frame of every key. Each map is shown over its own
    largest value.

    Nothing of the learner moves: both encoders run in eval mode, on few clips.
    """
    query, keys = views.query[:SHOWN], [key[:SHOWN] for key in views.keys]
    training, size = learner.training, query.shape[-1]
    learner.eval()
    try:
        key = learner.key(keys[0], ["inter"])[0]["inter"]
        cam = similarity_cam(learner.query.backbone, learner.query.heads["inter"], query, key)
    finally:
        learner.train(training)
    columns = [middle_frame(query)]
    if views.motion is not None:
        columns.append(coloured(views.motion[:SHOWN].mean(1), size))
    if views.motion_clips is not None:
        columns.append(coloured(views.motion_clips[0][:SHOWN].abs().mean((1, 2)), size))
    columns += [coloured(cam, size), *map(middle_frame, keys)]
    tiles = torch.stack(columns, 1)                                              # (clips, columns, 3, S, S)
    tiles = tiles.repeat_interleave(-(-SIDE // size), 3).repeat_interleave(-(-SIDE // size), 4)
    tiles = F.pad(tiles, (GAP, GAP, GAP, GAP), value=1.0)
    return tiles.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2).cpu()


def middle_frame(clips: Tensor) -> Tensor:
    """(B, 3, L, S, S) as the network sees it -> (B, 3, S, S) in [0, 1]."""
    frame = clips[:, :, clips.shape[2] // 2].float()
    mean, std = (torch.tensor(values, device=frame.device).view(3, 1, 1) for values in (MEAN, STD))
    return (frame * std + mean).clamp(0, 1)


def coloured(maps: Tensor, size: int) -> Tensor:
    """(B, h', w') >= 0 -> (B, 3, size, size): each map over its largest value, from black to yellow."""
    maps = F.interpolate(normalised(maps.float())[:, None], (size, size))[:, 0]
    stops = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(maps.cpu().numpy(), stops, [colour[c] for colour in COLOURS]) for c in range(3)]
    return torch.from_numpy(np.stack(channels, 1)).to(maps)


def peak_memory(device: torch.device) -> dict[str, int]:
    """High-water marks in bytes: this process, its largest ended child, and a device with memory of its own."""
    marks = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if children := resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024:
        marks["largest worker"] = children
    if device.type == "cuda":
        marks["device"] = torch.cuda.max_memory_allocated(device)
    return marks
