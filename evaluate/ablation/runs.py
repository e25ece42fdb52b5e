"""The runs of an ablation: what of them is finished, the commands that finish them, what they found."""

import dataclasses
import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from evaluate.ablation.children import Command, Ended, Work
from evaluate.ablation.plan import START, SUPERVISED, Plan, Run
from evaluate.export import write_export
from evaluate.features.encoders import RANDOM
from evaluate.features.handmade import HANDMADE
from evaluate.finetuned.job import FINETUNED
from evaluate.motion.controls import GROUP, PLAIN
from evaluate.report import results
from shared.cli import RequestError, flock
from shared.nn.backbones import build_backbone, own_eps
from shared.nn.inflate import inflate
from shared.recipes.settings import differences
from shared.store.index import contents
from shared.store.layout import StoreError
from shared.store.record import read_json, write_json_atomic

HOME = Path(__file__).resolve().parents[2]
TRAINER = HOME / "train/main.py"
TORCHRUN = sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"
LABELLED = "labelled"    # folder of a supervised run's training
PATIENCE_S = 600         # for the processes of an ablation that was killed, which save before they end


@dataclass(frozen=True)
class Slot:
    """A job's share of the machine. environment: path, devices and threads; training, evaluation: settings of it."""

    processes: int
    environment: dict[str, str]
    training: Sequence[str] = ()
    evaluation: Sequence[str] = ()


