"""A dataset on disk: the videos that its layout lists, with ids, labels, groups and splits."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from shared.cli import RequestError, nearest, plural
from shared.datasets import ava, folder, layouts, ssv2, vidsitu
from shared.datasets.listing import Listing, stem_of
from shared.store.place import ObjectPath, Place

ENDINGS = frozenset("." + ending for ending in """
    3g2 3gp asf avi divx f4v flv m1v m2ts m2v m4v mjpeg mjpg mkv mov mp4 mpe mpeg mpg mts mxf nut ogm ogv qt rm rmvb ts
    vob webm wmv y4m""".split())


LAYOUTS = {"folder": folder.listing, "synthetic": folder.listing, "ucf101": layouts.ucf101, "hmdb51": layouts.hmdb51,
           "kinetics400": layouts.kinetics400, "ssv2": ssv2.listing, "vidsitu": vidsitu.listing, "ava": ava.listing}
ONE_SIDED = ("ssv2",)     # datasets whose classes tell left from right (docs/method.md 2.4)
BINS = frozenset(("#recycle", "@recycle", "$recycle.bin", "@eadir", "#snapshot", "__macosx",
                  "system volume information"))     # of NAS boxes, Windows and macOS


@dataclass(frozen=True)
class Video:
    """One listed video that is on disk; path is relative to the catalog's root, label is -1 without a class."""

    id: str
    path: str
    label: int
    class_name: str
    group: str
    splits: tuple[str, ...]


@dataclass(frozen=True)
class Scan:
    """What lies under a folder. videos: by ending, posix paths relative to it, sorted; ignored: how many other files;
    unreadable: path -> reason, of folders and files that could not be looked at; bins: folders in which a system keeps
    what was thrown away or made by itself, left out; states: of objects, what tells their bytes from others."""

    videos: list[str]
    ignored: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    bins: list[str] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)

    def gone(self, videos: Iterable[tuple[str, str]]) -> list[str]:
        """Ids of those videos, (id, path), that are here no more: neither at the path nor, where the id is not the path
        but a name, anywhere under that name. What lies where reading failed is not said to be gone."""
        paths = set(map(_printable, (*self.videos, *self.unreadable)))     # as failures name those that are not UTF-8
        names = set(map(stem_of, self.videos))
        return [id for id, path in videos if path not in paths and (id == path or stem_of(path) not in names) and
                not any(str(parent) in self.unreadable for parent in PurePosixPath(path).parents)]


@dataclass(frozen=True)
class Catalog:
    """videos sorted by id; absent: ids that are listed but not on disk, sorted; ignored: files on disk that are left
    out, because they are no videos by ending, hidden, not listed, or replaced by others; notes: what else the user
    should be told; unnamed: paths, bytes escaped, of listed videos whose names are not UTF-8, which the store's tables
    cannot hold; unlisted: paths of videos on disk that are not listed; scan: all that lies there."""

    dataset: str
    root: Place
    classes: tuple[str, ...]
    videos: tuple[Video, ...]
    absent: tuple[str, ...]
    ignored: int
    notes: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()
    scan: Scan = Scan([])


def open_catalog(layout: str, root: Place, annotations: Path | None = None, dataset: str | None = None,
                 stored: folder.Stored = MappingProxyType({})) -> Catalog:
    """The videos under `root` as `layout`, one of LAYOUTS, lists them.

    annotations: the CSV of a folder, or the folder of the official lists; without it the usual places are looked at.
    stored: class and splits by video id of the store that is to grow, so that a folder is read as it was then.
    A video on disk that the annotations do not name is counted as ignored and said in the notes.
    Raises RequestError for a missing root, wrong annotations, two files of one id.
    """
    if layout not in LAYOUTS:
        raise RequestError(f"layout {layout!r} is unknown{nearest(layout, LAYOUTS)}")
    if not root.is_dir():
        raise RequestError(f"the videos folder {root} {'is a file' if root.exists() else 'does not exist'}; "
                           "put the videos there or give their folder as --videos DIR")
    found = scan(root)
    read, given = LAYOUTS[layout], None if annotations is None else Path(annotations)
    listing = read(root, given, found.videos, stored) if read is folder.listing else read(root, given, found.videos)
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
        videos[listed.id] = Video(listed.id, path, label, listed.class_name, listed.group, listed.splits)
    if twice:
        if len(twice) > 1:
            raise RequestError(f"two files for {_pairs(twice)}; keep one of each under {root}")
        one, both = listing.videos[listing.key(twice[0][0])].id, " and ".join(map(_printable, twice[0]))
        raise RequestError(f"two files for the video {one}: {both}; keep one of them under {root}")
    wrong = [id for id, video in videos.items() if not _is_utf8(video.path)]
    refused = {id: _printable(videos.pop(id).path) for id in wrong}
    notes = (*listing.notes, *_left_out(found, unlisted, replaced))
    if not videos:
        raise RequestError("; ".join([f"no video of {len(listing.videos):,} listed is under {root} "
                                      f"({plural(len(found.videos), 'video file')}, {plural(found.ignored, 'other')}"
                                      f"{_example(found.videos, listing)})", *_left_out(found, (), ()),
                                      "put the videos there or give their folder as --videos DIR"]))
    absent = tuple(sorted(video.id for video in listing.videos.values()
                          if video.id not in videos and video.id not in refused))
    return Catalog(dataset or layout, root, listing.classes, tuple(videos[id] for id in sorted(videos)), absent,
                   found.ignored + len(unlisted) + len(replaced), notes, tuple(sorted(refused.values())),
                   tuple(unlisted), found)


