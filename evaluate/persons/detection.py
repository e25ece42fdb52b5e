"""`detection`: what each person does at AVA's keyframes (docs/method.md 2.4): frame mAP at IoU 0.5, person boxes given.

P persons, K actions.
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from evaluate.features.encoders import Encoder, finite, weights_hash
from evaluate.features.extract import choose
from evaluate.features.vectors import Collected, collect, share_out
from evaluate.frozen.softmax import softmax_scores
from evaluate.persons.finetune import train_persons
from evaluate.persons.frame_map import answers_of, average_precisions
from evaluate.persons.keyframes import KeyframeView, Placed, encode_persons, place
from evaluate.persons.pictures import Scene, persons_figure
from evaluate.protocol import Figure, Request, Result, Table
from shared.cli import RequestError, plural
from shared.datasets.ava import Annotations, read_annotations, read_persons
from shared.pictures.figures import save
from shared.recipes.preprocessing import read_description
from shared.store.index import Index
from shared.store.reader import StoreReader

ROWS = 4096     # vectors that go through the layer at once


def run(request: Request) -> Result | None:
    """Frame mAP over the actions that test persons do, a table per action and a figure of keyframes; a sigmoid an
    action, learnt from the training persons' boxes.

    Chance, for annotated boxes: what a random order scores, the mean share of persons who do an action times the share
    of answers that are kept. Raises RequestError for splits without persons and annotations that are wrong.
    """
    settings = request.settings.detection
    view = KeyframeView.of(settings, request.encoder)
    said = read_annotations(request.annotations)
    reader = StoreReader(request.store)
    try:
        train, truth = (_persons(request, reader.index, said, split, flag) for split, flag in
                        ((request.train_split, "--train-split"), (request.test_split, "--test-split")))
        asked, ignored = _given(request, reader.index, said) if settings.boxes else (truth, None)
        learnt, asked = train.take(train.within), asked.take(asked.within)
        if not len(learnt) or not len(asked):
            raise RequestError(f"no person of split {request.test_split if len(learnt) else request.train_split!r} "
                               "stands at a keyframe within its video; check detection.start_s")
        judge = _finetuned if settings.classifier == "finetune" else _frozen
        logits, counts = judge(request, reader, view, said.actions, learnt, asked)
        if not request.world.main:
            return None
        scores = torch.from_numpy(logits).double().sigmoid().numpy()
        figures = _figures(request, reader, said, asked, scores)
    finally:
        reader.close()
    answers = answers_of(_keyframes(asked), asked.persons.box, scores, settings.kept)
    precisions = average_precisions(answers, _keyframes(truth), truth.persons.box, truth.persons.acts, settings.iou)
    doing = truth.persons.acts.sum(0)
    shown = sorted(np.flatnonzero(doing), key=lambda action: precisions[action])
    counts |= {"train_persons": len(learnt), "test_persons": len(asked), "true_persons": len(truth),
               "train_keyframes": len(np.unique(_keyframes(learnt))),
               "test_keyframes": len(np.unique(_keyframes(asked))), "actions": len(said.actions),
               "actions_scored": len(shown), "excluded_seconds": len(said.excluded)}
    counts |= {} if ignored is None else {"boxes_ignored": ignored}
    rows = [(said.actions[action], int(train.persons.acts[:, action].sum()), int(doing[action]),
             100 * float(precisions[action])) for action in shown]
    chance = float(np.mean(doing[shown] / len(truth))) * len(answers.score) / scores.size
    return Result({"map": 100 * float(np.nanmean(precisions))}, {} if settings.boxes else {"map": 100 * chance},
                  counts=counts, figures=figures,
                  tables=[Table("Average precision per action, hardest first",
                                ("action", "training persons", "test persons", "AP, %"), rows)],
                  notes=_notes(reader.index, said, train, truth))


def _persons(request: Request, index: Index, said: Annotations, split: str, flag: str) -> Placed:
    """The split's annotated persons. Raises RequestError where there is none, or none does what counts."""
    placed = place(index, choose(index, split, flag), said.persons, request.settings.detection.start_s)
    if not placed.persons.acts.any():
        raise RequestError(f"{flag} {split!r}: no person of its videos does one of the {len(said.actions)} actions in "
                           f"{request.annotations}; the official CSVs annotate train and val")
    return placed


def _given(request: Request, index: Index, said: Annotations) -> tuple[Placed, int]:
    """A detector's boxes of the test split that are sure enough, at keyframes that somebody annotated; and how many
    stand at others, where nobody can say whether they are right (docs/method.md 2.4)."""
    settings = request.settings.detection
    file = next((path for path in (request.annotations / settings.boxes, Path(settings.boxes)) if path.is_file()), None)
    if file is None:
        raise RequestError(f"detection.boxes is {settings.boxes!r}, which is no file, nor one in "
                           f"{request.annotations}; expected a CSV of video, second, x1, y1, x2, y2, (empty), score")
    boxes = read_persons(file, {}, scored=True)
    boxes = boxes.take(boxes.score >= settings.box_score)
    positions, judged = choose(index, request.test_split, "--test-split"), boxes.at(said.keyframes)
    videos = {index.id[position] for position in positions}
    ignored = sum(video in videos for video, there in zip(boxes.video, judged) if not there)
    return place(index, positions, boxes.take(judged), settings.start_s), ignored


