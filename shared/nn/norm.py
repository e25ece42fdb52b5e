"""Batch norm over groups of the batch: shuffling BN's stand-in on one GPU (docs/method.md 1.3).

B clips, G groups, C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from shared.cli import RequestError, plural


class SplitBatchNorm3d(nn.BatchNorm3d):
    """BatchNorm3d with training statistics over every `group` consecutive clips; in eval mode BatchNorm3d itself.

    (B, C, T, H, W) -> the same. The running statistics move once a forward, to the mean of what the groups would make
    of them one by one: those of shuffling BN, averaged over its ranks.
    Raises RequestError for a training batch that is no multiple of the group.
    """

    group: int

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or len(x) == self.group:
            return super().forward(x)
        if len(x) % self.group:
            raise RequestError(f"a batch of {plural(len(x), 'clip')} is no multiple of the BN group of "
                               f"{self.group}; change batch or bn_group")
        groups = len(x) // self.group
        means, variances = self.running_mean.repeat(groups, 1), self.running_var.repeat(groups, 1)
        # One fused call a group: 1.3 to 2 times a plain BN here, where sums over a (G, ...) view took 3 to 15 times.
        out = torch.cat([F.batch_norm(part, mean, variance, self.weight, self.bias, True, self.momentum, self.eps)
                         for part, mean, variance in zip(x.split(self.group), means, variances)])
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.copy_(means.mean(0))
            self.running_var.copy_(variances.mean(0))
        return out


def split_batch_norm(module: nn.Module, group: int) -> nn.Module:
    """The same module with every BatchNorm3d in it over groups of `group` clips; parameters, buffers and names stay.

    Raises RequestError for a group below 1, TypeError for a batch norm that is not an affine, tracking BatchNorm3d.
    """
    if group < 1:
        raise RequestError(f"a BN group of {group} clips; expected at least 1")
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    for part in norms:
        if not isinstance(part, nn.BatchNorm3d) or not part.affine or part.running_mean is None:
            raise TypeError(f"{part} cannot be split; expected BatchNorm3d with parameters and running statistics")
    for part in norms:
        part.__class__, part.group = SplitBatchNorm3d, group
    return module
