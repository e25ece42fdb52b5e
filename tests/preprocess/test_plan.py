"""Packs are planned deterministically and within their limits."""

import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess import plan as planning
from preprocess.plan import PlannedPack
from preprocess.run import resolve
from preprocess.stages import flow_parameters
from preprocess.task import Misplanned
from shared.cli import RequestError
from shared.datasets.catalog import open_catalog
from shared.recipes.preprocessing import load_pipeline, recipe_hash
from shared.videos.decode import Probe
from shared.videos.isolate import ChildProcess
from tests.shared.videos.test_decode import scene, write

RECIPE = load_pipeline("folder").recipe


def with_packs(videos, frames):
    return replace(RECIPE, packs=replace(RECIPE.packs, videos=videos, frames=frames))


@given(lengths=st.dictionaries(st.text("abcdef/_.0", min_size=1, max_size=6),
                               st.tuples(st.integers(1, 90), st.sampled_from([(64, 80), (128, 176)])), max_size=40),
       videos=st.integers(1, 6), frames=st.integers(20, 120))
def test_packs_hold_every_video_once_and_keep_their_limits(lengths, videos, frames):
    packs = planning.group_packs(lengths, with_packs(videos, frames), {})
    planned = [v for pack in packs for v in pack.videos]
    assert sorted(planned) == sorted(lengths)
    for pack in packs:
        assert {lengths[v][1] for v in pack.videos} == {pack.frame_size}
        assert pack.frames == sum(lengths[v][0] for v in pack.videos)
        assert len(pack.videos) == 1 or (len(pack.videos) <= videos and pack.frames <= frames)
        assert list(pack.videos) == sorted(pack.videos)
    shuffled = dict(sorted(lengths.items(), key=lambda item: hash(item[0])))
    assert planning.group_packs(shuffled, with_packs(videos, frames), {}) == packs
    assert len({pack.name for pack in packs}) == len(packs)


def test_a_retried_video_gets_a_pack_of_another_name():
    sized = {"a": (10, (64, 80))}
    assert planning.group_packs(sized, RECIPE, {})[0].name != planning.group_packs(sized, RECIPE, {"a": 1})[0].name


def test_a_planned_pack_survives_its_record():
    pack = PlannedPack("0123", (64, 80), ("a", "b"), 7)
    assert PlannedPack.from_list(pack.to_list()) == pack


def test_unfinished_packs_come_first_and_only_while_they_hold(small_videos):
    catalog = open_catalog("folder", small_videos)
    ids = [video.id for video in catalog.videos]
    earlier = PlannedPack("earlier", (64, 80), tuple(ids[3:5]), 80)
    plan = planning.make_plan(catalog, RECIPE, set(ids), [earlier])
    assert plan.packs[0] == earlier
    assert sorted(v for pack in plan.packs for v in pack.videos) == ids
    plan = planning.make_plan(catalog, RECIPE, set(ids) - {ids[3]}, [earlier])
    assert earlier not in plan.packs and ids[3] not in [v for pack in plan.packs for v in pack.videos]


def test_a_file_that_kills_its_reader_costs_no_neighbour(small_videos):
    catalog = open_catalog("folder", small_videos)
    ids = [video.id for video in catalog.videos]
    poison, died = catalog.root / ids[1], []

    class Poisoned(ChildProcess):
        """Its process aborts where one of the files is the poison."""

        def call(self, fn, paths, *args, limit_s):
            if poison not in paths:
                return super().call(fn, paths, *args, limit_s=limit_s)
            died.append(len(paths))
            return super().call(os.abort, limit_s=limit_s)

    reader = Poisoned()
    try:
        plan = planning.make_plan(catalog, RECIPE, set(ids), reader=reader)
    finally:
        reader.close()
    assert died == [len(ids), 1]                     # once among the others, and once alone
    (failure,) = plan.failures
    assert (failure.video, failure.stage) == (ids[1], "probe")
    assert failure.reason == "reading its headers killed its process (SIGABRT)"
    assert sorted(v for pack in plan.packs for v in pack.videos) == ids[:1] + ids[2:]


def test_wrong_headers_are_planned_again_with_what_decoding_showed():
    probes = {"a": Probe(30, 1.0, 30.0, 64, 80), "b": Probe(40, 1.0, 30.0, 64, 80)}
    sized = planning.with_corrections(probes, [Misplanned("a", 0, (80, 64)), Misplanned("b", 101, (64, 80)),
                                               Misplanned("c", 0, (64, 80))])
    assert sized == {"a": (30, (80, 64)), "b": (101, (64, 80)), "c": (0, (64, 80))}
    packs = planning.group_packs(sized, with_packs(64, 100), {})
    assert [pack.videos for pack in packs] == [("b",), ("c",), ("a",)]


def test_videos_too_small_for_half_the_size_are_failures(tmp_path):
    (tmp_path / "a").mkdir()
    for height in (24, 32):
        write(tmp_path / f"a/{height}.mkv", scene(4, height))

    def planned(*settings):
        recipe = load_pipeline("folder", settings=settings).recipe
        return planning.make_plan(open_catalog("folder", tmp_path), recipe, {"a/24.mkv", "a/32.mkv"})

    assert not planned("preset=fast").failures and not planned("preset=half", "flow.scale=1").failures
    plan = planned("preset=half")
    assert [pack.videos for pack in plan.packs] == [("a/32.mkv",)]
    assert [(row.video, row.reason) for row in plan.failures] == [
        ("a/24.mkv", "frames of 24x64 px; flow at half the size (flow.scale 0.5) needs sides of at least 31")]
    with pytest.raises(RequestError, match="short_side is 24; flow at half the size .* needs at least 31"):
        planned("preset=half", "short_side=24")


def test_a_store_without_scale_is_one_of_full_size():
    """Its hash too stands: scale counts where it is 0.5."""
    before = resolve(load_pipeline("folder", settings=["preset=fast", "backend=cpu"])).recipe
    half = resolve(load_pipeline("folder", settings=["preset=fast", "backend=cpu", "flow.scale=0.5"])).recipe
    stored, other = before.to_dict(), half.to_dict()
    assert "scale" not in stored["flow"] and other["flow"].pop("scale") == 0.5 and other == stored
    assert recipe_hash(before.to_dict()) != recipe_hash(half.to_dict())
    for recipe, scale in ((before, 1), (half, 0.5)):
        grown = load_pipeline("folder", stored=recipe.to_dict())
        assert flow_parameters(grown.recipe).scale == scale and grown.recipe == recipe
