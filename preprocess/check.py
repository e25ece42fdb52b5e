"""`python -m preprocess.check STORE`: every checksum, every gap.

Exit code 0 and one line when all is well, 1 and a list of what is not, 2 for something that is no store. It only
reads. What a stopped run left half-written is a note, not a fault: no reader sees it and the next run sweeps it away.
"""

import dataclasses
import errno
from collections import defaultdict
from pathlib import Path

from preprocess.life import KIND, parts_alive
from preprocess.parts import SharedPlan
from preprocess.session import PLAN
from shared.cli import DONE, FAILURES, Arguments, Progress, RequestError, command, plural, size
from shared.recipes.preprocessing import description_fault, pack_recipe_hash, recipe_hash
from shared.store.index import (
    FAILURE_SUMS,
    FAILURE_TABLE,
    SUMS,
    Index,
    current_generation,
    generations,
    read_failures,
    read_generation,
)
from shared.store.layout import StoreError, cure
from shared.store.lock import is_locked
from shared.store.objects import fetched, pack_of
from shared.store.place import ObjectPath, Place, as_place, store_argument
from shared.store.record import each_record, partials, read_json
from shared.store.tables import PackRow, VideoRow
from shared.store.verify import ROOT, hash_file, read_root, root_rows, verify_pack

ROOT_ENTRIES = {"store.json", "current", "index", "packs", FAILURE_TABLE, FAILURE_SUMS, "records", ".lock"}


@dataclasses.dataclass
class Findings:
    """What a check found: problems and notes, one line each, and how much it looked at."""

    store: Place
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
            self.problems.append(_fault(error, self.store))


def _fault(error: StoreError | OSError, store: Place) -> str:
    """The fault as a line; storage that does not answer is no fault of the store and is raised."""
    if isinstance(error, OSError) and error.errno == errno.EREMOTEIO:
        raise error
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
    return text.removeprefix(f"{store}/")


@dataclasses.dataclass
class Summary:
    """What stands beside the packs; None for what is lost or damaged. listed: the index's packs by path."""

    running: bool
    document: dict | None = None
    index: Index | None = None
    failed: set[str] | None = None
    listed: dict[str, PackRow] = dataclasses.field(default_factory=dict)
    on_disk: set[str] = dataclasses.field(default_factory=set)
    last_status: str | None = None
    dead_part: bool = False


def check_store(store: Place) -> Findings:
    """Look at every byte below `store`; objects are fetched pack by pack. Raises RequestError for what is no store."""
    store = as_place(store)
    if not any((store / name).exists() for name in ("store.json", "current", "index")):
        raise RequestError(f"{store} is no store; expected a folder with store.json, current, index and packs, as "
                           "preprocess.run writes it")
    findings, summary = _look(store)
    if findings.problems:
        findings, summary = _look(store)  # a run may have published between two glances of the first look
    listed, index = summary.listed, summary.index
    videos = _rows_by_pack(index) if index is not None else {}
    if index is not None:
        findings.packs, findings.videos, findings.frames = len(listed), len(index), int(index.frames.sum())
    progress = Progress("checking", sum(_bytes(row) for row in listed.values()))
    for path in sorted(summary.on_disk | set(listed)):
        problems = _check_pack(summary, findings, path, videos)
        if problems and (is_locked(store) or parts_alive(store)):
            # Look again: a reindex renews a pack's root after the clips, and the index after many packs.
            problems = [line for line in _check_pack(summary, findings, path, videos)
                        if not line.endswith("differs from the index")]
        findings.problems += problems
        findings.bytes += _bytes(listed[path]) if path in listed else 0
        progress.update(findings.bytes, f"{size(findings.bytes)}, {len(findings.problems)} problems")
    progress.close()
    return findings


