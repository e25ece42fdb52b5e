"""MaCLR: momentum contrast between a visual and a motion pathway, on the parts of train.moco; by a switch the visual
query is aligned with motion besides, as in MCL (ours: `mcl-maclr`).

A reconstruction (docs/method.md 2): the authors released no pre-training code. docs/maclr.md lists what the abstract
leaves open, our choices and their switches. B queries on this rank, W ranks, K keys in a queue, D = 128.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from shared.clips.views import Views
from shared.nn.backbones import build_backbone
from shared.nn.distributed import World, gather
from shared.nn.layers import Backbone
from shared.recipes.pretraining import Pretraining
from train.moco import SMOOTH, Learner, Queue, momentum_twin, momentum_update
from train.objectives.alignment import motion_alignment
from train.objectives.maclr import PATHWAYS, TERMS, maclr_term, term_heads, term_weights, weighted_sum


class MaCLR(Learner):
    """`query` and `key` are the visual pathway, as in every learner: what is exported and evaluated; `motion_query` and
    `motion_key` the other one, built only where a term asks for it. Each pathway has its queue, both with the same ids.

    make_backbone: called once, for the visual pathway. Raises RequestError as `Learner`, and for an unknown motion
    backbone.
    """

    def __init__(self, make_backbone: Callable[[], Backbone], settings: Pretraining, world: World = World()):
        maclr = settings.maclr
        self.weights = term_weights(settings)
        self.head = {pathway: term_heads(self.weights, pathway, maclr.shared_heads) for pathway in PATHWAYS}
        super().__init__(make_backbone, settings, world)
        self.motion_query = self.motion_key = self.motion_queue = None
        self.queue = self._new_queue("visual")
        if maclr.reads:
            backbone = build_backbone(maclr.motion_backbone, maclr.motion_width, settings.model.bn_eps)
            self.motion_query = self._encoder(backbone, sorted(set(self.head["motion"].values())))
            self.motion_key = momentum_twin(self.motion_query)
            self.motion_queue = self._new_queue("motion")
        self._freeze()

    def _heads(self) -> list[str]:
        return sorted(set(self.head["visual"].values()), reverse=True)           # inter first

    def _new_queue(self, pathway: str) -> Queue:
        contrast, seed = self.settings.contrast, self.settings.optimise.seed + PATHWAYS.index(pathway)
        return Queue(contrast.queue, self.settings.model.dim, seed, parts=max(1, len(self._of(pathway, 1))))

    def _of(self, pathway: str, side: int) -> list[str]:
        """Heads of a pathway's query (side 0) or key encoder (1) that some term reads."""
        return sorted({head for term, head in self.head[pathway].items() if TERMS[term][side] == pathway})

    def _freeze(self) -> None:
        """What no term's query runs through stays as initialised: it would have no gradient."""
        for pathway, encoder in (("visual", self.query), ("motion", self.motion_query)):
            if encoder is None:
                continue
            heads = self._of(pathway, 0)
            for name, head in encoder.heads.items():
                head.requires_grad_(name in heads)
            encoder.backbone.requires_grad_(bool(heads))

    @property
    def notes(self) -> list[str]:
        notes = super().notes
        if self.motion_query is not None and not self._of("motion", 0):
            notes.append("L_vm alone does not train the motion pathway, which stays as initialised: add mv=true")
        return notes

    def forward(self, views: Views, progress: float, epoch: int) -> dict[str, Tensor]:
        """Returns `loss`, with its graph, and detached scalars of this rank: vv, vm, mv, mm (unweighted, those that are
        on), of each `queue_accuracy_` and `in_batch_accuracy_`, those of the first term under the bare names too,
        same_video_negatives (a query), and with alignment what `Learner` logs of it. v2 and v3 take the gradient of the
        similarity of the first term that a visual query has: L_vv's, without it L_vm's.

        Changes the key encoders before they encode, and the queues after the logits are formed. progress
        does not matter.
        """
        contrast, rank = self.settings.contrast, self.world.rank
        (queries, aligned), keys = self._encode_queries(views), self._encode_both_keys(views)
        gathered = {pathway: {name: gather(rows, self.world) for name, rows in named.items()}
                    for pathway, named in keys.items()}
        terms, logs, similarity = {}, {}, None
        for term in self.weights:
            of, against = TERMS[term]
            head = self.head[against][term]
            query, key = queries[of][self.head[of][term]], keys[against][head]
            if of == "visual" and similarity is None:
                similarity = (queries[of].get(SMOOTH, query) * key).sum()     # its head is inter
            own_video = views.ids[:, None] == self._queue(against).ids                       # (B, K)
            terms[term], logs[f"queue_accuracy_{term}"], logs[f"in_batch_accuracy_{term}"] = maclr_term(
                query, key, self._negatives(against, head), gathered[against][head], rank * len(views.ids),
                contrast.temperature, own_video if contrast.exclude_same_video else None)
            logs.setdefault("same_video_negatives", own_video.sum(1).to(views.query.dtype).mean())
        first = next(iter(terms))
        logs |= {name: logs[f"{name}_{first}"] for name in ("queue_accuracy", "in_batch_accuracy")}
        ids = gather(views.ids, self.world)
        for pathway, named in gathered.items():
            self._queue(pathway).enqueue(torch.cat(list(named.values()), 1), ids)
        if self.aligns:
            logs |= motion_alignment(similarity, aligned, views.motion, self.settings.alignment)
            terms["mal"] = logs.pop("mal")
        loss = weighted_sum(terms, self.weights | {"mal": self._alignment_weight(epoch)})
        return {"loss": loss} | {name: value.detach() for name, value in (terms | logs).items()}

    def _negatives(self, pathway: str, head: str) -> Tensor:
        """(K, D): a copy, since the queue changes before the backward pass reads what it was."""
        heads = self._of(pathway, 1)
        return self._queue(pathway).keys.chunk(len(heads), 1)[heads.index(head)].clone()

    def _queue(self, pathway: str) -> Queue:
        return self.queue if pathway == "visual" else self.motion_queue

    def _motion_clips(self, views: Views) -> tuple[Tensor, Tensor]:
        """The motion clips (B, 3, Lm, S, S) of the motion queries and of the motion keys.

        The visual query is clip 1, the visual key clip 2. `same`: so that L_vm and L_mv join what belongs to one clip,
        the motion key is of clip 1 and the motion query of clip 2; `shifted`: the other way round. Either way L_mm
        joins two clips.
        """
        one, two = views.motion_clips
        return (two, one) if self.settings.maclr.pairs == "same" else (one, two)

    def _encode_queries(self, views: Views) -> tuple[dict[str, dict[str, Tensor]], Tensor | None]:
        """Embeddings (B, D) by pathway and head, of the pathways that some term queries, and the visual one's map to
        align."""
        queries, aligned = {}, None
        if heads := self._of("visual", 0):
            alignment = self.settings.alignment
            queries["visual"], aligned = self.query(views.query, heads, alignment.layer, alignment.smooth)
        if heads := self._of("motion", 0):
            queries["motion"] = self.motion_query(self._motion_clips(views)[0], heads)[0]
        return queries, aligned

    @torch.no_grad()
    def _encode_both_keys(self, views: Views) -> dict[str, dict[str, Tensor]]:
        """Embeddings (B, D) by pathway and head, from the key encoders after their update."""
        momentum, keys = self.settings.contrast.momentum, {}
        momentum_update(self.key, self.query, momentum)
        if heads := self._of("visual", 1):
            keys["visual"] = self._encode_key(self.key, views.keys[0], heads, 0)
        if self.motion_key is not None:
            momentum_update(self.motion_key, self.motion_query, momentum)
            if heads := self._of("motion", 1):
                keys["motion"] = self._encode_key(self.motion_key, self._motion_clips(views)[1], heads, 1)
        self._count()
        return keys
