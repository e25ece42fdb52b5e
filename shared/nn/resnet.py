"""Residual backbones: R(2+1)D-50, R2D-50, R(2+1)D-18, R3D-18 and the tiny R(2+1)D (docs/method.md 1.5).

B clips, L frames, S pixels, C channels of h, T'xh'xw' its positions. Kernels and strides are (time, rows, columns).
The 50-layer nets name their parts as torchvision's ResNet does, with `temporal2` beside `conv2`, so that 2D weights
find their places (shared/nn/inflate.py).
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from shared.nn.layers import Backbone, Conv, initialise

EXPANSION = 4  # of a bottleneck's width
RESNET_50 = "r2plus1d_50", "r2d_50"  # the names that ResNet-50 weights fit
Stride = tuple[int, int, int]


class Block(nn.Module):
    """A residual block that can be cut before its last BN: `convolve` up to there, `add` and ReLU from there on."""

    def __init__(self, inputs: int, outputs: int, stride: Stride):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if inputs != outputs or stride != (1, 1, 1):
            self.downsample = nn.Sequential(Conv(inputs, outputs, (1, 1, 1), stride), nn.BatchNorm3d(outputs))

    def residual(self, x: Tensor) -> Tensor:
        """The block's convolutions, without the last one's BN and ReLU."""
        raise NotImplementedError

    def convolve(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.residual(x), x if self.downsample is None else self.downsample(x)

    def add(self, h: Tensor, shortcut: Tensor) -> Tensor:
        """The last one's BN, and the shortcut."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.add(*self.convolve(x)))


class Bottleneck(Block):
    """1x1x1, or `first` x1x1, then 1x3x3 and (where `temporal`) 3x1x1 of the same width with nothing between, 1x1x1."""

    def __init__(self, inputs: int, width: int, stride: Stride, temporal: bool = False, first: int = 1):
        super().__init__(inputs, width * EXPANSION, stride)
        self.conv1 = Conv(inputs, width, (first, 1, 1))
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = Conv(width, width, (1, 3, 3), stride)
        self.temporal2 = Conv(width, width, (3, 1, 1)) if temporal else nn.Identity()
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = Conv(width, width * EXPANSION, (1, 1, 1))
        self.bn3 = nn.BatchNorm3d(width * EXPANSION)

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.temporal2(self.conv2(x))))
        return self.conv3(x)

    def add(self, h: Tensor, shortcut: Tensor) -> Tensor:
        return self.bn3(h) + shortcut


def full(inputs: int, outputs: int, stride: Stride) -> nn.Module:
    """3x3x3."""
    return Conv(inputs, outputs, (3, 3, 3), stride)


def factorised(inputs: int, outputs: int, stride: Stride, between: int = 0) -> nn.Module:
    """1x3x3, BN, ReLU, 3x1x1, as wide between as gives the parameters of 3x3x3 (Tran et al. 2018, section 3.5)."""
    return _in_two(inputs, between or middle_width(inputs, outputs), outputs, 3, stride)


def middle_width(inputs: int, outputs: int) -> int:
    return inputs * outputs * 27 // (inputs * 9 + 3 * outputs)


def slim(inputs: int, outputs: int, stride: Stride) -> nn.Module:
    """1x3x3, BN, ReLU, 3x1x1, no wider between than after: 0.6 of the time of `factorised` in the tiny net."""
    return _in_two(inputs, outputs, outputs, 3, stride)


def _in_two(inputs: int, between: int, outputs: int, size: int, stride: Stride) -> nn.Sequential:
    return nn.Sequential(OrderedDict(
        spatial=Conv(inputs, between, (1, size, size), (1, *stride[1:])), bn=nn.BatchNorm3d(between),
        relu=nn.ReLU(inplace=True), temporal=Conv(between, outputs, (3, 1, 1), (stride[0], 1, 1))))


class BasicBlock(Block):
    """Two convolutions, each `full`, `factorised` or `slim`; shared: the second is as wide between as the first."""

    def __init__(self, inputs: int, width: int, stride: Stride, convolution: Callable[..., nn.Module], shared: bool):
        super().__init__(inputs, width, stride)
        self.conv1 = convolution(inputs, width, stride)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = convolution(width, width, (1, 1, 1), *[middle_width(inputs, width)] * shared)
        self.bn2 = nn.BatchNorm3d(width)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv2(self.relu(self.bn1(self.conv1(x))))

    def add(self, h: Tensor, shortcut: Tensor) -> Tensor:
        return self.bn2(h) + shortcut


