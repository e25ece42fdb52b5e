"""Settings that came later, and requests that go on from what is there."""

import dataclasses
from dataclasses import dataclass

import pytest
import yaml

from evaluate.settings import Settings
from shared.cli import RequestError
from shared.recipes.preprocessing import Recipe, load_pipeline
from shared.recipes.settings import LATE, build, differences, late, load_document, recorded
from shared.recipes.training import SECTIONS, load_training


@dataclass(frozen=True)
class Part:
    old: int
    new: float = late(0.5)


@dataclass(frozen=True)
class Whole:
    part: Part
    other: Part | None = None


def test_a_late_setting_is_written_only_where_it_is_not_as_before():
    tree = {"part": {"old": 1}, "other": {"old": 2, "new": 3.0}, "foreign": {"new": 0.5}}
    assert recorded(Whole, tree) == tree
    spelt = {**tree, "part": {"old": 1, "new": 0.5}}
    assert recorded(Whole, spelt) == tree
    assert build(Part, tree["part"], "") == Part(1, 0.5)


@pytest.fixture
def defaults(tmp_path):
    """defaults(**sections) -> a pipelines.yaml whose values, also where anchors share them, are changed in all recipes
    and pipelines: {section: {key: value}}."""
    def write(**sections):
        document = load_document()
        for group in ("recipes", "pipelines"):
            for tree in document[group].values():
                for section, values in sections.items():
                    if section in tree:
                        tree[section] |= values
        path = tmp_path / "pipelines.yaml"
        path.write_text(yaml.safe_dump(document))
        return path
    return write


def test_a_store_keeps_its_values_where_nothing_asks_for_others(defaults):
    old = load_pipeline("folder", settings=["jpeg_quality=70"]).recipe.to_dict()
    path = defaults(flow={"preset": "default"}, clips={"step": 2})
    assert load_pipeline("folder", path=path).kept == ()
    grown = load_pipeline("folder", path=path, stored=old)
    assert grown.recipe.to_dict() == old
    assert grown.kept == ("clips.step=4", "flow.preset=fast", "packs.jpeg_quality=70")
    again = load_pipeline("folder", settings=grown.kept, path=path)              # they are settings as they stand
    assert again.recipe == grown.recipe
    asked = load_pipeline("folder", settings=["step=2", "jpeg_quality=70"], path=path, stored=old)
    assert asked.kept == ("flow.preset=fast",)
    assert differences(old, asked.recipe.to_dict()) == ["clips.step: stored 4, asked 2"]


def test_the_name_of_a_recipe_asks_for_what_tells_recipes_apart(defaults):
    old = load_pipeline("folder").recipe.to_dict()
    path = defaults(flow={"preset": "default"})
    named = load_pipeline("folder", "maclr", path=path, stored=old)
    assert {line.split(":")[0] for line in differences(old, named.recipe.to_dict())} == {
        "clips.geometries", "packs.edges"}
    assert load_pipeline("folder", "motion", path=path, stored=old).recipe.to_dict() == old


def test_a_geometry_of_reindex_is_nothing_to_note():
    old = load_pipeline("folder", settings=["geometries=16x2,8x8"])
    grown = load_pipeline("folder", stored=old.recipe.to_dict())
    assert grown.recipe == old.recipe and grown.kept == ()


def test_a_recipe_of_another_version_is_refused():
    old = load_pipeline("folder").recipe.to_dict()
    old["frames"]["colours"] = 3
    with pytest.raises(RequestError, match="made by another version: frames.colours is no setting"):
        load_pipeline("folder", stored=old)


def test_a_run_keeps_its_values_where_nothing_asks_for_others(defaults):
    settings = ["steps=7", "lr=0.5"]
    old = "mcl-tiny", load_training("mcl-tiny", settings).recipe.to_dict()
    path = defaults(optimise={"lr": 0.1, "momentum": 0.5}, contrast={"temperature": 0.2})
    for given in ([], settings):
        training = load_training("mcl-tiny", given, path, old)
        assert training.recipe.to_dict() == old[1]
    assert training.kept == ("contrast.temperature=0.1", "optimise.momentum=0.9")
    other = load_training("mcl-tiny", ["epochs=3", "lr=0.2"], path, old)
    assert differences(old[1], other.recipe.to_dict()) == [
        "optimise.epochs: stored 0, asked 3", "optimise.lr: stored 0.5, asked 0.2", "optimise.steps: stored 7, asked 0"]


def test_groups_that_a_run_leaves_out_stay_left_out():
    """A run of before the setting left none out; its recipe does not name it."""
    before = load_training("mcl-tiny").recipe.to_dict()
    assert "leave_out" not in before["sampling"]
    old = "mcl-tiny", load_training("mcl-tiny", ['leave_out=["01", "a, b"]']).recipe.to_dict()
    training = load_training("mcl-tiny", (), stored=old)
    assert training.recipe.sampling.leave_out == ("01", "a, b") and training.kept == ("sampling.leave_out=01,a, b",)
    assert load_training("mcl-tiny", ["leave_out=x"], stored=("mcl-tiny", before)).recipe.sampling.leave_out == ("x",)


@pytest.mark.parametrize("text, groups", [
    ("01", ("01",)), ("no", ("no",)), ("a: b", ("a: b",)), ("1,2", ("1", "2")), ("[01, 'a, b']", ("01", "a, b")),
    ("[]", ()),
])
def test_a_name_may_look_like_a_number(text, groups):
    assert load_training("mcl-tiny", [f"leave_out={text}"]).recipe.sampling.leave_out == groups


def test_the_name_of_another_pipeline_asks_for_what_tells_it_apart(defaults):
    old = "mcl-tiny", load_training("mcl-tiny", ["steps=7"]).recipe.to_dict()
    path = defaults(optimise={"lr": 0.1})
    other = load_training("mcl-v1-tiny", (), path, old).recipe
    assert differences(old[1], other.to_dict()) == ["alignment.variant: stored 'v3', asked 'v1'"]
    assert load_training("maclr-tiny", (), path, old).recipe.maclr
    gone = load_training("moco-tiny", (), path, ("a-name-of-old", old[1])).recipe
    assert "alignment.variant: stored 'v3', asked 'none'" in differences(old[1], gone.to_dict())


def test_a_2d_net_goes_on_as_it_began():
    old = "mcl", load_training("mcl", ["backbone=r2d_50"]).recipe.to_dict()
    for settings in ([], ["backbone=r2d_50"]):
        assert load_training("mcl", settings, stored=old).recipe.to_dict() == old[1]


def test_pipelines_yaml_names_every_late_setting():
    """Where it did not, new stores, runs and results would silently be as before it existed."""
    document = load_document()
    sections = {field.name: field.type for cls in (Recipe, Settings) for field in dataclasses.fields(cls)} | SECTIONS
    trees = {name: tree for group in ("recipes", "pipelines") for name, tree in document[group].items()}
    trees["evaluation"] = document["evaluation"]
    missing = {f"{name}: {section}.{field.name}" for name, tree in trees.items() for section, cls in sections.items()
               if section in tree for field in dataclasses.fields(cls)
               if LATE in field.metadata and field.name not in tree[section]}
    assert missing == set()
