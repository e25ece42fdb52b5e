"""What an ablation is asked to do, checked before anything runs: rows and seeds, their recipes, splits, settings."""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, replace

from evaluate.features.extract import choose
from evaluate.features.handmade import HANDMADE
from evaluate.folds import LEAVE_OUT, Samples
from evaluate.holdout import group_split_names, relabelling
from evaluate.protocol import PROTOCOLS, find_protocol, load_settings, share_settings, used
from evaluate.recognition import check_classes
from evaluate.run import split_pairs
from evaluate.settings import FeatureSettings, Settings
from shared.cli import RequestError
from shared.nn.checkpoint import load_recipe
from shared.recipes.preprocessing import read_description
from shared.recipes.training import Training, load_training
from shared.store.index import Index
from shared.store.layout import StoreError
from shared.store.record import read_json

UNTRAINED, UNTRAINED_MACLR = "untrained", "untrained-maclr"      # the latter: MaCLR's visual pathway
SUPERVISED = "supervised"
ALWAYS = (UNTRAINED, "moco")
TABLE_1 = ("seco", "seco-ta", "seco-sa", "seco-ta-sa", "mcl-t", "mcl-s", "mcl-st", "mcl")
TABLE_2 = ("seco-ta-sa", "mcl-v1", "mcl-v2", "mcl")
ROWS = tuple(dict.fromkeys((*ALWAYS, *TABLE_1, *TABLE_2)))
BESIDE = ("moco-ta-sa", "mcl-moco", "mcl-moco-v1", "mcl-moco-smooth")      # in neither table; on request
# On request, and not with the rows above: their clips and net differ.
MACLR = ("maclr-visual", "maclr-vm", "maclr", "maclr-mm", "maclr-flow", "maclr-difference", "maclr-narrow",
         "maclr-wide", "maclr-ta-sa", "mcl-maclr")
REAL = (UNTRAINED, *HANDMADE, "moco", "moco-ta-sa", "seco-ta-sa", "mcl", "mcl-v1", "mcl-v2", UNTRAINED_MACLR,
        "maclr-visual", "maclr-vm", "maclr", "mcl-maclr", SUPERVISED)
START = UNTRAINED, UNTRAINED_MACLR               # whose net is where a training starts
BARE = *START, *HANDMADE, SUPERVISED             # that no pre-training has made
# Settings that tell the runs apart.
TELLING = ("variant", "st", "s", "t", "ta", "sa", "vm", "mv", "mm", "motion_input", "motion_width", "seed")
KNOWN = tuple(name for name, protocol in PROTOCOLS.items() if "annotations" not in protocol.takes)
SECTIONS = {field.name: field.type for field in dataclasses.fields(Settings)}


@dataclass(frozen=True)
class Family:
    """suffix: of its pipelines' names; protocols, rows: by default; known: rows that it can have; folds: whether each
    group that is left out is pre-trained without, once a row and seed."""

    suffix: str
    protocols: tuple[str, ...]
    rows: tuple[str, ...] = ROWS
    known: tuple[str, ...] = (*ROWS, *BESIDE, *MACLR)
    folds: bool = False


FAMILIES = {"tiny": Family("-tiny", ("linear", "controls", "saliency")), "full": Family("", ("linear",)),
            "real": Family("-tiny", ("linear",), REAL, tuple(dict.fromkeys((*REAL, *ROWS, *BESIDE, *MACLR))), True)}


@dataclass(frozen=True)
class Run:
    """One row with one seed; group: that is left out of its pre-training, and tested; None: none is."""

    row: str
    seed: int
    group: str | None = None

    @property
    def name(self) -> str:
        """A path under OUT's folders."""
        own = f"{self.row}-seed{self.seed}"
        return own if self.group is None else f"{folder_name(self.group)}/{own}"


