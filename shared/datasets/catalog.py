"""A dataset on disk: the videos that its layout lists, with ids, labels, groups and splits."""

import os
from dataclasses import dataclass
from pathlib import Path

from shared.cli import RequestError, nearest
from shared.datasets import ava, layouts, ssv2, vidsitu

ENDINGS = frozenset("." + ending for ending in """
    3g2 3gp asf avi divx f4v flv m1v m2ts m2v m4v mjpeg mjpg mkv mov mp4 mpe mpeg mpg mts mxf nut ogm ogv qt rm rmvb ts
    vob webm wmv y4m""".split())


LAYOUTS = {"folder": layouts.folder, "synthetic": layouts.folder, "ucf101": layouts.ucf101, "hmdb51": layouts.hmdb51,
           "kinetics400": layouts.kinetics400, "ssv2": ssv2.listing, "vidsitu": vidsitu.listing, "ava": ava.listing}
ONE_SIDED = ("ssv2",)     # datasets whose classes tell left from right (docs/method.md 2.4)


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
class Catalog:
    """videos sorted by id; absent: ids that are listed but not on disk, sorted; ignored: files on disk that are left
    out, because they are no videos by ending, hidden, or not listed; notes: what else the user should be told; unnamed:
    paths, bytes escaped, of listed videos whose names are not UTF-8, which the store's tables cannot hold."""

    dataset: str
    root: Path
    classes: tuple[str, ...]
    videos: tuple[Video, ...]
    absent: tuple[str, ...]
    ignored: int
    notes: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()


def open_catalog(layout: str, root: Path, annotations: Path | None = None, dataset: str | None = None) -> Catalog:
    """The videos under `root` as `layout`, one of LAYOUTS, lists them.

    annotations: the CSV of a folder, or the folder of the official lists; without it the usual places are looked at.
    A video on disk that the annotations do not name is counted as ignored and said in the notes.
    Raises RequestError for a missing root, wrong annotations, two files of one id.
    """
    if layout not in LAYOUTS:
        raise RequestError(f"layout {layout!r} is unknown{nearest(layout, LAYOUTS)}")
    root = Path(root)
    if not root.is_dir():
        raise RequestError(f"the videos folder {root} {'is a file' if root.exists() else 'does not exist'}; "
                           "put the videos there or give their folder as --videos DIR")
    paths, ignored = scan(root)
    listing = LAYOUTS[layout](root, None if annotations is None else Path(annotations), paths)
    labels = {name: label for label, name in enumerate(listing.classes)}

    found, unlisted = {}, []
    for path in paths:
        listed = listing.videos.get(listing.key(path))
        if listed is None:
            unlisted.append(path)
        elif listed.id in found:
            raise RequestError(f"two files for the video {listed.id}: {_printable(found[listed.id].path)} and "
                               f"{_printable(path)}; keep one of them under {root}")
        else:
            label = labels.get(listed.class_name, -1)
            found[listed.id] = Video(listed.id, path, label, listed.class_name, listed.group, listed.splits)
    wrong = [id for id, video in found.items() if not _is_utf8(video.path)]
    refused = {id: _printable(found.pop(id).path) for id in wrong}
    if not found:
        raise RequestError(f"no video of {len(listing.videos):,} listed is under {root} ({len(paths):,} video files, "
                           f"{ignored:,} others); put the videos there or give their folder as --videos DIR")
    notes = listing.notes
    if unlisted:
        notes += (f"{len(unlisted):,} videos are on disk but not listed, and left out (first "
                  f"{_printable(unlisted[0])})",)
    absent = tuple(sorted(video.id for video in listing.videos.values()
                          if video.id not in found and video.id not in refused))
    videos = tuple(found[id] for id in sorted(found))
    return Catalog(dataset or layout, root, listing.classes, videos, absent, ignored + len(unlisted), notes,
                   tuple(sorted(refused.values())))


def scan(root: Path) -> tuple[list[str], int]:
    """Video files under `root` by ending, as posix paths relative to it, sorted; and how many others there are.

    One directory listing a folder and no stat a file. Hidden names are left out, a hidden folder counts once. Links to
    folders are followed. Raises RequestError for a link that leads back into itself and for unreadable folders.
    """
    paths, ignored = [], 0
    pending = [("", (os.path.realpath(root),))]
    try:
        while pending:
            prefix, parents = pending.pop()
            with os.scandir(os.path.join(root, prefix)) as entries:
                for entry in entries:
                    path = prefix + entry.name
                    if entry.name.startswith("."):
                        ignored += 1
                    elif entry.is_dir():
                        pending.append((path + "/", (*parents, _real(entry, parents))))
                    elif os.path.splitext(entry.name)[1].lower() in ENDINGS and (entry.is_file() or entry.is_symlink()):
                        paths.append(path)
                    else:
                        ignored += 1
    except OSError as error:
        raise RequestError(f"cannot read {_printable(error.filename)}: {error.strerror}; "
                           "make it readable or move it away") from None
    return sorted(paths), ignored


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
