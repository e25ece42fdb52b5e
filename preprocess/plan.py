"""Catalog + recipe -> packs, their cost, and refusals.

Packs are planned per frame size, greedily in the order of the video ids. The run's record keeps an unfinished plan, so
a resumed run makes the packs that the interrupted one would have made, and new videos go into new packs.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from preprocess.decode import Probe, VideoError, count_frames, frame_size, probe
from preprocess.flow import runs_here
from preprocess.isolate import ChildProcess, Died, InProcess
from preprocess.task import Misplanned, PackReport, PackTask, make_pack
from shared.cli import Progress, RequestError, duration, plural, size
from shared.datasets.catalog import Catalog, Video
from shared.recipes.preprocessing import Recipe, Run
from shared.store.place import ObjectPath, Place
from shared.store.tables import FailureRow

# Good videos of so many tried, frames of each, seconds in all.
SAMPLE_VIDEOS, SAMPLE_TRIES, SAMPLE_FRAMES, SAMPLE_S = 3, 8, 33, 10
INDEX_BYTES = 600                      # of a video's rows and a record's plan, rounded up
FILES_PER_PACK, PACK_BYTES = 23, 20_000  # and the bytes of its metadata
FREE_MARGIN = 1.25                     # clips differ: the sample's bytes were up to 14 % low
BYTES_PER_PIXEL = 0.25                 # where no sample could be measured
COUNTED_FRAMES = 5000                  # longer videos are not decoded whole for the plan
PROBE_BATCH, PROBE_S, SAMPLE_LIMIT_S = 256, 60, 180   # headers asked for at once; seconds for one, and for a sample
TASK_GRACE_S, TASK_FACTOR = 900, 10    # a pack may take so long, and so many times what the plan expects of it
UNKNOWN_FRAME_S = 1.0                  # CPU seconds a frame where no sample could be measured


@dataclass(frozen=True)
class PlannedPack:
    """A pack's name, frame size (H, W), the ids of its videos in order, and the frames that their headers promise."""

    name: str
    frame_size: tuple[int, int]
    videos: tuple[str, ...]
    frames: int

    def to_list(self) -> list:
        return [self.name, list(self.frame_size), list(self.videos), self.frames]

    @classmethod
    def from_list(cls, row: list) -> "PlannedPack":
        return cls(row[0], tuple(row[1]), tuple(row[2]), row[3])


@dataclass(frozen=True)
class Cost:
    """What the packs will take, from a measured sample. Zero where nothing is left to do.

    cpu_s, wall_s: None where no sample could be measured (unreadable, or of two frames).
    """

    frames: float = 0
    cpu_s: float | None = 0
    wall_s: float | None = 0
    bytes: float = 0
    files: int = 0


@dataclass
class Plan:
    """packs: what to do. failures: videos whose headers already rule them out. probes: by video id."""

    packs: list[PlannedPack] = field(default_factory=list)
    failures: list[FailureRow] = field(default_factory=list)
    probes: dict[str, Probe] = field(default_factory=dict)


def pack_name(size: tuple[int, int], videos: Iterable[str], attempts: Iterable[int]) -> str:
    """12 hex digits that follow from what goes into the pack."""
    text = "\n".join([f"{size[0]}x{size[1]}", *(f"{v}\t{a}" for v, a in zip(videos, attempts))])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def group_packs(sized: dict[str, tuple[int, tuple[int, int]]], recipe: Recipe,
                attempts: dict[str, int]) -> list[PlannedPack]:
    """Greedy packs of one frame size each: up to packs.videos videos or packs.frames frames, whichever comes first.

    sized: video id -> (frames, (H, W)). A longer video is a pack of its own.
    """
    packs = []

    def close(shape, ids, frames):
        name = pack_name(shape, ids, (attempts.get(v, 0) for v in ids))
        packs.append(PlannedPack(name, shape, tuple(ids), frames))

    for shape in sorted({shape for _, shape in sized.values()}):
        ids, total = [], 0
        for video in sorted(v for v, (_, s) in sized.items() if s == shape):
            frames = sized[video][0]
            if ids and (len(ids) == recipe.packs.videos or total + frames > recipe.packs.frames):
                close(shape, ids, total)
                ids, total = [], 0
            ids.append(video)
            total += frames
        close(shape, ids, total)
    return packs