class Ablation:
    """A plan on disk.

    OUT/runs/NAME is a training's folder and NAME.json its record, OUT/results/NAME/PROTOCOL an evaluation's,
    OUT/features what all evaluations share, OUT/logs/NAME.log what its processes said. ended: runs that this process
    has brought to their end; active: those under way; troubles: run -> the line that stopped it.
    """

    def __init__(self, plan: Plan):
        self.plan, self.args, self.out = plan, plan.args, plan.args.out
        self.ended, self.active, self.troubles = set(), set(), {}

    def folder(self, run: Run) -> Path:
        return self.out / "runs" / run.name

    def result(self, run: Run, protocol: str) -> Path:
        return self.out / "results" / run.name / protocol

    def log(self, run: Run) -> Path:
        return self.out / "logs" / f"{run.name}.log"

    def _record(self, run: Run) -> Path:
        return self.out / "runs" / f"{run.name}.json"

    def _identity(self, run: Run) -> dict:
        return {"recipe": self.plan.trainings[run].recipe.to_dict(), "index": contents(self.plan.generations[0]),
                "split": self.args.split, "init": str(self.args.init) if self.args.init else None}

    def checkpoint(self, run: Run) -> dict | None:
        """`checkpoint` and its `sha256` (None where it is no file) of a training that is finished, else None.

        Raises RequestError where OUT holds the run of another request.
        """
        try:
            record = read_json(self._record(run))
        except FileNotFoundError:
            return None
        except StoreError as error:
            raise RequestError(f"{error}; delete it, and the run is looked at again") from None
        identity = record["identity"] | {"index": contents(record["identity"]["index"])}
        if different := differences(identity, self._identity(run)):
            raise RequestError(f"{self.out} holds {run.name} of another ablation: {'; '.join(different)}; use its "
                               "settings, or another --out")
        return record if record["sha256"] is None or Path(record["checkpoint"]).exists() else None

    def found(self, run: Run, protocol: str) -> dict | None:
        """The metrics.json of an evaluation that is finished: this checkpoint, these settings, splits and store."""
        record = self.checkpoint(run)
        try:
            document = results.read_metrics(self.result(run, protocol))
        except RequestError:         # none there
            return None
        stored = {name: values for name, values in document["settings"].items() if name != "view"}
        same = (record and document["protocol"] == protocol and stored == self.plan.used(run, protocol)
                and document["checkpoint"]["checkpoint"] == record["checkpoint"]
                and record["sha256"] in (None, document["checkpoint"]["sha256"])
                and contents(document["store"]["index"]) == contents(self.plan.generations[1])
                and document["splits"] == self.plan.splits(protocol, run))
        return document if same else None

    def finished(self, run: Run) -> bool:
        return self.checkpoint(run) is not None and all(self.found(run, one) for one in self.plan.protocols(run))

    def slot(self, number: int) -> Slot:
        """Job `number`'s processes, devices, threads and loader workers."""
        jobs, devices = self.args.jobs, _devices()
        processes = self.args.processes or (max(1, len(devices) // jobs) if self.args.family == "full" else 1)
        path = filter(None, (str(HOME), os.environ.get("PYTHONPATH")))   # what we were found by, they may not be
        environment, training, evaluation = {"PYTHONPATH": os.pathsep.join(path)}, [], []
        if devices:
            own = [devices[(number * processes + i) % len(devices)] for i in range(processes)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(own))
        if jobs > 1:
            cores = max(1, len(os.sched_getaffinity(0)) // (jobs * processes))
            environment["OMP_NUM_THREADS"] = str(cores)
            training = [f"run.threads={cores}", f"run.workers={min(8, cores - 1)}"]
            evaluation = [f"run.threads={cores}", f"run.workers={min(8, cores)}"]
        return Slot(processes, environment, training, evaluation)

    def work(self, run: Run) -> Callable[[int], Work]:
        """The run as commands, one after the other; what stops it is kept in `troubles`, and ends nothing else.

        Raises RequestError where a command says that the request is wrong, since that holds for every run.
        """
        def steps(number: int) -> Work:
            slot = self.slot(number)
            self.active.add(run)
            if self.checkpoint(run) is None:
                if run.row in HANDMADE:
                    self._keep(run, run.row)
                elif run.row in START:
                    self._keep(run, self._start(run))
                elif run.row == SUPERVISED:
                    if self._went_well(run, (yield self._supervise(run, slot))):
                        self._keep(run, next(self.folder(run).glob(f"{LABELLED}/runs/*/{FINETUNED}")))
                elif self._went_well(run, (yield self._train(run, slot))):
                    self._keep(run, self.folder(run) / "last.pt")
            missing = [protocol for protocol in self.plan.protocols(run) if self.found(run, protocol) is None]
            if missing and run not in self.troubles:
                self._went_well(run, (yield self._evaluate(run, slot, missing)))
            self.ended.add(run)
            self.active.discard(run)
        return steps

    def _went_well(self, run: Run, ended: Ended) -> bool:
        if ended.code and ended.said.startswith("error: "):
            raise RequestError(f"{run.name}: {ended.said.removeprefix('error: ')} ({self.log(run)})")
        if ended.code:
            self.troubles[run] = ended.said.removeprefix("stopped: ") or f"ended with code {ended.code}"
        return not ended.code

    def _keep(self, run: Run, checkpoint: Path | str) -> None:
        """Write the record that says that the training is finished; checkpoint: a file, or a net by name."""
        sha256 = None
        if isinstance(checkpoint, Path):
            with open(checkpoint, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self._record(run).parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(self._record(run), {"identity": self._identity(run), "checkpoint": str(checkpoint),
                                              "sha256": sha256})

    def _start(self, run: Run) -> Path | str:
        """The net that every training of this seed starts from: by name, or as an export where a file decides."""
        training = self.plan.trainings[run]
        model = training.recipe.model
        if not self.args.init and not model.width and model.bn_eps == own_eps(model.backbone):
            return f"{RANDOM}:{model.backbone}:{run.seed}"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            net = build_backbone(model.backbone, model.width, model.bn_eps)
        init = dataclasses.asdict(inflate(self.args.init, net, model.stem_tap)) if self.args.init else None
        path = self.folder(run) / "untrained.safetensors"     # in a folder: NAME.json beside it is the run's record
        path.parent.mkdir(parents=True, exist_ok=True)
        write_export(path, net, {"recipe": training.recipe.to_dict(), "init": init, "step": 0})
        return path

    def _supervise(self, run: Run, slot: Slot) -> Command:
        """The net that the seed's trainings start from, trained with the labels of the other groups, in the manner of
        `controls`: for as many steps, and with the batch and the flips of the pre-training."""
        recipe = self.plan.trainings[run].recipe
        optimise, sampling = recipe.optimise, recipe.sampling
        settings = PLAIN | {"steps": optimise.steps, "batch": optimise.batch, "bn_group": min(GROUP, optimise.batch),
                            "crops": 1, "flip": recipe.augment.flip_p > 0}
        if optimise.epochs:
            settings["epochs"] = optimise.epochs
        settings = [f"finetune.{key}={str(value).lower()}" for key, value in settings.items()]
        where = [one for one in self.args.evaluation if one.startswith("run.")]
        view = [f"features.clip={sampling.clip}", f"features.size={sampling.size}", "features.clips=1"]
        return self._command(run, slot, ["finetune"], str(self._start(run)), self.folder(run) / LABELLED,
                             [*view, *settings, *where])

    def _train(self, run: Run, slot: Slot) -> Command:
        training = self.plan.trainings[run]
        left_out = [] if run.group is None else [f"leave_out={json.dumps([run.group], ensure_ascii=False)}"]
        settings = _flags("--set", *slot.training, *training.kept, *self.args.settings, f"seed={run.seed}", *left_out)
        return Command([
            *TORCHRUN, f"--nproc-per-node={slot.processes}", str(TRAINER), "--pipeline",
            training.name, "--store", str(self.args.store), "--out", str(self.folder(run)), "--resume",
            "auto", *self._given("split", "init"), *settings], self.log(run), slot.environment)

    def _evaluate(self, run: Run, slot: Slot, protocols: Sequence[str]) -> Command:
        """All of them in one process, which imports once; evaluate.run gives each its folder."""
        out = self.result(run, protocols[0])
        settings = dict.fromkeys(one for protocol in protocols for one in self.plan.evaluation(run, protocol))
        return self._command(run, slot, protocols, self.checkpoint(run)["checkpoint"],
                             out if len(protocols) == 1 else out.parent, settings)

    def _command(self, run: Run, slot: Slot, protocols: Sequence[str], checkpoint: str, out: Path,
                 settings: Iterable[str]) -> Command:
        """evaluate.run on the run's splits."""
        python = [sys.executable] if slot.processes == 1 else [*TORCHRUN, f"--nproc-per-node={slot.processes}"]
        groups = self.args.groups if run.group is None else [run.group]
        return Command([
            *python, "-m", "evaluate.run", "--protocol", ",".join(protocols), "--checkpoint", checkpoint, "--store",
            str(self.plan.tested), *self._given("train_split", "test_split", *(["leave_out"] if not groups else [])),
            *_flags("--leave-out", *(f"group={name}" for name in groups)), "--out", str(out), "--cache",
            str(self.out / "features"), *_flags("--set", *slot.evaluation, *settings)], self.log(run), slot.environment)

    def _given(self, *names: str) -> list[str]:
        """The flags among `names` that were given to us, to be handed on."""
        return [word for name in names if (value := getattr(self.args, name)) is not None
                for word in (f"--{name.replace('_', '-')}", str(value))]

    def share(self, run: Run) -> float:
        """How much of the run is done, 0 to 1, by the last step that its training has logged."""
        optimise, row = self.plan.trainings[run].recipe.optimise, self.last_row(run)
        if run in self.ended or row is None:
            return float(run in self.ended)
        return 0.95 * min(1.0, row["step"] / optimise.steps if optimise.steps else row["epoch"] / optimise.epochs)

    def last_row(self, run: Run) -> dict | None:
        """The last whole row of the training's metrics.jsonl, None before the first."""
        path = self.folder(run) / "metrics.jsonl"
        try:
            with open(path, "rb") as file:
                file.seek(max(0, path.stat().st_size - 8192))
                lines = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return None
        return json.loads(lines[-1]) if lines else None


def claim(out: Path) -> int:
    """Make OUT and lock it; the lock lasts until this process and its children have ended.

    What is left of an ablation that was killed is waited for. Raises RequestError where OUT is something else, or in
    use by an ablation that lives.
    """
    if out.is_file() or any((out / name).exists() for name in (results.METRICS, "metrics.jsonl", "store.json")):
        raise RequestError(f"--out {out} holds something else; expected a folder of evaluate.ablation, or a new one")
    out.mkdir(parents=True, exist_ok=True)
    lock, deadline = os.open(out / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), None
    while True:
        try:
            flock(lock, fcntl.LOCK_EX, f"--out {out}")
            break
        except BlockingIOError:
            owner = os.pread(lock, 20, 0).decode()
            if Path("/proc", owner or "-").exists() or deadline and time.monotonic() > deadline:
                os.close(lock)
                raise RequestError(f"--out {out} is in use by process {owner}; wait for its end, or choose another "
                                   "folder") from None
            if not deadline:
                deadline = time.monotonic() + PATIENCE_S
                print(f"waiting for what the ablation in {out} has left running", file=sys.stderr, flush=True)
            time.sleep(0.5)
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _devices() -> list[str]:
    """CUDA devices by the names that CUDA_VISIBLE_DEVICES gives them."""
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    count = torch.cuda.device_count()
    return names[:count] if names else [str(number) for number in range(count)]


def _flags(flag: str, *values: str) -> list[str]:
    return [word for value in values for word in (flag, value)]
