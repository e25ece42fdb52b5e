"""The sections of `evaluation:` in pipelines.yaml as frozen dataclasses, and what no run can have of them."""

from dataclasses import dataclass

from shared.cli import RequestError
from shared.recipes.settings import late


@dataclass(frozen=True)
class FeatureSettings:
    """How a video becomes a feature (docs/method.md 1.7).

    clips: spread evenly over the video; clip: LxS, empty for the checkpoint's own; size: pixels of the square view, 0
    for the checkpoint's own; short_edge: pixels to which the short side is scaled before the centre crop, 0 for the
    256 at 224 of the paper, alike at other sizes.
    """

    clips: int
    clip: str
    size: int
    short_edge: int


@dataclass(frozen=True)
class Pooled(FeatureSettings):
    """pool: `mean` of what a network says of its positions, or `moments` of it over time
    (evaluate.features.moments); grid: cells a side, each pooled by itself (evaluate.features.cells)."""

    pool: str = late("mean")
    grid: int = late(1)


@dataclass(frozen=True)
class Linear:
    """The linear classifier: `svm` (liblinear, L2-loss) or `softmax`; c: of the SVM; search: c by cross-validation on
    the training videos, instead; normalise: features of length 1."""

    classifier: str
    c: float
    search: bool
    normalise: bool


@dataclass(frozen=True)
class Softmax:
    """Softmax regression by SGD with momentum 0.9 and a cosine; batch: videos."""

    epochs: int
    batch: int
    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Retrieval:
    """block: vectors compared at a time, a side; shown: queries in the figure."""

    block: int
    shown: int


@dataclass(frozen=True)
class Finetune:
    """Supervised training of the backbone and one linear layer, and its test.

    epochs: over the training videos, one clip of each; steps: updates instead, where above 0; batch: clips a forward,
    all ranks; accumulate: forwards an update; bn_group: clips that share BN statistics; dropout: of the pooled feature;
    clip_norm: of the gradient, 0 for none; rand_n, rand_m: operations and magnitude (0 to 30) of RandAugment; flip:
    half of the clips, in training, or `auto`: where classes do not tell left from right; area_*: crop's share of the
    frame; aspect_*: width over height; precision: float32 or bf16 autocast; crops: along the longer side at the test,
    1 or 3; test_size: pixels of such a crop, 0 for the short edge.
    """

    epochs: int
    steps: int
    batch: int
    accumulate: int
    bn_group: int
    lr: float
    momentum: float
    nesterov: bool
    weight_decay: float
    clip_norm: float
    dropout: float
    rand_n: int
    rand_m: int
    flip: bool | str
    area_min: float
    area_max: float
    aspect_min: float
    aspect_max: float
    precision: str
    crops: int
    test_size: int


@dataclass(frozen=True)
class Saliency(FeatureSettings):
    """How a clip is looked at, as FeatureSettings, one in the middle unless more are asked for. of: the score whose
    gradient is taken, `similarity` of query and key, `class`, or `auto`: the class where there is a classifier;
    class_name: empty for the class that the network says; shown: clips in the figure."""

    of: str
    class_name: str
    shown: int


@dataclass(frozen=True)
class Controls:
    """What is motion and what is background, on the synthetic set. neighbours: that vote in kNN; untrained: random
    initialisations, averaged; supervised_steps: of the supervised baseline, 0 for none; truth: whether to score against
    what lies beside the videos; videos: their folder, empty for the one that the store was made from; moments: clips a
    video of the dense probe; ridge: its penalty, as a share of each channel's variance."""

    neighbours: int
    untrained: int
    supervised_steps: int
    truth: bool
    videos: str
    moments: int
    ridge: float


@dataclass(frozen=True)
class Lookalikes:
    """motion, look: columns of the dataset's annotations that name them, `class` and `group` the store's own;
    distractors: among how many a positive must be the nearest, all where there are fewer."""

    motion: str
    look: str
    distractors: int


@dataclass(frozen=True)
class Verbs:
    """classifier: `softmax` on frozen features, or `finetune`: the whole network, each event a sample; recall_events:
    of how many events at least two annotators must have named a verb for it to count in recall@5."""

    classifier: str
    recall_events: int


@dataclass(frozen=True)
class Detection:
    """classifier: `sigmoid` an action on frozen features, or `finetune`: the whole network, each person a sample; clip:
    LxS about the keyframe, empty for the checkpoint's own; short_edge: pixels of the whole frame's short side, 0 for
    the 256 at 224 of the paper, alike at other sizes; bins: of RoIAlign, a side; boxes: a CSV of person boxes to test
    on, empty for the annotated ones; box_score: the least that such a box must have; kept: answers a keyframe, 0 for
    all; iou: that a right box must have; start_s: seconds of the movie at which the videos begin, -1 to tell from
    their lengths whether they are whole (0) or cut (900); shown: keyframes in the figure."""

    classifier: str
    clip: str
    short_edge: int
    bins: int
    boxes: str
    box_score: float
    kept: int
    iou: float
    start_s: float
    shown: int


@dataclass(frozen=True)
class RunEvaluation:
    """Where and how. device: auto, cpu or cuda; batch: clips a forward; workers: threads that decode (-1: the cores, at
    most 8), in a training processes (-1: one a core that is left); threads: of torch (0: the cores over the ranks)."""

    device: str
    batch: int
    workers: int
    threads: int


