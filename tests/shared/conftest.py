"""Stores of made-up videos whose every clip is indexed as preprocessing does, and settings to sample them by."""

from dataclasses import replace

import numpy as np
import pytest

from shared.clips.index import ClipGeometry, ClipIndexer
from shared.motion import t_motion, zero_border
from shared.recipes.preprocessing import load_pipeline, pack_recipe_hash, recipe_hash
from shared.recipes.pretraining import Augment, Maclr, Sampling
from shared.store.index import publish
from shared.store.packs import PackWriter
from shared.store.record import write_json_atomic
from shared.store.tables import VideoRow

SAMPLING = Sampling(clip="4x2", size=24, ta=True, ta_probability=1.0, ta_scope="half", sa=True, sa_variant="paper",
                    area_min=0.2, area_max=1.0, aspect_min=0.75, aspect_max=4 / 3, cover=0.8, keys=3)
AUGMENT = Augment(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter_p=0.8, grey_p=0.2, blur_p=0.5,
                  blur_min=0.1, blur_max=2.0, flip_p=0.5)
MACLR = Maclr(motion_input="edges", motion_clip="8x1", motion_backbone="slow_tiny", motion_width=2, edges_max=10.0,
              flow_max=20.0, vm=True, mv=True, mm=False, cross_weight=1.0, pairs="same", shared_heads=False,
              shift_min_s=0.5, shift_max_s=10.0)


@pytest.fixture(scope="session")
def sampling():
    """sampling(keys=1, ...) -> Sampling: small clips of everything on, but for what is named."""
    return lambda **changes: replace(SAMPLING, **changes)


@pytest.fixture(scope="session")
def augment():
    """augment(flip_p=0.0, ...) -> Augment: the paper's, but for what is named."""
    return lambda **changes: replace(AUGMENT, **changes)


@pytest.fixture(scope="session")
def maclr():
    """maclr(motion_input="flow", ...) -> Maclr: a motion clip of 8x1 beside the visual 4x2, but for what is named."""
    return lambda **changes: replace(MACLR, **changes)


@pytest.fixture(scope="session")
def write_clip_store():
    """write_clip_store(path, videos, geometries=("4x2",), step=2, fps=0.0, second={}) -> path.

    videos: {id: (rgb (T, H, W, 3) uint8, maps (T, h, w) float32, splits)}; one pack a frame size. second:
    {id: {"edges": (T, 2, H/2, W/2) float32, "flow": alike}}, for all videos or none.
    """
    def write(path, videos, geometries=("4x2",), step=2, fps=0.0, second=None):
        second = second or {}
        kept = {name: any(name in arrays for arrays in second.values()) for name in ("edges", "flow")}
        recipe = load_pipeline("folder").recipe.to_dict()
        recipe |= {"flow": recipe["flow"] | {"backend": "cpu"},
                   "clips": {"geometries": list(geometries), "step": step}, "packs": recipe["packs"] | kept}
        parsed, packs, rows = [ClipGeometry.parse(text) for text in geometries], [], []
        for size in sorted({rgb.shape[1:3] for rgb, _, _ in videos.values()}):
            writer = PackWriter(path, "p{}x{}".format(*size), size, geometries=parsed, **kept,
                                attributes={"backend": "cpu", "recipe_hash": pack_recipe_hash(recipe)})
            for name, (rgb, maps, splits) in videos.items():
                if rgb.shape[1:3] != size:
                    continue
                bordered = zero_border(maps, 1)
                clips = {}
                for geometry in parsed:
                    indexer = ClipIndexer(geometry, step)
                    indexer.append(bordered, t_motion(bordered))
                    clips[str(geometry)] = indexer.finish()
                writer.begin_video()
                writer.append(rgb, maps, t_motion(bordered), **second.get(name, {}))
                row = VideoRow(name, f"{name}.mp4", class_name=name[0], group=f"g{name[1:]}", splits=splits, fps=fps)
                writer.end_video(row, clips)
            row, videos_of_pack = writer.commit()
            packs.append(row)
            rows += videos_of_pack
        publish(path, packs, rows)
        write_json_atomic(path / "store.json", {"format": 1, "dataset": "folder", "classes": [], "recipe": recipe,
                                                "recipe_hash": recipe_hash(recipe)})
        return path
    return write


@pytest.fixture(scope="session")
def make_clip_store(write_clip_store):
    """make_clip_store(path, {id: frames or (frames, height, width)}, split="train", seed=0, ...) -> path, of noise."""
    def make(path, lengths, split="train", seed=0, **options):
        rng, videos = np.random.default_rng(seed), {}
        for name, length in lengths.items():
            frames, height, width = length if isinstance(length, tuple) else (length, 32, 40)
            cells = frames, height // 8, width // 8
            # Coarse noise survives JPEG, and motion that comes and goes makes medians mean something.
            rgb = rng.integers(0, 256, (*cells, 3), np.uint8).repeat(8, 1).repeat(8, 2)
            maps = rng.random((frames, 1, 1), np.float32) ** 2 * rng.random(cells, np.float32)
            videos[name] = rgb, maps, tuple(split.split(";"))
        return write_clip_store(path, videos, **options)
    return make
