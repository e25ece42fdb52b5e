"""Samples against the plain reader: what is read, how much of it, which videos, and what is refused."""

import os
import pickle

import numpy as np
import pytest

from shared.cli import RequestError, Stopped
from shared.clips import data as clip_data
from shared.clips.data import ClipData
from shared.clips.index import unpack_mask
from shared.store.layout import StoreError
from shared.store.reader import StoreReader


@pytest.fixture(scope="module")
def store(tmp_path_factory, make_clip_store):
    lengths = {"a0": 40, "a1": 6, "b0": (33, 48, 40), "b1": 7, "c0": 15, "c1": (60, 32, 64), "c2": 12}
    return make_clip_store(tmp_path_factory.mktemp("data") / "store", lengths, geometries=("4x2", "1x1"))


def test_a_sample_is_what_the_plain_reader_gives(store, sampling, augment):
    data, reader = ClipData([store], sampling(), augment()), StoreReader(store)
    for epoch in range(20):
        for number in range(len(data)):
            sample, video = data.sample(number, epoch), data.name(number)
            starts = sample.views["start"].tolist()
            assert starts[0] == starts[1] and starts[2] <= starts[3]
            for view, crop in zip(sample.views, sample.crops):
                y, x, h, w = view["box"]
                frames, maps = reader.clip(video, int(view["start"]), "4x2")
                assert np.array_equal(crop, frames[:, y:y + h, x:x + w])
                assert view["start"] in reader.clips(video, "4x2").start
            assert np.array_equal(sample.motion, reader.clip(video, starts[0], "4x2")[1])
            if starts[0] != starts[2]:
                assert sample.order == (starts[0] > starts[2])


