"""What the page holds is what the store holds, wherever that is."""

import base64
import json
import re
import resource
import shutil

import cv2
import numpy as np
import pytest

from preprocess import relabel, show
from preprocess.page import write
from preprocess.picture import stored_picture
from shared import cli
from shared.cli import RequestError, Stopped
from shared.clips.index import ClipGeometry, above
from shared.pictures import census
from shared.recipes.preprocessing import Recipe, build
from shared.store.index import Index
from shared.store.reader import StoreReader
from shared.store.record import read_json

GEOMETRY = ClipGeometry(16, 2)


def read(path):
    """The arguments of the call that a script is."""
    text = path.read_text(encoding="ascii")
    return json.loads(re.fullmatch(r"page\.\w+\((.*)\)\n", text)[1].join("[]"))


def test_rows_are_the_index(page, page_store):
    index, reader = Index.load(page_store), StoreReader(page_store)
    (summary,), (number, rows) = read(page / "data/store.js"), read(page / "data/rows-0.js")
    assert number == 0 and rows["id"] == index.id and rows["note"] == index.note and rows["group"] == index.group
    assert [summary["classes"][one]["name"] for one in rows["class"]] == index.class_name
    assert rows["frames"] == index.frames.tolist() and rows["seconds"] == [frames / 25 for frames in rows["frames"]]
    motion = [reader.t_motion(video).mean() for video in index.id]
    np.testing.assert_allclose(rows["motion"], motion, rtol=1e-3)
    assert summary["least"] == sorted(range(12), key=lambda i: motion[i]) == summary["most"][::-1]
    assert [one["count"] for one in summary["classes"]] == [5, 3, 2, 1, 1]
    for bit, kind in enumerate(summary["kinds"]):
        assert [i for i in range(12) if rows["kinds"][i] >> bit & 1] == sorted(kind["videos"])


def test_suspicious_videos_are_found(page, ids):
    summary, = read(page / "data/store.js")
    named = {kind["name"]: {summary["known"][str(one)][0] for one in kind["videos"]} for kind in summary["kinds"]}
    assert named == {"still": {ids["still"], ids["black"]}, "black": {ids["black"]}, "logo": {ids["logo"]},
                     "cut": {ids["cut"]}, "short": {ids["short"]},
                     "twin": {ids["moving"], ids["copy"], ids["start"]}}
    assert [len(group) for group in summary["twins"]] == [3]
    assert [one["count"] for one in summary["failures"]] == [2, 1] and "img" in summary["failures"][1]["reason"]


