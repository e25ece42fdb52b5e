"""Fine-tuning on persons at keyframes: the whole network and one layer, through RoIAlign, a sigmoid an action.

B persons of a batch, a clip each; L frames, SxS pixels, C features, K actions.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evaluate.features.extract import View
from evaluate.finetuned.classifier import Classifier
from evaluate.finetuned.job import Job
from evaluate.finetuned.labelled import Cropping, LabelledClips
from evaluate.finetuned.supervised import carry_out, check_batch, flips
from evaluate.folds import Samples
from evaluate.persons.keyframes import KeyframeView, Placed
from evaluate.persons.roi import box_features
from evaluate.protocol import Request
from shared.clips.index import Box
from shared.clips.loader import Batch
from shared.clips.sampling import draw_box
from shared.nn.layers import Backbone
from shared.nn.together import together
from shared.recipes.preprocessing import read_description
from shared.store.place import Place


@dataclass(frozen=True)
class PersonSamples(Samples):
    """Persons; their labels are their rows in `placed`, since each may do several of the classes."""

    placed: Placed = field(kw_only=True)

    @classmethod
    def of(cls, placed: Placed, split: str, actions: tuple[str, ...]) -> "PersonSamples":
        return cls(f"the persons of split {split!r}", placed.position, placed.frame, placed.frame + 1,
                   np.arange(len(placed)), list(actions), placed=placed)

    @property
    def digest(self) -> str:
        return self.placed.digest()


class PersonClips(LabelledClips):
    """The clip about each person's keyframe, cropped at random so that the middle of the person is seen."""

    def __init__(self, store: Place | str, samples: PersonSamples, view: KeyframeView, cropping: Cropping, flip: bool,
                 seed: int):
        super().__init__(store, samples, cropping, flip, seed)
        self.placed, self.view = samples.placed, view

    def numbers(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """(L,) frame numbers; nothing is drawn."""
        store, position = self.videos[number]
        return self.view.frames(int(self.placed.frame[number]), int(self.indexes[store].frames[position]))

    def crop(self, number: int, rng: np.random.Generator) -> Box:
        """A plain random crop, moved no further than it takes to hold the middle of the person's box."""
        height, width = self.frame_size(number)
        box = draw_box(rng, self.sampling, (height, width))
        x1, y1, x2, y2 = self.placed.persons.box[number].clip(0, 1)
        across, down = (min(int((low + high) / 2 * side), side - 1) for low, high, side in
                        ((x1, x2, width), (y1, y2, height)))
        return replace(box, x=min(max(box.x, across - box.w + 1), across), y=min(max(box.y, down - box.h + 1), down))

    def boxes(self, batch: Batch) -> np.ndarray:
        """(B, 4) float32: the persons' boxes in their crops, flipped as the crops are, as shares of them."""
        out = np.empty((len(batch.ids), 4), np.float32)
        for row, number, view in zip(out, batch.ids.tolist(), batch.views[:, 0]):
            height, width = self.frame_size(number)
            y, x, h, w = view["box"].tolist()
            x1, y1, x2, y2 = self.placed.persons.box[number] * (width, height, width, height)
            low, high = (x1 - x) / w, (x2 - x) / w
            row[:] = (1 - high, (y1 - y) / h, 1 - low, (y2 - y) / h) if view["flip"] else \
                (low, (y1 - y) / h, high, (y2 - y) / h)
        return out


class PersonClassifier(Classifier):
    """A classifier of boxes; bins: of RoIAlign, a side."""

    def __init__(self, backbone: Backbone, classes: list[str], bins: int):
        super().__init__(backbone, classes)
        self.bins = bins

    def forward(self, x: Tensor, boxes: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, 3, L, S, S), a box (B, 4) in each -> logits (B, K) float32; keep: (B, C) factors of dropout."""
        features = box_features(self.backbone, x, boxes, torch.arange(len(x), device=x.device), self.bins)
        with torch.autocast(x.device.type, enabled=False):
            return self.head(features if keep is None else features * keep)


@dataclass
class PersonJob(Job):
    """A training whose samples are persons."""

    def build(self, backbone: Backbone) -> PersonClassifier:
        return PersonClassifier(backbone, self.data.classes, self.data.view.bins)

    def backward(self, net: nn.Module, batch: Batch, labels: Tensor, keep: Tensor | None, device) -> dict[str, Tensor]:
        """One forward of the batch and its gradient, added up; accuracy: persons who do what is surest of them."""
        x, boxes = self.clips(batch, device), torch.from_numpy(self.data.boxes(batch)).to(device)
        wanted = torch.from_numpy(self.data.placed.persons.acts[labels[batch.ids].numpy()]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            logits = net(x, boxes, keep).float()
        accumulate = self.settings.accumulate
        loss = F.binary_cross_entropy_with_logits(logits, wanted.float(), reduction="sum") / len(x) / accumulate
        loss.backward()
        right = wanted.gather(1, logits.detach().argmax(1, keepdim=True)).float().mean() / accumulate
        return {"loss": loss.detach(), "accuracy": right}


def train_persons(request: Request, placed: Placed, actions: tuple[str, ...], view: KeyframeView) -> PersonClassifier:
    """The encoder's backbone and a fresh layer, trained on `placed`; in eval mode, on every rank.

    As `train_supervised`, with its settings but for RandAugment, which would move pixels from under the boxes.
    """
    settings = replace(request.settings.finetune, rand_n=0)
    size = view.short_edge
    with together(request.world):
        settings = replace(settings, flip=flips(settings, read_description(request.store)))
        cropping = Cropping(view.geometry, settings.area_min, settings.area_max, settings.aspect_min,
                            settings.aspect_max)
        data = PersonClips(request.store, PersonSamples.of(placed, request.train_split, actions), view, cropping,
                           settings.flip, request.seed)
        check_batch(settings, data, request.world)
        job = PersonJob(request.encoder, data, request.train_split, settings, View(1, view.geometry, size, size),
                        request.seed, min(settings.bn_group, settings.batch // request.world.size))
    return carry_out(job, request.settings.run, request.world, request.out)