def test_crops_follow_the_hot_mask_of_their_own_clip(store, sampling, augment):
    data, reader, met, others = ClipData([store], sampling(), augment()), StoreReader(store), [], []
    for number in range(len(data)):
        clips, cells = reader.clips(data.name(number), "4x2"), [side // 8 for side in data.frame_size(number)]
        masks = [unpack_mask(packed, cells).repeat(8, 0).repeat(8, 1) for packed in clips.hot_mask]
        for epoch in range(30):
            for view in data.sample(number, epoch).views:
                y, x, h, w = view["box"]
                for mask, start in zip(masks, clips.start):
                    covers = mask[y:y + h, x:x + w].sum() >= 0.8 * mask.sum()
                    (met if start == view["start"] else others).append(covers)
    # Hot cells of noise are scattered: no box of the smallest sizes covers them, the best of 20 sizes is taken then.
    assert np.mean(met) > 0.9 > np.mean(others) + 0.2


def test_one_range_a_clip_and_one_for_the_maps(store, sampling, augment):
    for chosen, motion, clips, maps in ((sampling(), True, 3, 1), (sampling(keys=1), True, 1, 1),
                                        (sampling(keys=1, sa=False), False, 1, 0), (sampling(), False, 3, 0)):
        data = ClipData([store], chosen, augment(), motion=motion)
        numbers = [n for n in range(len(data)) if data.name(n) in ("a0", "b0", "c1")]
        counts, samples = data.reader(0).counts, 0
        for epoch in range(10):
            for number in numbers:
                before = {name: count.ranges for name, count in counts.items()}
                sample = data.sample(number, epoch)
                decoded = len(set(sample.views["start"].tolist()))
                assert counts["rgb"].ranges - before.get("rgb", 0) == decoded <= clips
                samples += 1
        assert counts["rgb"].bytes_read == counts["rgb"].bytes_used
        assert (counts["st_motion"].ranges if maps else counts.get("st_motion")) == (samples if maps else None)


def test_a_sample_depends_on_seed_epoch_and_video_alone(store, sampling, augment):
    def draw(seed, order):
        data = ClipData([store], sampling(), augment(), seed=seed)
        return {(epoch, n): data.sample(n, epoch) for epoch, n in order}
    keys = [(epoch, n) for epoch in (0, 7) for n in range(5)]
    one, two, other = draw(1, keys), draw(1, keys[::-1]), draw(2, keys)
    for key in keys:
        assert one[key].views.tobytes() == two[key].views.tobytes()
        assert all(np.array_equal(a, b) for a, b in zip(one[key].crops, two[key].crops))
        assert one[key].views.tobytes() != other[key].views.tobytes()
    assert one[0, 0].views.tobytes() != one[7, 0].views.tobytes()


def test_frames_of_a_2d_net(store, sampling, augment):
    data, reader = ClipData([store], sampling(clip="1x1"), augment()), StoreReader(store)
    assert (len(data), data.short, data.undivided) == (7, 0, 0)
    for epoch in range(20):
        sample = data.sample(4, epoch)
        assert [crop.shape[0] for crop in sample.crops] == [1] * 4 and sample.motion.shape[0] == 1
        for view, crop in zip(sample.views, sample.crops):
            y, x, h, w = view["box"]
            frame = reader.frames(data.name(4), [int(view["start"])])
            assert np.array_equal(crop, frame[:, y:y + h, x:x + w])


def test_the_released_crop_reads_the_maps_of_every_clip(store, sampling, augment):
    data = ClipData([store], sampling(sa_variant="released"), augment(), motion=False)
    sample = data.sample(0, 0)
    assert sample.motion is None
    assert data.reader(0).counts["st_motion"].ranges == len(set(sample.views["start"].tolist()))


def test_short_videos_are_left_out_and_counted(store, sampling, augment):
    data = ClipData([store], sampling(), augment())
    assert [data.name(n) for n in range(len(data))] == ["a0", "b0", "b1", "c0", "c1", "c2"] and data.short == 1
    # Halves of 7 frames hold one clip: b1 (7 frames) and c2 (12) have none; c0 (15) starts its second half at 7, and
    # clips start every second frame, so one at 8 fits.
    assert data.undivided == 2
    assert ClipData([store], sampling(keys=1), augment()).undivided == 0
    assert data.classes == ["a", "b", "c"]
    [entry] = data.provenance()
    assert (entry["videos"], entry["short"], entry["undivided"], entry["split"]) == (6, 1, 2, "train")
    assert entry["index"] == StoreReader(store).index.generation and len(entry["recipe_hash"]) == 16


def test_several_stores_of_other_frame_sizes(tmp_path, store, make_clip_store, sampling, augment):
    second = make_clip_store(tmp_path / "second", {"a0": (40, 64, 80), "z": 30}, seed=9)
    data = ClipData([store, second], sampling(), augment())
    names = [data.name(n) for n in range(len(data))]
    assert names[0] == f"{store}: a0" and names[-2:] == [f"{second}: a0", f"{second}: z"] and len(set(names)) == 8
    assert data.largest_frame() == (64, 80) and data.frame_size(6) == (64, 80) and data.frame_size(0) == (32, 40)
    assert [entry["videos"] for entry in data.provenance()] == [6, 2]
    view = (sample := data.sample(6, 0)).views[0]
    frames = StoreReader(second).clip("a0", int(view["start"]), "4x2")[0]
    y, x, h, w = view["box"]
    assert np.array_equal(sample.crops[0], frames[:, y:y + h, x:x + w])
    with pytest.raises(RequestError, match="expected each store once"):
        ClipData([store, f"{store}/../{store.name}"], sampling(), augment())


def test_a_store_behind_a_url_gives_the_same_samples(store, sampling, augment):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(store), "/clips/store", recursive=True)
    here, there = (ClipData([place], sampling(), augment()) for place in (store, "memory://clips/store"))
    assert there.provenance()[0]["store"] == "memory://clips/store"
    for number in range(len(here)):
        one, other = here.sample(number, 3), there.sample(number, 3)
        assert one.views.tobytes() == other.views.tobytes()
        assert all(np.array_equal(a, b) for a, b in zip(one.crops, other.crops))
        assert np.array_equal(one.motion, other.motion)
    assert here.reader(0).counts == there.reader(0).counts
    memory.rm("/clips", recursive=True)


def test_the_split_is_chosen(tmp_path, make_clip_store, sampling, augment):
    three = make_clip_store(tmp_path / "ucf", {"a": 20}, split="train1;test2;test3")
    assert ClipData([three], sampling(), augment()).provenance()[0]["split"] == "train1"
    assert ClipData([three], sampling(), augment(), split="test2").provenance()[0]["split"] == "test2"
    with pytest.raises(RequestError, match=r"has no split 'train'; it has test2, test3, train1: choose by --split"):
        ClipData([three], sampling(), augment(), split="train")
    with pytest.raises(RequestError, match="has no split ''; it has test2"):
        ClipData([three], sampling(), augment(), split="")
    other = make_clip_store(tmp_path / "other", {"a": 20}, split="val")
    with pytest.raises(RequestError, match="has no 'train' nor 'train1'; it has val"):
        ClipData([three, other], sampling(), augment())


