"""pipelines.yaml: every key marked, every mistake named."""

import dataclasses
import re

import pytest

from shared.cli import RequestError
from shared.recipes import preprocessing, settings


def test_every_value_carries_its_mark():
    text = settings.pipelines_path().read_text()
    recipes = text[text.index("\nrecipes:"):]
    for _number, line in enumerate(recipes.splitlines()):
        # A leaf, or a mapping on one line that changes some; an anchor's name may stand before either.
        if re.match(r"\s+\w+: +(&\w+ +)?[^&*#\s]", line) and not line.strip().startswith(("about:", "#")):
            assert re.search(r"# .*(paper|released code|ours)", line), f"no mark: {line}"


@pytest.mark.parametrize("name", ["synthetic", "folder", "ucf101", "hmdb51", "kinetics400"])
def test_presets_load(name):
    pipeline = preprocessing.load_pipeline(name)
    assert pipeline.recipe.clips.geometries == (("16x2", "8x2") if name == "synthetic" else ("16x2",))
    assert dataclasses.is_dataclass(pipeline.recipe.flow)


@pytest.mark.parametrize("setting, wanted", [
    ("frames.short_side=128", 128), ("short_side=128", 128)])
def test_set_by_dotted_and_by_last_part(setting, wanted):
    assert preprocessing.load_pipeline("folder", settings=[setting]).recipe.frames.short_side == wanted


def test_set_lists_and_floats():
    p = preprocessing.load_pipeline("folder", settings=["geometries=16x2,8x8", "publish_s=5", "zoom=0.8"])
    assert p.recipe.clips.geometries == ("16x2", "8x8")
    assert p.run.publish_s == 5.0 and p.recipe.flow.zoom == 0.8
    assert preprocessing.load_pipeline("synthetic", settings=["backgrounds=4"]).preset.generate.backgrounds == 4


@pytest.mark.parametrize("settings, message", [
    (["short_sid=128"], "did you mean 'short_side'"),
    (["clips.stepp=1"], "did you mean 'clips.step'"),
    (["short_side"], "expected key=value"),
    (["short_side=big"], "frames.short_side is 'big'; expected a whole number"),
    (["short_side=1.5"], "expected a whole number"),
    (["short_side=true"], "expected a whole number"),
    (["edges=1"], "packs.edges is 1; expected true or false"),
    (["frames=10"], "ambiguous"),
    (["geometries=16y2"], "expected LxS"),
    (["step=0"], "clips.step is 0; expected at least 1"),
    (["combine=roots"], "did you mean 'root'"),
    (["border_px=128"], "motion.border_px is 128"),
    (["multiple=16"], "8x8 pixels"),
    (["backgrounds=3"], "is no setting"),
])
def test_mistakes_are_named(settings, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        preprocessing.load_pipeline("folder" if settings != ["frames=10"] else "synthetic", settings=settings)


def test_the_maclr_recipe_differs_only_in_what_it_keeps():
    motion, maclr = (preprocessing.load_pipeline("folder", name).recipe.to_dict() for name in ("motion", "maclr"))
    assert settings.differences(motion, maclr) == ["clips.geometries: stored ['16x2'], asked ['16x2', '8x8']",
                                                 "packs.edges: stored False, asked True"]
    maclr["packs"]["edges"] = False
    assert preprocessing.pack_recipe_hash(motion) == preprocessing.pack_recipe_hash(maclr)
    assert preprocessing.recipe_hash(motion) != preprocessing.recipe_hash(maclr)


def test_the_tiny_maclr_recipe_holds_what_every_tiny_maclr_pipeline_reads():
    pipeline = preprocessing.load_pipeline("synthetic", "maclr-tiny")
    assert pipeline.recipe.clips.geometries == ("16x2", "4x4")
    assert pipeline.recipe.packs.edges and pipeline.recipe.packs.flow
    with_flow = preprocessing.load_pipeline("folder", "maclr", ["flow=true"]).recipe.packs
    assert with_flow.edges and with_flow.flow


def test_a_fraction_is_a_number():
    halves = [preprocessing.load_pipeline("folder", settings=[f"flow.scale={text}"]).recipe for text in ("1/2", "0.5")]
    assert halves[0] == halves[1] and halves[0].flow.scale == 0.5


def test_unknown_dataset_and_recipe():
    with pytest.raises(RequestError, match="did you mean 'kinetics400'"):
        preprocessing.load_pipeline("kinetics40")
    with pytest.raises(RequestError, match="did you mean 'motion'"):
        preprocessing.load_pipeline("folder", recipe="motoin")


def test_misspelt_and_missing_keys_in_the_file(tmp_path):
    text = settings.pipelines_path().read_text()
    path = tmp_path / "pipelines.yaml"
    path.write_text(text.replace("border_px: 8", "border_pix: 8", 1))
    with pytest.raises(RequestError, match="motion.border_pix is no setting; did you mean 'border_px'"):
        preprocessing.load_pipeline("folder", path=path)
    path.write_text(re.sub(r"      step: 4.*\n", "", text, count=1))
    with pytest.raises(RequestError, match="clips.step is missing"):
        preprocessing.load_pipeline("folder", path=path)
    path.write_text("recipes: [")
    with pytest.raises(RequestError, match="not valid YAML"):
        preprocessing.load_pipeline("folder", path=path)


def test_hash_follows_the_recipe_and_not_the_run():
    plain = preprocessing.load_pipeline("folder")
    assert preprocessing.recipe_hash(plain.recipe.to_dict()) == preprocessing.recipe_hash(
        preprocessing.load_pipeline("folder", settings=["threads=7"]).recipe.to_dict())
    changed = preprocessing.load_pipeline("folder", settings=["step=8"]).recipe.to_dict()
    assert preprocessing.recipe_hash(plain.recipe.to_dict()) != preprocessing.recipe_hash(changed)
    assert settings.differences(plain.recipe.to_dict(), changed) == ["clips.step: stored 4, asked 8"]