def _look(store: Path) -> tuple[Findings, Summary]:
    """All but what the packs hold."""
    findings, summary = Findings(store), Summary(is_locked(store) or bool(parts_alive(store)))
    if summary.running:
        findings.notes.append("a run is writing this store; what it has not published yet is left out")
    summary.document = findings.attempt(read_json, store / "store.json")
    records = _records(store, findings, summary)
    past = generations(store)
    for generation in past:
        if not _half_uploaded(store, generation):
            findings.attempt(read_generation, store, generation)
    summary.on_disk = {path.relative_to(store).as_posix() for path in store.glob("packs/*/[!.]*") if path.is_dir()}
    if (store / "current").exists():
        summary.index = findings.attempt(Index.load, store)
    elif past or summary.on_disk:
        findings.problems.append("current: is missing")
    else:
        findings.notes.append("nothing is published yet")
    failures = findings.attempt(read_failures, store)
    summary.failed = None if failures is None else {row.video for row in failures}
    if summary.on_disk and not records:
        findings.notes.append("no record in records/ says how the packs were made")
    _stray_files(store, findings, summary.running)
    if summary.document is not None and (fault := description_fault(summary.document)):
        findings.problems.append(f"store.json: {fault}")
        summary.document = None
    elif summary.document:
        _check_document(summary.document, summary.index, findings)
    if summary.index is not None:
        summary.listed = {row.path: row for row in summary.index.pack_rows()}
        if summary.running:
            summary.on_disk &= set(summary.listed)
    return findings, summary


def _records(store: Place, findings: Findings, summary: Summary) -> int:
    """How many runs have left a record; plans of parts and signs of life beside them are looked at too."""
    count = 0
    for path, record in each_record(store, None, PLAN, KIND):
        if isinstance(record, StoreError):
            findings.problems.append(_fault(record, store))
        elif "kind" not in record:
            count += 1
            summary.last_status = record.get("status")
            summary.dead_part |= "part" in record and summary.last_status in ("running", "stopped")
        elif record["kind"] == PLAN:
            findings.attempt(SharedPlan.from_document, path.stem, record)
        elif not summary.running:
            findings.notes.append(f"records/{path.name}: of a run that was killed; the next run takes it away")
    return count


def _half_uploaded(store: Place, generation: str) -> bool:
    """Whether a run died while it uploaded a generation of the index, the checksums last."""
    return isinstance(store, ObjectPath) and not (store / "index" / generation / SUMS).exists() and \
        (store / "current").exists() and current_generation(store) != generation


def _check_pack(summary: Summary, findings: Findings, path: str, videos: dict[str, list[VideoRow]]) -> list[str]:
    """What is wrong with the pack at `path`, in itself and against index, failures.csv and store.json."""
    store, row, index = findings.store, summary.listed.get(path), summary.index
    if not (store / path).is_dir():
        return [f"{path}: is missing"]
    unlisted = row is None
    if isinstance(store, ObjectPath) and unlisted and index is not None:
        return _leftover(findings, summary, path)
    try:
        with fetched(store, path) as folder:
            try:
                root = read_root(folder / path, strict=True)
                row = row or _own_row(folder, path, root)
                problems = verify_pack(folder, row, videos.get(row.pack) if not unlisted else None, root)
            except (StoreError, OSError) as error:
                return [_fault(error, folder)]
    except (StoreError, OSError) as error:  # while it was fetched
        return [_fault(error, store)]
    if summary.document:
        problems += [f"{path}: {text}" for text in _recipe_problems(root, summary.document["recipe"])]
    if unlisted and index is not None and not problems:
        if summary.dead_part or summary.last_status in ("running", "stopped"):
            note = f"{path}: not in the index yet; the next run takes it in"
            findings.notes += [note] if note not in findings.notes else []
        else:
            problems.append(f"{path}: the index does not list it")
    elif not unlisted:
        lost = [row.id for row in root_rows(root)[0] if row.id not in index]
        problems += [f"index: does not list video {id!r} of {path}" for id in lost]
        for failure in root["failures"] if summary.failed is not None else ():
            video = failure["video"]
            standing = video not in index or index.row(video).pack == row.pack
            if standing and video not in summary.failed:
                problems.append(f"{FAILURE_TABLE}: does not list video {video!r}, on which {path} failed")
    return problems


def _leftover(findings: Findings, summary: Summary, path: str) -> list[str]:
    """A prefix of objects that the index does not list is a note: no reader sees it, whatever a stopped run or a task
    that outlived its driver has left there."""
    listed = {row.pack for row in summary.listed.values()}
    note = f"{path}: not in the index; the next run " + (
        "removes it: the pack is listed elsewhere" if pack_of(path) in listed else "takes it in if it is whole")
    findings.notes += [note] if note not in findings.notes else []
    return []


