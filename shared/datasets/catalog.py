"""A dataset where it lies: the videos that its layout lists, with ids, labels, groups and splits."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from shared.cli import RequestError, nearest, plural
from shared.datasets import ava, diving48, folder, layouts, ssv2, vidsitu
from shared.datasets.archives import Fields
from shared.datasets.listing import Listing, class_order
from shared.datasets.scan import Headers, Scan, is_utf8, printable, scan
from shared.datasets.sources import Sources, as_sources
from shared.store.place import Place, as_place
from shared.videos.files import VideoFile

LAYOUTS = {"folder": folder.listing, "synthetic": folder.listing, "ucf101": layouts.ucf101, "hmdb51": layouts.hmdb51,
           "kinetics400": layouts.kinetics400, "ssv2": ssv2.listing, "diving48": diving48.listing,
           "vidsitu": vidsitu.listing, "ava": ava.listing}
ONE_SIDED = ("ssv2",)     # datasets whose classes tell left from right (docs/method.md 2.4)


@dataclass(frozen=True)
class Video:
    """One listed video that is there; path is relative to the root of its source, label is -1 without a class.
    where: what to open, None for a file below the catalog's root."""

    id: str
    path: str
    label: int
    class_name: str
    group: str
    splits: tuple[str, ...]
    where: VideoFile | None = None

    def file(self, root: Place) -> VideoFile:
        return self.where or root / self.path

    def root(self, root: Place) -> Place:
        """The place that holds it: its archive, or the folder or prefix that was given."""
        if self.where is None:
            return root
        place = self.where if isinstance(self.where, Path) else self.where.place
        return as_place(str(place).removesuffix(f"/{self.path}"))


@dataclass(frozen=True)
class Catalog:
    """videos sorted by id; absent: ids that are listed but not on disk, sorted; ignored: files on disk that are left
    out, because they are no videos by ending, hidden, not listed, or replaced by others; notes: what else the user
    should be told; refused: path, bytes escaped -> reason, of what cannot be a row of a store: videos whose names are
    not UTF-8, archives and members that cannot be taken; unlisted: paths of videos on disk that are not listed; scan:
    all that lies there; sources: what was given, of which `root` is the first place; fields: as archives were asked
    for them."""

    dataset: str
    root: Place
    classes: tuple[str, ...]
    videos: tuple[Video, ...]
    absent: tuple[str, ...]
    ignored: int
    notes: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    unlisted: tuple[str, ...] = ()
    scan: Scan = Scan([])
    sources: Sources = Sources(())
    fields: Fields = Fields()


def open_catalog(layout: str, videos: Sources | Place, annotations: Path | None = None, dataset: str | None = None,
                 stored: folder.Stored = MappingProxyType({}), fields: Fields = Fields(),
                 known: Headers = MappingProxyType({})) -> Catalog:
    """The videos of the sources, or of one folder, as `layout`, one of LAYOUTS, lists them.

    annotations: the CSV of a folder, or the folder of the official lists; without it the usual places are looked at.
    stored: class and splits by video id of the store that is to grow, so that a folder is read as it was then.
    fields, known: as `scan` has them. A video that is there and that the annotations do not name is counted as ignored
    and said in the notes.
    Raises RequestError for a missing root, wrong annotations, two files of one id.
    """
    if layout not in LAYOUTS:
        raise RequestError(f"layout {layout!r} is unknown{nearest(layout, LAYOUTS)}")
    sources, read = as_sources(videos), LAYOUTS[layout]
    for place in sources.folders:
        if not place.is_dir():
            raise RequestError(f"the videos folder {place} {'is a file' if place.exists() else 'does not exist'}; "
                               "put the videos there or give their folder as --videos DIR")
    if fields.named() and read is not folder.listing:
        raise RequestError(f"{', '.join(f'shards.{name}' for name in fields.named())}: {layout} takes labels, splits "
                           "and groups from its official lists; leave it out, or take --dataset folder")
    found = scan(sources, fields, known)
    root, given = sources.roots[0], None if annotations is None else Path(annotations)
    listing = _own_listing(sources, given, found, stored) if read is folder.listing else read(root, given, found.videos)
    labels = {name: label for label, name in enumerate(listing.classes)}

    videos, unlisted, replaced, twice = {}, [], [], []
    for path in found.videos:
        listed = listing.videos.get(listing.key(path))
        if listed is None:
            unlisted.append(path)
            continue
        if listed.id in videos:
            before = videos[listed.id].path
            if listing.replaces(path) == listing.replaces(before):
                twice.append((before, path))
                continue
            replaced.append((path, before) if listing.replaces(path) else (before, path))
            path = replaced[-1][0]
        label = labels.get(listed.class_name, -1)
        videos[listed.id] = Video(listed.id, path, label, listed.class_name, listed.group, listed.splits,
                                  found.files.get(path))
    if twice:
        if len(twice) > 1:
            raise RequestError(f"two files for {_pairs(twice)}; keep one of each under {sources}")
        one, both = listing.videos[listing.key(twice[0][0])].id, " and ".join(map(printable, twice[0]))
        raise RequestError(f"two files for the video {one}: {both}; keep one of them under {sources}")
    wrong = [id for id, video in videos.items() if not is_utf8(video.path)]
    unnamed = {id: printable(videos.pop(id).path) for id in wrong}
    refused = {printable(path): reason for path, reason in found.refused.items()}
    refused = dict(sorted((refused | dict.fromkeys(unnamed.values(), "the file name is not UTF-8; rename it")).items()))
    notes = (*listing.notes, *_left_out(found, unlisted, replaced), *_silent(found, fields))
    if not videos:
        raise RequestError("; ".join([f"no video of {len(listing.videos):,} listed is under {sources} "
                                      f"({plural(len(found.videos), 'video file')}, "
                                      f"{plural(found.ignored, 'other')}"
                                      f"{_example(found.videos, listing)})", *_left_out(found, (), ()),
                                      *(f"{name}: {reason}" for name, reason in list(refused.items())[:1]),
                                      *_archives_beside(sources),
                                      "put the videos there or give their folder as --videos DIR"]))
    absent = tuple(sorted(video.id for video in listing.videos.values()
                          if video.id not in videos and video.id not in unnamed))
    return Catalog(dataset or layout, root, listing.classes, tuple(videos[id] for id in sorted(videos)), absent,
                   found.ignored + len(unlisted) + len(replaced), notes, refused,
                   tuple(unlisted), found, sources, fields)


