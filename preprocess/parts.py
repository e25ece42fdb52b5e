"""One of N processes that make one store, with nothing between them but the store: `preprocess.run --part i/N`.

The first that comes makes the plan and writes it, exclusively, as records/plan-<number>.json; the others wait for it.
Part i makes the plan's packs i, i+N, ... and no others. A part holds the store's lock only while it plans or publishes,
so it shows by its sign of life (preprocess.life) that it is at work.
"""

import os
import re
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from preprocess import plan as planning
from preprocess.cost import Cost
from preprocess.life import Life, parts_alive, refuse_beside_a_run
from preprocess.plan import Plan, PlannedPack
from preprocess.session import PLAN, Session
from shared.cli import RequestError, plural
from shared.datasets.catalog import Catalog, Video
from shared.recipes.preprocessing import Pipeline
from shared.store.committed import load_pack, sweep_partials
from shared.store.index import Index, publish, read_failures, write_failures
from shared.store.layout import StoreError
from shared.store.lease import Busy
from shared.store.lock import store_lock
from shared.store.objects import committed_prefixes
from shared.store.place import ObjectPath, Place
from shared.store.record import each_record, partials, run_name, write_exclusive, write_json_atomic
from shared.videos.files import CANNOT, Span
from shared.videos.isolate import ChildProcess, InProcess

LOOK_S = 1.0                # between two looks whether the plan is there
FAREWELL_S = 20.0           # an interrupted part waits no longer for its turn to publish


@dataclass(frozen=True)
class Part:
    """Part `number`, from 1 to `of`."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def share(self, packs: list) -> list:
        return packs[self.number - 1::self.of]


def parse_part(text: str, environment: Mapping[str, str] = os.environ) -> Part:
    """`i/N`, or `slurm`: this task's place in its job array. Raises RequestError for anything else."""
    if text == "slurm":
        return _slurm_part(environment)
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise RequestError(f"--part {text}: expected i/N with i from 1 to N, such as 3/8, or slurm inside a job array")
    return Part(int(match[1]), int(match[2]))


def _slurm_part(environment: Mapping[str, str]) -> Part:
    names = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "COUNT")]
    try:
        own, least, most, count = (int(environment[name]) for name in names)
    except (KeyError, ValueError):
        raise RequestError(f"--part slurm: {', '.join(names)} are not set as a Slurm job array sets them; submit with "
                           "sbatch --array=1-N, or give --part i/N") from None
    step = (most - least) // max(count - 1, 1) or 1
    number, odd = divmod(own - least, step)
    if odd or least + step * (count - 1) != most or not 0 <= number < count:
        raise RequestError(f"--part slurm: the {count} ids of the array from {least} to {most} do not lie evenly, so "
                           f"task {own} has no place among them; use --array=1-{count}, or give --part i/N")
    return Part(number + 1, count)


@dataclass(frozen=True)
class SharedPlan:
    """What all parts make: packs in order, and what they cost in all. name: of its file in records/."""

    name: str
    packs: tuple[PlannedPack, ...]
    cost: Cost

    @classmethod
    def from_document(cls, name: str, document: dict) -> "SharedPlan":
        """Raises StoreError for what no plan says."""
        try:
            return cls(name, tuple(map(PlannedPack.from_list, document["plan"])), Cost(**document["cost"]))
        except (KeyError, TypeError, IndexError) as error:
            raise StoreError(f"records/{name}.json: holds no plan ({type(error).__name__}: {error})") from error


def newest_plan(store: Place) -> SharedPlan | None:
    """The last plan of the store. Raises StoreError where it is damaged."""
    last = None
    for path, document in each_record(store, PLAN):
        last = path.stem, document
    if last and isinstance(last[1], StoreError):
        raise last[1]
    return SharedPlan.from_document(*last) if last else None


def accounted(store: Place) -> set[str]:
    """Ids of the videos that are in the index or in failures.csv."""
    packed = Index.load(store).id if (store / "current").exists() else ()
    return {*packed, *(row.video for row in read_failures(store))}


