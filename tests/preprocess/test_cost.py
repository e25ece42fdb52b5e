"""What a plan says it costs is measured, and what cannot fit is refused."""

import shutil
import struct

import pytest

from preprocess import cost as costing
from preprocess import plan as planning
from shared.cli import RequestError
from shared.datasets.catalog import open_catalog
from shared.recipes.preprocessing import load_pipeline
from tests.shared.videos.test_decode import scene, write
from tests.shared.videos.test_streams import copied, live, zeroed


def test_what_cannot_fit_is_refused(tmp_path):
    with pytest.raises(RequestError, match="the packs need about 1000000.00 TB .* free some or choose another --store"):
        costing.refuse_if_too_large(costing.Cost(bytes=1e18), tmp_path / "not" / "there")
    costing.refuse_if_too_large(costing.Cost(bytes=10), tmp_path)


@pytest.mark.slow
def test_the_sample_measures_real_packs(small_videos):
    catalog = open_catalog("folder", small_videos)
    pipeline = load_pipeline("folder", settings=["flow.backend=opencv"])
    plan = planning.make_plan(catalog, pipeline.recipe, {v.id for v in catalog.videos})
    cost = costing.measure_cost(plan.packs, catalog, pipeline.recipe, pipeline.run)
    assert cost.frames == 12 * 40
    assert cost.cpu_s > 0 and cost.wall_s > 0
    assert 12 * 40 * 200 < cost.bytes < 12 * 40 * 10_000
    assert cost.files == 23


def plan_of(root):
    catalog, pipeline = open_catalog("folder", root), load_pipeline("folder", settings=["flow.backend=opencv"])
    plan = planning.make_plan(catalog, pipeline.recipe, {v.id for v in catalog.videos})
    return plan, costing.measure_cost(plan.packs, catalog, pipeline.recipe, pipeline.run, probes=plan.probes)


@pytest.mark.slow
def test_a_film_without_a_length_is_counted_and_changes_no_other_estimate(tmp_path):
    """60 films whose headers have a count, and a long one whose header has nothing."""
    root = tmp_path / "videos"
    root.mkdir()
    short = write(root / "b00.mp4", scene(35, 48, 64), "libx264", "yuv420p")
    for number in range(1, 60):
        shutil.copy(short, root / f"b{number:02d}.mp4")
    live(root / "a.webm", write(tmp_path / "a.webm", scene(300, 48, 64), "libvpx", "yuv420p"))
    plan, cost = plan_of(root)
    assert cost.frames == 60 * 35 + 300 == sum(pack.frames for pack in plan.packs) == sum(cost.packs.values())
    assert plan.probes["a.webm"].basis == "packets" and plan.probes["b00.mp4"].basis == "count"


@pytest.mark.slow
def test_a_wrong_estimate_corrects_those_of_its_kind_alone(tmp_path):
    """Matroska headers that say twice the truth, beside MP4, whose counts are exact."""
    root = tmp_path / "videos"
    root.mkdir()
    film = write(tmp_path / "a.mkv", scene(40, 48, 64), "libx264", "yuv420p").read_bytes()
    place, tag = film.index(b"\x44\x89\x88") + 3, film.index(b"DURATION")
    assert struct.unpack(">d", film[place:place + 8])[0] == 1600
    film = film[:place] + struct.pack(">d", 3200) + film[place + 8:tag] + b"DURATIOX" + film[tag + 8:]
    for number in range(4):
        (root / f"{number}.mkv").write_bytes(film)
        write(root / f"{number}.mp4", scene(40, 64, 80), "libx264", "yuv420p")
    plan, cost = plan_of(root)
    assert {probe.frames for probe in plan.probes.values()} == {40, 80}
    assert sorted(pack.frames for pack in plan.packs) == [160, 320] and sorted(cost.packs.values()) == [160, 160]
    assert cost.frames == 320


def test_one_damaged_sample_says_nothing_of_the_others(tmp_path):
    root = tmp_path / "videos"
    root.mkdir()
    whole = write(tmp_path / "whole.avi", scene(40, 48, 64), "mjpeg", "yuvj420p")
    copied(whole, root / "0.avi", change=zeroed(34))
    for number in range(1, 6):
        shutil.copy(whole, root / f"{number}.avi")
    assert plan_of(root)[1].frames == 6 * 40


def test_a_sample_that_begins_at_another_size_is_none(tmp_path):
    """A pack is planned at the size of the video's longest run; of its head two frames are no pack."""
    parts = [write(tmp_path / f"{width}.m2v", scene(count, 64, width), "mpeg2video", "yuv420p")
             for count, width in ((6, 64), (45, 96))]
    root = tmp_path / "videos"
    root.mkdir()
    (root / "a.m2v").write_bytes(b"".join(part.read_bytes() for part in parts))
    catalog, pipeline = open_catalog("folder", root), load_pipeline("folder", settings=["flow.backend=opencv"])
    pack = planning.PlannedPack("p", (64, 96), ("a.m2v",), 45)
    cost = costing.measure_cost([pack], catalog, pipeline.recipe, pipeline.run)
    assert cost.packs == {"p": 45} and cost.cpu_s is None


def test_limits_follow_the_frames_that_are_expected():
    run, cost = load_pipeline("folder").run, costing.Cost(1000, cpu_s=100, wall_s=50)
    assert costing.time_limit(9000, cost, run) == 900 + 10 * 9000 * 0.1
