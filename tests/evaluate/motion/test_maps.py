"""Maps of clips against slow float64 autograd; their scores on arrays made by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn import functional as F

from evaluate import metrics
from evaluate.features.cache import FeatureCache
from evaluate.features.encoders import Encoder, open_encoder, weights_hash
from evaluate.features.extract import View, choose
from evaluate.motion import maps
from evaluate.motion.towers import open_towers
from evaluate.protocol import load_settings
from shared.cli import RequestError
from shared.clips.sampling import generator
from shared.nn import checkpoint
from shared.nn.backbones import build_backbone
from shared.nn.distributed import World
from shared.store.index import Index
from shared.store.reader import StoreReader

SETTINGS = load_settings("saliency", ["run.workers=0", "run.device=cpu", "run.batch=4"])
CPU = torch.device("cpu")
MAPS = arrays(np.float64, (4, 3, 5), elements=st.floats(0, 1, width=32))


def of(encoder, store, split="test", run=SETTINGS.run, clips=1, **settings):
    view = dataclasses.replace(View.of(SETTINGS.saliency, encoder), clips=clips)
    return maps.clip_maps(encoder, store, choose(Index.load(store), split), view, run, World(), **settings)


# ---- scores


@given(MAPS, MAPS)
def test_correlations_are_numpys(a, b):
    for found, one, other in zip(metrics.correlations(a, b), a, b):
        if one.std() > 1e-3 and other.std() > 1e-3:
            assert found == pytest.approx(np.corrcoef(one.ravel(), other.ravel())[0, 1], abs=1e-9)
    np.testing.assert_allclose(metrics.correlations(1e-30 * a, 1e20 * b), metrics.correlations(a, b), atol=1e-6)


def test_a_constant_map_agrees_with_nothing():
    maps_, target = np.full((1, 2, 2), 0.1), np.array([[[1.0, 0], [0, 0]]])
    assert metrics.correlations(maps_, target).tolist() == [0] == metrics.correlations(target, 0 * target).tolist()


@given(MAPS, MAPS, st.lists(st.sampled_from("ab"), min_size=4, max_size=4))
def test_other_correlations_equal_the_loop(a, b, videos):
    if len(set(videos)) < 2:
        with pytest.raises(ValueError, match="clips of one video"):
            metrics.other_correlations(a, b, videos)
        return
    found = metrics.other_correlations(a, b, videos)
    for i in range(4):
        others = [metrics.correlations(a[i:i + 1], b[j:j + 1])[0] for j in range(4) if videos[j] != videos[i]]
        assert found[i] == pytest.approx(np.mean(others), abs=1e-12)


def test_mass_and_pointing_by_hand():
    inside = np.array([[[True, False], [False, False]]] * 4)
    values = np.array([[[3.0, 1], [0, 0]], [[1, 3], [0, 0]], [[2, 2], [0, 0]], [[0, 0], [0, 0]]])
    np.testing.assert_allclose(metrics.mass_inside(values, inside), [0.75, 0.25, 0.5, 0.25])     # a zero map: chance
    np.testing.assert_allclose(metrics.pointing(values, inside), [1, 0, 0.5, 0.25])              # equals share it
    share = np.array([[[0.5, 0], [0, 0]]] * 4)                                                   # half of a position
    np.testing.assert_allclose(metrics.pointing(values, share), [0.5, 0, 0.25, 0.125])
    with pytest.raises(ValueError, match="negative"):
        metrics.mass_inside(-values, inside)
    with pytest.raises(ValueError, match="expected the same"):
        metrics.pointing(values, inside[:2])


def blobs(places, size=7):
    rows, columns = np.mgrid[:size, :size]
    return np.stack([np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 3) for y, x in places])


def test_a_map_that_is_its_motion_and_one_that_is_always_in_the_middle():
    rng = np.random.default_rng(0)
    ids = [f"v{i}" for i in range(40)]
    motion = blobs(rng.uniform(2, 4, (40, 2)))                       # about the middle, as in so many videos
    hot = maps.hot_masks(motion)
    own = maps.scores(motion, motion, hot, ids)
    assert own["corr"] == pytest.approx(100) and own["pointing"] == 100 and own["mass"] > 35
    middle = maps.scores(np.broadcast_to(blobs([(3, 3)]), motion.shape), motion, hot, ids)
    assert middle["corr"] > 70 and middle["pointing"] > 50           # that is why it is no proof
    assert middle["own_minus_other"] == pytest.approx(0, abs=1e-9) and own["own_minus_other"] > 20
    noise = maps.scores(rng.random(motion.shape), motion, hot, ids)
    chance = maps.chance_inside(motion, hot)
    assert chance == pytest.approx(100 * 5 / 49) and abs(noise["corr"]) < 10 and noise["mass"] == pytest.approx(
        chance, abs=3)


def test_clips_in_which_nothing_moves_are_left_out():
    motion, ids = blobs([(1, 1), (5, 5), (3, 3)]), ["a", "b", "c"]
    still = np.concatenate([motion, np.zeros((2, 7, 7)), np.full((1, 7, 7), 0.3)])
    hot = maps.hot_masks(still)
    assert maps.moving(still).tolist() == [True] * 3 + [False] * 3 and not hot[3:].any()
    given_ = np.concatenate([motion, np.random.default_rng(1).random((3, 7, 7))])
    assert maps.scores(given_, still, hot, ids + ["d", "e", "f"]) == maps.scores(motion, motion, hot[:3], ids)
    assert maps.chance_inside(still, hot) == maps.chance_inside(motion, hot[:3])
    with pytest.raises(RequestError, match="in clips of 1 video,"):
        maps.scores(motion, np.concatenate([motion[:1], 0 * motion[1:]]), hot[:3], ids)


# ---- maps


def slowly(encoder, store, seed=0):
    """(Grad-CAM, aligned map) of the test split's middle clips, in float64 and in loops, the whole graph kept."""
    towers = open_towers(encoder, CPU)
    query, key, head, head_key = (part.double() for part in (towers.query, towers.key, towers.project,
                                                             towers.project_key))
    reader, view = StoreReader(store), View.of(SETTINGS.saliency, encoder)
    view = dataclasses.replace(view, clips=1)
    positions = choose(reader.index, "test")
    shown = []
    for position in positions.tolist():
        count = int(reader.index.frames[position])
        start = round((count - 15) / 2)
        shown.append(maps.read_clip(reader, view, towers, position, start + 2 * np.arange(8), seed))
    n = len(shown)

    def images(crops, rows):
        return maps._images(crops, np.stack(rows), towers, view.size, CPU).double()

    x = images([one.seen for one in shown], [one.view for one in shown])
    y = images([one.other for one in shown], [one.of_key for one in shown])

    def gradient(net, clips, targets):
        h, rest = net.body(clips)
        h.retain_grad()
        q = F.normalize(head(net.output(h, rest).mean((2, 3, 4))), dim=1)
        (q * targets).sum().backward()
        return h.detach(), h.grad

    def weighted(h, g, values):
        out = torch.zeros(h.shape[0], *h.shape[2:], dtype=torch.float64)
        for b in range(h.shape[0]):
            for c in range(h.shape[1]):
                out[b] += g[b, c].mean() * values[b, c]
        return out.clamp_min(0).mean(1)

    cams = []
    for i in range(n):                                               # one by one: in eval mode no clip sees another
        k = F.normalize(head_key(key(y[i:i + 1])), dim=1).detach()
        h, g = gradient(query, x[i:i + 1], k)
        cams.append(weighted(h, g, h))
    group, order = towers.group, generator(seed).permutation(n).tolist()
    assert group == 8
    query.train(), key.train()
    aligned, size = {}, 2 * group if n > group else group
    for first in range(0, n, size):
        part = (order[first:first + size] + order * 3)[:size] if first + size > n else order[first:first + size]
        keys = {}
        mixed = [g * group + i for i in range(group) for g in range(size // group)]
        for at in range(0, size, group):
            some = [part[j] for j in mixed[at:at + group]]
            for j, k in zip(mixed[at:at + group], F.normalize(head_key(key(y[some])), dim=1).detach()):
                keys[j] = k
        for at in range(0, size, group):
            some = list(range(at, at + group))
            h, g = gradient(query, x[[part[j] for j in some]], torch.stack([keys[j] for j in some]))
            for j, values in zip(some, weighted(h, g, g)):
                if first + j < n:
                    aligned[part[j]] = values
    return torch.cat(cams), torch.stack([aligned[i] for i in range(n)])


@pytest.mark.slow
def test_against_slow_autograd(moving, contrastive):
    encoder = open_encoder(str(contrastive))
    found = of(encoder, moving)
    cams, aligned = slowly(open_encoder(str(contrastive)), moving)
    for ours, oracle in ((found.cam, cams), (found.aligned, aligned)):
        assert ours.dtype == np.float32 and oracle.max() > 0
        np.testing.assert_allclose(ours / float(oracle.max()), oracle.numpy() / float(oracle.max()), atol=2e-3)
    assert found.cam.shape == (10, 6, 6) and (found.cam >= 0).all() and (found.aligned >= 0).all()
    assert (found.aligned.std((1, 2)) > 0.01 * found.aligned.mean((1, 2))).all()         # v3 varies over positions


def test_motion_and_crops_are_those_of_the_store(moving, contrastive):
    found, reader = of(open_encoder(str(contrastive)), moving), StoreReader(moving)
    assert found.ids == [reader.index.id[i] for i in choose(reader.index, "test")]
    for i, video in enumerate(found.ids):
        assert found.boxes[i].tolist() == [4, 12, 56, 56] and found.starts[i] == round((24 - 15) / 2)
        assert (np.diff(found.numbers[i]) == 2).all()
        st_motion = reader.motion(video, 0, 24)[found.numbers[i]].astype(np.float64).mean(0)
        pixels = np.kron(st_motion, np.ones((8, 8)))[4:60, 12:68]                        # the crop, pixel by pixel
        fine = np.kron(pixels, np.ones((6, 6))).reshape(6, 56, 6, 56).mean((1, 3))       # 56 px at 6 positions
        np.testing.assert_allclose(found.motion[i], fine, rtol=1e-3, atol=1e-6)
        assert found.hot[i].sum() == 4                                                   # the upper tenth of 36
    np.testing.assert_array_equal(
        maps.motion_maps(moving, choose(reader.index, "test"), dataclasses.replace(
            View.of(SETTINGS.saliency, open_encoder(str(contrastive))), clips=1), (6, 6), SETTINGS.run), found.motion)


def test_what_moves_does_not_reach_the_maps(moving, make_moving, contrastive):
    """The key's crop is drawn plainly: around the motion it would tell the network's map where to look."""
    encoder = open_encoder(str(contrastive))
    towers = open_towers(encoder, CPU)
    assert towers.sampling.sa                                            # as it was trained
    found, other = of(encoder, moving), of(encoder, make_moving("elsewhere", motion_seed=5))
    assert (found.motion != other.motion).any()
    np.testing.assert_array_equal(found.cam, other.cam)
    np.testing.assert_array_equal(found.aligned, other.aligned)


@pytest.mark.slow
def test_same_maps_again_and_the_network_stays(moving, contrastive):
    encoder = open_encoder(str(contrastive))
    before = weights_hash(encoder.net)
    found, again = of(encoder, moving), of(encoder, moving)
    assert weights_hash(encoder.net) == before and not encoder.net.training
    np.testing.assert_array_equal(found.aligned, again.aligned)
    np.testing.assert_array_equal(found.cam, again.cam)
    other = of(encoder, moving, run=dataclasses.replace(SETTINGS.run, batch=3, workers=2))
    np.testing.assert_allclose(other.cam, found.cam, rtol=1e-3, atol=1e-4 * found.cam.max())
    np.testing.assert_array_equal(other.aligned, found.aligned)          # BN's groups are not the forward's
    assert (of(encoder, moving, seed=1).aligned != found.aligned).any()
    many = of(encoder, moving, clips=3)
    assert len(many.ids) == 30 and many.starts.reshape(-1, 3).tolist() == [[0, 4, 9]] * 10
    assert (many.motion[1::3] != many.motion[::3]).any()


@pytest.mark.slow
def test_kept_and_shared(moving, contrastive, tmp_path, monkeypatch):
    cache, encoder = FeatureCache(tmp_path / "features"), open_encoder(str(contrastive))
    found = of(encoder, moving, cache=cache)
    monkeypatch.setattr(maps, "_compute", None)                          # nothing is computed any more
    again = of(encoder, moving, cache=FeatureCache(tmp_path / "other", [tmp_path / "features"]))
    for name in ("numbers", "boxes", "cam", "aligned", "motion", "hot"):
        np.testing.assert_array_equal(getattr(found, name), getattr(again, name))
    for change in (dict(seed=1), dict(split="train"), dict(clips=2), dict(of="similarity")):
        with pytest.raises(TypeError):
            of(encoder, moving, cache=cache, **change)


def test_maps_that_are_not_finite_are_refused(moving, contrastive, tmp_path):
    state = torch.load(contrastive, weights_only=True)
    name = next(key for key in state["learner"] if key.startswith("query.backbone") and key.endswith("weight"))
    state["learner"][name].view(-1)[0] = float("nan")
    checkpoint.save(tmp_path / "last.pt", state)
    with pytest.raises(RequestError, match="last.pt: the maps of video 'v08' are not finite numbers"):
        of(open_encoder(tmp_path / "last.pt"), moving)


def test_few_clips_share_smaller_groups(moving, contrastive):
    index, encoder = Index.load(moving), open_encoder(str(contrastive))
    view = View.of(SETTINGS.saliency, encoder)
    some = choose(index, "test")
    few = maps.clip_maps(encoder, moving, some[:3], view, SETTINGS.run, World())
    assert "groups of 3 clips" in few.notes[1] and (few.aligned.max((1, 2)) > 0).any()
    with pytest.raises(RequestError, match="1 clip of .*two clips or more"):
        maps.clip_maps(encoder, moving, some[:1], view, SETTINGS.run, World())


# ---- what the score is


def test_a_trained_checkpoint_gives_both_encoders(contrastive):
    towers = open_towers(open_encoder(str(contrastive)), CPU)
    state = torch.load(contrastive, weights_only=True)["learner"]
    assert all(torch.equal(value, state[f"key.backbone.{name}"]) for name, value in towers.key.state_dict().items())
    assert all(torch.equal(value, state[f"key.heads.inter.{name}"])
               for name, value in towers.project_key.state_dict().items())
    assert (towers.project[0].weight != towers.project_key[0].weight).any()
    assert towers.group == 8 and towers.head is None and "inter head" in towers.note


def test_an_untrained_net_gets_heads_of_its_seed():
    one, same, other = (open_towers(open_encoder(f"random:r2plus1d_tiny:{seed}"), CPU) for seed in (3, 3, 4))
    assert torch.equal(one.project[0].weight, same.project[0].weight) and one.project is one.project_key
    assert (one.project[0].weight != other.project[0].weight).any() and "untrained" in one.note


def test_without_heads_the_features_are_compared(contrastive, tmp_path):
    from evaluate import export

    assert export.main(["--checkpoint", str(contrastive), "--out", str(tmp_path / "net.safetensors")]) == 0
    encoder = open_encoder(str(tmp_path / "net.safetensors"))
    towers = open_towers(encoder, CPU)
    clips = torch.randn(2, 3, 8, 48, 48)
    torch.testing.assert_close(towers.keys(towers.key, clips), F.normalize(encoder.net(clips), dim=1))
    assert towers.key is towers.query is encoder.net and "cosine of pooled features" in towers.note


def test_an_exported_classifier_is_its_backbone(finetuned, tmp_path):
    from evaluate import export

    assert export.main(["--checkpoint", str(finetuned), "--out", str(tmp_path / "net.safetensors")]) == 0
    encoder = open_encoder(str(tmp_path / "net.safetensors"))
    assert weights_hash(encoder.net) == weights_hash(open_encoder(str(finetuned)).net)
    towers = open_towers(encoder, CPU)
    assert towers.head is None and "cosine of pooled features" in towers.note
    with pytest.raises(RequestError, match="net.safetensors holds no classifier; expected a finetuned.pt"):
        open_towers(encoder, CPU, "class")


def test_of_a_class(finetuned, moving):
    encoder = open_encoder(str(finetuned))
    towers = open_towers(encoder, CPU)
    clips = torch.randn(3, 3, 8, 48, 48)
    logits = towers.head(encoder.net(clips)).detach()
    assert towers.said(clips).tolist() == logits.argmax(1).tolist()
    assert float(towers.score(towers.said(clips))(encoder.net(clips)).detach()) == pytest.approx(
        float(logits.max(1).values.sum()), rel=1e-4)
    named = open_towers(encoder, CPU, "class", "spin")
    assert named.said(clips).tolist() == [1, 1, 1] and "'spin'" in named.note
    found, other = (of(encoder, moving, class_name=name) for name in ("slide", "spin"))
    assert (found.cam != other.cam).any() and (found.aligned > 0).any()
    assert open_towers(encoder, CPU, "similarity").head is None


@pytest.mark.parametrize("checkpoint_name, settings, message", [
    ("mean-image", {}, "mean-image has no map of positions"),
    ("random:r2plus1d_tiny", {"of": "class"}, "holds no classifier; expected a finetuned.pt"),
    ("random:r2plus1d_tiny", {"class_name": "spin"}, "class_name is 'spin', and the score is a similarity"),
    ("finetuned", {"class_name": "spim"}, "class_name is 'spim'.*spin"),
])
def test_refusals(checkpoint_name, settings, message, finetuned):
    encoder = open_encoder(str(finetuned) if checkpoint_name == "finetuned" else checkpoint_name)
    with pytest.raises(RequestError, match=message) as caught:
        open_towers(encoder, CPU, **settings)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    torch.manual_seed(2)
    net, head = build_backbone("r2plus1d_tiny"), torch.nn.Linear(48, 2)
    recipe = {"model": {"backbone": "r2plus1d_tiny", "width": 0}, "sampling": {"clip": "8x2", "size": 48}}
    path = tmp_path_factory.mktemp("maps") / "finetuned.pt"
    checkpoint.save(path, dict.fromkeys(checkpoint.FINETUNED_KEYS) | {
        "format": checkpoint.FORMAT, "kind": checkpoint.FINETUNED, "recipe": recipe, "backbone": net.state_dict(),
        "head": head.state_dict(), "classes": ["slide", "spin"],
        "provenance": {"kind": checkpoint.FINETUNED, "stores": []}})
    return path


@pytest.mark.parametrize("name, clip", [("r2d_50", "1x1"), ("s3d", "8x2")])
def test_other_networks_and_encoders_made_by_hand(name, clip, moving):
    torch.manual_seed(0)
    net = build_backbone(name, 4).eval()
    encoder = Encoder("by hand", net, weights_hash(net), clip, 64, {})
    found = of(encoder, moving)
    assert found.cam.shape == found.motion.shape == (10, 2, 2) and "cosine of pooled features" in found.notes[0]
    assert (found.cam > 0).any() and (found.aligned > 0).any()
