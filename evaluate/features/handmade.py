"""Features that nothing has learnt: what is where, and what moves where, as baselines.

B clips, L frames of SxS pixels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.clips.resampling import MEAN, STD

LUMA = 0.299, 0.587, 0.114     # ITU-R BT.601


class MeanImage(nn.Module):
    """The baseline that knows nothing of motion: the mean over the frames, at 32x32 pixels."""

    name, size = "mean-image", 32
    features, frames = 3 * size ** 2, False

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, L, S, S) -> (B, 3072)."""
        return F.adaptive_avg_pool2d(x.mean(2), self.size).flatten(1)


class FrameDifference(nn.Module):
    """Where grey levels change, and by how much: the mean absolute difference of neighbouring frames, at 16x16."""

    name, size = "frame-difference", 16
    features, frames = size ** 2, False

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, L, S, S) as a net takes it, L at least 2 -> (B, 256) in grey levels of 255."""
        return F.adaptive_avg_pool2d(grey(x).diff(dim=1).abs().mean(1), self.size).flatten(1)


class MotionHistory(nn.Module):
    """The motion history image (Bobick and Davis 2001): 1 where a pixel has just changed, fading linearly to 0 over the
    clip; its mean over the clip's frames, at 16x16."""

    name, size, threshold = "motion-history", 16, 10.0     # grey levels of 255
    features, frames = size ** 2, False

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, L, S, S) as a net takes it, L at least 2 -> (B, 256)."""
        moved = (grey(x).diff(dim=1).abs() > self.threshold).to(x.dtype)          # (B, L - 1, S, S)
        history, total = torch.zeros_like(moved[:, 0]), torch.zeros_like(moved[:, 0])
        for one in moved.unbind(1):
            history = torch.maximum(one, history - 1 / moved.shape[1])
            total += history.clamp(min=0)
        return F.adaptive_avg_pool2d(total / moved.shape[1], self.size).flatten(1)


HANDMADE = {net.name: net for net in (MeanImage, FrameDifference, MotionHistory)}
MOVING = FrameDifference, MotionHistory       # which see nothing in single frames


def grey(x: Tensor) -> Tensor:
    """(B, 3, L, S, S) normalised as a net takes it -> (B, L, S, S) grey levels, 0 to 255."""
    mean, std, luma = (torch.tensor(values, dtype=x.dtype, device=x.device).view(1, 3, 1, 1, 1)
                       for values in (MEAN, STD, LUMA))
    return 255 * ((x * std + mean) * luma).sum(1)
