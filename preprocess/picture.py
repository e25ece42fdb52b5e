"""What the picture of one video shows, read from a store and computed again where the store does not keep it."""

from dataclasses import replace

import cv2
import numpy as np

from preprocess import flow as optical_flow
from preprocess.stages import flow_parameters
from shared import motion
from shared.cli import plural
from shared.clips.index import ClipGeometry, draw_crop, unpack_mask
from shared.pictures import figures
from shared.recipes.preprocessing import Recipe
from shared.store.reader import StoreReader

SHOWN_FRAMES, SHOWN_CROPS = 6, 3
SEED = 0  # of the crops: one store, one picture


def video_picture(reader: StoreReader, video: str, recipe: Recipe, geometry: ClipGeometry) -> figures.VideoPicture:
    """All that the picture of one video needs; six frames pass through TV-L1."""
    picture = stored_picture(reader, video, recipe, geometry)
    flow = flow_after(reader, video, picture.number, len(picture.t_motion), recipe)
    return replace(picture, flow=flow, boundary=motion.edges(flow, recipe.motion.derivative))


def stored_picture(reader: StoreReader, video: str, recipe: Recipe, geometry: ClipGeometry) -> figures.VideoPicture:
    """What the store holds of it, without flow and boundary."""
    row, clips = reader.index.row(video), reader.clips(video, geometry)
    shown = int(clips.start[clips.score.argmax()]) if len(clips.start) else None
    if shown is None:
        sampled = np.arange(row.frames)
    else:
        sampled = shown + geometry.stride * np.arange(geometry.length)
    number = sampled[np.linspace(0, len(sampled) - 1, min(SHOWN_FRAMES, len(sampled))).round().astype(int)]
    frames = reader.frames(video, number)
    maps = reader.motion(video, int(sampled[0]), int(sampled[-1]) + 1).astype(np.float32)[sampled - sampled[0]]
    cells = maps.shape[1:]
    s_motion = motion.s_motion(motion.zero_border(maps, -(-recipe.motion.border_px // motion.CELL)))
    hot, boxes = np.zeros(cells, bool), []
    if shown is not None:
        hot = unpack_mask(clips.hot_mask[clips.score.argmax()], cells)
        rng = np.random.default_rng(SEED)
        boxes = [draw_crop(rng, hot) for _ in range(SHOWN_CROPS)]
    labels = [row.class_name or "unlabelled", ", ".join(row.splits) or "no split", plural(row.frames, "frame"),
              f"{row.fps:.4g} frames/s", "{}x{} px".format(*frames.shape[1:3])] + [row.note] * bool(row.note)
    if shown is None:
        labels.append(f"too short for a clip of {geometry} ({plural(geometry.span, 'frame')})")
    return figures.VideoPicture(
        title=video, facts="   |   ".join(labels), number=number, frames=frames,
        motion=maps[np.searchsorted(sampled, number)], t_motion=reader.t_motion(video), clips=clips,
        span=geometry.span, shown=shown, s_motion=s_motion, hot=hot, boxes=boxes)


def flow_after(reader: StoreReader, video: str, number: np.ndarray, frames: int, recipe: Recipe) -> np.ndarray:
    """Flow from each frame of `number` to the next, (n, 2, H, W) float32 px/frame; the last one has its neighbour's."""
    first = np.minimum(number, frames - 2)
    pairs = reader.frames(video, np.stack([first, first + 1], axis=1).ravel())
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in pairs])
    return optical_flow.tvl1(grey[::2], grey[1::2], preset=flow_parameters(recipe), backend="cpu")