def make_plan(catalog: Catalog, recipe: Recipe, todo: set[str], unfinished: Iterable[PlannedPack] = (),
              attempts: dict[str, int] | None = None, reader: InProcess | ChildProcess = InProcess()) -> Plan:
    """Plan the videos `todo`: first the unfinished packs of earlier runs that still hold, then new packs.

    Probes headers side by side, with progress. A video that cannot be opened becomes a failure of stage `probe`; so
    does one that kills the reader.
    """
    attempts = attempts or {}
    videos = {video.id: video for video in catalog.videos if video.id in todo}
    plan, left = Plan(), set(videos)
    for pack in unfinished:
        if left.issuperset(pack.videos):
            plan.packs.append(pack)
            left -= set(pack.videos)
    sized = {}
    for video, result in _probe_all(catalog, [videos[v] for v in sorted(left)], recipe, reader):
        if isinstance(result, VideoError):
            plan.failures.append(FailureRow(video.id, video.path, result.reason, result.stage,
                                            attempts.get(video.id, 0) + 1))
        else:
            plan.probes[video.id], shape = result
            sized[video.id] = (plan.probes[video.id].frames, shape)
    plan.packs += group_packs(sized, recipe, attempts)
    return plan


def _probe_all(catalog: Catalog, videos: list[Video], recipe: Recipe, reader: InProcess | ChildProcess):
    """(video, (Probe, (H, W)) or VideoError) one after another; many at a time, and singly where the reader dies."""
    progress = Progress("probing", len(videos))
    for at in range(0, len(videos), PROBE_BATCH):
        batch = videos[at:at + PROBE_BATCH]
        paths = [catalog.root / video.path for video in batch]
        try:
            found = reader.call(_probe_batch, paths, recipe, limit_s=PROBE_S * len(batch))
        except Died:
            found = [_probe_alone(path, recipe, reader) for path in paths]
        yield from zip(batch, found)
        progress.update(at + len(batch), f"{at + len(batch):,} of {plural(len(videos), 'video')}")
    progress.close(text=plural(len(videos), "video"))


def _probe_alone(path: Path, recipe: Recipe, reader: InProcess | ChildProcess):
    try:
        return reader.call(_probe_batch, [path], recipe, limit_s=PROBE_S)[0]
    except Died as death:
        return VideoError(f"reading its headers {death}", "probe")


def _probe_batch(paths: list[Path], recipe: Recipe) -> list:
    """(Probe, (H, W)) or VideoError of every file, probed side by side."""
    def one(path: Path):
        try:
            found = probe(path)
            return found, frame_size(found.source_height, found.source_width, recipe.frames.short_side,
                                     recipe.frames.multiple)
        except VideoError as error:
            return error

    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
        return list(pool.map(one, paths))


def tasks_of(packs: Iterable[PlannedPack], catalog: Catalog, store: Place, recipe: Recipe, recipe_hash: str, run: Run,
             attempts: dict[str, int], kept: dict[str, int]) -> list[PackTask]:
    """The tasks that make these packs."""
    videos = {video.id: video for video in catalog.videos}
    return [PackTask(store, catalog.root, pack.name, pack.frame_size, tuple(videos[v] for v in pack.videos), recipe,
                     recipe_hash, run, tuple(attempts.get(v, 0) for v in pack.videos),
                     tuple(kept.get(v, 0) for v in pack.videos), frames=pack.frames) for pack in packs]


