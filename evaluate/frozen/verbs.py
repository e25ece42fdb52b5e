"""`verbs`: which verb each of a VidSitu clip's five events shows (docs/method.md 2.4); features frozen or fine-tuned.

N events, C features, K verbs. Accuracy and recall are those of the dataset's own evaluation.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluate.features.encoders import Encoder
from evaluate.features.extract import View, Window, choose, compute
from evaluate.features.vectors import Collected, collect
from evaluate.finetuned.classifier import answering
from evaluate.finetuned.finetune import crops_view
from evaluate.finetuned.supervised import train_supervised
from evaluate.folds import Samples
from evaluate.frozen.softmax import softmax_scores
from evaluate.protocol import Request, Result, Table
from shared.cli import RequestError, plural
from shared.datasets.vidsitu import EVENT_S, EVENTS, read_verbs
from shared.recipes.preprocessing import read_description
from shared.store.index import Index
from shared.store.reader import StoreReader

TOP = 5             # verbs that an answer holds
AGREE = 2           # annotators who must have named a verb for it to count in recall
SHOWN = 100         # rows of the table


@dataclass(frozen=True)
class Events:
    """The events of a split's clips. items (N,) int64: five times the clip's position in the index, plus the event's
    number from 0; verbs: of each, the verb to learn or those that annotators named; silent: clips without verbs."""

    items: np.ndarray
    verbs: list
    silent: int


def run(request: Request) -> Result | None:
    """accuracy@1, accuracy@5 and recall@5 (macro-averaged), right being what the annotators named; a table per verb.

    Chance: what always naming the most frequent verbs of the training events would score. Raises RequestError for
    splits whose clips have no verbs, and where none is named often enough for recall.
    """
    said = read_verbs(request.annotations)
    reader = StoreReader(request.store)
    try:
        index = reader.index
        train = events_of(index, choose(index, request.train_split, "--train-split"), said.learnt)
        test = events_of(index, choose(index, request.test_split, "--test-split"), said.judged)
        counted = _check(request, train, test)
        classes, labels = np.unique(train.verbs, return_inverse=True)
        judge = _finetuned if request.settings.verbs.classifier == "finetune" else _frozen
        scores, counts = judge(request, reader, train, test, classes, labels)
    finally:
        reader.close()
    if not request.world.main:
        return None
    answers = classes[np.argsort(-scores, axis=1, kind="stable")[:, :TOP]]
    usual = classes[np.argsort(-np.bincount(labels), kind="stable")[:TOP]]
    counts |= {"train_events": len(train.verbs), "test_events": len(test.verbs), "verbs": len(classes),
               "verbs_in_recall": len(counted), "clips_without_verbs": train.silent + test.silent}
    metrics, found = score(answers, test.verbs, counted)
    chance, _ = score(np.broadcast_to(usual, (len(test.verbs), len(usual))), test.verbs, counted)
    rows = sorted(((verb, counted[verb], 100 * share) for verb, share in found.items()), key=lambda row: -row[1])
    return Result(metrics, chance, counts=counts,
                  tables=[Table(f"Recall@5 per verb, the {min(SHOWN, len(rows))} most frequent first",
                                ("verb", "events", "recall@5, %"), rows[:SHOWN])], notes=_notes(train, test, classes))


def events_of(index: Index, positions: np.ndarray, verbs: dict[str, Sequence]) -> Events:
    """The five events of every clip at `positions` that `verbs` names."""
    known = [int(position) for position in positions if index.id[position] in verbs]
    items = (np.array(known, np.int64)[:, None] * len(EVENTS) + np.arange(len(EVENTS))).ravel()
    return Events(items, [event for position in known for event in verbs[index.id[position]]],
                  len(positions) - len(known))


def window_of(index: Index, item: int) -> Window:
    """The frames of an event: two seconds, or what the store has of them; where it has nothing the nearest frame."""
    position, number = divmod(item, len(EVENTS))
    frames, fps = int(index.frames[position]), float(index.fps[position])
    first, stop = (round(EVENT_S * (number + more) * fps) - index.file_start(position) for more in (0, 1))
    return position, min(max(first, 0), frames - 1), min(max(stop, 1), frames)


def counted_verbs(named: Sequence[Sequence[str]], least: int) -> dict[str, int]:
    """Verb -> in how many events at least two annotators named it, of those where that is `least` or more."""
    events = Counter(verb for verbs in named for verb, count in Counter(verbs).items() if count >= AGREE)
    return {verb: count for verb, count in events.items() if count >= least}


def score(answers: np.ndarray, named: Sequence[Sequence[str]],
          counted: dict[str, int]) -> tuple[dict[str, float], dict[str, float]]:
    """The metrics in percent, and the recall of every counted verb, a share.

    answers: (N, up to 5) verbs, best first; named: of each event, what its annotators said. accuracy@k: share of events
    of which an annotator named one of the first k; recall@5: the share, of the events in which at least two annotators
    named a verb, whose answer holds it, averaged over the `counted` verbs.
    """
    hits = np.array([[verb in verbs for verb in row] for row, verbs in zip(answers, map(set, named))])
    held = defaultdict(list)
    for row, verbs in zip(answers, named):
        for verb, count in Counter(verbs).items():
            if count >= AGREE and verb in counted:
                held[verb].append(verb in row)
    recall = {verb: float(np.mean(those)) for verb, those in held.items()}
    return {"accuracy@1": 100 * float(hits[:, 0].mean()), "accuracy@5": 100 * float(hits.any(1).mean()),
            "recall@5": 100 * float(np.mean(list(recall.values())))}, recall


def _frozen(request: Request, reader: StoreReader, train: Events, test: Events, classes: np.ndarray,
            labels: np.ndarray) -> tuple[np.ndarray | None, dict]:
    """Scores (N, K) of a linear classifier on frozen features, and counts."""
    view = View.of(request.settings.features, request.encoder)
    parts = [_vectors(request, request.encoder, reader, view, split, events.items) for split, events in
             ((request.train_split, train), (request.test_split, test))]
    if not request.world.main:
        return None, {}
    scores = softmax_scores(parts[0].vectors, labels, parts[1].vectors, request.settings.softmax, False, request.seed,
                            request.world.device)
    return scores, {"features": parts[0].vectors.shape[1], "clips_per_event": view.clips,
                    **_effort(sum(part.clips for part in parts), sum(part.seconds for part in parts))}


def _finetuned(request: Request, reader: StoreReader, train: Events, test: Events, classes: np.ndarray,
               labels: np.ndarray) -> tuple[np.ndarray | None, dict]:
    """Mean probabilities (N, K) of the whole network trained on the events, each a sample, and counts."""
    view = View.of(request.settings.features, request.encoder)
    windows = np.array([window_of(reader.index, item) for item in train.items.tolist()], np.int64)
    samples = Samples(f"the events of split {request.train_split!r}", *windows.T, labels.astype(np.int64),
                      classes.tolist())
    asked = crops_view(request, view)
    classifier = train_supervised(request.encoder, request.store, request.train_split, request.settings.finetune, view,
                                  request.settings.run, request.seed, request.world, request.out, samples)
    found = _vectors(request, answering(request.encoder, classifier), reader, asked, request.test_split, test.items)
    return found.vectors, {"clips_per_event": asked.clips, "crops": asked.crops, **_effort(found.clips, found.seconds)}


def _effort(clips: int, seconds: float) -> dict:
    return {"clips_extracted": clips, "extraction_s": seconds, "clips_per_s": clips / seconds} if clips else {}


def _vectors(request: Request, encoder: Encoder, reader: StoreReader, view: View, split: str,
             items: np.ndarray) -> Collected:
    index, settings = reader.index, request.settings.run
    document = read_description(reader.store)
    key = {"checkpoint": encoder.sha256, "backbone": encoder.net.name, "split": split,
           "setting": {**view.to_dict(), "window": f"{len(EVENTS)} events of {EVENT_S:g} s"},
           "store": {"index": index.generation, "recipe_hash": document["recipe_hash"]}}
    return collect(key, items, encoder.net.features, request.cache, request.world,
                   lambda missing: compute(encoder, reader, missing, view, settings, request.world, split,
                                           lambda item: window_of(index, item)))


def _check(request: Request, train: Events, test: Events) -> dict[str, int]:
    """The verbs that count in recall. Raises RequestError for what cannot be learnt or judged."""
    for events, split, flag, file in ((train, request.train_split, "--train-split", "vseg_ann_files/vsann_*_lb.json"),
                                      (test, request.test_split, "--test-split", "vinfo_files/vinfo_*_lb.json")):
        if not events.verbs:
            raise RequestError(f"{flag} {split!r}: none of its clips ({events.silent:,}) has verbs in {file} of "
                               f"{request.annotations}; the official test clips' verbs are not public, use train and "
                               "val")
    if len(set(train.verbs)) < 2:
        raise RequestError(f"--train-split {request.train_split!r}: all {len(train.verbs)} events show "
                           f"{train.verbs[0]!r}; a classifier needs two verbs")
    least = request.settings.verbs.recall_events
    counted = counted_verbs(test.verbs, least)
    if not counted:
        raise RequestError(f"verbs.recall_events is {least}, but no verb is named by {AGREE} annotators in so many of "
                           f"the {len(test.verbs)} events of {request.test_split!r}; set recall_events lower, 1 counts "
                           "all")
    return counted


def _notes(train: Events, test: Events, classes: np.ndarray) -> list[str]:
    known, notes = set(classes.tolist()), []
    unseen = sum(not known & set(verbs) for verbs in test.verbs)
    if train.silent or test.silent:
        notes.append(f"Left out for want of verbs in the annotations: {plural(train.silent, 'training clip')} and "
                     f"{plural(test.silent, 'test clip')}.")
    if unseen:
        strange = plural(unseen, "test event counts", "test events count")
        notes.append(f"{strange} as wrong for showing only verbs that no training event shows.")
    return notes
