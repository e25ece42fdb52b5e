"""The inner iterations of TV-L1 on the CPU: many of them in flight, row by row.

Zach, Pock, Bischof 2007, as OpenCV's DualTVL1 orders it. One iteration is
  primal  v = u + clamp(-rho / |g|^2, +-lambda theta) g,   u = v + theta div p        (shrinkage and primal step)
  dual    p = (p + tau/theta grad u) / (1 + tau/theta |grad u|)                       (projected dual step)
with rho = rho_c + g . u, g the warped gradient.

Layout: a row of W pixels is `blocks` blocks of 16 pixels; a block of the state holds 6 vectors (u1 u2 p11 p12 p21 p22),
a block of the coefficients 4 (gx gy -1/|g|^2 rho_c). So one pointer serves all planes, and every load is aligned.
Lanes past W hold zero in all planes, which makes them fixed points.
A row before row 0 of the state is all zero: the dual variable above the image.

Wavefront: stage k handles row y when stage k-1 has done row y+1, which is all that it reads; so all stages run in
one sweep over the rows, each a row behind the one before, in place, with the same bits as one after the other.
A stage takes the dual step of iteration k-1 and the primal step of iteration k in one pass over the row.
"""

import numpy as np
from numba import njit

from preprocess.flow.simd import LANES, after, before, fma, keep, load, maximum, minimum, splat, sqrt, store, total

STATE, COEFFICIENTS = 6 * LANES, 4 * LANES      # floats a block
U1, U2, P11, P12, P21, P22 = (plane * LANES for plane in range(6))
GX, GY, INVERSE, RHO = (plane * LANES for plane in range(4))


@njit(inline="always")
def _dual(ux, uy, px, py, taut, one):
    """Both components of one dual variable after its step."""
    scale = one / fma(taut, sqrt(fma(ux, ux, uy * uy)), one)
    return fma(taut, ux, px) * scale, fma(taut, uy, py) * scale


@njit(inline="always")
def _primal(w, c, above, u1, u2, p11, p12, p21, p22, left11, left21, theta, limit, minus):
    """u1, u2 after their step. above: state block above; left11, left21: p11 and p21 one block to the left."""
    gx, gy = load(w, c + GX), load(w, c + GY)
    rho = fma(gy, u2, fma(gx, u1, load(w, c + RHO)))
    step = minimum(maximum(rho * load(w, c + INVERSE), minus), limit)
    div1 = (p11 - before(left11, p11)) + (p12 - load(w, above + P12))
    div2 = (p21 - before(left21, p21)) + (p22 - load(w, above + P22))
    return fma(theta, div1, fma(step, gx, u1)), fma(theta, div2, fma(step, gy, u2))


@njit(nogil=True, error_model="numpy")
def _primal_row(w, source, target, c, above, blocks, theta_, limit_):
    """Primal step of a row from state row `source` into `target` (p is copied where they differ).

    Returns the sum of squared changes of u."""
    zero = splat(np.float32(0))
    theta, limit, minus = splat(theta_), splat(limit_), splat(-limit_)
    left11 = left21 = change = zero
    for _ in range(blocks):
        u1, u2 = load(w, source + U1), load(w, source + U2)
        p11, p12 = load(w, source + P11), load(w, source + P12)
        p21, p22 = load(w, source + P21), load(w, source + P22)
        v1, v2 = _primal(w, c, above, u1, u2, p11, p12, p21, p22, left11, left21, theta, limit, minus)
        store(w, target + U1, v1)
        store(w, target + U2, v2)
        if source != target:
            store(w, target + P11, p11)
            store(w, target + P12, p12)
            store(w, target + P21, p21)
            store(w, target + P22, p22)
        u1, u2 = v1 - u1, v2 - u2
        change = fma(u1, u1, fma(u2, u2, change))
        left11, left21 = p11, p21
        source, target, above, c = source + STATE, target + STATE, above + STATE, c + COEFFICIENTS
    return total(change)


