"""What a protocol is given and what it hands back. A protocol is a module with `run(request) -> Result | None`.

One request is one run: one checkpoint, one pair of splits, one seed. evaluate.run makes the requests, merges what comes
back over splits and seeds, and writes the report. Every rank of a torchrun calls `run`; only rank 0 returns a Result.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from evaluate.features.cache import FeatureCache
from evaluate.features.encoders import Encoder
from evaluate.settings import Settings, check
from shared.cli import RequestError, nearest
from shared.nn.distributed import World
from shared.recipes.settings import apply_settings, build, load_document, recorded
from shared.store.place import Place


@dataclass(frozen=True)
class Protocol:
    """module: with `run`; sections: of the settings that it reads, `run` beside; takes: flags of evaluate.run beyond
    those that all take, annotations must be given; optional: that may be given; grouped: whether --leave-out group
    applies; tests: what its test split is usually called; learns: whether it has training videos, else it asks all
    videos where no test split is named; networks: whether it asks networks alone, and no baseline made by hand."""

    module: str
    sections: tuple[str, ...]
    takes: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    grouped: bool = False
    tests: tuple[str, ...] = ("test", "test1", "val")
    learns: bool = True
    networks: bool = False

    @property
    def may(self) -> tuple[str, ...]:
        """All flags of its own."""
        return *self.takes, *self.optional


PROTOCOLS = {
    "linear": Protocol("evaluate.frozen.linear", ("features", "linear", "softmax"),
                       ("beside", "twins", "samples"), grouped=True),
    "retrieval": Protocol("evaluate.frozen.retrieval", ("features", "retrieval"),
                          ("beside", "twins", "samples"), grouped=True),
    "verbs": Protocol("evaluate.frozen.verbs", ("features", "verbs", "softmax", "finetune"), ("annotations",),
                      tests=("val",)),
    "detection": Protocol("evaluate.persons.detection", ("detection", "softmax", "finetune"), ("annotations",),
                          tests=("val",)),
    "finetune": Protocol("evaluate.finetuned.finetune", ("features", "finetune"), ("samples",), networks=True),
    "saliency": Protocol("evaluate.motion.saliency", ("saliency",), ("against",), grouped=True,
                         networks=True),
    "controls": Protocol("evaluate.motion.controls", ("features", "linear", "softmax", "controls"), networks=True),
    "background": Protocol("evaluate.motion.background", ("features", "linear", "softmax", "retrieval"), grouped=True),
    "lookalikes": Protocol("evaluate.motion.lookalikes", ("features", "lookalikes"), optional=("annotations",),
                           learns=False),
}


@dataclass(frozen=True)
class Request:
    """One run of a protocol.

    encoder: the checkpoint, opened; store: its folder or URL; train_split, test_split: names; with `leave_out` the test
    videos are one group after the other of train_split (None: all videos) and test_split is None; out: where its
    figures and whatever it keeps go, a folder that exists; against: another checkpoint, for protocols that take one;
    annotations: the official files' folder, or a CSV, alike.
    """

    protocol: str
    encoder: Encoder
    store: Place
    train_split: str | None
    test_split: str | None
    leave_out: bool
    seed: int
    settings: Settings
    cache: FeatureCache
    out: Path
    world: World
    against: str | None = None
    annotations: Path | None = None


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
    known, percent; beside: what others score, by their names, such as random initialisation; trials: of metrics that
    are shares of independent trials, how many, for their interval; tested, right: ids of the test videos, and of
    metrics that are shares of these which of them were right (n,) bool, for what is paired by video; counts: videos,
    classes, clips, ...; notes: what the reader must know, a sentence each.
    """

    metrics: dict[str, float]
    chance: dict[str, float] = field(default_factory=dict)
    beside: dict[str, dict[str, float]] = field(default_factory=dict)
    trials: dict[str, int] = field(default_factory=dict)
    tested: Sequence[str] = ()
    right: dict[str, np.ndarray] = field(default_factory=dict)
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
    for key in (one.partition("=")[0].strip() for one in asked):
        others = [name for name in PROTOCOLS if _has(name, key)]
        if others and protocol not in others:
            raise RequestError(f"setting {key}: {protocol} does not read it, {', '.join(others)} would; leave it out")
    return load_sections(find_protocol(protocol).sections, asked, path)


def load_sections(sections: Sequence[str], asked: Sequence[str], path: Path | None = None) -> Settings:
    """`evaluation:` of pipelines.yaml with `key=value` laid over these sections and `run`. Raises RequestError."""
    types = {part.name: part.type for part in dataclasses.fields(Settings)}
    known = {name: types[name] for name in (*sections, "run")}
    tree = apply_settings(load_document(path)["evaluation"], known, asked)
    settings = build(Settings, tree, "evaluation")
    check(settings)
    return settings


def share_settings(protocols: Sequence[str], asked: Sequence[str]) -> dict[str, list[str]]:
    """Each `key=value` for those of several protocols that have the setting. Raises RequestError where none has it."""
    shared = {protocol: [one for one in asked if _has(protocol, one.partition("=")[0].strip())]
              for protocol in protocols}
    for one in asked:
        if not any(one in some for some in shared.values()):
            load_settings(protocols[0], [one])       # its complaint names the nearest
    return shared


def _has(protocol: str, key: str) -> bool:
    """Whether a protocol reads the setting `key`, dotted or its last part."""
    types = {part.name: part.type for part in dataclasses.fields(Settings)}
    names = [(section, part.name) for section in (*find_protocol(protocol).sections, "run")
             for part in dataclasses.fields(types[section])]
    return any(key in (name, f"{section}.{name}") for section, name in names)


def used(protocol: str, settings: Settings) -> dict[str, dict]:
    """The sections that the protocol reads, as plain dictionaries, for the report; as `recorded` leaves them, so that
    results from before a setting compare with those that have it as it was."""
    sections, unused = find_protocol(protocol).sections, set()
    if "linear" in sections and settings.linear.classifier != "softmax":
        unused.add("softmax")
    for name in {"verbs", "detection"}.intersection(sections):
        unused.add("softmax" if getattr(settings, name).classifier == "finetune" else "finetune")
    sections = [name for name in sections if name not in unused]
    return recorded(Settings, {name: dataclasses.asdict(getattr(settings, name)) for name in sections})
