"""Video files as a source of clips, without a store: features need frames alone, and no flow. They lie in a folder, or
on object storage, where one at a time is fetched by each thread that reads.

L frames at stride S of a clip, HxW pixels, u clips read together.
"""

import contextlib
import dataclasses
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from evaluate.embedding.sources import Item, Piece, Videos, batches
from evaluate.embedding.wanted import wanted_frames
from shared.cli import Stopped, writing
from shared.clips.index import ClipGeometry
from shared.datasets.catalog import Video, open_catalog
from shared.nn.transform import Transform
from shared.recipes.preprocessing import load_pipeline
from shared.store.objects import PART, Scratch
from shared.store.place import ObjectPath, Place
from shared.store.tables import FailureRow
from shared.videos.decode import GoodRun, frame_size, good_runs, probe
from shared.videos.isolate import ChildProcess, Died, InProcess
from shared.videos.streams import VideoError, words

PATIENCE_S = 120      # for the next frames of a file: a decoder that hangs is ended, and the video is a failure
SCAN_S = 1800         # to look for the good frames of a damaged file


@dataclass
class Reader:
    """A thread's own. process: it decodes there; scratch: of videos on object storage, where one is meanwhile; stopped:
    its work is wanted no more."""

    process: ChildProcess | InProcess
    scratch: Scratch | None
    stopped: bool = False


class FolderVideos(Videos):
    """The video files of a folder, or below a prefix on object storage, as `preprocess.run --dataset folder` lists
    them, or one file; decoded as a store's would be by today's recipe, in child processes, which a damaged file may
    kill without loss.

    Raises RequestError for a folder without videos and wrong annotations.
    """

    def __init__(self, root: Place, apart: bool = True):
        self.frames = load_pipeline("folder", None, ()).recipe.frames
        self.apart = apart
        self.place = root.absolute()
        if root.is_file():
            self.place, videos, unnamed = self.place.parent, [Video(root.name, root.name, -1, "", "", ())], ()
            states = {root.name: ""}          # nobody keeps its feature
        else:
            catalog = open_catalog("folder", root)
            videos, unnamed = catalog.videos, catalog.unnamed
            states = catalog.scan.states or {video.path: self._state(video.path) for video in videos}
        self.items = [Item(video.id, video.path, video.class_name, ";".join(video.splits), states[video.path])
                      for video in videos]
        self.failures = [FailureRow(path, path, "its name is not UTF-8; rename it", "open") for path in unnamed]

    def _state(self, path: str) -> str:
        try:
            found = os.stat(self.place / path)
        except OSError:
            return ""                # read anyway, which says why it cannot be
        return f"{found.st_size}:{found.st_mtime_ns}"

    def to_dict(self) -> dict:
        return {"videos": str(self.place), "frames": dataclasses.asdict(self.frames)}

    def details(self) -> dict:
        return {}

    @contextlib.contextmanager
    def opened(self) -> Iterator[Reader]:
        with contextlib.ExitStack() as stack:
            process = stack.enter_context(contextlib.closing(ChildProcess() if self.apart else InProcess()))
            yield Reader(process, stack.enter_context(contextlib.closing(Scratch())) if
                         isinstance(self.place, ObjectPath) else None)

    def read(self, reader: Reader, item: Item, view: Transform, batch: int) -> Generator[Piece, None, str]:
        """Of a damaged video the longest run of good frames, if it holds a clip."""
        path = self.place / item.path
        if isinstance(path, Path):
            return (yield from self._read(reader.process, path, view, batch))
        local = reader.scratch.folder / f"video{path.suffix}"
        try:
            self._fetch(reader, path, local)
            return (yield from self._read(reader.process, local, view, batch))
        finally:
            local.unlink(missing_ok=True)

    def _fetch(self, reader: Reader, path: ObjectPath, local: Path) -> None:
        """Raises VideoError for an object that is gone or that may not be read."""
        try:
            with writing(local), open(local, "wb") as file:
                for block in path.blocks(PART):
                    file.write(block)
                    if reader.stopped:
                        raise VideoError("stopped", "open")
        except (FileNotFoundError, PermissionError) as error:
            self.place.iterdir()     # raises where nothing there can be read any more
            raise VideoError(f"cannot be opened: {words(error)}", "open") from error

    def _read(self, process: ChildProcess | InProcess, path: Path, view: Transform,
              batch: int) -> Generator[Piece, None, str]:
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
            if error.stage == "open" and isinstance(self.place, Path) and not self.place.is_dir():
                raise Stopped(f"the videos folder {self.place} has gone; bring it back and run the same command again "
                              "to go on") from error
            raise

    def _clips(self, process: ChildProcess | InProcess, path: Path, run: GoodRun, damaged: bool, view: Transform,
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

    def interrupt(self, reader: Reader) -> None:
        reader.stopped = True
        reader.process.interrupt()

    def middle(self, reader: Reader, item: Item) -> np.ndarray:
        *_, piece = self.read(reader, item, _Whole(1, ClipGeometry(1, 1), 1, 1), 1)
        return piece.frames[0]


class _Whole(Transform):
    """Frames without a crop."""

    def crop(self, height: int, width: int) -> tuple[slice, slice]:
        return slice(height), slice(width)