def measure_cost(packs: list[PlannedPack], catalog: Catalog, recipe: Recipe, run: Run,
                 reader: InProcess | ChildProcess = InProcess()) -> Cost:
    """Time and size of the packs, from really preprocessing the head of a few of their videos into a temporary store.

    The same videos are decoded whole, which corrects the frame counts that headers promise. A sample that kills the
    reader is none.
    """
    if not packs:
        return Cost()
    ids = [(pack, video) for pack in packs for video in pack.videos]
    tries = ids[::max(1, len(ids) // SAMPLE_TRIES)][:SAMPLE_TRIES] if runs_here(recipe.flow.backend) else []
    videos = {video.id: video for video in catalog.videos}
    samples, warm = [], False
    started = time.perf_counter()
    progress = Progress("measuring", SAMPLE_VIDEOS)
    with tempfile.TemporaryDirectory(prefix="motionpack-plan-") as temporary:
        for number, (pack, video) in enumerate(tries):
            task = PackTask(Path(temporary), catalog.root, f"sample{number}", pack.frame_size, (videos[video],), recipe,
                            "", run)
            try:
                sample = reader.call(measure_sample, task, warm, limit_s=SAMPLE_LIMIT_S)
                warm = True
            except Died:
                sample, warm = None, False
            if sample is None:
                continue
            samples.append(sample)
            progress.update(len(samples), f"{len(samples)} of {SAMPLE_VIDEOS} sample videos")
            if len(samples) == SAMPLE_VIDEOS or time.perf_counter() - started > SAMPLE_S:
                break
    progress.close()
    promised, decoded = (sum(getattr(sample, name) for sample in samples) for name in ("promised", "decoded"))
    correction = decoded / promised if promised else 1.0
    area = correction * sum(pack.frames * pack.frame_size[0] * pack.frame_size[1] for pack in packs)
    frames = correction * sum(pack.frames for pack in packs)
    fixed = INDEX_BYTES * len(ids) + PACK_BYTES * len(packs)
    files = FILES_PER_PACK + 2 * (recipe.packs.edges + recipe.packs.flow) + 13 * (len(recipe.clips.geometries) - 1)
    files *= len(packs)
    if not samples:
        return Cost(frames, None, None, area * BYTES_PER_PIXEL + fixed, files)
    share = area / sum(sample.pixels for sample in samples)
    cpu, wall, stored = (share * sum(getattr(sample, name) for sample in samples) for name in ("cpu", "wall", "bytes"))
    return Cost(frames, cpu, wall, stored + fixed, files)


@dataclass(frozen=True)
class Sample:
    """What the head of one video took: CPU and wall seconds, bytes, pixels; and its frames, promised and decoded (0
    where they were not counted)."""

    cpu: float
    wall: float
    bytes: int
    pixels: int
    promised: int
    decoded: int


def measure_sample(task: PackTask, warm: bool) -> Sample | None:
    """Preprocess the head of the task's one video; None where it has too few good frames.

    warm: this process has loaded and compiled what it needs.
    """
    def make(name: str, frames: int):
        began_cpu, began = time.process_time(), time.perf_counter()
        report = make_pack(replace(task, name=f"{name}-{task.name}", sample_frames=frames))
        return report, time.process_time() - began_cpu, time.perf_counter() - began

    if not warm:
        make("warm", 2)
    # What a pack costs whatever its length is measured on two frames and taken off.
    short, short_cpu, short_wall = make("short", 2)
    report, report_cpu, report_wall = make("long", SAMPLE_FRAMES)
    if report.frames <= short.frames:
        return None
    path = task.root / task.videos[0].path
    headers = probe(path).frames
    promised, decoded = (headers, count_frames(path)) if headers <= COUNTED_FRAMES else (0, 0)
    pixels = (report.frames - short.frames) * task.frame_size[0] * task.frame_size[1]
    return Sample(max(0.0, report_cpu - short_cpu), max(0.0, report_wall - short_wall), _bytes(report) - _bytes(short),
                  pixels, promised, decoded)


def time_limit(frames: int, cost: Cost, run: Run) -> float:
    """Seconds that a task of so many frames may take: run.time_limit_s, or by the plan.

    That is TASK_GRACE_S and TASK_FACTOR times the CPU seconds that `cost` expects of the frames: one core's.
    """
    known = cost.cpu_s and cost.frames
    frame_s = max(cost.cpu_s, cost.wall_s) / cost.frames if known else UNKNOWN_FRAME_S
    return run.time_limit_s or TASK_GRACE_S + TASK_FACTOR * frames * frame_s


def _bytes(report: PackReport) -> int:
    return sum(count for count, _ in report.pack.files.values())


def refuse_if_too_large(cost: Cost, store: Place) -> None:
    """Raise RequestError where the packs cannot fit on the store's disk, or nothing can be written there. What object
    storage takes is not known beforehand."""
    if isinstance(store, ObjectPath):
        return
    parent = next(p for p in (store, *store.parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise RequestError(f"{parent} is not writable; choose another --store")
    free = shutil.disk_usage(parent).free
    if cost.bytes * FREE_MARGIN > free:
        raise RequestError(f"the packs need about {size(cost.bytes)} and {parent} has {size(free)} free; "
                           f"free some or choose another --store")


def describe(plan: Plan, cost: Cost, catalog: Catalog, done: int, backend: str) -> str:
    """The plan as people read it."""
    count = sum(len(pack.videos) for pack in plan.packs)
    shapes = {pack.frame_size for pack in plan.packs}
    lines = [f"videos   {count:,} to do, {done:,} done, {len(plan.failures):,} unreadable, "
             f"{len(catalog.absent):,} absent, {plural(catalog.ignored, 'file')} ignored",
             f"packs    {len(plan.packs):,} of {plural(len(shapes), 'frame size')}"]
    if plan.packs:
        lines += [f"frames   {cost.frames:,.0f}", f"disk     {size(cost.bytes)} in {plural(cost.files, 'file')}"]
    if plan.packs and cost.wall_s is None:
        lines.append("time     not measured: " + ("no sample video has more than two good frames" if runs_here(backend)
                                                  else f"flow on {backend} cannot run on this machine"))
    elif plan.packs:
        hours = f"{cost.wall_s / 3600:.2g} GPU-hours" if backend == "cuda" else f"{cost.cpu_s / 3600:.2g} CPU-hours"
        lines += [f"compute  {hours} with flow on {backend}",
                  f"time     {duration(cost.wall_s)} on this machine ({plural(os.cpu_count(), 'core')})"]
    return "\n".join(lines)


def with_corrections(probes: dict[str, Probe],
                     misplanned: Iterable[Misplanned]) -> dict[str, tuple[int, tuple[int, int]]]:
    """`sized` for `group_packs` from videos whose headers were wrong: the shape and length that decoding showed."""
    return {m.video: (max(m.frames, probes[m.video].frames if m.video in probes else 0), m.frame_size)
            for m in misplanned}
