"""Networks of others: features and positions against the networks themselves, views from their JSON, refusals."""

import dataclasses
import functools
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from evaluate import embed, export, run
from evaluate.features.encoders import open_encoder, takes_seed
from evaluate.features.extract import View
from evaluate.motion.towers import open_towers
from evaluate.protocol import load_settings
from shared import cli
from shared.cli import RequestError
from shared.clips.resampling import MEAN, STD
from shared.saliency import differentiate

transformers = pytest.importorskip("transformers", reason='needs Transformers: pip install "motionpack[hf]"')

BLOCKS = dict(hidden_size=24, num_attention_heads=2, num_hidden_layers=2, intermediate_size=32)
VIDEO = dict(num_frames=4, image_size=32, patch_size=16, **BLOCKS)
IMAGE = dict(image_size=32, patch_size=16, **BLOCKS)
# kind: configuration, clip and size that it names, patch in time and space (None: no patches)
KINDS = {
    "videomae": (dict(tubelet_size=2, **VIDEO), "4x2", (2, 16)),
    "vjepa2": (dict(frames_per_clip=4, crop_size=32, patch_size=16, tubelet_size=2, hidden_size=24, mlp_ratio=2,
                    num_attention_heads=2, num_hidden_layers=2, pred_num_hidden_layers=3, pred_hidden_size=24,
                    pred_num_attention_heads=2), "4x2", (2, 16)),
    "timesformer": (VIDEO, "4x2", (1, 16)),
    "vivit": (dict(num_frames=4, image_size=32, tubelet_size=[2, 16, 16], **BLOCKS), "4x2", (2, 16)),
    "dinov2": (dict(mlp_ratio=2, **{key: value for key, value in IMAGE.items() if key != "intermediate_size"}), "16x2",
               (1, 16)),
    "vit": (IMAGE, "16x2", (1, 16)),
    "resnet": (dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]), "16x2", None),
}


def save(folder, kind, **more):
    """A small random model of this kind as save_pretrained leaves it, and what says how it sees."""
    config = transformers.AutoConfig.for_model(kind, **KINDS[kind][0], **more)
    torch.manual_seed(3)
    net = transformers.AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    net.save_pretrained(folder)
    processor = {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 36}, "do_center_crop": True,
                 "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """folder(kind) -> where a model of this kind lies."""
    return functools.cache(lambda kind: save(tmp_path_factory.mktemp(kind) / "model", kind))


def kinds(*plain, without=()):
    """All kinds but some, those that are not plain as slow tests."""
    return pytest.mark.parametrize("kind", [kind if kind in plain else pytest.param(kind, marks=pytest.mark.slow)
                                            for kind in KINDS if kind not in without])


def seen(length, size=32, seed=0):
    """A clip (1, 3, L, S, S) of noise in [0, 1], and the same as our nets take it."""
    clip = torch.rand(1, 3, length, size, size, generator=torch.Generator().manual_seed(seed))
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (MEAN, STD))
    return clip, (clip - mean) / std


def tokens_of(folder, clip):
    """The model's own last hidden state for a clip in [0, 1], by its own means: (B or T, N, C) or (T, C, h, w)."""
    net = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    x = torch.stack([((frame.permute(1, 2, 0) - mean) / std).permute(2, 0, 1) for frame in clip[0].unbind(1)])
    kind = net.config.model_type
    with torch.no_grad():
        if kind == "vjepa2":
            return net.get_vision_features(x[None])
        return net(x[None] if KINDS[kind][1] == "4x2" else x).last_hidden_state


@kinds("videomae", "dinov2", "resnet")
def test_features_are_the_mean_of_the_models_own_positions(folder, kind):
    encoder = open_encoder(f"hf:{folder(kind)}")
    assert (encoder.clip, encoder.size) == (KINDS[kind][1], 32)
    length = int(encoder.clip.partition("x")[0])
    clip, x = seen(length)
    own = tokens_of(folder(kind), clip)
    leading = {"timesformer": 1, "vivit": 1, "dinov2": 1, "vit": 1}.get(kind, 0)
    expected = own.mean((0, 2, 3)) if own.ndim == 4 else own[:, leading:].mean((0, 1))
    with torch.no_grad():
        found = encoder.net(x)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert encoder.net.features == len(expected)


