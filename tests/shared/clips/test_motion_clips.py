"""The motion pathway's input: the same clip, crop and flip as the frames; what they do to edges, flow and differences.

The oracles work on full-resolution arrays, before anything was pooled or stored.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.cli import RequestError
from shared.clips.data import ClipData
from shared.clips.loader import Loader, Sampler
from shared.clips.motion_clips import motion_clips
from shared.clips.resampling import MEAN, STD, resize
from shared.clips.sampling import VIEW, half_cells
from shared.clips.views import make_views
from shared.motion import edges, pool
from shared.store.chunks import quantise_edges
from shared.store.reader import StoreReader

HEIGHT, WIDTH, LENGTH, SIZE = 64, 96, 8, 24


def view_of(box, flip):
    view = np.zeros(1, VIEW)
    view["box"], view["flip"] = box, flip
    return view


def crop(maps, box):
    """The half-size cells that a box touches, of (L, 2, H/2, W/2)."""
    y, x, h, w = box
    return maps[:, :, slice(*half_cells(y, h)), slice(*half_cells(x, w))]


def network_input(values, box, flip, chosen, size=SIZE):
    return motion_clips([torch.from_numpy(np.ascontiguousarray(values))], view_of(box, flip), chosen, size)[0].numpy()


def frame_points(box, flip, size=SIZE):
    """Where the centres of the view's pixels lie in the frame: rows (S,), columns (S,) in pixels from its corner."""
    y, x, h, w = box
    at = (np.arange(size) + 0.5) / size
    return y + h * at, x + w * (1 - at if flip else at)


def affine_flow(rng):
    """u and v as linear functions of time, row and column, a few px/frame."""
    coefficients = rng.uniform(-0.03, 0.03, (2, 3)) * [1, 1, 1], rng.uniform(-2, 2, 2)

    def flow(t, row, column):
        return [c[0] * t * 10 + c[1] * row + c[2] * column + c0 for c, c0 in zip(*coefficients)]
    return flow


def boxes():
    return st.tuples(st.integers(0, 20), st.integers(0, 40), st.integers(20, 44), st.integers(20, 56))


@settings(max_examples=40, deadline=None)
@given(boxes(), st.booleans(), st.integers(0, 10 ** 6))
def test_flow_is_the_motion_of_points_in_the_view(maclr, box, flip, seed):
    """A point and where it is a frame later, both seen in the view: their difference, whatever crop and flip."""
    flow, (y, x, h, w) = affine_flow(np.random.default_rng(seed)), box
    t, row, column = np.meshgrid(np.arange(LENGTH), np.arange(HEIGHT) + 0.5, np.arange(WIDTH) + 0.5, indexing="ij")
    stored = pool(np.stack(flow(t, row, column), axis=1).astype(np.float32), 2).astype(np.float16)
    found = network_input(crop(stored, box), box, flip, maclr(motion_input="flow"))

    def in_view(row, column):
        across = (column - x) * SIZE / w
        return (row - y) * SIZE / h, SIZE - across if flip else across
    rows, columns = (values[..., None] if i == 0 else values for i, values in enumerate(frame_points(box, flip)))
    for t in range(LENGTH):
        u, v = flow(t, rows, columns)
        (row, column), (row_after, column_after) = in_view(rows, columns), in_view(rows + v, columns + u)
        expected = np.broadcast_arrays(column_after - column, row_after - row)
        inner = slice(2, -2)                                     # half a cell at the border has no neighbour
        for channel, motion in enumerate(expected):
            assert np.abs(20 * found[channel, t] - motion)[inner, inner].max() < 0.02
        assert np.abs(20 * found[2, t] - np.hypot(*expected))[inner, inner].max() < 0.06


@settings(max_examples=40, deadline=None)
@given(boxes(), st.booleans(), st.integers(0, 10 ** 6))
def test_edges_keep_their_values_wherever_they_move(maclr, box, flip, seed):
    """Against |grad u| and |grad v| of full-resolution float32 flow, at the points that the view's pixels stand for."""
    rng = np.random.default_rng(seed)
    bends = rng.uniform(-0.004, 0.004, (2, 3))                   # second derivatives: the gradients are linear
    row, column = np.meshgrid(np.arange(HEIGHT) + 0.5, np.arange(WIDTH) + 0.5, indexing="ij")
    flow = np.stack([b[0] * row ** 2 + b[1] * row * column + b[2] * column ** 2 + 3 for b in bends])
    stored = quantise_edges(pool(edges(np.repeat(flow[None], LENGTH, 0).astype(np.float32)), 2))
    found = network_input(crop(stored, box), box, flip, maclr())
    rows, columns = frame_points(box, flip)
    u, v = (np.hypot(2 * b[0] * rows[:, None] + b[1] * columns, b[1] * rows[:, None] + 2 * b[2] * columns)
            for b in bends)
    inner = slice(2, -2)
    for channel, value in enumerate((u, v, np.hypot(u, v))):
        # Half a step of the store: at most 10 (2 q + 1) / 2 / 255^2; and the bend of a magnitude near its zero.
        step = (np.sqrt(10 * value) + 0.02) / 255
        assert (np.abs(10 * found[channel, 0] - value) < step + 0.02)[inner, inner].all()
    assert np.array_equal(found[:, 0], found[:, -1])


