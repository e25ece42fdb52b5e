"""Roots and reciprocals by estimate and Newton steps with FMA: the same bits as the processor's own, and at what speed?

    python tests/bench/roots.py [--only-time]

Proof first: the root of all 2^32 floats, and the reciprocal of all floats from 1 to 2^126 (what a dual step divides by
lies there), bit for bit against the processor's correctly rounded ones. Estimates differ from processor to processor,
so the proof holds for the one that it was run on. Then the time of 16 lanes, of each alone and of the dual step's
1 / (1 + tau/theta sqrt(a^2 + b^2)), by turns, in ns of one core. Steps: Markstein 1990; start: rsqrtps and rcpps (12
bits), with AVX-512 rsqrt14 and rcp14.
"""

import argparse
import statistics
import sys
import time

import numpy as np
from flow import machine
from llvmlite import binding, ir
from numba import njit
from numba.core import cgutils

from preprocess.flow.simd import _VECTOR, LANES, _elementwise, _llvm, fma, load, splat, sqrt, store

AVX512 = binding.get_host_cpu_features().get("avx512f", False)
ONE, CHUNK = 0x3F800000, 1 << 24   # the bits of 1.0; floats tried at a time


def _estimate(name):
    """The processor's estimate of 1/sqrt(a) or 1/a, in every lane."""
    def emit(builder, a):
        if AVX512:
            mask = ir.IntType(16)
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(_VECTOR, [_VECTOR, _VECTOR, mask]), f"llvm.x86.avx512.{name}14.ps.512")
            return builder.call(function, [a, ir.Constant(_VECTOR, [0.0] * LANES), mask(0xFFFF)])
        eight, number = ir.VectorType(ir.FloatType(), 8), ir.IntType(32)
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(eight, [eight]),
                                                  f"llvm.x86.avx.{name}.ps.256")
        picks = [ir.Constant(ir.VectorType(number, 8), list(range(start, start + 8))) for start in (0, 8)]
        low, high = (builder.call(function, [builder.shuffle_vector(a, a, pick)]) for pick in picks)
        return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(number, LANES), list(range(LANES))))
    return emit


rsqrt, rcp = _elementwise("rsqrt", _estimate("rsqrt"), 1), _elementwise("rcp", _estimate("rcp"), 1)
exact = _elementwise("exact", _llvm("fma"), 3)   # a * b + c, rounded once
below = _elementwise("below", lambda builder, x, limit, a, b: builder.select(
    builder.fcmp_ordered("<", x, limit), a, b), 4)
unless = _elementwise("unless", lambda builder, x, value, a: builder.select(
    builder.fcmp_ordered("==", x, value), x, a), 3)


@njit(inline="always")
def newton_root(x):
    """sqrt(x), correctly rounded: numbers under 2^-64, whose remainders would be subnormal, are scaled by 2^64."""
    small = splat(np.float32(2.0 ** -64))
    a = below(x, small, x * splat(np.float32(2.0 ** 64)), x)
    y = rsqrt(a)
    root, h = a * y, y * splat(np.float32(-0.5))
    r = exact(root, h, splat(np.float32(0.5)))
    root, h = exact(root, r, root), exact(h, r, h)
    root = exact(exact(root, root, a * splat(np.float32(-1))), h, root)
    root = below(x, small, root * splat(np.float32(2.0 ** -32)), root)
    return unless(x, splat(np.float32(np.inf)), unless(x, splat(np.float32(0)), root))


@njit(inline="always")
def newton_reciprocal(x):
    """1 / x, correctly rounded, for 1 <= x < 2^126. The last step goes a bit too far: else the remainder of a mantissa
    of ones alone, which lies next to half a bit, would be rounded the wrong way."""
    one, minus, y = splat(np.float32(1)), x * splat(np.float32(-1)), rcp(x)
    y = exact(exact(minus, y, one), y, y)
    return exact(exact(minus, y, one), y * splat(np.float32(1 + 2.0 ** -23)), y)


@njit(inline="always")
def hardware_root(x):
    return sqrt(x)


@njit(inline="always")
def hardware_reciprocal(x):
    return splat(np.float32(1)) / x


def of_each(function):
    @njit(nogil=True, error_model="numpy")
    def run(values, out):
        for at in range(0, len(values), LANES):
            store(out, at, function(load(values, at)))
    return run


def scales(root, reciprocal):
    """The dual step's factor, of every two vectors."""
    @njit(nogil=True, error_model="numpy")
    def run(values, out):
        taut, one = splat(np.float32(0.8)), splat(np.float32(1))
        for at in range(0, len(values), 2 * LANES):
            a, b = load(values, at), load(values, at + LANES)
            store(out, at, reciprocal(fma(taut, root(fma(a, a, b * b)), one)))
    return run


PAIRS = {"root": (of_each(hardware_root), of_each(newton_root)),
         "reciprocal": (of_each(hardware_reciprocal), of_each(newton_reciprocal)),
         "dual step": (scales(hardware_root, hardware_reciprocal), scales(newton_root, newton_reciprocal))}


def differing(name: str, first: int, end: int) -> int:
    """How many of the floats with these bits come out in other bits, any NaN counting as any other."""
    own, newton = PAIRS[name]
    bad, right, got = 0, np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    for start in range(first, end, CHUNK):
        values = np.arange(start, start + CHUNK, dtype=np.uint64).astype(np.uint32).view(np.float32)
        own(values, right)
        newton(values, got)
        unequal = (right.view(np.uint32) != got.view(np.uint32)) & ~(np.isnan(right) & np.isnan(got))
        bad += np.count_nonzero(unequal[:end - start])
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only-time", action="store_true")
    args = parser.parse_args()
    print(machine(), "AVX-512" if AVX512 else "AVX2")
    bad = 0
    if not args.only_time:
        for name, first, end in (("root", 0, 1 << 32), ("reciprocal", ONE, ONE + (126 << 23))):
            found = differing(name, first, end)
            bad += found
            print(f"{name}: {found:,} of {end - first:,} floats differ", flush=True)
    values = np.random.default_rng(0).uniform(0.5, 4, 4096).astype(np.float32)
    out, times = np.empty_like(values), {name: ([], []) for name in PAIRS}
    for turn in range(41):
        for name, both in PAIRS.items():
            for spent, run in zip(times[name], both):
                began = time.thread_time()
                for _ in range(200):
                    run(values, out)
                if turn:
                    spent.append((time.thread_time() - began) / (200 * len(values) / LANES) * 1e9)
    for name, spent in times.items():
        own, newton = map(statistics.median, spent)
        print(f"{name}: {own:.2f} ns the processor's, {newton:.2f} by Newton, {own / newton:.2f}x")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
