"""A run's packs through an engine: progress, and what becomes of a pack that kills its workers."""

import functools
import itertools
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from preprocess import plan as planning
from preprocess.cost import Cost, time_limit
from preprocess.engines import Engine, Outcome, Resources, open_engine
from preprocess.life import Life
from preprocess.machine import machine_cores, machine_memory
from preprocess.plan import Plan
from preprocess.session import Session
from preprocess.task import Misplanned, PackReport, PackTask, make_pack
from shared import cli
from shared.cli import Progress, Stopped, duration, plural, size
from shared.recipes.preprocessing import Pipeline, Run
from shared.store.place import ObjectPath
from shared.store.tables import FailureRow
from shared.store.verify import ROOT

LETHAL = "died", "timeout", "memory"
MEMORY_SHARE = 0.9   # of this machine, for all workers together
PATIENCE_S = 60.0    # until a pack that a worker has written and this process does not see counts as elsewhere


@dataclass(frozen=True)
class Crew:
    """An engine, with what every task may use on it: run.threads resolved (0: where the task runs), resources without
    the time."""

    engine: Engine
    run: Run
    resources: Resources


def start(name: str, workers: int | None, address: str | None, pipeline: Pipeline, packs: int | None = None) -> Crew:
    """The engine, started or connected, and what a task may use there.

    packs: how many there are; no more workers are started than that, unless `workers` says so. run.threads 0 is a
    worker's share of this machine's cores; on a cluster elsewhere one, and where flow is on cuda the task's share of
    its machine's cores, found there. Raises RequestError.
    """
    run, cores = pipeline.run, machine_cores()
    gpus = run.gpus_per_task if pipeline.recipe.flow.backend == "cuda" else 0
    if workers is None and not address and not gpus and name != "serial":
        workers = max(1, min(cores, packs or cores))
    cpus = (run.threads or 1) if address else 1
    engine = open_engine(name, workers, address, Resources(cpus=cpus, gpus=gpus))
    memory = int(1e9 * run.memory_gb)
    if not address:
        memory = memory or int(MEMORY_SHARE * machine_memory() / engine.slots)
    threads = run.threads or (int(not gpus) if address else max(1, cores // engine.slots))
    return Crew(engine, replace(run, threads=threads), Resources(cpus, gpus, memory))


class Tally:
    """What has come to its end so far, in one line."""

    def __init__(self, session: Session, cost: Cost, packs: int):
        self.session, self.packs_planned = session, packs
        self.packs = self.videos = self.frames = self.alone = 0
        self.under_way = [0, 0]   # videos and frames of the pack that this process is making
        self.began = time.monotonic()
        self.progress = Progress("packs", max(cost.frames, 1))

    def tell(self, videos: int, frames: int) -> None:
        """An engine in this process gets on inside a pack."""
        self.under_way = [self.under_way[0] + videos, self.under_way[1] + frames]
        self.show()

    def take(self, report: PackReport) -> None:
        self.packs += 1
        self.videos += len(report.task.videos) - len(report.misplanned)
        self.frames += report.frames
        self.under_way = [0, 0]
        self.show()

    def show(self, force: bool = False) -> None:
        videos, frames = self.videos + self.under_way[0], self.frames + self.under_way[1]
        elapsed = max(time.monotonic() - self.began, 1e-3)
        alone = f", {plural(self.alone, 'pack')} tried video by video" if self.alone else ""
        self.progress.update(frames, f"{self.packs:,} of {plural(self.packs_planned, 'pack')}, "
                                     f"{plural(videos, 'video')} ({videos / elapsed:.2f}/s), "
                                     f"{plural(frames, 'frame')} ({frames / elapsed:.1f}/s), "
                                     f"{plural(len(self.session.failed), 'failure')}{alone}", force=force)

    def close(self) -> None:
        self.progress.close(text=f"{plural(self.packs, 'pack')}, {plural(self.videos, 'video')}, "
                                 f"{plural(self.frames, 'frame')}, {plural(len(self.session.failed), 'failure')}")


def make_packs(session: Session, plan: Plan, cost: Cost, crew: Crew) -> None:
    """Run the tasks. A pack that dies again and again is tried video by video and made without those that kill;
    videos whose headers were wrong are planned again once all others are done.

    Raises Stopped when the cluster is lost, the machine fails, or a pack goes over its limits though none of its videos
    does so alone; all else is made first.
    """
    tally = Tally(session, cost, len(plan.packs))
    tally.show(force=True)
    packs, hopeless = plan.packs, []
    while packs:
        tasks = planning.tasks_of(packs, session.catalog, session.store, session.recipe, session.hash, crew.run,
                                  session.attempts(), session.kept())
        misplanned, deaths = _make(session, tasks, cost, crew, tally)
        if deaths:
            tally.alone += len(deaths)
            killers = _find_killers(session, deaths, cost, crew)
            # A pack without a killer gets one more chance, but not where a limit is what it cannot keep.
            again = [death for death in deaths if death.task.name in killers or death.kind == "died"]
            hopeless += [death for death in deaths if death not in again]
            tasks = [replace(death.task, lost=tuple(killers.get(death.task.name, ()))) for death in again]
            more, deaths = _make(session, tasks, cost, crew, tally)
            misplanned += more
            hopeless += deaths
        packs = session.replan(misplanned, plan)
        tally.packs_planned += len(packs)
    tally.close()
    if hopeless:
        raise Stopped(_too_much(hopeless, cost, crew))


def _make(session: Session, tasks: list[PackTask], cost: Cost, crew: Crew,
          tally: Tally) -> tuple[list[Misplanned], list[Outcome]]:
    """Make the packs and take their reports; returns misplanned videos, and the outcomes of packs that died."""
    misplanned, deaths = [], []
    # In this process progress moves inside a pack; elsewhere a pack is told when it is done.
    fn = functools.partial(make_pack, tell=tally.tell) if crew.engine.name == "serial" else make_pack
    # The longest first: else one worker is left with a long pack when all others have done.
    ready = sorted((task for task in tasks if len(task.lost) < len(task.videos)),
                   key=lambda task: task.frames * math.prod(task.frame_size), reverse=True)
    outcomes = _outcomes(fn, ready, cost, crew, session.life)
    lost = (Outcome(task, PackReport(task, None, (), task.lost, (), 0, 0.0)) for task in tasks
            if len(task.lost) == len(task.videos))   # nothing is left of it to be made
    for outcome in itertools.chain(lost, outcomes):
        if outcome.kind in LETHAL:
            session.deaths.append(outcome)
            deaths.append(outcome)
        else:
            _insist_on_pack(session, outcome.value)
            session.take(outcome.value)
            tally.take(outcome.value)
            misplanned += outcome.value.misplanned
    return misplanned, deaths


def _insist_on_pack(session: Session, report: PackReport) -> None:
    """Raises Stopped where a worker's pack is not where this process looks for it: their stores are two."""
    store, deadline = session.store, time.monotonic() + PATIENCE_S
    while report.pack and not (store / report.pack.path / ROOT).exists():
        session.confirm()   # or else another run has taken over, and removed it
        if isinstance(store, ObjectPath) or time.monotonic() > deadline:   # a network file system may lag behind
            raise Stopped(f"worker {report.worker} has written {store}/{report.pack.path}, and {os.uname().nodename} "
                          "does not see it; give a --store that this machine and all workers share")
        time.sleep(0.5)


def _outcomes(fn: Callable, tasks: list[PackTask], cost: Cost, crew: Crew, life: Life) -> Iterator[Outcome]:
    """The engine's outcomes, done or lethal. Every other error is the machine's or ours, and raised."""
    def begun() -> Iterator[PackTask]:
        for task in tasks:
            life.begin(task.name)
            yield task

    for outcome in crew.engine.map_unordered(fn, begun(), _limits(tasks, cost, crew), crew.run.retries):
        life.lost(outcome.task.name)
        error = outcome.error
        if isinstance(error, MemoryError):
            outcome = replace(outcome, kind="memory")
        elif isinstance(error, OSError) and error.errno not in cli.FULL:
            raise Stopped(f"{error}; mend it, then run the same command again to go on") from error
        elif error is not None and outcome.kind not in LETHAL:
            raise error
        yield outcome


def _limits(tasks: list[PackTask], cost: Cost, crew: Crew) -> Resources:
    """What each of these tasks may use; the longest decides on the time."""
    longest = max((task.frames for task in tasks), default=0)
    return replace(crew.resources, timeout=time_limit(longest, cost, crew.run))


def _find_killers(session: Session, deaths: list[Outcome], cost: Cost, crew: Crew) -> dict[str, list[FailureRow]]:
    """By pack, the rows of the videos that kill a worker all by themselves.

    Every video of a pack that died is tried alone, and nothing of it committed; the one of a pack of one has been.
    """
    killers, trials, packs = defaultdict(list), [], {}
    limits = _limits([death.task for death in deaths], cost, crew)
    for death in deaths:
        task = death.task
        if len(task.videos) == 1:
            killers[task.name].append(_row(death, limits))
            continue
        for number, video in enumerate(task.videos):
            trials.append(replace(task, name=f"{task.name}-{number}", videos=(video,), trial=True,
                                  attempts=task.attempts[number:number + 1], kept=task.kept[number:number + 1]))
            packs[trials[-1].name] = task.name
    for outcome in _outcomes(make_pack, trials, cost, crew, session.life):
        if outcome.kind in LETHAL:
            session.deaths.append(outcome)
            killers[packs[outcome.task.name]].append(_row(outcome, limits))
    return killers


def _row(outcome: Outcome, limits: Resources) -> FailureRow:
    """The failure of a task of one video; every try counts."""
    video, tries = outcome.task.videos[0], outcome.attempts
    return FailureRow(video.id, video.path, f"{_verdict(outcome.kind, limits)}, {plural(tries, 'time')}",
                      "process", sum(outcome.task.attempts) + tries)


def _verdict(kind: str, limits: Resources) -> str:
    if kind == "timeout":
        return f"over the time limit of {duration(limits.timeout)}"
    if kind == "memory":
        return f"over the memory limit of {size(limits.memory)}" if limits.memory else "more memory than there is"
    return "killed its worker"


def _too_much(hopeless: list[Outcome], cost: Cost, crew: Crew) -> str:
    """Why packs could not be made though each of their videos alone could, and what to do."""
    first = hopeless[0]
    limits, task = _limits([first.task], cost, crew), first.task
    cure = {"timeout": f"raise it with --set run.time_limit_s={math.ceil(2 * limits.timeout)}",
            "memory": f"raise it with --set run.memory_gb={2e-9 * limits.memory:g}" if limits.memory else
                      "give the worker more of it",
            "died": "see that nothing else ends the workers, such as a lack of memory"}[first.kind]
    return (f"{plural(len(hopeless), 'pack')} could not be made though no video of "
            f"{'it' if len(hopeless) == 1 else 'theirs'} fails alone (first {task.name}, "
            f"{plural(len(task.videos), 'video')}: {_verdict(first.kind, limits)}, {plural(first.attempts, 'time')}); "
            f"{cure}, then run the same command again to go on; all else is done")
