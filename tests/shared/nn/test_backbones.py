"""The backbones: Table 3's counts, shapes, where h is cut, what gradients do there, initialisation."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from shared.cli import RequestError
from shared.nn.backbones import BACKBONES, build_backbone
from shared.nn.count import count
from shared.nn.heads import Projection
from shared.nn.layers import Backbone, Conv

# Small versions for tests that compute: width, clip length, pixels.
SMALL = {"r2plus1d_50": (4, 8, 64), "s3d": (8, 8, 64), "r2d_50": (4, 1, 64),
         "i2d": (8, 1, 64), "r2plus1d_18": (4, 16, 32), "r2plus1d_18_tv": (4, 16, 32), "r3d_18": (4, 16, 32),
         "r2plus1d_tiny": (4, 8, 24),
         "slow_50": (2, 4, 64), "slow_tiny": (4, 4, 24)}
LAST = {"r2plus1d_50": ["stages.layer4.2.conv3"], "r2d_50": ["stages.layer4.2.conv3"],
        "s3d": [f"blocks.mixed5c.{branch}" for branch in ("branch1", "branch2.conv.temporal", "branch3.conv.temporal",
                                                          "branch4.conv")],
        "i2d": [f"blocks.mixed5c.{branch}" for branch in ("branch1", "branch2.conv", "branch3.conv", "branch4.conv")],
        "r2plus1d_18": ["stages.layer4.1.conv2.temporal"], "r2plus1d_18_tv": ["stages.layer4.1.conv2.temporal"],
        "r3d_18": ["stages.layer4.1.conv2"],
        "r2plus1d_tiny": ["stages.layer3.0.conv2.temporal"],
        "slow_50": ["stages.layer4.2.conv3"], "slow_tiny": ["stages.layer3.0.conv3"]}


@pytest.fixture(params=SMALL)
def small(request):
    """A small backbone in train mode and a batch of 4 clips for it."""
    width, length, size = SMALL[request.param]
    torch.manual_seed(0)
    return build_backbone(request.param, width), torch.randn(4, 3, length, size, size)


def test_every_backbone_is_tested():
    assert set(SMALL) == set(LAST) == set(BACKBONES) - {"s3d_stride8"}  # which is S3D but for one stride


@pytest.mark.parametrize("name, length, parameters, flops, shape", [
    ("r2plus1d_50", 16, 27.3e6, 20.4e9, (2048, 4, 7, 7)),
    ("s3d", 16, 7.9e6, 18.4e9, (1024, 4, 7, 7)),
    ("r2d_50", 1, 23.5e6, 4.12e9, (2048, 1, 7, 7)),
    ("s3d_stride8", 16, 7.910e6, 18.13e9, (1024, 2, 7, 7)),
    ("i2d", 1, 5.600e6, 1.51e9, (1024, 1, 7, 7)),
])
def test_table_3(name, length, parameters, flops, shape):
    """The first three are Table 3's; the others were counted apart (docs/method.md 1.5)."""
    with torch.device("meta"):
        backbone = build_backbone(name)
    counts = count(backbone, length, 224)
    assert counts.parameters == pytest.approx(parameters, rel=0.005)  # the papers' figures have three digits
    assert counts.total == pytest.approx(flops, rel=0.005)
    assert backbone.h_shape(length, 224) == shape
    assert backbone.features == shape[0]


@pytest.mark.parametrize("name, width, length, size, parameters, flops, shape", [
    ("slow_50", 64, 8, 224, 31_672_128, 45.52e9, (2048, 8, 7, 7)),
    ("slow_50", 8, 16, 224, 505_832, 2.455e9, (256, 16, 7, 7)),
    ("slow_tiny", 12, 4, 48, 90_876, 0.0562e9, (192, 4, 6, 6)),
    ("slow_tiny", 4, 8, 48, 12_436, 0.0215e9, (64, 8, 6, 6)),
])
def test_the_pathways_of_maclr(name, width, length, size, parameters, flops, shape):
    """SlowFast's Slow-only R50 has 32,454,096 parameters with a stem of 1x7x7 and 400 classes."""
    with torch.device("meta"):
        backbone = build_backbone(name, width)
    counts = count(backbone, length, size)
    assert counts.parameters == parameters and counts.convolutions == pytest.approx(flops, rel=0.001)
    if (name, width) == ("slow_50", 64):
        assert parameters - 4 * 3 * 64 * 49 + 400 * 2049 == 32_454_096
    assert backbone.h_shape(length, size) == shape
    assert backbone.h_shape(2 * length, size)[1] == 2 * length                   # nothing pools in time
    kernels = {part.kernel_size[0] for part in backbone.stages.modules() if isinstance(part, Conv)}
    assert backbone.stem.conv1.kernel_size == (5, 7, 7) and kernels == {1, 3}