@njit(nogil=True, error_model="numpy")
def _dual_row(w, row, below, blocks, tail, taut_):
    """Dual step of a row, in place. below: state row of the next row (the row itself when it is the last)."""
    zero, one, taut = splat(np.float32(0)), splat(np.float32(1)), splat(taut_)
    for block in range(blocks):
        u1, u2 = load(w, row + U1), load(w, row + U2)
        if block < blocks - 1:
            ux, vx = after(u1, load(w, row + STATE + U1)) - u1, after(u2, load(w, row + STATE + U2)) - u2
        else:
            ux, vx = keep(after(u1, zero) - u1, tail - 1), keep(after(u2, zero) - u2, tail - 1)
        p11, p12 = _dual(ux, load(w, below + U1) - u1, load(w, row + P11), load(w, row + P12), taut, one)
        p21, p22 = _dual(vx, load(w, below + U2) - u2, load(w, row + P21), load(w, row + P22), taut, one)
        store(w, row + P11, p11)
        store(w, row + P12, p12)
        store(w, row + P21, p21)
        store(w, row + P22, p22)
        row, below = row + STATE, below + STATE


@njit(inline="always")
def _block(w, source, target, c, above, below, u1, u2, ux, vx, left11, left21, taut, one, theta, limit, minus):
    """Dual, then primal step of one block; returns the new u1, u2, p11, p21."""
    p11, p12 = _dual(ux, load(w, below + U1) - u1, load(w, source + P11), load(w, source + P12), taut, one)
    p21, p22 = _dual(vx, load(w, below + U2) - u2, load(w, source + P21), load(w, source + P22), taut, one)
    v1, v2 = _primal(w, c, above, u1, u2, p11, p12, p21, p22, left11, left21, theta, limit, minus)
    store(w, target + P11, p11)
    store(w, target + P12, p12)
    store(w, target + P21, p21)
    store(w, target + P22, p22)
    store(w, target + U1, v1)
    store(w, target + U2, v2)
    return v1, v2, p11, p21


@njit(nogil=True, error_model="numpy")
def _row(w, source, target, c, above, below, blocks, tail, taut_, theta_, limit_, measure):
    """Dual step, then primal step of a row. Returns the sum of squared changes of u where `measure`, else 0."""
    zero, one = splat(np.float32(0)), splat(np.float32(1))
    taut, theta, limit, minus = splat(taut_), splat(theta_), splat(limit_), splat(-limit_)
    left11 = left21 = change = zero
    u1, u2 = load(w, source + U1), load(w, source + U2)
    for _ in range(blocks - 1):
        next1, next2 = load(w, source + STATE + U1), load(w, source + STATE + U2)
        v1, v2, left11, left21 = _block(w, source, target, c, above, below, u1, u2, after(u1, next1) - u1,
                                        after(u2, next2) - u2, left11, left21, taut, one, theta, limit, minus)
        if measure:
            u1, u2 = v1 - u1, v2 - u2
            change = fma(u1, u1, fma(u2, u2, change))
        u1, u2 = next1, next2
        source, target, c = source + STATE, target + STATE, c + COEFFICIENTS
        above, below = above + STATE, below + STATE
    ux, vx = keep(after(u1, zero) - u1, tail - 1), keep(after(u2, zero) - u2, tail - 1)
    v1, v2, left11, left21 = _block(w, source, target, c, above, below, u1, u2, ux, vx, left11, left21,
                                    taut, one, theta, limit, minus)
    if not measure:
        return np.float32(0)
    u1, u2 = v1 - u1, v2 - u2
    return total(fma(u1, u1, fma(u2, u2, change)))


@njit(nogil=True, error_model="numpy")
def sweep(w, source, target, c, height, width, count, pending, finish, taut, theta, limit, errors, measure):
    """`count` iterations in flight in one sweep over the rows.

    w: flat float32 workspace; source, target: offsets of row 0 of the state before and after (equal: in place; else
    `source` is left as it was); c: offset of the coefficients.
    pending: the state's dual step is still to be taken (an earlier sweep without `finish`); finish: take the last one.
    errors: (count,) float64, the sum of squared changes of u of every iteration, filled where `measure`.
    """
    blocks = (width + LANES - 1) // LANES
    tail = width - (blocks - 1) * LANES
    pitch, c_pitch = blocks * STATE, blocks * COEFFICIENTS
    errors[:count] = 0
    stages = count + 1 if finish else count
    for tick in range(height + stages - 1):
        for stage in range(max(0, tick - height + 1), min(stages, tick + 1)):
            y = tick - stage
            here = target + y * pitch
            start = source + y * pitch if stage == 0 else here
            below = start + pitch if y < height - 1 else start
            if stage == count:
                _dual_row(w, here, below, blocks, tail, taut)
            elif stage == 0 and not pending:
                errors[0] += _primal_row(w, start, here, c + y * c_pitch, start - pitch, blocks, theta, limit)
            else:
                errors[stage] += _row(w, start, here, c + y * c_pitch, here - pitch, below, blocks, tail,
                                      taut, theta, limit, measure)