@kinds("timesformer", "dinov2", without=["resnet"])
def test_a_position_lies_where_its_pixels_do(folder, kind):
    """With blocks that pass on what they get, a patch of pixels reaches one position alone."""
    encoder = open_encoder(f"hf:{folder(kind)}")
    for part in (part for part in encoder.net.modules() if isinstance(part, nn.Linear)):
        for parameter in part.parameters():
            parameter.zero_()
    step, patch = KINDS[kind][2]
    _, x = seen(4)
    other = x.clone()
    frame, row, column = 3, 0, 1
    other[:, :, frame, row * patch:(row + 1) * patch, column * patch:(column + 1) * patch] += 0.5
    with torch.no_grad():
        moved = (encoder.net.positions(other) - encoder.net.positions(x)).abs().sum(1)[0] > 1e-6
    expected = torch.zeros_like(moved)
    expected[frame // step, row, column] = True
    assert torch.equal(moved, expected)


@kinds("timesformer", "dinov2")
def test_the_cut_goes_on_to_the_same_features(folder, kind):
    """Saliency's two halves are the network, and what it differentiates is at the cut."""
    encoder = open_encoder(f"hf:{folder(kind)}")
    length = int(encoder.clip.partition("x")[0])
    _, x = seen(length)
    h, rest = encoder.net.body(x)
    assert tuple(h.shape[1:]) == encoder.net.h_shape(length, 32)
    torch.testing.assert_close(encoder.net.tail(h, rest), encoder.net(x))
    _, gradient = differentiate(encoder.net, x, lambda features: features[:, 0].sum())
    nudged = h + 1e-2 * gradient / gradient.norm()
    with torch.no_grad():
        rise = encoder.net.tail(nudged, rest)[0, 0] - encoder.net.tail(h, rest)[0, 0]
    assert float(rise) == pytest.approx(1e-2 * float(gradient.norm()), rel=0.05)
    assert open_towers(encoder, torch.device("cpu")).query is encoder.net


def test_an_untrained_twin(folder):
    twin, other, trained = (open_encoder(text.format(folder("videomae"))) for text in
                            ("random:hf:{}:4", "random:hf:{}:5", "hf:{}"))
    assert twin.text == f"random:hf:{folder('videomae')}:4" and twin.provenance["kind"] == "random"
    assert len({twin.sha256, other.sha256, trained.sha256}) == 3 and twin.net.name == trained.net.name
    assert open_encoder(f"random:hf:{folder('videomae')}", seed=4).sha256 == twin.sha256
    assert [takes_seed(f"random:hf:{place}") for place in ("a", "a:4", "a/4", "4")] == [True, False, True, True]
    assert open_towers(twin, torch.device("cpu")).head is None


def write(folder, name, document):
    (folder / name).write_text(document if isinstance(document, str) else json.dumps(document))


def test_the_json_says_how_a_model_sees(tmp_path):
    folder = save(tmp_path / "a", "videomae")
    first = open_encoder(f"hf:{folder}")
    assert "names no stride" in first.provenance["remarks"][0] and first.provenance["mean"] == [0.5, 0.4, 0.3]
    said = json.loads((folder / "preprocessor_config.json").read_text())
    write(folder, "preprocessor_config.json", said | {"frame_sample_rate": 5, "do_rescale": True,
                                                     "rescale_factor": 1 / 127.5, "offset": True})
    second = open_encoder(f"hf:{folder}")
    assert second.clip == "4x5" and not second.provenance["remarks"] and second.sha256 != first.sha256
    np.testing.assert_allclose(second.provenance["mean"], [0.75, 0.7, 0.65])         # of 2 v - 1
    write(folder, "preprocessor_config.json", {"do_center_crop": False, "size": {"height": 32, "width": 32}})
    third = open_encoder(f"hf:{folder}")
    assert third.size == 32 and "no mean" in third.provenance["remarks"][1] and third.provenance["mean"] == list(MEAN)


class Payload:
    def __reduce__(self):
        return Path.touch, (Path(Payload.place),)


@pytest.mark.parametrize("change, message", [
    (lambda folder: "nowhere", "nowhere holds no config.json"),
    (lambda folder: (folder / "config.json").unlink(), "holds no config.json; expected a local folder"),
    (lambda folder: write(folder, "config.json", "{"), "config.json is no JSON object"),
    (lambda folder: write(folder, "config.json", {"model_type": "nothing"}), "cannot open"),
    (lambda folder: write(folder, "preprocessor_config.json", "[]"), "preprocessor_config.json is no JSON object"),
    (lambda folder: write(folder, "preprocessor_config.json", {"crop_size": "big"}), "names no view"),
    (lambda folder: write(folder, "preprocessor_config.json", {"crop_size": {"width": 224}}), "size {'width': 224}"),
    (lambda folder: write(folder, "preprocessor_config.json", {"rescale_factor": 0}), "rescale_factor 0"),
    (lambda folder: write(folder, "preprocessor_config.json", {"rescale_factor": 10 ** 400}), "names no view"),
    (lambda folder: write(folder, "preprocessor_config.json", {"image_mean": [0.5], "image_std": [0.5]}), "image_mean"),
    (lambda folder: (folder / "model.safetensors").unlink(), "cannot open"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"no weights"), "cannot open"),
    (lambda folder: write(folder, "preprocessor_config.json", {"crop_size": 48}), "fails on clips"),
])
def test_folders_that_cannot_be(tmp_path, change, message):
    folder = save(tmp_path / "a", "videomae")
    place = change(folder)
    with pytest.raises(RequestError, match=message) as refused:
        open_encoder(f"hf:{place if isinstance(place, str) else folder}")
    assert "\n" not in str(refused.value)


