"""The CPU backend: the iterations against a plain float64 version, whole flows against OpenCV, bits against bits."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite.binding import get_host_cpu_features

from preprocess.flow import cpu, flow_window, parameters, resolve, tvl1
from preprocess.flow.cpu_iterate import COEFFICIENTS, STATE, sweep
from preprocess.flow.simd import LANES
from shared.cli import RequestError


def error(a, b):
    """Endpoint error (..., H, W), px."""
    return np.hypot(a[..., 0, :, :] - b[..., 0, :, :], a[..., 1, :, :] - b[..., 1, :, :])


def plain_iteration(u, p, c, tau, theta, lambda_):
    """One inner iteration, as the equations have it. u (2, H, W), p (4, H, W), c = gx, gy, -1/|g|^2, rho_c; float64."""
    gx, gy, inverse, rho_c = c
    step = np.clip((rho_c + gx * u[0] + gy * u[1]) * inverse, -lambda_ * theta, lambda_ * theta)
    divergence = [np.diff(px, axis=1, prepend=0) + np.diff(py, axis=0, prepend=0) for px, py in (p[:2], p[2:])]
    u = np.stack([u[0] + step * gx + theta * divergence[0], u[1] + step * gy + theta * divergence[1]])
    new = []
    for k in range(2):
        dx = np.diff(u[k], axis=1, append=u[k][:, -1:])
        dy = np.diff(u[k], axis=0, append=u[k][-1:])
        norm = 1 + tau / theta * np.hypot(dx, dy)
        new += [(p[2 * k] + tau / theta * dx) / norm, (p[2 * k + 1] + tau / theta * dy) / norm]
    return u, np.stack(new)


class State:
    """State, spare and coefficients as `sweep` lays them out, filled at random; planes in and out."""

    def __init__(self, height, width, seed):
        rng = np.random.default_rng(seed)
        self.height, self.width, self.blocks = height, width, -(-width // LANES)
        self.pitch = self.blocks * STATE
        area, self.c_size = (height + 1) * self.pitch, height * self.blocks * COEFFICIENTS
        memory = np.zeros(2 * area + self.c_size + LANES, np.float32)
        self.w = memory[-memory.ctypes.data // 4 % LANES:]
        self.a, self.b, self.c = self.pitch, area + self.pitch, 2 * area
        u, p = rng.normal(0, 1, (2, height, width)), rng.uniform(-0.5, 0.5, (4, height, width))
        p[0, :, -1] = p[2, :, -1] = p[1, -1] = p[3, -1] = 0
        gradient = rng.normal(0, 5, (2, height, width))
        self.start = u.astype(np.float32).astype(float), p.astype(np.float32).astype(float)
        self.coefficients = np.stack([*gradient, -1 / (gradient**2).sum(0), rng.normal(0, 20, (height, width))])
        self._planes(self.a, 6, STATE)[:] = self._blocks(np.concatenate([u, p]))
        self._planes(self.c, 4, COEFFICIENTS)[:] = self._blocks(self.coefficients)

    def _planes(self, start, planes, floats):
        count = self.height * self.blocks * floats
        return self.w[start:start + count].reshape(self.height, self.blocks, planes, LANES)

    def _blocks(self, planes):
        padded = np.pad(planes, ((0, 0), (0, 0), (0, self.blocks * LANES - self.width)))
        return padded.reshape(len(planes), self.height, self.blocks, LANES).transpose(1, 2, 0, 3)

    def read(self, start):
        planes = self._planes(start, 6, STATE).transpose(2, 0, 1, 3).reshape(6, self.height, -1)
        assert not planes[..., self.width:].any(), "lanes past the width must stay zero"
        return planes[:2, :, :self.width].copy(), planes[2:, :, :self.width].copy()

    def sweep(self, source, target, count, pending=False, finish=True, measure=False):
        f, errors = np.float32, np.zeros(max(count, 1))
        sweep(self.w, source, target, self.c, self.height, self.width, count, pending, finish, f(0.25 / 0.3), f(0.3),
              f(0.15 * 0.3), errors, measure)
        return errors


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.integers(3, 40), st.integers(2, 70), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_sweep_is_the_plain_iteration(height, width, count, seed):
    s = State(height, width, seed)
    errors = s.sweep(s.a, s.a, count, measure=True)
    u, p = s.start
    for k in range(count):
        before = u
        u, p = plain_iteration(u, p, s.coefficients, 0.25, 0.3, 0.15)
        assert errors[k] == pytest.approx(((u - before)**2).sum(), rel=1e-3)
    got_u, got_p = s.read(s.a)
    np.testing.assert_allclose(got_u, u, atol=2e-4)
    np.testing.assert_allclose(got_p, p, atol=2e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 70), st.integers(2, 12), st.integers(0, 2**32 - 1), st.data())
def test_any_split_of_the_wavefront_gives_the_same_bits(height, width, count, seed, data):
    whole = State(height, width, seed)
    errors = whole.sweep(whole.a, whole.a, count, measure=True)
    parts = State(height, width, seed)
    cuts = sorted(data.draw(st.sets(st.integers(1, count - 1), max_size=3)))
    here, there, got = parts.a, parts.b, []
    for start, stop in zip([0, *cuts], [*cuts, count]):
        untouched = parts.read(here)
        for _ in range(2):            # out of place, so that a sweep can be run again from where it began
            part = parts.sweep(here, there, stop - start, pending=start > 0, finish=False, measure=True)
        np.testing.assert_array_equal(np.concatenate(untouched), np.concatenate(parts.read(here)))
        got.extend(part[:stop - start])
        here, there = there, here
    parts.sweep(here, here, 0, pending=True)
    np.testing.assert_array_equal(np.concatenate(parts.read(here)), np.concatenate(whole.read(whole.a)))
    np.testing.assert_array_equal(got, errors)


def against_opencv(pairs, preset="default", **overrides):
    """Per pair: mean endpoint error to OpenCV, and OpenCV's own when its input moves by 1e-5 grey values, px.

    TV-L1 amplifies rounding where motion is large: the second number says how much of the first means anything.
    """
    errors, noise = [], np.random.default_rng(0)
    for first, second in pairs:
        ours, theirs = (tvl1(first, second, preset, backend, **overrides) for backend in ("cpu", "opencv"))
        moved = [np.clip(frame + noise.normal(0, 1e-5, frame.shape), 0, 255).astype(np.float32)
                 for frame in (first, second)]
        errors.append((error(ours, theirs).mean(), error(tvl1(*moved, preset, "opencv", **overrides), theirs).mean()))
    return np.array(errors)


def assert_equal_to_opencv(errors):
    assert np.median(errors[:, 0]) <= 0.005, errors
    assert errors[errors[:, 1] <= 0.01, 0].mean() <= 0.005, errors
    assert errors[:, 0].mean() <= max(0.005, 3 * errors[:, 1].mean()), errors


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [
    {}, {"zoom": 0.8, "scales": 3}, {"median": 3, "outer": 2, "iterations": 10}, {"median": 1, "warps": 3},
    {"tau": 0.2, "lambda": 0.1, "theta": 0.2, "zoom": 0.6}], ids=str)
def test_fixed_counts_equal_opencv(real_frames, overrides):
    assert_equal_to_opencv(against_opencv([f[:2, 40:168, 30:200] for f in real_frames], **overrides))


@pytest.mark.slow
@pytest.mark.parametrize("preset, overrides",
                         [("default", {}), ("fast", {}), ("reference", {"epsilon": 0, "outer": 1})])
def test_whole_frames_equal_opencv(real_frames, preset, overrides):
    assert_equal_to_opencv(against_opencv([f[:2] for f in real_frames], preset, **overrides))


@pytest.mark.slow
def test_reference_with_its_stop_equals_opencv(real_frames):
    errors = np.array([error(*(tvl1(f[0], f[1], "reference", backend) for backend in ("cpu", "opencv"))).mean()
                       for f in real_frames])
    assert np.median(errors) <= 0.02, errors


@pytest.mark.slow
def test_stop_by_epsilon_equals_opencv_small(real_frames):
    errors = np.array([error(*(tvl1(f[0, :96, :128], f[1, :96, :128], "reference", backend)
                               for backend in ("cpu", "opencv"))).mean() for f in real_frames])
    assert np.median(errors) <= 0.02, errors


def in_another_process(frames, folder, **environment):
    np.save(folder / "frames.npy", frames)
    script = ("import sys, numpy as np; from preprocess.flow import flow_window, parameters; "
              "f = np.load(sys.argv[1] + '/frames.npy'); "
              "np.save(sys.argv[1] + '/flow.npy', flow_window(f, parameters('reference'), 'cpu'))")
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, cwd=Path(__file__).resolve().parents[3],
                   env={**os.environ, **environment})
    return np.load(folder / "flow.npy")


@pytest.mark.slow
def test_same_bits_in_another_process(real_frames, tmp_path):
    frames = real_frames[1][:, :80, :96]
    np.testing.assert_array_equal(in_another_process(frames, tmp_path),
                                  flow_window(frames, parameters("reference"), "cpu"))


@pytest.mark.slow
def test_same_bits_with_narrower_registers(real_frames, tmp_path):
    """Built for AVX2 with FMA and for whatever this machine has."""
    features = get_host_cpu_features()
    if not (features.get("avx2") and features.get("fma")):
        pytest.skip("this machine has no AVX2 and FMA")
    frames = real_frames[1][:, :80, :96]
    narrow = in_another_process(frames, tmp_path, NUMBA_CACHE_DIR=str(tmp_path), NUMBA_CPU_NAME="haswell",
                                NUMBA_CPU_FEATURES="+avx,+avx2,+fma,-avx512f")
    np.testing.assert_array_equal(narrow, flow_window(frames, parameters("reference"), "cpu"))


def test_ground_truth_gate(data_root):
    """Middlebury at half size: endpoint error of `default` and `fast` over that of OpenCV's defaults."""
    ratios = {"default": [], "fast": []}
    theirs = []
    for name in ("RubberWhale", "Dimetrodon"):
        folder = data_root / "flow_gt" / name
        a, b = (cv2.imread(str(folder / f"frame{n}.png"), cv2.IMREAD_GRAYSCALE) for n in (10, 11))
        truth = cv2.readOpticalFlow(str(folder / "flow10.flo"))
        known = np.abs(truth).max(axis=-1) < 1e6
        shrink = 128 / min(a.shape)
        a, b = (cv2.resize(x, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA) for x in (a, b))
        truth = cv2.resize(np.where(known[..., None], truth, 0), a.shape[::-1], interpolation=cv2.INTER_AREA) * shrink
        known = cv2.resize(known.astype(np.float32), a.shape[::-1], interpolation=cv2.INTER_AREA) > 0.999
        truth = truth.transpose(2, 0, 1)
        theirs.append(error(tvl1(a, b, "reference", "opencv"), truth)[known].mean())
        for preset in ratios:
            ratios[preset].append(error(tvl1(a, b, preset, "cpu"), truth)[known].mean())
    assert np.mean(ratios["default"]) <= 1.06 * np.mean(theirs), (ratios, theirs)
    assert np.mean(ratios["fast"]) <= 1.08 * np.mean(theirs), (ratios, theirs)


