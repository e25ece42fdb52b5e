"""Video files as a source of clips, without a store: features need frames alone, and no flow. They lie in folders, on
object storage or in archives, and are read there.

L frames at stride S of a clip, HxW pixels, u clips read together.
"""

import contextlib
import dataclasses
from collections.abc import Generator, Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np

from evaluate.embedding.sources import Item, Piece, Videos, batches
from evaluate.embedding.wanted import wanted_frames
from shared.cli import Stopped
from shared.clips.index import ClipGeometry
from shared.datasets.catalog import Video, open_catalog
from shared.datasets.sources import open_sources, single_file
from shared.nn.transform import Transform
from shared.recipes.preprocessing import load_pipeline
from shared.store.place import Place, insist_on
from shared.store.tables import FailureRow
from shared.videos.decode import GoodRun, frame_size, good_runs, probe
from shared.videos.files import CANNOT, Span, VideoError, VideoFile, span_of, state_of
from shared.videos.isolate import ChildProcess, Died, InProcess

PATIENCE_S = 120      # for the next frames of a file: a decoder that hangs is ended, and the video is a failure
SCAN_S = 1800         # to look for the good frames of a damaged file


class FolderVideos(Videos):
    """The video files of folders, prefixes on object storage and archives, as `preprocess.run --dataset folder` lists
    them, or one file; decoded as a store's would be by today's recipe, in child processes, which a damaged file may
    kill without loss.

    Raises RequestError for sources without videos and wrong annotations.
    """

    def __init__(self, texts: Sequence[str | Place], apart: bool = True):
        self.frames = load_pipeline("folder", None, ()).recipe.frames
        self.apart = apart
        if file := single_file(texts):
            self.texts, self.place = (str(file),), file.parent
            where = file if isinstance(file, Path) else span_of(file, file.state())
            videos, refused = [Video(file.name, file.name, -1, "", "", (), where)], {}
        else:
            catalog = open_catalog("folder", open_sources(texts))
            self.texts, self.place = catalog.sources.texts, catalog.root
            videos, refused = catalog.videos, catalog.refused
        self.videos = {video.path: video for video in videos}
        self.items = [Item(video.id, video.path, video.class_name, ";".join(video.splits), self._state(video))
                      for video in videos]
        self.failures = [FailureRow(path, path, reason, "open") for path, reason in refused.items()]

    def _state(self, video: Video) -> str:
        file = video.file(self.place)
        try:
            return file.state if isinstance(file, Span) else state_of(file)
        except OSError:
            return ""                # read anyway, which says why it cannot be

    def to_dict(self) -> dict:
        return {"videos": self.texts[0] if len(self.texts) == 1 else list(self.texts),
                "frames": dataclasses.asdict(self.frames)}

    def details(self) -> dict:
        return {}

    @contextlib.contextmanager
    def opened(self) -> Iterator[ChildProcess | InProcess]:
        with contextlib.closing(ChildProcess() if self.apart else InProcess()) as process:
            yield process

    def read(self, process: ChildProcess | InProcess, item: Item, view: Transform,
             batch: int) -> Generator[Piece, None, str]:
        """Of a damaged video the longest run of good frames, if it holds a clip."""
        video = self.videos[item.path]
        path = video.file(self.place)
        reading = self.frames.square_pixels, self.frames.reading
        try:
            found = process.call(probe, path, *reading, limit_s=PATIENCE_S)
            run, damage = GoodRun(0, found.frames, found.source_height, found.source_width), ""
            for attempt in count():
                try:
                    frames = yield from self._clips(process, path, run, bool(damage), view, batch, attempt)
                    if frames == run.frames:
                        return damage
                    run = dataclasses.replace(run, frames=frames)
                except VideoError as error:
                    if damage or not error.frames:
                        raise
                    run = max(process.call(good_runs, path, *reading, limit_s=SCAN_S), key=lambda run: run.frames)
                    if run.frames < view.geometry.span:
                        raise VideoError(f"{error.reason}; fewer good frames in a row than a clip's "
                                         f"{view.geometry.span}", error.stage) from error
                    damage = (f"{error.reason}; its good frames {run.first:,} to {run.first + run.frames - 1:,} are "
                              "used")
        except Died as death:
            raise VideoError(str(death), "decode") from death
        except VideoError as error:
            if error.reason.startswith(CANNOT):
                try:
                    insist_on(video.root(self.place))
                except OSError as gone:
                    raise Stopped(f"{gone.filename}: {gone.strerror}; bring it back and run the same command again to "
                                  "go on") from error
            raise

    def _clips(self, process: ChildProcess | InProcess, path: VideoFile, run: GoodRun, damaged: bool, view: Transform,
               batch: int, attempt: int) -> Generator[Piece, None, int]:
        """The clips of a file's run of good frames, which is expected to be so long, as they come; returns how long it
        is. Frames that no clip needs any more are let go."""
        settings, asked = dataclasses.asdict(self.frames), list(batches(view, run.frames, batch))
        crop = view.crop(*frame_size(run.height, run.width, self.frames.short_side, self.frames.multiple))
        wanted = np.unique(np.concatenate([numbers for numbers, *_ in asked]))
        stream = process.stream(wanted_frames, path, settings, run.first, run.frames if damaged else 0, wanted, crop,
                               limit_s=PATIENCE_S)
        held: dict[int, np.ndarray] = {}
        arriving = iter(wanted.tolist())
        try:
            for numbers, *clips in asked:
                while not held.keys() >= set(numbers.tolist()):
                    held.update((number, frame) for frame, number in zip(next(stream), arriving))
                yield Piece(attempt, run.frames, np.stack([held[number] for number in numbers.tolist()]), *clips)
                for number in [number for number in held if number < numbers[0]]:
                    del held[number]
            while True:
                next(stream)
        except StopIteration as end:
            return end.value

    def interrupt(self, process: ChildProcess | InProcess) -> None:
        process.interrupt()

    def middle(self, process: ChildProcess | InProcess, item: Item) -> np.ndarray:
        *_, piece = self.read(process, item, _Whole(1, ClipGeometry(1, 1), 1, 1), 1)
        return piece.frames[0]


class _Whole(Transform):
    """Frames without a crop."""

    def crop(self, height: int, width: int) -> tuple[slice, slice]:
        return slice(height), slice(width)
