"""Exported backbones: the same features everywhere they are opened, a card that says what they are, hostile files."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import shared.nn
from evaluate import export, run
from evaluate.features.cache import FeatureCache
from evaluate.features.encoders import open_encoder, weights_hash
from evaluate.features.extract import View, extract
from evaluate.protocol import load_settings
from shared import cli
from shared.cli import RequestError
from shared.nn import checkpoint as checkpoints
from shared.nn.distributed import World
from shared.nn.exported import load_export
from shared.store.reader import StoreReader

ROOT = Path(__file__).resolve().parents[2]
FAST = ["--set", "run.threads=1", "--set", "clips=2", "--set", "run.device=cpu"]
NETS = {"mcl": ("mcl-tiny",), "maclr": ("maclr-tiny",), "2d": ("mcl-tiny", "backbone=r2d_50", "width=4", "size=48")}


def exported(path, hub, *more) -> Path:
    assert export.main(["--checkpoint", str(path), "--hub", str(hub), *more]) == cli.DONE
    return hub


@pytest.fixture(scope="module")
def hub(checkpoint, tmp_path_factory):
    return exported(checkpoint, tmp_path_factory.mktemp("export") / "hub")


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETS)
def test_three_lines_give_the_features_of_the_evaluation(kind, make_checkpoint, store, tmp_path):
    path = make_checkpoint(*NETS[kind])
    hub = exported(path, tmp_path / "hub")
    settings = load_settings("linear", ["clips=3", "run.device=cpu", "run.threads=1"])
    encoder = open_encoder(path)
    found = extract(encoder, store, None, View.of(settings.features, encoder), settings.run,
                    FeatureCache(tmp_path / "cache"), World())
    reader = StoreReader(store)
    for place in (hub, hub / "model.safetensors", path):
        net, transform = shared.nn.load(place)
        assert not net.training and transform.size == encoder.size
        for video in (0, 5, 17):                                       # a5 is shorter than a clip
            frames = reader.frames(found.ids[video], range(int(reader.index.frames[video])))
            with torch.no_grad():
                vector = net(transform(frames, clips=3)).mean(0).numpy()
            np.testing.assert_allclose(vector, found.vectors[video], rtol=1e-4, atol=1e-4 * np.abs(vector).max())
            assert transform(frames).shape == (1, 3, transform.geometry.length, 48, 48)


@pytest.mark.slow
def test_torch_hub_opens_it_without_the_rest_of_the_house(hub):
    """As a stranger does: from another folder, with nothing of the evaluation or of video decoding loaded."""
    code = f"""
import sys, torch
net, transform = torch.hub.load({str(ROOT)!r}, "backbone", path={str(hub)!r}, source="local")
print(net(transform(torch.zeros(20, 60, 70, 3, dtype=torch.uint8))).shape)
loaded = [name for name in ("av", "cv2", "zarr", "sklearn", "evaluate", "preprocess", "train") if name in sys.modules]
assert not loaded, loaded"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([1, 48])"


@pytest.mark.parametrize("frames", [np.zeros((4, 8, 8), np.uint8), np.zeros((4, 8, 8, 3), np.float32),
                                    np.zeros((0, 8, 8, 3), np.uint8), np.zeros((4, 3, 8, 8), np.uint8)])
def test_frames_that_are_no_frames(hub, frames):
    _, transform = shared.nn.load(hub)
    with pytest.raises(ValueError, match="expected \\(T, H, W, 3\\), torch.uint8"):
        transform(frames)