def _own_listing(sources: Sources, annotations: Path | None, found: Scan, stored: folder.Stored) -> Listing:
    """What `folder.listing` says, of each place that holds sources by itself, unless one CSV is given for all."""
    if annotations or len(sources.roots) == 1:
        return folder.listing(sources.roots[0], annotations, found.videos, stored, found.told)
    paths, above = {root: [] for root in sources.roots}, {archive.place: archive.root for archive in sources.archives}
    for path in found.videos:
        file = found.files[path]
        place = file if isinstance(file, Path) else file.place
        root = above.get(place) or next(root for root in sources.folders if str(root / path) == str(place))
        paths[root].append(path)
    listings = [folder.listing(root, None, some, stored, found.told) for root, some in paths.items()]
    own = {path: listing for listing, some in zip(listings, paths.values()) for path in some}
    videos = {path: video for listing in listings for path, video in listing.videos.items()}
    return Listing(class_order(video.class_name for video in videos.values()), videos,
                   lambda path: own[path].key(path),
                   tuple(note for listing in listings for note in listing.notes))


def _silent(found: Scan, fields: Fields) -> list[str]:
    """A line for each field that says nothing of some of the archives' videos."""
    out, inside = [], [path for path, file in found.files.items() if getattr(file, "kind", "object") != "object"]
    for name, source in fields.named().items():
        without = [path for path in inside if name not in found.told.get(path, ())]
        if without:
            out.append(f"shards.{name}={source} says nothing of {plural(len(without), 'video')} in archives (first "
                       f"{printable(without[0])}): folders and lists decide")
    return out


def _archives_beside(sources: Sources) -> list[str]:
    """What to say of archives in a folder that holds no videos."""
    for place in sources.folders:
        for pattern in ("*.tar", "*.zip"):
            if next(iter(place.glob(pattern)), None) is not None:
                return [f"its archives are read with --videos '{place}/{pattern}'"]
    return []


def _left_out(found: Scan, unlisted: Sequence[str], replaced: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each kind of thing on disk that the catalog does without."""
    out = []
    if replaced:
        out.append(f"a replacement is taken for {_pairs(replaced)}")
    if unlisted:
        out.append(f"{plural(len(unlisted), 'video is', 'videos are')} on disk but not listed, and left out (first "
                   f"{printable(unlisted[0])})")
    if found.unreadable:
        first, reason = next(iter(found.unreadable.items()))
        out.append(f"{plural(len(found.unreadable), 'folder or file', 'folders or files')} left out, since reading "
                   f"failed (first {printable(first)}: {reason})")
    if found.bins:
        out.append(f"{plural(len(found.bins), 'folder is', 'folders are')} left out, since the system keeps its own "
                   f"things there (first {printable(found.bins[0])})")
    return out


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    """How many videos have two files, in which folders most of them lie, and the first."""
    (one, other), count = Counter(_apart(*pair) for pair in pairs).most_common(1)[0]
    where = f"in {one}/" if one == other else f"in {one}/ and {other}/"
    share = "" if count == len(pairs) else f"{count:,} of them "
    first = " and ".join(map(printable, pairs[0]))
    return f"{plural(len(pairs), 'video')}, {share}{where} (first {first})"


def _apart(one: str, other: str) -> tuple[str, str]:
    """The folders in which two paths part; the same one twice where they lie in one."""
    folders = [path.split("/")[:-1] for path in (one, other)]
    same = len(os.path.commonprefix(folders))
    return tuple(printable("/".join(names[:same + 1])) or "." for names in folders)


def _example(paths: Sequence[str], listing: Listing) -> str:
    """A video that is listed beside one that is there, of one name where there is such a pair."""
    if not paths or not listing.videos:
        return ""
    names = {PurePosixPath(video.id).stem: video.id for video in listing.videos.values()}
    path = next((path for path in paths if PurePosixPath(path).stem in names), paths[0])
    listed = names.get(PurePosixPath(path).stem, next(iter(names.values())))
    return f"; listed is {listed!r}, on disk is {printable(path)!r}"
