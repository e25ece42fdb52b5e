"""One run over one store: what is there already, what is to do, what came of it, and the record it leaves."""

import os
import shlex
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import PurePosixPath

from preprocess import plan as planning
from preprocess.agreement import agree
from preprocess.engines import Outcome
from preprocess.life import Life, await_silence
from preprocess.machine import device, versions
from preprocess.plan import Plan, PlannedPack
from preprocess.task import Misplanned, PackReport
from shared.datasets.catalog import Catalog
from shared.datasets.headers import keep_headers
from shared.recipes.preprocessing import Pipeline, pack_recipe_hash, recipe_hash
from shared.store.committed import sweep_partials
from shared.store.index import Index, publish, read_failures, write_failures
from shared.store.layout import FORMAT, StoreError
from shared.store.lease import held
from shared.store.lock import store_lock
from shared.store.objects import sweep_prefixes
from shared.store.place import ObjectPath, Place
from shared.store.rebuild import build_index, lost_packs
from shared.store.record import each_record, run_name, write_json_atomic, write_record
from shared.store.tables import DROPPED, FailureRow, PackRow, VideoRow
from shared.videos.isolate import ChildProcess, InProcess

PLAN = "plan"        # kind, and beginning of the name, of a plan that parts share
PUBLISH_SHARE = 50   # a publication takes at most so small a share of the time between two