def test_an_opened_video_shows_what_is_stored(page, page_store):
    summary, = read(page / "data/store.js")
    reader, recipe = StoreReader(page_store), build(Recipe, read_json(page_store / "store.json")["recipe"], "")
    assert len(summary["chosen"]) == 12
    for number, position in enumerate(summary["chosen"]):
        given, content = read(page / f"videos/{number}.js")
        picture = stored_picture(reader, reader.index.id[position], recipe, GEOMETRY)
        n, (height, width) = len(picture.number), picture.frames.shape[1:3]
        frames, maps = (cv2.imdecode(np.frombuffer(base64.b64decode(content[name].split(",")[1]), np.uint8),
                                     cv2.IMREAD_COLOR)[..., ::-1] for name in ("frames", "maps"))
        assert given == number and content["size"] == [height, width] and content["number"] == picture.number.tolist()
        assert frames.shape == (height, n * width, 3)
        assert np.abs(frames.astype(int) - np.hstack(list(picture.frames))).mean() < 12   # JPEG twice
        assert maps.shape == (height // 8, (n + 1) * width // 8, 3)
        shown = np.hstack([*picture.motion, picture.s_motion])
        order = np.argsort(shown.ravel())
        if shown.any():   # brighter is more
            assert (np.diff(maps.astype(int).sum(axis=2).ravel()[order[::100]]) >= 0).all()
        np.testing.assert_allclose(content["curve"], picture.t_motion, rtol=1e-3)
        clips, chosen = picture.clips, above(picture.clips.score, picture.clips.median)
        assert [[start, flag] for start, _, flag in content["clips"]] == np.stack([clips.start, chosen], 1).tolist()
        assert (content["clip_count"], content["chosen_count"]) == (len(clips.start), chosen.sum())
        assert content["boxes"] == [[box.y, box.x, box.h, box.w] for box in picture.boxes]
        assert content["hot"].count("M") >= 4 * bool(picture.hot.any())
        strip = cv2.imread(str(page / f"videos/{number}.jpg"))
        assert strip.shape == (120, 640, 3)


def test_few_pictures_many_rows(page_store, tmp_path, capsys):
    assert show.main([str(page_store), "--html", str(tmp_path / "page"), "--videos", "3"]) == cli.DONE
    assert capsys.readouterr().out == f"{tmp_path / 'page'}/index.html\n"
    assert len(list((tmp_path / "page/videos").iterdir())) == 6
    assert len(read(tmp_path / "page/data/rows-0.js")[1]["id"]) == 12


@pytest.mark.slow
def test_a_store_on_s3_has_the_same_page(page, page_store, bucket, tmp_path):
    import s3fs

    s3fs.S3FileSystem().put(str(page_store), f"{bucket}/store", recursive=True)
    assert show.main([f"{bucket}/store", "--html", str(tmp_path / "page")]) == cli.DONE
    for path in sorted((tmp_path / "page").rglob("*.*")):
        if path.name not in ("store.js", ".lock"):
            assert path.read_bytes() == (page / path.relative_to(tmp_path / "page")).read_bytes(), path
    here, there = (read(folder / "data/store.js")[0] for folder in (page, tmp_path / "page"))
    assert there["store"] == f"{bucket}/store" and here["title"] == there["title"]
    assert {**here, "store": ""} == {**there, "store": ""}


def test_dropped_videos_count_no_more(page_store, tmp_path, ids):
    store = tmp_path / "store"
    shutil.copytree(page_store, store)
    relabel.drop(store, [ids["moving"], ids["short"]])
    index = Index.load(store)
    picture = census.store_picture(index, read_json(store / "store.json"), GEOMETRY)
    facts = dict(picture.facts)
    assert facts["videos"] == "10" and len(picture.scores) == 32 - 3 and len(picture.medians) == 10
    assert facts["failed"] == f"{sum(count for _, count in picture.reasons)}, 2 dropped"
    index = Index.load(store)
    relabel.drop(store, [one for one, name in zip(index.id, index.class_name) if name == index.class_name[0]])
    picture = census.store_picture(Index.load(store), read_json(store / "store.json"), GEOMETRY)
    assert dict(picture.facts)["classes"].endswith(", 1 without videos")
    assert show.main([str(store), "--html", str(tmp_path / "page")]) == cli.DONE
    summary, = read(tmp_path / "page/data/store.js")
    assert {one["name"]: one["count"] for one in summary["kinds"] if one["name"] in ("twin", "short")} == {
        "twin": 2, "short": 0}
    assert "dropped by request" in {one["reason"] for one in summary["failures"]}


def test_an_empty_store_has_a_page(page_store, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(page_store, store)
    relabel.drop(store, Index.load(store).id)
    assert show.main([str(store), "--html", str(tmp_path / "page")]) == cli.DONE
    summary, = read(tmp_path / "page/data/store.js")
    assert summary["videos"] == 0 and not summary["histograms"] and not list((tmp_path / "page/data").glob("rows*"))


def test_damage_leaves_the_earlier_page(page_store, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(page_store, store)
    assert show.main([str(store), "--html", str(tmp_path / "page"), "--videos", "1"]) == cli.DONE
    before = {path: path.read_bytes() for path in (tmp_path / "page").rglob("*.*")}
    shard = next(store.glob("packs/*/wide/rgb/c*"))
    data = bytearray(shard.read_bytes())
    data[1000:-1000] = bytes(len(data) - 2000)
    shard.write_bytes(data)
    with pytest.raises(Stopped, match="preprocess.check .* lists all that is damaged"):
        show.main([str(store), "--html", str(tmp_path / "page")])
    assert {path: path.read_bytes() for path in (tmp_path / "page").rglob("*.*")} == before


def test_a_full_disk_is_named_by_the_folder(page_store, tmp_path):
    """A limit on the size of files stands for the disk: 0 stops the site's own files, more the data and pictures."""
    page, limits = tmp_path / "page", resource.getrlimit(resource.RLIMIT_FSIZE)
    site = max(path.stat().st_size for path in write.SITE.rglob("*.*"))
    for size in 0, site:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                show.main([str(page_store), "--html", str(page)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert caught.value.filename == str(page) and caught.value.errno in cli.FULL
        assert [path.name for path in page.iterdir()] == [cli.LOCK]
    assert show.main([str(page_store), "--html", str(page)]) == 0


@pytest.mark.parametrize("options, words", [
    (["--html", "page", "--videos", "-1"], "expected a number of videos"),
    (["--html", "page", "--video", "x"], "--video to --out"),
    (["--out", "a.png", "--videos", "3"], "--videos belongs to --html"),
    (["--html", "page", "--clips", "8x8"], "the store has 16x2"),
    (["--html", "s3://bucket/page"], "is a URL; expected a path on this machine"),
])
def test_wrong_requests_are_refused(page_store, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=words):
        show.main([str(page_store), *options])
    assert not list(tmp_path.iterdir())