def test_temporal_kernels_of_the_pathways():
    """5 in the stem, 1, 1, 3, 3 in the stages, in the first convolution of each block (docs/method.md 2.1)."""
    stages = build_backbone("slow_50", 1).stages
    for stage, size in zip(stages, (1, 1, 3, 3)):
        for block in stage:
            assert block.conv1.kernel_size == (size, 1, 1) and block.conv1.stride == (1, 1, 1)
            assert block.conv2.kernel_size == (1, 3, 3) and block.conv3.kernel_size == (1, 1, 1)
    assert [len(stage) for stage in stages] == [3, 4, 6, 3]


def test_tiny_recipe():
    backbone = build_backbone("r2plus1d_tiny")
    assert (backbone.width, backbone.h_shape(8, 48)) == (12, (48, 4, 6, 6))


def test_counts_against_a_real_forward(small):
    """torch's own counter, which takes a multiply-add as two, on a network that really computes."""
    backbone, x = small
    counts = count(backbone, *x.shape[2:4])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(x)
    assert counts.convolutions * 2 * len(x) == counter.get_total_flops()
    assert counts.parameters == sum(p.numel() for p in backbone.parameters())
    assert counts.total == counts.convolutions + counts.others


def test_counts_by_hand():
    """BN 2 an element; ReLU, max pool and average pool 1 an element that they read."""
    class Toy(Backbone):
        name, width, features = "toy", 4, 4

        def __init__(self):
            super().__init__()
            self.conv, self.bn = Conv(3, 4, (1, 3, 3), (1, 2, 2)), nn.BatchNorm3d(4)

        def body(self, x):
            return nn.functional.max_pool3d(self.conv(x), (1, 2, 2)), None

        def output(self, h, rest):
            return self.bn(h).relu()

    counts = count(Toy(), 2, 16)  # 2 frames of 8x8 behind the convolution, of 4x4 behind the pool
    assert counts.parameters == 4 * 3 * 9 + 8
    assert counts.convolutions == (2 * 8 * 8) * 4 * (3 * 9)
    assert counts.others == 4 * (2 * 8 * 8) + (2 + 1 + 1) * 4 * (2 * 4 * 4)


def test_shapes(small):
    backbone, x = small
    h, rest = backbone.body(x)
    assert tuple(h.shape) == (len(x), *backbone.h_shape(*x.shape[2:4]))
    assert rest is None or rest.shape == h.shape
    assert backbone.tail(h, rest).shape == (len(x), backbone.features)
    assert h.shape[1] == backbone.features
    assert h.is_contiguous(memory_format=torch.channels_last_3d)


def test_h_is_linear_in_the_last_convolutions(small):
    """So it is the output of exactly those, with no BN, bias or ReLU behind them."""
    backbone, x = small
    last = [backbone.get_submodule(name) for name in LAST[backbone.name]]
    assert all(isinstance(part, Conv) for part in last)
    with torch.no_grad():
        h, rest = backbone.body(x)
        for part in last:
            part.weight *= -2
        scaled, same = backbone.body(x)
        torch.testing.assert_close(scaled, -2 * h)
        assert rest is None or torch.equal(rest, same)
        for part in last:
            part.weight.zero_()
        assert not backbone.body(x)[0].any()


def test_the_tail_begins_with_batch_norm(small):
    """In train mode a scale and a shift of each channel of h leave the features as they are."""
    backbone, x = small
    with torch.no_grad():
        h, rest = (None if part is None else part.double() for part in backbone.body(x))
        backbone.double()
        scale, shift = torch.rand(2, h.shape[1], 1, 1, 1, dtype=torch.float64) * 3 + 0.5
        norms = [part for part in backbone.modules() if isinstance(part, nn.BatchNorm3d)]
        for norm in norms:
            norm.eps = 1e-12
        torch.testing.assert_close(backbone.tail(h * scale + shift, rest), backbone.tail(h, rest))


def test_gradient_varies_at_h_and_not_at_the_output(small):
    """Why h is taken before BN (docs/method.md 1.4): behind the pool every position has the same gradient."""
    backbone, x = small
    with torch.no_grad():
        h, rest = backbone.body(x)
    h.requires_grad_()
    weights = torch.randn(4, backbone.features)
    gradient, = torch.autograd.grad((backbone.tail(h, rest) * weights).sum(), h)
    deviation = gradient.std((2, 3, 4))
    # On a map this small S3D's last pool branch, an eighth of the channels, is flat itself.
    assert (deviation > 1e-3 * gradient.abs().mean()).float().mean() > 0.8
    output = backbone.output(h, rest)
    gradient, = torch.autograd.grad((output.mean((2, 3, 4)) * weights).sum(), output)
    torch.testing.assert_close(gradient.amax((2, 3, 4)), gradient.amin((2, 3, 4)), rtol=0, atol=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["r2plus1d_tiny", "s3d"])
