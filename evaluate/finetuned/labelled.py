"""Labelled clips for supervised training: one of each sample an epoch, anywhere in it, randomly cropped and flipped.

N samples, L frames, HxW pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evaluate.folds import Samples
from shared.clips.data import ClipData, Sample
from shared.clips.index import Box, ClipGeometry
from shared.clips.sampling import VIEW, draw_augment, draw_box, generator
from shared.recipes.preprocessing import read_description
from shared.recipes.pretraining import Augment
from shared.store.place import Place
from shared.store.reader import StoreReader

NO_COLOURS = dict(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, jitter_p=0.0, grey_p=0.0, blur_p=0.0,
                  blur_min=0.1, blur_max=0.1)


@dataclass(frozen=True)
class Cropping:
    """What `draw_box` and the loader read of shared.recipes.pretraining.Sampling: a plain random crop, no keys."""

    geometry: ClipGeometry
    area_min: float
    area_max: float
    aspect_min: float
    aspect_max: float
    keys: int = 0
    sa: bool = False
    leave_out: tuple[str, ...] = ()


class LabelledClips(ClipData):
    """Samples for shared.clips.loader.Loader. No clip index is needed: a clip begins at any frame. In a window shorter
    than a clip it lies about the middle; a video shorter than a clip is looped until it is one, as in the test.

    short: videos that are looped. Raises RequestError as ClipData does.
    """

    def __init__(self, store: Place | str, samples: Samples, cropping: Cropping, flip: bool, seed: int):
        self.samples = samples
        super().__init__([store], cropping, Augment(**NO_COLOURS, flip_p=0.5 if flip else 0.0), seed=seed, motion=False)
        self.classes = list(samples.classes)

    def _choose(self, reader: StoreReader, split: str | None) -> tuple[np.ndarray, dict]:
        document, positions = read_description(reader.store), self.samples.positions
        short = int((reader.index.frames[positions] < self.geometry.span).sum())
        return positions, {"store": str(reader.store), "dataset": document["dataset"],
                           "recipe_hash": document["recipe_hash"], "index": reader.index.generation,
                           "videos": len(positions), "short": short, "undivided": 0}

    def sample(self, number: int, epoch: int,
               allocate: Callable[[tuple[int, ...], np.dtype], np.ndarray] = np.empty) -> Sample:
        """The clip of sample `number` in this epoch, a pure function of (seed, epoch, number).

        Raises StoreError, naming pack and video.
        """
        store, position = self.videos[number]
        reader, index = self.reader(store), self.indexes[store]
        rng, view = generator(self.seed, epoch, int(number)), np.zeros(1, VIEW)
        numbers = self.numbers(number, rng)
        view["start"], box = numbers[0], self.crop(number, rng)
        view["box"] = box.y, box.x, box.h, box.w
        draw_augment(rng, self.augment, view[0])
        distinct, places = np.unique(numbers, return_inverse=True)
        decoded = reader.frames(index.id[position], distinct)
        crop = allocate((self.geometry.length, box.h, box.w, 3), np.dtype(np.uint8))
        crop[...] = decoded[places, box.y:box.y + box.h, box.x:box.x + box.w]
        return Sample(view, 0, [crop], None, [])

    def numbers(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """(L,) frame numbers of a clip drawn from the sample's window."""
        store, position = self.videos[number]
        frames, span = int(self.indexes[store].frames[position]), self.geometry.span
        first, last = int(self.samples.first[number]), int(self.samples.stop[number]) - span
        if last < first:
            first = last = max(0, min((first + last) // 2, frames - span))
        return (int(rng.integers(first, last + 1)) + self.geometry.stride * np.arange(self.geometry.length)) % frames

    def crop(self, number: int, rng: np.random.Generator) -> Box:
        """The part of the frames that is seen."""
        return draw_box(rng, self.sampling, self.frame_size(number))
