"""Videos that deserve a second look before anything is trained on them.

n frames, HxW pixels, hxw cells of 8x8 pixels.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from preprocess.page.numbers import VideoNumbers
from preprocess.page.readers import of_each
from shared import motion
from shared.clips.index import ClipGeometry
from shared.store.index import Index
from shared.store.reader import StoreReader
from shared.store.tables import FailureRow

EXAMINED = 2000         # videos whose frames are decoded; of a larger store, those with the clearest signs
FRAMES = 12             # of a video, spread evenly, that are decoded
RESTING = 0.9           # share of frames without motion that makes a video still
DARK, LIT = 32, 0.01    # a frame is black when less than this share of its pixels is above this grey level
DETAILED, SHARP = 4, 8  # grey levels a pixel: mean gradient of a cell that shows something, and of a logo's cells
STAYS, CHANGES = 0.9, 0.6   # consistency of a cell's gradients over the frames: a logo's, a moving picture's
CHANGING = 0.6          # share of the detailed cells that must change, for the rest to be overlaid
LOGO = 8, 0.1           # cells, share of the frame: smallest and largest thing taken for a logo
CUT = re.compile("ends early|flagged corrupt|starts at frame")     # in the note of a video
COMPARED = 16           # frames of two videos whose checksums are compared

# name, title, and what to say of it; the order on the page
KINDS = {
    "still": ("Still", "Nothing moves in nine of ten frames. Motion chooses their clips and crops by noise."),
    "black": ("Black", "At least half of the frames looked at are black."),
    "logo": ("Static logo", "Detail stays in one place while the rest of the picture changes: a logo, a caption or a "
             "frame laid over a moving picture. Its outline is a motion boundary in every frame, so it draws crops."),
    "cut": ("Cut off or damaged", "Only a part of the video could be decoded, or the decoder flagged frames as "
            "corrupt; the store holds what could be decoded."),
    "twin": ("Duplicates", "The stored frames of one are those of another, or the first part of them, by their "
             "checksums."),
    "short": ("Too short for a clip", "Training leaves these out; evaluation loops their frames."),
}


@dataclass
class Suspects:
    """Positions in the index by kind. twins: groups of equal videos, the longest of each first; reasons: what the note
    or failures.csv says of a video that was cut off; examined: how many were looked at for black frames and logos."""

    kinds: dict[str, list[int]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    twins: list[list[int]] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    examined: int = 0


def find(index: Index, numbers: VideoNumbers, failures: Sequence[FailureRow], geometry: ClipGeometry) -> Suspects:
    """Looks at the numbers of all videos and at the frames of at most EXAMINED. Raises StoreError for damage."""
    found = Suspects()
    found.kinds["still"] = np.flatnonzero((numbers.rest >= RESTING) & (index.frames > 1)).tolist()
    found.kinds["short"] = np.flatnonzero(index.frames < geometry.span).tolist()
    found.reasons = {position: note for position, note in enumerate(index.note) if CUT.search(note)}
    found.reasons |= {index.position(row.video): row.reason for row in failures if row.video in index}
    found.kinds["cut"] = sorted(found.reasons)
    chosen = worth_examining(numbers)
    found.examined = len(chosen)
    for position, kinds in sorted(of_each(index, examine, chosen, "looking at videos").items()):
        for kind in kinds:
            found.kinds[kind].append(position)
    found.twins = twins(StoreReader(index.store, index=index), numbers.opening)
    found.kinds["twin"] = sorted(position for group in found.twins for position in group)
    return found


def worth_examining(numbers: VideoNumbers) -> list[int]:
    """All videos, or the half of EXAMINED with the least detail and the half whose hot cells stay most."""
    if len(numbers.motion) <= EXAMINED:
        return list(range(len(numbers.motion)))
    dark = np.argsort(numbers.detail, kind="stable")[:EXAMINED // 2]
    steady = np.setdiff1d(np.argsort(-numbers.steady, kind="stable"), dark, assume_unique=True)
    return sorted([*dark.tolist(), *steady[:EXAMINED // 2].tolist()])


def examine(reader: StoreReader, position: int) -> list[str]:
    """Which of `black` and `logo` the video is, from frames spread evenly over it."""
    frames = int(reader.index.frames[position])
    number = np.unique(np.linspace(0, frames - 1, min(FRAMES, frames)).round().astype(int))
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
                     for frame in reader.frames(reader.index.id[position], number)])
    return [kind for kind, seen in (("black", is_black(grey)), ("logo", has_logo(grey))) if seen]


def is_black(grey: np.ndarray) -> bool:
    """Whether at least half of (n, H, W) uint8 grey frames are black."""
    return bool(((grey >= DARK).mean(axis=(1, 2)) < LIT).mean() >= 0.5)


def has_logo(grey: np.ndarray) -> bool:
    """Whether something small stays in its place while the rest changes: (n, H, W) uint8 grey frames.

    A cell's consistency is the length of its mean gradient over its mean length of the gradient: 1 where all frames
    show the same edges, also through a half transparent logo, about n ** -0.5 where they show others each time (after
    Dekel et al., On the Effectiveness of Visible Watermarks, CVPR 2017, which estimates a watermark so).
    """
    if len(grey) < FRAMES // 2:
        return False
    across, down = (np.stack([cv2.Sobel(frame, cv2.CV_32F, *order, scale=1 / 8) for frame in grey])
                    for order in ((1, 0), (0, 1)))
    length = motion.pool(np.hypot(across, down).mean(axis=0))
    consistency = motion.pool(np.hypot(across.mean(axis=0), down.mean(axis=0))) / np.maximum(length, 1e-6)
    detailed = length > DETAILED
    if (consistency[detailed] < CHANGES).sum() < CHANGING * max(detailed.sum(), 1):
        return False
    stays = (detailed & (consistency > STAYS)).astype(np.uint8)
    parts, place = cv2.connectedComponents(stays)
    area = np.bincount(place.ravel(), minlength=parts)[1:]
    sharp = np.bincount(place.ravel(), length.ravel(), minlength=parts)[1:] > SHARP * area
    return bool((sharp & (area >= LOGO[0]) & (area <= LOGO[1] * stays.size)).any())


def twins(reader: StoreReader, opening: Sequence[int]) -> list[list[int]]:
    """Groups of videos whose stored frames are equal as far as the shorter one goes.

    opening: a number a video, equal for videos that may begin alike. Those are compared by the sizes of all frames,
    then by the checksums of COMPARED of them.
    """
    alike, groups = defaultdict(list), []
    for position, key in enumerate(opening):
        alike[key].append(position)
    for positions in alike.values():
        leaders = []   # (sizes of the frames, the group), of the longest of each group
        for position in sorted(positions, key=lambda one: -reader.index.frames[one]) if len(positions) > 1 else ():
            sizes = reader.frame_sizes(reader.index.id[position]).copy()
            for longer, group in leaders:
                if np.array_equal(longer[:len(sizes)], sizes) and _equal(reader, group[0], position):
                    group.append(position)
                    break
            else:
                leaders.append((sizes, [position]))
        groups += [group for _, group in leaders if len(group) > 1]
    return sorted(groups)


def _equal(reader: StoreReader, longer: int, shorter: int) -> bool:
    frames = int(reader.index.frames[shorter])
    number = np.unique(np.linspace(0, frames - 1, min(COMPARED, frames)).round().astype(int))
    one, two = (reader.frame_checksums(reader.index.id[position], number) for position in (longer, shorter))
    return one == two
