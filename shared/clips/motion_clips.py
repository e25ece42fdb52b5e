"""Motion inputs of MaCLR's second pathway, on the training device (docs/method.md 2.1: our reconstruction).

B clips, L frames, hxw pixels of a crop, SxS pixels of a view. Edges and flow are stored at half size: the cells that a
crop touches are read, and resampled to the view at the crop's exact place.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shared.clips.resampling import resample, resize
from shared.recipes.pretraining import Maclr
from shared.store.layout import EDGE_MAX


def motion_clips(inputs: Sequence[Tensor], views: np.ndarray, maclr: Maclr, size: int) -> Tensor:
    """What the motion pathway sees: (B, 3, L, S, S) float32, in the crop of each view and flipped as it is.

    inputs: B arrays as `ClipData` reads them, edges (L, 2, h', w') uint8, flow (L, 2, h', w') float16 px/frame of the
    frame, or for `difference` (2 L, h, w, 3) uint8, every frame followed by the next; views: (B,) of `sampling.VIEW`.
    edges: |grad u|, |grad v| and the root of the sum of their squares, clamped to edges_max and divided by it; no value
    changes under crop, resize and flip. flow: u, v and magnitude in pixels of the view, clamped to flow_max and divided
    by it; u changes its sign under a flip. difference: R, G, B of the next frame minus this one's, in [-1, 1].
    """
    length = maclr.geometry.length
    clips = torch.empty(len(inputs), 3, length, size, size, device=inputs[0].device)
    for clip, values, view in zip(clips, inputs, views):
        if maclr.motion_input == "difference":
            frames = resize(values, size)
            change = frames[:, 1::2] - frames[:, ::2]
            clip.copy_(change.flip(-1) if view["flip"] else change)
        elif maclr.motion_input == "flow":
            clip.copy_(resample(flow_channels(values, view, size, maclr.flow_max), view, size))
        else:
            clip.copy_(resample(edge_channels(values, maclr.edges_max), view, size))
    return clips


def edge_channels(codes: Tensor, limit: float) -> Tensor:
    """(L, 2, h, w) uint8 of the store -> (3, L, h, w) float32 in [0, 1]."""
    gradients = codes.float().div_(255).square_().mul_(EDGE_MAX).transpose(0, 1)
    return torch.cat([gradients, gradients.square().sum(0, keepdim=True).sqrt()]).clamp_(max=limit).div_(limit)


def flow_channels(flow: Tensor, view: np.ndarray, size: int, limit: float) -> Tensor:
    """(L, 2, h, w) float16, px/frame of the frame -> (3, L, h, w) float32: u, v in [-1, 1], magnitude in [0, 1]."""
    _, _, height, width = view["box"].tolist()
    across, down = size / width, size / height
    vectors = flow.float().transpose(0, 1)
    vectors = torch.stack([vectors[0] * (-across if view["flip"] else across), vectors[1] * down])
    magnitude = vectors.square().sum(0, keepdim=True).sqrt()
    return torch.cat([vectors, magnitude]).clamp_(-limit, limit).div_(limit)
