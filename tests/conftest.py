"""Fixtures of all tests."""

from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "shared/data"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Real and broken videos and flow ground truth, kept beside the repository; tests skip where it is absent."""
    if not DATA.is_dir():
        pytest.skip("no ../shared/data beside the repository: tests on real videos need it")
    return DATA


@pytest.fixture(scope="session")
def small_videos(tmp_path_factory) -> Path:
    """Twelve synthetic videos of 64x80 pixels and 40 frames in class folders, with annotations.csv and truth files."""
    from preprocess.synthetic import make_videos

    root = tmp_path_factory.mktemp("small") / "videos"
    make_videos(root, videos=12, seed=3, backgrounds=3, textures=4, frames=40, height=64, width=80)
    return root
