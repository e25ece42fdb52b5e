"""Inflation against a plain 2D ResNet-50 written out on a torchvision state dict."""

import hashlib
import io
import pickle
import re

import pytest
import torch
from torch.nn import functional as F

from shared.cli import RequestError
from shared.nn.backbones import build_backbone
from shared.nn.heads import Projection
from shared.nn.inflate import inflate

STAGES = {1: 3, 2: 4, 3: 6, 4: 3}
MISFIT = "MoCo v2 checkpoint or torchvision's resnet50 weights"


def resnet50_state(seed: int) -> dict[str, torch.Tensor]:
    """Random weights under torchvision's names: views of one buffer, so that the file stays small."""
    generator = torch.Generator().manual_seed(seed)
    buffer = torch.randn(3_000_000, generator=generator) * 0.03
    state = {}

    def convolution(name, outputs, inputs, size):
        count = outputs * inputs * size ** 2
        start = int(torch.randint(len(buffer) - count, (), generator=generator))
        state[f"{name}.weight"] = buffer[start:start + count].view(outputs, inputs, size, size)

    def norm(name, channels, fan_in):
        for part, values in (("weight", torch.rand(channels, generator=generator) + 0.5),
                             ("bias", torch.randn(channels, generator=generator) * 0.1),
                             ("running_mean", torch.randn(channels, generator=generator) * 0.1),
                             ("running_var", (torch.rand(channels, generator=generator) + 0.5) * fan_in * 0.03 ** 2)):
            state[f"{name}.{part}"] = values
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    convolution("conv1", 64, 3, 7)
    norm("bn1", 64, 147)
    inputs = 64
    for stage, depth in STAGES.items():
        width = 32 << stage
        for block in range(depth):
            name = f"layer{stage}.{block}"
            for i, (outputs, fan, size) in enumerate(((width, inputs, 1), (width, width, 3), (4 * width, width, 1)), 1):
                convolution(f"{name}.conv{i}", outputs, fan, size)
                norm(f"{name}.bn{i}", outputs, fan * size ** 2)
            if not block:
                convolution(f"{name}.downsample.0", 4 * width, inputs, 1)
                norm(f"{name}.downsample.1", 4 * width, inputs)
            inputs = 4 * width
    state["fc.weight"], state["fc.bias"] = torch.zeros(1, 2048).expand(1000, -1), torch.zeros(1000)
    return state


