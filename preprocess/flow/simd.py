"""Vectors of float32 lanes for numba kernels: explicit SIMD where automatic vectorisation gives up.

A `Lanes` value is one LLVM vector of LANES floats; LLVM maps it to whatever registers the machine has (one AVX-512,
two AVX2, four SSE or NEON). Every operation is a correctly rounded IEEE operation per lane, so results do not depend on
the register width; `fma` fuses where the machine can.
"""

import operator

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import TypingError
from numba.core.typing import signature
from numba.extending import intrinsic, models, overload, register_model

LANES = 16
_FLOAT, _I32 = ir.FloatType(), ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)


class LanesType(types.Type):
    def __init__(self):
        super().__init__(name=f"float32x{LANES}")


lanes_type = LanesType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, front_type):
        super().__init__(manager, front_type, _VECTOR)


def _shuffle(builder, a, b, picks):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, LANES), list(picks)))


def _splat(builder, scalar):
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, _I32(0))
    return _shuffle(builder, one, one, [0] * LANES)


def _address(context, builder, sig, array, index):
    data = context.make_array(sig.args[0])(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _VECTOR.as_pointer())


def _check_array(array, index):
    if not (isinstance(array, types.Array) and array.dtype == types.float32 and array.ndim == 1 and array.layout == "C"
            and isinstance(index, types.Integer)):
        raise TypingError("load and store take a flat contiguous float32 array and an integer index")


@intrinsic
def load(typing_context, array, index):
    """LANES floats from array[index:]; no bounds check."""
    _check_array(array, index)

    def generate(context, builder, sig, args):
        return builder.load(_address(context, builder, sig, *args), align=4)
    return signature(lanes_type, array, types.intp), generate


@intrinsic
def store(typing_context, array, index, value):
    """array[index:index + LANES] = value; no bounds check."""
    _check_array(array, index)

    def generate(context, builder, sig, args):
        builder.store(args[2], _address(context, builder, sig, *args[:2]), align=4)
        return context.get_dummy_value()
    return signature(types.none, array, types.intp, lanes_type), generate


@intrinsic
def store_int(typing_context, array, index, value):
    """array[index:index + LANES] = value rounded towards zero, into a flat int32 array; no bounds check."""
    def generate(context, builder, sig, args):
        integers = ir.VectorType(_I32, LANES)
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        address = builder.bitcast(builder.gep(data, [args[1]]), integers.as_pointer())
        builder.store(builder.fptosi(args[2], integers), address, align=4)
        return context.get_dummy_value()
    return signature(types.none, types.Array(types.int32, 1, "C"), types.intp, lanes_type), generate


@intrinsic
def splat(typing_context, scalar):
    """One float32 in every lane."""
    def generate(context, builder, sig, args):
        return _splat(builder, args[0])
    return signature(lanes_type, types.float32), generate


@intrinsic
def repeat(typing_context, array, index):
    """array[index] in every lane; no bounds check, no wrap-around."""
    _check_array(array, index)

    def generate(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return _splat(builder, builder.load(builder.gep(data, [args[1]])))
    return signature(lanes_type, array, types.intp), generate


@intrinsic
def take(typing_context, array, start, indices, at):
    """array[start + indices[at:at + LANES]], indices a flat int32 array; no bounds check."""
    def generate(context, builder, sig, args):
        integers = ir.VectorType(_I32, LANES)
        data = builder.gep(context.make_array(sig.args[0])(context, builder, args[0]).data, [args[1]])
        table = context.make_array(sig.args[2])(context, builder, args[2]).data
        lanes = builder.load(builder.bitcast(builder.gep(table, [args[3]]), integers.as_pointer()), align=4)
        vector = ir.Constant(_VECTOR, ir.Undefined)
        for lane in range(LANES):
            index = builder.sext(builder.extract_element(lanes, _I32(lane)), ir.IntType(64))
            vector = builder.insert_element(vector, builder.load(builder.gep(data, [index])), _I32(lane))
        return vector
    return signature(lanes_type, array, types.intp, types.Array(types.int32, 1, "C"), types.intp), generate


@intrinsic
def lane_numbers(typing_context):
    """0, 1, 2, ... as floats."""
    def generate(context, builder, sig, args):
        return ir.Constant(_VECTOR, [float(lane) for lane in range(LANES)])
    return signature(lanes_type), generate


def _elementwise(name, emit, count):
    """An intrinsic that takes `count` vectors and gives one; `emit(builder, *vectors)` writes its LLVM code."""
    def describe(*_):
        return signature(lanes_type, *[lanes_type] * count), lambda context, builder, sig, args: emit(builder, *args)
    typed = {1: lambda typing_context, a: describe(),
             2: lambda typing_context, a, b: describe(),
             3: lambda typing_context, a, b, c: describe(),
             4: lambda typing_context, a, b, c, d: describe()}[count]
    typed.__name__ = name
    return intrinsic(typed)


def _llvm(name):
    def emit(builder, *args):
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * len(args)), f"llvm.{name}.v{LANES}f32")
        return builder.call(function, args)
    return emit


