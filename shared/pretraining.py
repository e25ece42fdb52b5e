"""pipelines.yaml's `pipelines:` -> frozen dataclasses: everything that a pre-training run computes, and how it runs.

`Pretraining` is what is computed: it goes into the checkpoint, and a run is resumed only with the same one.
`RunTraining` (settings under `run.`) says where and how, and may change between a run and its resumption.
Terms as in METHOD.md: MCL 1.2 (sampling, augmentation), 1.3 (contrast), 1.4 (alignment), 1.6 (optimisation).
"""

import dataclasses
import json
import typing
from dataclasses import dataclass, replace
from pathlib import Path

from shared.cli import RequestError, nearest
from shared.clips import ClipGeometry
from shared.settings import apply_settings, build, load_document

FRAME_NETS = ("r2d_50", "i2d")     # 2D nets: they see single frames, so only L_s applies (METHOD 1.4)
FRAME_CLIP = "1x1"
TERMS = ("st", "s", "t")


@dataclass(frozen=True)
class Sampling:
    """Which clips and crops a sample is made of (METHOD 1.2, 1.3).

    clip: LxS; size: pixels of the square view; ta: motion-focused clips, with probability ta_probability, the median
    taken over the clips of a `half` of the video or all of the `video`; sa: motion-focused crops, as the `paper` or as
    the `released` code; area_*: share of the frame; aspect_*: width over height; cover: share of the hot pixels;
    keys: 1 (plain MoCo) or 3 (SeCo).
    """

    clip: str
    size: int
    ta: bool
    ta_probability: float
    ta_scope: str
    sa: bool
    sa_variant: str
    area_min: float
    area_max: float
    aspect_min: float
    aspect_max: float
    cover: float
    keys: int

    @property
    def geometry(self) -> ClipGeometry:
        return ClipGeometry.parse(self.clip)


