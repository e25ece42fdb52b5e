"""Pictures of one video for the page: a strip of the whole video, and what opens behind it.

HxW pixels, hxw motion cells of 8x8 pixels, n frames shown, T frames, C clips.
"""

import base64

import cv2
import numpy as np

from preprocess.picture import stored_picture
from shared.clips.index import ClipGeometry, above
from shared.motion import CELL
from shared.pictures.figures import cell_outline, upper_end
from shared.recipes.preprocessing import Recipe
from shared.store.chunks import encode_jpeg
from shared.store.reader import StoreReader

TILES, TILE = 4, (120, 160)     # of a strip: frames of the video, and the pixels of each, height by width
STRIP_QUALITY, FRAME_QUALITY = 75, 85
HIGHEST = 192                   # pixels of the frames that open, at most
POINTS, BARS = 1500, 300        # of a curve, at most


def strip(reader: StoreReader, video: str) -> bytes:
    """JPEG of TILES frames spread over the video, side by side; of each the middle, as much as its tile takes."""
    frames = int(reader.index.frames[reader.index.position(video)])
    tiles = []
    for frame in reader.frames(video, ((np.arange(TILES) + 0.5) / TILES * frames).astype(int)):
        height, width = frame.shape[:2]
        h, w = min(height, round(width * TILE[0] / TILE[1])), min(width, round(height * TILE[1] / TILE[0]))
        y, x = (height - h) // 2, (width - w) // 2
        tiles.append(cv2.resize(frame[y:y + h, x:x + w], TILE[::-1], interpolation=cv2.INTER_AREA))
    return encode_jpeg(np.hstack(tiles), STRIP_QUALITY)


def details(reader: StoreReader, video: str, recipe: Recipe, geometry: ClipGeometry) -> dict:
    """What the page draws of an opened video, as numbers, texts and data URIs.

    frames: the n frames side by side; maps: their motion maps and the clip's S-motion, a pixel a cell, side by side;
    high: px/frame per px at the bright end of their colours.
    """
    picture = stored_picture(reader, video, recipe, geometry)
    height, width = picture.frames.shape[1:3]
    scale = min(1, HIGHEST / height)
    frames = [cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else frame
              for frame in picture.frames]
    maps = np.concatenate([picture.motion, picture.s_motion[None]])
    high = upper_end(maps)
    colours = cv2.applyColorMap(np.hstack([(255 * np.clip(one / high, 0, 1)).round().astype(np.uint8) for one in maps]),
                                cv2.COLORMAP_MAGMA)
    clips, step = picture.clips, -(-len(picture.t_motion) // POINTS)
    shown = np.unique(np.linspace(0, len(clips.start) - 1, min(BARS, len(clips.start))).round().astype(int))
    chosen = above(clips.score, clips.median) if len(clips.start) else np.zeros(0, bool)
    return {
        "frames": _uri("jpeg", encode_jpeg(np.hstack(frames), FRAME_QUALITY)),
        "maps": _uri("png", cv2.imencode(".png", colours)[1].tobytes()),
        "high": float(f"{high:.2g}"), "size": [height, width], "number": picture.number.tolist(),
        "step": step, "curve": [float(f"{one:.4g}") for one in
                                np.maximum.reduceat(picture.t_motion, np.arange(0, len(picture.t_motion), step))],
        "clips": [[int(clips.start[i]), float(f"{clips.score[i]:.4g}"), int(chosen[i])] for i in shown],
        "clip_count": len(clips.start), "chosen_count": int(chosen.sum()), "span": picture.span,
        "median": float(f"{clips.median:.4g}") if len(clips.start) else None, "shown": picture.shown,
        "hot": "".join(f"M{a + .5:.0f} {b + .5:.0f}L{c + .5:.0f} {d + .5:.0f}"
                       for (a, b), (c, d) in cell_outline(picture.hot, CELL)),
        "boxes": [[box.y, box.x, box.h, box.w] for box in picture.boxes],
    }


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
