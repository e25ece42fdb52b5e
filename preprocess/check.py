"""`python -m preprocess.check STORE`: every checksum, every gap.

Exit code 0 and one line when all is well, 1 and a list of what is not, 2 for something that is no store. It only
reads. What a stopped run left half-written is a note, not a fault: no reader sees it and the next run sweeps it away.
"""

import argparse
import dataclasses
from collections import defaultdict
from pathlib import Path

from shared.cli import DONE, FAILURES, Progress, RequestError, command, size
from shared.store.index import (FAILURE_SUMS, FAILURE_TABLE, SUMS, Index, current_generation, generations,
                                read_failures, read_generation)
from shared.store.layout import FORMAT, StoreError
from shared.store.lock import is_locked
from shared.store.record import read_json
from shared.store.tables import PackRow, VideoRow
from shared.store.verify import ROOT, hash_file, read_root, root_rows, verify_pack

ROOT_ENTRIES = {"store.json", "current", "index", "packs", FAILURE_TABLE, FAILURE_SUMS, "records", ".lock"}


@dataclasses.dataclass
class Findings:
    """What a check found: problems and notes, one line each, and how much it looked at."""

    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    packs: int = 0
    videos: int = 0
    frames: int = 0
    bytes: int = 0

    def attempt(self, function, *args):
        """The function's result; None, and a problem, when it finds damage."""
        try:
            return function(*args)
        except (StoreError, OSError) as error:
            self.problems.append(str(error))
        except RequestError as error:
            self.problems.append(str(error).split(";")[0])


def check_store(store: Path) -> Findings:
    """Look at every byte below `store`. Raises RequestError for a folder that is no store."""
    store = Path(store)
    if not any((store / name).exists() for name in ("store.json", "current", "index")):
        raise RequestError(f"{store} is no store; expected a folder with store.json, current, index and packs, as "
                           "preprocess.run writes it")
    findings = Findings()
    running = is_locked(store)
    if running:
        findings.notes.append("a run is writing this store; what it has not published yet is left out")
    document = findings.attempt(read_json, store / "store.json")
    for record in sorted((store / "records").glob("[!.]*")):
        findings.attempt(read_json, record)
    for generation in generations(store):
        findings.attempt(read_generation, store, generation)
    index = findings.attempt(Index.load, store)
    failures = findings.attempt(read_failures, store)

    listed = {row.path: row for row in index.pack_rows()} if index else {}
    _stray_files(store, findings, running and index)
    listed_videos = _rows_by_pack(index) if index else {}
    if index:
        findings.packs, findings.videos, findings.frames = len(listed), len(index), int(index.frames.sum())
        if document:
            _check_labels(index, document, findings)
    on_disk = {path.relative_to(store).as_posix() for path in store.glob("packs/*/[!.]*")}
    unlisted = on_disk - set(listed)
    if running:
        on_disk, unlisted = on_disk - unlisted, set()
    findings.problems += [f"{path}: on disk, but the index does not list it" for path in sorted(unlisted) if index]

    total = sum(_bytes(row) for row in listed.values())
    progress = Progress("checking", total)
    for path in sorted(on_disk | set(listed)):
        row = listed.get(path) or findings.attempt(_own_row, store, path)
        if row:
            findings.problems += findings.attempt(verify_pack, store, row, listed_videos.get(row.pack)) or []
            findings.bytes += _bytes(row)
        progress.update(findings.bytes, f"{size(findings.bytes)}, {len(findings.problems)} problems")
    progress.close()
    if index and failures is not None:
        _check_failures(store, listed, index, {row.video for row in failures}, findings)
    return findings


def _own_row(store: Path, path: str) -> PackRow:
    """The row of a pack that no index lists, from its own attributes."""
    attributes = read_root(store / path)
    files = {name: tuple(entry) for name, entry in attributes["files"].items()}
    return PackRow(attributes["pack"], path, attributes["frames"], len(attributes["videos"]), attributes["backend"],
                   {**files, ROOT: hash_file(store / path / ROOT)})


def _bytes(row: PackRow) -> int:
    return sum(count for count, _ in row.files.values())


def _rows_by_pack(index: Index) -> dict[str, list[VideoRow]]:
    rows = defaultdict(list)
    for row in index.rows():
        rows[row.pack].append(row)
    return rows


def _check_labels(index: Index, document: dict, findings: Findings) -> None:
    """store.json against the rows."""
    if document.get("format") != FORMAT:
        findings.problems.append(f"store.json: format {document.get('format')}, expected {FORMAT}")
    classes = document.get("classes", [])
    for row in index.rows():
        name = classes[row.label] if 0 <= row.label < len(classes) else ""
        if not -1 <= row.label < len(classes) or name != row.class_name:
            findings.problems.append(f"video {row.id!r}: label {row.label} and class {row.class_name!r} do not agree "
                                     "with the classes of store.json")


def _check_failures(store: Path, listed: dict[str, PackRow], index: Index, failed: set[str],
                    findings: Findings) -> None:
    """Every video that a pack holds is in the index, and every failure that stands is in failures.csv."""
    for path, pack in listed.items():
        try:
            videos, failures = root_rows(read_root(store / path))
        except StoreError:
            continue  # verify_pack has named it
        missing = [row.id for row in videos if row.id not in index]
        findings.problems += [f"{path}: holds video {id!r}, which the index does not list" for id in missing]
        for row in failures:
            standing = row.video not in index or index.row(row.video).pack == pack.pack
            if standing and row.video not in failed:
                findings.problems.append(f"{path}: failed on video {row.video!r}, which {FAILURE_TABLE} does not list")


def _stray_files(store: Path, findings: Findings, running) -> None:
    """Whatever is in the store and should not be."""
    partials = sorted({*store.glob(".*.partial"), *store.glob("index/.*.partial"), *store.glob("packs/*/.*.partial"),
                       *store.glob("records/.*.partial")})
    if partials and not running:
        findings.notes.append(f"{len(partials)} half-written files or folders of a stopped run; the next run removes "
                              "them")
    newest = generations(store)[-1:]
    if newest and findings.attempt(current_generation, store) not in (*newest, None):
        findings.notes.append(f"index/{newest[0]} was written but never put in force")
    expected = {store / name for name in ROOT_ENTRIES} | set(partials)
    for generation in generations(store):
        folder = store / "index" / generation
        expected |= {folder, folder / SUMS, folder / "videos.csv", folder / "packs.csv"}
    found = {*store.glob("*"), *store.glob("index/*"), *store.glob("index/*/*")} - expected
    found |= {path for path in store.glob("packs/*") if not path.is_dir()}
    found |= {path for path in store.glob("records/*") if path.suffix != ".json"} - expected
    findings.problems += [f"{path.relative_to(store)}: does not belong to a store" for path in sorted(found)
                          if not any(parent in partials for parent in path.parents)]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m preprocess.check", description=__doc__.split("\n")[0])
    parser.add_argument("store", type=Path, help="the store's folder")
    findings = check_store(parser.parse_args(argv).store)
    for line in findings.notes:
        print(f"note: {line}")
    problems = list(dict.fromkeys(findings.problems))
    for line in problems:
        print(line)
    counts = f"{findings.packs} packs, {findings.videos} videos, {findings.frames} frames, {size(findings.bytes)}"
    print(f"{counts}: " + (f"{len(problems)} problem{'s' * (len(problems) > 1)}" if problems else "all is well"))
    return FAILURES if problems else DONE


if __name__ == "__main__":
    command(main)
