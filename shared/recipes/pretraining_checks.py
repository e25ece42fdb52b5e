"""Values of a pre-training recipe that no run can have, refused by name before anything is read."""

import math
from collections.abc import Sequence

from shared.cli import RequestError, nearest, plural
from shared.clips.index import ClipGeometry
from shared.recipes.pretraining import FRAME_CLIP, FRAME_NETS, Alignment, Maclr, Pretraining, RunTraining

TERMS = ("st", "s", "t")


def _choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise RequestError(f"{key} is {value!r}{nearest(value, choices)}")


def _within(key: str, value: float, low: float, high: float = float("inf"), open_low: bool = False) -> None:
    if not (low < value if open_low else low <= value) or not value <= high or math.isinf(value):
        above = f"above {low:g}" if open_low else f"at least {low:g}"
        below = f" and at most {high:g}" if high < math.inf else " and finite" if math.isinf(value) else ""
        raise RequestError(f"{key} is {value!r}; expected {above}{below}")


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
    _choice("contrast.order_input", c.order_input, ("plain", "unit"))
    _choice("alignment.variant", a.variant, ("none", "v1", "v2", "v3"))
    _choice("alignment.form", a.form, ("renormalised", "literal", "released"))
    _choice("alignment.layer", a.layer, ("conv", "output"))
    if isinstance(m.bn_eps, str):
        _choice("model.bn_eps", m.bn_eps, ("auto",))
    else:
        _within("model.bn_eps", m.bn_eps, 0, 0.1, open_low=True)
    _within("model.stem_tap", m.stem_tap, 0, 3)                  # of the 4 of R(2+1)D-50's stem
    if isinstance(c.order, str):
        _choice("contrast.order", c.order, ("epoch",))
    else:
        _within("contrast.order", c.order, 0)
    if s.keys not in (1, 3):
        raise RequestError(f"sampling.keys is {s.keys}; expected 1 (plain MoCo) or 3 (SeCo)")
    if s.keys == 1 and (c.intra or c.order):
        raise RequestError("contrast.intra and contrast.order need three keys; set sampling.keys=3, or intra=0 and "
                           "order=0")
    if r.maclr:
        _check_maclr(r, r.maclr)
    elif not (c.inter or c.intra or c.order):
        raise RequestError("contrast.inter, intra and order are all 0; expected at least one above 0")
    for key, value in {"sampling.size": s.size, "model.hidden": m.hidden, "model.dim": m.dim, "contrast.queue": c.queue,
                       "contrast.bn_group": c.bn_group, "optimise.batch": o.batch}.items():
        _within(key, value, 1)
    for key, value in {"model.width": m.width, "contrast.inter": c.inter, "contrast.intra": c.intra,
                       "alignment.weight": a.weight, "alignment.double_epochs": a.double_epochs,
                       "alignment.smooth": a.smooth,
                       "optimise.weight_decay": o.weight_decay, "optimise.warmup_epochs": o.warmup_epochs,
                       "optimise.epochs": o.epochs, "optimise.steps": o.steps,
                       "augment.brightness": g.brightness, "augment.contrast": g.contrast,
                       "augment.saturation": g.saturation}.items():
        _within(key, value, 0)
    for key, value in {"sampling.ta_probability": s.ta_probability, "sampling.cover": s.cover,
                       "augment.jitter_p": g.jitter_p, "augment.grey_p": g.grey_p, "augment.blur_p": g.blur_p,
                       "augment.flip_p": g.flip_p, "contrast.momentum": c.momentum,
                       "optimise.momentum": o.momentum, "optimise.warmup_from": o.warmup_from}.items():
        _within(key, value, 0, 1)
    _within("augment.hue", g.hue, 0, 0.5)
    _within("alignment.softmax_scale", a.softmax_scale, 0, open_low=True)
    _within("contrast.temperature", c.temperature, 0, open_low=True)
    _within("optimise.lr", o.lr, 0, open_low=True)
    _within("optimise.seed", o.seed, 0, 2**63 - 2)      # a second queue is seeded with the next one
    for key, low, high in (("sampling.area", s.area_min, s.area_max), ("sampling.aspect", s.aspect_min, s.aspect_max),
                           ("augment.blur", g.blur_min, g.blur_max)):
        if not 0 < low <= high < math.inf:
            raise RequestError(f"{key}_min is {low}, {key}_max {high}; expected 0 < min <= max")
    _within("sampling.area_max", s.area_max, 0, 1)
    if bool(o.epochs) == bool(o.steps):
        raise RequestError(f"optimise.epochs is {o.epochs} and optimise.steps {o.steps}; expected exactly one above 0")
    if a.variant != "none" and not any(getattr(a, term) for term in TERMS):
        raise RequestError("alignment.st, s and t are all false; set one of them, or alignment.variant=none")
    if a.smooth and (a.variant not in ("v2", "v3") or a.layer != "conv"):
        raise RequestError(f"alignment.smooth is {a.smooth:g}, with variant {a.variant} and layer {a.layer}; it changes"
                           " the gradient that v2 and v3 take at layer conv: set smooth=0, or variant=v3, layer=conv")
    _check_frames(m.backbone, geometry, a)


def _check_maclr(r: Pretraining, m: Maclr) -> None:
    """What the second pathway adds, and what does not go with it."""
    _choice("maclr.motion_input", m.motion_input, ("edges", "flow", "difference"))
    _choice("maclr.pairs", m.pairs, ("same", "shifted"))
    try:
        geometry = m.geometry
    except ValueError as error:
        raise RequestError(f"maclr.motion_clip: {error}") from None
    for key in ("motion_width", "cross_weight", "shift_min_s"):
        _within(f"maclr.{key}", getattr(m, key), 0)
    for key in ("edges_max", "flow_max"):
        _within(f"maclr.{key}", getattr(m, key), 0, open_low=True)
    _within("maclr.shift_max_s", m.shift_max_s, m.shift_min_s)
    visual = r.sampling.geometry
    if m.reads and geometry.length * geometry.stride != visual.length * visual.stride:
        spans = [plural(clip.length * clip.stride, "frame") for clip in (geometry, visual)]
        stride, rest = divmod(visual.length * visual.stride, geometry.length)
        fits = f"{geometry.length}x{stride}" if stride and not rest else f"{visual.length * visual.stride}x1"
        raise RequestError(f"maclr.motion_clip is {geometry}, {spans[0]}, and sampling.clip {visual}, {spans[1]}; "
                           f"expected the same time: add --set motion_clip={fits}, or set both")
    if r.sampling.keys != 1:
        raise RequestError(f"sampling.keys is {r.sampling.keys}; MaCLR takes one key, shifted in time: "
                           "add --set keys=1")
    if not (r.contrast.inter or m.vm and m.cross_weight):
        raise RequestError("contrast.inter is 0 and L_vm off, so that nothing would train the visual pathway; set "
                           "inter, or vm=true with a cross_weight above 0")


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


def check_run(run: RunTraining) -> None:
    """Likewise for where and how a run goes."""
    _within("run.workers", run.workers, -1, 256)
    _within("run.threads", run.threads, 0, 1024)        # torch ends the process where it cannot start them
    for key in ("checkpoint_steps", "checkpoint_minutes", "every_epochs", "images_every"):
        _within(f"run.{key}", getattr(run, key), 0)
    for key in ("log_every", "keep"):
        _within(f"run.{key}", getattr(run, key), 1)
