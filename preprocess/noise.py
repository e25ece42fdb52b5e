"""Appearance-free twins of a store's videos: noise that moves as they do, read in the place of their frames.

A frame of a twin is independent uniform noise whatever its video shows: each pixel has the value of one pixel of the
frame before, which no other pixel has too, or a new one. All that is left of a video is how values move from frame to
frame (the question is that of Ilic, Poeppel and Wildes, "Is Appearance Free Action Recognition Possible?", ECCV 2022).

n frames of a window, HxW pixels. Flow: channel 0 right, 1 down, px/frame.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from preprocess.flow.scale import enlarged
from preprocess.stages import TooShort, flow_parameters, with_flow
from shared.motion import to_host
from shared.recipes.preprocessing import Recipe
from shared.store.index import Index
from shared.store.layout import StoreError
from shared.store.place import Place, insist_on
from shared.store.reader import StoreReader
from shared.videos.decode import Probe
from shared.videos.files import Drawn, VideoError
from shared.videos.streams import ASSUMED_FPS

ROUND_UP = 5 / 8, 1 / 8, 7 / 8, 3 / 8     # px that are added before a step is rounded down, frame by frame


class Grains:
    """Noise under way. values: (H, W) uint8, independent and uniform, whatever the flows were."""

    def __init__(self, frame_size: tuple[int, int], random: np.random.Generator):
        self.frame_size, self.random, self.moves = frame_size, random, 0
        self.pixels = np.indices(frame_size, np.float32)[::-1]
        self.values = self._draw()

    def _draw(self) -> np.ndarray:
        return self.random.integers(0, 256, self.frame_size, np.uint8)

    def move(self, flow: np.ndarray) -> None:
        """One frame on, by its flow (2, H, W) float32, in whole pixels: where a part of one is left it is rounded up in
        one, two or three frames of four, in the same ones everywhere, so that neighbours stay together and slow motion
        adds up. Of several values that come to one pixel the fastest stays, since what moves is mostly in front; pixels
        to which none comes are drawn."""
        height, width = self.frame_size
        up = [ROUND_UP[(self.moves + axis) % len(ROUND_UP)] for axis in (0, 2)]
        pixel = self.pixels + np.floor(flow + np.float32(up)[:, None, None])
        inside = ((pixel >= 0) & (pixel < np.float32([width, height])[:, None, None])).all(0)
        source = np.flatnonzero(inside)
        speed = np.minimum(256 * np.hypot(*flow).ravel()[source], 65535).astype(np.uint16)
        source = source[np.argsort(speed, kind="stable")]                  # the last of equal targets is kept
        values, target = self._draw(), (pixel[1] * width + pixel[0]).ravel()[source].astype(np.int64)
        values.reshape(-1)[target] = self.values.reshape(-1)[source]
        self.values, self.moves = values, self.moves + 1


@dataclass(frozen=True)
class Twin(Drawn):
    """The twin of a store's video. generation: of the store's index; recipe: the store's; seed: of the noise."""

    place: Place
    generation: str
    video: str
    recipe: Recipe
    seed: int

    @contextmanager
    def open(self, window: int) -> Iterator["Noise"]:
        reader = StoreReader(self.place, max_open=1, index=self._index())
        try:
            yield Noise(self, reader, window)
        finally:
            reader.close()

    def probe(self) -> Probe:
        index = self._index()
        row = index.row(self.video)
        height, width = _frame_size(index, row.pack)
        fps = row.fps or ASSUMED_FPS
        return Probe(row.frames, row.frames / fps, fps, height, width)

    def _index(self) -> Index:
        """The store's, as it is now. Raises VideoError where it has lost the video meanwhile."""
        index = _index(self.place, self.generation)
        if self.video not in index:
            raise VideoError(f"{self.place} does not hold it any more", "probe")
        return index


@functools.lru_cache(maxsize=2)
def _index(store: Place, generation: str) -> Index:
    """Of the store, once a process and a run; generation: in force when the run began."""
    return Index.load(store)


def _frame_size(index: Index, pack: str) -> tuple[int, int]:
    return tuple(map(int, index.pack_row(pack).path.split("/")[1].split("x")))


class Noise:
    """What `shared.videos.decode.Decoder` is of a file: iterates once over the twin's frames, in windows (n, H, W, 3)
    uint8. The noise depends on seed and video alone, the motion on the video's flow: the stored one, or else computed
    from the stored frames by the store's settings. Raises VideoError for what the store cannot give."""

    first = frames = 0

    def __init__(self, twin: Twin, reader: StoreReader, window: int):
        self.twin, self.reader, self.window = twin, reader, window
        row = reader.index.row(twin.video)
        self.count, self.fps, self.note = row.frames, row.fps, row.note
        self.source_height, self.source_width = row.source_height, row.source_width
        self.frame_size = _frame_size(reader.index, row.pack)

    def __iter__(self) -> Iterator[np.ndarray]:
        seed = hashlib.sha256(f"{self.twin.seed}\n{self.twin.video}".encode("utf-8", "surrogateescape")).digest()
        grains = Grains(self.frame_size, np.random.default_rng(list(seed)))
        try:
            for flow in self._flow():
                frames = np.empty((len(flow), *self.frame_size, 3), np.uint8)
                for frame, moved in zip(frames, flow):
                    frame[...] = grains.values[..., None]
                    grains.move(moved)
                self.frames += len(frames)
                yield frames
        except TooShort:
            raise VideoError("one frame only: no motion", "decode") from None
        except StoreError as error:
            insist_on(self.twin.place)
            raise VideoError(str(error), "decode", self.frames) from error

    def _flow(self) -> Iterator[np.ndarray]:
        """Windows (n, 2, H, W) float32 of the video's flow."""
        recipe, video = self.twin.recipe, self.twin.video
        windows = (range(at, min(at + self.window, self.count)) for at in range(0, self.count, self.window))
        if recipe.packs.flow:
            for numbers in windows:
                yield enlarged(self.reader.flow(video, numbers).astype(np.float32) / 2, *self.frame_size)
            return
        half = flow_parameters(recipe).scale != 1
        for _, flow in with_flow((self.reader.frames(video, numbers) for numbers in windows), recipe, None, Counter()):
            flow = to_host(flow)
            yield enlarged(flow, *self.frame_size) if half else flow
