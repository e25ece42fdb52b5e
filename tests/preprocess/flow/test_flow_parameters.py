import json

import pytest

from preprocess.flow import PRESETS, TVL1Parameters, parameters
from shared.cli import RequestError


def test_presets_are_what_they_say():
    cv2 = pytest.importorskip("cv2")
    method, p = cv2.optflow.createOptFlow_DualTVL1(), PRESETS["reference"]
    assert tuple(p.to_dict().values())[:-1] == pytest.approx((
        method.getTau(), method.getLambda(), method.getTheta(), method.getScaleStep(), method.getScalesNumber(),
        method.getWarpingsNumber(), method.getInnerIterations(), method.getOuterIterations(), method.getEpsilon(),
        method.getMedianFiltering()))
    for name, warps in (("default", 5), ("fast", 3)):
        p = PRESETS[name]
        assert p.scale == 1
        assert p.fixed and (p.zoom, p.warps, p.iterations, p.outer, p.median) == (0.5, warps, 30, 1, 5)
    assert PRESETS["half"] == parameters("fast", scale=0.5) and PRESETS["half"].min_side == 31


def test_round_trip_through_json_and_overrides():
    p = parameters("fast", zoom=0.7, warps=None, **{"lambda": 0.2})
    assert (p.zoom, p.warps, p.lambda_) == (0.7, 3, 0.2)
    assert TVL1Parameters(**json.loads(json.dumps(p.to_dict()))) == p
    assert parameters(p) == p
    assert parameters("default", warps=4).to_dict()["warps"] == 4


@pytest.mark.parametrize("name, value", [
    ("tau", 0), ("tau", 2), ("tau", float("nan")), ("lambda_", -1), ("theta", 0), ("theta", "0.3"), ("zoom", 1.0),
    ("zoom", 0.01), ("scales", 0), ("scales", 2.5), ("warps", 0), ("warps", True), ("iterations", 0), ("outer", 0),
    ("epsilon", -0.1), ("epsilon", float("inf")), ("median", 2), ("median", 4), ("median", 7), ("median", 0),
    ("scale", 0.75), ("scale", 2), ("scale", "0.5")])
def test_wrong_values_are_refused_and_named(name, value):
    with pytest.raises(RequestError, match=f"flow {name} is .*expected"):
        parameters("default", **{name: value})


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(RequestError, match="^flow has no preset 'fsat'; did you mean 'fast'[?]$"):
        parameters("fsat")
    with pytest.raises(RequestError, match="^flow has no preset 'xyz'; known: default, fast, half, reference$"):
        parameters("xyz")
    with pytest.raises(RequestError, match="no parameter 'warp'; did you mean 'warps'"):
        parameters("fast", warp=3)


def test_pyramid_sizes_round_like_opencv_and_stop_at_16():
    p = parameters("default")
    assert p.levels(256, 340) == [(256, 340), (128, 170), (64, 85), (32, 42), (16, 21)]
    assert p.levels(255, 341) == [(255, 341), (128, 170), (64, 85), (32, 42), (16, 21)]
    assert p.levels(16, 1000) == [(16, 1000)]
    assert len(parameters("default", scales=2).levels(256, 340)) == 2
