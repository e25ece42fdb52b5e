"""Conv against torch's conv3d, and the copies without values."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from shared.nn.layers import Conv, on_meta

CASES = [  # kernel, stride, padding
    ((1, 1, 1), (1, 1, 1), None), ((1, 1, 1), (2, 2, 2), None), ((1, 3, 3), (1, 2, 2), None),
    ((1, 7, 7), (1, 2, 2), None), ((3, 1, 1), (1, 1, 1), None), ((3, 1, 1), (2, 1, 1), None),
    ((7, 1, 1), (2, 1, 1), None), ((4, 7, 7), (4, 2, 2), (0, 3, 3)), ((2, 3, 3), (2, 1, 1), (0, 0, 1)),
    ((3, 3, 3), (1, 2, 2), None), ((1, 3, 3), (1, 1, 1), (1, 1, 1)), ((3, 1, 1), (1, 1, 1), (1, 1, 0)),
]


@settings(max_examples=60, deadline=None)
@given(case=st.sampled_from(CASES), batch=st.integers(1, 3), length=st.integers(1, 9), size=st.integers(7, 10),
       last=st.booleans(), seed=st.integers(0, 99))
def test_conv_is_conv3d(case, batch, length, size, last, seed):
    """Values and both gradients in float64, whatever way it takes and whatever the memory format."""
    kernel, stride, padding = case
    torch.manual_seed(seed)
    conv = Conv(3, 5, kernel, stride, padding).double()
    x = torch.randn(batch, 3, length, size, size + 1, dtype=torch.float64)
    if last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    x.requires_grad_()
    if length + 2 * conv.padding[0] < kernel[0]:
        with pytest.raises(RuntimeError):
            conv(x)
        return
    expected = F.conv3d(x, conv.weight, None, conv.stride, conv.padding)
    out = conv(x)
    assert out.shape == expected.shape
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    for ours, theirs in zip(torch.autograd.grad(out, (x, conv.weight), upstream),
                            torch.autograd.grad(expected, (x, conv.weight), upstream)):
        torch.testing.assert_close(ours, theirs)


NARROW = """
import torch
from shared.nn.layers import Conv
for inputs in range(1, 9):
    for batch, outputs, size in ((4, 2 * inputs, 8), (5, 2 * inputs + 1, 9), (6, 16, 16), (9, 8, 12), (2, 5, 11)):
        conv = Conv(inputs, outputs, (1, 1, 1), (2, 2, 2))
        x = torch.randn(batch, inputs, 4, size, size).contiguous(memory_format=torch.channels_last_3d)
        conv(x.requires_grad_()).square().sum().backward()
"""


@pytest.mark.slow
def test_narrow_strided_convolutions_have_gradients_on_processors_without_avx512():
    """There oneDNN corrupts memory over 2 to 7 channels, and the process dies."""
    done = subprocess.run([sys.executable, "-c", NARROW], cwd=Path(__file__).resolve().parents[3], capture_output=True,
                          env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, timeout=300)
    assert done.returncode == 0, done.stderr


def test_conv_keeps_channels_last():
    """A stride that breaks it would have every layer copy its input."""
    for length in (1, 8):
        x = torch.randn(2, 8, length, 12, 12).contiguous(memory_format=torch.channels_last_3d)
        for kernel, stride, padding in CASES[:8]:
            if length >= kernel[0]:
                out = Conv(8, 16, kernel, stride, padding)(x)
                assert out.is_contiguous(memory_format=torch.channels_last_3d), (kernel, stride)


def test_meta_copies_leave_the_module_alone():
    module = nn.Sequential(Conv(3, 4, (1, 1, 1)), nn.BatchNorm3d(4)).train()
    before = copy.deepcopy(module.state_dict())
    twin = on_meta(module)
    assert not twin.training and module.training and module[1].training
    assert {tensor.device.type for tensor in twin.state_dict().values()} == {"meta"}
    assert twin[0].weight.requires_grad and isinstance(twin[0].weight, nn.Parameter)
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())
