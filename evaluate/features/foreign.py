"""Networks of others behind what evaluation asks of one: positions, their mean, and a cut where Grad-CAM looks.

B clips, L frames of SxS pixels, C features, T'xh'xw' positions. Here stands `python:MODULE:NAME`, in huggingface.py
`hf:DIR`.
"""

import contextlib
import hashlib
import importlib
import inspect
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from shared.cli import RequestError, nearest, plural
from shared.clips.index import ClipGeometry
from shared.clips.resampling import MEAN, STD

PYTHON = "python"
CLIP, SIZE = "16x2", 224          # of a network that names no view (docs/method.md 1.7)


class Foreign(nn.Module):
    """A network of others, in eval mode for good and without gradients of its weights. Subclasses define `encode`.

    text: as --checkpoint names it; name: for reports and keys; clip, size: its own view; identity: what decides its
    features beside the weights; origin: for the report; features: C, known once `check` has run.
    """

    frames, features = False, 0

    def __init__(self, text: str, name: str, clip: str, size: int, identity: str, origin: dict):
        super().__init__()
        self.text, self.name, self.identity, self.origin = text, name, identity, origin
        self.clip, self.size = clip, size
        self.seen: dict[tuple[int, int], tuple[int, ...]] = {}
        self.cut: tuple[nn.Module, bool] | None = None
        self.register_buffer("levels", torch.tensor([MEAN, STD]).view(2, 3, 1, 1, 1), persistent=False)

    def encode(self, clips: Tensor) -> Tensor:
        """(B, 3, L, S, S) RGB in [0, 1] -> (B, C, T', h', w'), or (B, C) where there are no positions."""
        raise NotImplementedError

    def __deepcopy__(self, memo) -> "Foreign":
        return self          # nothing of it changes, and a function knows its own networks only

    def train(self, mode: bool = True) -> "Foreign":
        return super().train(False)

    def run(self, x: Tensor) -> Tensor:
        """`encode` of clips normalised as ours are. Raises RequestError where it fails or gives none."""
        mean, std = self.levels.to(x.dtype)
        try:
            y = self.encode((x * std + mean).clamp(0, 1))
        except RequestError:
            raise
        except (Exception, SystemExit) as error:
            raise RequestError(f"checkpoint {self.text} fails on clips (B, 3, L, S, S) of shape {tuple(x.shape)}: "
                               f"{told(error)}; its own are of {self.clip} (frames x stride) and {self.size} pixels, "
                               "and features.clip and features.size set others") from error
        if not isinstance(y, Tensor) or y.ndim not in (2, 5) or len(y) != len(x) or not y.is_floating_point():
            what = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise RequestError(f"checkpoint {self.text} gives {what} for clips (B, 3, L, S, S) of shape "
                               f"{tuple(x.shape)}; expected float features (B, C), or (B, C, T, h, w) with positions")
        return y.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, L, S, S) as our nets take it -> (B, C): the mean over the positions, where there are any."""
        y = self.run(x)
        return y.mean((2, 3, 4)) if y.ndim == 5 else y

    def positions(self, x: Tensor) -> Tensor:
        """(B, 3, L, S, S) as our nets take it -> (B, C, T', h', w'). Raises RequestError where there are none."""
        self.with_positions(*x.shape[2:4])
        return self.run(x)

    def with_positions(self, length: int, size: int) -> tuple[int, int, int, int]:
        """(C, T', h', w') of a clip. Raises RequestError where it becomes one vector."""
        shape = self.check(length, size)
        if len(shape) != 4:
            raise RequestError(f"checkpoint {self.text} gives one vector a clip and no positions, which moments and "
                               "the dense probe of controls (controls.truth) need; let it return (B, C, T, h, w), the "
                               "features of every position")
        return shape

    @torch.no_grad()
    def check(self, length: int, size: int) -> tuple[int, ...]:
        """The shape, without B, of what becomes of a clip. Raises RequestError for clips that it cannot take."""
        if (length, size) not in self.seen:
            y = self.run(self.blank(length, size))
            self.features, self.seen[length, size] = y.shape[1], tuple(y.shape[1:])
        return self.seen[length, size]

    def blank(self, length: int, size: int) -> Tensor:
        """A clip of seeded noise (1, 3, L, S, S), where the network is."""
        noise = torch.randn(1, 3, length, size, size, generator=torch.Generator().manual_seed(0))
        return noise.to(self.levels)

    # A Backbone is cut at the output of its last convolution; so is this, by a hook, or before the last block of a
    # transformer, whose tokens no convolution sees. `body` gives h there, `tail` goes on from it.

    @torch.no_grad()
    def h_shape(self, length: int, size: int) -> tuple[int, int, int, int]:
        """(C', T', h', w') at the cut. Raises RequestError where there is none, or no gradient comes back to it."""
        self.check(length, size)
        h, x = self.body(self.blank(length, size))
        with torch.enable_grad():
            features = self.tail(h.requires_grad_(), x)
            if not features.requires_grad or torch.autograd.grad(features.sum(), h, allow_unused=True)[0] is None:
                raise RequestError(f"checkpoint {self.text} gives no gradients, which saliency and controls "
                                   "(controls.truth) need; take torch.no_grad, torch.inference_mode and .detach() out "
                                   "of it")
        return tuple(h.shape[1:])

    def check_grid(self, length: int, size: int) -> None:
        """Raises RequestError where the positions are none, or not those at the cut."""
        shapes = self.with_positions(length, size), self.h_shape(length, size)
        own, cut = ("x".join(map(str, shape[1:])) for shape in shapes)
        if own != cut:
            raise RequestError(f"controls: {self.text} has {own} positions and is looked into at {cut}, and both are "
                               "asked on one grid; set controls.truth to false")

    def body(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, L, S, S) -> h (B, C', T', h', w') at the cut, and the clips again, for `tail`."""
        found = []
        with self._watched(x, lambda raw: found.append(raw) or raw):
            self.run(x)
        if len(found) != 1:
            raise RequestError(f"{self.text} passes its last convolution {plural(len(found), 'time')} a clip, so there "
                               "is no one map; expected a network that takes all frames at once")
        return self.grid(found[0].clone(), x), x           # what torch.inference_mode made takes no gradient

    def tail(self, h: Tensor, x: Tensor) -> Tensor:
        """(B, C): the features of clips x with h at the cut."""
        with self._watched(x, lambda raw: self.ungrid(h, raw)):
            return self(x)

    def grid(self, raw: Tensor, x: Tensor) -> Tensor:
        """What a convolution gives, (B, C, T', h', w') or (B T', C, h', w'), as the former."""
        return raw if raw.ndim == 5 else raw.unflatten(0, (len(x), -1)).transpose(1, 2)

    def ungrid(self, h: Tensor, raw: Tensor) -> Tensor:
        """`grid` undone; raw: what stood there."""
        return h if raw.ndim == 5 else h.transpose(1, 2).flatten(0, 1)

    @contextlib.contextmanager
    def _watched(self, x: Tensor, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Within, what passes the cut is `change` of it."""
        self.cut = self.cut or self.find_cut(x)
        layer, before = self.cut
        hook = layer.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:])) if before else \
            layer.register_forward_hook(lambda _, args, raw: change(raw))
        try:
            yield
        finally:
            hook.remove()

    def find_cut(self, x: Tensor) -> tuple[nn.Module, bool]:
        """The last convolution that runs; True for the input of a layer, False for its output. Raises RequestError."""
        ran = []
        hooks = [part.register_forward_hook(lambda part, args, raw: ran.append(part)) for part in self.modules()
                 if isinstance(part, (nn.Conv2d, nn.Conv3d))]
        self.run(x)
        for hook in hooks:
            hook.remove()
        if not ran:
            raise RequestError(f"{self.text} runs no convolution that we can see, so nothing says where it looks; "
                               "expected an nn.Module, or a function of one in its module")
        return ran[-1], False


