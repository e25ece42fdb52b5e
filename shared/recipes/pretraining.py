"""Everything that a pre-training run computes, and how it runs, as frozen dataclasses.

`Pretraining` is what is computed: it goes into the checkpoint, and a run is resumed only with the same one.
`RunTraining` (settings under `run.`) says where and how, and may change between a run and its resumption.
Terms as in docs/method.md 1.2 (sampling, augmentation), 1.3 (contrast), 1.4 (alignment), 1.6 (optimisation), 2 (MaCLR).
"""

import dataclasses
import json
from dataclasses import dataclass

from shared.clips.index import ClipGeometry
from shared.recipes.settings import build, late, recorded

FRAME_NETS = ("r2d_50", "i2d")     # 2D nets: they see single frames, so only L_s applies (docs/method.md 1.4)
FRAME_CLIP = "1x1"


@dataclass(frozen=True)
class Sampling:
    """Which clips and crops a sample is made of (docs/method.md 1.2, 1.3).

    clip: LxS; size: pixels of the square view; ta: motion-focused clips, with probability ta_probability, the median
    taken over the clips of a `half` of the video or all of the `video`; sa: motion-focused crops, as the `paper` or as
    the `released` code; area_*: share of the frame; aspect_*: width over height; cover: share of the hot pixels;
    keys: 1 (plain MoCo) or 3 (SeCo); leave_out: groups whose videos are not trained on, so that a test may ask them.
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
    leave_out: tuple[str, ...] = late(())

    @property
    def geometry(self) -> ClipGeometry:
        return ClipGeometry.parse(self.clip)


@dataclass(frozen=True)
class Augment:
    """Colour jitter strengths and the probabilities of each step (docs/method.md 1.2.4); blur_*: sigma in pixels of the
    view. One draw a clip, the same in all its frames."""

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
    """Backbone by name, its width (0: the name's own), the heads' hidden width and output, float32 or bf16 autocast.

    bn_eps: epsilon of every BN, `auto` the backbone's own (docs/method.md 1.5); stem_tap: the tap in time of the stem
    that takes the 2D kernel of --init; init_head: the inter head starts from that of the file too.
    """

    backbone: str
    width: int
    hidden: int
    dim: int
    precision: str
    bn_eps: float | str = late(1e-5)
    stem_tap: int = late(2)
    init_head: bool = late(False)


@dataclass(frozen=True)
class Contrast:
    """The contrastive learner (docs/method.md 1.3).

    inter, intra: weights; order: weight, or `epoch` for epoch/epochs; queue: keys; momentum: of the EMA;
    bn: `auto` (shuffling BN over ranks, split BN on one), `shuffle`, `split` or `none`; bn_group: clips a split group;
    order_input: of the order classifier, three embeddings side by side, `plain` or made one of length 1 (`unit`).
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
    order_input: str = late("plain")


@dataclass(frozen=True)
class Alignment:
    """The motion alignment loss (docs/method.md 1.4).

    variant: none, v1, v2 or v3 (Eqs. 4-6); st, s, t: the terms of Eq. 7; form: renormalised, literal or released;
    weights_per_step: w_c a time step (released code); double_epochs: epochs at twice the weight (released code: 5);
    layer: `conv` (last convolution, before its BN) or `output` (the block's output, where v3 degenerates);
    softmax_scale: what the target is multiplied by, where `form` is released, before the softmax over its time steps;
    smooth: for v2 and v3, 0 or the beta of a softplus that stands in the last ReLU's place where g is taken (ours).
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
    softmax_scale: float = late(1.0)
    smooth: float = late(0.0)


@dataclass(frozen=True)
class Maclr:
    """MaCLR's motion pathway, its terms and its positives (docs/method.md 2: our reconstruction; docs/maclr.md).

    motion_input: `edges`, `flow` or `difference` (of neighbouring RGB frames), of the same clip, crop and flip as the
    visual input; motion_clip: LxS, as many frames L*S as the visual clip; motion_backbone, motion_width: its network,
    as in `Model`; edges_max (px/frame per px) and flow_max (px/frame, in pixels of the view): what the input is clamped
    to and then divided by; vm, mv, mm: the terms beside L_vv, whose weight is contrast.inter; cross_weight: of L_vm and
    L_mv; pairs: whether the positive of L_vm and L_mv is the `same` clip or the `shifted` one, as in L_vv and L_mm;
    shared_heads: one head a pathway for all terms; shift_*_s: seconds between the starts of query and key.
    """

    motion_input: str
    motion_clip: str
    motion_backbone: str
    motion_width: int
    edges_max: float
    flow_max: float
    vm: bool
    mv: bool
    mm: bool
    cross_weight: float
    pairs: str
    shared_heads: bool
    shift_min_s: float
    shift_max_s: float

    @property
    def reads(self) -> bool:
        """Whether any term asks for the motion pathway."""
        return self.mm or self.cross_weight > 0 and (self.vm or self.mv)

    @property
    def geometry(self) -> ClipGeometry:
        return ClipGeometry.parse(self.motion_clip)


@dataclass(frozen=True)
class Optimise:
    """SGD and its schedule (docs/method.md 1.6).

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
    """Everything that decides which numbers a run computes; maclr: None for MCL and its bases."""

    sampling: Sampling
    augment: Augment
    model: Model
    contrast: Contrast
    alignment: Alignment
    optimise: Optimise
    maclr: Maclr | None = None

    def to_dict(self) -> dict:
        tree = json.loads(json.dumps(dataclasses.asdict(self)))
        return recorded(Pretraining, {section: values for section, values in tree.items() if values is not None})


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


def build_recipe(tree: dict) -> Pretraining:
    """Plain dictionaries, such as a checkpoint's, as a recipe. Raises RequestError."""
    return build(Pretraining, tree, "")