class ResNet(Backbone):
    """A stem and stages of residual blocks, each stage twice as wide as the one before; h is the last block's."""

    def __init__(self, name: str, width: int, stem: nn.Module, stages: Sequence[Sequence[Block]], features: int,
                 frames: bool = False):
        super().__init__()
        self.name, self.width, self.features, self.frames = name, width, features, frames
        self.stem = stem
        self.stages = nn.Sequential(OrderedDict(
            (f"layer{i}", nn.Sequential(*blocks)) for i, blocks in enumerate(stages, 1)))
        initialise(self)

    def body(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(self.admit(x))
        *blocks, last = (block for stage in self.stages for block in stage)
        for block in blocks:
            x = block(x)
        return last.convolve(x)

    def summed(self, h: Tensor, rest: Tensor) -> Tensor:
        return self.stages[-1][-1].add(h, rest)


def stem_of(convolution: nn.Module, width: int, pool: bool) -> nn.Sequential:
    """conv1, bn1, ReLU and, where `pool`, a 1x3x3 max pool of stride 2."""
    parts = OrderedDict(conv1=convolution, bn1=nn.BatchNorm3d(width), relu=nn.ReLU(inplace=True))
    if pool:
        parts["pool"] = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
    return nn.Sequential(parts)


def resnet_50(name: str, width: int, frames: bool) -> ResNet:
    """R(2+1)D-50 (stem 4x7x7 of temporal stride 4, then no stride in time) or, for `frames`, ResNet-50 itself.

    At width 64 the former takes (B, 3, 16, 224, 224) to h (B, 2048, 4, 7, 7), the latter (B, 3, 1, 224, 224) to
    (B, 2048, 1, 7, 7).
    """
    time = 1 if frames else 4
    stem = stem_of(Conv(3, width, (time, 7, 7), (time, 2, 2), (0, 3, 3)), width, pool=True)
    stages = bottlenecks(width, (3, 4, 6, 3), temporal=not frames)
    return ResNet(name, width, stem, stages, stages[-1][-1].conv3.out_channels, frames)


def bottlenecks(width: int, depths: Sequence[int], temporal: bool = False,
                first: Sequence[int] = (1, 1, 1, 1)) -> list[list[Bottleneck]]:
    """Stages of bottlenecks; no stride in time. first: temporal size of each stage's first convolutions."""
    stages, inputs = [], width
    for i, (depth, size) in enumerate(zip(depths, first)):
        planes, blocks = width << i, []
        for j in range(depth):
            stride = (1, 2, 2) if i and not j else (1, 1, 1)
            blocks.append(Bottleneck(inputs, planes, stride, temporal, size))
            inputs = planes * EXPANSION
        stages.append(blocks)
    return stages


def slow(name: str, width: int, depths: Sequence[int], first: Sequence[int], pool: bool) -> ResNet:
    """MaCLR's pathways (docs/method.md 2.1, reconstruction): a stem of 5x7x7, then SlowFast's Slow-only bottlenecks,
    whose first convolution alone sees time; nothing strides or pools in time."""
    stages = bottlenecks(width, depths, first=first)
    stem = stem_of(Conv(3, width, (5, 7, 7), (1, 2, 2)), width, pool)
    return ResNet(name, width, stem, stages, stages[-1][-1].conv3.out_channels)


def basic(name: str, width: int, convolution: Callable[..., nn.Module], strides: Sequence[Stride],
          depth: int, shared: bool = False) -> ResNet:
    """`depth` basic blocks a stage behind a stem of spatial stride 2 without a pool; ours, for small machines."""
    if convolution is full:
        first = Conv(3, width, (3, 7, 7), (1, 2, 2))
    else:
        first = _in_two(3, max(1, width * 45 // 64), width, 7, (1, 2, 2))  # 45 at width 64: Tran et al. 2018
    stages, inputs = [], width
    for i, stride in enumerate(strides):
        blocks = []
        for j in range(depth):
            blocks.append(BasicBlock(inputs, width << i, stride if not j else (1, 1, 1), convolution, shared))
            inputs = width << i
        stages.append(blocks)
    return ResNet(name, width, stem_of(first, width, pool=False), stages, inputs)


def r2plus1d_50(width: int) -> ResNet:
    return resnet_50("r2plus1d_50", width, frames=False)


def r2d_50(width: int) -> ResNet:
    return resnet_50("r2d_50", width, frames=True)


def slow_50(width: int) -> ResNet:
    """Slow-only ResNet-50, temporal kernels 5, 1, 1, 3, 3: (B, 3, 8, 224, 224) -> h (B, 2048, 8, 7, 7) at width 64;
    the motion pathway is the same at width 8: (B, 3, 16, 224, 224) -> h (B, 256, 16, 7, 7)."""
    return slow("slow_50", width, (3, 4, 6, 3), (1, 1, 3, 3), pool=True)


def slow_tiny(width: int) -> ResNet:
    """Ours, for small machines: three bottlenecks, temporal kernels 5, 1, 3, 3 and no pool; (B, 3, 4, 48, 48) ->
    h (B, 192, 4, 6, 6) at width 12."""
    return slow("slow_tiny", width, (1, 1, 1), (1, 3, 3), pool=False)


def r2plus1d_18(width: int) -> ResNet:
    """(B, 3, 16, 112, 112) -> h (B, 512, 2, 7, 7) at width 64."""
    return basic("r2plus1d_18", width, factorised, [(1, 1, 1), *[(2, 2, 2)] * 3], depth=2)


def r2plus1d_18_tv(width: int) -> ResNet:
    """R(2+1)D-18 as torchvision builds it, one middle width for both convolutions of a block: 31.3 M parameters at
    width 64, 33.2 M where each has its own (Tran et al.'s formula)."""
    return basic("r2plus1d_18_tv", width, factorised, [(1, 1, 1), *[(2, 2, 2)] * 3], depth=2, shared=True)


def r3d_18(width: int) -> ResNet:
    """(B, 3, 16, 112, 112) -> h (B, 512, 2, 7, 7) at width 64."""
    return basic("r3d_18", width, full, [(1, 1, 1), *[(2, 2, 2)] * 3], depth=2)


def r2plus1d_tiny(width: int) -> ResNet:
    """Three blocks: (B, 3, 8, 48, 48) -> h (B, 48, 4, 6, 6) at width 12."""
    return basic("r2plus1d_tiny", width, slim, [(1, 1, 1), (2, 2, 2), (1, 2, 2)], depth=1)
