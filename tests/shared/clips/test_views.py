"""Views against slow oracles; the motion target against a brute-force sum and against the view itself."""

import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.clips import views as view_module
from shared.clips.data import ClipData
from shared.clips.loader import Loader, Sampler
from shared.clips.resampling import MEAN, STD, resize
from shared.clips.sampling import VIEW, draw_augment, generator
from shared.clips.views import augment as augment_clips
from shared.clips.views import make_views, motion_target

MEANS, DEVIATIONS = (np.array(values).reshape(3, 1, 1, 1) for values in (MEAN, STD))


def drawn(settings_, seed, count=1, **fields):
    """(count,) of VIEW as a worker draws them, with some fields set."""
    rows, rng = np.zeros(count, VIEW), generator(seed)
    for row in rows:
        draw_augment(rng, settings_, row)
    for name, value in fields.items():
        rows[name] = value
    return rows


def clips(seed, count=1, length=2, size=10):
    return torch.from_numpy(np.random.default_rng(seed).random((count, 3, length, size, size), np.float32))


# --- resize


@pytest.mark.parametrize("shape", [(2, 31, 40), (3, 100, 67), (1, 24, 24), (2, 9, 15)])
def test_resize_is_the_antialiased_triangle_filter(shape):
    crop = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    length, h, w = shape

    def weights(n, size):
        scale = n / size
        support = max(scale, 1.0)
        distance = np.abs(np.arange(n) + 0.5 - (np.arange(size)[:, None] + 0.5) * scale) / support
        weight = np.maximum(0, 1 - distance)
        return weight / weight.sum(axis=1, keepdims=True)
    expected = np.einsum("iy,tyxc,jx->ctij", weights(h, 24), crop.astype(float), weights(w, 24)) / 255
    values = resize(torch.from_numpy(crop), 24)
    assert values.shape == (3, length, 24, 24) and values.dtype == torch.float32
    assert np.abs(values.numpy() - expected).max() <= 1.01 / 255
    assert np.abs((values.numpy() - expected).mean()) < 0.1 / 255


# --- colours


def slow_colours(clip, row, reach):
    """(3, L, S, S) float64 in [0, 1] -> the same after jitter, greyscale, blur, flip and normalisation, one by one."""
    def grey(values):
        return (np.array([0.299, 0.587, 0.114]).reshape(3, 1, 1, 1) * values).sum(axis=0, keepdims=True)
    brightness, contrast, saturation, hue = row["factors"].astype(float)
    for kind in row["order"] if row["jitter"] else ():
        if kind == 0:
            clip = clip * brightness
        elif kind == 1:
            clip = contrast * clip + (1 - contrast) * grey(clip).mean()
        elif kind == 2:
            clip = saturation * clip + (1 - saturation) * grey(clip)
        else:
            frames = [cv2.cvtColor(np.ascontiguousarray(frame.transpose(1, 2, 0), np.float32), cv2.COLOR_RGB2HSV)
                      for frame in clip.transpose(1, 0, 2, 3)]
            for frame in frames:
                frame[..., 0] = (frame[..., 0] + math.degrees(hue)) % 360
            clip = np.stack([cv2.cvtColor(frame, cv2.COLOR_HSV2RGB) for frame in frames]).transpose(3, 0, 1, 2)
        clip = clip.clip(0, 1)
    if row["grey"]:
        clip = np.broadcast_to(grey(clip), clip.shape)
    if row["sigma"] > 0:
        at = np.arange(-reach, reach + 1)
        kernel = np.exp(-at ** 2 / (2 * float(row["sigma"]) ** 2))
        kernel /= kernel.sum()
        for axis in (-1, -2):
            pad = [(0, 0)] * 4
            pad[axis] = (reach, reach)
            padded = np.pad(clip, pad, mode="reflect")
            clip = sum(k * np.take(padded, i + np.arange(clip.shape[axis]), axis=axis) for i, k in enumerate(kernel))
    if row["flip"]:
        clip = clip[..., ::-1]
    return (clip - MEANS) / DEVIATIONS


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10 ** 6))
def test_colours_equal_the_slow_ones(augment, seed):
    chosen = augment(jitter_p=0.9, grey_p=0.3)
    rows, batch = drawn(chosen, seed, 3), clips(seed, 3)
    out = augment_clips(batch.clone(), rows, chosen)
    for row, clip, values in zip(rows, batch, out):
        expected = slow_colours(clip.numpy().astype(float), row, 6)
        assert np.abs(values.numpy() - expected).max() < 2e-3  # of the hue in float32, where colours are almost grey


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10 ** 6))
def test_frames_that_are_identical_stay_so(augment, seed):
    rows, frame = drawn(augment(), seed, 3), clips(seed, 3, length=1, size=12)
    for clip in augment_clips(frame.expand(-1, -1, 4, -1, -1).clone(), rows, augment()):
        assert torch.equal(clip, clip[:, :1].expand_as(clip))


