"""Flow -> motion boundary -> motion map -> S-, T- and ST-motion (MCL section 3.1).

T frames, HxW pixels, hxw map cells of 8x8 pixels. Every function takes numpy or CuPy arrays and stays on their device.
"""

import sys

import numpy as np

CELL = 8  # pixels a side of one map cell


def namespace(array):
    """numpy, or cupy when `array` lives on a GPU (CuPy is never imported here: whoever holds such an array has)."""
    cupy = sys.modules.get("cupy")
    return cupy if cupy is not None and isinstance(array, cupy.ndarray) else np


def to_host(array) -> np.ndarray:
    """The array in host memory, copied only if it lives on a GPU."""
    return array if namespace(array) is np else array.get()


def _check_flow(flow) -> None:
    if flow.ndim != 4 or flow.shape[1] != 2:
        raise ValueError(f"flow has shape {tuple(flow.shape)}; expected (T, 2, H, W) in px/frame")


def _central(field, axis):
    """d/dx or d/dy of (..., H, W): central differences, one-sided at the edge; px/frame per px."""
    xp = namespace(field)
    out = xp.empty_like(field)
    f, o = xp.moveaxis(field, axis, 0), xp.moveaxis(out, axis, 0)
    xp.subtract(f[2:], f[:-2], out=o[1:-1])
    o[1:-1] *= field.dtype.type(0.5)
    xp.subtract(f[1], f[0], out=o[0])
    xp.subtract(f[-1], f[-2], out=o[-1])
    return out


def _prewitt(field, axis):
    """Prewitt 3x3 derivative with replicated edges, divided by 6 so that a unit ramp has slope 1."""
    xp = namespace(field)
    pad = [(0, 0)] * (field.ndim - 2) + [(1, 1), (1, 1)]
    f = xp.moveaxis(xp.pad(field, pad, mode="edge"), axis, -1)
    difference = f[..., 2:] - f[..., :-2]
    total = difference[..., 2:, :] + difference[..., 1:-1, :] + difference[..., :-2, :]
    return xp.moveaxis(total, -1, axis) * field.dtype.type(1 / 6)


DERIVATIVES = {"central": _central, "prewitt": _prewitt}


def motion_boundary(flow, derivative: str = "central"):
    """The four flow derivatives (MCL section 3.1, after Dalal et al. 2006).

    flow: (T, 2, H, W) float32, px/frame, channel 0 right, 1 down.
    derivative: `central` (ours; one-sided at the edge) or `prewitt` (released code).
    Returns (T, 4, H, W) float32: du/dx, du/dy, dv/dx, dv/dy, px/frame per px.
    Raises ValueError if the second axis is not 2.
    """
    _check_flow(flow)
    xp, d = namespace(flow), DERIVATIVES[derivative]
    u, v = flow[:, 0], flow[:, 1]
    return xp.stack([d(u, -1), d(u, -2), d(v, -1), d(v, -2)], axis=1)


def motion_map(flow, derivative: str = "central", combine: str = "root", window: int = 1):
    """Motion magnitude of every frame (MCL Eq. 1).

    flow: (T, 2, H, W) float32, px/frame.   Returns (T, H, W) float32, >= 0, px/frame per px.
    combine: `root` = sqrt of the sum of the four squares (Eq. 1); `sum` = |grad u| + |grad v| (released code).
    window: derivatives of this many frames are averaged before the magnitude; every frame of a block gets the
    block's map (released code sums blocks; the mean keeps the unit and short last blocks comparable). 1 = Eq. 1.
    Uniform camera translation has no gradient and vanishes.
    Raises ValueError if the second axis is not 2.
    """
    _check_flow(flow)
    u, v = (_squared_gradient(flow[:, channel], derivative, window) for channel in (0, 1))
    xp = namespace(flow)
    if combine == "root":
        u += v
        return xp.sqrt(u, out=u)
    if combine == "sum":
        return xp.sqrt(u, out=u) + xp.sqrt(v, out=v)
    raise ValueError(f"motion.combine is {combine!r}; expected 'root' (MCL Eq. 1) or 'sum' (released code)")


def _squared_gradient(component, derivative: str, window: int = 1):
    """(T, H, W) u or v -> squared length of its gradient, derivatives averaged over blocks of `window` frames first."""
    d = DERIVATIVES[derivative]
    total = None
    for axis in (-1, -2):
        slope = d(component, axis)
        for start in range(0, len(slope) if window > 1 else 0, window):
            block = slope[start:start + window]
            block[:] = block.mean(axis=0, keepdims=True)
        slope *= slope
        total = slope if total is None else namespace(slope).add(total, slope, out=total)
    return total


def edges(flow, derivative: str = "central"):
    """Gradient magnitude of either flow channel, MaCLR's motion input (reconstruction, docs/method.md 2.1).

    flow: (T, 2, H, W) float32, px/frame.   Returns (T, 2, H, W) float32: |grad u|, |grad v|, px/frame per px.
    Raises ValueError if the second axis is not 2.
    """
    _check_flow(flow)
    xp = namespace(flow)
    return xp.sqrt(xp.stack([_squared_gradient(flow[:, channel], derivative) for channel in (0, 1)], axis=1))


def pool(maps, cell: int = CELL):
    """Mean over cells: (..., H, W) -> (..., H/cell, W/cell), same unit, float32.

    Raises ValueError if H or W is no multiple of `cell`.
    """
    *lead, height, width = maps.shape
    if height % cell or width % cell:
        raise ValueError(f"maps are {height}x{width}; both sides must be multiples of {cell}")
    rows = maps.reshape(*lead, height // cell, cell, width).sum(axis=-2)
    cells = rows.reshape(*lead, height // cell, width // cell, cell).sum(axis=-1)
    return cells * maps.dtype.type(1 / cell**2)


def zero_border(maps, border_px: int):
    """A copy of (..., H, W) with `border_px` pixels at every edge set to zero: TV-L1 is unreliable there."""
    if border_px == 0:
        return maps
    out = maps.copy()
    out[..., :border_px, :] = out[..., -border_px:, :] = 0
    out[..., :, :border_px] = out[..., :, -border_px:] = 0
    return out


def s_motion(maps):
    """Mean over time (MCL Eq. 2): (T, h, w) -> (h, w) float32, px/frame per px."""
    return maps.mean(axis=0, dtype=np.float64).astype(np.float32)


def t_motion(maps):
    """Mean over space (MCL Eq. 2): (T, h, w) -> (T,) float32, px/frame per px."""
    return maps.mean(axis=(-2, -1), dtype=np.float64).astype(np.float32)
