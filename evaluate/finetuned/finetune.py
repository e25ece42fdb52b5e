"""`finetune`: backbone and one linear layer trained on the labels, all layers, then asked with 20 clips x 3 crops
(docs/method.md 1.7).

M test videos, K classes.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from evaluate.features.extract import View, extract
from evaluate.finetuned.classifier import answering
from evaluate.finetuned.job import FINETUNED
from evaluate.finetuned.supervised import check_trainable, train_supervised
from evaluate.folds import Samples
from evaluate.protocol import Figure, Request, Result
from evaluate.recognition import check_classes, recognition
from evaluate.report import pictures
from shared.cli import RequestError, plural
from shared.datasets.catalog import ONE_SIDED
from shared.nn import checkpoint
from shared.pictures import figures
from shared.recipes.preprocessing import read_description
from shared.store.index import Index
from shared.store.place import Place


@dataclass(frozen=True)
class CropsView(View):
    """`View` with `crops` squares of `size` pixels along the longer side instead of the one in the middle."""

    crops: int = 3

    def to_dict(self) -> dict:
        return {**super().to_dict(), "crops": self.crops}

    def crop(self, height: int, width: int) -> tuple[slice, slice]:
        """The band along the longer side that holds all squares."""
        side = self.side(height, width)
        if height > width:
            left = (width - side) // 2
            return slice(height), slice(left, left + side)
        top = (height - side) // 2
        return slice(top, top + side), slice(width)

    def squares(self, height: int, width: int) -> list[tuple[slice, slice, int]]:
        """At the start, in the middle and at the end of the band; those that coincide are one."""
        side, longer = min(height, width), max(height, width)
        firsts = [(longer - side) // 2] if self.crops == 1 else [0, (longer - side) // 2, longer - side]
        firsts, counts = np.unique(firsts, return_counts=True)
        along = [slice(int(first), int(first) + side) for first in firsts]
        return [(part, slice(width), int(count)) if height > width else (slice(height), part, int(count))
                for part, count in zip(along, counts)]


def crops_view(request: Request, view: View) -> CropsView:
    """How the test looks at a video. Raises RequestError for crops that do not fit."""
    settings = request.settings.finetune
    test = CropsView(view.clips, view.geometry, settings.test_size or view.short_edge, view.short_edge, settings.crops)
    if test.size > test.short_edge:
        raise RequestError(f"finetune.test_size is {test.size} px and the short edge {test.short_edge} px; expected "
                           "crops that it holds")
    request.encoder.check_view(test.geometry, test.size)
    return test


def run(request: Request) -> Result | None:
    """Top-1, top-5 (where there are more than five classes), mean over classes of the mean softmax over all views.

    OUT/finetuned.pt is the classifier, for `--checkpoint` too. Raises RequestError for splits that are wrong, videos
    without labels, a test class without training videos, and what `train_supervised` refuses.
    """
    settings, encoder, world = request.settings.finetune, request.encoder, request.world
    check_trainable(encoder)
    view = View.of(request.settings.features, encoder)
    test = crops_view(request, view)
    names, learnt = _check_store(request.store, request.train_split, request.test_split)
    classifier = train_supervised(encoder, request.store, request.train_split, settings, view, request.settings.run,
                                  request.seed, world, request.out)
    found = extract(answering(encoder, classifier), request.store, request.test_split, test, request.settings.run,
                    request.cache, world, "--test-split")
    if not world.main:
        return None
    labelled = found.take(found.labels >= 0)
    scores = np.full((len(labelled), len(names)), -np.inf)
    scores[:, [names.index(name) for name in classifier.classes]] = labelled.vectors
    result = recognition(request.out, names, learnt, labelled.labels, scores)
    path = request.out / FINETUNED
    with checkpoint.well_formed(path):
        state = checkpoint.read(path)
        made, curve = state["provenance"], checkpoint.curve_of(state)
        trained = made["stores"][-1]
        counts = {"train_videos": int(trained["videos"]), "test_videos": len(labelled), "classes": len(learnt),
                  "unlabelled": int(trained["unlabelled"]) + len(found) - len(labelled), "updates": int(made["step"]),
                  "epochs": int(made["epoch"]), "clips_per_video": test.clips, "crops": test.crops,
                  "looped": int(trained["short"]) + found.looped}
        dataset = str(trained["dataset"])
    if found.clips:
        counts |= {"clips_extracted": found.clips, "extraction_s": found.seconds}
    notes = []
    if counts["looped"]:
        short = plural(counts["looped"], "video is", "videos are")
        notes.append(f"{short} shorter than a clip of {view.geometry}; the frames repeat.")
    if dataset in ONE_SIDED and settings.flip is True:
        notes.append(f"Training clips were flipped, and the classes of {dataset} tell left from right; "
                     "--set flip=auto does not flip them.")
    if counts["unlabelled"]:
        bare = plural(counts["unlabelled"], "video without a label is", "videos without a label are")
        notes.append(f"{bare} left out.")
    shown = [_curve(request, curve), *result.figures] if len(curve) > 1 else result.figures
    return dataclasses.replace(result, counts=counts, notes=notes, figures=shown)


def _check_store(store: Place, train: str | None, test: str | None) -> tuple[list[str], np.ndarray]:
    """All classes' names, and those of the training videos; before hours are spent. Raises RequestError."""
    index, names = Index.load(store), list(read_description(store)["classes"])
    samples = [Samples.of_split(index, split, flag) for split, flag in ((train, "--train-split"),
                                                                        (test, "--test-split"))]
    labels = [index.label[one.positions].astype(np.int64) for one in samples]
    return names, check_classes(*labels, names, *(one.name for one in samples))


def _curve(request: Request, curve: list) -> Figure:
    path = request.out / "training.png"
    rows = [{"step": step, "loss": loss, "accuracy": accuracy} for step, loss, accuracy in curve]
    figures.save(pictures.curves_figure(rows), path)
    return Figure(path, f"Fine-tuning, {len(rows):,} updates: loss and accuracy on the training clips; strong lines: "
                        "running means.")
