"""`retrieval`: test videos ask training videos by cosine, without any training (docs/method.md 1.7): R@1, 5, 10, 20.

Q queries, G gallery videos, C features, k neighbours.
"""

import numpy as np

from evaluate import metrics
from evaluate.folds import gather_features
from evaluate.protocol import Figure, Request, Result, Table
from evaluate.report import pictures
from shared.cli import Progress, RequestError
from shared.pictures import figures
from shared.store.index import Index
from shared.store.reader import StoreReader

KS = (1, 5, 10, 20)
NEIGHBOURS = 5        # in the figure


def run(request: Request) -> Result | None:
    """R@k over all queries, a figure of queries with their neighbours, a table per class.

    A k beyond the gallery is left out. Raises RequestError for splits that are wrong and videos without labels.
    """
    found = gather_features(request)
    if found is None:
        return None
    smallest = min(len(fold.train) for fold in found.folds)
    ks = [k for k in KS if k <= smallest]
    if not ks:
        raise RequestError(f"{found.folds[0].train_name} holds no labelled video to find; choose another --train-split")
    labels, answers, shown, chance = [], [], [], dict.fromkeys(ks, 0.0)
    for fold in found.folds:
        rows, scores = nearest(fold.test.vectors, fold.train.vectors, max(ks), request.settings.retrieval.block)
        labels.append(fold.test.labels)
        answers.append(fold.train.labels[rows])
        shown += [(fold.test.ids[q], [fold.train.ids[g] for g in rows[q, :NEIGHBOURS]], scores[q, :NEIGHBOURS])
                  for q in range(len(fold.test))]
        for k in ks:
            chance[k] += metrics.chance_recall(fold.test.labels, fold.train.labels, k) * len(fold.test)
    labels, answers = np.concatenate(labels), np.concatenate(answers)
    recall = metrics.recall_at(labels, answers, ks)
    present = np.unique(labels)
    table = [(found.classes[i], int((labels == i).sum()),
              *(100 * share for share in metrics.recall_at(labels[labels == i], answers[labels == i], ks).values()))
             for i in present]
    return Result(
        metrics={f"r@{k}": 100 * share for k, share in recall.items()},
        chance={f"r@{k}": 100 * share / len(labels) for k, share in chance.items()},
        trials={f"r@{k}": len(labels) for k in ks}, tested=[video for fold in found.folds for video in fold.test.ids],
        right={f"r@{k}": (answers[:, :k] == labels[:, None]).any(1) for k in ks},
        counts=dict(found.counts), figures=_figures(request, shown),
        tables=[Table("Per class, hardest first", ("class", "queries", *(f"R@{k}, %" for k in ks)),
                      sorted(table, key=lambda row: row[2]))], notes=found.notes)


def nearest(queries: np.ndarray, gallery: np.ndarray, k: int, block: int = 2048) -> tuple[np.ndarray, np.ndarray]:
    """Exact cosine neighbours: (Q, k) rows of the gallery, nearest first, equals by row; (Q, k) float32 cosines.

    queries (Q, C), gallery (G, C): float, arrays or memory maps. At most `block` of either are in memory at once, and
    block x block similarities. A vector of zeros is similar to nothing (0). Raises ValueError for k > G.
    """
    if not 1 <= k <= len(gallery):
        raise ValueError(f"{k} neighbours among {len(gallery)} vectors")
    rows, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    progress = Progress("neighbours", -(-len(queries) // block))
    for first in range(0, len(queries), block):
        asked = unit(queries[first:first + block])
        best, at = np.empty((len(asked), 0), np.float32), np.empty((len(asked), 0), np.int64)
        for start in range(0, len(gallery), block):
            found = asked @ unit(gallery[start:start + block]).T
            some = np.broadcast_to(np.arange(start, start + found.shape[1]), found.shape)
            best, at = _best(np.concatenate([best, found], 1), np.concatenate([at, some], 1), k)
        rows[first:first + block], scores[first:first + block] = at, best
        progress.update(first // block + 1)
    progress.close()
    return rows, scores


def _best(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of every line, largest first, equals by row."""
    if scores.shape[1] > k:
        # Equals at the edge of the partition are kept apart by their row: the smaller ones stay.
        edge = np.partition(scores, scores.shape[1] - k, axis=1)[:, -k, None]
        sure, equal = scores > edge, scores == edge
        open_places = k - sure.sum(1, keepdims=True)
        chosen = sure | equal & (np.cumsum(equal, 1) <= open_places)
        scores, rows = scores[chosen].reshape(-1, k), rows[chosen].reshape(-1, k)
    order = np.lexsort((rows, -scores))
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def unit(vectors: np.ndarray) -> np.ndarray:
    """(n, C) float32 of length 1; zeros stay."""
    vectors = np.array(vectors, np.float64)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0).astype(np.float32)


def _figures(request: Request, shown) -> list[Figure]:
    """Queries evenly over all, each with its nearest: the middle frame of each video."""
    count = min(request.settings.retrieval.shown, len(shown))
    if not count:
        return []
    reader = StoreReader(request.store)
    index = reader.index
    chosen = [shown[i] for i in np.linspace(0, len(shown) - 1, count).round().astype(int)]
    rows = []
    for query, neighbours, scores in chosen:
        rows.append((_tile(reader, index, query), [_tile(reader, index, one) for one in neighbours], scores))
    reader.close()
    path = request.out / "neighbours.png"
    figures.save(pictures.neighbours_figure(rows), path)
    return [Figure(path, "Queries, spread evenly over the test videos (left), and their nearest neighbours with the "
                         "cosine; framed green where the class is the query's, red where not.")]


def _tile(reader: StoreReader, index: Index, video: str) -> pictures.Tile:
    place = index.position(video)
    frame = reader.frames(video, [int(index.frames[place]) // 2])[0]
    return pictures.Tile(frame, index.class_name[place], int(index.label[place]))
