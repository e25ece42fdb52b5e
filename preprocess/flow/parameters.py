"""TV-L1's parameters: one frozen object, four presets, every value checked."""

import math
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real

from shared.cli import RequestError, nearest

MIN_SIDE = 16        # pixels; OpenCV's pyramid stops above it too


@dataclass(frozen=True)
class TVL1Parameters:
    """Zach, Pock, Bischof 2007 (duality based TV-L1), with the names and the order of steps of OpenCV's DualTVL1.

    tau: time step of the dual ascent (stable up to 1/4).
    lambda_: weight of the data term, per grey value in [0, 255].   theta: coupling of flow and auxiliary field, px.
    zoom: size of a pyramid scale over the one above it, in (0, 1).   scales: most scales, the image itself included;
    none is smaller than 16 pixels.
    warps: linearisations of the second image a scale.
    iterations: inner iterations between two medians.   outer: rounds of median and inner iterations, at most, a warp.
    epsilon: a warp ends when the root mean square change of the flow, px, is not above it (tested every iteration);
    0 = a fixed count, warps x outer x iterations.
    median: side of the median filter, 1 = none, 3 or 5 pixels.
    scale: 1, or 0.5: flow on frames averaged down to half the size, whose pixels all of the above are then of.
    """

    tau: float = 0.25
    lambda_: float = 0.15
    theta: float = 0.3
    zoom: float = 0.8
    scales: int = 5
    warps: int = 5
    iterations: int = 30
    outer: int = 10
    epsilon: float = 0.01
    median: int = 5
    scale: float = 1.0

    def __post_init__(self):
        for name, kind, low, high, expected in RANGES:
            value = getattr(self, name)
            right = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
            if not (right and low <= value <= high and value in ONE_OF.get(name, (value,))):
                raise RequestError(f"flow {name} is {value!r}; expected {expected}")
            object.__setattr__(self, name, int(value) if kind is Integral else float(value))

    @property
    def fixed(self) -> bool:
        """Whether the number of iterations depends on no data."""
        return self.epsilon == 0

    @property
    def min_side(self) -> int:
        """The least side of a frame, px: MIN_SIDE, and at half the size what halves to it."""
        return MIN_SIDE if self.scale == 1 else 2 * MIN_SIDE - 1

    def to_dict(self) -> dict:
        """Plain numbers by stable names, for the store's recipe; `TVL1Parameters(**d)` is the way back."""
        return asdict(self)

    def levels(self, height: int, width: int) -> list[tuple[int, int]]:
        """(H, W) of every pyramid scale, finest first (OpenCV's rounding: half to even)."""
        sizes = [(height, width)]
        while len(sizes) < self.scales:
            smaller = tuple(round(side * self.zoom) for side in sizes[-1])
            if min(smaller) < MIN_SIDE:
                break
            sizes.append(smaller)
        return sizes


_TINY = math.ulp(0.0)
RANGES = (
    ("tau", Real, _TINY, 1.0, "a number in (0, 1], stable up to 0.25"),
    ("lambda_", Real, _TINY, 1e6, "a number above 0, such as 0.15 for grey values in [0, 255]"),
    ("theta", Real, _TINY, 1e6, "a number above 0, such as 0.3"),
    ("zoom", Real, 0.1, 0.95, "a number in [0.1, 0.95], such as 0.5"),
    ("scales", Integral, 1, 64, "a whole number in [1, 64]"),
    ("warps", Integral, 1, 1000, "a whole number in [1, 1000]"),
    ("iterations", Integral, 1, 10000, "a whole number in [1, 10000]"),
    ("outer", Integral, 1, 1000, "a whole number in [1, 1000]"),
    ("epsilon", Real, 0.0, 1e6, "a number >= 0 in px; 0 = a fixed count of iterations"),
    ("median", Integral, 1, 5, "1 (none), 3 or 5"),
    ("scale", Real, 0.5, 1.0, "1, or 0.5 for flow at half the size"),
)

ONE_OF = {"median": (1, 3, 5), "scale": (0.5, 1)}

PRESETS = {
    # OpenCV's defaults, with its epsilon stop.
    "reference": TVL1Parameters(),
    # Ours: coarser pyramid and a fixed count; lower endpoint error than `reference` on ground truth, many times faster.
    "default": TVL1Parameters(zoom=0.5, iterations=30, outer=1, epsilon=0),
    "fast": TVL1Parameters(zoom=0.5, warps=3, iterations=30, outer=1, epsilon=0),
    # `fast` at half the size, a fourth of its time: what moves is found as well, where exactly a little less so.
    "half": TVL1Parameters(zoom=0.5, warps=3, iterations=30, outer=1, epsilon=0, scale=0.5),
}


def parameters(preset: str | TVL1Parameters = "default", **overrides) -> TVL1Parameters:
    """A preset's parameters, some of them replaced; overrides that are None keep the preset's value.

    `lambda` may be given as `lambda_` or "lambda". Raises RequestError for an unknown preset, name or value.
    """
    if isinstance(preset, TVL1Parameters):
        base = preset
    elif preset in PRESETS:
        base = PRESETS[preset]
    else:
        raise RequestError(f"flow has no preset {preset!r}{nearest(preset, PRESETS)}")
    if "lambda" in overrides:
        overrides["lambda_"] = overrides.pop("lambda")
    names = [field.name for field in fields(TVL1Parameters)]
    for name in overrides:
        if name not in names:
            raise RequestError(f"flow has no parameter {name!r}{nearest(name, names)}")
    return replace(base, **{name: value for name, value in overrides.items() if value is not None})
