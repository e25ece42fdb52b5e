"""TV-L1 optical flow of grey frames: `from preprocess.flow import tvl1`.

N pairs, T flows of T + 1 frames, HxW pixels. Flow: channel 0 right, 1 down, px/frame.
Backends: `cpu` (numba), `cuda` (CuPy), `opencv` (DualTVL1, the oracle); the same algorithm, the same presets.
On one backend the same pair gives the same bits, whatever the batch or the number of threads or processes.
"""

from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module

import numpy as np

from preprocess.flow.parameters import MIN_SIDE, PRESETS, TVL1Parameters, parameters
from preprocess.flow.scale import enlarged, halved
from shared.cli import RequestError, nearest

__all__ = ["BACKENDS", "PRESETS", "TVL1Parameters", "flow_window", "parameters", "resolve", "runs_here",
           "tvl1"]

BACKENDS = ("auto", "cpu", "cuda", "opencv")


def resolve(backend: str) -> str:
    """The backend that a request means: `auto` is cuda where CuPy and a device are there, else cpu.

    Raises RequestError for an unknown backend, or one that this machine cannot run.
    """
    if backend not in BACKENDS:
        raise RequestError(f"flow has no backend {backend!r}{nearest(backend, BACKENDS)}")
    if backend in ("auto", "cuda"):
        from preprocess.flow import cuda
        reason = cuda.unavailable()
        if reason is None:
            return "cuda"
        if backend == "cuda":
            raise RequestError(f"flow backend 'cuda' cannot run here: {reason}; choose cpu")
        return "cpu"
    if backend == "opencv":
        from preprocess.flow import opencv
        opencv.require()
    return backend


def runs_here(backend: str) -> bool:
    """Whether this machine can run a resolved backend; a cluster's workers may be able to where it cannot."""
    try:
        return resolve(backend) == backend
    except RequestError:
        return False


def tvl1(first, second, preset: str | TVL1Parameters = "default", backend: str = "auto", threads: int = 1, **overrides):
    """TV-L1 flow of N frame pairs (Zach, Pock, Bischof 2007; OpenCV's DualTVL1).

    first, second: (N, H, W) or (H, W), grey, uint8 or float32 in [0, 255]; H, W from 16 up (31 at `scale` 0.5).
    preset: `reference` (OpenCV's defaults), `default`, `fast` or `half` (`fast` at `scale` 0.5); overrides: single
    parameters of TVL1Parameters.
    threads: pairs solved at a time (all but cuda).
    Returns (N, 2, H, W) or (2, H, W) float32, px/frame: first[y, x] is found at second[y + flow[1], x + flow[0]].
    With `scale` 0.5 it is computed on frames averaged down to half the size, and comes at the frames' own (bilinear).
    Raises RequestError where an argument is wrong; NaN and infinite pixels are refused.
    """
    settings = parameters(preset, **overrides)
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape or first.dtype != second.dtype:
        raise RequestError(f"first is {_describe(first)}, second is {_describe(second)}; "
                           "expected the same shape and dtype")
    single = first.ndim == 2
    if single:
        first, second = first[None], second[None]
    _check(first, "first", settings)
    _check(second, "second", settings)
    backend, sides = resolve(backend), first.shape[1:]
    settings, first, second = _at_scale(settings, first, second)
    if backend == "cuda":
        from preprocess.flow import cuda
        flow = cuda.to_host(cuda.solve_pairs(first, second, settings))
    else:
        flow = _spread(first, second, settings, backend, threads, None)
    if flow.shape[2:] != sides:
        flow = enlarged(flow, *sides)
    return flow[0] if single else flow


def flow_window(frames, settings: TVL1Parameters, backend: str, threads: int = 1, executor: Executor | None = None):
    """Flow between neighbouring frames: what the pipeline calls, window by window.

    frames: (T + 1, H, W) grey, uint8 or float32 in [0, 255].   backend: of BACKENDS but `auto` (see `resolve`).
    threads, or an executor's: pairs solved at a time (all but cuda).
    Returns (T, 2, H, W) float32, px/frame: flow[t] takes frame t to t + 1; on the device (CuPy) for `cuda`.
    With `scale` 0.5 the flow of the halved frames, in their pixels: (T, 2, ceil(H/2), ceil(W/2)).
    Raises RequestError where an argument is wrong.
    """
    _check(frames, "frames", settings)
    if len(frames) == 0:
        raise RequestError("frames is empty; expected at least one frame")
    if backend == "cuda":
        from preprocess.flow import cuda
        settings, frames = _at_scale(settings, cuda.to_device(frames))
        return cuda.solve_window(frames, settings)
    if backend not in BACKENDS[1:]:
        raise RequestError(f"flow backend is {backend!r}; expected one of {', '.join(BACKENDS[1:])} (resolve('auto') "
                           "chooses one)")
    settings, frames = _at_scale(settings, frames)
    return _spread(frames[:-1], frames[1:], settings, backend, threads, executor)


def _at_scale(settings, *frames):
    """The parameters and frames that a backend is given: every one computes at the size of what it gets."""
    if settings.scale == 1:
        return settings, *frames
    return replace(settings, scale=1), *map(halved, frames)


def _spread(first, second, settings, backend, threads, executor):
    """Solve every pair by the backend's `solve_pair`, several at a time: none holds the GIL while it works."""
    if not isinstance(threads, int) or threads < 1:
        raise RequestError(f"threads is {threads!r}; expected a whole number from 1 up")
    solve_pair = import_module(f"preprocess.flow.{backend}").solve_pair
    flow = np.empty((len(first), 2, *first.shape[1:]), np.float32)

    def solve(n):
        solve_pair(np.ascontiguousarray(first[n]), np.ascontiguousarray(second[n]), flow[n], settings)

    if executor is not None:
        list(executor.map(solve, range(len(first))))
    elif threads > 1 and len(first) > 1:
        with ThreadPoolExecutor(min(threads, len(first))) as pool:
            list(pool.map(solve, range(len(first))))
    else:
        for n in range(len(first)):
            solve(n)
    return flow


def _describe(frames) -> str:
    return f"{'x'.join(map(str, frames.shape)) or 'a scalar'} {frames.dtype}"


def _check(frames, name: str, settings: TVL1Parameters) -> None:
    """Refuse what TV-L1 cannot take: (N, H, W) uint8, or float32 within [0, 255], sides from MIN_SIDE up."""
    if frames.ndim != 3 or frames.dtype not in (np.uint8, np.float32):
        raise RequestError(f"{name} is {_describe(frames)}; expected (N, H, W) uint8, or float32 in [0, 255]")
    if min(frames.shape[1:]) < (least := settings.min_side):
        raise RequestError(f"{name} is {_describe(frames)}; expected sides of at least {least} pixels" + (
            f", {MIN_SIDE} at half the size (scale 0.5)" if least > MIN_SIDE else ""))
    if frames.dtype == np.float32 and len(frames):
        low, high = float(frames.min()), float(frames.max())
        if not (0 <= low and high <= 255):             # also where either is NaN
            raise RequestError(f"{name} holds values from {low:g} to {high:g}; "
                               "expected grey values in [0, 255], no NaN")
