"""The streaming stages of a video: decode -> grey and flow -> motion, each handing windows of frames to the next.

n frames of a window, HxW pixels, hxw motion cells.
"""

import math
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import cv2
import numpy as np

from preprocess import flow as optical_flow
from shared import motion
from shared.cli import RequestError
from shared.clips.index import ClipIndexer
from shared.recipes.preprocessing import Recipe
from shared.videos.decode import Decoder, VideoError

MOTION_BATCH = 4  # frames, twice as many of half the size, whose flow derivatives stay in the cache together


class FlowError(RuntimeError):
    """Flow cannot be computed on this machine, whatever the video."""


class TooShort(Exception):
    """Fewer than two frames: there is no flow."""


class Decoded:
    """The decoder's windows: none of frames of another size, of `limit` frames at most (0: all); an error after good
    frames ends the iteration and is kept for the end of the video."""

    def __init__(self, source: Decoder, frame_size: tuple[int, int], limit: int):
        self.source, self.frame_size, self.limit = source, frame_size, limit
        self.error: VideoError | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        if self.source.frame_size != self.frame_size:
            return
        left = self.limit or float("inf")
        try:
            for frames in self.source:
                frames = frames[:int(min(left, len(frames)))]
                left -= len(frames)
                yield frames
                if not left:
                    return
        except VideoError as error:
            self.error = error


@dataclass(frozen=True)
class Flows:
    """Iterates once over `with_flow` of what is decoded."""

    decoded: Decoded
    pairs: Iterator

    def __iter__(self) -> Iterator:
        return self.pairs


def with_flow(windows: Iterable[np.ndarray], recipe: Recipe, pool: ThreadPoolExecutor, seconds: dict[str, float]):
    """Pairs of a list of rgb (k,H,W,3) uint8 with n frames in all, and their n flows, t to t+1, as of `flow_window`.

    Windows overlap by the frame that still waits for its successor; the video's last frame repeats the flow before it.
    n is a multiple of motion.window but at the end. seconds: those of this thread's CPU are added to `grey`, those of
    the flow by the clock to `flow`. Raises TooShort for fewer than two frames.
    """
    parameters, backend = flow_parameters(recipe), recipe.flow.backend

    def solve(frames: np.ndarray):
        began = time.perf_counter()
        try:
            flow = optical_flow.flow_window(frames, parameters, backend, executor=pool)
            seconds["flow"] += time.perf_counter() - began
            return flow
        except Exception as error:
            raise FlowError(f"flow on {backend}: {type(error).__name__}: {' '.join(str(error).split())}") from error

    block = recipe.motion.window
    waiting, grey, last = [], None, None
    for window in windows:
        began = time.thread_time()
        before = grey if grey is not None else np.empty((0, *window.shape[1:3]), np.uint8)
        grey = np.empty((len(before) + len(window), *window.shape[1:3]), np.uint8)
        grey[:len(before)] = before
        for frame, shade in zip(window, grey[len(before):]):
            cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY, dst=shade)
        waiting.append(window)
        seconds["grey"] += time.thread_time() - began
        count = (len(grey) - 1) // block * block
        if count:
            flow = solve(grey[:count + 1])
            ready, waiting = _split(waiting, count)
            grey, last = grey[count:], flow[-1:]
            yield ready, flow
    if grey is None or (len(grey) == 1 and last is None):
        raise TooShort
    tail = [last]
    if len(grey) > 1:
        flow = solve(grey)
        tail = [flow, flow[-1:]]
    yield waiting, motion.namespace(tail[0]).concatenate(tail)


def _split(parts: list[np.ndarray], count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The first `count` frames of a list of windows, and the others, without copying any."""
    first, others = [], []
    for part in parts:
        take = min(count, len(part))
        count -= take
        first += [part[:take]] if take else []
        others += [part[take:]] if take < len(part) else []
    return first, others


def flow_parameters(recipe: Recipe) -> optical_flow.TVL1Parameters:
    """The recipe's preset with its overrides. Raises RequestError for a parameter out of range, or too small frames."""
    overrides = {key: value for key, value in asdict(recipe.flow).items()
                 if key not in ("preset", "backend") and value is not None}
    parameters = optical_flow.parameters(recipe.flow.preset, **overrides)
    if recipe.frames.short_side < parameters.min_side:
        raise RequestError(f"frames.short_side is {recipe.frames.short_side}; flow at half the size (flow.scale 0.5) "
                           f"needs at least {parameters.min_side}")
    return parameters


def check_size(size: tuple[int, int], recipe: Recipe) -> tuple[int, int]:
    """The (H, W) of a video's frames. Raises VideoError where flow cannot be computed on them."""
    if min(size) < (least := flow_parameters(recipe).min_side):
        raise VideoError(f"frames of {size[0]}x{size[1]} px; flow at half the size (flow.scale 0.5) needs sides of at "
                         f"least {least}", "probe")
    return size


def motion_arrays(flow, recipe: Recipe, indexers: dict[str, ClipIndexer]) -> dict[str, np.ndarray]:
    """The stored arrays of these frames on the host, and the indexers fed.

    flow: (n, 2, H, W) float32, or (n, 2, H/2, W/2) of half-size frames at `flow.scale` 0.5, whose gradients have the
    same unit and whose pixels and px/frame count twice; numpy or CuPy.
    Returns float32 st_motion (n, h, w), t_motion (n,), and edges and flow (n, 2, H/2, W/2) where they are stored.
    """
    settings, border, scale = recipe.motion, recipe.motion.border_px, flow_parameters(recipe).scale
    cell, stored = round(motion.CELL * scale), round(2 * scale)      # pixels of the flow a map cell, a stored pixel
    step = -(-round(MOTION_BATCH / scale) // settings.window) * settings.window
    parts = []
    for at in range(0, len(flow), step):
        batch = flow[at:at + step]
        maps = motion.motion_map(batch, settings.derivative, settings.combine, settings.window)
        cells = motion.pool(maps, cell)
        if border % motion.CELL == 0:
            bordered = motion.zero_border(cells, border // motion.CELL)
        else:
            bordered = motion.pool(motion.zero_border(maps, math.ceil(border * scale)), cell)
        part = {"st_motion": cells, "bordered": bordered}
        if recipe.packs.edges:
            part["edges"] = motion.pool(motion.edges(batch, settings.derivative), stored)
        if recipe.packs.flow:
            part["flow"] = motion.pool(batch, stored) * np.float32(1 / scale)
        parts.append({key: motion.to_host(value) for key, value in part.items()})
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    bordered = arrays.pop("bordered")
    arrays["t_motion"] = motion.t_motion(bordered)
    for indexer in indexers.values():
        indexer.append(bordered, arrays["t_motion"])
    return arrays
