"""Flow at half the size (`scale` 1/2 of TVL1Parameters): frames averaged down before it, flow enlarged after it.

N frames of HxW pixels; halved: ceil(H/2) x ceil(W/2).
"""

import numpy as np

from shared.motion import namespace


def halved(frames):
    """Means of 2x2 pixels: (N, H, W) uint8 or float32 -> (N, ceil(H/2), ceil(W/2)) float32, numpy or CuPy.

    The last row and column of odd sides count twice, so that pixel (y, x) lies at (2 y + 0.5, 2 x + 0.5) everywhere.
    """
    xp = namespace(frames)
    odd = [(0, side % 2) for side in frames.shape]
    if any(extra for _, extra in odd[1:]):
        frames = xp.pad(frames, [(0, 0), *odd[1:]], mode="edge")
    rows = xp.add(frames[:, 0::2], frames[:, 1::2], dtype=np.uint16 if frames.dtype == np.uint8 else np.float32)
    return (rows[..., 0::2] + rows[..., 1::2]).astype(np.float32, copy=False) * np.float32(0.25)


def enlarged(flow, height: int, width: int):
    """Flow of halved frames, in their pixels, as that of the frames: (N, 2, ceil(H/2), ceil(W/2)) -> (N, 2, H, W).

    Bilinear between the halved pixels' centres, replicated beyond the outermost; twice as many px/frame.
    """
    for axis, side in ((-2, height), (-1, width)):
        at = np.arange(side)
        near = at // 2
        far = (near + np.where(at % 2, 1, -1)).clip(0, flow.shape[axis] - 1)
        flow = np.float32(0.75) * flow.take(near, axis) + np.float32(0.25) * flow.take(far, axis)
    return flow * np.float32(2)