@pytest.mark.parametrize("box", [(0, 0, 64, 96), (7, 11, 31, 45), (8, 10, 24, 24), (3, 2, 60, 17)])
def test_a_flip_mirrors_edges_and_negates_flow_across(maclr, box):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (LENGTH, 2, HEIGHT // 2, WIDTH // 2), np.uint8)
    plain, flipped = (network_input(crop(codes, box), box, flip, maclr()) for flip in (False, True))
    np.testing.assert_allclose(flipped, plain[..., ::-1], atol=1e-6)
    flow = rng.normal(0, 5, codes.shape).astype(np.float16)
    plain, flipped = (network_input(crop(flow, box), box, flip, maclr(motion_input="flow")) for flip in (False, True))
    np.testing.assert_allclose(flipped, plain[..., ::-1] * np.array([-1, 1, 1]).reshape(3, 1, 1, 1), atol=1e-6)
    assert np.abs(plain[0]).max() > 0.05
    frames = rng.integers(0, 256, (2 * LENGTH, *box[2:], 3), np.uint8)
    plain, flipped = (network_input(frames, box, flip, maclr(motion_input="difference")) for flip in (False, True))
    assert np.array_equal(flipped, plain[..., ::-1])


def test_a_crop_on_whole_cells_is_resized_as_frames_are(maclr):
    """Bilinear with antialiasing, torch's own, up and down."""
    codes = np.random.default_rng(1).integers(0, 256, (LENGTH, 2, 32, 48), np.uint8)
    for box, size in (((0, 0, 64, 96), 20), ((16, 8, 30, 24), 48), ((2, 4, 8, 8), 32)):
        found = network_input(crop(codes, box), box, False, maclr(), size)
        gradients = torch.from_numpy(10 * (crop(codes, box) / 255.0) ** 2)
        maps = torch.cat([gradients, gradients.square().sum(1, keepdim=True).sqrt()], 1).clamp(max=10) / 10
        expected = torch.nn.functional.interpolate(maps, (size, size), mode="bilinear", antialias=True)
        np.testing.assert_allclose(found.transpose(1, 0, 2, 3), expected, atol=1e-5)


def test_limits_are_settings(maclr):
    codes, box = np.full((LENGTH, 2, 8, 8), 255, np.uint8), (0, 0, 16, 16)
    assert np.allclose(network_input(codes, box, False, maclr()), 1)            # 10, 10 and 14.1 px/frame per px
    assert np.allclose(network_input(codes // 5, box, False, maclr(edges_max=0.8))[:, 0, 0, 0],
                       [0.5, 0.5, 0.5 * 2 ** 0.5])                              # 51/255: 0.4 of 0.8
    flow = np.zeros((LENGTH, 2, 8, 8), np.float16)
    flow[:, 0], flow[:, 1] = -30, 3
    found = network_input(flow, box, False, maclr(motion_input="flow"), size=16)[:, 0, 0, 0]
    assert found == pytest.approx([-1, 3 / 20, 1])                              # the view is as large as the crop
    found = network_input(flow, box, True, maclr(motion_input="flow", flow_max=100.0), size=32)[:, 0, 0, 0]
    assert found == pytest.approx([0.6, 0.06, np.hypot(0.6, 0.06)])             # twice as large: twice as fast


# --- read from a store


@pytest.fixture(scope="module")
def store(tmp_path_factory, write_clip_store):
    """Videos whose frames, edges and flow all show one bright square on its way; edges (1, 2.5), flow (-2, 3) in it."""
    rng, videos, second = np.random.default_rng(0), {}, {}
    for number, frames in enumerate((40, 40, 64, 30, 12, 8)):
        rgb = np.zeros((frames, HEIGHT, WIDTH, 3), np.uint8)
        edge, flow = (np.zeros((frames, 2, HEIGHT // 2, WIDTH // 2), np.float32) for _ in range(2))
        for t in range(frames):
            y, x = 2 * rng.integers(0, [HEIGHT // 2 - 9, WIDTH // 2 - 9])
            rgb[t, y:y + 18, x:x + 18] = 255
            edge[t, :, y // 2:y // 2 + 9, x // 2:x // 2 + 9] = np.array([1, 2.5])[:, None, None]
            flow[t, :, y // 2:y // 2 + 9, x // 2:x // 2 + 9] = np.array([-2, 3])[:, None, None]
        maps = rng.random((frames, HEIGHT // 8, WIDTH // 8), np.float32)
        videos[f"v{number}"], second[f"v{number}"] = (rgb, maps, ("train",)), {"edges": edge, "flow": flow}
    return write_clip_store(tmp_path_factory.mktemp("second") / "store", videos, geometries=("4x2", "4x4"), fps=20.0,
                            second=second)


@pytest.mark.parametrize("kind", ["edges", "flow", "difference"])
def test_inputs_are_what_the_plain_reader_gives(store, sampling, augment, maclr, kind):
    data = ClipData([store], sampling(keys=1), augment(), motion=False, maclr=maclr(motion_input=kind))
    reader = StoreReader(store)
    for epoch in range(10):
        for number in range(len(data)):
            sample, video = data.sample(number, epoch), data.name(number)
            assert len(sample.inputs) == len(sample.views) == 2
            for view, values in zip(sample.views, sample.inputs):
                start, (y, x, h, w) = int(view["start"]), view["box"].tolist()
                times = range(start, start + 8)
                if kind == "difference":
                    last = len(reader.t_motion(video)) - 2
                    pairs = [min(t, last) + after for t in times for after in (0, 1)]
                    expected = reader.frames(video, pairs)[:, y:y + h, x:x + w]
                else:
                    whole = getattr(reader, kind)(video, times)
                    expected = whole[:, :, y // 2:(y + h + 1) // 2, x // 2:(x + w + 1) // 2]
                assert np.array_equal(values, expected)


@pytest.mark.parametrize("kind", ["edges", "flow", "difference"])
def test_both_inputs_show_the_same_place_at_the_same_time(store, sampling, augment, maclr, kind):
    """Frame i of the visual clip and frame 2 i of the motion clip: the square lies where the square lies."""
    plain, chosen = augment(jitter_p=0.0, grey_p=0.0, blur_p=0.0), maclr(motion_input=kind)
    data = ClipData([store], sampling(keys=1, sa=False), plain, motion=False, maclr=chosen)
    seen, flips = 0, set()
    with Loader(data, Sampler(len(data), 5, seed=1), workers=1) as loader:
        for batch, _ in zip(loader, range(12)):
            views = make_views(batch, plain, 48, maclr=chosen)
            assert all(clips.shape == (5, 3, 8, 48, 48) for clips in views.motion_clips)
            flips |= set(batch.views["flip"].ravel().tolist())
            for clips, second in zip((views.query, *views.keys), views.motion_clips):
                for clip, motion in zip(clips, second):
                    square = clip[1, 1] * STD[1] + MEAN[1] > 0.5                # frame 1 of 4x2: frame 2 of 8x1
                    if not 100 < square.sum() < 1200:
                        continue
                    if kind == "edges":
                        inside = motion[2, 2] > 0.14
                    elif kind == "flow":
                        inside = motion[2, 2] > 0.5 * motion[2, 2].max()
                    else:
                        inside = motion[1, 2] < -0.5                             # it leaves for another place
                    both = (square & inside).sum() / (square | inside).sum()
                    seen += 1
                    assert both > (0.7 if kind != "difference" else 0.3)
    assert seen > 40 and flips == {False, True}


def test_the_second_clip_is_shifted_by_the_seconds_asked_for(store, sampling, augment, maclr):
    """At 20 frames/s: 10 to 16 frames; videos where some clip has none at such a distance are counted, and take the
    furthest; a video without room for the motion clip (8 frames fit, 7 would not) is short."""
    chosen = maclr(shift_max_s=0.8)
    data = ClipData([store], sampling(keys=1, ta=False), augment(), motion=False, maclr=chosen)
    assert (len(data), data.short, data.undivided) == (6, 0, 2) and data.provenance()[0]["undivided"] == 2
    met = {number: set() for number in range(6)}
    for epoch in range(100):
        for number in range(6):
            one, two = data.sample(number, epoch).views["start"].tolist()
            met[number].add((one, abs(one - two)))
    for number in range(4):
        assert {distance for _, distance in met[number]} == {10, 12, 14, 16}
    assert met[4] == {(0, 4), (2, 2), (4, 4)} and met[5] == {(0, 0)}
    none = ClipData([store], sampling(keys=1), augment(), motion=False, maclr=maclr(shift_min_s=0.0, shift_max_s=0.0))
    assert none.undivided == 0
    assert all(len(set(none.sample(number, 0).views["start"].tolist())) == 1 for number in range(6))


def test_motion_focus_holds_for_both_clips(store, sampling, augment, maclr):
    data = ClipData([store], sampling(keys=1, ta=True), augment(), motion=False, maclr=maclr(shift_min_s=0.1))
    reader = StoreReader(store)
    for number in range(3):
        clips = reader.clips(data.name(number), "4x2")
        moving = set(clips.start[clips.score > clips.median].tolist())
        for epoch in range(40):
            assert set(data.sample(number, epoch).views["start"].tolist()) <= moving


def test_clips_leave_room_for_the_longer_of_the_two(store, sampling, augment, maclr):
    """A visual clip of 4x4 spans 13 frames, its motion clip of 8x2 15; the visual-only ablation sees the same clips."""
    before = None
    for visual_only in (False, True):
        chosen = maclr(motion_clip="8x2", vm=not visual_only, mv=not visual_only)
        data = ClipData([store], sampling(keys=1, clip="4x4", ta=False), augment(), motion=False, maclr=chosen)
        assert (len(data), data.short) == (4, 2)
        samples = [data.sample(number, epoch) for number in range(4) for epoch in range(60)]
        starts = [sample.views["start"].tolist() for sample in samples]
        assert max(max(pair) for pair in starts[-60:]) == 30 - 16               # starts lie two frames apart
        if visual_only:
            assert starts == before and not any(sample.inputs for sample in samples)
        before = starts


def test_what_the_store_does_not_keep_is_refused(store, tmp_path, make_clip_store, sampling, augment, maclr):
    plain = make_clip_store(tmp_path / "plain", {"a": 40, "b": 40})
    for kind in ("edges", "flow"):
        with pytest.raises(RequestError, match=f"keeps no {kind} .pack p32x40.*--recipe maclr --set {kind}=true"):
            ClipData([plain], sampling(keys=1), augment(), motion=False, maclr=maclr(motion_input=kind))
    with pytest.raises(RequestError, match="keeps no edges.*--set geometries=4x4`"):     # no such clips either
        ClipData([plain], sampling(keys=1, clip="4x4"), augment(), motion=False, maclr=maclr(motion_clip="8x2"))
    for chosen in (maclr(motion_input="difference"), maclr(vm=False, mv=False)):
        assert len(ClipData([plain], sampling(keys=1), augment(), motion=False, maclr=chosen)) == 2


def test_ranges_read_for_a_motion_clip(store, sampling, augment, maclr):
    data = ClipData([store], sampling(keys=1), augment(), motion=False, maclr=maclr())
    for epoch in range(5):
        data.sample(2, epoch)
    counts = data.reader(0).counts
    assert counts["edges"].ranges == 10 and counts["edges"].bytes_read == counts["edges"].bytes_used
    assert "flow" not in counts and "st_motion" not in counts


def test_differences_of_frames(maclr):
    frames = np.random.default_rng(2).integers(0, 256, (2 * LENGTH, 40, 30, 3), np.uint8)
    found = network_input(frames, (0, 0, 40, 30), False, maclr(motion_input="difference"))
    expected = resize(torch.from_numpy(frames[1::2]), SIZE) - resize(torch.from_numpy(frames[::2]), SIZE)
    assert found.shape == (3, LENGTH, SIZE, SIZE) and np.array_equal(found, expected.numpy())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["edges", "flow", "difference"])
def test_motion_clips_on_the_device_equal_the_hosts(gpu, store, sampling, augment, maclr, kind):
    chosen = maclr(motion_input=kind)
    data = ClipData([store], sampling(keys=1), augment(), motion=False, maclr=chosen)
    for batch, _ in zip(Loader(data, Sampler(len(data), 5), 2, gpu), range(3)):
        host, device = (make_views(batch, augment(), 48, None, place, chosen) for place in ("cpu", gpu))
        for one, other in zip(host.motion_clips, device.motion_clips):
            assert (one - other.cpu()).abs().max() < (0.01 if kind == "difference" else 2e-3)
