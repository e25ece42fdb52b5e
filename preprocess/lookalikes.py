"""Look-alikes: synthetic videos in sets that share motions and looks, exactly, with one factor of the look changed.

A set has M motions, each of another class, in six looks: one, and five that differ from it in one factor each. The
camera stands, and the centre of what moves stays in the middle square of the screen. In all motions of a set the object
rests in one place, in one pose, and moves in the same frames: where it lies and when it moves tell nothing, and before
it moves the videos of one look are the same picture.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from preprocess.scenes import CLASSES, Camera, Dials, Motion, Scene, margin, new_canvas, new_patch, new_texture
from shared.cli import RequestError

FACTORS = "static look", "moving look", "object", "view", "style"
LOOKS = "", *FACTORS
MOVING = tuple(name for name in CLASSES if name != "still")
SEEN = 224 / 256                    # of the short side, what evaluation looks at (docs/method.md 1.7)
TEXTURES = 5                        # of a set
SET, MOTIONS, LOOK = range(4, 7)    # streams of random numbers, beside those of scenes


@dataclass(frozen=True)
class Member:
    """Where a video stands: in which set, which of its motions it has, and in what its look differs, "" for nothing."""

    set: int
    motion: int
    factor: str

    @classmethod
    def of(cls, dials: Dials, number: int) -> "Member":
        one, place = divmod(number, dials.lookalikes * len(LOOKS))
        return cls(one, place % dials.lookalikes, LOOKS[place // dials.lookalikes])

    def label(self, dials: Dials) -> str:
        return MOVING[(self.set * dials.lookalikes + self.motion) % len(MOVING)]


@dataclass(frozen=True)
class Set:
    """What the videos of a set share, by number of the set.

    radius: of the object, px; size: of the other object, as a share of it; backgrounds: the set's and the other;
    textures: of the object, after a change of its texture, of the other object, of the distractor and of the other
    distractor; view: the other camera's, (3, 3); mixing: of the other colours, (3, 3); motions: M.
    """

    number: int
    radius: float
    size: float
    backgrounds: tuple[int, ...]
    textures: tuple[int, ...]
    view: np.ndarray
    mixing: np.ndarray
    motions: tuple[Motion, ...]

    @classmethod
    @lru_cache(maxsize=2)
    def draw(cls, dials: Dials, number: int) -> "Set":
        rng = dials.random(SET, number)
        radius, size = rng.uniform(14, 18) * dials.unit, rng.uniform(1.25, 1.45) ** rng.choice((-1, 1))
        backgrounds, textures = rng.permutation(dials.backgrounds), _apart(rng, dials)[:TEXTURES]
        view, mixing = _view(rng, dials), np.roll(np.eye(3), rng.integers(1, 3), axis=0)
        labels = [Member(number, motion, "").label(dials) for motion in range(dials.lookalikes)]
        return cls(number, radius, size, tuple(backgrounds[:2].tolist()), tuple(textures), view, mixing,
                   _motions(dials, number, labels, radius, view))

    def background(self, factor: str) -> int:
        return self.backgrounds[int(factor == "static look")]

    def texture(self, factor: str) -> int:
        return self.textures[1 if factor == "moving look" else 2 if factor == "object" else 0]


class Lookalike(Scene):
    """One video of a set; what a factor changes: `static look` the background and the still distractor, `moving look`
    the object's texture, `object` its outline, size and texture, `view` the camera's place, which turns and stretches
    the screen, `style` the colours of all that is seen."""

    def __init__(self, dials: Dials, member: Member):
        self.dials, self.factor, self.set = dials, member.factor, Set.draw(dials, member.set)
        self.camera, self.motion = Camera(np.zeros(2), 0.0, 0.0), self.set.motions[member.motion]
        other = self.factor == "object"
        self.patch = new_patch(dials.random(LOOK, member.set, int(other)), dials, self.set.texture(self.factor),
                               self.set.radius * (self.set.size if other else 1))
        other = self.factor == "static look"
        rng = dials.random(LOOK, member.set, 2 + other)
        self.distractor = new_patch(rng, dials, self.set.textures[3 + other], rng.uniform(13, 20) * dials.unit)
        self.distractor_at = rng.uniform(0, 1, 2) * (dials.width, dials.height)
        self.canvas = new_canvas(dials, self.set.background(self.factor))
        self.origin = np.full(2, float(margin(dials)))

    def seen(self, place: np.ndarray) -> np.ndarray:
        return self.set.view @ place if self.factor == "view" else place

    def coloured(self, image: np.ndarray) -> np.ndarray:
        return 255 - image @ self.set.mixing if self.factor == "style" else image


def _apart(rng: np.random.Generator, dials: Dials) -> list[int]:
    """The textures in an order in which those after the first are the less like it in colour the earlier they come."""
    first, *others = rng.permutation(dials.textures).tolist()
    colour = {one: new_texture(dials, one).mean((0, 1)) for one in (first, *others)}
    return [first, *sorted(others, key=lambda one: -float(np.linalg.norm(colour[one] - colour[first])))]


def _view(rng: np.random.Generator, dials: Dials) -> np.ndarray:
    """Another camera, nearer, turned and from the side: an affine map of the screen about its middle, (3, 3)."""
    angle, (across, down) = rng.choice((-1, 1)) * math.radians(rng.uniform(10, 20)), rng.permutation(
        [rng.uniform(1.25, 1.4), rng.uniform(1.5, 1.7)])
    c, s, middle = math.cos(angle), math.sin(angle), np.array([dials.width, dials.height]) / 2
    out = np.array([[c * across, -s * down, 0], [s * across, c * down, 0], [0, 0, 1]])
    out[:2, 2] = middle - out[:2, :2] @ middle
    return out


def _motions(dials: Dials, number: int, labels: list[str], radius: float,
             view: np.ndarray) -> tuple[Motion, ...]:
    """A motion of each label, from one start and pose, in the same frames, whose centres stay in the square that is
    seen, in both views."""
    rng, size = dials.random(MOTIONS, number), np.array([dials.width, dials.height])
    low = (size - SEEN * size.min()) / 2 + radius / 2
    times = np.linspace(0, dials.frames - 1, min(dials.frames, 128))

    def fits(motion: Motion) -> bool:
        places = np.array([motion.at(t)[:, 2] for t in times])
        return all((low <= seen).all() and (seen <= size - low).all() for seen in (places[:, :2],
                                                                                   (places @ view.T)[:, :2]))

    for _ in range(1_000):
        start, found = rng.uniform(low, size - low), []
        first = Motion.draw(rng, labels[0], start, radius, dials.unit, dials.frames)
        shared = {"begin": first.begin, "active": first.active, "turn": first.turn}
        for label in labels:
            drawn = (replace(Motion.draw(rng, label, start, radius, dials.unit, dials.frames), **shared)
                     for _ in range(40))
            if (motion := next(filter(fits, drawn), None)) is None:
                break
            found.append(motion)
        if len(found) == len(labels):
            return tuple(found)
    raise RequestError(f"synthetic videos: no {', '.join(labels)} that stay in sight were found in {dials.height}x"
                       f"{dials.width} px; set a larger or less narrow frame, or another generate.seed")
