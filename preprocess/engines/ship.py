"""Our code and the workers: what it is, an archive of it for those that have none, and whether they run the same.

Workers may run nothing but the driver's own code, or the packs of one store would not be of one making.
"""

import functools
import hashlib
import importlib.metadata
import os
import platform
import zipfile
from collections.abc import Mapping
from pathlib import Path

import preprocess
import shared
from shared.cli import RequestError

PACKAGES = {"preprocess": preprocess, "shared": shared}
SUFFIXES = ".py", ".cu", ".cuh"
UNPACK = Path(__file__).with_name("unpack.py")


def folders() -> dict[str, Path]:
    """Where the packages that a worker needs were imported from, by name."""
    return {name: Path(package.__file__).resolve().parent for name, package in PACKAGES.items()}


def sources() -> dict[str, Path]:
    """Every source file of the packages, by its name in the archive."""
    return {f"{name}/{path.relative_to(folder).as_posix()}": path for name, folder in folders().items()
            for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES}


@functools.cache
def digest() -> str:
    """Twelve hexadecimal digits that stand for the packages' files, as they are when first asked for."""
    total = hashlib.sha256()
    for name, path in sources().items():
        total.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:12]


def archive(folder: Path) -> Path:
    """FOLDER/motionpack_<digest>.zip: the packages, and a module of that name which unpacks them when imported."""
    path = folder / f"motionpack_{digest()}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(UNPACK, f"{path.stem}.py")
        for name, source in sources().items():
            file.write(source, f"code/{name}")
        file.writestr(f"code/motionpack-{version()}.dist-info/METADATA",
                      f"Metadata-Version: 2.1\nName: motionpack\nVersion: {version()}\n")
    return path


def version() -> str:
    """The version that is installed; 0 where the code runs from a folder that nobody has installed."""
    try:
        return importlib.metadata.version("motionpack")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def report() -> dict[str, str]:
    """Who this process is and what code of ours it runs. location: the folder that holds the packages."""
    return {"worker": f"{os.uname().nodename}:{os.getpid()}", "python": platform.python_version(),
            "version": version(), "location": str(folders()["preprocess"].parent), "code": digest()}


def check(reports: Mapping[str, Mapping[str, str]]) -> None:
    """Raises RequestError where a worker, by address, runs other code of ours than this process, or another Python."""
    ours = report()
    for worker, theirs in reports.items():
        if theirs["code"] != ours["code"]:
            raise RequestError(
                f"worker {worker} runs motionpack {theirs['version']} from {theirs['location']} (code {theirs['code']}"
                f"), this process {ours['version']} from {ours['location']} (code {ours['code']}); install the same on "
                "both and restart the workers")
        if theirs["python"].split(".")[:2] != ours["python"].split(".")[:2]:
            raise RequestError(f"worker {worker} runs Python {theirs['python']}, this process {ours['python']}; start "
                               f"the workers with Python {'.'.join(ours['python'].split('.')[:2])}")


def summary(reports: Mapping[str, Mapping[str, str]]) -> list[dict]:
    """For the record: version, location and Python of the workers, with how many report the same."""
    kinds: dict[tuple, int] = {}
    for theirs in reports.values():
        kind = tuple((key, theirs[key]) for key in ("version", "location", "code", "python"))
        kinds[kind] = kinds.get(kind, 0) + 1
    return [dict(kind) | {"workers": count} for kind, count in sorted(kinds.items())]


class OtherCode(RuntimeError):
    """A worker that joined or started anew since the run began runs other code than the driver."""


def insist(expected: str) -> None:
    """Raises OtherCode where this process does not run the code `expected`."""
    if digest() != expected:
        ours = report()
        raise OtherCode(f"the code in {ours['location']} of worker {ours['worker']} is not the one that the run began "
                        "with; one store takes the packs of one version only")