def resnet50(state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """The oracle: (B, 3, S, S) -> (B, 2048), He et al. 2016 with the stride on the 3x3, in eval mode."""
    def unit(x, conv, bn, **how):
        x = F.conv2d(x, state[f"{conv}.weight"], **how)
        return F.batch_norm(x, *(state[f"{bn}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    x = F.max_pool2d(unit(images, "conv1", "bn1", stride=2, padding=3).relu(), 3, 2, 1)
    for stage, depth in STAGES.items():
        for block in range(depth):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and not block else 1
            y = unit(x, f"{name}.conv1", f"{name}.bn1").relu()
            y = unit(y, f"{name}.conv2", f"{name}.bn2", stride=stride, padding=1).relu()
            y = unit(y, f"{name}.conv3", f"{name}.bn3")
            x = x if block else unit(x, f"{name}.downsample.0", f"{name}.downsample.1", stride=stride)
            x = (x + y).relu()
    return x.mean((2, 3))


@pytest.fixture(autouse=True)
def seeded():
    """Images are drawn from the global generator."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def state():
    return resnet50_state(0)


@pytest.fixture(scope="module")
def torchvision_file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(state, path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def moco_file(state, tmp_path_factory):
    """As the released checkpoints are: both encoders, an MLP for a head, the queue, the epoch beside them."""
    path = tmp_path_factory.mktemp("weights") / "moco_v2_200ep.pth.tar"
    other = resnet50_state(1)
    tensors = {f"module.encoder_q.{name}": t for name, t in state.items() if not name.startswith("fc")}
    tensors |= {f"module.encoder_k.{name}": t for name, t in other.items() if not name.startswith("fc")}
    for head, shape in (("0.weight", (2048, 2048)), ("0.bias", (2048,)), ("2.weight", (128, 2048)), ("2.bias", (128,))):
        tensors[f"module.encoder_q.fc.{head}"] = torch.randn(shape[-1]).expand(shape)
    tensors |= {"module.queue": torch.zeros(128, 8), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    torch.save({"epoch": 200, "arch": "resnet50", "state_dict": tensors}, path)
    yield path
    path.unlink()


@pytest.fixture
def small_file(tmp_path):
    """A writer of files that hold what it is given."""
    def write(document, name="weights.pth"):
        torch.save(document, tmp_path / name)
        return tmp_path / name
    return write


def test_r2d_50_is_the_2d_net(state, torchvision_file):
    backbone = build_backbone("r2d_50").eval()
    record = inflate(torchvision_file, backbone)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images.unsqueeze(2)), resnet50(state, images), rtol=1e-3, atol=1e-4)
    assert (record.file, record.layout, record.identities) == ("resnet50.pth", "torchvision", 0)
    assert record.sha256 == hashlib.sha256(torchvision_file.read_bytes()).hexdigest()
    assert record.loaded == len(state) - 2 and record.left_out == {"fc": 2}


@pytest.mark.parametrize("tap", [1, 2])
def test_r2plus1d_50_is_the_2d_net_on_every_fourth_frame(state, moco_file, tap):
    """Eval mode, any clip: its features are the mean of the 2D net's on the frames under the stem's tap, 1 of 0 to 3 as
    in the released code.

    So a still clip gives exactly what its frame gives in 2D, and every position in time the same h.
    """
    backbone = build_backbone("r2plus1d_50").eval()
    record = inflate(moco_file, backbone) if tap == 1 else inflate(moco_file, backbone, tap)
    assert (record.layout, record.identities, record.loaded, record.tap) == ("moco", 16, len(state) - 2, tap)
    assert record.left_out == {"fc": 4, "module.encoder_k": len(state) - 2, "module.queue": 1, "module.queue_ptr": 1}
    moving = torch.randn(1, 3, 16, 32, 32)
    with torch.no_grad():
        taps = torch.stack([resnet50(state, moving[:, :, frame]) for frame in range(tap, 16, 4)])
        torch.testing.assert_close(backbone(moving), taps.mean(0), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(taps[0], taps[1], rtol=0.05)
        still = moving[:, :, :1].expand(-1, -1, 16, -1, -1)
        h, rest = backbone.body(still)
        torch.testing.assert_close(h, h[:, :, :1].expand_as(h), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(backbone.tail(h, rest), resnet50(state, still[:, :, 0]), rtol=1e-3, atol=1e-4)


def test_weights_by_hand(state, torchvision_file):
    backbone = build_backbone("r2plus1d_50")
    inflate(torchvision_file, backbone)
    ours = backbone.state_dict()
    stem = ours["stem.conv1.weight"]
    assert torch.equal(stem[:, :, 1], state["conv1.weight"]) and not stem[:, :, [0, 2, 3]].any()
    temporal = ours["stages.layer3.4.temporal2.weight"]
    assert temporal.shape == (256, 256, 3, 1, 1) and temporal.sum() == 256
    x = torch.randn(2, 256, 5, 3, 3)
    torch.testing.assert_close(F.conv3d(x, temporal, padding=(1, 0, 0)), x)
    assert torch.equal(ours["stages.layer2.0.downsample.1.running_var"], state["layer2.0.downsample.1.running_var"])
    assert ours["stem.bn1.num_batches_tracked"] == 7


@pytest.mark.slow
def test_the_head_of_the_file(state, moco_file, torchvision_file):
    """On request; the released code does so on Kinetics-400. A file without MoCo v2's head changes nothing."""
    backbone, head = build_backbone("r2d_50"), Projection(2048, 2048, 128)
    record = inflate(moco_file, backbone, head=head)
    stored = torch.load(moco_file, weights_only=True)["state_dict"]
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, stored[f"module.encoder_q.fc.{name}"])
    assert record.loaded == len(state) - 2 + 4 and "fc" not in record.left_out
    before = [tensor.clone() for tensor in (*head.state_dict().values(), *backbone.state_dict().values())]
    for file, own, found in ((torchvision_file, head, "no fc.0.weight; init_head=true expects MoCo v2's head"),
                             (moco_file, Projection(2048, 2048, 64), "a (128, 2048) module.encoder_q.fc.2.weight")):
        with pytest.raises(RequestError, match=re.escape(found)):
            inflate(file, backbone, head=own)
    for tensor, old in zip((*head.state_dict().values(), *backbone.state_dict().values()), before):
        assert torch.equal(tensor, old)


def test_other_ways_to_save(state, small_file):
    """DataParallel's prefix, training state around it, and files from before num_batches_tracked."""
    old = {f"module.{name}": t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    path = small_file({"epoch": 3, "state_dict": old, "best": 0.5})
    record = inflate(path, build_backbone("r2d_50"))
    assert (record.layout, record.left_out) == ("torchvision-parallel", {"fc": 2})
    path.unlink()


@pytest.mark.parametrize("name, width", [("s3d", 0), ("i2d", 0), ("r2plus1d_18", 0), ("r2plus1d_tiny", 0),
                                         ("r2plus1d_50", 32)])
def test_backbones_without_a_2d_twin(name, width, torchvision_file):
    with pytest.raises(RequestError, match=rf"{name} of width \d+ cannot start .* r2plus1d_50 or r2d_50 of width 64"):
        inflate(torchvision_file, build_backbone(name, width))


def test_damaged_files(tmp_path, moco_file):
    good = moco_file.read_bytes()
    with torch.device("meta"):
        backbone = build_backbone("r2d_50")
    path = tmp_path / "weights.pth"
    for content in (good[:len(good) // 2], good[:-100], b"", b"not weights at all", good[:3]):
        path.write_bytes(content)
        with pytest.raises(RequestError, match="is damaged or no PyTorch file|is no plain file of tensors") as refusal:
            inflate(path, backbone)
        assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        inflate(path, backbone)


class Trap:
    """Unpickling it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_code_of_the_file_runs(tmp_path, small_file):
    sprung = tmp_path / "sprung"
    plain = tmp_path / "plain.pkl"
    plain.write_bytes(pickle.dumps(Trap(sprung)))
    for path in (small_file({"state_dict": Trap(sprung)}), plain):
        with pytest.raises(RequestError, match="save its state_dict alone"):
            inflate(path, build_backbone("r2d_50"))
    assert not sprung.exists()
    torch.load(io.BytesIO(small_file({"state_dict": Trap(sprung)}).read_bytes()), weights_only=False)
    assert sprung.exists()  # the trap works where it is let


@pytest.mark.slow
def test_other_architectures(state, small_file):
    """Each refusal names the tensor that gives the file away, and leaves the backbone as it was."""
    basic = {name: t for name, t in state.items() if "conv3" not in name and "bn3" not in name}
    deeper = state | {"layer3.6.conv1.weight": state["layer3.5.conv1.weight"]}
    wide = state | {"layer1.0.conv2.weight": torch.zeros(1, 1, 1, 1).expand(128, 128, 3, 3)}
    broken = state | {"bn1.weight": torch.full((64,), torch.nan)}
    own = state["bn1.weight"]
    kinds = (own.to_sparse(), own.to("meta"), own.to(torch.complex64), own.to(torch.int64), own.to(torch.float8_e4m3fn))
    odd = [(state | {"bn1.weight": kind}, "bn1.weight is of .*; expected plain torch.float32") for kind in kinds]
    huge = state | {"bn1.weight": torch.full((64,), 1e300, dtype=torch.float64)}
    vit = {"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}
    backbone = build_backbone("r2d_50")
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    for document, message in ((basic, f"lacks layer1.0.conv3.weight.*{MISFIT}"),
                              (deeper, f"holds layer3.6.conv1.weight, which a ResNet-50 has not.*{MISFIT}"),
                              (wide, r"layer1.0.conv2.weight is \(128, 128, 3, 3\), expected \(64, 64, 3, 3\)"),
                              (broken, "bn1.weight holds values that are not finite"), *odd,
                              (huge, "bn1.weight holds values that are not finite"),
                              (vit, f"no 'layer1.0.conv1.weight' among its 1 tensors.*{MISFIT}"),
                              ({"epoch": 3}, f"no named tensors.*{MISFIT}"), ([1, 2], f"no named tensors.*{MISFIT}")):
        path = small_file(document)
        with pytest.raises(RequestError, match=message) as refusal:
            inflate(path, backbone)
        path.unlink()
        assert "\n" not in str(refusal.value)
        assert all(torch.equal(backbone.state_dict()[name], tensor) for name, tensor in before.items())
