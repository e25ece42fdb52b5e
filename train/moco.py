"""Momentum contrast: encoders, EMA, queue, shuffling and split BN, and the learner that joins them to the objectives.

B queries on this rank, W ranks, K keys in the queue, D = 128, C channels and T'xh'xw' positions of h.
"""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from shared.cli import RequestError, nearest, plural
from shared.clips.views import Views
from shared.nn.distributed import World, exchange, gather
from shared.nn.heads import Projection
from shared.nn.layers import Backbone
from shared.nn.norm import split_batch_norm
from shared.recipes.pretraining import Pretraining
from train.objectives.alignment import aligns, motion_alignment
from train.objectives.seco import in_batch_accuracy, inter_loss, intra_loss, order_loss

MODES = "auto", "shuffle", "split", "none"
SMOOTH = "smooth"       # the inter head's embedding where the last ReLU is smooth


class Queue(nn.Module):
    """The newest K keys of all ranks and the videos that they came from (docs/method.md 1.3); buffers of a checkpoint.

    It starts with random keys of length 1, whose id is -1: they are negatives like all others, of no video.
    parts: embeddings a key, one a head, side by side.
    """

    def __init__(self, size: int, dim: int, seed: int, parts: int = 1):
        super().__init__()
        keys = torch.randn(size, parts, dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("keys", F.normalize(keys, dim=2).flatten(1))        # (K, parts * D)
        self.register_buffer("ids", torch.full((size,), -1))                     # (K,)
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))      # the oldest, next to go

    @torch.no_grad()
    def enqueue(self, keys: Tensor, ids: Tensor) -> None:
        """(n, D) and (n,), the same on every rank, replace the n oldest; wraps at the end. ValueError for n > K."""
        size = len(self.ids)
        if len(keys) > size:
            raise ValueError(f"{len(keys)} keys for a queue of {size}")
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % size     # no wait for the device
        self.keys.index_copy_(0, places, keys)
        self.ids.index_copy_(0, places, ids)
        self.pointer.copy_((self.pointer + len(keys)) % size)


class Encoder(nn.Module):
    """A backbone and its projection heads by name.

    bf16: the backbone's body runs under autocast; tail and heads never do (docs/method.md 1.4).
    """

    def __init__(self, backbone: Backbone, heads: Sequence[str], hidden: int, dim: int, bf16: bool = False):
        super().__init__()
        self.backbone, self.bf16 = backbone, bf16
        self.heads = nn.ModuleDict({name: Projection(backbone.features, hidden, dim) for name in heads})
        self._compiled = None

    def compile_body(self) -> None:
        self._compiled = torch.compile(self.backbone.body, dynamic=False)

    def forward(self, x: Tensor, heads: Sequence[str], layer: str = "conv",
                smooth: float = 0.0) -> tuple[dict[str, Tensor], Tensor]:
        """(B, 3, L, S, S) -> embeddings (B, D) of length 1 by head, and the map (B, C, T', h', w') to align.

        layer: `conv` gives h, before its BN; `output` the block's output, where Eq. 6 degenerates. Both are float32
        (or the input's float64), cast once, so that a gradient can be taken with respect to this very tensor.
        smooth: beta of a softplus; above 0, the inter head's embedding with it in the last ReLU's place is there too,
        under SMOOTH.
        """
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            h, rest = (self._compiled or self.backbone.body)(x)
        with torch.autocast(x.device.type, enabled=False):
            h, rest = h.to(x.dtype), None if rest is None else rest.to(x.dtype)
            summed = self.backbone.summed(h, rest)
            output = torch.relu(summed)

            def embed(name: str, output: Tensor) -> Tensor:
                return F.normalize(self.heads[name](output.mean((2, 3, 4))), dim=1)

            embedded = {name: embed(name, output) for name in heads}
            if smooth:
                embedded[SMOOTH] = embed("inter", F.softplus(summed, smooth, threshold=40))
            return embedded, h if layer == "conv" else output


def momentum_twin(encoder: nn.Module) -> nn.Module:
    """The key encoder: a copy that no gradient reaches."""
    return copy.deepcopy(encoder).requires_grad_(False)


def momentum_update(key: nn.Module, query: nn.Module, momentum: float) -> None:
    """key <- momentum * key + (1 - momentum) * query, every parameter; the running statistics stay the key's own."""
    get_ema_multi_avg_fn(momentum)(list(key.parameters()), list(query.parameters()), None)


def key_order(rows: int, *seed: int) -> Tensor:
    """A permutation (rows,) int64 on the CPU, a pure function of the seed: the same on every rank without a word."""
    return torch.from_numpy(np.random.default_rng(seed).permutation(rows))


