"""Inception backbones: S3D (Xie et al. 2018, section 4; separable, no gating) and I2D, in 2D (docs/method.md 1.5).

B clips, L frames, S pixels, T'xh'xw' positions of h. Kernels and strides are (time, rows, columns).
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from shared.nn.layers import Backbone, Conv, initialise

# Channels of a mixed block at width 64: 1x1x1; 1x1x1 then 3x3x3; 1x1x1 then 3x3x3; pool then 1x1x1.
MIXED = {
    "3b": (64, 96, 128, 16, 32, 32), "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64), "4c": (160, 112, 224, 24, 64, 64), "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64), "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128), "5c": (384, 192, 384, 48, 128, 128),
}


def separable(inputs: int, outputs: int, size: int, stride: int, frames: bool) -> nn.Module:
    """1 x size x size, BN, ReLU, size x 1 x 1; for `frames` the first alone. The last BN and ReLU are the caller's."""
    spatial = Conv(inputs, outputs, (1, size, size), (1, stride, stride))
    if frames:
        return spatial
    return nn.Sequential(OrderedDict(
        spatial=spatial, bn=nn.BatchNorm3d(outputs), relu=nn.ReLU(inplace=True),
        temporal=Conv(outputs, outputs, (size, 1, 1), (stride, 1, 1))))


def normed(convolution: nn.Module, outputs: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=convolution, bn=nn.BatchNorm3d(outputs), relu=nn.ReLU(inplace=True)))


class Mixed(nn.Module):
    """Four branches, joined before the BN of their last convolutions, so that one BN serves all four."""

    def __init__(self, inputs: int, channels: tuple[int, ...], frames: bool):
        super().__init__()
        a, b_in, b, c_in, c, d = channels
        self.branch1 = Conv(inputs, a, (1, 1, 1))
        self.branch2 = nn.Sequential(OrderedDict(
            reduce=normed(Conv(inputs, b_in, (1, 1, 1)), b_in), conv=separable(b_in, b, 3, 1, frames)))
        self.branch3 = nn.Sequential(OrderedDict(
            reduce=normed(Conv(inputs, c_in, (1, 1, 1)), c_in), conv=separable(c_in, c, 3, 1, frames)))
        kernel = (1, 3, 3) if frames else (3, 3, 3)
        self.branch4 = nn.Sequential(OrderedDict(
            pool=nn.MaxPool3d(kernel, 1, [size // 2 for size in kernel]), conv=Conv(inputs, d, (1, 1, 1))))
        self.outputs = a + b + c + d
        self.bn = nn.BatchNorm3d(self.outputs)
        self.relu = nn.ReLU(inplace=True)

    def convolve(self, x: Tensor) -> Tensor:
        """The four branch-final convolutions side by side, before BN."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.convolve(x)))


class Inception(Backbone):
    """Stem, nine mixed blocks, average pool; h is the last block's.

    frames: 2D (I2D); stride: of all pools in time, 4 (Table 3's FLOPs) or 8 (Xie et al.); no stride for 2D.
    """

    def __init__(self, name: str, width: int, frames: bool, stride: int = 4):
        super().__init__()
        self.name, self.width, self.frames = name, width, frames

        def scaled(channels: int) -> int:
            return max(1, channels * width // 64)

        def pool(time: int, size: int, step: int) -> nn.MaxPool3d:
            kernel = (1 if frames else time, size, size)
            return nn.MaxPool3d(kernel, (1 if frames or time == 1 else 2, step, step),
                                [side // 2 if side == 3 else 0 for side in kernel])

        parts = OrderedDict(conv1a=normed(separable(3, scaled(64), 7, 2, frames), scaled(64)), pool2=pool(1, 3, 2),
                            conv2b=normed(Conv(scaled(64), scaled(64), (1, 1, 1)), scaled(64)),
                            conv2c=normed(separable(scaled(64), scaled(192), 3, 1, frames), scaled(192)))
        pools = {"3": pool(1, 3, 2), "4": pool(3, 3, 2), "5": pool(1 if stride == 4 else 2, 2, 2)}
        inputs = scaled(192)
        for block, channels in MIXED.items():
            if block.endswith("b"):
                parts[f"pool{block[0]}"] = pools[block[0]]
            parts[f"mixed{block}"] = Mixed(inputs, tuple(map(scaled, channels)), frames)
            inputs = parts[f"mixed{block}"].outputs
        self.features = inputs
        self.blocks = nn.Sequential(parts)
        initialise(self)

    def body(self, x: Tensor) -> tuple[Tensor, None]:
        x = self.admit(x)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        return last.convolve(x), None

    def summed(self, h: Tensor, rest: None) -> Tensor:
        return self.blocks[-1].bn(h)


def s3d(width: int) -> Inception:
    """(B, 3, 16, 224, 224) -> h (B, 1024, 4, 7, 7): no stride in time in the last pool (docs/method.md 1.5)."""
    return Inception("s3d", width, frames=False)


def s3d_stride8(width: int) -> Inception:
    """S3D with the usual strides: (B, 3, 16, 224, 224) -> h (B, 1024, 2, 7, 7)."""
    return Inception("s3d_stride8", width, frames=False, stride=8)


def i2d(width: int) -> Inception:
    """(B, 3, 1, 224, 224) -> h (B, 1024, 1, 7, 7)."""
    return Inception("i2d", width, frames=True)
