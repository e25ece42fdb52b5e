"""What a plan costs: measured on a sample, held against the disk, told to people, and the limit of a task's time."""

import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

from preprocess.flow import runs_here
from preprocess.plan import Plan, PlannedPack
from preprocess.task import PackReport, PackTask, make_pack
from shared.cli import Progress, RequestError, duration, plural, size
from shared.datasets.catalog import Catalog
from shared.recipes.preprocessing import Recipe, Run
from shared.store.place import ObjectPath, Place
from shared.videos.decode import ESTIMATES, Probe, good_runs, probe
from shared.videos.files import FREE, Span
from shared.videos.isolate import ChildProcess, Died, InProcess

# Good videos of so many tried, frames of each, seconds in all.
SAMPLE_VIDEOS, SAMPLE_TRIES, SAMPLE_FRAMES, SAMPLE_S = 3, 8, 33, 10
INDEX_BYTES = 600                      # of a video's rows and a record's plan, rounded up
FILES_PER_PACK, PACK_BYTES = 23, 20_000  # and the bytes of its metadata
FREE_MARGIN = 1.25                     # clips differ: the sample's bytes were up to 14 % low
BYTES_PER_PIXEL = 0.25                 # where no sample could be measured
COUNTED_FRAMES = 5000                  # longer videos are not decoded whole for the plan
SAMPLE_LIMIT_S = 180                   # seconds for a sample
TASK_GRACE_S, TASK_FACTOR = 900, 10    # a pack may take so long, and so many times what the plan expects of it
UNKNOWN_FRAME_S = 1.0                  # CPU seconds a frame where no sample could be measured


@dataclass(frozen=True)
class Cost:
    """What the packs will take, from a measured sample. Zero where nothing is left to do.

    cpu_s, wall_s: None where no sample could be measured (unreadable, or of two frames).
    packs: by their names the frames that each of them is expected to have.
    """

    frames: float = 0
    cpu_s: float | None = 0
    wall_s: float | None = 0
    bytes: float = 0
    files: int = 0
    packs: dict[str, int] = field(default_factory=dict)

    def share(self, share: float) -> "Cost":
        """That of so large a part of the packs, which are not told one by one."""
        return replace(self, frames=self.frames * share, cpu_s=self.cpu_s and self.cpu_s * share,
                       wall_s=self.wall_s and self.wall_s * share, bytes=self.bytes * share, packs={})


def measure_cost(packs: list[PlannedPack], catalog: Catalog, recipe: Recipe, run: Run,
                 reader: InProcess | ChildProcess = InProcess(), probes: dict[str, Probe] | None = None) -> Cost:
    """Time and size of the packs, from really preprocessing the head of a few of their videos into a temporary store.

    Where a video's length is an estimate (by its probe's basis) the sample is decoded whole, which corrects all
    estimates on the same basis. A sample that kills the reader is none.
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
    ratios = defaultdict(list)
    for sample in samples:
        if sample.promised:
            ratios[sample.basis].append(sample.decoded / sample.promised)
    corrections = {basis: statistics.median(values) for basis, values in ratios.items()}   # of one wrong header none
    expected = {pack.name: _corrected(pack, probes or {}, corrections) for pack in packs}
    area = sum(expected[pack.name] * pack.frame_size[0] * pack.frame_size[1] for pack in packs)
    frames = sum(expected.values())
    fixed = INDEX_BYTES * len(ids) + PACK_BYTES * len(packs)
    files = FILES_PER_PACK + 2 * (recipe.packs.edges + recipe.packs.flow) + 13 * (len(recipe.clips.geometries) - 1)
    files *= len(packs)
    if not samples:
        return Cost(frames, None, None, area * BYTES_PER_PIXEL + fixed, files, expected)
    share = area / sum(sample.pixels for sample in samples)
    cpu, wall, stored = (share * sum(getattr(sample, name) for sample in samples) for name in ("cpu", "wall", "bytes"))
    return Cost(frames, cpu, wall, stored + fixed, files, expected)


def _corrected(pack: PlannedPack, probes: dict[str, Probe], corrections: dict[str, float]) -> int:
    """Frames that the pack is expected to have; those of a plan that is taken up again stand as they are."""
    changes = sum((corrections.get(probes[video].basis, 1.0) - 1) * probes[video].frames for video in pack.videos
                  if video in probes)
    return max(1, round(pack.frames + changes))


@dataclass(frozen=True)
class Sample:
    """What the head of one video took: CPU and wall seconds, bytes, pixels; and its frames, promised (on which basis)
    and decoded, lost ones too (0 where they were not counted)."""

    cpu: float
    wall: float
    bytes: int
    pixels: int
    promised: int
    decoded: int
    basis: str


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
    # A video that is planned at the size of its longest run may have too few frames of it at its head.
    if short.pack is None or report.frames <= short.frames:
        return None
    path = task.videos[0].file(task.root)
    settings = task.recipe.frames
    headers = probe(path, settings.square_pixels, settings.reading)
    promised = decoded = 0
    if headers.basis in ESTIMATES and headers.frames <= COUNTED_FRAMES:
        last = good_runs(path, settings.square_pixels, settings.reading)[-1]
        promised, decoded = headers.frames, last.first + last.frames
    pixels = (report.frames - short.frames) * task.frame_size[0] * task.frame_size[1]
    return Sample(max(0.0, report_cpu - short_cpu), max(0.0, report_wall - short_wall), _bytes(report) - _bytes(short),
                  pixels, promised, decoded, headers.basis)


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
    if requests := _requests(plan, catalog):
        lines.append(requests)
    return "\n".join(lines)


def _requests(plan: Plan, catalog: Catalog) -> str:
    """What is asked of object storage for the videos of a plan; "" where nothing is."""
    todo = {video for pack in plan.packs for video in pack.videos}
    spans = [video.where for video in catalog.videos if video.id in todo and isinstance(video.where, Span)]
    making, count = sum(span.requests for span in spans), sum(span.size for span in spans if span.requests)
    if not making:
        return ""
    return (f"requests at most {making:,} to read {size(count)} from object storage; probing takes at most "
            f"{FREE * len(plan.probes):,}, headers of archives took {catalog.scan.requests:,}")
