"""Split batch norm against BatchNorm applied to one group after another."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shared.cli import RequestError
from shared.nn.backbones import build_backbone
from shared.nn.norm import SplitBatchNorm3d, split_batch_norm


def by_group(norm: nn.BatchNorm3d, x: torch.Tensor, group: int):
    """The slow, obvious version: (output, running mean, running var); each group starts from the same running state."""
    outputs, means, variances = [], [], []
    for start in range(0, len(x), group):
        own = copy.deepcopy(norm)
        own.weight, own.bias = norm.weight, norm.bias
        outputs.append(own(x[start:start + group]))
        means.append(own.running_mean)
        variances.append(own.running_var)
    return torch.cat(outputs), torch.stack(means).mean(0), torch.stack(variances).mean(0)


def fresh(channels: int = 4) -> nn.BatchNorm3d:
    norm = nn.BatchNorm3d(channels).double()
    nn.init.uniform_(norm.weight, -1, 2)
    nn.init.normal_(norm.bias)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


@settings(max_examples=25, deadline=None)
@given(groups=st.integers(1, 4), group=st.integers(1, 4), last=st.booleans(), seed=st.integers(0, 99))
def test_values_gradients_and_statistics(groups, group, last, seed):
    torch.manual_seed(seed)
    plain = fresh()
    split = split_batch_norm(copy.deepcopy(plain), group)
    x = torch.randn(groups * group, 4, 2, 3, 3, dtype=torch.float64)
    if last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    x.requires_grad_()
    expected, mean, variance = by_group(plain, x, group)
    out = split(x)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(split.running_mean, mean)
    torch.testing.assert_close(split.running_var, variance)
    assert split.num_batches_tracked == 1

    upstream = torch.randn_like(out).requires_grad_()
    ours = torch.autograd.grad(out, (x, split.weight, split.bias), upstream, create_graph=True)
    theirs = torch.autograd.grad(expected, (x, plain.weight, plain.bias), upstream, create_graph=True)
    torch.testing.assert_close(ours, theirs)
    # Double backward, as the alignment loss takes it: a function of dL/dx, differentiated once more.
    ours = torch.autograd.grad(ours[0].pow(3).sum(), (x, split.weight, upstream))
    theirs = torch.autograd.grad(theirs[0].pow(3).sum(), (x, plain.weight, upstream))
    torch.testing.assert_close(ours, theirs)


def test_gradgradcheck():
    torch.manual_seed(0)
    split = split_batch_norm(fresh(2), 2)
    x = torch.randn(4, 2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(split, x)
    assert torch.autograd.gradgradcheck(split, x)


def test_groups_are_blind_to_each_other():
    """The property that it exists for: no clip's output depends on a clip of another group."""
    torch.manual_seed(0)
    split, x = split_batch_norm(fresh(), 2), torch.randn(6, 4, 2, 3, 3, dtype=torch.float64)
    out = split(x)
    x[4:] *= 3
    torch.testing.assert_close(split(x)[:4], out[:4], rtol=0, atol=0)
    assert not torch.allclose(nn.BatchNorm3d(4).double()(x)[:4], out[:4])


def test_eval_is_plain_for_any_batch():
    torch.manual_seed(0)
    plain = fresh().eval()
    split = split_batch_norm(copy.deepcopy(plain), 4)
    x = torch.randn(7, 4, 2, 3, 3, dtype=torch.float64)
    assert not split.training
    torch.testing.assert_close(split(x), plain(x), rtol=0, atol=0)


def test_whole_backbone_keeps_its_names_and_parameters():
    torch.manual_seed(0)
    plain = build_backbone("r2plus1d_tiny", 4)
    parameters = dict(plain.named_parameters())
    split = split_batch_norm(copy.deepcopy(plain), 2)
    assert list(split.state_dict()) == list(plain.state_dict())
    split.load_state_dict(plain.state_dict())
    assert [type(part) is SplitBatchNorm3d for part in split.modules()] == \
           [type(part) is nn.BatchNorm3d for part in plain.modules()]
    assert split_batch_norm(plain, 2) is plain
    assert all(parameters[name] is parameter for name, parameter in plain.named_parameters())
    x = torch.randn(4, 3, 4, 16, 16)
    torch.testing.assert_close(plain(x), split(x), rtol=0, atol=0)
    assert split_batch_norm(split, 4)(x).shape == (4, 16)  # another group, from then on


def test_refusals():
    with pytest.raises(RequestError, match="6 clips is no multiple of the BN group of 4"):
        split_batch_norm(nn.BatchNorm3d(3), 4)(torch.randn(6, 3, 1, 2, 2))
    with pytest.raises(RequestError, match="group of 0"):
        split_batch_norm(nn.BatchNorm3d(3), 0)
    for norm in (nn.BatchNorm2d(3), nn.SyncBatchNorm(3), nn.BatchNorm3d(3, affine=False),
                 nn.BatchNorm3d(3, track_running_stats=False)):
        module = nn.Sequential(nn.BatchNorm3d(3), norm)
        with pytest.raises(TypeError, match="cannot be split"):
            split_batch_norm(module, 2)
        assert type(module[0]) is nn.BatchNorm3d  # nothing is half done
