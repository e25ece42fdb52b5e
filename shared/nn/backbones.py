"""The backbones by name (docs/method.md 1.5, Table 3)."""

from torch import nn

from shared.cli import RequestError, nearest
from shared.nn import inception, resnet
from shared.nn.layers import Backbone

EPS, INCEPTION_EPS = 1e-5, 1e-3     # of BN: PyTorch's, and Inception's (Szegedy et al. 2016; torchvision's S3D)

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
    "r2plus1d_18_tv": (resnet.r2plus1d_18_tv, 64),
    "r3d_18": (resnet.r3d_18, 64),
    "r2plus1d_tiny": (resnet.r2plus1d_tiny, 12),
}


def own_eps(name: str) -> float:
    """The epsilon of a backbone's BN where nothing says another."""
    return INCEPTION_EPS if name.startswith("s3d") else EPS


def build_backbone(name: str, width: int = 0, eps: float | None = None) -> Backbone:
    """A freshly initialised backbone; every draw comes from torch's global generator.

    width: channels of the first stage, 0 for the name's own; eps: of every BN, None for the name's own.
    Raises RequestError for an unknown name, with the nearest one, for a negative width and another epsilon than
    between 0 and 1.
    """
    if name not in BACKBONES:
        raise RequestError(f"backbone {name!r} is unknown{nearest(name, BACKBONES)}")
    if width < 0:
        raise RequestError(f"width {width} of backbone {name}; expected channels of its first stage, or 0 for its own")
    eps = own_eps(name) if eps is None else eps
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise RequestError(f"epsilon {eps!r} of the batch norms of backbone {name}; expected a number above 0, below 1")
    builder, own = BACKBONES[name]
    backbone = builder(width or own)
    backbone.eps = eps
    for part in backbone.modules():
        if isinstance(part, nn.BatchNorm3d):
            part.eps = backbone.eps
    return backbone