@dataclass(frozen=True)
class Augment:
    """Colour jitter strengths and the probabilities of each step (METHOD 1.2.4); blur_*: sigma in pixels of the view.
    One draw a clip, the same in all its frames."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    jitter_p: float
    grey_p: float
    blur_p: float
    blur_min: float
    blur_max: float
    flip_p: float


@dataclass(frozen=True)
class Model:
    """Backbone by name, its width (0: the name's own), the heads' hidden width and output, float32 or bf16 autocast."""

    backbone: str
    width: int
    hidden: int
    dim: int
    precision: str


@dataclass(frozen=True)
class Contrast:
    """The contrastive learner (METHOD 1.3).

    inter, intra: weights; order: weight, or `epoch` for epoch/epochs; queue: keys; momentum: of the EMA;
    bn: `auto` (shuffling BN over ranks, split BN on one), `shuffle`, `split` or `none`; bn_group: clips a split group.
    """

    inter: float
    intra: float
    order: float | str
    queue: int
    temperature: float
    momentum: float
    bn: str
    bn_group: int
    exclude_same_video: bool


@dataclass(frozen=True)
class Alignment:
    """The motion alignment loss (METHOD 1.4).

    variant: none, v1, v2 or v3 (Eqs. 4-6); st, s, t: the terms of Eq. 7; form: renormalised, literal or released;
    weights_per_step: w_c a time step (released code); double_epochs: epochs at twice the weight (released code: 5);
    layer: `conv` (last convolution, before its BN) or `output` (the block's output, where v3 degenerates).
    """

    variant: str
    st: bool
    s: bool
    t: bool
    form: str
    weight: float
    weights_per_step: bool
    double_epochs: int
    layer: str


@dataclass(frozen=True)
class Optimise:
    """SGD and its schedule (METHOD 1.6).

    Either epochs or steps decides the length, the other is 0; batch: queries of all ranks; warmup_from: share of lr at
    the first step.
    """

    epochs: int
    steps: int
    batch: int
    lr: float
    momentum: float
    weight_decay: float
    warmup_epochs: int
    warmup_from: float
    seed: int


@dataclass(frozen=True)
class Pretraining:
    """Everything that decides which numbers a run computes."""

    sampling: Sampling
    augment: Augment
    model: Model
    contrast: Contrast
    alignment: Alignment
    optimise: Optimise

    def to_dict(self) -> dict:
        return json.loads(json.dumps(dataclasses.asdict(self)))


@dataclass(frozen=True)
class RunTraining:
    """Where and how; outside the recipe.

    workers: loader processes a rank (-1: one a core that is left, at most 8; 0: in this process); threads: of torch, a
    rank (0: the cores over the ranks); log_every: steps; checkpoint_steps, checkpoint_minutes: 0 switches either off;
    keep: newest checkpoints kept; every_epochs: of these epochs every checkpoint is kept (0: none);
    images_every: epochs (0: none); reshard: go on with another number of ranks.
    """

    workers: int
    threads: int
    compile: bool
    log_every: int
    checkpoint_steps: int
    checkpoint_minutes: float
    keep: int
    every_epochs: int
    images_every: int
    reshard: bool


SECTIONS = {field.name: field.type for field in dataclasses.fields(Pretraining)}


@dataclass(frozen=True)
class Training:
    """One resolved request: a pipeline's name, what to expect of it, its recipe, and what was derived on the way."""

    name: str
    about: str
    recipe: Pretraining
    run: RunTraining
    notes: tuple[str, ...] = ()


def load_training(name: str, settings: typing.Sequence[str] = (), path: Path | None = None) -> Training:
    """The pipeline `name` with `key=value` settings laid over it.

    A 2D backbone takes its clip and its alignment terms along where no setting names them; the notes say so.
    Raises RequestError for an unknown pipeline, key, type or value, naming the nearest right one.
    """
    document = load_document(path)
    pipelines = document["pipelines"]
    if name not in pipelines:
        raise RequestError(f"pipeline {name!r} is unknown{nearest(name, pipelines)}")
    tree = dict(pipelines[name])
    about = tree.pop("about", "")
    tree["run"] = {**document["training"], **tree.get("run", {})}
    before = build_recipe({key: value for key, value in tree.items() if key != "run"})
    tree = apply_settings(tree, SECTIONS | {"run": RunTraining}, settings)
    run = build(RunTraining, tree.pop("run"), "run")
    recipe, notes = _derive(before, build_recipe(tree), {setting.partition("=")[0].strip() for setting in settings})
    check(recipe)
    _check_run(run)
    return Training(name, about, recipe, run, notes)


def build_recipe(tree: dict) -> Pretraining:
    """Plain dictionaries, such as a checkpoint's, as a recipe. Raises RequestError."""
    return build(Pretraining, tree, "")


def _derive(before: Pretraining, recipe: Pretraining, asked: set[str]) -> tuple[Pretraining, tuple[str, ...]]:
    """What follows from the settings asked for, unless one names it: the length from epochs or steps, and a 2D net's
    clip and alignment terms."""
    named = {key.rpartition(".")[2] for key in asked}
    notes = []
    for key, other in (("epochs", "steps"), ("steps", "epochs")):
        if key in named and other not in named and getattr(recipe.optimise, key) > 0:
            recipe = replace(recipe, optimise=replace(recipe.optimise, **{other: 0}))
    net, alignment = recipe.model.backbone, recipe.alignment
    if net not in FRAME_NETS or before.model.backbone in FRAME_NETS:
        return recipe, ()
    if "clip" not in named:
        recipe = replace(recipe, sampling=replace(recipe.sampling, clip=FRAME_CLIP))
        notes.append(f"{net} sees single frames: sampling.clip is {FRAME_CLIP}")
    dropped = [term for term in ("st", "t") if getattr(alignment, term) and not asked & {term, f"alignment.{term}"}]
    if alignment.variant != "none" and alignment.s and dropped:
        recipe = replace(recipe, alignment=replace(alignment, **dict.fromkeys(dropped, False)))
        notes.append(f"of the alignment terms only L_s applies to single frames: alignment.{' and '.join(dropped)} off")
    return recipe, tuple(notes)


def _choice(key: str, value: str, choices: typing.Sequence[str]) -> None:
    if value not in choices:
        raise RequestError(f"{key} is {value!r}{nearest(value, choices)}")


def _within(key: str, value: float, low: float, high: float = float("inf"), open_low: bool = False) -> None:
    if not (low < value if open_low else low <= value) or not value <= high:
        above = f"above {low:g}" if open_low else f"at least {low:g}"
        raise RequestError(f"{key} is {value!r}; expected {above}{f' and at most {high:g}' if high < 1e9 else ''}")


def check(r: Pretraining) -> None:
    """Refuse values that no run can have. Raises RequestError naming the setting."""
    s, g, m, c, a, o = r.sampling, r.augment, r.model, r.contrast, r.alignment, r.optimise
    try:
        geometry = s.geometry
    except ValueError as error:
        raise RequestError(f"sampling.clip: {error}") from None
    _choice("sampling.ta_scope", s.ta_scope, ("half", "video"))
    _choice("sampling.sa_variant", s.sa_variant, ("paper", "released"))
    _choice("model.precision", m.precision, ("float32", "bf16"))
    _choice("contrast.bn", c.bn, ("auto", "shuffle", "split", "none"))
    _choice("alignment.variant", a.variant, ("none", "v1", "v2", "v3"))
    _choice("alignment.form", a.form, ("renormalised", "literal", "released"))
    _choice("alignment.layer", a.layer, ("conv", "output"))
    if isinstance(c.order, str):
        _choice("contrast.order", c.order, ("epoch",))
    else:
        _within("contrast.order", c.order, 0)
    if s.keys not in (1, 3):
        raise RequestError(f"sampling.keys is {s.keys}; expected 1 (plain MoCo) or 3 (SeCo)")
    if s.keys == 1 and (c.intra or c.order):
        raise RequestError("contrast.intra and contrast.order need three keys; set sampling.keys=3, or intra=0 and "
                           "order=0")
    if not (c.inter or c.intra or c.order):
        raise RequestError("contrast.inter, intra and order are all 0; expected at least one above 0")
    for key, value in {"sampling.size": s.size, "model.hidden": m.hidden, "model.dim": m.dim, "contrast.queue": c.queue,
                       "contrast.bn_group": c.bn_group, "optimise.batch": o.batch}.items():
        _within(key, value, 1)
    for key, value in {"model.width": m.width, "contrast.inter": c.inter, "contrast.intra": c.intra,
                       "alignment.weight": a.weight, "alignment.double_epochs": a.double_epochs,
                       "optimise.weight_decay": o.weight_decay, "optimise.warmup_epochs": o.warmup_epochs,
                       "optimise.seed": o.seed, "optimise.epochs": o.epochs, "optimise.steps": o.steps,
                       "augment.brightness": g.brightness, "augment.contrast": g.contrast,
                       "augment.saturation": g.saturation}.items():
        _within(key, value, 0)
    for key, value in {"sampling.ta_probability": s.ta_probability, "sampling.cover": s.cover,
                       "augment.jitter_p": g.jitter_p, "augment.grey_p": g.grey_p, "augment.blur_p": g.blur_p,
                       "augment.flip_p": g.flip_p, "contrast.momentum": c.momentum,
                       "optimise.momentum": o.momentum, "optimise.warmup_from": o.warmup_from}.items():
        _within(key, value, 0, 1)
    _within("augment.hue", g.hue, 0, 0.5)
    _within("contrast.temperature", c.temperature, 0, open_low=True)
    _within("optimise.lr", o.lr, 0, open_low=True)
    for key, low, high in (("sampling.area", s.area_min, s.area_max), ("sampling.aspect", s.aspect_min, s.aspect_max),
                           ("augment.blur", g.blur_min, g.blur_max)):
        if not 0 < low <= high:
            raise RequestError(f"{key}_min is {low}, {key}_max {high}; expected 0 < min <= max")
    _within("sampling.area_max", s.area_max, 0, 1)
    if bool(o.epochs) == bool(o.steps):
        raise RequestError(f"optimise.epochs is {o.epochs} and optimise.steps {o.steps}; expected exactly one above 0")
    if a.variant != "none" and not any(getattr(a, term) for term in TERMS):
        raise RequestError("alignment.st, s and t are all false; set one of them, or alignment.variant=none")
    _check_frames(m.backbone, geometry, a)


def _check_frames(net: str, geometry: ClipGeometry, a: Alignment) -> None:
    """2D nets and single frames belong together."""
    if net in FRAME_NETS and geometry.length > 1:
        raise RequestError(f"{net} sees single frames and sampling.clip is {geometry}; add --set clip={FRAME_CLIP}")
    if net not in FRAME_NETS and geometry.length == 1:
        raise RequestError(f"sampling.clip is {geometry}, single frames, for {net}; expected a 2D net "
                           f"({', '.join(FRAME_NETS)}) or --set clip=16x2")
    if net in FRAME_NETS and a.variant != "none" and (a.st or a.t):
        add = " ".join(f"--set alignment.{term}={value}" for term, value in
                       (("st", "false"), ("s", "true"), ("t", "false")) if getattr(a, term) != (value == "true"))
        raise RequestError(f"of the alignment terms only L_s applies to {net}, which sees single frames; add {add}")


def _check_run(run: RunTraining) -> None:
    _within("run.workers", run.workers, -1, 256)
    for key in ("threads", "checkpoint_steps", "checkpoint_minutes", "every_epochs", "images_every"):
        _within(f"run.{key}", getattr(run, key), 0)
    for key in ("log_every", "keep"):
        _within(f"run.{key}", getattr(run, key), 1)
