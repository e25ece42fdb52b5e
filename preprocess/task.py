"""One pack: decode -> flow -> motion -> index -> write. Returns a report.

Stages run side by side in threads, ahead of one another from video to video too, and hand windows of frames on, so
memory holds a few windows whatever the length of a video: at 64 frames of 256x344 about 0.5 GB in all, the interpreter
and its libraries included, and up to AHEAD decoded frames a thread.
"""

import functools
import os
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace

import cv2

from preprocess.ahead import Ahead, Line
from preprocess.engines.guard import private_memory
from preprocess.machine import task_cores
from preprocess.stages import Decoded, FlowError, Flows, TooShort, check_size, motion_arrays, with_flow
from shared.clips.index import ClipGeometry, ClipIndexer
from shared.datasets.catalog import Video
from shared.recipes.preprocessing import Recipe, Run
from shared.store.committed import load_pack
from shared.store.packs import PackWriter
from shared.store.place import Place, insist_on
from shared.store.tables import FailureRow, PackRow, VideoRow
from shared.store.verify import ROOT
from shared.videos.decode import GoodRun, frame_size, good_runs, open_video
from shared.videos.files import CANNOT, VideoError

AHEAD = 256  # frames a thread that wait decoded: a video of 10 s, so that threads as many decode one each


@dataclass(frozen=True)
class PackTask:
    """A pack to make: where, of which videos, and how. Small, and the same on every engine.

    sample_frames: stop every video after so many frames (the plan's cost sample); 0 = all.
    attempts: how often each video has been tried before, in the order of `videos`.
    kept: good frames that an earlier pack already keeps of a damaged video; the same again is not worth a new pack.
    frames: what the headers of its videos promise in all; it bounds the task's time.
    lost: rows of those of its videos that killed their workers: they are not opened, and the rows go into the report.
    trial: do all the work and commit nothing, to see whether the process survives it.
    """

    store: Place
    root: Place
    name: str
    frame_size: tuple[int, int]
    videos: tuple[Video, ...]
    recipe: Recipe
    recipe_hash: str
    run: Run
    attempts: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    sample_frames: int = 0
    frames: int = 0
    lost: tuple[FailureRow, ...] = ()
    trial: bool = False


@dataclass(frozen=True)
class Misplanned:
    """A video whose headers were wrong: it does not fit this pack and is planned again with what decoding showed."""

    video: str
    frames: int
    frame_size: tuple[int, int]


@dataclass(frozen=True)
class PackReport:
    """What came of a task. seconds: CPU seconds by stage; wall_s: seconds from start to end; video_seconds: CPU seconds
    by stage of each video that was opened; memory: bytes that the worker held for itself at the end."""

    task: PackTask
    pack: PackRow | None
    videos: tuple[VideoRow, ...]
    failures: tuple[FailureRow, ...]
    misplanned: tuple[Misplanned, ...]
    frames: int
    wall_s: float
    seconds: dict[str, float] = field(default_factory=dict)
    worker: str = ""
    tracebacks: tuple[str, ...] = ()
    video_seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    memory: int = 0


class Overflow(Exception):
    """The video would push the pack past its frame limit."""