def test_weights_that_are_missing_and_pickles(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save(tmp_path / "a", "videomae")
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    plain = open_encoder(f"hf:{folder}")                         # a .bin of plain tensors is fine
    Payload.place = str(tmp_path / "executed")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Payload()}))
    with pytest.raises(RequestError, match="cannot open"):
        open_encoder(f"hf:{folder}")
    assert not (tmp_path / "executed").exists() and plain.net.features == 24
    lacking = sorted(weights)[0]
    save_file({name: value for name, value in weights.items() if name != lacking}, folder / "model.safetensors",
              metadata={"format": "pt"})
    with pytest.raises(RequestError, match=f"lacks 1 weights of VideoMAEModel, .*{lacking.rpartition('.')[2]}"):
        open_encoder(f"hf:{folder}")


def test_a_model_of_words(tmp_path):
    config = transformers.AutoConfig.for_model("bert", vocab_size=20, **BLOCKS)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "words")
    with pytest.raises(RequestError, match="BertModel takes input_ids and no pixels"):
        open_encoder(f"hf:{tmp_path / 'words'}")


MODULE = '''
import torch
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Conv3d(3, 6, (2, 8, 8), (2, 8, 8)), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
net.clip, net.size = "4x1", 16

def function(clips):
    assert 0 <= clips.min() and clips.max() <= 1
    return torch.cat([net[0](2 * clips - 1), clips[:, :2, ::2, 4::8, 4::8]], 1)
function.clip, function.size = "4x1", 16

def vector(clips):
    return clips.mean((2, 3, 4))

@torch.no_grad()
def without(clips):
    return function(clips)

@torch.inference_mode()
def inferring(clips):
    return function(clips)

def halves(clips):
    with torch.inference_mode():
        inner = net[0](2 * clips - 1)
    return 2 * inner.clone()

def detached(clips):
    return hidden[0](function(clips).detach())
hidden = [nn.Conv3d(8, 2, 1)]             # in a list, out of sight: its weights have gradients
for one in without, inferring, halves, detached:
    one.clip, one.size = "4x1", 16

def picky(clips):
    assert clips.shape[-1] == 16
    return vector(clips)

weights = [1.0]

def unseen(clips):
    return weights[0] * vector(clips)

def noise(clips):
    return torch.randn(len(clips), 3)

def numbers(clips):
    return clips.mean((2, 3, 4)).numpy()

def short(clips):
    return clips.mean((1, 2, 3, 4))

def raises(clips):
    raise IndexError("out of\\nplace")

def wrong(clips):
    return clips
wrong.clip = "4 by 4"
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a new module of MODULE, which `change` replaces."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def make(change=("", "")):
        made.append(f"others_{tmp_path.name}_{len(made)}".replace("-", "_"))
        (tmp_path / f"{made[-1]}.py").write_text(MODULE.replace(*change))
        return made[-1]
    return make


def test_functions_and_modules_of_others(module):
    name = module()
    _, x = seen(4, 16)
    clip, _ = seen(4, 16)
    net = open_encoder(f"python:{name}:net")
    function = open_encoder(f"python:{name}:function")
    assert (net.clip, net.size, net.net.features) == ("4x1", 16, 6) and function.net.features == 8
    with torch.no_grad():
        own = net.net.function[0]
        torch.testing.assert_close(net.net(x), own(clip))
        expected = own[0](2 * clip - 1).mean((2, 3, 4))
        torch.testing.assert_close(function.net(x)[:, :6], expected)
    for encoder in (net, function):
        h, rest = encoder.net.body(x)
        assert h.shape[2:] == (2, 2, 2)
        torch.testing.assert_close(encoder.net.tail(h, rest), encoder.net(x))
    assert net.sha256 == open_encoder(f"python:{name}:net").sha256
    shas = {open_encoder(f"python:{module(change)}:net").sha256 for change in
            [("", ""), ("manual_seed(0)", "manual_seed(1)"), ("def vector", "def other")]}
    assert len(shas) == 3
    assert open_encoder(f"python:{name}:vector").size == 224


@pytest.mark.parametrize("name, message", [
    ("python:nowhere_at_all:x", "importing nowhere_at_all fails: ModuleNotFoundError"),
    ("python:{}:functoin", "has no function or nn.Module 'functoin'; did you mean 'function'"),
    ("python:{}", "expected python:MODULE:NAME"), ("python:{}:nn", "has no function"),
    ("python:{}:noise", "other features for the same clip"), ("python:{}:numbers", "gives ndarray"),
    ("python:{}:short", r"gives torch.float32 \(1,\)"), ("python:{}:raises", r"IndexError: out of place \(others_"),
    ("python:{}:wrong", "its attribute clip"), ("python:builtins:sum", r"gives torch.float32 \(3, 16, 224, 224\)"),
    ("python:this_one_exits:x", "importing this_one_exits fails: SystemExit: 3")])
def test_functions_that_cannot_be(module, tmp_path, name, message):
    (tmp_path / "this_one_exits.py").write_text("raise SystemExit(3)")
    with pytest.raises(RequestError, match=message) as refused:
        open_encoder(name.format(module()))
    assert "\n" not in str(refused.value)


def test_another_view_than_its_own_and_weights_out_of_sight(module):
    """What fails on 16x2 of 224 px is opened on the view that is asked for, and known by what it says there."""
    asked, name = load_settings("linear", ["clip=4x1", "size=16"]).features, module()
    with pytest.raises(RequestError, match="fails on clips .*its own are of 16x2 .* and features.clip and .*size set"):
        open_encoder(f"python:{name}:picky")
    encoder = open_encoder(f"python:{name}:picky", asked=asked)
    assert (encoder.clip, encoder.size, encoder.net.features) == ("16x2", 224, 3)
    assert View.of(asked, encoder).size == 16
    with pytest.raises(RequestError, match="features.clip: "):
        open_encoder(f"python:{name}:picky", asked=dataclasses.replace(asked, clip="4 by 4"))
    was = open_encoder(f"python:{name}:unseen").sha256
    assert open_encoder(f"python:{name}:unseen").sha256 == was
    sys.modules[name].weights[0] = 1 + 1e-7               # as another number of threads rounds
    assert open_encoder(f"python:{name}:unseen").sha256 == was
    sys.modules[name].weights[0] = 1.5                    # as from another file of weights, with a network in sight
    assert open_encoder(f"python:{name}:unseen").sha256 != was


@pytest.mark.parametrize("name", ["without", "inferring", "detached"])
def test_functions_without_gradients_have_features_and_are_not_looked_into(module, name):
    encoder = open_encoder(f"python:{module()}:{name}")
    assert encoder.net(seen(4, 16)[1]).shape == (1, encoder.net.features)
    with pytest.raises(RequestError, match="gives no gradients, which saliency and controls .* take torch.no_grad"):
        encoder.net.h_shape(4, 16)


def test_a_cut_made_in_inference_mode_has_gradients(module):
    net = open_encoder(f"python:{module()}:halves").net
    h, gradient = differentiate(net, seen(4, 16)[1], lambda features: features.sum())
    assert gradient.shape == h.shape == (1, *net.h_shape(4, 16))
    torch.testing.assert_close(gradient, torch.full_like(gradient, 2 / 8))           # the mean over 8 positions


def test_no_maps_without_a_convolution(module):
    name = module()
    vector = open_encoder(f"python:{name}:vector")          # its module's convolution does not run
    with pytest.raises(RequestError, match="runs no convolution"):
        vector.net.h_shape(4, 16)
    with pytest.raises(RequestError, match="gives one vector a clip"):
        vector.net.positions(seen(4, 16)[1])


FAST = ["--set", "run.threads=1", "--set", "run.device=cpu"]


@pytest.mark.slow
def test_the_commands_take_them_or_refuse_in_one_line(folder, module, store, tmp_path):
    image, video, function = f"hf:{folder('dinov2')}", f"hf:{folder('videomae')}", f"python:{module()}:function"
    for protocols, checkpoint in (("linear,retrieval", image), ("retrieval", function)):
        out = tmp_path / protocols
        assert run.main(["--protocol", protocols, "--checkpoint", checkpoint, "--store", str(store), "--out", str(out),
                         "--set", "clips=2", *FAST]) == cli.DONE
        found = json.loads((out / "linear/metrics.json" if "," in protocols else out / "metrics.json").read_text())
        metric = "top1" if "," in protocols else "r@1"             # classes are colours
        assert found["metrics"][metric] > 60 and found["chance"][metric] == pytest.approx(100 / 3)
        assert found["checkpoint"]["kind"] == checkpoint.partition(":")[0]
    assert embed.main(["--checkpoint", video, "--store", str(store), "--out", str(tmp_path / "embedded"), "--set",
                       "clips=2", *FAST]) == cli.DONE
    assert np.load(tmp_path / "embedded/features.npy").shape == (18, 24)
    with pytest.raises(RequestError, match="--checkpoint hf:.*: evaluate.export writes networks of ours"):
        export.main(["--checkpoint", video, "--hub", str(tmp_path / "hub")])
    argv = ["--store", str(store), "--out", str(tmp_path / "no"), *FAST]
    with pytest.raises(RequestError, match="vector gives one vector a clip"):
        run.main(["--protocol", "linear", "--checkpoint", function.replace(":function", ":vector"), "--beside",
                  "moments", "--set", "clip=4x1", "--set", "size=16", *argv])
    assert not (tmp_path / "no").exists()
    with pytest.raises(RequestError, match="hf:.* has no weights to train"):
        run.main(["--protocol", "finetune", "--checkpoint", video, *argv])


@pytest.mark.slow
def test_saliency_looks_into_them(folder, module, moving, tmp_path):
    for checkpoint in (f"hf:{folder('videomae')}", f"python:{module()}:function"):
        out = tmp_path / checkpoint.partition(":")[0]
        assert run.main(["--protocol", "saliency", "--checkpoint", checkpoint, "--store", str(moving), "--out",
                         str(out), "--set", "shown=1", *FAST]) == cli.DONE
        found = json.loads((out / "metrics.json").read_text())
        assert found["counts"]["rows"] == 2 and found["counts"]["dead_cam"] < found["counts"]["clips"]
        assert any("eval mode" in note for note in found["notes"])
