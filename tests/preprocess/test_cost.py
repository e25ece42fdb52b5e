"""What a plan says it costs is measured, and what cannot fit is refused."""

import pytest

from preprocess import cost as costing
from preprocess import plan as planning
from shared.cli import RequestError
from shared.datasets.catalog import open_catalog
from shared.recipes.preprocessing import load_pipeline


def test_what_cannot_fit_is_refused(tmp_path):
    with pytest.raises(RequestError, match="the packs need about 1000000.00 TB .* free some or choose another --store"):
        costing.refuse_if_too_large(costing.Cost(bytes=1e18), tmp_path / "not" / "there")
    costing.refuse_if_too_large(costing.Cost(bytes=10), tmp_path)


def test_the_sample_measures_real_packs(small_videos):
    catalog = open_catalog("folder", small_videos)
    pipeline = load_pipeline("folder", settings=["flow.backend=opencv"])
    plan = planning.make_plan(catalog, pipeline.recipe, {v.id for v in catalog.videos})
    cost = costing.measure_cost(plan.packs, catalog, pipeline.recipe, pipeline.run)
    assert cost.frames == 12 * 40
    assert cost.cpu_s > 0 and cost.wall_s > 0
    assert 12 * 40 * 200 < cost.bytes < 12 * 40 * 10_000
    assert cost.files == 23