class Arrival:
    """A part that has come to the store: its sign of life, and the plan, or else the lock under which to make one."""

    def __init__(self, store: Place, part: Part):
        self.store, self.part = store, part
        name = run_name(f"part{part.number}of{part.of}-{uuid.uuid4().hex[:8]}")
        self.life = Life(store, name, str(part))
        self.plan: SharedPlan | None = None
        self.lock = ExitStack()

    def __enter__(self) -> "Arrival":
        """Wait until there is a plan with something left of it, or until this part may make one. Raises Busy where a
        run without --part is at work."""
        self.life.start()
        try:
            told = False
            while True:
                refuse_beside_a_run(self.store)
                if self._find():
                    return self
                try:
                    self.lock.enter_context(store_lock(self.store, LOOK_S))
                except Busy:
                    if not told:
                        print(f"part {self.part} waits for the plan, which another part makes", file=sys.stderr,
                              flush=True)
                    told = True
                    continue
                if self._find():
                    self.lock.close()
                return self
        except BaseException:
            self.__exit__()
            raise

    def _find(self) -> bool:
        plan = newest_plan(self.store)
        if plan and (any(sign.document["plan"] == plan.name for sign in parts_alive(self.store, self.life.path.name))
                     or not accounted(self.store).issuperset(id for pack in plan.packs for id in pack.videos)):
            self.plan = plan
        return self.plan is not None

    def __exit__(self, *exception) -> None:
        self.life.close()
        self.lock.close()
        self.life.close()      # a folder that was made goes now that the lock's file has left it

    def planner(self, pipeline: Pipeline, catalog: Catalog) -> Session:
        """The state of the store, under the lock, for the one that makes the plan."""
        session = Session(self.store, pipeline, catalog, self.life)
        session.take_in(alone=not parts_alive(self.store, self.life.path.name))
        return session

    def write(self, session: Session, plan: Plan, cost: Cost) -> None:
        """Write store.json and the plan, publish the failures that it found, and give the lock back."""
        session.describe()
        session.failures |= {row.video: row for row in plan.failures}
        session.publish()
        last = newest_plan(self.store)
        name = f"{PLAN}-{int(last.name.rpartition('-')[2]) + 1 if last else 1:06d}"
        document = {"kind": PLAN, "made": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "by": self.life.name,
                    "videos_root": str(session.catalog.sources), "cost": asdict(cost.share(1)),
                    "plan": [pack.to_list() for pack in plan.packs]}
        if plan.packs and not write_exclusive(self.store / "records" / f"{name}.json", document):
            name = newest_plan(self.store).name      # the lock did not hold: another was first, and its plan counts
        self.plan = newest_plan(self.store) if plan.packs else SharedPlan(name, (), cost)
        self.lock.close()