def _own_row(store: Path, path: str, root: dict) -> PackRow:
    """The row of a pack that no index lists, from its own attributes."""
    files = {name: tuple(entry) for name, entry in root["files"].items()}
    return PackRow(root["pack"], path, root["frames"], len(root["videos"]), root["backend"],
                   {**files, ROOT: hash_file(store / path / ROOT)})


def _recipe_problems(root: dict, recipe: dict) -> list[str]:
    """How a pack's attributes differ from the recipe of store.json."""
    asked = {"backend": recipe["flow"]["backend"], "recipe_hash": pack_recipe_hash(recipe),
             **{key: recipe["packs"][key] for key in ("jpeg_quality", "edges", "flow")}}
    lacking = [geometry for geometry in recipe["clips"]["geometries"] if geometry not in root["clips"]]
    return [f"{key} is {root.get(key)!r}, by store.json {value!r}" for key, value in asked.items()
            if root.get(key) != value] + [f"lacks clips {geometry} of store.json" for geometry in lacking]


def _bytes(row: PackRow) -> int:
    return sum(count for count, _ in row.files.values())


def _rows_by_pack(index: Index) -> dict[str, list[VideoRow]]:
    rows = defaultdict(list)
    for row in index.rows():
        rows[row.pack].append(row)
    return rows


def _check_document(document: dict, index: Index | None, findings: Findings) -> None:
    """store.json against itself and the rows."""
    problems = findings.problems
    made = recipe_hash(document["recipe"])
    if document["recipe_hash"] != made:
        problems.append(f"store.json: recipe_hash is {document['recipe_hash']!r}, that of its recipe {made!r}")
    classes = document["classes"]
    for row in index.rows() if index is not None else ():
        name = classes[row.label] if 0 <= row.label < len(classes) else ""
        if not -1 <= row.label < len(classes) or name != row.class_name:
            problems.append(f"video {row.id!r}: label {row.label} and class {row.class_name!r} do not agree with the "
                            "classes of store.json")


def _stray_files(store: Path, findings: Findings, running: bool) -> None:
    """Whatever is in the store and should not be."""
    unfinished = partials(store)
    if unfinished and not running:
        half = plural(len(unfinished), "half-written file or folder", "half-written files or folders")
        findings.notes.append(f"{half} of a stopped run; the next run cleans up")
    past = generations(store)
    if past and not running and (store / "current").exists() and \
            findings.attempt(current_generation, store) not in (past[-1], None):
        findings.notes.append(f"index/{past[-1]} was written but never put in force")
    expected = {store / name for name in ROOT_ENTRIES} | set(unfinished)
    for generation in past:
        entry = store / "index" / generation
        expected |= {entry, entry / SUMS, entry / "videos.csv", entry / "packs.csv"}
    found = {*store.glob("*"), *store.glob("index/*"), *store.glob("index/*/*")} - expected
    found |= {path for path in store.glob("packs/*") if not path.is_dir()}
    found |= {path for path in store.glob("packs/*/*") if path.name.startswith(".") or not path.is_dir()} - expected
    found |= {path for path in store.glob("records/*")
              if path.name.startswith(".") or path.suffix != ".json"} - expected
    findings.problems += [f"{path.relative_to(store)}: does not belong to a store" for path in sorted(found)
                          if path.exists() and not any(parent in unfinished for parent in path.parents)]


def main(argv: list[str]) -> int:
    parser = Arguments(prog="python -m preprocess.check", description=__doc__.split("\n")[0])
    parser.add_argument("store", type=store_argument, help="the store: a folder, or a URL such as s3://bucket/prefix")
    findings = check_store(parser.parse_args(argv).store)
    for line in findings.notes:
        print(f"note: {line}")
    problems = list(dict.fromkeys(findings.problems))
    for line in problems:
        print(line)
    for text in dict.fromkeys(cure(line, findings.store) for line in problems):
        if text:
            print(f"what helps: {text}")
    counts = (f"{plural(findings.packs, 'pack')}, {plural(findings.videos, 'video')}, "
              f"{plural(findings.frames, 'frame')}, {size(findings.bytes)}")
    print(f"{counts}: {plural(len(problems), 'problem') if problems else 'all is well'}")
    return FAILURES if problems else DONE


if __name__ == "__main__":
    command(main)
