"""TV-L1 of a batch of pairs as a sequence of kernels: what runs on the GPU, written against a small device interface.

N pairs, HxW pixels. A device has `xp` (numpy or CuPy) and `run(kernel, width, height, count, *args)`, which starts a
kernel of kernels/tvl1.cu once for every pixel or tile of `count` images; `tile` is (width, height) of iterate's tile.
cuda.py has the real one; the tests run the same sequence on a plain C++ build of the same kernels.
"""

import numpy as np

from preprocess.flow.parameters import TVL1Parameters

STEPS = 4             # iterations a tile takes between two round trips to memory; the halo is as wide
CHECK_EVERY = 10      # iterations between two looks at whether all pairs have stopped (each waits for the device)


class BatchSolver:
    """Buffers of up to `pairs` pairs of one size, made from up to `frames` frames."""

    def __init__(self, device, height: int, width: int, parameters: TVL1Parameters, pairs: int, frames: int,
                 steps: int = STEPS):
        self.device, self.parameters, self.steps = device, parameters, steps
        self.sizes = parameters.levels(height, width)
        self.capacity = pairs, frames
        xp, area = device.xp, height * width
        self.images = [xp.empty((frames, h, w), np.float32) for h, w in self.sizes]
        self.second = xp.empty(pairs * area * 4, np.float32)
        self.u, self.u_spare = (xp.empty(pairs * area * 2, np.float32) for _ in range(2))
        self.p, self.p_spare = (xp.empty(pairs * area * 4, np.float32) for _ in range(2))
        self.c = xp.empty(pairs * area * 4, np.float32)
        self.flow = xp.empty((pairs, 2, height, width), np.float32)
        self.active = xp.ones(pairs, np.int32)
        if not parameters.fixed:
            self.change = xp.empty(pairs * area, np.float32)
            self.sums = xp.empty(pairs * width, np.float32)

    def run(self, pairs: int, frames: int, shift: int):
        """Flow of frames n to n + shift for n < pairs; images[0] holds the frames. Returns (pairs, 2, H, W)."""
        p, f = self.parameters, np.float32
        self._pyramid(frames)
        for scale in range(len(self.sizes) - 1, -1, -1):
            h, w = self.sizes[scale]
            if scale == len(self.sizes) - 1:
                self.u[:pairs * h * w * 2].fill(0)
            else:
                coarse_h, coarse_w = self.sizes[scale + 1]
                self._run("upscale", w, h, pairs, self.u, self.u_spare, coarse_w, coarse_h, w, h,
                          np.float64(coarse_w / w), np.float64(coarse_h / h), f(1 / p.zoom))
                self.u, self.u_spare = self.u_spare, self.u
            self.p[:pairs * h * w * 4].fill(0)
            self._run("interleave", w, h, pairs, self.images[scale][shift:], self.second, w, h)
            for _ in range(p.warps):
                self._run("warp", w, h, pairs, self.images[scale], self.second, self.u, self.c, w, h)
                self.active.fill(1)
                for _ in range(p.outer):
                    if p.median > 1:
                        self._run("median", w, h, pairs, self.u, self.u_spare, self.active, w, h, p.median)
                        self.u, self.u_spare = self.u_spare, self.u
                    if p.fixed:
                        self._fixed(w, h, pairs)
                    elif not self._until(w, h, pairs):
                        break
        self._run("split", self.sizes[0][1], self.sizes[0][0], pairs, self.u, self.flow, *self.sizes[0][::-1])
        return self.flow[:pairs]

    def _run(self, kernel, width, height, count, *args):
        args = [np.int32(arg) if isinstance(arg, int) else arg for arg in args]
        self.device.run(kernel, width, height, count, *args, np.int32(count))

    def _pyramid(self, frames):
        scale = np.float64(1 / self.parameters.zoom)
        for (fine_h, fine_w), (h, w), fine, coarse in zip(self.sizes, self.sizes[1:], self.images, self.images[1:]):
            self._run("downscale", w, h, frames, fine, coarse, fine_w, fine_h, w, h, scale)

    def _fixed(self, w, h, pairs):
        p, f = self.parameters, np.float32
        left = p.iterations
        while left:
            steps = min(self.steps, left)
            inner_w, inner_h = (side - 2 * steps for side in self.device.tile)
            self._run("iterate", -(-w // inner_w), -(-h // inner_h), pairs, self.u, self.p, self.c, self.u_spare,
                      self.p_spare, w, h, steps, f(p.tau / p.theta), f(p.theta), f(p.lambda_ * p.theta))
            self.u, self.u_spare = self.u_spare, self.u
            self.p, self.p_spare = self.p_spare, self.p
            left -= steps

    def _until(self, w, h, pairs) -> bool:
        """One outer round with the stop by epsilon, every pair for itself; whether any pair is still to go on."""
        p, f = self.parameters, np.float32
        limit = f(p.epsilon * p.epsilon * h * w)
        for iteration in range(1, p.iterations + 1):
            self._run("primal_step", w, h, pairs, self.u, self.p, self.c, self.change, self.active, w, h, f(p.theta),
                      f(p.lambda_ * p.theta))
            self._run("dual_step", w, h, pairs, self.u, self.p, self.active, w, h, f(p.tau / p.theta))
            self._run("column_sums", w, 1, pairs, self.change, self.sums, self.active, w, h)
            self._run("stop", pairs, 1, 1, self.sums, self.active, w, limit, pairs)
            if (iteration % CHECK_EVERY == 0 or iteration == p.iterations) and not self.active[:pairs].any():
                return False
        return True
