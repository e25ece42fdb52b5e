"""`--recipe maclr` from the command: edges from the full float32 flow, the 8x8 clips, flow on request."""

import cv2
import numpy as np
import pytest
import zarr

from preprocess import run
from preprocess.flow import flow_window, parameters
from shared.store.chunks import decode_edges
from shared.store.index import Index
from shared.store.reader import StoreReader
from shared.videos.decode import open_video

MORE = ["--engine", "serial", "--flow", "cpu", "--set", "preset=fast"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Four synthetic videos of 64 frames, long enough for a clip of 8x8 (57 frames)."""
    from preprocess.synthetic import make_videos

    root = tmp_path_factory.mktemp("maclr") / "videos"
    make_videos(root, videos=4, seed=5, backgrounds=2, textures=2, frames=64, height=64, width=80)
    return root


@pytest.fixture(scope="module")
def store(videos, tmp_path_factory):
    store = tmp_path_factory.mktemp("maclr") / "store"
    assert run.main(["--dataset", "folder", "--recipe", "maclr", "--videos", str(videos), "--store", str(store),
                     *MORE, "--set", "flow=true"]) == 0
    return store


def flow_of(path):
    """(T, 2, H, W) float32 of a whole video, in one window."""
    with open_video(path, window=64) as video:
        frames = next(iter(video))
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    flow = flow_window(grey, parameters("fast"), "cpu")
    return np.concatenate([flow, flow[-1:]]).astype(np.float64)


def half_size(maps):
    *lead, height, width = maps.shape
    return maps.reshape(*lead, height // 2, 2, width // 2, 2).mean((-3, -1))


def test_edges_and_flow_are_those_of_the_full_flow(videos, store):
    """Gradients at full resolution in float64 loops of numpy's own, then means over 2x2 pixels; the stored byte is at
    most half a step away: 10 ((q + 1/2)^2 - q^2) / 255^2."""
    reader, worst, moved = StoreReader(store), 0.0, []
    for video, path in zip(reader.index.id, reader.index.path):
        flow = flow_of(videos / path)
        exact = half_size(np.stack([np.hypot(*np.gradient(flow[:, c], axis=(-2, -1))) for c in (0, 1)], axis=1))
        stored = decode_edges(reader.edges(video, range(64)))
        error = np.abs(stored - np.minimum(exact, 10))
        assert (error <= np.sqrt(10 * exact) / 255 + 10 / 4 / 255 ** 2 + 1e-4).all()
        worst = max(worst, error.max())
        moved.append(exact)
        assert np.abs(reader.flow(video, range(64)) - half_size(flow)).max() < 0.01
    assert 0 < worst < 10 / 255 and np.concatenate(moved).max() > 0.5


def test_the_recipe_adds_edges_and_the_clips_of_the_visual_pathway(store, videos, tmp_path):
    [pack] = Index.load(store).pack_rows()
    group = zarr.open_group(store / pack.path, mode="r")
    assert {"clips/16x2/start", "clips/8x8/start", "edges/c.0.0.0.0", "flow/c.0.0.0.0"} <= {
        name.removesuffix("/zarr.json") for name in pack.files}
    assert group["clips/8x8/start"][:].tolist() == [0, 4] * 4 and group["edges"].shape == (256, 2, 32, 40)
    one, plain = tmp_path / "videos", tmp_path / "store"
    one.mkdir()
    (one / "one.mp4").symlink_to(videos / Index.load(store).path[0])
    assert run.main(["--dataset", "folder", "--recipe", "maclr", "--videos", str(one), "--store", str(plain), *MORE,
                     "--set", "warps=1"]) == 0
    [pack] = Index.load(plain).pack_rows()
    assert {name.split("/")[0] for name in pack.files} & {"edges", "flow"} == {"edges"}