@pytest.mark.parametrize("first, second, message", [
    (np.zeros((20, 20)), np.zeros((20, 20)), "20x20 float64; expected"),
    (np.zeros((20, 20), np.uint8), np.zeros((20, 21), np.uint8), "20x20 uint8, second is 20x21 uint8"),
    (np.zeros((15, 20), np.uint8), np.zeros((15, 20), np.uint8), "at least 16 pixels"),
    (np.zeros((2, 3, 20, 20), np.uint8), np.zeros((2, 3, 20, 20), np.uint8), r"expected \(N, H, W\)"),
    (np.full((20, 20), np.nan, np.float32), np.zeros((20, 20), np.float32), "first holds values from nan"),
    (np.zeros((20, 20), np.float32), np.full((20, 20), 300, np.float32), "second holds values from 300 to 300"),
])
def test_wrong_frames_are_refused(first, second, message):
    with pytest.raises(RequestError, match=message):
        tvl1(first, second, backend="cpu")


def test_wrong_requests_are_refused():
    frames = np.zeros((2, 20, 20), np.uint8)
    with pytest.raises(RequestError, match="^flow has no backend 'cude'; did you mean 'cuda'[?]$"):
        tvl1(frames, frames, backend="cude")
    with pytest.raises(RequestError, match="^flow has no backend 'xyz'; known: auto, cpu, cuda, "):
        resolve("xyz")
    with pytest.raises(RequestError, match="threads is 0"):
        tvl1(frames, frames, backend="cpu", threads=0)
    with pytest.raises(RequestError, match="resolve"):
        flow_window(frames, parameters(), "auto")
    with pytest.raises(RequestError, match="at least one frame"):
        flow_window(frames[:0], parameters(), "cpu")
    assert resolve("cpu") == "cpu" and resolve("opencv") == "opencv" and resolve("auto") in ("cpu", "cuda")


