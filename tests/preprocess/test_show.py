"""The pictures show what the store holds, and wrong requests are refused in one line."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from pyarrow import parquet

from preprocess import run, show, table
from preprocess.picture import SHOWN_CROPS, flow_after, video_picture
from shared import cli, motion
from shared.cli import RequestError, Stopped
from shared.clips.index import ClipGeometry, above, covered, summed_area, unpack_mask
from shared.pictures import census
from shared.recipes.preprocessing import Recipe, build
from shared.store.index import Index
from shared.store.reader import StoreReader
from shared.store.record import read_json

REPOSITORY = Path(__file__).resolve().parents[2]
GEOMETRY = ClipGeometry(16, 2)


@pytest.fixture(scope="module")
def store(small_videos, tmp_path_factory):
    """Four synthetic videos, one of 9 frames and one that is no video, through the pipeline."""
    root = tmp_path_factory.mktemp("show")
    for number, path in enumerate(sorted(small_videos.rglob("*.mp4"))[:4]):
        (root / "videos" / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / "videos" / f"class{number % 2}" / f"moving{number}.mp4")
    with av.open(str(root / "videos/class0/moving0.mp4")) as source, \
            av.open(str(root / "videos/class1/short.mp4"), "w") as output:
        # The object moves in the middle; a fixed quantiser, since x264's rate control differs from run to run.
        stream = output.add_stream("libx264", rate=25, options={"qp": "18"})
        stream.height, stream.width, stream.pix_fmt = 64, 80, "yuv420p"
        for t, frame in enumerate(list(source.decode(video=0))[14:23]):
            frame = av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), "rgb24")
            frame.pts = t
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    (root / "videos/class1/broken.mp4").write_bytes(b"no video\n" * 100)
    code = run.main(["--dataset", "folder", "--videos", str(root / "videos"), "--store", str(root / "store"),
                     "--engine", "serial", "--flow", "cpu", "--set", "preset=fast"])
    assert code == cli.FAILURES
    return root / "store"


def recipe_of(store) -> Recipe:
    return build(Recipe, read_json(store / "store.json")["recipe"], "")


def test_picture_of_a_video_shows_what_is_stored(store):
    reader, video = StoreReader(store), Index.load(store).id[0]
    picture = video_picture(reader, video, recipe_of(store), GEOMETRY)
    clips, all_maps = reader.clips(video, GEOMETRY), reader.motion(video, 0, 40).astype(np.float32)
    assert picture.shown == clips.start[clips.score.argmax()] and len(clips.start) == 3
    np.testing.assert_array_equal(picture.number, picture.shown + np.array([0, 6, 12, 18, 24, 30]))
    np.testing.assert_array_equal(picture.frames, reader.frames(video, picture.number))
    np.testing.assert_array_equal(picture.motion, all_maps[picture.number])
    np.testing.assert_array_equal(picture.t_motion, reader.t_motion(video))
    # The hot cells are those of the S-motion drawn beside them, up to the stored maps' rounding to float16.
    hot = unpack_mask(clips.hot_mask[clips.score.argmax()], (8, 10))
    np.testing.assert_array_equal(picture.hot, hot)
    sampled = all_maps[picture.shown:picture.shown + 31:2].copy()
    sampled[:, [0, -1]] = sampled[:, :, [0, -1]] = 0
    np.testing.assert_allclose(picture.s_motion, sampled.mean(axis=0), rtol=1e-6)
    assert (above(picture.s_motion, np.percentile(picture.s_motion, 90)) == hot).mean() > 0.97
    assert len(picture.boxes) == SHOWN_CROPS
    table = summed_area(hot)
    for box in picture.boxes:
        assert covered(table, box.h, box.w)[box.y, box.x] >= 0.8 * table[-1, -1] - 1e-6


def test_recomputed_flow_gives_the_stored_maps(store):
    """Stored maps come from the frames before JPEG; flow from the stored frames must agree but for its noise."""
    reader, recipe = StoreReader(store), recipe_of(store)
    for video in Index.load(store).id:
        picture = video_picture(reader, video, recipe, GEOMETRY)
        again = motion.pool(np.sqrt((picture.boundary**2).sum(axis=1)))
        assert np.corrcoef(again.ravel(), picture.motion.ravel())[0, 1] > 0.9
        assert picture.flow.shape == (len(picture.number), 2, *picture.frames.shape[1:3])


def test_short_video_is_shown_whole(store):
    picture = video_picture(StoreReader(store), "class1/short.mp4", recipe_of(store), GEOMETRY)
    np.testing.assert_array_equal(picture.number, [0, 2, 3, 5, 6, 8])
    assert picture.shown is None and not picture.boxes and not picture.hot.any()
    assert "too short for a clip of 16x2 (31 frames)" in picture.facts
    # The last frame repeats the flow before it.
    last = flow_after(StoreReader(store), "class1/short.mp4", np.array([7, 8]), 9, recipe_of(store))
    np.testing.assert_array_equal(last[0], last[1])


def test_overview_counts_the_store(store):
    index = Index.load(store)
    picture = census.store_picture(index, read_json(store / "store.json"), GEOMETRY)
    reader, facts = StoreReader(store), dict(picture.facts)
    clips = [reader.clips(video, GEOMETRY) for video in index.id]
    np.testing.assert_allclose(sorted(picture.scores), sorted(np.concatenate([c.score for c in clips])))
    np.testing.assert_allclose(sorted(picture.medians), sorted(c.median for c in clips if len(c.start)))
    assert facts["videos"] == "5" and facts["failed"] == "1" and facts["clips 16x2"] == "12"
    assert facts["frames"] == "169" and facts["too short for one"] == "1"
    assert picture.sizes == [("64x80", 5)] and picture.splits == [("train", 5)]
    assert sorted(picture.classes) == [("class0", 2), ("class1", 3)]
    assert picture.reasons == [("not a video: invalid data", 1)]


def test_reasons_that_differ_in_a_frame_number_are_one():
    reasons = ["damaged after 7 frames: invalid data; its 7 good frames are kept",
               "damaged after 12 frames: invalid data; its 12 good frames are kept"]
    assert {census.COUNTED.sub("N", reason) for reason in reasons} == {
        "damaged after N frames: invalid data; its N good frames are kept"}


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--video", "class0/moving0.mp4"], ["--video", "class1/short.mp4"],
                                     ["--video", "class0/moving0.mp4", "--clips", "16x2"]])
def test_command_writes_a_picture(store, tmp_path, capsys, options):
    out = tmp_path / "a.png"
    assert show.main([str(store), "--out", str(out), *options]) == cli.DONE
    assert capsys.readouterr().out == f"{out}\n"
    assert cv2.imread(str(out)).shape[1] >= 1200 and [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("options, words", [
    (["--video", "class0/movin0.mp4"], "did you mean 'class0/moving0.mp4'?"),
    (["--video", "moving2.mp4"], "did you mean 'class0/moving2.mp4'?"),
    (["--video", "zzz"], "--list` prints its ids"),
    (["--video", "class1/broken.mp4"], "failed and is not in the store: not a video: invalid data"),
    (["--clips", "8x8"], "the store has 16x2"),
    (["--list"], "not allowed with argument --out"), (["--table", "a.parquet"], "not allowed with argument --out"),
    (["--out", "a.jpg"], "ending in .png"),
    (["--out", "missing/a.png"], "a folder that exists"),
])
def test_wrong_requests_are_refused(store, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError) as caught:
        show.main([str(store), "--out", "a.png", *options])
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options, ids", [
    ([], ["class0/moving0.mp4", "class0/moving2.mp4", "class1/moving1.mp4", "class1/moving3.mp4", "class1/short.mp4"]),
    (["SHORT"], ["class1/short.mp4"]), (["-x"], [])])
def test_list_prints_matching_ids(store, capfd, options, ids):
    assert show.main([str(store), "--list", *options]) == cli.DONE
    printed = capfd.readouterr()
    assert printed.out.splitlines() == ids and ("no id of the store's 5 holds '-x'" in printed.err) == (not ids)


def test_listed_ids_keep_to_their_lines(store, capfd):
    index = Index.load(store)
    index.id = ["-_a\x1b[31m", "b\nc", "d\udcff"]
    show.list_ids(index, "")
    assert capfd.readouterr().out.encode("utf-8", "surrogateescape") == b"-_a\\x1b[31m\nb\\nc\nd\xff\n"


def test_nearest_id_is_found_among_many(store):
    index = Index.load(store)
    index.id = sorted(f"class{i % 400}/v_{i:07}_{i * 7919 % 1000:03}.mp4" for i in range(20_000))
    wanted = index.id[12_345]
    for typed in (wanted[:-5] + wanted[-4:], Path(wanted).stem, wanted.replace("class", "klass")):
        with pytest.raises(RequestError, match="did you mean") as caught:
            show.check_known(index, typed)
        assert wanted in str(caught.value)


@pytest.mark.slow
def test_folder_that_is_no_store_is_refused_by_the_command(tmp_path):
    done = subprocess.run([sys.executable, "-m", "preprocess.show", str(tmp_path), "--out", str(tmp_path / "a.png")],
                          cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == cli.REFUSED and "is no store" in done.stderr and done.stderr.count("\n") == 1


def test_damage_stops_the_picture_and_names_the_check(store, tmp_path):
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    shard = next(copy.glob("packs/*/*/rgb/c*"))
    data = bytearray(shard.read_bytes())
    data[:len(data) // 2] = bytes(len(data) // 2)
    shard.write_bytes(data)
    with pytest.raises(Stopped, match="preprocess.check .* lists all that is damaged"):
        for video in Index.load(copy).id:
            show.main([str(copy), "--video", video, "--out", str(tmp_path / "a.png")])
    shard = next(copy.glob("packs/*/*/st_motion/c*"))
    shard.write_bytes(bytes(len(data := shard.read_bytes()) // 2) + data[len(data) // 2:])
    with pytest.raises(Stopped, match="st_motion"):
        show.main([str(copy), "--table", str(tmp_path / "a.parquet")])
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.slow
def test_a_file_through_every_stage_without_a_store(store, tmp_path, capsys):
    videos = store.parent / "videos"
    line = ["--source", str(videos / "class0/moving0.mp4"), "--out", str(tmp_path / "one.png")]
    assert show.main([*line, "--set", "flow.backend=cpu", "--set", "preset=fast"]) == 0
    said = capsys.readouterr().out
    assert "headers: mov,mp4,m4a,3gp,3g2,mj2, h264, yuv420p, coded 80x64" in said
    assert "plan: 40 frames by count" in said and "stored: 40 frames at 25 frames/s" in said
    assert "CPU seconds: decode " in said and cv2.imread(str(tmp_path / "one.png")).shape[0] > 500
    assert show.main(["--source", str(videos / "class1/broken.mp4"), "--out", str(tmp_path / "no.png")]) == 1
    assert "failed at stage `open`: not a video: invalid data" in capsys.readouterr().out
    assert cv2.imread(str(tmp_path / "no.png")).min() < 100             # the words stand in the picture too
    with pytest.raises(RequestError, match="^--source .*none.tar: 1 archive of 1 is not there"):
        show.main(["--source", str(tmp_path / "none.tar/a.mp4"), "--out", str(tmp_path / "no.png")])
    for wrong in ([str(store), "--source", "x.mp4", "--out", "a.png"], ["--out", "a.png"],
                  ["--source", "x.mp4", "--list"], [str(store), "--out", "a.png", "--set", "a=b"]):
        with pytest.raises(RequestError, match="without one|goes with --out PNG|belongs to --source"):
            show.main(wrong)


def expected_rows(reader, video):
    """The rows of a table, by plain loops: 64x80 pixels, clips 16x2, a border of one cell."""
    clips, row = reader.clips(video, GEOMETRY), reader.index.row(video)
    for number, start in enumerate(clips.start.tolist()):
        cells = np.zeros((8, 10))
        for frame in range(start, start + 31, 2):
            cells[1:-1, 1:-1] += reader.motion(video, frame, frame + 1)[0, 1:-1, 1:-1].astype(np.float64)
        hot = unpack_mask(clips.hot_mask[number], (8, 10))
        yield {"video": video, "path": row.path, "class": row.class_name, "split": "train", "start": start,
               "source_start": start, "score": clips.score[number], "median": np.float32(clips.median),
               "above_median": clips.score[number] > clips.median, "threshold": clips.s_p90[number], "rows": 8,
               "columns": 10, "hot_mask": hot.ravel().tolist(), "s_motion": cells.ravel() / 16}


@pytest.mark.parametrize("rows, frames", [(table.ROWS, table.FRAMES), (2, 33), (4, 1)])
def test_the_table_of_all_clips(store, tmp_path, monkeypatch, capsys, rows, frames):
    monkeypatch.setattr(table, "ROWS", rows)
    monkeypatch.setattr(table, "FRAMES", frames)      # 33: two of the three clips of a video at a time
    out = tmp_path / "clips.parquet"
    assert show.main([str(store), "--table", str(out)]) == cli.DONE
    assert capsys.readouterr().out == f"{out}: 12 clips of 16x2 of 4 videos; 1 video is too short for one\n"
    reader, found = StoreReader(store), parquet.read_table(out)
    assert found.schema.metadata[b"clips"] == b"16x2" and parquet.ParquetFile(out).num_row_groups >= 12 // rows
    expected = [row for video in reader.index.id for row in expected_rows(reader, video)]
    assert len(found) == len(expected) == 12 and [p.name for p in tmp_path.iterdir()] == ["clips.parquet"]
    for one, other in zip(found.to_pylist(), expected):
        np.testing.assert_allclose(one.pop("s_motion"), other.pop("s_motion"), rtol=1e-3, atol=1e-6)
        assert one == other
    assert 0 < sum(row["above_median"] for row in expected) < 12
    before = out.read_bytes()
    with pytest.raises(RequestError, match="is there already and is not overwritten"):
        show.main([str(store), "--table", str(out)])
    assert out.read_bytes() == before


def test_a_table_counts_frames_of_the_file_too(store):
    """Where the file's first frames cannot be decoded a clip begins later in the file than in the store."""
    reader = StoreReader(store)
    reader.index.note[0] = "starts at frame 7; odd"
    batch, = table._batches(reader, 0, GEOMETRY, 1, table.arrow.schema(table.COLUMNS))
    assert batch["start"].to_pylist() == [0, 4, 8] and batch["source_start"].to_pylist() == [7, 11, 15]


