"""What `--videos` names: folders, prefixes on object storage, and tar or zip archives, alone, by pattern or mixed."""

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from shared.cli import RequestError, local, plural
from shared.datasets.archives import COMPRESSED, TAR, ZIP
from shared.store.place import UNLISTED, ObjectPath, Place, as_place, side_by_side, store_argument
from shared.videos.files import state_of

BRACES = re.compile(r"\{([^{}]*)\}")
NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
MOST = 1_000_000     # archives of one pattern
HELP = ("a folder; a URL such as s3://bucket/prefix; tar or zip archives, one or a pattern such as "
        "'shards/{000000..000123}.tar'; several by repeating it")


@dataclass(frozen=True)
class Archive:
    """A tar or zip file. root: the place that holds it, which its videos' paths are relative to; version: as Span's."""

    root: Place
    place: Place
    version: str

    @cached_property
    def name(self) -> str:
        return self.place.relative_to(self.root).as_posix()


@dataclass(frozen=True)
class Sources:
    """What was given (texts, absolute), and the folders and archives that this means."""

    texts: tuple[str, ...]
    folders: tuple[Place, ...] = ()
    archives: tuple[Archive, ...] = ()

    def __str__(self) -> str:
        return " and ".join(self.texts)

    @property
    def roots(self) -> list[Place]:
        """The places that the videos' paths are relative to, the first of them the place for lists beside videos."""
        return list(dict.fromkeys([*self.folders, *(archive.root for archive in self.archives)]))

    @property
    def folder(self) -> Path | None:
        """The folder of this machine, where that is all."""
        alone = len(self.folders) == 1 and not self.archives and isinstance(self.folders[0], Path)
        return self.folders[0] if alone else None


def as_sources(videos: "Sources | Place") -> Sources:
    """A folder or a prefix as sources."""
    return videos if isinstance(videos, Sources) else Sources((str(videos),), (videos,))


def open_sources(texts: Sequence[str | Place], flag: str = "--videos") -> Sources:
    """The folders and archives that these arguments of `flag` name; storage is asked once for each place, and what a
    pattern names must all be there. Raises RequestError."""
    try:
        return _open(texts)
    except RequestError as error:
        raise RequestError(f"{flag} {error}") from None


def _open(texts: Sequence[str | Place]) -> Sources:
    """As `open_sources`, but what a RequestError says does not name the flag."""
    folders, wanted, said = [], defaultdict(list), []
    for text in map(str, texts):
        if "://" not in text:
            text = str(_argument(local, text).absolute())
        elif text.partition("://")[0] in ("file", "local"):
            text = str(Path(text.partition("://")[2]).absolute())
        said.append(text)
        if "://" not in text and Path(text).is_dir() or not _archives_named(text):
            if text.partition("://")[0] in UNLISTED:
                raise RequestError(f"{text}: a web server lists no files; expected its tar or zip archives by "
                                   "name, such as 'https://host/{000..123}.tar'")
            folders.append(_argument(store_argument, text))
            continue
        if "://" not in text and Path(text).is_file():      # whatever marks of a pattern its name has
            wanted[Path(text).parent].append((text, Path(text)))
            continue
        root = _root(text)
        for one in _found(text, root):
            wanted[root].append((text, one))
    archives = []
    for root, pairs in wanted.items():
        archives += _versions(root, pairs)
    return Sources(tuple(said), tuple(folders), tuple(archives))


def single_file(texts: Sequence[str | Place]) -> Place | None:
    """The video file that is given alone, where it is one and no archive."""
    place = as_place(str(texts[0])).absolute()
    alone = len(texts) == 1 and not place.name.lower().endswith((TAR, ZIP, *COMPRESSED)) and place.is_file()
    return place if alone else None


def _argument(read, text: str) -> Place:
    try:
        return read(text)
    except argparse.ArgumentTypeError as error:
        raise RequestError(f"{text!r}: {error}") from None


