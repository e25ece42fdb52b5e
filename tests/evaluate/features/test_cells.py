"""Features in cells: against means taken region by region, and by the command."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from evaluate import run
from evaluate.features.cells import as_asked
from evaluate.features.encoders import open_encoder
from evaluate.features.moments import pooled
from evaluate.finetuned.supervised import check_trainable
from evaluate.protocol import load_settings
from shared.cli import RequestError

GRID = load_settings("linear", ["features.grid=2"]).features


@pytest.mark.parametrize("text", ["random:r2plus1d_tiny:0", "random:slow_tiny:0", "mean-image", "motion-history"])
def test_cells_are_means_of_their_part_of_the_view(text):
    encoder = open_encoder(text)
    cells = as_asked(encoder, GRID)
    x = torch.randn(2, 3, 8, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if hasattr(encoder.net, "body"):
            maps = encoder.net.output(*encoder.net.body(x)).numpy().mean(2)
        else:
            maps = encoder.net(x).numpy().reshape(2, -1, encoder.net.size, encoder.net.size)
        found = cells.net(x).numpy()
    half = maps.shape[2] // 2
    expected = [[clip[c, y:y + half, x:x + half].mean() for c in range(len(clip)) for y in (0, half) for x in (0, half)]
                for clip in maps]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert cells.net.features == found.shape[1] and cells.net.name == f"2x2 cells of {encoder.net.name}"
    assert as_asked(encoder, dataclasses.replace(GRID, grid=1)) is encoder


@pytest.mark.slow
@pytest.mark.parametrize("text, settings, message", [
    ("random:r2plus1d_tiny:0", ["features.grid=7"], "gives 6x6 positions of clips of 48 pixels; set a smaller grid"),
    ("random:r2plus1d_tiny:0", ["features.grid=2", "features.pool=moments"], "with pool=mean, and not of moments"),
    ("frame-difference", ["features.grid=2", "features.clip=1x1"], "sees no motion in single frames"),
    ("random:r2plus1d_tiny:0", ["features.grid=0"], "features.grid is 0; expected at least 1")])
def test_what_has_no_such_cells_is_refused(text, settings, message):
    with pytest.raises(RequestError, match=message):
        asked = load_settings("linear", settings).features
        encoder = as_asked(open_encoder(text), asked)
        encoder.check_view(run.ClipGeometry.parse(asked.clip or encoder.clip), encoder.size)


def test_who_has_no_use_for_cells_names_the_grid(store, tmp_path):
    cells = as_asked(open_encoder("random:r2plus1d_tiny:0"), GRID)
    for refuses in (check_trainable, lambda encoder: pooled(encoder, "moments")):
        with pytest.raises(RequestError, match="random:r2plus1d_tiny:0 has no .*features.grid=1"):
            refuses(cells)
    with pytest.raises(RequestError, match="controls: 2x2 cells of r2plus1d_tiny has no backbone.* features.grid=1"):
        run.main(["--protocol", "controls", "--checkpoint", "random:r2plus1d_tiny:0", "--store", str(store), "--out",
                  str(tmp_path / "out"), "--set", "features.grid=2", "--set", "run.device=cpu"])


@pytest.mark.slow
def test_the_command_keeps_cells_and_their_mean_apart(store, tmp_path):
    """Both in one cache: the cells' mean is the feature without cells, video by video."""
    for grid in (1, 2):
        assert run.main(["--protocol", "linear", "--checkpoint", "frame-difference", "--store", str(store), "--out",
                         str(tmp_path / f"{grid}"), "--cache", str(tmp_path / "features"), "--set",
                         f"features.grid={grid}", "--set", "features.clips=1", "--set", "run.device=cpu"]) == 0
        settings = json.loads((tmp_path / f"{grid}/metrics.json").read_text())["settings"]["features"]
        assert settings.get("grid", 1) == grid
    vectors = {256: {}, 4: {}}
    for path in (tmp_path / "features").rglob("*.npy"):
        rows = np.load(path)
        vectors[rows.shape[1]] |= zip(json.loads(path.with_suffix(".json").read_text())["positions"], rows)
    assert vectors[256].keys() == vectors[4].keys() and len(vectors[4]) > 10
    for position, row in vectors[256].items():
        np.testing.assert_allclose(vectors[4][position], row.reshape(2, 8, 2, 8).mean((1, 3)).ravel(), rtol=1e-5)