@given(seed=st.integers(0, 10 ** 6))
@settings(max_examples=30, deadline=None)
def test_a_clip_does_not_depend_on_the_others(augment, seed):
    rows, batch = drawn(augment(), seed, 5), clips(seed, 5)
    together = augment_clips(batch.clone(), rows, augment())
    for i in range(5):
        alone = augment_clips(batch[i:i + 1].clone(), rows[i:i + 1], augment())
        assert torch.allclose(alone[0], together[i], atol=1e-5)


def test_large_batches_go_in_chunks(augment, monkeypatch):
    rows, batch = drawn(augment(), 3, 7), clips(3, 7)
    whole = augment_clips(batch.clone(), rows, augment())
    monkeypatch.setattr(view_module, "CHUNK", 2 * batch[0].numel())
    assert torch.allclose(augment_clips(batch.clone(), rows, augment()), whole, atol=1e-5)


def test_what_is_switched_off_does_nothing(augment):
    off, batch = augment(jitter_p=0.0, grey_p=0.0, blur_p=0.0, flip_p=0.0), clips(0, 2)
    out = augment_clips(batch.clone(), drawn(off, 0, 2), off)
    assert np.abs(out.numpy() - (batch.numpy() - MEANS) / DEVIATIONS).max() < 1e-5


def test_a_wide_blur_of_a_small_view(augment):
    wide = augment(blur_min=3.0, blur_max=4.0, blur_p=1.0)
    out = augment_clips(clips(0, 1, size=6), drawn(wide, 0), wide)
    assert out.isfinite().all()


# --- target