def test_a_geometry_that_the_store_lacks_is_refused_with_the_command(store, sampling, augment):
    with pytest.raises(RequestError) as caught:
        ClipData([store], sampling(clip="8x2"), augment())
    assert f"`python -m preprocess.reindex {store} --clips 8x2`" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_that_the_refusal_names_helps(tmp_path, make_clip_store, sampling, augment):
    from preprocess import reindex

    store = make_clip_store(tmp_path / "store", {"a": 40, "b": 50})
    with pytest.raises(RequestError) as caught:
        ClipData([store], sampling(clip="8x2"), augment())
    command = str(caught.value).split("`")[1].split()
    assert command[:3] == ["python", "-m", "preprocess.reindex"] and reindex.main(command[3:]) == 0
    assert ClipData([store], sampling(clip="8x2"), augment()).sample(1, 0).crops[0].shape[0] == 8


def test_what_is_no_store_and_what_is_too_short(tmp_path, make_clip_store, sampling, augment):
    with pytest.raises(RequestError, match="is no store"):
        ClipData([tmp_path / "nothing"], sampling(), augment())
    with pytest.raises(RequestError, match="expected each store once"):
        ClipData([], sampling(), augment())
    short = make_clip_store(tmp_path / "short", {"a": 5, "b": 6})
    data = ClipData([short], sampling(), augment())
    assert not len(data) and data.short == 2 and data.shorter(2) == (" --set clip=4x1", 2)
    index = short / "index" / (short / "current").read_text().strip() / "videos.csv"
    index.write_bytes(index.read_bytes().replace(b"train", b"trein"))
    with pytest.raises(Stopped, match="does not match its checksum"):
        ClipData([short], sampling(), augment())


def test_damage_names_pack_and_video(tmp_path, make_clip_store, sampling, augment):
    store = make_clip_store(tmp_path / "store", {"a": 20, "b": 20})
    [path] = store.glob("packs/*/*/rgb/c*")
    raw = bytearray(path.read_bytes())
    raw[:len(raw) // 2:50] = bytes(len(raw[:len(raw) // 2:50]))
    path.write_bytes(raw)
    data = ClipData([store], sampling(), augment())
    with pytest.raises(StoreError, match=r"pack p32x40, video 'a': .*bad checksum"):
        data.sample(0, 0)


def test_open_packs_are_bounded_and_a_process_opens_its_own(tmp_path, make_clip_store, sampling, augment, monkeypatch):
    monkeypatch.setattr(clip_data, "MAX_OPEN", 4)
    lengths = {f"v{n:02}": (20, 32, 40 + 8 * n) for n in range(12)}  # a pack each
    store = make_clip_store(tmp_path / "store", lengths)
    data = ClipData([store], sampling(), augment())
    before = len(os.listdir("/proc/self/fd"))
    for number in range(12):
        data.sample(number, 0)
    opened = len(os.listdir("/proc/self/fd")) - before
    assert 4 <= opened <= 4 * 3  # frames, maps and hot masks of four packs
    copy = pickle.loads(pickle.dumps(data))
    assert np.array_equal(copy.sample(3, 1).crops[2], data.sample(3, 1).crops[2])
    readers = data.reader(0)
    child = os.fork()
    if not child:
        os._exit(data.reader(0) is readers)
    assert os.waitpid(child, 0)[1] == 0


def test_groups_that_are_left_out_are_not_sampled(store, sampling, augment):
    every, data = (ClipData([store], sampling(leave_out=out), augment()) for out in ((), ("g0", "g2")))
    assert [data.name(n) for n in range(len(data))] == [name for name in map(every.name, range(len(every)))
                                                        if name[1:] == "1"]
    entry, = data.provenance()
    assert (entry["left_out"], entry["groups"], data.left_out) == (["g0", "g2"], ["g1"], 4)
    assert "groups" not in every.provenance()[0] and every.provenance()[0]["used"] != entry["used"]
    for out, message in ((("g3",), "leave_out: .*store has no group 'g3'; known: g0, g1, g2"),
                         (("g0", "g1", "g2"), "leave_out is g0, g1, g2; no video is of another group")):
        with pytest.raises(RequestError, match=message):
            ClipData([store], sampling(leave_out=out), augment())
