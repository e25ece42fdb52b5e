"""What every layout keeps: each file of tests here ends with it, for the layouts that it builds."""

import re

import pytest

from shared.cli import RequestError
from shared.datasets.catalog import open_catalog
from shared.recipes.preprocessing import load_pipeline


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
