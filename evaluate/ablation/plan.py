"""What an ablation is asked to do, checked before anything runs: rows and seeds, their recipes, splits, settings."""

import argparse
import contextlib
import dataclasses
import json
from dataclasses import dataclass, replace

from evaluate.features.extract import choose
from evaluate.protocol import PROTOCOLS, find_protocol, load_settings, share_settings, used
from evaluate.run import split_pairs
from evaluate.settings import FeatureSettings, Settings
from shared.cli import RequestError
from shared.nn.checkpoint import load_recipe
from shared.recipes.preprocessing import read_description
from shared.recipes.training import Training, load_training
from shared.store.index import Index
from shared.store.layout import StoreError
from shared.store.record import read_json

UNTRAINED = "untrained"
ALWAYS = (UNTRAINED, "moco")
TABLE_1 = ("seco", "seco-ta", "seco-sa", "seco-ta-sa", "mcl-t", "mcl-s", "mcl-st", "mcl")
TABLE_2 = ("seco-ta-sa", "mcl-v1", "mcl-v2", "mcl")
ROWS = tuple(dict.fromkeys((*ALWAYS, *TABLE_1, *TABLE_2)))
BESIDE = ("moco-ta-sa", "mcl-moco")              # in neither table; on request
# On request, and not with the rows above: their clips and net differ.
MACLR = ("maclr-visual", "maclr-vm", "maclr", "maclr-mm", "maclr-flow", "maclr-difference", "maclr-narrow",
         "maclr-wide", "maclr-ta-sa")
# Settings that tell the runs apart.
TELLING = ("variant", "st", "s", "t", "ta", "sa", "vm", "mv", "mm", "motion_input", "motion_width", "seed")
KNOWN = tuple(name for name, protocol in PROTOCOLS.items() if "annotations" not in protocol.takes)
SECTIONS = {field.name: field.type for field in dataclasses.fields(Settings)}


@dataclass(frozen=True)
class Family:
    """suffix: of its pipelines' names; protocols: by default."""

    suffix: str
    protocols: tuple[str, ...]


FAMILIES = {"tiny": Family("-tiny", ("linear", "controls", "saliency")), "full": Family("", ("linear",))}


@dataclass(frozen=True)
class Run:
    """One row with one seed."""

    row: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.row}-seed{self.seed}"


class Plan:
    """args: of evaluate.ablation; runs: a seed of all rows after the other; trainings: their recipes; tested: the store
    that is evaluated on; generations: of the store's and of its index; splits: by protocol, as evaluate.run writes
    them. Raises RequestError for what no run could do.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        others = [row for row in args.rows if row not in (*MACLR, UNTRAINED)]
        self.base = "maclr-visual" if set(MACLR) & set(args.rows) else "seco"
        if self.base != "seco" and others:
            raise RequestError(f"--rows {','.join(args.rows)}: rows of MaCLR and {others[0]} have other clips and "
                               "nets; give each method its own --out")
        self.seeds = list(range(args.first_seed, args.first_seed + args.seeds))
        for setting in args.settings:
            if setting.partition("=")[0].strip().rpartition(".")[2] in TELLING:
                raise RequestError(f"--set {setting}: that is what tells rows or seeds apart; choose with --rows, "
                                   "--seeds and --first-seed")
        self._stored, rows = self._begun(), {}
        for row in args.rows:
            try:
                rows[row] = self._training(row)
            except RequestError as error:
                if not rows:          # wrong for every row
                    raise
                raise RequestError(f"row {row}: {error}; or leave it out, by --rows") from None
        self.trainings = {Run(row, seed): _seeded(rows[row], seed) for seed in self.seeds for row in args.rows}
        self.runs = list(self.trainings)
        self.tested = args.test_store or args.store
        trained, tested = (Index.load(store) for store in (args.store, self.tested))
        self.generations, self.videos = (trained.generation, tested.generation), (len(trained), len(tested))
        choose(trained, args.split)
        self.dataset = read_description(self.tested)["dataset"]
        self._used = {}
        for protocol in args.protocols:
            if args.leave_out and not find_protocol(protocol).grouped:
                raise RequestError(f"--leave-out group does not apply to {protocol}; choose other --protocols")
        self._asked = share_settings(args.protocols, args.evaluation)
        self.splits = {protocol: self._splits(tested, protocol) for protocol in args.protocols}
        for protocol in args.protocols:
            self.used(self.runs[0], protocol)

    def _training(self, row: str) -> Training:
        """Of the untrained net: seco's, or the visual pathway's, whose first weights it has."""
        return load_training(self._pipeline(row), self.args.settings, stored=self._stored)

    def _pipeline(self, row: str) -> str:
        return (self.base if row == UNTRAINED else row) + FAMILIES[self.args.family].suffix

    def _begun(self) -> tuple[str, dict] | None:
        """Pipeline and recipe of a training that OUT holds, finished or not, which all others follow: the rows of one
        table differ in nothing but what tells them apart."""
        folder = self.args.out / "runs"
        for path in sorted(folder.glob("*-seed*.json")):
            with contextlib.suppress(StoreError, KeyError):     # a damaged record: its run says what is wrong
                return self._pipeline(path.stem.rpartition("-seed")[0]), read_json(path)["identity"]["recipe"]
        last = min(folder.glob("*/last.pt"), default=None)
        return load_recipe(last) if last else None

    def _splits(self, index: Index, protocol: str) -> dict:
        pairs = split_pairs(index, argparse.Namespace(**vars(self.args), protocol=protocol, holdout=None))
        return {"train": list(dict.fromkeys(train for train, _ in pairs)),
                "test": list(dict.fromkeys(test for _, test in pairs)), "leave_out": self.args.leave_out}

    def evaluation(self, run: Run, protocol: str) -> list[str]:
        """Settings of the protocol; the view is the training's, which an untrained net cannot name."""
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
        used = [self.used(run, protocol) for protocol in self.args.protocols]
        evaluation = tested * sum(values.get("clips", 0) for sections in used for values in sections.values())
        optimise = training.recipe.optimise
        queries = optimise.steps * optimise.batch or optimise.epochs * trained
        return evaluation + (0 if run.row == UNTRAINED else queries * (3 + training.recipe.sampling.keys))


def _seeded(training: Training, seed: int) -> Training:
    recipe = training.recipe
    return replace(training, recipe=replace(recipe, optimise=replace(recipe.optimise, seed=seed)))
