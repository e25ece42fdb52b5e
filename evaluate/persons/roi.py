"""RoIAlign in plain torch (He et al. 2017): features of boxes, by bilinear interpolation, nothing rounded.

n boxes, C channels, hxw positions, G bins a side.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.nn.layers import Backbone

SAMPLES = 2     # points a bin, a side


def box_features(backbone: Backbone, clips: Tensor, boxes: Tensor, images: Tensor, bins: int) -> Tensor:
    """(n, C) float32 of boxes: the network's last output averaged over time, RoIAligned, its maximum over the bins.

    clips: (B, 3, L, h, w), of any size; boxes: (n, 4); images: (n,), which clip a box is in.
    """
    output = backbone.output(*backbone.body(clips)).mean(2).float()                      # (B, C, h', w')
    return roi_align(output, boxes, images, bins).amax((2, 3))


def roi_align(features: Tensor, boxes: Tensor, images: Tensor, bins: int) -> Tensor:
    """(n, C, G, G): the mean over 2x2 points of each bin of each box.

    features: (B, C, h, w), position (i, j) in the middle of its cell; boxes: (n, 4) x1, y1, x2, y2 as shares of width
    and height, what reaches beyond the frame is cut; images: (n,) int64, which of B a box is in.
    """
    boxes = boxes.clamp(0, 1).to(features.dtype)
    points = bins * SAMPLES
    along = (torch.arange(points, device=features.device, dtype=features.dtype) + 0.5) / points
    x, y = (low[:, None] + (high - low)[:, None] * along for low, high in
            ((boxes[:, 0], boxes[:, 2]), (boxes[:, 1], boxes[:, 3])))
    # grid_sample's coordinates: -1 and 1 are the outer edges of the first and the last cell.
    grid = 2 * torch.stack((x[:, None, :].expand(-1, points, -1), y[:, :, None].expand(-1, -1, points)), -1) - 1
    sampled = F.grid_sample(features[images], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return F.avg_pool2d(sampled, SAMPLES)