def test_idle_workspaces_of_another_size_are_let_go():
    for size in (32, 40):
        frames = np.random.default_rng(size).integers(0, 256, (6, size, size)).astype(np.uint8)
        flow_window(frames, parameters("fast"), "cpu", threads=2)
        assert {solver.key[:2] for solver in cpu._idle} == {(size, size)} and len(cpu._idle) <= 2


@pytest.mark.parametrize("preset, overrides", [("default", {}), ("reference", {"scales": 3}), ("fast", {"median": 1}),
                                               ("fast", {"zoom": 0.7, "outer": 2, "median": 3})], ids=str)
def test_the_zero_of_equal_frames_is_what_the_solve_gives(preset, overrides):
    """Every bit of it: positive zeros."""
    rng, settings = np.random.default_rng(7), parameters(preset, **overrides)
    for frame in (rng.integers(0, 256, (47, 53)).astype(np.uint8), rng.uniform(0, 255, (40, 64)).astype(np.float32)):
        solved, at_once = (np.full((2, *frame.shape), np.nan, np.float32) for _ in range(2))
        cpu.Solver(*frame.shape, settings)(frame, frame.copy(), solved)
        cpu.solve_pair(frame, frame.copy(), at_once, settings)
        assert solved.tobytes() == at_once.tobytes() == bytes(solved.nbytes)
