"""A store in which everything is that the page looks for, its page, and a browser."""


import cv2
import numpy as np
import pytest

from preprocess import show
from shared.clips.index import ClipGeometry, ClipIndexer
from shared.recipes.preprocessing import load_pipeline, pack_recipe_hash, recipe_hash
from shared.store.index import publish, write_failures
from shared.store.packs import PackWriter
from shared.store.record import write_json_atomic
from shared.store.tables import FailureRow, VideoRow

GEOMETRY, SIZE, FRAMES = ClipGeometry(16, 2), (128, 160), 40
EVIL = "<img src=x onerror=\"document.title='hacked'\">"
IDS = {
    "moving": "walk/moving.mp4", "copy": "walk/moving (copy).mp4", "start": "run/start of moving.mp4",
    "still": "still/one.mp4", "black": "still/black.mp4", "logo": "run/logo.mp4", "cut": "run/cut off.mp4",
    "short": "run/short.mp4", "dash": "-_abc.mp4", "bytes": "run/\udcff\nline.mp4", "tall": "walk/tall.mp4",
    "evil": f"{EVIL}/\"><script>document.title='hacked'</script>&amp;.mp4",
}


def moving(seed: int, size=SIZE, frames=FRAMES) -> np.ndarray:
    """(frames, H, W, 3) uint8: a texture that moves by three pixels a frame, down and right."""
    texture = np.random.default_rng(seed).integers(0, 256, (size[0] // 4, size[1] // 4, 3), np.uint8)
    texture = cv2.resize(texture, size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.stack([np.roll(texture, (3 * t, 3 * t), (0, 1)) for t in range(frames)])


def with_logo(frames: np.ndarray, opaque: float) -> np.ndarray:
    out = frames.copy()
    logo = np.full((24, 56, 3), 255, np.uint8)
    cv2.putText(logo, "TV 5", (2, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 2)
    part = out[:, 8:32, 96:152]
    part[:] = opaque * logo + (1 - opaque) * part
    return out


@pytest.fixture(scope="session")
def page_store(tmp_path_factory):
    """A store of two packs, by the packs' own writer."""
    store, walk = tmp_path_factory.mktemp("page") / "store", moving(0)
    still = np.repeat(walk[:1], FRAMES, axis=0)
    videos = {"moving": walk, "copy": walk, "start": walk[:35], "still": still, "black": still // 16,
              "logo": with_logo(moving(1), 1.0), "cut": moving(2), "short": moving(3)[:20], "dash": moving(4),
              "evil": moving(5), "bytes": moving(6), "tall": moving(7, (160, 128))}
    recipe = load_pipeline("folder", None, ["flow.backend=cpu"]).recipe
    rng, packs = np.random.default_rng(0), []
    for name, wanted in (("wide", SIZE), ("tall", (160, 128))):
        writer = PackWriter(store, name, wanted, geometries=[GEOMETRY], attributes={
            "backend": "cpu", "recipe_hash": pack_recipe_hash(recipe.to_dict())})
        for number, (key, frames) in enumerate(videos.items()):
            if frames.shape[1:3] != wanted:
                continue
            cells = rng.random((len(frames), wanted[0] // 8, wanted[1] // 8), np.float32)
            cells *= key not in ("still", "black")
            t_motion = cells.mean(axis=(1, 2)) * (1 + number)
            indexer = ClipIndexer(GEOMETRY, 4)
            indexer.append(cells, t_motion)
            writer.begin_video()
            writer.append(frames, cells, t_motion, None, None)
            path, evil = IDS[key], EVIL if key == "evil" else ""
            writer.end_video(VideoRow(path, path, class_name=evil or path.split("/")[0], group=evil, note=evil,
                                      splits=("train", evil) if evil else ("train",), fps=25.0,
                                      source_height=wanted[0], source_width=wanted[1]),
                             {str(GEOMETRY): indexer.finish()})
        packs.append(writer.commit(()))
    publish(store, [row for row, _ in packs], [row for _, rows in packs for row in rows])
    damaged = "damaged after 40 frames: invalid data; its 40 good frames are kept"
    write_failures(store, [FailureRow(IDS["cut"], IDS["cut"], damaged, "decode"),
                           FailureRow(EVIL, EVIL, f"not a video: {EVIL}", "open"),
                           FailureRow("a.mp4", "a.mp4", "no video stream", "open"),
                           FailureRow("b.mp4", "b.mp4", "no video stream", "open")])
    write_json_atomic(store / "store.json", {
        "format": 1, "dataset": "folder", "classes": sorted({row.class_name for _, rows in packs for row in rows}),
        "recipe": recipe.to_dict(), "recipe_hash": recipe_hash(recipe.to_dict())})
    return store


@pytest.fixture(scope="session")
def page(page_store, tmp_path_factory):
    """The page of it, by the command."""
    folder = tmp_path_factory.mktemp("html") / "page"
    assert show.main([str(page_store), "--html", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def ids() -> dict[str, str]:
    return IDS


@pytest.fixture(scope="session", name="moving")
def moving_fixture():
    return moving


@pytest.fixture(scope="session", name="with_logo")
def with_logo_fixture():
    return with_logo