class Function(Foreign):
    """`python:MODULE:NAME`: a function of clips, or an nn.Module. What networks its module holds count as its weights,
    and are put into eval mode and onto the device."""

    def __init__(self, text: str):
        module, _, name = text.partition(":")[2].partition(":")
        if not module or not name:
            raise RequestError(f"checkpoint {text!r}; expected python:MODULE:NAME, a function or nn.Module of a module "
                               "that Python can import, such as python:encoders:r3d")
        try:
            holder = importlib.import_module(module)
        except (Exception, SystemExit) as error:
            raise RequestError(f"checkpoint {text}: importing {module} fails: {told(error)}; expected a module in the "
                               "current folder or on PYTHONPATH") from error
        found = getattr(holder, name, None)
        if not callable(found) or isinstance(found, type):
            raise RequestError(f"checkpoint {text}: {module} has no function or nn.Module {name!r}"
                               f"{nearest(name, [one for one, what in vars(holder).items() if callable(what)])}")
        clip, size = getattr(found, "clip", CLIP), getattr(found, "size", SIZE)
        try:
            ClipGeometry.parse(clip)
        except (ValueError, TypeError, AttributeError) as error:
            raise RequestError(f"checkpoint {text}: its attribute clip: {error}") from None
        if type(size) is not int or size < 1:
            raise RequestError(f"checkpoint {text}: its attribute size is {size!r}; expected pixels")
        source = inspect.getsourcefile(holder) if getattr(holder, "__file__", None) else None
        read = Path(source).read_bytes() if source else b""
        super().__init__(text, f"{module}:{name}", clip, size, hashlib.sha256(read).hexdigest(), {"source": source})
        nets = {id(net): net for net in (*vars(holder).values(), *getattr(found, "__dict__", {}).values(), found)
                if isinstance(net, nn.Module)}
        self.nets = nn.ModuleList(nets.values()).eval().requires_grad_(False)
        self.known = False                    # whether its identity says what it gives
        self.function = [found]               # in a list: a network here would be registered twice

    def encode(self, clips: Tensor) -> Tensor:
        return self.function[0](clips)

    def check(self, length: int, size: int) -> tuple[int, ...]:
        shape = super().check(length, size)
        if not self.known:
            with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                first, second = (self(self.blank(length, size)) for _ in range(2))
            if not torch.allclose(first, second, rtol=1e-3, atol=1e-5, equal_nan=True):
                raise RequestError(f"checkpoint {self.text} gives other features for the same clip every time; put its "
                                   "networks into eval mode")
            # Weights may be out of sight, so what it says of noise is part of what it is, as four numbers of three
            # digits, which rounding on other threads or devices hardly ever changes.
            ways = torch.randn(first.shape[1], 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            self.identity += " ".join(f"{one:.2e}" for one in (first[0].double().cpu() @ ways).tolist())
            self.known = True
        return shape


def told(error: BaseException) -> str:
    """An error of others' code in one line: its type, its text, where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{where}"