def folder_name(group: str) -> str:
    """A group's name as one of a folder, which tells it from others."""
    plain = re.sub(r"[^\w-]", "_", group)
    digest = hashlib.sha256(group.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return plain if plain == group and len(plain) <= 40 else f"{plain[-30:]}-{digest}"


class Plan:
    """args: of evaluate.ablation; runs: a seed of all rows after the other; trainings: their recipes; tested: the store
    that is evaluated on; generations: of the store's and of its index; splits: by protocol, as evaluate.run writes
    them. Raises RequestError for what no run could do.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, self.family = args, FAMILIES[args.family]
        others = [row for row in args.rows if row not in (*MACLR, UNTRAINED)]
        if set(MACLR) & set(args.rows) and others and not self.family.folds:
            raise RequestError(f"--rows {','.join(args.rows)}: rows of MaCLR and {others[0]} have other clips and "
                               "nets; give each method its own --out")
        self.seeds = list(range(args.first_seed, args.first_seed + args.seeds))
        for setting in args.settings:
            name = setting.partition("=")[0].strip().rpartition(".")[2]
            if name in TELLING:
                raise RequestError(f"--set {setting}: that is what tells rows or seeds apart; choose with --rows, "
                                   "--seeds and --first-seed")
            if name == "leave_out" and self.family.folds:
                raise RequestError(f"--set {setting}: choose the groups with --leave-out group=NAME")
        self._stored, rows = {}, {}
        for row in args.rows:
            try:
                rows[row] = self._training(row)
            except RequestError as error:
                if not rows:          # wrong for every row
                    raise
                raise RequestError(f"row {row}: {error}; or leave it out, by --rows") from None
        self.tested = args.test_store or args.store
        trained, tested = (Index.load(store) for store in (args.store, self.tested))
        self.groups = self._groups(tested)
        self.trainings = {Run(row, seed, group): _told(rows[row], seed, group) for seed in self.seeds
                          for group in self.groups for row in args.rows
                          if row not in HANDMADE or seed == self.seeds[0]}
        self.runs = list(self.trainings)
        self.generations, self.videos = (trained.generation, tested.generation), (len(trained), len(tested))
        choose(trained, args.split)
        self.dataset = read_description(self.tested)["dataset"]
        self._used = {}
        for protocol in args.protocols:
            if args.leave_out and not self.family.folds and not find_protocol(protocol).grouped:
                raise RequestError(f"--leave-out group does not apply to {protocol}; choose other --protocols")
        self._asked = share_settings(args.protocols, args.evaluation)
        self._splits = {(protocol, group): self._split(tested, protocol, group) for protocol in args.protocols
                        for group in self.groups}
        for protocol in args.protocols:
            self.used(self.runs[0], protocol)
        if not any(map(self.protocols, self.runs)):
            raise RequestError(f"--rows {','.join(args.rows)}: {', '.join(args.protocols)} asks networks, and these "
                               "are made by hand; add rows, or linear to --protocols")

    def _training(self, row: str) -> Training:
        """Of a net that no pre-training has made: seco's, or the visual pathway's, whose first weights it has."""
        base = self._base(row)
        if base not in self._stored:
            self._stored[base] = self._begun(base)
        folds = ["leave_out=[]"] if self.family.folds else []          # each run's own; never what another has left out
        return load_training(self._pipeline(row), [*self.args.settings, *folds], stored=self._stored[base])

    def _base(self, row: str) -> str:
        """The pipeline whose clips and net the row has."""
        alone = not self.family.folds and set(MACLR) & set(self.args.rows)
        return "maclr-visual" if row in (*MACLR, UNTRAINED_MACLR) or alone else "seco"

    def _pipeline(self, row: str) -> str:
        return (self._base(row) if row in BARE else row) + self.family.suffix

    def _begun(self, base: str) -> tuple[str, dict] | None:
        """Pipeline and recipe of a training of this base that OUT holds, finished or not, which all others follow: the
        rows of one table differ in nothing but what tells them apart."""
        folder, deep = self.args.out / "runs", "*/" if self.family.folds else ""
        for path in sorted(folder.glob(f"{deep}*-seed*.json")):
            row = path.stem.rpartition("-seed")[0]
            with contextlib.suppress(StoreError, KeyError):     # a damaged record: its run says what is wrong
                if self._base(row) == base:
                    return self._pipeline(row), read_json(path)["identity"]["recipe"]
        begun = (path for path in sorted(folder.glob(f"{deep}*/last.pt"))
                 if self._base(path.parent.name.rpartition("-seed")[0]) == base)
        last = next(begun, None)
        return load_recipe(last) if last else None

    def _groups(self, index: Index) -> list[str | None]:
        """The groups that are left out in turn; one None where a run leaves none out. Raises RequestError where one
        could not be tested."""
        args, labelled = self.args, index.label >= 0
        if not self.family.folds:
            return [None]
        if not args.leave_out and not args.groups or args.train_split or args.test_split:
            raise RequestError(f"--family {args.family} pre-trains once for every group that is left out; say "
                               "--leave-out group, or --leave-out group=NAME, and no --train-split nor --test-split")
        groups = args.groups or sorted({name for name, asked in zip(index.group, labelled) if asked and name})
        if not groups:
            raise RequestError(f"--leave-out group: no labelled video of {index.store} has a group; give every one a "
                               f"group: {relabelling(index.store)}")
        for name in groups:
            train, test = (Samples.of_split(index, split) for split in group_split_names(name))
            classes = read_description(index.store)["classes"]
            check_classes(index.label[train.positions], index.label[test.positions], classes,
                          f"the groups other than {name!r}", f"group {name!r}")
        return groups

    def _split(self, index: Index, protocol: str, group: str | None) -> dict:
        asked = vars(self.args) | ({} if group is None else {"leave_out": None, "groups": [group]})
        pairs = split_pairs(index, argparse.Namespace(**asked, protocol=protocol, holdout=None), [LEAVE_OUT])
        return {"train": list(dict.fromkeys(train for train, _ in pairs)),
                "test": list(dict.fromkeys(test for _, test in pairs)), "leave_out": asked["leave_out"]}

    @property
    def all_splits(self) -> dict:
        """By protocol, and by group where each is left out in turn."""
        return {protocol if group is None else f"{protocol} of group {group}": splits
                for (protocol, group), splits in self._splits.items()}

    def splits(self, protocol: str, run: Run) -> dict:
        """The splits that the run is evaluated on, as evaluate.run writes them."""
        return self._splits[protocol, run.group]

    def protocols(self, run: Run) -> list[str]:
        """Those that can ask the row: a baseline made by hand has no positions and nothing to train."""
        return [one for one in self.args.protocols if run.row not in HANDMADE or not find_protocol(one).networks]

    def evaluation(self, run: Run, protocol: str) -> list[str]:
        """Settings of the protocol; the view is the training's, which an untrained net cannot name; a hand-made
        baseline of --family real has its own."""
        if run.row in HANDMADE:
            return list(self._asked[protocol])
        sampling = self.trainings[run].recipe.sampling
        view = [f"{section}.{key}={value}" for section in find_protocol(protocol).sections
                if issubclass(SECTIONS[section], FeatureSettings)
                for key, value in (("clip", sampling.clip), ("size", sampling.size))]
        return [*view, *self._asked[protocol]]

    def used(self, run: Run, protocol: str) -> dict:
        """The protocol's settings as evaluate.run writes them, but for the view."""
        asked = tuple(self.evaluation(run, protocol))
        if (protocol, asked) not in self._used:
            self._used[protocol, asked] = json.loads(json.dumps(used(protocol, load_settings(protocol, asked))))
        return self._used[protocol, asked]

    def cost(self, run: Run) -> float:
        """About how much work a run is, in forwards of a clip; a backward counts two."""
        training, (trained, tested) = self.trainings[run], self.videos
        used = [self.used(run, protocol) for protocol in self.protocols(run)]
        evaluation = tested * sum(values.get("clips", 0) for sections in used for values in sections.values())
        optimise = training.recipe.optimise
        queries = optimise.steps * optimise.batch or optimise.epochs * trained
        keys = training.recipe.sampling.keys
        views = 0 if run.row in (*START, *HANDMADE) else 3 if run.row == SUPERVISED else 3 + keys
        return evaluation + queries * views


def _told(training: Training, seed: int, group: str | None) -> Training:
    """With the seed and the group that tell the run from others."""
    recipe = replace(training.recipe, optimise=replace(training.recipe.optimise, seed=seed))
    if group is not None:
        recipe = replace(recipe, sampling=replace(recipe.sampling, leave_out=(group,)))
    return replace(training, recipe=recipe)
