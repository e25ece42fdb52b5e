"""What every layout keeps: each file of tests here ends with it, for the layouts that it builds."""

import re
from pathlib import Path

import pytest

from shared.cli import RequestError
from shared.datasets.catalog import open_catalog
from shared.recipes.preprocessing import load_pipeline


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def refusal(*args, **kwargs) -> str:
    with pytest.raises(RequestError) as caught:
        open_catalog(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def keeps_the_contract(tmp_path):
    """keeps_the_contract(layout, build): holds it to its word on files that `build(folder)` makes and names, (root of
    the videos, annotations): official lists and videos, of which all that are listed are there."""
    def check(layout, build):
        root, annotations = build(tmp_path / layout)
        assert load_pipeline(layout).preset.layout == layout                     # a preset of the same name
        catalog = open_catalog(layout, root, annotations)
        assert catalog.videos and catalog.absent == ()
        ids = [video.id for video in catalog.videos]
        assert ids == sorted(set(ids))
        for video in catalog.videos:
            assert (root / video.path).is_file()
            assert video.class_name == (catalog.classes[video.label] if video.label >= 0 else "")
            assert all(re.fullmatch("(train|val|test)[0-9]?", split) for split in video.splits)

        lost = catalog.videos[-1]
        (root / lost.path).unlink()
        (root / "stray.mp4").touch()
        later = open_catalog(layout, root, annotations)
        assert later.absent == (lost.id,) and [video.id for video in later.videos] == ids[:-1]
        assert later.classes == catalog.classes                                  # labels are those of the lists
        assert later.ignored == catalog.ignored + 1 and any("listed" in note for note in later.notes)

        with pytest.raises(RequestError, match="--annotations") as refusal:
            open_catalog(layout, root, tmp_path / "nowhere")
        assert "nowhere" in str(refusal.value) and "\n" not in str(refusal.value)
    return check