@pytest.mark.parametrize("name, words", [("clips.csv", "ending in .parquet"), ("no/clips.parquet", "that exists")])
def test_a_table_that_cannot_be_written_is_refused(store, tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=words):
        show.main([str(store), "--table", name])
    with pytest.raises(RequestError, match="the store has 16x2"):
        show.main([str(store), "--table", "clips.parquet", "--clips", "8x8"])
    monkeypatch.setattr(show, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r'pip install "motionpack.parquet."'):
        show.main([str(store), "--table", "clips.parquet"])
    assert not list(tmp_path.iterdir())


def test_the_page_on_others_training_runs(store, tmp_path, monkeypatch):
    """docs/tokens.md from top to bottom, as a reader would: tokens, masks, the table, fifteen lines that train."""
    text = (REPOSITORY / "docs/tokens.md").read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stores").mkdir()
    (tmp_path / "stores/mine").symlink_to(store)
    (tmp_path / "VIDEOS").symlink_to(store.parent / "videos")
    command = re.search(r"^    python -m preprocess.show (.*)$", text, re.MULTILINE)[1]
    assert show.main(command.split()) == cli.DONE
    names, blocks = {}, re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for block in blocks:
        exec(compile(block, "docs/tokens.md", "exec"), names)
    assert len(blocks[-1].split("\n\n")[1].strip().splitlines()) == 15
    assert names["cropped"].motion.shape == (8, 14, 14) and names["batch"].shape == (4, 8, 4, 5)
    assert np.isfinite(names["loss"].item()) and names["blank"].abs().max() > 0
    # What the lines decode is what the store holds of the same clip, but for JPEG.
    clip = names["table"].slice(0, 1).to_pylist()[0]
    tokens, hidden = names["read"](clip)
    frames = StoreReader(store).clip(clip["video"], clip["start"], GEOMETRY)[0].astype(np.float32) / 255
    small = np.stack([cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA) for frame in frames])
    assert hidden.sum() == 12 and tokens.shape == (16, 12288)
    means = tokens.reshape(16, 16, 3, 256).mean(-1).numpy()                  # token, frame, colour
    np.testing.assert_allclose(means, small.reshape(16, 4, 16, 4, 16, 3).mean((2, 4)).transpose(1, 2, 0, 3).reshape(
        16, 16, 3), atol=0.03)
