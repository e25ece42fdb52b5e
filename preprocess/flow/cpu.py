"""TV-L1 on the CPU: the whole solve of a pair is one numba call that holds no GIL and allocates nothing."""

import hashlib
import threading
from collections import deque
from pathlib import Path

import numpy as np
from numba import njit

from preprocess.flow.compiled import cached_njit
from preprocess.flow.cpu_image import MARGIN, ingest, interleave, linear_taps, resize_row, warp
from preprocess.flow.cpu_iterate import COEFFICIENTS, STATE, sweep
from preprocess.flow.cpu_median import median
from preprocess.flow.parameters import TVL1Parameters
from preprocess.flow.simd import LANES

# Columns of `levels`, one row a pyramid scale: sizes, offsets of both images, and of the four tables of taps
# (down: from the next finer scale to this one, up: from this one to the next finer).
H, W, FIRST, SECOND, DOWN_X, DOWN_Y, UP_X, UP_Y = range(8)
# Places in the workspace.
STATE_A, STATE_B, COEFFICIENT, IMAGE, PADDED, RANKS, SCRATCH = range(7)
IN_FLIGHT = 8        # iterations a sweep where a stop by epsilon may undo some of them


def _sources() -> str:
    """Hash of every kernel's source. Numba's disk cache looks at the date of the one file that holds `solve`; as a
    closure variable the hash makes a change in the others count too."""
    names = "cpu.py", "cpu_image.py", "cpu_iterate.py", "cpu_median.py", "simd.py"
    return hashlib.sha256(b"".join(Path(__file__).with_name(name).read_bytes() for name in names)).hexdigest()


@njit(nogil=True, error_model="numpy")
def _until(w, state, spare, c, height, width, iterations, error, limit, tau, theta, shrink, errors):
    """Inner iterations until the change of u is not above `limit`, tested after each. Returns (state, spare, error).

    A sweep runs several iterations from `state` into `spare`; where one of them but the last was the one to stop at,
    `state` is still there to run again just that far. How many to run follows the error's decay.
    """
    done, count, pending = 0, 4, False
    while done < iterations and error > limit:
        count = min(count, iterations - done)
        sweep(w, state, spare, c, height, width, count, pending, False, tau, theta, shrink, errors, True)
        stop = 0
        while stop < count - 1 and np.float32(errors[stop]) > limit:
            stop += 1
        if stop < count - 1:
            count = stop + 1
            sweep(w, state, spare, c, height, width, count, pending, False, tau, theta, shrink, errors, True)
        before = errors[count - 2] if count > 1 else np.float64(error)
        error = np.float32(errors[count - 1])
        state, spare, pending, done = spare, state, True, done + count
        count = IN_FLIGHT
        if 0 < error < before:
            left = np.log(limit / error) / np.log(error / before)
            count = int(max(1.0, min(left, np.float64(IN_FLIGHT))))
    if pending:
        sweep(w, state, state, c, height, width, 0, True, True, tau, theta, shrink, errors, False)
    return state, spare, error


def _build(sources):
    @cached_njit(nogil=True, error_model="numpy")
    def solve(w, places, levels, offsets, first, second, weights, errors, tau, theta, shrink, zoom, warps, iterations,
              outer, epsilon, size, flow):
        sources  # noqa: B018  (a closure variable: numba caches by the digest of all sources)
        for scale in range(1, len(levels)):
            fine, coarse = levels[scale - 1], levels[scale]
            blocks, fine_blocks = (coarse[W] + LANES - 1) // LANES, (fine[W] + LANES - 1) // LANES
            tail = coarse[W] - (blocks - 1) * LANES
            for image in (FIRST, SECOND):
                for y in range(coarse[H]):
                    row = coarse[DOWN_Y] + y
                    upper = fine[image] + first[row] * fine_blocks * LANES
                    lower = fine[image] + second[row] * fine_blocks * LANES
                    resize_row(w, upper, lower, weights[row], LANES, fine_blocks, offsets[SCRATCH],
                               coarse[image] + y * blocks * LANES, LANES, blocks, tail,
                               first, second, weights, coarse[DOWN_X], np.float32(1))
        state, spare, c = offsets[STATE_A], offsets[STATE_B], offsets[COEFFICIENT]
        for scale in range(len(levels) - 1, -1, -1):
            height, width = levels[scale, H], levels[scale, W]
            blocks = (width + LANES - 1) // LANES
            pitch, tail = blocks * STATE, width - (blocks - 1) * LANES
            w[spare - pitch:spare + height * pitch] = 0
            if scale < len(levels) - 1:
                coarse = levels[scale + 1]
                coarse_blocks = (coarse[W] + LANES - 1) // LANES
                for plane in (0, LANES):
                    for y in range(height):
                        row = coarse[UP_Y] + y
                        upper = state + first[row] * coarse_blocks * STATE + plane
                        lower = state + second[row] * coarse_blocks * STATE + plane
                        resize_row(w, upper, lower, weights[row], STATE, coarse_blocks, offsets[SCRATCH],
                                   spare + y * pitch + plane, STATE, blocks, tail,
                                   first, second, weights, coarse[UP_X], np.float32(1 / zoom))
            state, spare = spare, state
            w[spare - pitch:spare] = 0
            interleave(w, levels[scale, SECOND], height, width, offsets[IMAGE])
            limit = np.float32(epsilon * epsilon * height * width)
            for _ in range(warps):
                warp(w, offsets[IMAGE], levels[scale, FIRST], state, c, height, width, offsets[SCRATCH],
                     places)
                error = np.float32(np.inf)
                for _ in range(outer):
                    if epsilon > 0 and error <= limit:
                        break
                    if size > 1:
                        median(w, state, height, width, size, offsets[PADDED], offsets[RANKS])
                        median(w, state + LANES, height, width, size, offsets[PADDED], offsets[RANKS])
                    if epsilon > 0:
                        state, spare, error = _until(w, state, spare, c, height, width, iterations, error, limit, tau,
                                                     theta, shrink, errors)
                    else:
                        sweep(w, state, state, c, height, width, iterations, False, True, tau, theta, shrink, errors,
                              False)
        for y in range(flow.shape[1]):
            for x in range(flow.shape[2]):
                at = state + y * pitch + x // LANES * STATE + x % LANES
                flow[0, y, x] = w[at]
                flow[1, y, x] = w[at + LANES]
    return solve