class KeyShuffle:
    """Which rows share a BN batch with which: keys never with the companions of their queries (docs/method.md 1.3).

    mode: `shuffle` permutes the keys over all ranks (He et al. 2020, section 3.3), `split` over the groups of this
    rank's batch, whose BN is split, `none` not at all. group: clips that share BN statistics, part of the record.
    note: what a user should know of the choice, or nothing.
    """

    def __init__(self, mode: str, group: int, seed: int, world: World, note: str = ""):
        self.mode, self.group, self.seed, self.world, self.note = mode, group, seed, world, note

    @classmethod
    def choose(cls, mode: str, group: int, batch: int, seed: int, world: World) -> "KeyShuffle":
        """`auto` is `shuffle` over several ranks and `split` on one; group: clips a group where BN is split.

        batch: queries a rank. Raises RequestError for an unknown mode, `shuffle` on one rank, which does nothing, and
        groups of one clip or that do not divide the batch.
        """
        if mode not in MODES:
            raise RequestError(f"contrast.bn is {mode!r}{nearest(mode, MODES)}")
        if mode == "auto":
            mode = "shuffle" if world.size > 1 else "split"
        if mode == "shuffle" and world.size == 1:
            raise RequestError("contrast.bn is shuffle, which does nothing with one process; add --set bn=split "
                               "or --set bn=none")
        if mode != "split":
            return cls(mode, batch, seed, world)
        if group < 2:
            raise RequestError(f"contrast.bn_group is {group}; statistics of one clip say nothing: expected 2 or more")
        if batch % group:
            raise RequestError(f"a batch of {plural(batch, 'clip')} a process is no multiple of contrast.bn_group, "
                               f"which is {group}; set batch or bn_group so that it is")
        note = f"one BN group holds all {batch} of a batch, so permuting the keys hides nothing: set a smaller bn_group"
        return cls(mode, group, seed, world, note if batch == group else "")

    def encode(self, encode: Callable[[Tensor], Tensor], x: Tensor, step: int, number: int) -> Tensor:
        """encode(x) with x (B, ...) among other companions; rows (B, n) in x's order. number: of the key's view."""
        if self.mode == "none":
            return encode(x)
        if self.mode == "split":
            order = key_order(len(x), self.seed, step, number, self.world.rank)
            alone = World(device=self.world.device)
            return exchange(encode(exchange(x, order, alone)), order.argsort(), alone)
        order = key_order(len(x) * self.world.size, self.seed, step, number)
        return exchange(encode(exchange(x, order, self.world)), order.argsort(), self.world)