class PartSession(Session):
    """One part's share of a plan. packs, videos, failures: those that this process has made or found; they join the
    index that is in force whenever this part publishes."""

    def __init__(self, pipeline: Pipeline, catalog: Catalog, arrival: Arrival):
        super().__init__(arrival.store, pipeline, catalog, arrival.life)
        self.part, self.shared = arrival.part, arrival.plan
        arrival.life.facts["plan"] = self.shared.name
        self.store_videos = 0
        planned = {id for pack in self.shared.packs for id in pack.videos}
        gone = planned - {video.id for video in catalog.videos}
        nothing = Span(catalog.root, 0, 0, "", "", fault=f"{CANNOT}: no longer among the videos, where it was when "
                                                         f"{self.shared.name} was made")
        self.catalog = replace(self.catalog, videos=self.catalog.videos + tuple(
            Video(id, id, -1, "", "", (), nothing) for id in sorted(gone)))
        self.later = {video.id for video in catalog.videos} - planned - accounted(self.store)

    def share(self, reader: InProcess | ChildProcess) -> tuple[Plan, Cost]:
        """What is left of this part's packs, and what that costs.

        A pack is left while one of its videos is accounted for nowhere: a part that died may have committed the pack
        and told nobody, or not got to the videos whose headers were wrong.
        """
        known = accounted(self.store)
        left = [pack for pack in self.part.share(self.shared.packs) if not known.issuperset(pack.videos)]
        share = sum(pack.frames for pack in left) / max(sum(pack.frames for pack in self.shared.packs), 1)
        plan = Plan(left)
        if isinstance(self.store, ObjectPath):      # elsewhere whoever makes a pack sees that it is there
            found = self._adopt(left)
            plan.packs = [pack for pack in left if pack.name not in found]
            known |= {*self.videos, *self.failures}
            todo = {id for pack in left if pack.name in found for id in pack.videos} - known
            if todo:
                more = planning.make_plan(self.catalog, self.recipe, todo, reader=reader)
                plan.packs, plan.failures, plan.probes = plan.packs + more.packs, more.failures, more.probes
                self.failures |= {row.video: row for row in more.failures}
        return plan, self.shared.cost.share(share)

    def _adopt(self, packs: list[PlannedPack]) -> set[str]:
        """Names of those of these packs that are uploaded already, whoever did it; what nobody published is taken."""
        index = Index.load(self.store)
        listed = {row.pack: row.path for row in index.pack_rows()}
        rooted = dict(reversed(committed_prefixes(self.store, listed)))
        found = set(listed)
        for pack in packs:
            if pack.name in rooted and pack.name not in listed:
                try:
                    row, videos, failures = load_pack(self.store, rooted[pack.name])
                except StoreError:
                    continue      # uploaded by half
                found.add(pack.name)
                self.packs[row.pack] = row
                self.videos |= {video.id: video for video in videos}
                self.failures |= {failure.video: failure for failure in failures}
        return found

    def begin(self, plan: Plan, engine: str, cluster: dict) -> None:
        """Store and plan are there: this part's record is all that is to begin."""
        self.start_record(plan, engine, cluster)
        self.begun = self.made = time.monotonic()

    def confirm(self) -> None:
        """A part writes packs without the store's lock."""

    def write_record(self) -> None:
        """No other process writes this file, so no lock is needed for it."""
        self.record |= {"part": str(self.part), "plan_file": self.shared.name}
        write_json_atomic(self.store / "records" / f"{self.name}.json", self.record)

    def publish_every_s(self) -> float:
        return self.part.of * super().publish_every_s()

    def publish(self, patience_s: float = LOOK_S, sweep: bool = False) -> None:
        """Join what is in force; where others hold the lock for longer than that, what is made waits for the next
        time. sweep: also take away what dead parts left half-written, if nobody else is at work."""
        began = time.monotonic()
        with suppress(Busy), store_lock(self.store, patience_s):
            self._join()
            if sweep and not isinstance(self.store, ObjectPath):
                self._sweep()
        self.published = time.monotonic()
        self.publishing_s = self.published - began

    def _join(self) -> None:
        index = Index.load(self.store)
        packs = self.packs | {row.pack: row for row in index.pack_rows()}
        videos = {row.id: row for row in index.rows()}
        failures = {row.video: row for row in read_failures(self.store)}
        for row in self.videos.values():
            if row.id not in videos or videos[row.id].frames < row.frames:
                videos[row.id] = row
                failures.pop(row.id, None)
        failures |= self.failures
        publish(self.store, list(packs.values()), list(videos.values()))
        write_failures(self.store, list(failures.values()))
        self.store_videos = len(videos)
        self.life.published()

    def _sweep(self) -> None:
        # Listed first, so that whoever writes one of them is seen to live; a part's first sign lies in records/.
        found = [path for path in partials(self.store) if path.parent.name != "records"]
        if found and not parts_alive(self.store, self.life.path.name):
            sweep_partials(self.store, found)

    def settle(self, status: str) -> None:
        self.publish(FAREWELL_S if status == "stopped" else float("inf"), sweep=True)

    def counts(self) -> dict[str, int]:
        return super().counts() | {"store_videos": self.store_videos}

    def remarks(self) -> list[str]:
        """What the user should know before the work starts."""
        if not self.later:
            return []
        return [f"{plural(len(self.later), 'video is', 'videos are')} not in the plan {self.shared.name}, which the "
                f"parts finish first; run again after that to make {'it' if len(self.later) == 1 else 'them'}"]