def test_double_backward_through_the_tail(name, training):
    torch.manual_seed(0)
    backbone = build_backbone(name, 1).double().train(training)
    channels = backbone.features
    h = torch.randn(2, channels, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    rest = None if name == "s3d" else torch.randn_like(h).requires_grad_()

    def tail(h, *rest):
        return backbone.tail(h, rest[0] if rest else None)

    arguments = (h,) if rest is None else (h, rest)
    assert torch.autograd.gradcheck(tail, arguments)
    assert torch.autograd.gradgradcheck(tail, arguments)


def test_gradient_of_h_trains_the_whole_network(small):
    """A loss on dq/dh reaches every parameter but those behind h that it does not see."""
    backbone, x = small
    h, rest = backbone.body(x)
    gradient, = torch.autograd.grad(backbone.tail(h, rest).square().sum(), h, create_graph=True)
    assert gradient.requires_grad
    gradient.square().sum().backward()
    reached = [name for name, p in backbone.named_parameters() if p.grad is not None and p.grad.any()]
    assert len(reached) >= len(list(backbone.parameters())) - 2  # the last BN's bias only shifts the ReLU


def test_copies_after_a_forward(small):
    """Nothing of the graph stays on the module, so that EMA copies and checkpoints work."""
    backbone, x = small
    backbone(x).sum().backward()
    twin = copy.deepcopy(backbone)
    assert not any(isinstance(value, torch.Tensor) for part in backbone.modules() for value in vars(part).values())
    with torch.no_grad():
        torch.testing.assert_close(twin.eval()(x), backbone.eval()(x), rtol=0, atol=0)


def test_seed_decides_the_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return build_backbone("r2plus1d_50", 8).state_dict()

    one, same, other = weights(5), weights(5), weights(6)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["stem.conv1.weight"], other["stem.conv1.weight"])


def test_initialisation():
    torch.manual_seed(0)
    for part in build_backbone("s3d").modules():
        if isinstance(part, nn.Conv3d) and part.weight.numel() > 4000:
            fan_out = part.out_channels * part.weight[0, 0].numel()
            assert part.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        elif isinstance(part, nn.BatchNorm3d):
            assert (part.weight == 1).all() and (part.bias == 0).all()


def test_memory_format_of_the_input_changes_nothing(small):
    backbone, x = small
    backbone.eval()
    with torch.no_grad():
        other = backbone(x.contiguous(memory_format=torch.channels_last_3d))
        torch.testing.assert_close(backbone(x), other, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["r2plus1d_50", "i2d", "r2plus1d_tiny"])
def test_width(name):
    narrow, wide = (sum(p.numel() for p in build_backbone(name, width).parameters()) for width in (8, 16))
    assert 3 < wide / narrow < 4.1


def test_refusals():
    with pytest.raises(RequestError, match=r"'r2plusd_50' is unknown; did you mean 'r2plus1d_50'"):
        build_backbone("r2plusd_50")
    with pytest.raises(RequestError, match="width -1"):
        build_backbone("s3d", -1)
    with pytest.raises(RequestError, match="r2plus1d_50 cannot take clips of 2 frames of 64 pixels"):
        build_backbone("r2plus1d_50", 4).h_shape(2, 64)
    with pytest.raises(RequestError, match="s3d cannot take clips of 8 frames of 8 pixels"):
        count(build_backbone("s3d", 8), 8, 8)
    flat = build_backbone("r2d_50", 4)
    for call in (lambda: flat.h_shape(16, 64), lambda: flat(torch.randn(2, 3, 16, 64, 64))):
        with pytest.raises(RequestError, match="r2d_50 takes single frames, but a clip of 16 arrived; use clip 1x1"):
            call()


@pytest.mark.slow
@pytest.mark.parametrize("name, backend", [("r2plus1d_50", "aot_eager"), ("s3d", "aot_eager"),
                                           ("r2plus1d_tiny", "inductor")])
def test_compiled_body(name, backend):
    """The body compiles whole, forward and backward, and gives h and gradients as eager does."""
    width, length, size = SMALL[name]
    torch.manual_seed(0)
    backbone = build_backbone(name, width)
    x = torch.randn(4, 3, length, size, size)

    def results(body):
        h, rest = body(x)
        gradients = torch.autograd.grad(backbone.tail(h, rest).square().sum(), list(backbone.parameters()))
        return h.flatten(), torch.cat([gradient.flatten() for gradient in gradients])

    torch.compiler.reset()  # what other sizes left behind would make this one's sizes symbolic
    compiled = torch.compile(backbone.body, fullgraph=True, dynamic=False, backend=backend)
    for ours, theirs in zip(results(compiled), results(backbone.body)):
        assert torch.cosine_similarity(ours, theirs, 0) > 0.999


def test_projection():
    torch.manual_seed(0)
    head = Projection(48)
    assert [tuple(p.shape) for p in head.parameters()] == [(2048, 48), (2048,), (128, 2048), (128,)]
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in head.modules())
    out, doubled = head(torch.ones(2, 48)), Projection(48, hidden=16, dim=8)(torch.ones(2, 48))
    assert out.shape == (2, 128) and doubled.shape == (2, 8)
    assert not torch.allclose(out.norm(dim=1), torch.ones(2))  # normalising is the caller's