def slow_target(maps, box, flip, shape):
    """Sum over every (frame, cell) of its share of every target position, in float64."""
    steps, height, width = shape
    length, (y, x, h, w) = len(maps), (side / 8 for side in box)
    out = np.zeros(shape)

    def share(a, b, cell):
        return max(0.0, min(b, cell + 1) - max(a, cell)) / (b - a)
    for s, i, j in np.ndindex(shape):
        column = width - 1 - j if flip else j
        for t, r, c in np.ndindex(maps.shape):
            out[s, i, j] += (share(length * s / steps, length * (s + 1) / steps, t)
                             * share(y + h * i / height, y + h * (i + 1) / height, r)
                             * share(x + w * column / width, x + w * (column + 1) / width, c) * float(maps[t, r, c]))
    return out


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_target_equals_the_brute_force_sum(data):
    length = data.draw(st.integers(1, 5))
    shape = tuple(data.draw(st.integers(1, most)) for most in (length, 4, 5))
    motion, rows = [], np.zeros(data.draw(st.integers(1, 3)), VIEW)
    for row in rows:
        height, width = data.draw(st.integers(2, 6)), data.draw(st.integers(2, 6))
        h, w = data.draw(st.integers(3, 8 * height)), data.draw(st.integers(3, 8 * width))
        row["box"] = data.draw(st.integers(0, 8 * height - h)), data.draw(st.integers(0, 8 * width - w)), h, w
        row["flip"] = data.draw(st.booleans())
        maps = np.random.default_rng(data.draw(st.integers(0, 99))).random((length, height, width)).astype(np.float16)
        motion.append(torch.from_numpy(maps))
    target = motion_target(motion, rows, shape)
    assert target.dtype == torch.float32 and target.shape == (len(rows), *shape)
    for values, maps, row in zip(target, motion, rows):
        expected = slow_target(maps.numpy(), row["box"], row["flip"], shape)
        assert np.allclose(values, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def objects(tmp_path_factory, write_clip_store):
    """Twenty videos of a white object on black, one to two cells large, that jumps from frame to frame; motion is 1
    where the object is. Frames of two sizes."""
    rng, videos = np.random.default_rng(0), {}
    for number in range(20):
        height, width = ((8, 10), (10, 14))[number % 2]
        maps = np.zeros((20, height, width), np.float32)
        for frame in maps:
            h, w = rng.integers(1, 3, 2)
            y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            frame[y:y + h, x:x + w] = 1
        rgb = (255 * maps).astype(np.uint8).repeat(8, 1).repeat(8, 2)[..., None].repeat(3, 3)
        videos[f"v{number:02}"] = rgb, maps, ("train",)
    return write_clip_store(tmp_path_factory.mktemp("objects") / "store", videos)


def agreement(objects, sampling, plain, draws, size=48, shape=(2, 6, 6)):
    """For every draw: the largest difference between the target and the view pooled to it, and whether the brightest
    cell of the view is the target's. The view is de-normalised; it shows the object as white."""
    data = ClipData([objects], sampling, plain)
    differences, same = [], []
    for batch in Loader(data, Sampler(len(data), 20)):
        views = make_views(batch, plain, size, shape)
        seen = views.query * torch.tensor(STD)[:, None, None, None] + torch.tensor(MEAN)[:, None, None, None]
        pooled = F.adaptive_avg_pool3d(seen.mean(dim=1), shape)
        for one, other in zip(pooled, views.motion):
            differences.append(float((one - other).abs().max()))
            first, second = other.flatten().topk(2).values
            same.append(other.max() == 0 or first - second < 0.05 or int(one.argmax()) == int(other.argmax()))
        if len(same) == draws:
            return np.array(differences), np.array(same)


@pytest.mark.slow
def test_an_object_lands_in_the_same_cell_of_view_and_target(objects, sampling, augment):
    """1,000 draws of clip, crop and flip, through the store, the loader, the resize and the pooling."""
    differences, same = agreement(objects, sampling(), augment(jitter_p=0.0, grey_p=0.0, blur_p=0.0), 1000)
    assert same.all()
    assert differences.max() < 0.05 and np.median(differences) < 0.01  # of the resize at the object's edge, and JPEG


def test_a_target_that_is_flipped_otherwise_is_noticed(objects, sampling, augment, monkeypatch):
    def independently_flipped(motion, rows, shape):
        rows = rows.copy()
        rows["flip"] = generator(0).random(len(rows)) < 0.5
        return motion_target(motion, rows, shape)
    monkeypatch.setattr(view_module, "motion_target", independently_flipped)
    differences, same = agreement(objects, sampling(), augment(jitter_p=0.0, grey_p=0.0, blur_p=0.0), 200)
    assert same.mean() < 0.8 and (differences > 0.2).mean() > 0.3


def test_a_target_of_the_keys_crop_is_noticed(objects, sampling, augment, monkeypatch):
    monkeypatch.setattr(view_module, "motion_target",
                        lambda motion, rows, shape: motion_target(motion, rows[::-1], shape))
    _, same = agreement(objects, sampling(), augment(jitter_p=0.0, grey_p=0.0, blur_p=0.0), 200)
    assert same.mean() < 0.6


# --- all of it


def test_views_of_a_batch(objects, sampling, augment):
    chosen = augment()
    for keys, shape in ((3, (2, 6, 6)), (1, None)):
        data = ClipData([objects], sampling(keys=keys), chosen, motion=shape is not None)
        batch = next(iter(Loader(data, Sampler(len(data), 5))))
        views = make_views(batch, chosen, 24, shape)
        again = make_views(batch, chosen, 24, shape)
        assert len(views.keys) == keys and views.ids.tolist() == batch.ids.tolist()
        for view, same in zip((views.query, *views.keys), (again.query, *again.keys)):
            assert view.shape == (5, 3, 4, 24, 24) and view.dtype == torch.float32 and torch.equal(view, same)
        assert (views.motion is None) == (shape is None)
    with pytest.raises(ValueError, match="read without motion"):
        make_views(batch, chosen, 24, (2, 6, 6))


def test_the_query_and_its_first_key_are_one_clip_seen_twice(objects, sampling, augment):
    off = augment(jitter_p=0.0, grey_p=0.0, blur_p=0.0, flip_p=0.0)
    whole = sampling(sa=False, area_min=1.0, aspect_min=0.1, aspect_max=10.0, keys=1)
    data = ClipData([objects], whole, off)
    for batch, _ in zip(Loader(data, Sampler(len(data), 20)), range(3)):
        views = make_views(batch, off, 24)
        for b, (one, other) in enumerate(batch.views["box"]):
            if np.array_equal(one, other):
                assert torch.equal(views.query[b], views.keys[0][b])
        assert np.array_equal(batch.views["start"][:, 0], batch.views["start"][:, 1])


@pytest.mark.gpu
def test_views_on_the_device_equal_the_hosts(gpu, objects, sampling, augment):
    data = ClipData([objects], sampling(), augment())
    for batch, _ in zip(Loader(data, Sampler(len(data), 10), 2, gpu), range(4)):
        host, device = make_views(batch, augment(), 48, (2, 6, 6)), make_views(batch, augment(), 48, (2, 6, 6), gpu)
        assert torch.allclose(host.motion, device.motion.cpu(), atol=1e-5)
        for one, other in zip((host.query, *host.keys), (device.query, *device.keys)):
            assert (one - other.cpu()).abs().mean() < 0.02  # the host resizes in 8 bits
        assert torch.equal(host.ids, device.ids.cpu()) and torch.equal(host.order, device.order.cpu())