def _keyframes(placed: Placed) -> np.ndarray:
    """(P,) int64: a number a keyframe, the same in all that is placed in one index."""
    return placed.position * 1_000_000 + placed.persons.second


def _frozen(request: Request, reader: StoreReader, view: KeyframeView, actions: tuple[str, ...], learnt: Placed,
            asked: Placed) -> tuple[np.ndarray | None, dict]:
    """Logits (P, K) of a linear layer on frozen features, and counts."""
    parts = [_features(request, request.encoder, reader, view, split, placed) for split, placed in
             ((request.train_split, learnt), (request.test_split, asked))]
    if not request.world.main:
        return None, {}
    logits = softmax_scores(parts[0].vectors, learnt.persons.acts, parts[1].vectors, request.settings.softmax, False,
                            request.seed, request.world.device)
    return logits, _effort(sum(part.clips for part in parts), sum(part.seconds for part in parts))


@torch.no_grad()
def _finetuned(request: Request, reader: StoreReader, view: KeyframeView, actions: tuple[str, ...], learnt: Placed,
               asked: Placed) -> tuple[np.ndarray | None, dict]:
    """Logits (P, K) of the whole network trained on the persons, and counts."""
    with torch.enable_grad():
        classifier = train_persons(request, learnt, actions, view)
    encoder = dataclasses.replace(request.encoder, net=classifier.backbone, sha256=weights_hash(classifier))
    found = _features(request, encoder, reader, view, request.test_split, asked)
    if not request.world.main:
        return None, {}
    head = classifier.head.cpu()
    logits = [head(torch.from_numpy(np.array(found.vectors[first:first + ROWS])))
              for first in range(0, len(found.vectors), ROWS)]
    return torch.cat(logits).numpy(), _effort(found.clips, found.seconds)


def _effort(persons: int, seconds: float) -> dict:
    if not persons:
        return {}
    return {"persons_extracted": persons, "extraction_s": seconds, "persons_per_s": persons / seconds}


def _figures(request: Request, reader: StoreReader, said: Annotations, asked: Placed,
             scores: np.ndarray) -> list[Figure]:
    """Keyframes evenly over the test persons, with what was said of them."""
    keyframes = np.unique(_keyframes(asked))
    count = min(request.settings.detection.shown, len(keyframes))
    if not count:
        return []
    scenes = []
    for keyframe in keyframes[np.linspace(0, len(keyframes) - 1, count).round().astype(int)]:
        rows = np.flatnonzero(_keyframes(asked) == keyframe)
        frame = reader.frames(reader.index.id[asked.position[rows[0]]], [int(asked.frame[rows[0]])])[0]
        scenes.append(Scene(frame, asked.persons.box[rows],
                            [[said.actions[action] for action in np.flatnonzero(asked.persons.acts[row])]
                             for row in rows] if asked.persons.acts.shape[1] else None,
                            [[(said.actions[action], float(scores[row, action])) for action in np.argsort(-scores[row])]
                             for row in rows]))
    path = request.out / "persons.png"
    save(persons_figure(scenes), path)
    return [Figure(path, "Keyframes spread evenly over the test persons: each person's surest answers in percent, and "
                         "what the annotations say.")]


def _features(request: Request, encoder: Encoder, reader: StoreReader, view: KeyframeView, split: str,
              placed: Placed) -> Collected:
    document = read_description(reader.store)
    key = {"checkpoint": encoder.sha256, "backbone": encoder.net.name, "split": split,
           "setting": {**view.to_dict(), "boxes": placed.digest()},
           "store": {"index": reader.index.generation, "recipe_hash": document["recipe_hash"]}}

    def encode(rows: np.ndarray):
        return encode_persons(encoder, reader, placed, rows, view, request.settings.run, request.world)

    return collect(key, np.arange(len(placed)), encoder.net.features, request.cache, request.world,
                   lambda missing: finite(encoder, share_out(missing, encoder.net.features, encode, lambda row: 1,
                                                             request.world, split),
                                          lambda row: reader.index.id[int(placed.position[row])]))


def _notes(index: Index, said: Annotations, train: Placed, truth: Placed) -> list[str]:
    notes = []
    videos = set(said.persons.video)
    absent = sum(video not in index for video in videos)
    if absent:
        notes.append(f"The store lacks {plural(absent, 'annotated video')} of {len(videos):,}; "
                     "the score is the others'.")
    for name, placed in (("training", train), ("test", truth)):
        if not placed.within.all():
            beyond = plural(int((~placed.within).sum()), f"{name} person stands", f"{name} persons stand")
            notes.append(f"{beyond} at keyframes beyond the video's end: "
                         + ("left out." if name == "training" else "they count as not found."))
    if train.cut or truth.cut:
        cut = plural(train.cut + truth.cut, "video begins", "videos begin")
        notes.append(f"{cut} at second 900 of the movie, as the length has it.")
    return notes
