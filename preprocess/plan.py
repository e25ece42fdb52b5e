"""Catalog + recipe -> packs.

Packs are planned per frame size, greedily in the order of the video ids. The run's record keeps an unfinished plan, so
a resumed run makes the packs that the interrupted one would have made, and new videos go into new packs.
"""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from preprocess.stages import check_size
from preprocess.task import Misplanned, PackTask
from shared.cli import Progress, plural
from shared.datasets.catalog import Catalog, Video
from shared.recipes.preprocessing import Recipe, Run
from shared.store.place import Place
from shared.store.tables import FailureRow
from shared.videos.decode import Probe, frame_size, probe
from shared.videos.files import VideoError, VideoFile
from shared.videos.isolate import ChildProcess, Died, InProcess

PROBE_BATCH, PROBE_S = 256, 60         # headers asked for at once; seconds for one


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
        paths = [video.file(catalog.root) for video in batch]
        try:
            found = reader.call(_probe_batch, paths, recipe, limit_s=PROBE_S * len(batch))
        except Died:
            found = [_probe_alone(path, recipe, reader) for path in paths]
        yield from zip(batch, found)
        progress.update(at + len(batch), f"{at + len(batch):,} of {plural(len(videos), 'video')}")
    progress.close(text=plural(len(videos), "video"))


def _probe_alone(path: VideoFile, recipe: Recipe, reader: InProcess | ChildProcess):
    try:
        return reader.call(_probe_batch, [path], recipe, limit_s=PROBE_S)[0]
    except Died as death:
        return VideoError(f"reading its headers {death}", "probe")


def _probe_batch(paths: list[VideoFile], recipe: Recipe) -> list:
    """(Probe, (H, W)) or VideoError of every file, probed side by side."""
    def one(path: VideoFile):
        try:
            settings = recipe.frames
            found = probe(path, settings.square_pixels, settings.reading)
            size = frame_size(found.source_height, found.source_width, settings.short_side, settings.multiple)
            return found, check_size(size, recipe)
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


def with_corrections(probes: dict[str, Probe],
                     misplanned: Iterable[Misplanned]) -> dict[str, tuple[int, tuple[int, int]]]:
    """`sized` for `group_packs` from videos whose headers were wrong: the shape and length that decoding showed."""
    return {m.video: (max(m.frames, probes[m.video].frames if m.video in probes else 0), m.frame_size)
            for m in misplanned}
