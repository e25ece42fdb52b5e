"""What lies in the sources of a dataset: videos as files, as objects and inside archives, each by its path."""

import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from shared.cli import Progress, RequestError, plural
from shared.datasets.archives import Contents, Fields, read_contents
from shared.datasets.listing import BINS, ENDINGS, stem_of
from shared.datasets.sources import Archive, Sources, as_sources, open_sources, single_file
from shared.store.place import ObjectPath, Place
from shared.videos.files import Span, VideoFile, span_of, words

READERS = 32     # archives on object storage whose headers are read side by side
Headers = Mapping[str, tuple[str, Contents]]     # of archives by their URL or path: version, contents


@dataclass(frozen=True)
class Scan:
    """What lies there. videos: by ending, posix paths relative to the root of their source, sorted; ignored: how many
    other files; unreadable: path -> reason, of folders and files that could not be looked at; bins: folders in which a
    system keeps what was thrown away or made by itself, left out.

    files: path -> what to open, of videos that are no files below a single folder; told: path -> what an archive's
    fields say; refused: path -> reason, of archives and members that cannot be taken; headers: of the archives;
    requests: how many their headers took."""

    videos: list[str]
    ignored: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    bins: list[str] = field(default_factory=list)
    files: dict[str, Path | Span] = field(default_factory=dict)
    told: dict[str, dict[str, str]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    headers: dict[str, tuple[str, Contents]] = field(default_factory=dict)
    requests: int = 0

    def gone(self, videos: Iterable[tuple[str, str]]) -> list[str]:
        """Ids of those videos, (id, path), that are here no more: neither at the path nor, where the id is not the path
        but a name, anywhere under that name. What lies where reading failed is not said to be gone."""
        failed = {**self.unreadable, **self.refused}
        paths = set(map(printable, (*self.videos, *failed)))     # as failures name those that are not UTF-8
        names = set(map(stem_of, self.videos))
        return [id for id, path in videos if path not in paths and (id == path or stem_of(path) not in names) and
                not any(str(parent) in failed for parent in PurePosixPath(path).parents)]


def scan(videos: Sources | Place, fields: Fields = Fields(), known: Headers = MappingProxyType({})) -> Scan:
    """One listing a folder or prefix and no stat a file; of an archive the headers, where `known` has none of its
    version. Hidden names are left out, a hidden folder counts once. Links to folders are followed; what cannot be read
    is left out and named.

    Raises RequestError for a link that leads back into itself, a root that cannot be read, an archive that is
    compressed, and two sources that hold a video of one path.
    """
    sources = as_sources(videos)
    if sources.folder:
        return _walk(sources.folder)
    found, origin = Scan([]), {}
    parts = [(str(place), _scan_objects(place) if isinstance(place, ObjectPath) else _walk(place, apart=True))
             for place in sources.folders]
    parts += zip((str(archive.place) for archive in sources.archives), _scan_archives(sources.archives, fields, known))
    twice, ignored, requests = [], 0, 0
    for text, part in parts:
        for path in part.videos:
            if origin.setdefault(path, text) is not text:
                twice.append((path, origin[path], text))
        found.videos.extend(part.videos)
        ignored, requests = ignored + part.ignored, requests + part.requests
        found.bins.extend(part.bins)
        for name in ("unreadable", "files", "told", "refused", "headers"):
            getattr(found, name).update(getattr(part, name))
    if twice:
        path, one, other = twice[0]
        raise RequestError(f"{plural(len(twice), 'video')} of one path in two sources (first {printable(path)}, in "
                           f"{one} and in {other}); a path is relative to the place that holds the source, so rename "
                           "one, or give the folder above both")
    found.videos.sort()
    found.bins.sort()
    return replace(found, ignored=ignored, requests=requests)


def video_file(text: str, flag: str) -> VideoFile | None:
    """A single video, as the argument of `flag` names it: a file, an object, or a member as ARCHIVE/NAME; None where
    there is none. Raises RequestError for an archive that is not there or cannot be read by range."""
    if file := single_file([text]):
        return span_of(file, file.state()) if isinstance(file, ObjectPath) else file
    if not (inside := re.match(r"(.+?\.(?:tar|zip))/(.+)", text, re.IGNORECASE)):
        return None
    sources = open_sources([inside[1]], flag)
    return scan(sources).files.get(f"{sources.archives[0].name}/{inside[2]}") if sources.archives else None


def _walk(root: Path, apart: bool = False) -> Scan:
    """The files below a folder. apart: say of each what to open."""
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
    return Scan(sorted(found.videos), ignored, dict(sorted(found.unreadable.items())), sorted(found.bins),
                {path: root / path for path in found.videos} if apart else {})


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
    files = {path: span_of(root / path, states[path]) for path in videos}
    return Scan(sorted(videos), ignored, bins=sorted(bins), files=files)


def _scan_archives(archives: Iterable[Archive], fields: Fields, known: Headers) -> list[Scan]:
    archives, place = list(archives), lambda archive: str(archive.place)
    new = [archive for archive in archives if known.get(place(archive), ("",))[0] != archive.version]
    progress = Progress("reading archives", max(1, len(new)))
    remote = any(isinstance(archive.place, ObjectPath) for archive in new)
    read = {}
    with ThreadPoolExecutor(READERS if remote else 1) as pool:
        for archive, result in zip(new, pool.map(lambda archive: _read(archive, fields), new)):
            read[place(archive)] = result
            progress.update(len(read), f"{len(read):,} of {plural(len(new), 'archive')}")
    progress.close(text=plural(len(new), "archive"))
    return [_scan_archive(archive, *(read.get(place(archive)) or (known[place(archive)][1], 0)))
            for archive in archives]


def _read(archive: Archive, fields: Fields) -> tuple[Contents, int]:
    try:
        return read_contents(archive.place, archive.version, fields)
    except (FileNotFoundError, PermissionError) as error:
        return Contents(damage=f"cannot be opened: {words(error)}"), 0


def _scan_archive(archive: Archive, contents: Contents, requests: int) -> Scan:
    files = {f"{archive.name}/{name}": span for name, span in contents.spans(archive.place, archive.version)}
    told = {f"{archive.name}/{name}": said for name, (*_, said) in contents.videos.items() if said}
    refused = {f"{archive.name}/{name}": reason for name, reason in contents.refused.items()}
    if contents.damage:
        refused[archive.name] = contents.damage
    return Scan(list(files), contents.others, files=files, told=told, refused=refused, requests=requests,
                headers={str(archive.place): (archive.version, contents)})


def _real(entry: os.DirEntry, parents: tuple[str, ...]) -> str:
    """The folder's path without links; refused where it is one of those above it, for a walk would never end."""
    real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(parents[-1], entry.name)
    if real in parents:
        raise RequestError(f"the link {printable(entry.path)} leads back to {printable(real)}; remove it")
    return real


def is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")
