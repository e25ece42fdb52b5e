"""`hf:DIR`: a local folder of Transformers' save_pretrained, a video model, or an image model frame by frame.

B clips, L frames of SxS pixels, C features, T'xh'xw' positions, N tokens. What a model wants to see stands in its JSON
files; no processor class is asked. Weights are safetensors, or .bin files read as plain tensors.
"""

import hashlib
import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from evaluate.features.foreign import CLIP, SIZE, Foreign, told
from shared.cli import RequestError
from shared.clips.index import ClipGeometry
from shared.clips.resampling import MEAN, STD

CONFIG, PROCESSORS = "config.json", ("preprocessor_config.json", "video_preprocessor_config.json")
STRIDES, STRIDE = ("frame_sample_rate", "sampling_rate", "frame_stride"), 2      # its names; ours where none is there
INPUTS = "pixel_values", "pixel_values_videos"
FLAGS = "interpolate_pos_encoding", "skip_predictor"
UNUSED = "pooler", "mask_token", "predictor", ".head."          # weights on which no position depends
EXPECTED = "expected a local folder of save_pretrained, with config.json and model.safetensors; nothing is downloaded"


class Transformers(Foreign):
    """A model of pixels with `last_hidden_state`: tokens (B, N, C), which may begin with some that are no positions, or
    (B, C, h', w'). An image model takes each frame by itself. seed: of an untrained one, weights or not."""

    def __init__(self, text: str, seed: int | None = None):
        folder = Path(text.partition(":")[2])
        documents = {name: _json(folder / name, text) for name in (CONFIG, *PROCESSORS) if (folder / name).is_file()}
        if CONFIG not in documents:
            raise RequestError(f"checkpoint {text}: {folder} holds no {CONFIG}; {EXPECTED}")
        net, version = _load(folder, text, seed)
        takes = inspect.signature(net.forward).parameters
        if not any(name in takes for name in INPUTS):
            raise RequestError(f"checkpoint {text}: {type(net).__name__} takes {next(iter(takes), 'nothing')} and no "
                               "pixels; expected a model of images or videos")
        try:
            view, pixels, remarks = _view(net.config, documents, text)
        except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
            raise RequestError(f"checkpoint {text}: its JSON names no view of frames ({type(error).__name__}: "
                               f"{error}); expected image_size or crop_size, image_mean and image_std") from None
        digest = hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()
        super().__init__(text, net.config.model_type, *view, digest, {
            "folder": str(folder), "model": type(net).__name__, "transformers": version, "mean": pixels[0],
            "std": pixels[1], "remarks": remarks})
        self.net = net.eval().requires_grad_(False)
        self.takes = next(name for name in INPUTS if name in takes)
        self.flags = {name: True for name in FLAGS if name in takes}
        self.single = _frames(net.config) is None
        self.space_first = net.config.model_type == "timesformer"
        patch = next((part for part in net.modules() if isinstance(part, (nn.Conv2d, nn.Conv3d))), None)
        self.patch = (1, 1, 1) if patch is None else (1, *patch.stride)[-3:]
        self.register_buffer("pixels", torch.tensor(pixels).view(2, 3, 1, 1, 1), persistent=False)

    def encode(self, clips: Tensor) -> Tensor:
        mean, std = self.pixels.to(clips)
        x = ((clips - mean) / std).transpose(1, 2)                                         # (B, L, 3, S, S)
        x = x.flatten(0, 1) if self.single else x
        return self.grid(self.net(**{self.takes: x}, **self.flags).last_hidden_state, clips)

    def grid(self, raw: Tensor, x: Tensor) -> Tensor:
        if raw.ndim != 3:
            return super().grid(raw, x)
        shape = self._tokens(raw.shape[1], x)
        tokens = raw[:, raw.shape[1] - math.prod(shape):].unflatten(1, shape)              # leading ones are none
        tokens = tokens.movedim(3, 1) if self.space_first else tokens                      # (B, T', h', w', C)
        tokens = tokens.squeeze(1).unflatten(0, (len(x), -1)) if self.single else tokens
        return tokens.movedim(-1, 1)

    def ungrid(self, h: Tensor, raw: Tensor) -> Tensor:
        if raw.ndim != 3:
            return super().ungrid(h, raw)
        tokens = h.movedim(1, -1)
        tokens = (tokens.movedim(1, 3) if self.space_first else tokens).reshape(len(raw), -1, raw.shape[2])
        return torch.cat([raw[:, :raw.shape[1] - tokens.shape[1]], tokens], 1)

    def _tokens(self, count: int, x: Tensor) -> tuple[int, int, int]:
        """How the last of N tokens lie: (T', h', w'), of TimeSformer (h', w', T')."""
        steps = 1 if self.single else max(1, x.shape[2] // self.patch[0])
        rows, columns = (size // patch for size, patch in zip(x.shape[3:], self.patch[1:]))
        if steps * rows * columns > count:                # a pyramid, of which this is a coarser level
            rows = columns = math.isqrt(count // steps)
            if steps * rows * columns != count:
                raise RequestError(f"checkpoint {self.text}: {count} tokens of {steps} steps lie on no square grid")
        return (rows, columns, steps) if self.space_first else (steps, rows, columns)

    def find_cut(self, x: Tensor) -> tuple[nn.Module, bool]:
        """The input of a transformer's last block, beyond which tokens still meet; else the last convolution."""
        lists = [part for part in getattr(self.net, "encoder", self.net).modules() if isinstance(part, nn.ModuleList)]
        layer, given = max(lists, key=len)[-1] if lists else self.net, []
        hook = layer.register_forward_pre_hook(lambda _, args: given.extend(args[:1]))
        self.run(x)
        hook.remove()
        return (layer, True) if len(given) == 1 and given[0].ndim == 3 else super().find_cut(x)


def _json(path: Path, text: str) -> dict:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise TypeError(f"it holds {type(document).__name__}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RequestError(f"checkpoint {text}: {path.name} is no JSON object ({error}); {EXPECTED}") from None
    return document


def _load(folder: Path, text: str, seed: int | None) -> tuple[nn.Module, str]:
    """The model in float32, of a model of images and texts the half that sees, and the version of Transformers."""
    try:
        import transformers
    except ImportError:
        raise RequestError("--checkpoint hf:DIR needs a package that is missing here; pip install "
                           '"motionpack[hf]"') from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    plain = dict(local_files_only=True, trust_remote_code=False)
    try:
        if seed is None:
            net, report = transformers.AutoModel.from_pretrained(folder, weights_only=True, dtype=torch.float32,
                                                                 output_loading_info=True, **plain)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                net = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(folder, **plain))
            net, report = net.float(), {"missing_keys": ()}
    except Exception as error:
        raise RequestError(f"checkpoint {text}: Transformers {transformers.__version__} cannot open {folder} "
                           f"({told(error)}); {EXPECTED}") from error
    missing = sorted(name for name in report["missing_keys"] if not any(part in name for part in UNUSED))
    if missing:
        raise RequestError(f"checkpoint {text}: {folder} lacks {len(missing)} weights of {type(net).__name__}, "
                           f"{missing[0]} among them, which would be random; {EXPECTED}")
    return getattr(net, "vision_model", net), transformers.__version__


def _frames(config) -> int | None:
    """Frames of a clip of a video model; None for a model of images."""
    return getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)


def _view(config, documents: Mapping[str, dict], text: str) -> tuple[tuple[str, int], tuple[list, list], list[str]]:
    """(clip, size), (mean, std) of RGB in [0, 1], and what the report says of that which no JSON names.

    Raises ValueError, TypeError, LookupError, AttributeError or OverflowError for values that are none."""
    said = {key: value for name in PROCESSORS for key, value in documents.get(name, {}).items() if value is not None}
    frames, clip, remarks = _frames(config), CLIP, []
    if frames:
        stride = next((one[key] for one in (said, documents[CONFIG]) for key in STRIDES if key in one), None)
        clip = str(ClipGeometry.parse(f"{frames}x{stride or STRIDE}"))
        if not stride:
            remarks.append(f"The JSON of {text} names no stride between frames: the clip is {clip}, and "
                           "features.clip takes another.")
    crop = said.get("crop_size") if said.get("do_center_crop", True) else None
    size = next(side for side in (crop, said.get("size"), getattr(config, "image_size", None),
                                  getattr(config, "crop_size", None), SIZE) if side)
    if isinstance(size, dict):
        size = next((size[key] for key in ("height", "shortest_edge", "longest_edge") if key in size), size)
    size = size[0] if isinstance(size, (list, tuple)) else size
    if type(size) is not int or not 1 <= size <= 4096:
        raise ValueError(f"size {size!r}")
    mean, std = said.get("image_mean", MEAN), said.get("image_std", STD)
    if not said.get("do_normalize", True):
        mean, std = (0, 0, 0), (1, 1, 1)
    elif "image_mean" not in said:
        remarks.append(f"The JSON of {text} names no mean and deviation of pixels: ImageNet's are taken.")
    scale = 255 * said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 255
    if not scale:
        raise ValueError(f"rescale_factor {said['rescale_factor']!r}")
    mean, std = [(value + bool(said.get("offset"))) / scale for value in mean], [value / scale for value in std]
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, mean)) or not 0 < min(std) <= max(std) < math.inf:
        raise ValueError(f"image_mean {said.get('image_mean')}, image_std {said.get('image_std')}")
    return (clip, size), (mean, std), remarks
