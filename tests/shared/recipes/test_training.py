"""Pipelines by name: complete recipes, every mistake named, and what follows from a 2D backbone."""

import re

import pytest

from shared.cli import RequestError
from shared.recipes.pretraining import Pretraining, build_recipe
from shared.recipes.pretraining_checks import TERMS
from shared.recipes.settings import differences, load_document, pipelines_path, spelt
from shared.recipes.training import load_training

FULL = ("moco", "seco", "seco-ta", "seco-sa", "seco-ta-sa", "moco-ta-sa", "mcl-t", "mcl-s", "mcl-st", "mcl", "mcl-v1",
        "mcl-v2", "mcl-moco", "mcl-moco-v1", "mcl-moco-smooth")
MACLR = ("maclr", "maclr-visual", "maclr-flow", "maclr-difference", "maclr-vm", "maclr-mm", "maclr-narrow",
         "maclr-wide", "maclr-ta-sa", "mcl-maclr")
SCALE = {"sampling.clip", "sampling.size", "augment.jitter_p", "augment.grey_p", "augment.blur_p", "model.backbone",
         "model.hidden", "model.precision", "contrast.queue", "contrast.momentum", "alignment.weight",
         "optimise.epochs", "optimise.steps", "optimise.batch", "optimise.lr", "optimise.warmup_epochs",
         "contrast.bn_group", "maclr.motion_clip", "maclr.motion_backbone", "maclr.motion_width", "maclr.edges_max"}


def test_the_page_of_maclr_names_every_setting_of_its_own():
    page = (pipelines_path().parent / "docs/maclr.md").read_text()
    tree = load_training("maclr").recipe.to_dict()
    named = [*tree["maclr"], *(key for key in tree["contrast"] if key not in ("intra", "order")), "backbone", "width",
             "precision", "hidden", "dim", "clip", "size", "ta", "sa", "jitter_p", "flip_p", "optimise"]
    assert [key for key in named if not re.search(rf"(?:[`.]|--set ){key}\b", page)] == []
    assert [name for name in MACLR if not re.search(f"(?:`|--pipeline ){name}\\b", page)] == []


def test_every_name_and_its_tiny_twin_load():
    names = *FULL, *MACLR
    assert set(load_document()["pipelines"]) == {*names, *(f"{name}-tiny" for name in names)}
    for name in (*names, *(f"{name}-tiny" for name in names)):
        training = load_training(name)
        assert build_recipe(training.recipe.to_dict()) == training.recipe
        assert training.notes == () and training.about


def test_every_entry_says_how_to_run_it_how_long_and_what_to_expect():
    lines = pipelines_path().read_text().splitlines()
    lines = lines[lines.index("pipelines:"):]                                    # recipes of stores bear names alike
    for name, entry in load_document()["pipelines"].items():
        above = lines[next(i for i, line in enumerate(lines) if re.match(rf"  {name}:", line)) - 1]
        assert f" train/main.py --pipeline {name} --store STORE --out runs/{name}" in above
        assert re.search("minute|day|week", entry["about"])
        assert re.search(r"SVM \d|no score in the paper|accuracy 0\.\d", entry["about"])


# Tables 1 and 2: name -> keys, TA, SA, variant, terms, a score that its `about` states.
TABLE = {
    "moco": (1, False, False, "none", "", ""), "seco": (3, False, False, "none", "", "77.98"),
    "seco-ta": (3, True, False, "none", "", "78.26"), "seco-sa": (3, False, True, "none", "", "79.54"),
    "seco-ta-sa": (3, True, True, "none", "", "79.64"), "moco-ta-sa": (1, True, True, "none", "", ""),
    "mcl-t": (3, True, True, "v3", "t", "80.26"), "mcl-s": (3, True, True, "v3", "s", "80.83"),
    "mcl-st": (3, True, True, "v3", "st", "81.47"), "mcl": (3, True, True, "v3", "st s t", "81.91"),
    "mcl-v1": (3, True, True, "v1", "st s t", "80.57"), "mcl-v2": (3, True, True, "v2", "st s t", "80.99"),
    "mcl-moco": (1, True, True, "v3", "st s t", ""), "mcl-moco-v1": (1, True, True, "v1", "st s t", ""),
    "mcl-moco-smooth": (1, True, True, "v3", "st s t", ""),
}


