"""What `controls` asks of one network: classes and backgrounds by its features, motion and the object by its positions.

V test videos, n clips a video, T'xh'xw' positions of h, P = T'h'w'.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluate import metrics
from evaluate.features.encoders import Encoder
from evaluate.features.extract import View
from evaluate.features.handmade import MeanImage
from evaluate.features.vectors import from_main
from evaluate.folds import Fold, gather_features
from evaluate.frozen.linear import classify
from evaluate.frozen.retrieval import nearest
from evaluate.motion import probes
from evaluate.motion.looks import DEFAULT, Looks, Summary, ask, trials
from evaluate.motion.maps import clip_maps
from evaluate.motion.probes import Motion, motion_probe
from evaluate.motion.truth import Clips, Truth, read_truth, videos_root
from evaluate.protocol import Request
from shared.cli import RequestError
from shared.store.reader import StoreReader

MAPS = "cam", "aligned"


@dataclass(frozen=True)
class Scene:
    """What the truth asks of all methods alike. train, test: positions in the index; ids: of test; probe, look: views
    of the dense probe and of the saliency; taught, asked: truth of the probe's clips of train and of test; cover
    (V, h', w'): share of each position that the object covers over the saliency's clips of test; prior (h', w'): that
    of the training videos."""

    train: np.ndarray
    test: np.ndarray
    ids: Sequence[str]
    probe: View
    look: View
    taught: Truth
    asked: Truth
    cover: np.ndarray
    prior: np.ndarray

    @property
    def object_seen(self) -> np.ndarray:
        """(V,) whether any of the object is in the saliency's view."""
        return self.cover.max((1, 2)) > 0


@dataclass(frozen=True)
class Scores:
    """values: name -> percent; shared (4,): percent of test videos whose nearest other shares background and motion,
    the background alone, the motion alone, neither; said: the dense probe's answer, None for no truth; lookalikes: None
    where no test video has any."""

    values: dict[str, float]
    shared: np.ndarray
    said: Motion | None
    lookalikes: Summary | None = None


def read_scene(request: Request, train: np.ndarray, test: np.ndarray, view: View) -> Scene:
    """The truth beside the videos, read by rank 0. Raises RequestError where it is not there, and for videos that show
    nothing, on every rank."""
    reader = StoreReader(request.store)
    index, settings = reader.index, request.settings.controls
    root = videos_root(request.store, settings.videos, [index.path[i] for i in np.concatenate([train, test])])
    probe, look = dataclasses.replace(view, clips=settings.moments), dataclasses.replace(view, clips=1)
    grid = request.encoder.net.h_shape(view.geometry.length, view.size)[1:]
    taught, asked, seen = from_main([
        read_truth(reader, root, Clips.of(reader, positions, one), grid, request.cache, label)
        for positions, one, label in ((train, probe, "of the training videos"), (test, probe, "of the test videos"),
                                      (test, look, "of the test videos"))]
        if request.world.main else [None] * 3, request.world)
    reader.close()
    scene = Scene(train, test, [index.id[i] for i in test], probe, look, taught, asked, seen.cover.mean((1, 2)),
                  taught.cover.mean((0, 1, 2)))
    check_shown(scene)
    return scene


def check_shown(scene: Scene) -> None:
    """Raises RequestError where no test clip moves, or no two show the object: nothing could be found in them."""
    if not (np.ptp(scene.asked.motion.mean((2, 3, 4)), axis=1) > 0).any():
        raise RequestError("controls: no test video moves more in one clip than in another; make longer videos "
                           "(--set generate.frames=N of preprocess.run), or leave motion out by --set "
                           "controls.truth=false")
    if scene.object_seen.sum() < 2:
        raise RequestError("controls: fewer than two test videos show their object in the view; make more videos, or "
                           "leave the object out by --set controls.truth=false")


def score(request: Request, encoder: Encoder, test: np.ndarray, looks: Looks, scene: Scene | None) -> Scores | None:
    """All scores of one network; None on all ranks but rank 0. test: positions in the index, looks: theirs."""
    found = gather_features(dataclasses.replace(request, encoder=encoder))
    values, shared, said, lookalikes = {}, None, None, None
    if found:
        fold = found.folds[0]
        values, shared = class_scores(_kept_answers(request, fold, test), fold.test.labels, fold.test.groups)
        if next(trials(looks), None) is not None:
            lookalikes = ask(fold.test.vectors, looks, DEFAULT.distractors)
            values |= lookalikes.values
    if scene is not None:
        settings = request.settings
        reader = StoreReader(request.store)
        said = motion_probe(encoder, reader, scene.train, scene.taught.motion, scene.test, scene.probe,
                            settings.controls.ridge, settings.run, request.cache,
                            {"train": request.train_split, "store": {"index": reader.index.generation}}, request.world)
        reader.close()
        maps = None if isinstance(encoder.net, MeanImage) else clip_maps(
            encoder, request.store, scene.test, scene.look, settings.run, request.world, seed=request.seed,
            cache=request.cache, label=encoder.text)
        if said is not None:
            values |= motion_scores(said, scene.taught, scene.asked, scene.ids)
        if maps is not None:
            for name in MAPS:
                values |= object_scores(name, getattr(maps, name), scene)
    return Scores(values, shared, said, lookalikes) if found else None


