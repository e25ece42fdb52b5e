"""How far a store is: `python -m preprocess.status STORE [--watch]`, from any machine, during any kind of run.

It only reads: the index, and what plans, runs and parts say in records/. Exit code 0: done without failures; 1: done,
with failures; 4: somebody is at work; 3: work is left, and nobody has given a sign of life.
"""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from preprocess.account import STAGES, Spread, spreads
from preprocess.life import QUIET_S, Sign, signs
from preprocess.session import PLAN
from shared import cli
from shared.cli import RequestError, duration, plural, size
from shared.pictures.census import COUNTED
from shared.store.index import Index, read_failures
from shared.store.layout import StoreError, damage_stops
from shared.store.lock import is_locked
from shared.store.place import Place, store_argument
from shared.store.record import each_record
from shared.store.tables import DROPPED

RUNNING = 4
WATCH_S = 5.0
LISTED = 20          # workers and parts shown


@dataclass
class Status:
    """A store at one moment. packs: done, under way, left, those under way among them; videos, frames: done, left;
    rates: videos/s and frames/s of the last minutes; signs: of every run at work or killed; ended: by part, its last
    record; spreads: CPU seconds a video by stage."""

    locked: bool
    signs: list[Sign]
    packs: tuple[int, int, int] = (0, 0, 0)
    videos: tuple[int, int] = (0, 0)
    frames: tuple[int, int] = (0, 0)
    bytes: int = 0
    reasons: list[tuple[str, int]] = field(default_factory=list)
    rates: tuple[float, float] = (0.0, 0.0)
    ended: dict[str, dict] = field(default_factory=dict)
    spreads: dict[str, Spread] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    unpublished: bool = False       # somebody was killed before the first publication, or with packs in hand

    @property
    def alive(self) -> list[Sign]:
        return [sign for sign in self.signs if sign.alive]

    @property
    def code(self) -> int:
        if self.alive or self.locked:
            return RUNNING
        if self.packs[2] or self.unpublished:
            return cli.STOPPED
        return cli.FAILURES if self.reasons else cli.DONE


def look(store: Place) -> Status:
    """Raises RequestError for what is no store, StoreError for a damaged index."""
    status, begun = Status(is_locked(store), signs(store)), (store / "current").exists()
    if not begun and not status.signs and not status.locked and not (store / "store.json").exists():
        raise RequestError(f"{store} is no store: no run has begun to fill it; expected a folder or a URL that "
                           "preprocess.run has been given as --store")
    packs = videos = frames = 0
    known, listed = set(), set()
    if begun:
        index = Index.load(store)
        known, listed = set(index.id), set(index.packs)
        packs, videos, frames = len(listed), len(index), int(index.frames.sum())
        status.bytes = sum(count for row in index.pack_rows() for count, _ in row.files.values())
    failures = read_failures(store)
    known |= {row.video for row in failures}
    status.reasons = Counter(COUNTED.sub("N", row.reason) for row in failures if row.stage != DROPPED).most_common()
    waiting = {name: made for sign in status.signs for name, made in sign.document["unpublished"].items()}
    for name, (some, of_them) in waiting.items():
        if name not in listed:
            packs, videos, frames = packs + 1, videos + some, frames + of_them
    left = {name: (ids, count) for name, (ids, count) in _planned(store, status).items()
            if name not in waiting and not known.issuperset(ids)}
    status.unpublished = not begun or not waiting.keys() <= listed
    under_way = {name for sign in status.alive for name in sign.document["under_way"]}
    status.packs = packs, len(under_way & left.keys()), len(left)
    status.videos = videos, sum(len(ids) for ids, _ in left.values())
    status.frames = frames, sum(count for _, count in left.values())
    status.rates = rates(status.alive)
    return status


def _planned(store: Place, status: Status) -> dict[str, tuple[list[str], int]]:
    """Videos and frames of the packs that were planned, by name, since a run without --part last came to its end: it
    leaves nothing of what was planned before. Fills in what else the records tell."""
    records, closed = [], ""
    for path, record in each_record(store, None, PLAN):
        if isinstance(record, StoreError):
            status.damaged.append(f"{path.name} is damaged; `python -m preprocess.check {cli.typed(store)}` "
                                  "tells more")
            continue
        records.append(record)
        if record.get("status") in ("done", "failures") and "part" not in record and "plan" in record:
            closed = max(closed, record["started"])
        if "part" in record and record["status"] != "running":
            status.ended[record["part"]] = record
    _supersede(status)
    status.spreads = spreads([*records, *(sign.document for sign in status.signs)])
    planned = {}
    for record in records:
        if record.get("made", record.get("started", "")) >= closed:
            planned |= {name: (ids, frames) for name, _, ids, frames in record.get("plan", ())}
    return planned


def _supersede(status: Status) -> None:
    """Of each part, leave what was begun last: the sign of one that was killed says nothing once it ran again."""
    last = {part: record["started"] for part, record in status.ended.items()}
    for sign in status.signs:
        part = sign.document["part"]
        last[part] = max(last.get(part, ""), sign.document["started"])
    status.signs = [sign for sign in status.signs
                    if sign.alive or sign.document["started"] == last[sign.document["part"]]]
    for sign in status.signs:
        status.ended.pop(sign.document["part"], None)


