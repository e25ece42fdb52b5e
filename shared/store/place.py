"""Where a store is: a folder, or a prefix on object storage (s3://bucket/prefix, any URL that fsspec knows).

A folder stays a pathlib.Path; an ObjectPath looks like one as far as readers of a store can tell.
"""

import argparse
import errno
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shared.cli import RequestError, local
from shared.store.object_path import PARALLEL, S3, ObjectPath, filesystem

Place = Path | ObjectPath
UNLISTED = {"http", "https"}     # web servers: a folder of theirs may well be refused


def as_place(place: Place | str) -> Place:
    """A path, an ObjectPath or the text of either. Raises RequestError for a URL that cannot be used here."""
    if not isinstance(place, str):
        return place
    protocol, separator, rest = place.partition("://")
    if not separator:
        return Path(place)
    if protocol in ("file", "local"):
        return Path(rest)
    from fsspec.registry import known_implementations

    if protocol not in known_implementations or "::" in place:
        raise RequestError(f"{place}: no known kind of storage; expected a folder or a URL such as s3://bucket/prefix")
    if not rest.strip("/"):
        raise RequestError(f"{place} names no place; expected a URL such as {protocol}://bucket/prefix")
    try:
        filesystem(protocol, os.getpid())
    except ImportError as error:
        helps = "pip install s3fs" if protocol in S3 else known_implementations[protocol].get("err", str(error))
        raise RequestError(f"{place}: a package is missing here; {helps}") from error
    return ObjectPath(f"{protocol}://{rest.strip('/')}")


def store_argument(text: str) -> Place:
    """A command's argument that names a store, or videos: a folder, or a URL, whose storage is asked once whether it
    answers."""
    try:
        place = as_place(text)
        if not isinstance(place, ObjectPath):
            return local(text.partition("://")[2] or text)
        if text.startswith("memory:"):
            raise RequestError(f"{text} would end with this process; expected a folder or a URL such as "
                               "s3://bucket/prefix")
        place.iterdir()
    except RequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{error.filename}: {error.strerror}; check the URL, your credentials and, "
                                         "for a server of your own, AWS_ENDPOINT_URL") from error
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        # Of fsspec's kinds that wrap others (cached, dir, ...), or want settings of their own.
        raise argparse.ArgumentTypeError(f"{text}: no storage that takes stores ({type(error).__name__}); expected a "
                                         "folder or a URL such as s3://bucket/prefix") from error
    return place


def insist_on(place: Place) -> None:
    """Raises OSError where a folder, a file or a prefix of videos has gone, or cannot be asked any more; a web server
    need but answer."""
    if isinstance(place, ObjectPath):
        try:
            place.iterdir()
        except OSError as error:
            answered = isinstance(error, FileNotFoundError) or hasattr(error.__cause__, "status")
            if place.protocol not in UNLISTED or not answered:
                raise
    elif not place.exists():
        raise FileNotFoundError(errno.ENOENT, "the videos folder has gone", str(place))


def remove_tree(place: Place) -> None:
    """Remove a folder, or every object below a prefix."""
    place.remove_tree() if isinstance(place, ObjectPath) else shutil.rmtree(place)


def side_by_side(function: Callable, items: Iterable) -> list:
    """[function(item), ...], PARALLEL at a time; the first exception is raised."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        return list(pool.map(function, items))


def read_all(paths: Iterable[Place]) -> Iterable[bytes]:
    """The bytes of many small files, in order; objects are asked for side by side."""
    paths = list(paths)
    if paths and isinstance(paths[0], ObjectPath):
        return side_by_side(lambda path: path.read_bytes(), paths)
    return (path.read_bytes() for path in paths)
