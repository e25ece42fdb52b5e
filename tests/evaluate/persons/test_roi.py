"""RoIAlign against its definition, and what must hold of it."""

import numpy as np
import pytest
import torch

from evaluate.persons.roi import box_features, roi_align
from shared.nn.backbones import build_backbone


def slowly(plane, box, bins, samples=2):
    """float64, a point at a time: bilinear between cell middles, the edge's value beyond the outermost ones."""
    height, width = plane.shape
    out = np.zeros((bins, bins))
    x1, y1, x2, y2 = np.clip(box, 0, 1)
    for i in range(bins * samples):
        for j in range(bins * samples):
            y = (y1 + (y2 - y1) * (i + 0.5) / (bins * samples)) * height - 0.5
            x = (x1 + (x2 - x1) * (j + 0.5) / (bins * samples)) * width - 0.5
            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
            a, b = int(y), int(x)
            c, d = min(a + 1, height - 1), min(b + 1, width - 1)
            value = ((1 - (y - a)) * ((1 - (x - b)) * plane[a, b] + (x - b) * plane[a, d])
                     + (y - a) * ((1 - (x - b)) * plane[c, b] + (x - b) * plane[c, d]))
            out[i // samples, j // samples] += value / samples ** 2
    return out


def test_against_the_definition():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 3, 6, 9))
    boxes = np.array([(0, 0, 1, 1), (0.11, 0.2, 0.35, 0.93), (0.5, 0.5, 0.5, 0.7), (-0.2, 0.4, 0.3, 1.4)])
    images = [0, 1, 1, 0]
    got = roi_align(torch.from_numpy(features), torch.from_numpy(boxes), torch.tensor(images), 3).numpy()
    expected = [[slowly(plane, box, 3) for plane in features[image]] for box, image in zip(boxes, images)]
    assert got.shape == (4, 3, 3, 3) and got == pytest.approx(np.array(expected))


def test_a_ramp_gives_the_middles_of_the_bins():
    """Within the outermost middles a linear map is interpolated exactly: nothing is rounded to cells."""
    height, width, bins = 8, 10, 4
    y, x = np.mgrid[:height, :width]
    ramp = torch.from_numpy(0.3 * (y + 0.5) - 0.7 * (x + 0.5))[None, None]
    box = np.array([[0.23, 0.31, 0.71, 0.83]])
    got = roi_align(ramp, torch.from_numpy(box), torch.tensor([0]), bins)[0, 0].numpy()
    middle = (np.arange(bins) + 0.5) / bins
    rows, columns = (0.31 + 0.52 * middle) * height, (0.23 + 0.48 * middle) * width
    assert got == pytest.approx(0.3 * rows[:, None] - 0.7 * columns)


@pytest.mark.parametrize("name, length", [("slow_tiny", 4), ("r2plus1d_tiny", 8)])
def test_a_person_is_the_maximum_over_bins_of_the_mean_over_time(name, length):
    """docs/method.md 2.4: RoIAlign on temporally pooled features."""
    torch.manual_seed(0)
    net, clips = build_backbone(name).eval(), torch.randn(2, 3, length, 32, 48)
    boxes = np.array([(0.1, 0.2, 0.6, 0.9), (0.5, 0.0, 1.0, 0.5), (0.0, 0.0, 1.0, 1.0)])
    images = [1, 0, 1]
    with torch.no_grad():
        output = net.output(*net.body(clips)).double().numpy()                         # (2, C, T', h', w')
        got = box_features(net, clips, torch.from_numpy(boxes), torch.tensor(images), 3).numpy()
    assert output.shape[2] > 1 and output.std(2).max() > 0
    expected = [[slowly(plane.sum(0) / len(plane), box, 3).max() for plane in output[image]]
                for box, image in zip(boxes, images)]
    assert got == pytest.approx(np.array(expected), rel=1e-4, abs=1e-5)