def test_the_card_says_what_it_is(checkpoint, store, tmp_path):
    assert run.main(["--protocol", "linear", "--checkpoint", str(checkpoint), "--store", str(store), "--out",
                     str(tmp_path / "out"), *FAST]) == cli.DONE
    hub = exported(checkpoint, tmp_path / "hub", "--licence", "CC-BY-NC-4.0", "--data-licence", "my | own",
                   "--scores", str(tmp_path / "out"))
    card = (hub / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc-by-nc-4.0" and front["library_name"] == "motionpack"
    assert "| `made-up` | `train2` | not recorded |" in card and "| pipeline | `mcl-tiny` |" in card
    assert "| linear | `top1` | 100.0 | 33.3 | `made-up` | `test` from `train` |" in card
    assert "| training data | `my &#124; own` |" in card and "patent" not in card
    config = json.loads((hub / "config.json").read_text())
    assert config["scores"][0]["metrics"]["top1"] == 100 and config["recipe"]["sampling"]["clip"] == "8x2"
    assert config["licence"]["weights"] == "CC-BY-NC-4.0" and config["architecture"]["h"] == [48, 4, 6, 6]
    assert sorted(path.name for path in hub.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_maclr_brings_its_patent_note(make_checkpoint, tmp_path):
    card = (exported(make_checkpoint("maclr-tiny"), tmp_path / "hub") / "README.md").read_text()
    assert "patent pending" in card and "clips of 4 frames, every 4th frame, 48x48 pixels, into 192 numbers" in card
    assert yaml.safe_load(card.split("---")[1])["license"] == "other"


def test_names_from_a_checkpoint_are_no_markup(checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    state["pipeline"] = "a`<script>alert(1)</script>\n# b | c"
    state["provenance"] = {"stores": [{"dataset": "<img src=x>`|", "split": None}],
                           "init": {"file": "[x](javascript:1)`", "sha256": "<b>"}}
    checkpoints.save(tmp_path / "last.pt", state)
    card = (exported(tmp_path / "last.pt", tmp_path / "hub") / "README.md").read_text()
    for line in card.splitlines():
        outside = "".join(line.split("`")[::2])                # what stands in no code span
        assert line.count("`") % 2 == 0 or line.startswith("```")
        assert "<" not in outside.replace("&#124;", "") and "](" not in outside
    assert len([line for line in card.splitlines() if line.startswith("# ")]) == 1


def test_scores_of_another_checkpoint_are_refused(checkpoint, store, tmp_path):
    run.main(["--protocol", "linear", "--checkpoint", "mean-image", "--store", str(store), "--out",
              str(tmp_path / "out"), *FAST])
    with pytest.raises(RequestError, match="is of another checkpoint, mean-image"):
        export.main(["--checkpoint", str(checkpoint), "--hub", str(tmp_path / "hub"), "--scores",
                     str(tmp_path / "out")])
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_nothing_in_the_folder_is_overwritten(checkpoint, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(RequestError, match=f"holds a {name} already"):
        export.main(["--checkpoint", str(checkpoint), "--hub", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["x.safetensors", "x.json"])
def test_a_file_that_is_no_export_is_not_overwritten(checkpoint, tmp_path, name):
    (tmp_path / name).write_text('{"mine": 1}')
    argv = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "x.safetensors")]
    with pytest.raises(RequestError, match=f"{name} is there already and is no export of ours"):
        export.main(argv)
    assert (tmp_path / name).read_text() == '{"mine": 1}'
    (tmp_path / name).unlink()
    assert export.main(argv) == export.main(argv) == cli.DONE


def test_an_export_is_exported_and_evaluated_as_its_checkpoint(hub, checkpoint, tmp_path):
    again = exported(hub, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (hub / "model.safetensors").read_bytes()
    assert weights_hash(open_encoder(again).net) == weights_hash(open_encoder(checkpoint).net)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_exported(checkpoint, tmp_path, value):
    state = torch.load(checkpoint, weights_only=True)
    name = next(key for key, tensor in state["learner"].items() if tensor.is_floating_point())
    state["learner"][name].view(-1)[0] = value
    checkpoints.save(tmp_path / "last.pt", state)
    with pytest.raises(RequestError, match=f"last.pt: its weights are not finite numbers, {name[15:]} among them"):
        export.main(["--checkpoint", str(tmp_path / "last.pt"), "--hub", str(tmp_path / "hub")])
    with pytest.raises(RequestError, match="not finite"):
        shared.nn.load(tmp_path / "last.pt")
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize("change", [
    {"architecture.width": 10 ** 9}, {"architecture.width": 10 ** 30}, {"architecture.width": "12"},
    {"architecture.width": True}, {"architecture.width": -1}, {"architecture.name": "r2plus1d_500"},
    {"architecture.name": ["r2plus1d_tiny"]}, {"architecture.name": "s3d"}, {"architecture.size": 0},
    {"architecture.size": 10 ** 9}, {"architecture.size": 48.0}, {"architecture.clip": "8by2"},
    {"architecture.clip": None}, {"architecture.mean": [0, 0, 0]}, {"architecture": 3}, {"weights": None},
    {"weights.sha256": 4}, {"recipe": []}, {"format": None}])
def test_hostile_descriptions_are_refused_in_one_line(hub, tmp_path, change):
    config = json.loads((hub / "config.json").read_text())
    for key, value in change.items():
        section, _, name = key.partition(".")
        config |= {section: {**config[section], name: value} if name else value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((hub / "model.safetensors").read_bytes())
    with pytest.raises(RequestError) as refused:
        shared.nn.load(tmp_path)
    assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "[" * 100_000, "{}", "\xff", "null", "{\"format\": 1e999}"])
def test_descriptions_that_are_none(hub, tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    (tmp_path / "model.safetensors").write_bytes((hub / "model.safetensors").read_bytes())
    with pytest.raises(RequestError, match="describes no exported backbone"):
        shared.nn.load(tmp_path)


@pytest.mark.parametrize("change", [
    {"stores": 3}, {"stores": ["x"]}, {"init": "x"}, {"init": {"file": 3, "sha256": "x"}}, {"extra": float("nan")},
    {"extra": torch.zeros(2)}])
def test_checkpoints_whose_provenance_is_none_are_not_exported(checkpoint, tmp_path, change):
    state = torch.load(checkpoint, weights_only=True)
    state["provenance"] |= change
    checkpoints.save(tmp_path / "last.pt", state)
    with pytest.raises(RequestError, match="its recipe or provenance is not what train/main.py writes"):
        export.main(["--checkpoint", str(tmp_path / "last.pt"), "--hub", str(tmp_path / "hub")])


def test_a_folder_without_a_backbone(tmp_path):
    with pytest.raises(RequestError, match="is a folder without model.safetensors; .* such as its last.pt"):
        shared.nn.load(tmp_path)


@pytest.mark.slow
def test_a_single_file_gives_the_same_features(checkpoint, store, tmp_path, capsys):
    path = tmp_path / "backbone.safetensors"
    assert export.main(["--checkpoint", str(checkpoint), "--out", str(path), "--licence", "CC-BY-4.0"]) == cli.DONE
    assert capsys.readouterr().out.startswith("done: ")
    document = json.loads(path.with_suffix(".json").read_text())
    assert document["licence"]["weights"] == "CC-BY-4.0" and document["provenance"]["pipeline"] == "mcl-tiny"
    assert weights_hash(open_encoder(str(path)).net) == weights_hash(open_encoder(str(checkpoint)).net)
    found = []
    for name, asked in (("a", checkpoint), ("b", path)):
        run.main(["--protocol", "linear", "--checkpoint", str(asked), "--store", str(store), "--out",
                  str(tmp_path / name), *FAST])
        found.append(json.loads((tmp_path / name / "metrics.json").read_text()))
    ours, theirs = found
    assert ours["metrics"] == theirs["metrics"] and theirs["checkpoint"]["kind"] == "export"
    vectors = [sorted((tmp_path / name / "features").glob("*/*.npy")) for name in "ab"]
    same = [{np.load(file).tobytes() for file in files} for files in vectors]
    assert same[0] == same[1] and len(same[0]) == 2


@pytest.mark.parametrize("damage, message", [
    ("weights", "SHA-256 differs"), ("json", "describes no exported backbone"), ("format", "has format 'other 9'"),
    ("absent", "backbone.json does not exist"), ("architecture", "holds other weights"), ("dtype", None),
])
def test_an_export_that_is_damaged(checkpoint, tmp_path, damage, message):
    path = tmp_path / "backbone.safetensors"
    export.main(["--checkpoint", str(checkpoint), "--out", str(path)])
    beside = path.with_suffix(".json")
    document = json.loads(beside.read_text())
    if damage == "weights":
        data = bytearray(path.read_bytes())
        data[-9] ^= 1
        path.write_bytes(data)
    elif damage == "json":
        beside.write_text("{}")
    elif damage == "absent":
        beside.unlink()
    elif damage == "dtype":                       # half the bytes: cast on the way in
        save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
        document["weights"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        beside.write_text(json.dumps(document))
        net, _ = load_export(path)
        assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
        return
    else:
        document |= {"format": "other 9"} if damage == "format" else {}
        document["architecture"]["width"] = 8 if damage == "architecture" else 12
        beside.write_text(json.dumps(document))
    with pytest.raises(RequestError, match=message):
        load_export(path)


@pytest.mark.parametrize("argv, message", [
    (["--out", "x.pt"], "expected a file ending in .safetensors in a folder that exists"),
    (["--out", "absent/x.safetensors"], "expected a file ending in .safetensors in a folder that exists"),
    ([], "neither of --hub and --out given"), (["--hub", "a", "--out", "b.safetensors"], "both of --hub and --out")])
def test_where_exports_cannot_go(checkpoint, argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=message):
        export.main(["--checkpoint", str(checkpoint), *argv])