def _compare_select(predicate):
    def emit(builder, a, b):
        return builder.select(builder.fcmp_ordered(predicate, a, b), a, b)
    return emit


fma = _elementwise("fma", _llvm("fmuladd"), 3)                     # a * b + c
sqrt = _elementwise("sqrt", _llvm("sqrt"), 1)
floor = _elementwise("floor", _llvm("floor"), 1)
minimum = _elementwise("minimum", _compare_select("<"), 2)         # a < b ? a : b
maximum = _elementwise("maximum", _compare_select(">"), 2)         # a > b ? a : b
# The window of LANES lanes that starts one to the right of a, or ends one to the left of b's end, in (a, b).
after = _elementwise("after", lambda builder, a, b: _shuffle(builder, a, b, range(1, LANES + 1)), 2)
before = _elementwise("before", lambda builder, a, b: _shuffle(builder, a, b, range(LANES - 1, 2 * LANES - 1)), 2)


def _pick(builder, vectors, picks):
    """A vector of lanes picks[i] of the concatenated `vectors` (2 or 4 of them)."""
    if len(vectors) == 2:
        return _shuffle(builder, *vectors, picks)
    low = _shuffle(builder, *vectors[:2], [pick % (2 * LANES) for pick in picks])
    high = _shuffle(builder, *vectors[2:], [pick % (2 * LANES) for pick in picks])
    return _shuffle(builder, low, high, [lane + LANES * (pick >= 2 * LANES) for lane, pick in enumerate(picks)])


def _fold(builder, a, b, c, d):
    quarter = range(4)

    def pair(x, y):
        low = _pick(builder, (x, y), [lane + start for start in (0, 4, 16, 20) for lane in quarter])
        high = _pick(builder, (x, y), [lane + start for start in (8, 12, 24, 28) for lane in quarter])
        return builder.fadd(low, high)
    ab, cd = pair(a, b), pair(c, d)
    low = _pick(builder, (ab, cd), [lane + start for start in (0, 8, 16, 24) for lane in quarter])
    high = _pick(builder, (ab, cd), [lane + start for start in (4, 12, 20, 28) for lane in quarter])
    return builder.fadd(low, high)


def _channel(number):
    return lambda builder, *vectors: _pick(builder, vectors, [4 * lane + number for lane in range(LANES)])


def _zip(number):
    return lambda builder, *vectors: _pick(
        builder, vectors, [4 * number + lane // 4 + LANES * (lane % 4) for lane in range(LANES)])


def _spread(number):
    return lambda builder, a: _shuffle(builder, a, a, [4 * number + lane // 4 for lane in range(LANES)])


def _if_above(builder, a, threshold, b):
    return builder.select(builder.fcmp_ordered(">", a, threshold), b, ir.Constant(_VECTOR, [0.0] * LANES))


if_above = _elementwise("if_above", _if_above, 3)                  # a > threshold ? b : 0

# Vectors as 4 groups of 4 channels: `fold` adds the groups of each of a, b, c, d into group 0, 1, 2, 3 of one vector;
# `channel0` (1, 2) gathers one channel of the 16 groups of a, b, c, d.
fold = _elementwise("fold", _fold, 4)
channel0, channel1, channel2 = (_elementwise(f"channel{number}", _channel(number), 4) for number in range(3))
# The way back: lanes 4k to 4k + 3 of a, b, c, d as 4 groups; and one group's lanes, each as a whole group.
zip0, zip1, zip2, zip3 = (_elementwise(f"zip{number}", _zip(number), 4) for number in range(4))
spread0, spread1, spread2, spread3 = (_elementwise(f"spread{number}", _spread(number), 1) for number in range(4))


@intrinsic
def keep(typing_context, value, count):
    """The first `count` lanes of value, zero in the others."""
    def generate(context, builder, sig, args):
        integers = ir.VectorType(_I32, LANES)
        limit = builder.trunc(args[1], _I32)
        limit = builder.insert_element(ir.Constant(integers, ir.Undefined), limit, _I32(0))
        limit = builder.shuffle_vector(limit, limit, ir.Constant(integers, [0] * LANES))
        inside = builder.icmp_signed("<", ir.Constant(integers, list(range(LANES))), limit)
        return builder.select(inside, args[0], ir.Constant(_VECTOR, [0.0] * LANES))
    return signature(lanes_type, lanes_type, types.intp), generate


@intrinsic
def total(typing_context, value):
    """Sum of all lanes, added pairwise in a fixed order."""
    def generate(context, builder, sig, args):
        vector, half = args[0], LANES // 2
        while half:
            picks = [(lane + half) % LANES for lane in range(LANES)]
            vector = builder.fadd(vector, _shuffle(builder, vector, vector, picks))
            half //= 2
        return builder.extract_element(vector, _I32(0))
    return signature(types.float32, lanes_type), generate


def _operator(python_operator, method):
    emit = _elementwise(method, lambda builder, a, b: getattr(builder, method)(a, b), 2)

    @overload(python_operator)
    def typed(a, b):
        if a is lanes_type and b is lanes_type:
            return lambda a, b: emit(a, b)
    return typed


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")