@pytest.mark.parametrize("name", FULL)
def test_the_rows_of_tables_1_and_2(name):
    training, (keys, ta, sa, variant, terms, score) = load_training(name), TABLE[name]
    r = training.recipe
    assert (r.sampling.keys, r.sampling.ta, r.sampling.sa, r.alignment.variant) == (keys, ta, sa, variant)
    assert (r.contrast.intra, r.contrast.order) == ((1.0, "epoch") if keys == 3 else (0.0, 0.0))
    if variant != "none":
        assert [term for term in TERMS if getattr(r.alignment, term)] == terms.split()
    assert score in training.about
    # docs/method.md 1.6
    assert (r.model.backbone, r.sampling.clip, r.sampling.size) == ("r2plus1d_50", "16x2", 224)
    assert (r.optimise.batch, r.optimise.lr, r.optimise.epochs, r.optimise.momentum) == (64, 0.01, 200, 0.9)
    assert (r.contrast.queue, r.contrast.temperature, r.contrast.momentum) == (131072, 0.1, 0.999)


@pytest.mark.parametrize("name", [*FULL, *MACLR])
def test_a_twin_differs_in_scale_alone(name):
    full, tiny = load_training(name).recipe.to_dict(), load_training(f"{name}-tiny").recipe.to_dict()
    assert {line.split(":")[0] for line in differences(full, tiny)} <= SCALE


def test_maclr_is_what_method_2_says():
    r = load_training("maclr").recipe
    assert (r.model.backbone, r.model.width, r.model.hidden, r.model.dim) == ("slow_50", 0, 2048, 128)
    assert (r.sampling.clip, r.sampling.size, r.sampling.keys, r.sampling.ta, r.sampling.sa) == ("8x8", 224, 1, False,
                                                                                               False)
    assert (r.contrast.inter, r.contrast.queue, r.contrast.temperature, r.contrast.momentum) == (1.0, 65536, 0.1, 0.999)
    m = r.maclr
    assert (m.motion_input, m.motion_clip, m.motion_backbone, m.motion_width) == ("edges", "16x4", "slow_50", 8)
    assert (m.vm, m.mv, m.mm, m.cross_weight) == (True, True, False, 1.0)
    assert (m.edges_max, m.flow_max, m.shift_min_s, m.shift_max_s) == (10.0, 20.0, 0.5, 10.0)
    o = r.optimise
    assert (o.batch, o.lr, o.warmup_epochs, o.epochs, o.momentum, o.weight_decay) == (512, 0.4, 10, 200, 0.9, 1e-4)


@pytest.mark.parametrize("name, changed", [
    ("maclr-visual", {"maclr.vm", "maclr.mv"}), ("maclr-flow", {"maclr.motion_input"}),
    ("maclr-difference", {"maclr.motion_input"}), ("maclr-vm", {"contrast.inter"}), ("maclr-mm", {"maclr.mm"}),
    ("maclr-narrow", {"maclr.motion_width"}), ("maclr-wide", {"maclr.motion_width"}),
    ("maclr-ta-sa", {"sampling.ta", "sampling.sa"}),
    ("mcl-maclr", {"sampling.ta", "sampling.sa", "contrast.inter", "alignment.variant"})])
def test_an_ablation_of_maclr_changes_that_alone(name, changed):
    for suffix in ("", "-tiny"):
        base, other = (load_training(f"{n}{suffix}").recipe.to_dict() for n in ("maclr", name))
        assert {line.split(":")[0] for line in differences(base, other)} == changed
    assert load_training("maclr-narrow").recipe.maclr.motion_width < 8 < load_training(
        "maclr-wide").recipe.maclr.motion_width