def _archives_named(text: str) -> bool:
    """Whether this means archives, by its ending or as a pattern. Raises RequestError for what cannot be read."""
    if text.lower().endswith(COMPRESSED):
        raise RequestError(f"{text} is compressed, which cannot be read by range; decompress it (gunzip, "
                           "unzstd, ...) and give the plain .tar")
    if text.lower().endswith((TAR, ZIP)):
        return True
    if any(mark in text for mark in "{*?["):
        if "://" not in text and Path(text).exists():
            return False
        raise RequestError(f"{text} is no pattern of archives; expected one that ends with .tar or .zip, such "
                           "as 'shards/{000000..000123}.tar'")
    return False


def _root(text: str) -> Place:
    """The place above the first part of the text that is a pattern, or above its last part."""
    fixed = text[:min((at for mark in "{*?[" if (at := text.find(mark)) >= 0), default=len(text))]
    above = fixed.rpartition("/")[0]
    if text.partition("://")[0] in UNLISTED:
        if "://" not in above:
            raise RequestError(f"{text}: a pattern stands in the server's name; expected it after the server's, or a "
                               "--videos for each server")
        return as_place(above)
    return _argument(store_argument, above) if "://" in text else Path(above or "/")


def _found(text: str, root: Place) -> Iterable[Place]:
    """The archives that a text means, in order. Raises RequestError where there is none."""
    for one in expanded(text):
        rest = one[len(str(root)) + 1:] if str(root) != "/" else one[1:]
        if not any(mark in rest for mark in "*?["):
            yield root / rest
            continue
        found = [place for place in sorted(root.glob(rest)) if not place.name.startswith(".")]
        if not found:
            raise RequestError(f"{one} names nothing that is there; expected tar or zip archives")
        yield from found


def expanded(text: str) -> list[str]:
    """The texts that {000..123} and {one,other} of a text stand for, as a shell has them."""
    match = BRACES.search(text)
    if not match:
        return [text]
    if numbers := NUMBERS.fullmatch(match[1]):
        first, last = map(int, numbers.groups())
        if abs(last - first) >= MOST:
            raise RequestError(f"{text} stands for {abs(last - first) + 1:,} archives; expected at most "
                               f"{MOST:,}")
        width = max(map(len, numbers.groups())) if any(len(n) > 1 and n[0] == "0" for n in numbers.groups()) else 0
        options = [f"{n:0{width}d}" for n in (range(first, last + 1) if first <= last else range(first, last - 1, -1))]
    elif "," in match[1]:
        options = match[1].split(",")
    else:
        raise RequestError(f"{text}: {match[0]} is no range; expected such as {{000000..000123}} or {{a,b}}")
    out = []
    for option in options:
        out += expanded(text[:match.start()] + option + text[match.end():])
        if len(out) > MOST:
            raise RequestError(f"{text} stands for more than {MOST:,} archives; expected at most so many")
    return out


def _versions(root: Place, pairs: list[tuple[str, Place]]) -> list[Archive]:
    """The archives of a root with their versions. Raises RequestError for the first that is missing."""
    if isinstance(root, ObjectPath) and root.protocol not in UNLISTED:
        parents = list(dict.fromkeys(place.parent for _, place in pairs))
        listed = dict(zip(parents, side_by_side(ObjectPath.states_right_below, parents)))
        states = [listed[place.parent].get(place.name) for _, place in pairs]
    elif isinstance(root, ObjectPath):
        states = side_by_side(_state, [place for _, place in pairs])
    else:
        states = [_state(place) for _, place in pairs]
    missing = [pair for pair, state in zip(pairs, states) if state is None]
    if missing:
        text, place = missing[0]
        raise RequestError(f"{text}: {plural(len(missing), 'archive')} of {len(pairs):,} "
                           f"{'is' if len(missing) == 1 else 'are'} not there (first {place}); expected all of them, "
                           "or a pattern such as *.tar for those that are there")
    return [Archive(root, place, state) for (_, place), state in zip(pairs, states)]


def _state(place: Place) -> str | None:
    try:
        if isinstance(place, ObjectPath):
            return place.state()
        return state_of(place) if place.is_file() else None
    except FileNotFoundError:
        return None