def make_pack(task: PackTask, tell: Callable[[int, int], None] = lambda videos, frames: None) -> PackReport:
    """Preprocess the task's videos into one pack; a bad video becomes a failure row and never ends the task.

    A pack of this name that is committed already is not made again: its rows are the report.
    tell(videos, frames): called with what came to its end since the last call; an engine in this process shows it.
    Raises OSError where the store cannot be written or the videos' folder has gone, FlowError where the flow backend
    does not work.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    if not task.trial and (done := _committed(task)):
        return done
    lost = {row.video: row for row in task.lost}
    seconds, spent = {"decode": 0.0, "grey": 0.0, "motion": 0.0}, defaultdict(Counter)
    failures, misplanned, tracebacks = [], [], []
    cv2.setNumThreads(1)
    threads = task.run.threads or task_cores(task.run.gpus_per_task if task.recipe.flow.backend == "cuda" else 0)
    with ThreadPoolExecutor(threads) as pool, \
            _flows(task, [video for video in task.videos if video.id not in lost], pool, threads, spent) as videos:
        writer = PackWriter(task.store, task.name, task.frame_size,
                            geometries=[ClipGeometry.parse(g) for g in task.recipe.clips.geometries],
                            edges=task.recipe.packs.edges, flow=task.recipe.packs.flow,
                            jpeg_quality=task.recipe.packs.jpeg_quality, executor=pool,
                            attributes={"backend": task.recipe.flow.backend, "recipe_hash": task.recipe_hash})
        try:
            for number, video in enumerate(task.videos):
                attempts = (task.attempts[number] if task.attempts else 0) + 1
                kept = task.kept[number] if task.kept else 0
                if video.id in lost:
                    failures.append(lost[video.id])
                    continue
                before = seconds | writer.cpu_seconds
                try:
                    with next(videos) as flows:
                        outcome = _add_video(task, video, kept, flows, writer, pool, seconds, spent, tell)
                except VideoError as error:
                    writer.abort_video()
                    if error.reason.startswith(CANNOT):
                        insist_on(video.root(task.root))
                    outcome = FailureRow(video.id, video.path, error.reason, error.stage, attempts)
                except Overflow:
                    writer.abort_video()
                    outcome = Misplanned(video.id, task.recipe.packs.frames + 1, task.frame_size)
                except (OSError, MemoryError, ImportError, FlowError):
                    raise   # the machine's fault, not the video's
                except Exception as error:
                    writer.abort_video()
                    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                    tracebacks.append(f"{video.id}\n{traceback.format_exc()}")
                    outcome = FailureRow(video.id, video.path, reason, "process", attempts)
                if isinstance(outcome, FailureRow):
                    failures.append(replace(outcome, attempts=attempts))
                elif isinstance(outcome, Misplanned):
                    misplanned.append(outcome)
                after = seconds | writer.cpu_seconds
                spent[video.id].update({stage: after[stage] - before[stage] for stage in ("motion", "encode", "write")})
                tell(1, 0)
            frames = writer.frames
            pack, rows = writer.commit(failures) if writer.videos and not task.trial else (None, [])
            if rows is not writer.rows and (done := pack and _committed(task)):
                return done   # another worker was first: what it kept counts
        finally:
            writer.discard()
    for stage in ("decode", "grey"):
        seconds[stage] = sum(of_video[stage] for of_video in spent.values())
    seconds |= writer.cpu_seconds
    seconds["flow"] = max(0.0, time.process_time() - cpu - sum(seconds.values()))
    # Flow is computed by several threads; its videos share the sum by the time in which each was at work.
    share = seconds["flow"] / max(sum(of_video["flow"] for of_video in spent.values()), 1e-9)
    for of_video in spent.values():
        of_video["flow"] *= share
    return PackReport(task, pack, tuple(rows), tuple(failures), tuple(misplanned), frames,
                      time.perf_counter() - wall, seconds, f"{os.uname().nodename}:{os.getpid()}", tuple(tracebacks),
                      {video: dict(of_video) for video, of_video in spent.items()}, private_memory())


def _committed(task: PackTask) -> PackReport | None:
    """The report of the task's pack where it is on disk: a worker that died after its commit, or one that outlived its
    driver, has made it. Raises StoreError for a damaged one."""
    height, width = task.frame_size
    path = f"packs/{height}x{width}/{task.name}"
    if not (task.store / path / ROOT).exists():
        return None
    wall = time.perf_counter()
    pack, rows, failures = load_pack(task.store, path)
    known = {row.id for row in rows} | {row.video for row in failures}
    misplanned = []
    for video in task.videos:
        if video.id not in known:   # its headers were wrong: it is of another size, or was too long for the pack
            size = task.frame_size
            with suppress(VideoError):
                with _open(task, video) as source:
                    size = source.frame_size
                size = size if size == task.frame_size else _longest(task, video)[0]
            long = size == task.frame_size
            misplanned.append(Misplanned(video.id, task.recipe.packs.frames + 1 if long else 0, size))
    return PackReport(task, pack, tuple(rows), tuple(failures), tuple(misplanned), pack.frames,
                      time.perf_counter() - wall, worker=f"{os.uname().nodename}:{os.getpid()}")


def _add_video(task: PackTask, video: Video, kept: int, flows: Line, writer: PackWriter, pool: ThreadPoolExecutor,
               seconds: dict[str, float], spent: dict[str, Counter], tell: Callable[[int, int], None],
               run: GoodRun | None = None, damage: str = "") -> FailureRow | Misplanned | None:
    """Stream one video into the pack. None when all of it is good; else what became of it.

    Of a damaged video the longest run of good frames is kept: `run`, where that is not its first; then `damage` says
    what ended the first. Raises VideoError when nothing of it can be kept, Overflow when it does not fit the pack.
    """
    recipe = task.recipe
    indexers = {g: ClipIndexer(ClipGeometry.parse(g), recipe.clips.step) for g in recipe.clips.geometries}
    span = min(indexer.geometry.span for indexer in indexers.values())
    decoded = flows.source.decoded
    source = decoded.source

    def again(run: GoodRun) -> FailureRow | Misplanned | None:
        with _flows(task, [video], pool, 1, spent, run.first) as videos, next(videos) as flows:
            return _add_video(task, video, kept, flows, writer, pool, seconds, spent, tell, run, damage)

    if source.frame_size != task.frame_size:
        size, longest = (source.frame_size, run) if run else _longest(task, video)
        if size != task.frame_size:
            return Misplanned(video.id, 0, check_size(size, recipe))
        damage = f"size or orientation changes before frame {longest.first}"
        return again(longest)
    count = _stream(flows, task, indexers, writer, seconds, tell)
    error, notes = decoded.error, [source.note]
    damage, good = damage or (error.reason if error else ""), range(source.first, source.first + count)
    if error and source.frames and not run and not task.sample_frames and recipe.frames.reading > 1:
        _, longest = _longest(task, video)
        if longest.first != source.first and longest.frames > count:
            if longest.frames >= span:
                writer.abort_video()
                return again(longest)
            good = range(longest.first, longest.first + longest.frames)
    if damage and not good:
        raise VideoError(damage, "decode")
    if damage:
        which = f"{good[0]:,} to {good[-1]:,}" + ", the longest run of them" * bool(run)
        if len(good) < span:
            raise VideoError(f"{damage}; fewer good frames in a row than a clip's {span}: at most {len(good)}, "
                             f"{which}", "decode")
        damage = f"{damage}; its {max(count, kept):,} good frames are kept" + f", {which}" * (count >= kept)
        if count <= kept:
            raise VideoError(damage, "decode")
    if not count:
        raise VideoError("one frame only: no motion", "decode")
    if error:
        notes.append(f"ends early: {error.reason}")
    covered = f"the border of {recipe.motion.border_px} px covers its frames: no motion is scored"
    if 2 * recipe.motion.border_px >= min(task.frame_size) and covered not in source.note:     # a twin has its video's
        notes.append(covered)
    row = VideoRow(id=video.id, path=video.path, pack=task.name, first_frame=0, frames=count, label=video.label,
                   class_name=video.class_name, group=video.group, splits=video.splits, fps=source.fps,
                   source_height=source.source_height, source_width=source.source_width,
                   note="; ".join(filter(None, notes)))
    began = time.thread_time()
    clips = {g: indexer.finish() for g, indexer in indexers.items()}
    seconds["motion"] += time.thread_time() - began
    writer.end_video(row, clips)
    return FailureRow(video.id, video.path, damage, "decode", 0) if damage else None


def _stream(flows: Line, task: PackTask, indexers: dict[str, ClipIndexer], writer: PackWriter,
            seconds: dict[str, float], tell: Callable[[int, int], None]) -> int:
    """Frames of one run, all of them in the pack. Raises Overflow where they do not fit it."""
    frames_before, count = writer.frames, 0
    writer.begin_video()
    with suppress(TooShort):
        for parts, flow in flows:
            count += len(flow)
            if writer.videos and frames_before + count > task.recipe.packs.frames:
                raise Overflow
            began = time.thread_time()
            arrays = motion_arrays(flow, task.recipe, indexers)
            seconds["motion"] += time.thread_time() - began
            at = 0
            for rgb in parts:
                writer.append(rgb, **{name: rows[at:at + len(rgb)] for name, rows in arrays.items()})
                at += len(rgb)
            tell(0, len(flow))
    return count


@contextmanager
def _flows(task: PackTask, videos: Sequence[Video], pool: ThreadPoolExecutor, threads: int, spent: dict[str, Counter],
           first: int = 0) -> Iterator[Iterator[AbstractContextManager[Line]]]:
    """The videos' `Flows` one after another, each to be entered: decoded by `threads` ahead, flow a window ahead.

    spent: by video and stage; CPU seconds of decoding and of making grey, and seconds of the flow, are added at the
    end.
    """
    each = [Counter() for _ in videos]

    @contextmanager
    def decoder(video: Video):
        with _open(task, video, first) as source:
            yield Decoded(source, task.frame_size, task.sample_frames)

    @contextmanager
    def solver(number: int):
        with decoded.open(number) as windows:
            yield Flows(windows.source, with_flow(windows, task.recipe, pool, each[number]))

    decoded = Ahead([functools.partial(decoder, video) for video in videos], threads, AHEAD * threads)
    try:
        with decoded, Ahead([functools.partial(solver, number) for number in range(len(videos))],
                            size=lambda pair: len(pair[1])) as flows:
            yield map(flows.open, range(len(videos)))
    finally:
        for video, of_video, decoding in zip(videos, each, decoded.seconds):
            spent[video.id].update(of_video, decode=decoding)


def _open(task: PackTask, video: Video, first: int = 0):
    """`open_video` by the task's recipe."""
    return open_video(video.file(task.root), window=task.run.window, first=first, **asdict(task.recipe.frames))


def _longest(task: PackTask, video: Video) -> tuple[tuple[int, int], GoodRun]:
    """The longest run of good frames, and the (H, W) that it is kept at; by the rules of before always the first."""
    settings = task.recipe.frames
    runs = good_runs(video.file(task.root), settings.square_pixels, settings.reading)
    run = max(runs if settings.reading > 1 else runs[:1], key=lambda run: run.frames)
    return frame_size(run.height, run.width, settings.short_side, settings.multiple), run
