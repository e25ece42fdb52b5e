"""Temporal moments: by hand, for nets of every kind, and what they see that a mean does not."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluate import run
from evaluate.features.encoders import open_encoder
from evaluate.features.moments import pooled, positions, temporal_moments
from shared import cli
from shared.cli import RequestError
from shared.clips.index import ClipGeometry

FAST = ["--set", "run.threads=1", "--set", "run.device=cpu", "--set", "clips=2"]
IDENTITY = '''
import torch.nn.functional as F

def pixels(clips):
    """Every position says its own colour."""
    return F.avg_pool3d(clips, (1, 8, 8))
pixels.clip, pixels.size = "8x1", 16
'''


def test_moments_by_hand():
    values = torch.zeros(1, 2, 4, 1, 2)
    values[0, 0, :, 0, 0] = torch.tensor([0.0, 0.0, 0.0, 4.0])       # mean 1, variance 3, third moment 6
    values[0, 1, :, 0, 1] = torch.tensor([2.0, -2.0, 2.0, -2.0])     # mean 0, variance 4, third moment 0
    expected = [[1 / 2, 0, 8 * 3 / 2, 8 * 4 / 2, 4 * 6 / 2, 0]]      # each averaged over two positions
    torch.testing.assert_close(temporal_moments(values), torch.tensor(expected))


@given(st.integers(0, 2 ** 31), st.integers(2, 6))
def test_still_positions_have_a_mean_alone_and_the_order_of_frames_does_not_count(seed, steps):
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.normal(size=(2, 3, steps, 2, 2)))
    found = temporal_moments(values)
    torch.testing.assert_close(found, temporal_moments(values[:, :, rng.permutation(steps)]))
    torch.testing.assert_close(found[:, :3], values.mean((2, 3, 4)))
    still = temporal_moments(values[:, :, :1].expand(-1, -1, steps, -1, -1))
    assert float(still[:, 3:].abs().max()) < 1e-12


@pytest.mark.parametrize("name, clip, size", [("r2plus1d_tiny", "8x2", 48), ("slow_tiny", "4x4", 48),
                                              pytest.param("r2d_50", "16x2", 32, marks=pytest.mark.slow)])
def test_nets_of_ours_a_2d_one_frame_by_frame(name, clip, size):
    encoder = open_encoder(f"random:{name}:0")
    wide = pooled(encoder, "moments")
    length = ClipGeometry.parse(clip).length
    wide.check_view(ClipGeometry.parse(clip), size)
    x = torch.randn(2, 3, length, size, size)
    with torch.no_grad():
        if encoder.net.frames:
            assert wide.clip == clip
            each = [encoder.net.output(*encoder.net.body(x[:, :, t:t + 1])) for t in range(length)]
            torch.testing.assert_close(positions(encoder.net, x), torch.cat(each, 2), rtol=1e-4, atol=1e-4)
        found = wide.net(x)
        torch.testing.assert_close(found, temporal_moments(positions(encoder.net, x)))
    assert found.shape == (2, wide.net.features) == (2, 3 * encoder.net.features)
    assert pooled(encoder, "mean") is encoder and wide.net.name != encoder.net.name


def test_what_has_no_moments():
    with pytest.raises(RequestError, match="mean-image has no positions"):
        pooled(open_encoder("mean-image"), "moments")
    encoder = pooled(open_encoder("random:r2plus1d_tiny:0"), "moments")
    with pytest.raises(RequestError, match="1 time step of clips of 2 frames"):
        encoder.check_view(ClipGeometry(2, 1), 48)


@pytest.fixture(scope="module")
def flickering(tmp_path_factory, write_store):
    """24 videos, each of a colour of its own; those of class `strong` flicker strongly about it, the others weakly."""
    rng, videos = np.random.default_rng(5), {}
    for i in range(24):
        colour, phase = rng.uniform(100, 155, 3), rng.integers(2)
        wave = (-1.0) ** (np.arange(16) + phase) * (75 if i % 2 else 8)
        rgb = np.broadcast_to((colour + wave[:, None])[:, None, None], (16, 64, 80, 3)).round().astype(np.uint8)
        videos[f"v{i:02d}"] = dict(rgb=rgb, label=i % 2, class_name=("weak", "strong")[i % 2], group="g",
                                   splits=("train" if i < 14 else "test",))
    return write_store(tmp_path_factory.mktemp("flickering") / "store", videos, ("weak", "strong"))


@pytest.mark.slow
def test_moments_see_what_a_mean_does_not(flickering, tmp_path, monkeypatch, capsys):
    """Colours say nothing of the class, and that is all that a mean keeps; the row beside it says the same as the run
    with features.pool=moments does."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"identity_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(IDENTITY)

    def evaluate(protocols, out, *more):
        argv = ["--protocol", protocols, "--checkpoint", f"python:{name}:pixels", "--store", str(flickering),
                "--out", str(tmp_path / out), *more, *FAST]
        assert run.main(argv) == cli.DONE

    evaluate("linear,retrieval", "mean", "--beside", "moments")
    evaluate("retrieval", "alone", "--set", "features.pool=moments")
    alone = json.loads((tmp_path / "alone/metrics.json").read_text())
    assert alone["metrics"]["r@1"] == 100 and alone["settings"]["features"]["pool"] == "moments"
    for protocol, metric in (("linear", "top1"), ("retrieval", "r@1")):
        found = json.loads((tmp_path / "mean" / protocol / "metrics.json").read_text())
        assert abs(found["metrics"][metric] - 50) <= 30 and "pool" not in found["settings"]["features"]
        assert found["beside"]["moments"][metric] == 100
        assert protocol == "linear" or found["beside"]["moments"] == alone["metrics"]
        table = next(table for table in found["tables"] if table["title"].startswith("Temporal moments"))
        assert table["columns"] == ["score", "this checkpoint", "95 %", "moments", "95 %", "chance"]
        assert len(table["rows"]) == len(found["metrics"])
    said = capsys.readouterr().out
    assert "moments 100.0 %" in said
