"""What a protocol is given and what it hands back. A protocol is a module with `run(request) -> Result | None`.

One request is one run: one checkpoint, one pair of splits, one seed. evaluate.run makes the requests, merges what comes
back over splits and seeds, and writes the report. Every rank of a torchrun calls `run`; only rank 0 returns a Result.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shared.cli import RequestError, nearest
from shared.settings import apply_settings, build, load_document

if TYPE_CHECKING:
    from evaluate.cache import FeatureCache
    from evaluate.encoders import Encoder
    from shared.nn.distributed import World
    from shared.store.place import Place


@dataclass(frozen=True)
class FeatureSettings:
    """How a video becomes a feature (METHOD 1.7).

    clips: spread evenly over the video; clip: LxS, empty for the checkpoint's own; size: pixels of the square view, 0
    for the checkpoint's own; short_edge: pixels to which the short side is scaled before the centre crop, 0 for the
    256 at 224 of the paper, alike at other sizes.
    """

    clips: int
    clip: str
    size: int
    short_edge: int


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
class RunEvaluation:
    """Where and how. device: auto, cpu or cuda; batch: clips a forward; workers: threads that decode (-1: the cores, at
    most 8); threads: of torch (0: the cores over the ranks)."""

    device: str
    batch: int
    workers: int
    threads: int


@dataclass(frozen=True)
class Settings:
    """All sections of `evaluation:` in pipelines.yaml. A new protocol adds its own here and in PROTOCOLS."""

    features: FeatureSettings
    linear: Linear
    softmax: Softmax
    retrieval: Retrieval
    run: RunEvaluation


@dataclass(frozen=True)
class Protocol:
    """module: with `run`; sections: of the settings that it reads, `run` beside; takes: flags of evaluate.run beyond
    those that all take; grouped: whether --leave-out group applies."""

    module: str
    sections: tuple[str, ...]
    takes: tuple[str, ...] = ()
    grouped: bool = False


PROTOCOLS = {
    "linear": Protocol("evaluate.linear", ("features", "linear", "softmax"), grouped=True),
    "retrieval": Protocol("evaluate.retrieval", ("features", "retrieval"), grouped=True),
}


@dataclass(frozen=True)
class Request:
    """One run of a protocol.

    encoder: the checkpoint, opened; store: its folder or URL; train_split, test_split: names; with `leave_out` the test
    videos are one group after the other of train_split (None: all videos) and test_split is None; out: where its
    figures and whatever it keeps go, a folder that exists; against: another checkpoint, for protocols that take one.
    """

    protocol: str
    encoder: "Encoder"
    store: "Place"
    train_split: str | None
    test_split: str | None
    leave_out: bool
    seed: int
    settings: Settings
    cache: "FeatureCache"
    out: Path
    world: "World"
    against: str | None = None


@dataclass(frozen=True)
class Figure:
    """A PNG and its caption; wide: across the whole report, else beside another."""

    path: Path
    caption: str
    wide: bool = True


@dataclass(frozen=True)
class Table:
    """title, column names, and rows of text and numbers (percent with one decimal; None is shown as a dash)."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]


@dataclass(frozen=True)
class Result:
    """What a run found.

    metrics: name -> percent, those of one protocol always under the same names; chance: the same names where chance is
    known, percent; trials: of metrics that are shares of independent trials, how many, for their interval; counts:
    videos, classes, clips, ...; notes: what the reader must know, a sentence each.
    """

    metrics: dict[str, float]
    chance: dict[str, float] = field(default_factory=dict)
    trials: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int | float] = field(default_factory=dict)
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


def find_protocol(name: str) -> Protocol:
    """Raises RequestError for an unknown one."""
    if name not in PROTOCOLS:
        raise RequestError(f"--protocol {name!r} is unknown{nearest(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def load_settings(protocol: str, asked: Sequence[str], path: Path | None = None) -> Settings:
    """`evaluation:` of pipelines.yaml with `key=value` laid over it; only the protocol's own sections can be set.

    Raises RequestError for an unknown key, type or value, naming the nearest right one.
    """
    types = {part.name: part.type for part in dataclasses.fields(Settings)}
    sections = (*find_protocol(protocol).sections, "run")
    tree = apply_settings(load_document(path)["evaluation"], {name: types[name] for name in sections}, asked)
    settings = build(Settings, tree, "evaluation")
    check(settings)
    return settings


def check(settings: Settings) -> None:
    """Refuse values that no run can have. Raises RequestError naming the setting."""
    least = {"features.clips": 1, "features.size": 0, "features.short_edge": 0, "softmax.epochs": 1, "softmax.batch": 1,
             "softmax.weight_decay": 0, "retrieval.block": 1, "retrieval.shown": 0, "run.batch": 1, "run.workers": -1,
             "run.threads": 0}
    for key, low in least.items():
        section, _, name = key.partition(".")
        value = getattr(getattr(settings, section), name)
        if value < low:
            raise RequestError(f"{key} is {value}; expected at least {low}")
    for key, value in {"linear.c": settings.linear.c, "softmax.lr": settings.softmax.lr}.items():
        if not value > 0:
            raise RequestError(f"{key} is {value}; expected above 0")
    if settings.linear.classifier not in ("svm", "softmax"):
        raise RequestError(f"linear.classifier is {settings.linear.classifier!r}; expected svm or softmax")
    if settings.linear.search and settings.linear.classifier != "svm":
        raise RequestError("linear.search is true for the softmax classifier; it searches the C of the SVM: set "
                           "classifier=svm or search=false")
    if settings.features.size and settings.features.short_edge and \
            settings.features.short_edge < settings.features.size:
        raise RequestError(f"features.short_edge is {settings.features.short_edge} px, features.size "
                           f"{settings.features.size} px; expected a short edge that holds the centre crop")


def used(protocol: str, settings: Settings) -> dict[str, dict]:
    """The sections that the protocol reads, as plain dictionaries, for the report."""
    sections = find_protocol(protocol).sections
    if settings.linear.classifier != "softmax":
        sections = [name for name in sections if name != "softmax"]
    return {name: dataclasses.asdict(getattr(settings, name)) for name in sections}