def _left_out(found: Scan, unlisted: Sequence[str], replaced: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each kind of thing on disk that the catalog does without."""
    out = []
    if replaced:
        out.append(f"a replacement is taken for {_pairs(replaced)}")
    if unlisted:
        out.append(f"{plural(len(unlisted), 'video is', 'videos are')} on disk but not listed, and left out (first "
                   f"{_printable(unlisted[0])})")
    if found.unreadable:
        first, reason = next(iter(found.unreadable.items()))
        out.append(f"{plural(len(found.unreadable), 'folder or file', 'folders or files')} left out, since reading "
                   f"failed (first {_printable(first)}: {reason})")
    if found.bins:
        out.append(f"{plural(len(found.bins), 'folder is', 'folders are')} left out, since the system keeps its own "
                   f"things there (first {_printable(found.bins[0])})")
    return out


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    """How many videos have two files, in which folders most of them lie, and the first."""
    (one, other), count = Counter(_apart(*pair) for pair in pairs).most_common(1)[0]
    where = f"in {one}/" if one == other else f"in {one}/ and {other}/"
    share = "" if count == len(pairs) else f"{count:,} of them "
    first = " and ".join(map(_printable, pairs[0]))
    return f"{plural(len(pairs), 'video')}, {share}{where} (first {first})"


def _apart(one: str, other: str) -> tuple[str, str]:
    """The folders in which two paths part; the same one twice where they lie in one."""
    folders = [path.split("/")[:-1] for path in (one, other)]
    same = len(os.path.commonprefix(folders))
    return tuple(_printable("/".join(names[:same + 1])) or "." for names in folders)


def _example(paths: Sequence[str], listing: Listing) -> str:
    """A video that is listed beside one that is there, of one name where there is such a pair."""
    if not paths or not listing.videos:
        return ""
    names = {PurePosixPath(video.id).stem: video.id for video in listing.videos.values()}
    path = next((path for path in paths if PurePosixPath(path).stem in names), paths[0])
    listed = names.get(PurePosixPath(path).stem, next(iter(names.values())))
    return f"; listed is {listed!r}, on disk is {_printable(path)!r}"


def scan(root: Place) -> Scan:
    """One directory listing a folder and no stat a file. Hidden names are left out, a hidden folder counts once. Links
    to folders are followed; what cannot be read is left out and named.

    Raises RequestError for a link that leads back into itself and for a root that cannot be read.
    """
    if isinstance(root, ObjectPath):
        return _scan_objects(root)
    found, ignored, pending = Scan([]), 0, [("", (os.path.realpath(root),))]

    def entries(place: str):
        try:
            with os.scandir(os.path.join(root, place) if place else root) as listed:
                yield from listed
        except OSError as error:
            if not place:
                raise RequestError(f"cannot read {root}: {error.strerror}; make it readable or move it away") from None
            found.unreadable[place] = error.strerror or str(error)

    while pending:
        place, parents = pending.pop()
        for entry in entries(place):
            path = f"{place}/{entry.name}" if place else entry.name
            try:
                if entry.name.startswith("."):
                    ignored += 1
                elif entry.is_dir():
                    if entry.name.casefold() in BINS:
                        found.bins.append(path)
                    else:
                        pending.append((path, (*parents, _real(entry, parents))))
                elif os.path.splitext(entry.name)[1].lower() in ENDINGS and (entry.is_file() or entry.is_symlink()):
                    found.videos.append(path)
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    found.unreadable[path] = "a link that leads nowhere"
                else:
                    ignored += 1
            except OSError as error:
                found.unreadable[path] = error.strerror or str(error)
    return Scan(sorted(found.videos), ignored, dict(sorted(found.unreadable.items())), sorted(found.bins))


def _scan_objects(root: ObjectPath) -> Scan:
    states, ignored, bins = root.states(), 0, set()
    videos = []
    for path in states:
        *folders, name = path.split("/")
        at = next((i for i, folder in enumerate(folders) if folder.casefold() in BINS), None)
        if any(part.startswith(".") for part in folders[:at]):
            ignored += 1
        elif at is not None:
            bins.add("/".join(folders[:at + 1]))
        elif name.startswith(".") or os.path.splitext(name)[1].lower() not in ENDINGS:
            ignored += 1
        else:
            videos.append(path)
    return Scan(sorted(videos), ignored, bins=sorted(bins), states={path: states[path] for path in videos})


def _real(entry: os.DirEntry, parents: tuple[str, ...]) -> str:
    """The folder's path without links; refused where it is one of those above it, for a walk would never end."""
    real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(parents[-1], entry.name)
    if real in parents:
        raise RequestError(f"the link {_printable(entry.path)} leads back to {_printable(real)}; remove it")
    return real


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")
