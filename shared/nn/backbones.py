"""The backbones by name (docs/method.md 1.5, Table 3)."""

from shared.cli import RequestError, nearest
from shared.nn import inception, resnet
from shared.nn.layers import Backbone

# name: (builder, its own width)
BACKBONES = {
    "r2plus1d_50": (resnet.r2plus1d_50, 64),
    "s3d": (inception.s3d, 64),
    "s3d_stride8": (inception.s3d_stride8, 64),
    "r2d_50": (resnet.r2d_50, 64),
    "i2d": (inception.i2d, 64),
    "slow_50": (resnet.slow_50, 64),
    "slow_tiny": (resnet.slow_tiny, 12),
    "r2plus1d_18": (resnet.r2plus1d_18, 64),
    "r3d_18": (resnet.r3d_18, 64),
    "r2plus1d_tiny": (resnet.r2plus1d_tiny, 12),
}


def build_backbone(name: str, width: int = 0) -> Backbone:
    """A freshly initialised backbone; every draw comes from torch's global generator.

    width: channels of the first stage, 0 for the name's own.
    Raises RequestError for an unknown name, with the nearest one, and for a negative width.
    """
    if name not in BACKBONES:
        raise RequestError(f"backbone {name!r} is unknown{nearest(name, BACKBONES)}")
    if width < 0:
        raise RequestError(f"width {width} of backbone {name}; expected channels of its first stage, or 0 for its own")
    builder, own = BACKBONES[name]
    return builder(width or own)
