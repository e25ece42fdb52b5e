"""Which packs a store has committed, what one holds, and the sweep of what never was."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from shared.store.layout import StoreError
from shared.store.objects import fetched
from shared.store.place import ObjectPath, Place, as_place
from shared.store.record import hidden_name, partials
from shared.store.tables import FailureRow, PackRow, VideoRow
from shared.store.verify import ROOT, files_on_disk, hash_file, payload_crcs, read_root, root_rows


def committed_packs(store: Path) -> dict[str, str]:
    """{name: path relative to the store} of the packs on disk. Raises StoreError when a name comes twice."""
    packs = {}
    for file in sorted(Path(store).glob(f"packs/*/[!.]*/{ROOT}")):
        path = file.parent.relative_to(store).as_posix()
        if packs.setdefault(file.parent.name, path) != path:
            raise StoreError(f"{store}/{path}: has the name of {packs[file.parent.name]}")
    return packs


def rootless_packs(store: Path) -> list[str]:
    """Folders where a pack should be, relative to the store, that lost their zarr.json."""
    return sorted(path.relative_to(store).as_posix() for path in Path(store).glob("packs/*/[!.]*")
                  if path.is_dir() and not (path / ROOT).exists())


def load_pack(store: Place, path: str) -> tuple[PackRow, list[VideoRow], list[FailureRow]]:
    """A committed pack's row, videos and failures, every file hashed. Raises StoreError for damage.

    path: relative to the store, as in packs.csv.
    """
    store = as_place(store)
    if isinstance(store, ObjectPath):
        with fetched(store, path) as folder:
            return load_pack(folder, path)
    folder = store / path
    attributes = read_root(folder, strict=True)
    files = {name: hash_file(folder / name) for name in sorted(files_on_disk(folder))}
    root = files.pop(ROOT)
    listed = {name: tuple(entry) for name, entry in attributes["files"].items()}
    if files != listed or attributes["chunks"] != payload_crcs(folder, files):
        raise StoreError(f"{folder}: its files are not those that it lists")
    videos, failures = root_rows(attributes)
    row = PackRow(attributes["pack"], path, attributes["frames"], len(attributes["videos"]), attributes["backend"],
                  {**files, ROOT: root})
    return row, videos, failures


def sweep_partials(store: Place, found: list[Path] | None = None) -> list[str]:
    """Remove what dead runs left half-written, all of it or `found`. Only the run that holds the store's lock may, and
    only where no part is at work. Returns what went.

    A worker may outlive its driver and still be writing: its folder is taken from it at once, by a rename, so that it
    can commit all of its pack or nothing.
    """
    swept = partials(store) if found is None else found
    for path in swept:
        with suppress(FileNotFoundError):  # its writer has committed or removed it
            if path.is_symlink() or not path.is_dir():
                path.unlink()
                continue
            doomed = hidden_name(path)
            os.rename(path, doomed)
            while doomed.exists():
                with suppress(FileNotFoundError):  # its writer removes it too
                    shutil.rmtree(doomed)
    return [path.relative_to(store).as_posix() for path in swept]