def rates(alive: Sequence[Sign]) -> tuple[float, float]:
    """Videos and frames a second of all runs together: since the oldest moment, at most some minutes ago, that each
    remembers, or further back where nothing has ended since."""
    videos = frames = 0.0
    for sign in alive:
        told = sign.document
        if told["recent"]:
            since, some, of_them = told["recent"][0]
            seconds = max(told["now"] - since, 1.0)
            videos += (told["videos"] - some) / seconds
            frames += (told["frames"] - of_them) / seconds
    return videos, frames


def describe(status: Status) -> str:
    """The status as people read it."""
    done, under_way, left = status.packs
    lines = [f"packs    {done:,} done, {under_way:,} under way, {left - under_way:,} waiting",
             f"videos   {status.videos[0]:,} done, {status.videos[1]:,} left",
             f"frames   {status.frames[0]:,} done, {status.frames[1]:,} left",
             f"bytes    {size(status.bytes)} published"]
    videos, frames = status.rates
    if frames:
        eta = f", ETA {duration(status.frames[1] / frames)}" if status.frames[1] else ""
        lines.append(f"rate     {videos:.2f} videos/s, {frames:.1f} frames/s over the last minutes{eta}")
    elif status.alive and left:
        lines.append("rate     no pack has ended yet")
    failed = sum(count for _, count in status.reasons)
    lines.append(f"failed   {failed:,}")
    lines += [f"         {count:,} x {reason}" for reason, count in status.reasons[:LISTED]]
    if status.spreads:
        lines.append("CPU seconds a video: half of them take less than the first number, 95 % less than the second")
        lines += [f"  {stage:7} {spread.quantile(0.5):.3g}, {spread.quantile(0.95):.3g}; slowest "
                  f"{', '.join(f'{video} {spent:.3g}' for video, spent in spread.slowest)}"
                  for stage in STAGES if (spread := status.spreads.get(stage))]
    lines += _who(status)
    lines += [f"note     {said}" for said in status.damaged]
    return "\n".join([*lines, *_verdict(status)])


def _who(status: Status) -> list[str]:
    """A line each: runs and parts, the silent ones first; their workers; parts that have ended."""
    lines = []
    for sign in sorted(status.signs, key=lambda sign: (sign.alive, sign.document["part"])):
        told = sign.document
        who = f"part {told['part']}" if told["part"] else "run"
        state = told["state"] if sign.alive else "silent: killed, or its machine is gone"
        lines.append(f"{who:12} {told['host']}:{told['pid']}  {told['packs']:,} of "
                     f"{plural(told['packs_planned'], 'pack')}, {plural(told['failures'], 'failure')}, {state}; last "
                     f"sign {duration(sign.age_s)} ago")
        lines += [f"  worker     {name}  {plural(worker['packs'], 'pack')}, {worker['memory_mb'][1]:,} MB; last pack "
                  f"{duration(max(0.0, told['now'] - worker['seen']) + sign.age_s)} ago"
                  for name, worker in list(told["workers"].items())[:LISTED]]
    shown = lines[:4 * LISTED]
    if len(lines) > len(shown):
        shown.append(f"  ... and {len(lines) - len(shown):,} more lines of runs and workers")
    ended = sorted(status.ended.items(), key=lambda item: item[1]["status"] == "done")
    shown += [f"part {part:7} {record['status']}, {plural(record['counts']['packs'], 'pack')}; ended {record['ended']}"
              for part, record in ended[:LISTED]]
    if len(ended) > LISTED:
        shown.append(f"  ... and {len(ended) - LISTED:,} more parts that have ended")
    return shown


def _verdict(status: Status) -> list[str]:
    if status.code == RUNNING:
        return ["running" if status.alive else "running: somebody holds the store's lock"]
    if status.code == cli.STOPPED:
        return [f"stopped: work is left and nobody has given a sign of life for {QUIET_S:g} s; run the same command "
                "again to go on"]
    return ["done, with failures" if status.reasons else "done"]


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code. Raises RequestError and Stopped for shared.cli.command."""
    parser = cli.Arguments(prog="python -m preprocess.status", description=__doc__.split("\n")[0])
    parser.add_argument("store", type=store_argument, help="a folder, or a URL such as s3://bucket/prefix")
    parser.add_argument("--watch", action="store_true", help=f"again every {WATCH_S:g} s, until nobody is at work")
    args = parser.parse_args(argv)
    with damage_stops(args.store):
        while True:
            status = look(args.store)
            if args.watch and sys.stdout.isatty():
                print("\033[2J\033[H", end="")
            print(describe(status), flush=True)
            if not args.watch or status.code != RUNNING:
                return status.code
            time.sleep(WATCH_S)
            if not sys.stdout.isatty():
                print()


if __name__ == "__main__":
    cli.command(main)