solve = _build(_sources())


def _padded(count):
    return -(-count // LANES) * LANES


class Solver:
    """Workspace and tables for pairs of one size; one at a time a thread."""

    def __init__(self, height: int, width: int, parameters: TVL1Parameters):
        self.key = height, width, parameters
        self.parameters = parameters
        sizes = parameters.levels(height, width)
        self.levels = np.zeros((len(sizes), 8), np.int64)
        self.offsets = np.zeros(7, np.int64)
        top = 0

        def reserve(count):
            nonlocal top
            start, top = top, top + _padded(count)
            return start

        first, second, weights = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]

        def table(source, target, scale):
            at = sum(map(len, first))
            for column, taps in zip((first, second, weights), linear_taps(source, target, scale)):
                column.append(np.pad(taps, (0, _padded(target) - target)))
            return at

        for scale, (h, w) in enumerate(sizes):
            self.levels[scale, :4] = h, w, reserve(h * _padded(w)), reserve(h * _padded(w))
            if scale:
                H0, W0 = sizes[scale - 1]
                self.levels[scale, 4:] = (table(W0, w, 1 / parameters.zoom), table(H0, h, 1 / parameters.zoom),
                                          table(w, W0, w / W0), table(h, H0, h / H0))
        blocks = _padded(width) // LANES
        wide = (blocks + 2) * LANES
        for place in (STATE_A, STATE_B):         # a row of zeros stands before row 0
            self.offsets[place] = reserve((height + 1) * blocks * STATE) + blocks * STATE
        self.offsets[COEFFICIENT] = reserve(height * blocks * COEFFICIENTS)
        self.offsets[IMAGE] = reserve((height + 2 * MARGIN) * (width + 2 * MARGIN) * 4 + LANES)
        self.offsets[PADDED], self.offsets[RANKS] = reserve((height + 4) * wide), reserve(5 * wide)
        self.offsets[SCRATCH] = reserve(max(wide, 4 * LANES))
        self.first, self.second, self.weights = map(np.concatenate, (first, second, weights))
        memory = np.zeros(top + LANES, np.float32)
        start = -memory.ctypes.data // 4 % LANES      # on a 64 byte line: unaligned vectors cost a third more time
        self.workspace = memory[start:start + top]
        self.places = np.zeros(2 * LANES, np.int32)
        self.errors = np.zeros(max(IN_FLIGHT, parameters.iterations) + 1)

    def __call__(self, first, second, flow) -> None:
        """Two frames (H, W) uint8 or float32 in [0, 255] -> flow (2, H, W) float32, px/frame, written in place."""
        p, w, pitch = self.parameters, self.workspace, _padded(self.key[1])
        ingest(first, w, self.levels[0, FIRST], pitch)
        ingest(second, w, self.levels[0, SECOND], pitch)
        f = np.float32
        solve(w, self.places, self.levels, self.offsets, self.first, self.second, self.weights, self.errors,
              f(p.tau / p.theta), f(p.theta), f(p.lambda_ * p.theta), p.zoom, p.warps, p.iterations, p.outer, p.epsilon,
              p.median, flow)


_idle: deque = deque(maxlen=64)
_lock = threading.Lock()


def solve_pair(first, second, flow, parameters: TVL1Parameters) -> None:
    """One pair on the calling thread, with a workspace kept from an earlier pair of the same size where one is idle.

    Of equal frames the flow is zero at once: the warped image less the first is exactly zero, so no step moves zero.
    """
    if np.array_equal(first, second):
        flow[:] = 0
        return
    key = *first.shape, parameters
    with _lock:
        if _idle and _idle[-1].key != key:       # another size now: old workspaces would only hold memory
            _idle.clear()
        solver = _idle.pop() if _idle else None
    if solver is None:
        solver = Solver(*key)
    solver(first, second, flow)
    with _lock:
        _idle.append(solver)
