"""Persons at AVA's keyframes: where they stand in a store's videos, and their features from a clip about the keyframe.

P persons, C features, L frames at stride S of a clip, HxW pixels.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from evaluate.features.encoders import Encoder
from evaluate.features.vectors import in_order
from evaluate.persons.roi import box_features
from evaluate.settings import Detection, RunEvaluation
from shared.cli import RequestError
from shared.clips.index import ClipGeometry
from shared.clips.resampling import normalise, resize
from shared.datasets.ava import Persons
from shared.nn.distributed import World
from shared.nn.layers import Backbone
from shared.nn.transform import EDGE
from shared.store.index import Index
from shared.store.reader import StoreReader

CUT_S = 900         # second of the movie at which one begins that is cut to minutes 15 to 30


@dataclass(frozen=True)
class Placed:
    """persons, by keyframe; position (P,) int64 of their video in the index; frame (P,) int64 of the keyframe there;
    within (P,) bool: whether the video is long enough to have it; cut: videos that begin at CUT_S."""

    persons: Persons
    position: np.ndarray
    frame: np.ndarray
    within: np.ndarray
    cut: int = 0

    def __len__(self) -> int:
        return len(self.frame)

    def take(self, rows: np.ndarray) -> "Placed":
        return Placed(self.persons.take(rows), self.position[rows], self.frame[rows], self.within[rows], self.cut)

    def digest(self) -> str:
        """What names the persons in a key."""
        parts = ("\n".join(self.persons.video).encode(), self.frame.tobytes(), self.persons.box.tobytes(),
                 np.packbits(self.persons.acts, axis=1).tobytes())
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def place(index: Index, positions: np.ndarray, persons: Persons, start_s: float) -> Placed:
    """The persons of the videos at `positions`, by video and second.

    start_s: second of the movie at which the videos begin; negative: 0 or CUT_S, as a video's length has it. A keyframe
    is the frame nearest to its second. Raises RequestError where a video's length tells neither.
    """
    wanted = {index.id[position]: int(position) for position in positions}
    rows = [row for row, video in enumerate(persons.video) if video in wanted]
    rows.sort(key=lambda row: (wanted[persons.video[row]], persons.second[row]))
    persons = persons.take(np.array(rows, np.int64))
    position = np.array([wanted[video] for video in persons.video], np.int64)
    starts = {int(one): start_of(index, int(one), persons.second[position == one], start_s)
              for one in np.unique(position)}
    start = np.array([starts[one] for one in position.tolist()], np.float64)
    frame = np.round((persons.second - start) * index.fps[position]).astype(np.int64)
    frame -= np.array([index.file_start(one) for one in position.tolist()], np.int64)
    return Placed(persons, position, frame, (frame >= 0) & (frame < index.frames[position]),
                  sum(one == CUT_S for one in starts.values()))


def start_of(index: Index, position: int, seconds: np.ndarray, start_s: float) -> float:
    """The second of the movie at which the video begins. seconds: of its keyframes."""
    if start_s >= 0:
        return start_s
    length = (index.file_start(position) + int(index.frames[position])) / float(index.fps[position])
    first, last = int(seconds.min()), int(seconds.max())
    if last < length:
        return 0
    if first >= CUT_S and last - CUT_S < length:
        return CUT_S
    raise RequestError(f"video {index.id[position]} is {length:.0f} s long, but its keyframes stand at {first} to "
                       f"{last} s: it is neither a whole movie nor one cut from second {CUT_S} to the last keyframe; "
                       "say where the videos begin with --set detection.start_s=N, keyframes beyond their ends then go "
                       "unanswered")


@dataclass(frozen=True)
class KeyframeView:
    """A clip whose middle frame is the keyframe, whole frames, short side scaled to `short_edge` pixels; bins: of
    RoIAlign, a side."""

    geometry: ClipGeometry
    short_edge: int
    bins: int

    @classmethod
    def of(cls, settings: Detection, encoder: Encoder) -> "KeyframeView":
        """The settings, what they leave open filled in from the checkpoint. Raises RequestError."""
        if not isinstance(encoder.net, Backbone):
            raise RequestError(f"checkpoint {encoder.text} has no positions for boxes to lie on; detection needs a "
                               "network of ours, such as RUN/last.pt or random:NAME")
        try:
            geometry = ClipGeometry.parse(settings.clip or encoder.clip)
        except ValueError as error:
            raise RequestError(f"detection.clip: {error}") from None
        view = cls(geometry, settings.short_edge or round(encoder.size * EDGE), settings.bins)
        encoder.check_view(geometry, view.short_edge)
        return view

    def to_dict(self) -> dict:
        return {"clip": str(self.geometry), "short_edge": self.short_edge, "bins": self.bins}

    def frames(self, keyframe: int, count: int) -> np.ndarray:
        """(L,) frame numbers; beyond the video's ends its first and last frame repeat."""
        steps = np.arange(self.geometry.length) - self.geometry.length // 2
        return np.clip(keyframe + self.geometry.stride * steps, 0, count - 1)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) to which frames of the store are scaled."""
        scale = self.short_edge / min(height, width)
        return round(height * scale), round(width * scale)


@torch.no_grad()
def encode_persons(encoder: Encoder, reader: StoreReader, placed: Placed, rows: np.ndarray, view: KeyframeView,
                   run: RunEvaluation, world: World) -> Iterator[Tensor]:
    """(C,) float32 of each of `rows`, `box_features` in eval mode; persons of a keyframe share its clip."""
    index = reader.index
    keyframes = [(key, list(group)) for key, group in
                 groupby(rows.tolist(), key=lambda row: (int(placed.position[row]), int(placed.frame[row])))]

    def read(reader: StoreReader, keyframe) -> np.ndarray:
        position, frame = keyframe[0]
        numbers, places = np.unique(view.frames(frame, int(index.frames[position])), return_inverse=True)
        return reader.frames(index.id[position], numbers)[places]

    waiting: list[tuple[list[int], np.ndarray]] = []
    for (_, members), clip in zip(keyframes, in_order(reader, keyframes, read, run)):
        if waiting and (len(waiting) == run.batch or clip.shape != waiting[0][1].shape):
            yield from _encode_clips(encoder, placed, waiting, view, world)
            waiting.clear()
        waiting.append((members, clip))
    if waiting:
        yield from _encode_clips(encoder, placed, waiting, view, world)


def _encode_clips(encoder: Encoder, placed: Placed, waiting: list[tuple[list[int], np.ndarray]], view: KeyframeView,
                  world: World) -> Iterator[Tensor]:
    """The persons of several keyframes whose clips, (L, H, W, 3) uint8, are of one size."""
    size = view.size(*waiting[0][1].shape[1:3])
    clips = torch.stack([normalise(resize(torch.from_numpy(clip).to(world.device), size)) for _, clip in waiting])
    members = [row for rows, _ in waiting for row in rows]
    images = torch.tensor([i for i, (rows, _) in enumerate(waiting) for _ in rows], device=world.device)
    boxes = torch.from_numpy(placed.persons.box[members]).to(world.device)
    yield from box_features(encoder.net, clips, boxes, images, view.bins)