def _kept_answers(request: Request, fold: Fold, test: np.ndarray) -> np.ndarray:
    """`class_answers`, from the cache or computed: a classifier of 3072 pixels takes half a minute."""
    settings = request.settings
    key = {"answers": 1, "train": fold.train.key, "test": fold.test.key, "linear": dataclasses.asdict(settings.linear),
           "softmax": dataclasses.asdict(settings.softmax), "neighbours": settings.controls.neighbours,
           "seed": request.seed}
    held = request.cache.whole(key, test)
    if held is None:
        rows = class_answers(request, fold)
        held = request.cache.put(key, {int(position): (rows, row) for row, position in enumerate(test)}, test.tolist(),
                                 rows.shape[1])
    return np.asarray(held, np.int64)


def class_answers(request: Request, fold: Fold) -> np.ndarray:
    """(V, 3) int64 of the test videos: the classifier's class, the class that the neighbours among the training videos
    vote for, the row of the nearest other test video."""
    settings = request.settings
    learnt, train = np.unique(fold.train.labels, return_inverse=True)
    scores = classify(request, fold.train, train, fold.test.vectors).scores
    rows, _ = nearest(fold.test.vectors, fold.train.vectors, min(settings.controls.neighbours, len(train)))
    return np.stack([learnt[scores.argmax(1)], learnt[probes.vote(train[rows], len(learnt))],
                     probes.nearest_other(fold.test.vectors)], 1)


def class_scores(answers: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> tuple[dict[str, float], np.ndarray]:
    """linear, knn, background_r@1, motion_r@1 in percent; and `Scores.shared`. labels, groups: of the test videos."""
    linear, voted, other = answers.T
    scenes = np.unique(groups, return_inverse=True)[1]
    background, motion = scenes[other] == scenes, labels[other] == labels
    shared = np.array([(background & motion).mean(), (background & ~motion).mean(), (~background & motion).mean(),
                       (~background & ~motion).mean()])
    values = {"linear": linear == labels, "knn": voted == labels, "background_r@1": background, "motion_r@1": motion}
    return {name: 100 * float(value.mean()) for name, value in values.items()}, 100 * shared


def motion_scores(said: Motion, taught: Truth, asked: Truth, ids: Sequence[str]) -> dict[str, float]:
    """dense, dense_own_other, energy in percent: means over the clips, or videos, whose motion varies."""
    clips = asked.motion.shape[:2]
    flat, true = (np.reshape(values, (clips[0] * clips[1], -1)) for values in (said.dense, asked.motion))
    prior = np.mean(taught.motion, (0, 1), dtype=np.float64).ravel()
    moving = np.ptp(true, axis=1) > 0
    videos = np.repeat(ids, clips[1])[moving]
    own = metrics.correlations(flat[moving], true[moving])
    other = metrics.other_correlations(flat[moving], true[moving], videos)
    return {"dense": 100 * float(np.nanmean(probes.prior_corrected(flat[moving], true[moving], prior))),
            "dense_own_other": 100 * float((own - other).mean()),
            "energy": 100 * float(np.nanmean(probes.spearman(said.energy, asked.motion.mean((2, 3, 4)))))}


def object_scores(name: str, maps: np.ndarray, scene: Scene) -> dict[str, float]:
    """NAME_object, NAME_object_mass, NAME_object_pointing in percent, over the clips that show the object."""
    seen = scene.object_seen
    maps, cover, ids = maps[seen], scene.cover[seen], [one for one, kept in zip(scene.ids, seen) if kept]
    own = metrics.correlations(maps, cover) - metrics.other_correlations(maps, cover, ids)
    values = {"object": own, "object_mass": metrics.mass_inside(maps, cover),
              "object_pointing": metrics.pointing(maps, cover)}
    return {f"{name}_{part}": 100 * float(value.mean()) for part, value in values.items()}