class Learner(nn.Module):
    """MoCo, SeCo or MCL: `forward(views, progress, epoch)` gives the loss of this rank's queries and what is logged.

    make_backbone: called once; the key encoder is a copy. The whole loss is formed inside `forward`, so that it may be
    wrapped by DistributedDataParallel (broadcast_buffers=False: BN statistics are each rank's own) and needs one
    backward. `shuffle.mode` and `shuffle.group` say how BN is kept from leaking; they belong to a run's record.
    Raises RequestError for settings that contradict one another, the network or the number of ranks.
    """

    def __init__(self, make_backbone: Callable[[], Backbone], settings: Pretraining, world: World = World()):
        super().__init__()
        self.settings, self.world = settings, world
        model, contrast, seed = settings.model, settings.contrast, settings.optimise.seed
        batch, rest = divmod(settings.optimise.batch, world.size)
        if rest or not batch:
            raise RequestError(f"optimise.batch is {settings.optimise.batch}; expected a multiple of the {world.size} "
                               "processes that share it")
        if settings.sampling.keys * settings.optimise.batch > contrast.queue:
            raise RequestError(f"contrast.queue is {contrast.queue}, but every step brings {settings.sampling.keys} x "
                               f"{plural(settings.optimise.batch, 'key')}; add --set "
                               f"queue={settings.sampling.keys * settings.optimise.batch}, or take a smaller batch")
        self.heads = self._heads()
        self.shuffle = KeyShuffle.choose(contrast.bn, contrast.bn_group, batch, seed, world)
        self.aligns = aligns(settings.alignment)
        if self.aligns and self.shuffle.group == 1 and settings.alignment.variant != "v1":
            raise RequestError("one clip shares its BN statistics with no other, which makes every channel weight of "
                               "the alignment zero (docs/method.md 1.4); set a larger batch")
        self.query = self._encoder(make_backbone(), self.heads)
        self.key = momentum_twin(self.query)
        self.classifier = nn.Linear(3 * model.dim, 2) if "order" in self.heads else None
        self.queue = Queue(contrast.queue, model.dim, seed)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))         # forwards so far: seeds the shuffles
        self.forwards = 0       # the same number on the host, where reading it does not wait for the device
        self.register_load_state_dict_post_hook(lambda learner, _: setattr(learner, "forwards", int(learner.step)))

    def _heads(self) -> list[str]:
        """One head a term whose weight is ever above 0; the inter head also makes the queue and the alignment."""
        contrast, heads = self.settings.contrast, ["inter"]
        if contrast.intra > 0:
            heads.append("intra")
        if contrast.order == "epoch" or contrast.order > 0:
            heads.append("order")
        return heads

    def _encoder(self, backbone: Backbone, heads: Sequence[str]) -> Encoder:
        model = self.settings.model
        encoder = Encoder(backbone, heads, model.hidden, model.dim, model.precision == "bf16")
        return split_batch_norm(encoder, self.shuffle.group) if self.shuffle.mode == "split" else encoder

    @property
    def notes(self) -> list[str]:
        """What a user should know of the choices that were made here."""
        return [self.shuffle.note] if self.shuffle.note else []

    def compile(self, part: str = "body") -> None:
        """Compile all encoders' bodies, up to h. Raises RequestError for any other part of the learner."""
        if part != "body":
            raise RequestError(f"compile {part!r}: only 'body' may be compiled; the alignment loss differentiates what "
                               "follows h twice, which torch.compile does not support")
        for encoder in self.modules():
            if isinstance(encoder, Encoder):
                encoder.compile_body()

    def forward(self, views: Views, progress: float, epoch: int) -> dict[str, Tensor]:
        """progress: epoch / epochs, in [0, 1); epoch: counted from 0.

        Returns `loss`, with its graph, and detached scalars of this rank:

        inter, intra, order, mal, mal_st, mal_s, mal_t (unweighted, those that the settings ask for), in_batch_accuracy
        (over the k1 of all ranks), queue_accuracy (over the rows of inter), same_video_negatives (a query), and with
        alignment dead_maps and zero_targets (clips of this rank; `reduce_logs` adds them up over the ranks).
        Changes the key encoder before it encodes, and the queue after the logits are formed.
        """
        contrast = self.settings.contrast
        keys = self._encode_keys(views.keys)
        alignment = self.settings.alignment
        q, aligned = self.query(views.query, self.heads, alignment.layer, alignment.smooth)
        inter_keys = gather(torch.stack([key["inter"] for key in keys], 1), self.world)      # (W * B, P, D)
        own_video = views.ids[:, None] == self.queue.ids                                     # (B, K)
        terms, logs = {}, {"same_video_negatives": own_video.sum(1).to(q["inter"].dtype).mean()}
        # The queue changes below, before the backward pass reads what it was.
        terms["inter"], logs["queue_accuracy"] = inter_loss(
            q["inter"], [key["inter"] for key in keys], self.queue.keys.clone(), contrast.temperature,
            own_video if contrast.exclude_same_video else None)
        logs["in_batch_accuracy"] = in_batch_accuracy(q["inter"], inter_keys[:, 0], self.world.rank * len(views.ids))
        self.queue.enqueue(inter_keys.transpose(0, 1).flatten(0, 1), gather(views.ids, self.world).repeat(len(keys)))
        weights = {"inter": contrast.inter, "intra": contrast.intra, "mal": self._alignment_weight(epoch),
                   "order": progress if contrast.order == "epoch" else contrast.order}
        if "intra" in self.heads:
            same, *others = (key["intra"] for key in keys)
            terms["intra"] = intra_loss(q["intra"], same, others, contrast.temperature)
        if "order" in self.heads:
            triple = torch.cat([q["order"], *(key["order"] for key in keys[1:])], 1)         # (B, 3 * D)
            if contrast.order_input == "unit":
                triple = F.normalize(triple, dim=1)
            terms["order"] = order_loss(self.classifier(triple), views.order)
        if self.aligns:
            similarity = (q[SMOOTH if alignment.smooth else "inter"] * keys[0]["inter"]).sum()
            logs |= motion_alignment(similarity, aligned, views.motion, alignment)
            terms["mal"] = logs.pop("mal")
        loss = sum(weights[name] * term for name, term in terms.items())
        return {"loss": loss} | {name: value.detach() for name, value in (terms | logs).items()}

    @torch.no_grad()
    def _encode_keys(self, views: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Embeddings (B, D) of k1 (and k2, k3) by head, from the key encoder after its update (EMA before the keys)."""
        momentum_update(self.key, self.query, self.settings.contrast.momentum)
        keys = []
        for number, x in enumerate(views):
            heads = [name for name in self.heads if name != "order" or number > 0]
            keys.append(self._encode_key(self.key, x, heads, number))
        self._count()
        return keys

    def _count(self) -> None:
        self.step += 1
        self.forwards += 1

    def _encode_key(self, encoder: Encoder, x: Tensor, heads: Sequence[str], number: int) -> dict[str, Tensor]:
        """Embeddings (B, D) of one key's view by head, its BN among other companions; number: of the view."""
        def encode(x: Tensor) -> Tensor:
            return torch.cat(list(encoder(x, heads)[0].values()), 1)
        rows = self.shuffle.encode(encode, x, self.forwards, number)
        return dict(zip(heads, rows.chunk(len(heads), 1)))

    def _alignment_weight(self, epoch: int) -> float:
        """The setting, doubled in the first `double_epochs` epochs (released code: 5)."""
        settings = self.settings.alignment
        return settings.weight * (2 if epoch < settings.double_epochs else 1)