class Session:
    """The state of a store and its catalog. `look` only reads; `open` holds the store's lock until it is left."""

    def __init__(self, store: Place, pipeline: Pipeline, catalog: Catalog, life: Life | None = None):
        self.store, self.catalog = store, catalog
        self.packs: dict[str, PackRow] = {}
        self.videos: dict[str, VideoRow] = {}
        self.failures: dict[str, FailureRow] = {}
        self.pipeline, stored = agree(store, pipeline)
        self.classes = stored + tuple(name for name in catalog.classes if name not in stored)
        self.catalog = self._relabel(catalog)
        self.recipe = self.pipeline.recipe
        self.hash = pack_recipe_hash(self.recipe.to_dict())
        self.held = ExitStack()   # lock and sign of life
        self.lost: list[str] = []
        self.records, self.plans, self.bad_records = self._read_records()
        self.name = life.name if life else run_name(str(os.getpid()))
        self.life = life or Life(store, self.name)
        self.record = {}
        self.account = self.life.account
        self.deaths: list[Outcome] = []
        self.started = self.published = self.begun = self.made = time.monotonic()
        self.publishing_s = 0.0

    @classmethod
    def look(cls, store: Place, pipeline: Pipeline, catalog: Catalog) -> "Session":
        """The state as the index has it; writes nothing, so packs that a killed run never published are not seen."""
        session = cls(store, pipeline, catalog)
        if (store / "current").exists():
            index = Index.load(store)
            session.packs = {row.pack: row for row in index.pack_rows()}
            session.videos = {row.id: row for row in index.rows()}
            session.failures = {row.video: row for row in read_failures(store)}
        return session

    @classmethod
    def open(cls, store: Place, pipeline: Pipeline, catalog: Catalog) -> "Session":
        """Lock the store and take in what is there, also packs that a killed run finished and never published.

        Raises RequestError where another run is writing, or where the store holds another dataset or recipe.
        """
        with ExitStack() as stack:
            stack.enter_context(store_lock(store))
            session = cls(store, pipeline, catalog)
            stack.callback(session.life.close)
            session.life.start()
            await_silence(store, session.life.path.name)
            session.take_in(alone=True)
            session.held = stack.pop_all()
        return session

    def take_in(self, alone: bool) -> None:
        """The state of the store, whose lock is held. alone: what nobody has published and nobody has finished is
        nobody's, and swept."""
        if alone:
            sweep_partials(self.store)
        known = Index.load(self.store) if (self.store / "current").exists() else None
        self.lost = lost_packs(self.store, known) if known else []
        packs, videos, failures = build_index(self.store, known, drop_lost=True)
        if alone and isinstance(self.store, ObjectPath):
            sweep_prefixes(self.store, packs, superseded=False)
        self.packs = {row.pack: row for row in packs}
        self.videos = {row.id: row for row in videos}
        self.failures = {row.video: row for row in failures}
        for row in read_failures(self.store):
            if row.video not in self.videos or row.video in self.failures:
                self.failures[row.video] = row

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exception) -> None:
        self.held.close()

    def _relabel(self, catalog: Catalog) -> Catalog:
        """Labels as the store numbers them: classes that came later have later numbers."""
        if self.classes == catalog.classes:
            return catalog
        numbers = {name: number for number, name in enumerate(self.classes)}
        videos = tuple(replace(v, label=numbers.get(v.class_name, -1)) for v in catalog.videos)
        return replace(catalog, classes=self.classes, videos=videos)

    def _read_records(self) -> tuple[list[dict], list[dict], list[str]]:
        """The records of earlier runs, oldest first, the plans of parts, and the names of what is damaged."""
        good, plans, bad = [], [], []
        for path, record in each_record(self.store, None, PLAN):
            if isinstance(record, StoreError):
                bad.append(path.name)
            else:
                (plans if record.get("kind") == PLAN else good).append(record)
        return good, plans, bad

    @property
    def done(self) -> set[str]:
        """Ids of the catalog's videos that some pack holds."""
        return {video.id for video in self.catalog.videos if video.id in self.videos}

    @property
    def failed(self) -> list[FailureRow]:
        """Failures but those that the user asked for by dropping a video."""
        return [row for row in self.failures.values() if row.stage != DROPPED]

    def stale(self) -> int:
        """How many packed videos the annotations now give another class, group or other splits."""
        return sum(1 for v in self.catalog.videos if v.id in self.videos and
                   (v.class_name, v.group, v.splits) != (self.videos[v.id].class_name, self.videos[v.id].group,
                                                         self.videos[v.id].splits))

    def left(self) -> tuple[list[str], list[str]]:
        """Ids that the catalog does not have: those packed or failed whose files are gone, and those packed and not
        listed."""
        listed, unlisted = {video.id for video in self.catalog.videos}, set(self.catalog.unlisted)
        packed = {row.id: row.path for row in self.videos.values() if row.id not in listed}
        failed = {row.video: row.path for row in self.failed if row.video not in listed}
        return (self.catalog.scan.gone(sorted((failed | packed).items())),
                sorted(id for id, path in packed.items() if path in unlisted))

    def attempts(self) -> dict[str, int]:
        return {video: row.attempts for video, row in self.failures.items()}

    def kept(self) -> dict[str, int]:
        """Frames that a pack already keeps of damaged videos."""
        return {video: self.videos[video].frames for video in self.failures if video in self.videos}

    def mended(self) -> list[str]:
        """Failures that were of an archive, or of a member that could not be taken, and are no more."""
        archives = {archive.name for archive in self.catalog.sources.archives}
        return [path for path, row in self.failures.items() if row.stage == "catalog" and
                path not in self.catalog.refused and
                any(str(place) in archives for place in (PurePosixPath(path), *PurePosixPath(path).parents))]

    def plan(self, retry_failed: bool, reader: InProcess | ChildProcess = InProcess()) -> Plan:
        """What is to do: videos in no pack, and with retry_failed those of failures.csv as well. reader: where headers
        are read."""
        listed = {video.id for video in self.catalog.videos}
        todo = {v for v in listed if v not in self.videos and v not in self.failures}
        if retry_failed:
            todo |= {video for video, row in self.failures.items() if row.stage != DROPPED} & listed
            for path in self.mended():
                del self.failures[path]
        unfinished = []
        for record in self.records + self.plans:
            unfinished += [PlannedPack.from_list(row) for row in record.get("plan", ()) if row[0] not in self.packs]
        retried = self.attempts() if retry_failed else {}
        plan = planning.make_plan(self.catalog, self.recipe, todo, () if retry_failed else unfinished, retried, reader)
        plan.failures += [FailureRow(path, path, reason, "catalog", retried.get(path, 0) + 1)
                          for path, reason in self.catalog.refused.items() if retry_failed or path not in self.failures]
        return plan

    def describe(self) -> None:
        """Write store.json, and what the archives' headers say."""
        write_json_atomic(self.store / "store.json", {
            "format": FORMAT, "dataset": self.pipeline.dataset, "classes": list(self.classes),
            "recipe": self.recipe.to_dict(), "recipe_hash": recipe_hash(self.recipe.to_dict())})
        keep_headers(self.store, self.catalog.fields, self.catalog.scan.headers)

    def begin(self, plan: Plan, engine: str, cluster: dict) -> None:
        """Write store.json and the run's record with its plan: from here on the run can be resumed. cluster: what the
        engine says of itself and its workers."""
        self.describe()
        self.start_record(plan, engine, cluster)
        for row in plan.failures:
            self.failures[row.video] = row
        self.publish()
        self.begun = self.made = time.monotonic()

    def start_record(self, plan: Plan, engine: str, cluster: dict) -> None:
        self.record = {
            "status": "running", "started": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "command": shlex.join(sys.argv),
            "versions": versions(), "device": device(self.recipe.flow.backend), "engine": engine,
            "cluster": cluster,
            "backend": self.recipe.flow.backend, "dataset": self.pipeline.dataset, "classes": list(self.classes),
            "recipe": self.recipe.to_dict(), "videos_root": str(self.catalog.sources),
            "videos": list(self.catalog.sources.texts), "absent": list(self.catalog.absent),
            "ignored": self.catalog.ignored, "plan": [pack.to_list() for pack in plan.packs]}
        self.write_record()
        self.life.planned(len(plan.packs))

    def write_record(self) -> None:
        write_record(self.store, self.name, self.record)

    def replan(self, misplanned: list[Misplanned], plan: Plan) -> list[PlannedPack]:
        """Packs for the videos whose headers were wrong, with what decoding showed; they join the record's plan."""
        packs = planning.group_packs(planning.with_corrections(plan.probes, misplanned), self.recipe, self.attempts())
        self.record["plan"] += [pack.to_list() for pack in packs]
        self.life.packs_planned += len(packs)
        self.write_record()
        return packs

    def take(self, report: PackReport) -> None:
        """A task's report becomes part of the state; the index is published now and then."""
        self.life.take(report)
        self.made = time.monotonic()
        if report.pack:
            self.packs[report.pack.pack] = report.pack
        failed = {row.video: row for row in report.failures}
        for row in report.videos:
            self.videos[row.id] = row
            if row.id not in failed:
                self.failures.pop(row.id, None)
        self.failures |= failed
        if time.monotonic() - self.published > self.publish_every_s():
            self.publish()

    def publish_every_s(self) -> float:
        return max(self.pipeline.run.publish_s, PUBLISH_SHARE * self.publishing_s)

    def confirm(self) -> None:
        """Raises Stopped where another run has taken over the store."""
        if isinstance(self.store, ObjectPath):
            held(self.store)

    def publish(self) -> None:
        """Put what is committed in force."""
        began = time.monotonic()
        publish(self.store, list(self.packs.values()), list(self.videos.values()))
        write_failures(self.store, list(self.failures.values()))
        self.life.published()
        self.published = time.monotonic()
        self.publishing_s = self.published - began

    def finish(self, status: str) -> None:
        """Publish, and complete the record: counts, CPU seconds by stage, and what each worker did."""
        self.settle(status)
        wall = time.monotonic() - self.started
        self.record |= {
            "status": status, "ended": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "wall_s": round(wall, 2),
            "making_s": round(self.made - self.begun, 2),
            "counts": self.counts(), **self.account.document(),
            "deaths": [{"task": death.task.name, "kind": death.kind, "attempts": death.attempts,
                        "worker": death.worker} for death in self.deaths]}
        self.write_record()

    def settle(self, status: str) -> None:
        """The last publication, and the sweep."""
        sweep_partials(self.store)
        self.publish()
        if isinstance(self.store, ObjectPath):
            sweep_prefixes(self.store, self.packs.values(), superseded=True)

    def counts(self) -> dict[str, int]:
        """Of this run and of the whole store."""
        return {**{key: getattr(self.account, key) for key in ("packs", "videos", "frames", "bytes")},
                "store_videos": len(self.videos), "failures": len(self.failed)}
