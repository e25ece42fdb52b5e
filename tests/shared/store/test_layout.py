"""Format 1 as docs/format.md has it, and zarr-python's own reading of the documents."""

import json
from pathlib import Path

import pytest
import zarr

import shared.store.codecs  # noqa: F401  (registers motionpack.jpeg)
from shared.cli import Stopped
from shared.clips.index import ClipGeometry
from shared.store.layout import StoreError, clip_arrays, cure, damage_stops, document_bytes, frame_arrays, pack_groups

# name: dtype, shape, inner chunk of T = 50 frames, V = 3 videos, C = 40 clips at 64x80 (the table of the format).
TABLE = {
    "rgb": ("uint8", (50, 64, 80, 3), (1, 64, 80, 3)),
    "st_motion": ("float16", (50, 8, 10), (16, 8, 10)),
    "edges": ("uint8", (50, 2, 32, 40), (1, 2, 32, 40)),
    "flow": ("float16", (50, 2, 32, 40), (1, 2, 32, 40)),
    "t_motion": ("float32", (50,), None),
    "frame_offset": ("int64", (4,), None),
    "clips/16x2/start": ("int32", (40,), None),
    "clips/16x2/score": ("float32", (40,), None),
    "clips/16x2/s_p90": ("float32", (40,), None),
    "clips/16x2/hot_mask": ("uint8", (40, 10), (32, 10)),
    "clips/16x2/offset": ("int64", (4,), None),
    "clips/16x2/median": ("float32", (3,), None),
}
ROWS = {"frames": 50, "videos": 3, "bounds": 4, "clips": 40}


def layouts(edges=True, flow=True):
    return frame_arrays((64, 80), edges, flow) + clip_arrays(ClipGeometry(16, 2), (64, 80))


def test_table_of_the_format(tmp_path):
    assert [layout.name for layout in layouts()] == list(TABLE)
    for layout in layouts():
        dtype, shape, inner = TABLE[layout.name]
        document = layout.document(ROWS[layout.length])
        (tmp_path / layout.name).mkdir(parents=True)
        (tmp_path / layout.metadata_file).write_bytes(document_bytes(document))
        array = zarr.open_array(tmp_path / layout.name, mode="r")
        assert (array.dtype, array.shape) == (dtype, shape)
        assert array.attrs["units"]
        assert array.metadata.dimension_names and len(array.metadata.dimension_names) == len(shape)
        assert (array.shards or array.chunks)[0] >= shape[0]  # one shard file, or one chunk
        if inner:
            assert array.chunks == inner
            assert [codec["name"] for codec in document["codecs"]] == ["sharding_indexed"]
            sharding = document["codecs"][0]["configuration"]
            assert sharding["index_location"] == "end"
            assert [codec["name"] for codec in sharding["index_codecs"]] == ["bytes", "crc32c"]
            names = [codec["name"] for codec in sharding["codecs"]]
        else:
            names = [codec["name"] for codec in document["codecs"]]
        assert names == (["motionpack.jpeg", "crc32c"] if layout.name == "rgb" else ["bytes", "zstd", "crc32c"])


def test_shard_extent_is_the_length_rounded_up_to_the_inner_chunk():
    by_name = {layout.name: layout for layout in layouts()}
    for rows, extent in ((1, 16), (16, 16), (17, 32), (0, 16)):
        grid = by_name["st_motion"].document(rows)["chunk_grid"]["configuration"]["chunk_shape"]
        assert grid == [extent, 8, 10]


@pytest.mark.parametrize("edges, flow, files", [(False, False, 23), (True, False, 25)])
def test_a_pack_has_at_most_26_files(edges, flow, files):
    count = 1 + len(pack_groups([ClipGeometry(16, 2)])) + 2 * len(layouts(edges, flow))
    assert count == files <= 26


def test_documents_are_strict_json():
    for layout in layouts():
        json.loads(document_bytes(layout.document(3)), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("fault, helps", [
    ("/a/packs/s/index/000001-0/videos.csv: does not match its checksum", "preprocess.reindex /a/packs/s"),
    ("/a/packs/s/current: b'x' names no generation of the index", "preprocess.reindex"),
    ("/a/packs/s/store.json: does not match its checksum", "preprocess.reindex"),
    ("/a/packs/s/records/r.json: does not match its checksum", "delete the damaged record"),
    ("/a/packs/s/packs/32x40/p0: its files are not those that it lists", "delete the damaged pack's folder"),
    ("pack p0, video 'a/b': /a/packs/s/packs/32x40/p0/rgb/c: chunk 3: bad checksum", "delete the damaged pack"),
    ("/a/packs/s/packs/32x40/p0: is missing", "run preprocess.run again"),
])
def test_damage_says_what_helps(fault, helps):
    with pytest.raises(Stopped, match="preprocess.check /a/packs/s` lists all") as caught:
        with damage_stops(Path("/a/packs/s")):
            raise StoreError(fault)
    assert str(caught.value).startswith(f"{fault}; ") and helps in str(caught.value).removeprefix(fault)


@pytest.mark.parametrize("fault", ["/a/packs/s holds no video 'packs/x'", "pack p0, video 'v': has no clips 8x8; add",
                                   "pack p0, video 'v': /a/packs/s/packs/32x40/p0: keeps no flow"])
def test_a_request_that_finds_nothing_is_no_damage(fault):
    assert cure(fault, Path("/a/packs/s")) == ""
