"""Packs of random content, and what they must hold."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from shared.clips.index import ClipGeometry, ClipIndex
from shared.recipes.preprocessing import load_pipeline, pack_recipe_hash, recipe_hash
from shared.store.index import VideoRow, publish, write_failures
from shared.store.packs import PackWriter
from shared.store.record import write_json_atomic, write_record

GEOMETRY = ClipGeometry(4, 2)
SIZE = (32, 40)


@dataclass
class Content:
    """One video's arrays as they were handed to the writer."""

    rgb: np.ndarray
    st_motion: np.ndarray
    t_motion: np.ndarray
    edges: np.ndarray | None
    flow: np.ndarray | None
    clips: dict[str, ClipIndex] = field(default_factory=dict)


class Maker:
    """Makes videos and writes them; a seed makes the same ones again."""

    def __init__(self, seed=0, size=SIZE, geometries=(GEOMETRY,), edges=False, flow=False):
        self.rng, self.size, self.geometries = np.random.default_rng(seed), size, geometries
        self.edges, self.flow = edges, flow

    @property
    def recipe(self) -> dict:
        """What a recipe says of packs."""
        recipe = load_pipeline("folder").recipe.to_dict()
        return recipe | {"flow": recipe["flow"] | {"backend": "cpu"},
                         "clips": {"geometries": [str(g) for g in self.geometries], "step": 2},
                         "packs": recipe["packs"] | {"edges": self.edges, "flow": self.flow}}

    def describe(self, store, **changes):
        """Write store.json."""
        write_json_atomic(store / "store.json", {
            "format": 1, "dataset": "folder", "classes": [], "recipe": self.recipe,
            "recipe_hash": recipe_hash(self.recipe), **changes})

    def writer(self, store, name="p0", **options):
        return PackWriter(store, name, self.size, geometries=self.geometries, edges=self.edges, flow=self.flow,
                          attributes={"backend": "cpu", "recipe_hash": pack_recipe_hash(self.recipe)}, **options)

    def content(self, frames) -> Content:
        rng, (height, width) = self.rng, self.size
        h, w, half = height // 8, width // 8, (frames, 2, height // 2, width // 2)
        content = Content(
            rng.integers(0, 256, (frames, height, width, 3), np.uint8), rng.random((frames, h, w), np.float32),
            rng.random(frames, np.float32), rng.random(half, np.float32) * 11 if self.edges else None,
            rng.normal(0, 9, half).astype(np.float32) if self.flow else None)
        for geometry in self.geometries:
            start = np.arange(0, max(0, frames - geometry.span + 1), 2, dtype=np.int32)
            score = rng.random(len(start), np.float32)
            content.clips[str(geometry)] = ClipIndex(
                start, score, rng.random(len(start), np.float32),
                rng.integers(0, 256, (len(start), -(-h * w // 8)), np.uint8),
                float(np.median(score).astype(np.float32)) if len(start) else float("nan"))
        return content

    def append(self, writer, content, window=7):
        writer.begin_video()
        for a in range(0, len(content.rgb), window):
            part = slice(a, a + window)
            writer.append(content.rgb[part], content.st_motion[part], content.t_motion[part],
                          content.edges[part] if self.edges else None, content.flow[part] if self.flow else None)

    def add(self, writer, frames, id=None, window=7, **row) -> Content:
        content = self.content(frames)
        self.append(writer, content, window)
        row = {"path": "a/b.mp4", "fps": 29.97002997002997, "splits": ("train",), **row}
        writer.end_video(VideoRow(id or f"v{writer.videos}", **row), content.clips)
        return content

    def pack(self, store, frames, name="p0", failures=(), ids=None):
        """A committed pack; returns its row, its videos' rows and their contents."""
        writer = self.writer(store, name)
        contents = [self.add(writer, count, ids[i] if ids else f"{name}-{i}") for i, count in enumerate(frames)]
        row, videos = writer.commit(failures)
        return row, videos, contents


@pytest.fixture(scope="session")
def make():
    return Maker


@pytest.fixture
def small_store(tmp_path):
    """A whole store of two packs with 3 and 2 videos, one record, one failure: (path, contents by video id)."""
    from shared.store.index import FailureRow

    maker, store = Maker(1), tmp_path / "store"
    first = maker.pack(store, (33, 5, 40), "p0")
    second = maker.pack(store, (21, 18), "p1")
    publish(store, [first[0], second[0]], first[1] + second[1])
    write_failures(store, [FailureRow("bad", "a/bad.mp4", "no video stream", "open", 2)])
    maker.describe(store)
    write_record(store, "run-1", {"engine": "serial"})
    contents = {row.id: content for _, rows, many in (first, second) for row, content in zip(rows, many)}
    return store, contents