@pytest.mark.parametrize("settings, message", [
    (["motion_input=edge"], "did you mean 'edges'"),
    (["motion_inputs=flow"], "did you mean 'motion_input'"),
    (["motion_clip=16x2"], "maclr.motion_clip is 16x2, 32 frames, and sampling.clip 8x8, 64 frames"),
    (["motion_clip=16y4"], "maclr.motion_clip: clip geometry '16y4'; expected LxS"),
    (["clip=16x8"], "expected the same time: add --set motion_clip="),
    (["keys=3"], "MaCLR takes one key, shifted in time: add --set keys=1"),
    (["variant=v3", "st=false", "s=false", "t=false"], "alignment.st, s and t are all false"),
    (["inter=0", "vm=false"], "nothing would train the visual pathway"),
    (["inter=0", "cross_weight=0"], "nothing would train the visual pathway"),
    (["pairs=sam"], "did you mean 'same'"),
    (["shift_max_s=0.1"], "maclr.shift_max_s is 0.1; expected at least 0.5"),
    (["edges_max=0"], "maclr.edges_max is 0.0; expected above 0"),
    (["cross_weight=-1"], "maclr.cross_weight is -1.0; expected at least 0"),
    (["intra=1"], "need three keys"),
])
def test_mistakes_of_maclr_are_named(settings, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        load_training("maclr", settings)


def test_the_sections_of_one_method_are_not_the_others():
    with pytest.raises(RequestError, match="'motion_input' is no setting"):
        load_training("mcl", ["motion_input=flow"])
    assert "maclr" not in load_training("mcl").recipe.to_dict()                  # checkpoints of MCL stay as they were
    assert load_training("maclr-visual", ["clip=16x4"]).recipe.maclr.reads is False


@pytest.mark.slow
@pytest.mark.parametrize("settings, message", [
    (["epohs=3"], "did you mean 'epochs'"),
    (["contrast.quue=3"], "did you mean 'contrast.queue'"),
    (["epochs=many"], "optimise.epochs is 'many'; expected a whole number"),
    (["batch=1.5"], "expected a whole number"),
    (["lr=fast"], "optimise.lr is 'fast'; expected a finite number"),
    *(([f"lr={text}"], "; expected a finite number") for text in (
        ".nan", ".inf", "-.inf", "nan", "1e400", "9" * 400, "2026-12-31", "", "[1, 2]", "1/0", "1/2/3", "-1/2")),
    *(([f"lr={text}"], "the value is not a number, word or list") for text in (
        "2026-13-45", "!!int foo", "!!timestamp x", "[" * 3000, "[" * 3000 + "]" * 3000, "*a", "\x07", "{[1]: 2}")),
    (["batch=" + "9" * 40], "; expected a whole number"),
    (["clip=0x2"], "sampling.clip: clip geometry '0x2'; expected LxS"),
    (["compile=1"], "run.compile is 1; expected true or false"),
    (["seed=-1"], "optimise.seed is -1; expected at least 0"),
    (["workers=-2"], "run.workers is -2; expected at least -1"),
    (["momentum=0.9"], "ambiguous; say one of contrast.momentum, optimise.momentum"),
    (["order=epohc"], "did you mean 'epoch'"),
    (["order=true"], "expected a finite number or a word"),
    (["variant=v4"], "alignment.variant is 'v4'; known: none, v1, v2, v3"),
    (["precision=bf61"], "did you mean 'bf16'"),
    (["clip=16y2"], "sampling.clip: clip geometry '16y2'; expected LxS"),
    (["keys=2"], "sampling.keys is 2; expected 1 (plain MoCo) or 3 (SeCo)"),
    (["keys=1"], "contrast.intra and contrast.order need three keys"),
    (["st=false", "s=false", "t=false"], "alignment.st, s and t are all false"),
    (["epochs=3", "steps=5"], "expected exactly one above 0"),
    (["epochs=0"], "expected exactly one above 0"),
    (["area_min=0"], "expected 0 < min <= max"),
    (["temperature=0"], "contrast.temperature is 0.0; expected above 0"),
    (["weight_decay=1e400"], "optimise.weight_decay is inf; expected a finite number"),
    (["seed=99999999999999999999"], "optimise.seed is 99999999999999999999; expected at least 0 and at most 9"),
    (["keep=0"], "run.keep is 0; expected at least 1"),
    (["threads=9999999"], "run.threads is 9999999; expected at least 0 and at most 1024"),
    (["optimise.momentum=2"], "at most 1"),
])
def test_mistakes_are_named(settings, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        load_training("mcl", settings)


def test_unknown_pipeline():
    with pytest.raises(RequestError, match="pipeline 'mcl-tny' is unknown; did you mean 'mcl-tiny'"):
        load_training("mcl-tny")


def test_epochs_or_steps_whichever_is_asked_for():
    assert load_training("mcl-tiny", ["epochs=3"]).recipe.optimise.steps == 0
    assert load_training("mcl", ["steps=3"]).recipe.optimise.epochs == 0
    assert load_training("mcl", ["optimise.steps=3", "epochs=0"]).recipe.optimise.steps == 3


@pytest.mark.parametrize("net", ["r2d_50", "i2d"])
def test_a_2d_backbone_takes_its_clip_and_terms_along(net):
    training = load_training("mcl", [f"backbone={net}"])
    r = training.recipe
    assert r.sampling.clip == "1x1" and [term for term in TERMS if getattr(r.alignment, term)] == ["s"]
    assert len(training.notes) == 2 and net in training.notes[0]
    assert load_training("seco", [f"backbone={net}"]).recipe.sampling.clip == "1x1"
    assert load_training("mcl-s", [f"backbone={net}"]).recipe.alignment.s
    with pytest.raises(RequestError, match="add --set clip=1x1"):
        load_training("mcl", [f"backbone={net}", "clip=16x2"])
    with pytest.raises(RequestError, match="--set alignment.s=true --set alignment.t=false"):
        load_training("mcl-t", [f"backbone={net}"])
    with pytest.raises(RequestError, match="--set alignment.st=false"):
        load_training("mcl", [f"backbone={net}", "st=true"])


def test_the_3d_backbones_need_nothing_else_and_no_single_frames():
    assert load_training("mcl", ["backbone=s3d"]).recipe.sampling.clip == "16x2"
    with pytest.raises(RequestError, match="single frames, for s3d"):
        load_training("mcl", ["backbone=s3d", "clip=1x1"])


def test_numbers_with_exponents():
    optimise = load_training("mcl", ["lr=1e-3", "weight_decay=5.E-5"]).recipe.optimise
    assert (optimise.lr, optimise.weight_decay) == (0.001, 5e-5)


def test_run_settings_stay_outside_the_recipe():
    training = load_training("mcl", ["workers=3", "run.compile=true"])
    assert training.run.workers == 3 and training.run.compile
    assert training.recipe == load_training("mcl").recipe


LATER = {"model": ("bn_eps", "stem_tap", "init_head"), "contrast": ("order_input",), "alignment": ("softmax_scale",)}


def test_runs_from_before_a_setting_keep_what_they_did():
    """Epsilon 1e-5 for S3D too, the stem's tap 2 of 0 to 3, the softmax of the released form in our units."""
    new = load_training("mcl", ["backbone=s3d"]).recipe
    assert (new.model.bn_eps, new.model.stem_tap, new.alignment.softmax_scale) == (1e-3, 1, 153.0)
    assert load_training("mcl").recipe.model.bn_eps == 1e-5
    tree = new.to_dict()
    old = {section: {key: value for key, value in values.items() if key not in LATER.get(section, ())}
           for section, values in tree.items()}
    assert build_recipe(old).to_dict() == old
    going_on = load_training("mcl", ["backbone=s3d"], stored=("mcl", old))
    model, alignment = going_on.recipe.model, going_on.recipe.alignment
    assert (model.bn_eps, model.stem_tap, model.init_head, alignment.softmax_scale) == (1e-5, 2, False, 1.0)
    assert going_on.recipe.contrast.order_input == "plain" and going_on.recipe.to_dict() == old
    assert going_on.kept == ("alignment.softmax_scale=1.0", "model.bn_eps=1e-05", "model.stem_tap=2")
    asked = load_training("mcl", ["stem_tap=1", "bn_eps=auto"], stored=("mcl", old)).recipe
    assert differences(spelt(Pretraining, old), spelt(Pretraining, asked.to_dict())) == [
        "model.bn_eps: stored 1e-05, asked 0.001", "model.stem_tap: stored 2, asked 1"]


@pytest.mark.parametrize("setting, message", [
    ("order_input=unitary", "contrast.order_input is 'unitary'; did you mean 'unit'"),
    ("bn_eps=own", "model.bn_eps is 'own'; known: auto"), ("bn_eps=0", "model.bn_eps is 0.0; expected above 0"),
    ("stem_tap=4", "model.stem_tap is 4; expected at least 0 and at most 3"),
    ("softmax_scale=0", "alignment.softmax_scale is 0.0; expected above 0"),
    ("smooth=-1", "alignment.smooth is -1.0; expected at least 0"),
    (["smooth=10", "variant=v1"], "alignment.smooth is 10, with variant v1 and layer conv; it changes the gradient")])
def test_later_settings_have_their_limits(setting, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        load_training("mcl", [setting] if isinstance(setting, str) else setting)