@dataclass(frozen=True)
class Settings:
    """All sections of `evaluation:` in pipelines.yaml. A new protocol adds its own here and in protocol.PROTOCOLS."""

    features: Pooled
    linear: Linear
    softmax: Softmax
    retrieval: Retrieval
    lookalikes: Lookalikes
    finetune: Finetune
    verbs: Verbs
    detection: Detection
    saliency: Saliency
    controls: Controls
    run: RunEvaluation


def check(settings: Settings) -> None:
    """Refuse values that no run can have. Raises RequestError naming the setting."""
    least = {"features.clips": 1, "features.size": 0, "features.short_edge": 0, "softmax.epochs": 1, "softmax.batch": 1,
             "features.grid": 1, "softmax.weight_decay": 0,
             "retrieval.block": 1, "retrieval.shown": 0, "finetune.steps": 0,
             "finetune.epochs": 1, "finetune.batch": 2, "finetune.accumulate": 1, "finetune.bn_group": 2,
             "finetune.weight_decay": 0, "finetune.clip_norm": 0, "finetune.rand_n": 0, "finetune.rand_m": 0,
             "finetune.test_size": 0,
             "saliency.clips": 1, "saliency.size": 0,
             "saliency.short_edge": 0, "saliency.shown": 0, "controls.neighbours": 1,
             "controls.untrained": 1, "controls.supervised_steps": 0, "controls.moments": 2, "controls.ridge": 0,
             "lookalikes.distractors": 1, "run.batch": 1, "run.workers": -1, "run.threads": 0, "verbs.recall_events": 1,
             "detection.short_edge": 0, "detection.bins": 1, "detection.kept": 0,
             "detection.box_score": 0, "detection.start_s": -1, "detection.shown": 0}
    for key, low in least.items():
        section, _, name = key.partition(".")
        value = getattr(getattr(settings, section), name)
        if value < low:
            raise RequestError(f"{key} is {value}; expected at least {low}")
    for key, value in {"linear.c": settings.linear.c, "softmax.lr": settings.softmax.lr,
                       "finetune.lr": settings.finetune.lr}.items():
        if not value > 0:
            raise RequestError(f"{key} is {value}; expected above 0")
    if settings.features.pool not in ("mean", "moments"):
        raise RequestError(f"features.pool is {settings.features.pool!r}; expected mean or moments")
    if settings.verbs.classifier not in ("softmax", "finetune"):
        raise RequestError(f"verbs.classifier is {settings.verbs.classifier!r}; expected softmax or finetune")
    if settings.detection.classifier not in ("sigmoid", "finetune"):
        raise RequestError(f"detection.classifier is {settings.detection.classifier!r}; expected sigmoid or finetune")
    if not 0 < settings.detection.iou <= 1:
        raise RequestError(f"detection.iou is {settings.detection.iou}; expected above 0, at most 1")
    _check_finetune(settings.finetune)
    if settings.saliency.of not in ("auto", "similarity", "class"):
        raise RequestError(f"saliency.of is {settings.saliency.of!r}; expected auto, similarity or class")
    if settings.linear.classifier not in ("svm", "softmax"):
        raise RequestError(f"linear.classifier is {settings.linear.classifier!r}; expected svm or softmax")
    if settings.linear.search and settings.linear.classifier != "svm":
        raise RequestError("linear.search is true for the softmax classifier; it searches the C of the SVM: set "
                           "classifier=svm or search=false")
    if settings.features.size and settings.features.short_edge and \
            settings.features.short_edge < settings.features.size:
        raise RequestError(f"features.short_edge is {settings.features.short_edge} px, features.size "
                           f"{settings.features.size} px; expected a short edge that holds the centre crop")


def _check_finetune(f: Finetune) -> None:
    for key, value, fits in (("momentum", f.momentum, 0 <= f.momentum < 1), ("dropout", f.dropout, 0 <= f.dropout < 1)):
        if not fits:
            raise RequestError(f"finetune.{key} is {value}; expected at least 0 and below 1")
    if f.nesterov and not f.momentum:
        raise RequestError("finetune.nesterov is true without momentum; add --set nesterov=false")
    for key, low, high in (("area", f.area_min, f.area_max), ("aspect", f.aspect_min, f.aspect_max)):
        if not 0 < low <= high or key == "area" and high > 1:
            raise RequestError(f"finetune.{key}_min is {low}, {key}_max {high}; expected 0 < min <= max"
                               + (" <= 1" if key == "area" else ""))
    if f.rand_m > 30:
        raise RequestError(f"finetune.rand_m is {f.rand_m}; expected a magnitude of at most 30")
    if isinstance(f.flip, str) and f.flip != "auto":
        raise RequestError(f"finetune.flip is {f.flip!r}; expected auto, true or false")
    if f.precision not in ("float32", "bf16"):
        raise RequestError(f"finetune.precision is {f.precision!r}; expected float32 or bf16")
    if f.crops not in (1, 3):
        raise RequestError(f"finetune.crops is {f.crops}; expected 1 (centre) or 3 (along the longer side)")
