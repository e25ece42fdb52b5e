"""Features on disk under exactly the key that they depend on.

V videos, C features. Every key has its vectors as one .npy and a JSON with their checksum and the videos' positions in
the store's index, whose generation is part of the key.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from shared.store.chunks import crc32c
from shared.store.layout import StoreError
from shared.store.objects import whole
from shared.store.record import read_json, write_json_atomic

FORMAT = 1
PART = "part-"
ROWS = 4096         # read at a time

Known = dict[int, tuple[np.ndarray, int]]      # position in the index -> an array and the row of its vector


class FeatureCache:
    """folder: where features are kept; beside: folders of other runs, looked at too (`RUN/../*/features`)."""

    def __init__(self, folder: Path, beside: Sequence[Path] = ()):
        self.folder, self.beside = Path(folder), tuple(Path(other) for other in beside)

    def find(self, key: dict) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(positions in the index, vectors) of everything held for the key, whatever its split, the asked one first.

        What is damaged, or not finite, is passed over, as if it were not there.
        """
        name = _digest(key)
        folders = dict.fromkeys(folder / _digest(_general(key)) for folder in (self.folder, *self.beside))
        for folder in folders:
            for file in sorted(folder.glob("*.json"), key=lambda path: path.stem != name):
                held = self._load(file, key)
                if held is not None:
                    yield held

    def whole(self, key: dict, positions: Sequence[int]) -> np.ndarray | None:
        """What is held for the key of exactly these positions, in their order; None where nothing is."""
        return next((rows for held, rows in self.find(key) if np.array_equal(held, positions)), None)

    @staticmethod
    def _load(file: Path, key: dict) -> tuple[np.ndarray, np.ndarray] | None:
        try:
            document = read_json(file)
            vectors = np.load(file.with_suffix(".npy"), mmap_mode="r")
        except (OSError, ValueError, StoreError):     # not there, not whole, or not ours
            return None
        whole = (document.get("format") == FORMAT and _general(document["key"]) == _general(key)
                 and vectors.dtype == np.float32 and len(vectors) == len(document["positions"])
                 and checksum(vectors) == document["crc32c_vectors"]
                 and all(np.isfinite(vectors[first:first + ROWS]).all() for first in range(0, len(vectors), ROWS)))
        return (np.asarray(document["positions"], np.int64), vectors) if whole else None

    def put(self, key: dict, known: Known, positions: Sequence[int], width: int) -> np.ndarray:
        """Keep the vectors of `positions`; they count once their JSON is there. Returns them, memory-mapped."""
        path = self.folder / _digest(_general(key)) / _digest(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_suffix(".npy")
        with whole(file) as hidden:
            vectors = new_vectors(hidden, len(positions), width)
            for row, position in enumerate(positions):
                source, at = known[position]
                vectors[row] = source[at]
            vectors.flush()
        write_json_atomic(path.with_suffix(".json"), {
            "format": FORMAT, "key": key, "crc32c_vectors": checksum(vectors), "positions": list(positions)})
        return np.load(file, mmap_mode="r")

    def drop_parts(self, key: dict) -> None:
        """Remove the parts of the key's split, once the whole is there."""
        for name in self.folder.glob(f"{_digest(_general(key))}/{PART}*"):
            if name.stem.startswith(f"{PART}{_digest(key)}-"):
                name.unlink()


def new_vectors(path: Path, rows: int, width: int) -> np.memmap:
    """A new .npy of (rows, width) float32, its room taken: a full disk would end the process at a mapped page."""
    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (rows, width))
    with open(path, "r+b") as made:
        os.posix_fallocate(made.fileno(), 0, os.fstat(made.fileno()).st_size)
    return vectors


def checksum(vectors: np.ndarray) -> int:
    """CRC-32C of the rows, which may lie on disk."""
    total = 0
    for first in range(0, len(vectors), ROWS):
        total = crc32c(np.ascontiguousarray(vectors[first:first + ROWS]), total)
    return total


def _digest(key: dict) -> str:
    """Name of the key's files; a part's begins with the whole's."""
    whole = {name: value for name, value in key.items() if name != "part"}
    name = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]
    return f"{PART}{name}-{key['part']}" if "part" in key else name


def _general(key: dict) -> dict:
    """The key without its split and part: what decides a single video's vector."""
    return {name: value for name, value in key.items() if name not in ("split", "part")}
