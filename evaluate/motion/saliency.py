"""`saliency`: does the network look where something moves? Grad-CAM, aligned map and S-motion (docs/method.md 1.7).

A figure such as this proves nothing by itself: motion mostly lies in the middle of a frame. So every score stands
beside those of one fixed map, the mean S-motion of the training videos, and beside the same map's agreement with the
motion of *other* videos. n clips, h'xw' positions of h.
"""


import numpy as np

from evaluate import metrics
from evaluate.features.encoders import open_encoder
from evaluate.features.extract import View, choose
from evaluate.folds import group_names
from evaluate.motion import map_pictures, maps
from evaluate.motion.maps import ClipMaps, clip_maps
from evaluate.motion.towers import AUTO, open_towers
from evaluate.protocol import Figure, Request, Result, Table
from evaluate.report.words import measure
from shared.cli import RequestError, plural
from shared.pictures import figures
from shared.store.index import Index
from shared.store.reader import StoreReader

PRIOR, AGAINST = "prior", "against"       # what stands beside the result
PICTURE = "saliency"                      # a png, and an npz of the maps in it, without the frames
TRAINED = ("The aligned map is what the alignment loss trains. Its scores on clips that training never saw show that "
           "the alignment generalises, not that the features are better.")


def run(request: Request) -> Result | None:
    """Scores of Grad-CAM (`cam_*`) and of the aligned map (`aligned_*`) on the test split, `prior_*` of the fixed map.

    None on all ranks but rank 0. Raises RequestError for wrong splits, for networks without positions, and where
    nothing moves.
    """
    index, settings = Index.load(request.store), request.settings.saliency
    asked = (request.train_split, "--train-split") if request.leave_out else (request.test_split, "--test-split")
    positions = choose(index, *asked)
    if request.leave_out:
        group_names([index.group[position] for position in positions], request)
    view = View.of(settings, request.encoder)

    def look(encoder, of: str, class_name: str) -> ClipMaps | None:
        return clip_maps(encoder, request.store, positions, view, request.settings.run, request.world, of=of,
                         class_name=class_name, seed=request.seed, cache=request.cache, label=encoder.text)

    against = None
    if request.against:
        against = open_encoder(request.against, request.world.device, request.seed, settings)
        against.check_view(view.geometry, view.size)
        open_towers(against, request.world.device)          # refused before the maps of the other are made
        against.net.h_shape(view.geometry.length, view.size)
    found = look(request.encoder, settings.of, settings.class_name)
    other = look(against, AUTO, "") if against else None
    if not request.world.main:
        return None
    rows = {"Grad-CAM": ("cam", scored(found, found.cam)), "aligned map": ("aligned", scored(found, found.aligned))}
    fixed, learnt = priors(request, index, found, view)
    rows["fixed prior map"] = PRIOR, scored(found, fixed)
    chance = dict(corr=0.0, own_minus_other=0.0)
    chance |= dict.fromkeys(("mass", "pointing"), maps.chance_inside(found.motion, found.hot))
    measured = {f"{short}_{name}": value for short, values in rows.values() for name, value in values.items()
                if (short, name) != (PRIOR, "own_minus_other")}           # 0 for one fixed map, by construction
    beside = {PRIOR: _as_both(rows["fixed prior map"][1])}
    if other is not None:
        both = {"cam": scored(other, other.cam), "aligned": scored(other, other.aligned)}
        beside[AGAINST] = {f"{short}_{name}": value for short, values in both.items() for name, value in values.items()}
        rows |= {f"{title} of {against.text}": (AGAINST, both[short]) for title, short in
                 (("Grad-CAM", "cam"), ("aligned map", "aligned"))}
    rows |= {"S-motion itself": ("", scored(found, found.motion))}
    still = int((~maps.moving(found.motion)).sum())
    counts = {"test_videos": len(positions), "train_videos": learnt, "clips": len(found.ids),
              "clips_per_video": view.clips, "still_clips": still, "rows": found.motion.shape[1],
              "columns": found.motion.shape[2]}
    counts |= {f"dead_{short}": int((values == 0).all((1, 2)).sum()) for short, values in
               (("cam", found.cam), ("aligned", found.aligned))}
    kinds = [measure(f"cam_{name}") for name in chance]
    return Result(
        metrics=measured, chance={name: chance[name.partition("_")[2]] for name in measured}, beside=beside,
        counts=counts, figures=_figures(request, view, found, other, fixed),
        tables=[Table("For comparison", ("map", *(kind.words.partition(": ")[2] for kind in kinds)),
                      [[title, *(kind.say(value) for kind, value in zip(kinds, values.values()))]
                       for title, (short, values) in rows.items() if short in ("", AGAINST)])],
        notes=[*_notes(found, view, still), *(other.notes[:1] if other is not None else ())])


def scored(found: ClipMaps, values: np.ndarray) -> dict[str, float]:
    """`maps.scores` against the clips' own S-motion and its hot positions."""
    return maps.scores(values, found.motion, found.hot, found.ids)


def priors(request: Request, index: Index, found: ClipMaps, view: View) -> tuple[np.ndarray, int]:
    """(n, h', w'): the fixed map beside every clip, of the training split, or of the groups other than its own; and of
    how many videos it is, at most."""
    if not request.leave_out:
        learnt = choose(index, request.train_split, "--train-split")
        motion = maps.motion_maps(request.store, learnt, view, found.motion.shape[1:], request.settings.run,
                                  request.train_split or "all")
        return np.broadcast_to(prior(motion, request.train_split), found.motion.shape), len(learnt)
    group = np.array([index.group[index.position(video)] for video in found.ids])
    fixed, learnt = np.zeros(found.motion.shape), 0
    for name in sorted(set(group.tolist())):
        fixed[group == name] = prior(found.motion[group != name])
        learnt = max(learnt, len(set(np.asarray(found.ids)[group != name].tolist())))
    return fixed, learnt


def prior(motion: np.ndarray, split: str | None = None) -> np.ndarray:
    """(h', w') float64: mean over clips of S-motion, each over its own mean, since magnitudes of different videos are
    not compared (docs/method.md 1.2). motion: (n, h', w') px/frame per px. Raises RequestError where nothing moves."""
    motion = np.asarray(motion, np.float64)[maps.moving(motion)]
    if not len(motion):
        raise RequestError(f"nothing moves in {'the videos' if split is None else f'split {split!r}'}, whose mean "
                           "S-motion is the control; choose another --train-split")
    return (motion / motion.mean((1, 2), keepdims=True)).mean(0)


def _as_both(values: dict[str, float]) -> dict[str, float]:
    return {f"{short}_{name}": value for short in ("cam", "aligned") for name, value in values.items()}


def _notes(found: ClipMaps, view: View, still: int) -> list[str]:
    where = f"{plural(view.clips, 'clip')} of {view.geometry} a video, "
    h, w = found.motion.shape[1:]
    notes = [f"{where}centre crop to {view.size} px; all maps are compared at the network's own {h}x{w} positions.",
             *found.notes, TRAINED,
             "The fixed prior map is the mean S-motion of the training videos, every clip over its own mean."]
    if still:
        notes.append(f"{plural(still, 'clip is', 'clips are')} left out of all scores for want of motion in view.")
    return notes


def _figures(request: Request, view: View, found: ClipMaps, other: ClipMaps | None, fixed: np.ndarray) -> list[Figure]:
    """Fig. 4 of MCL for clips evenly over those that move."""
    moves = np.flatnonzero(maps.moving(found.motion))
    count = min(request.settings.saliency.shown, len(moves))
    if not count:
        return []
    chosen = moves[np.linspace(0, len(moves) - 1, count).round().astype(int)]
    columns = [("Grad-CAM", found.cam), ("aligned map", found.aligned)]
    if other is not None:
        columns += [("Grad-CAM, against", other.cam), ("aligned, against", other.aligned)]
    agreement = [metrics.correlations(values[chosen], _motion(found, other, values)[chosen]) for _, values in columns]
    reader, rows = StoreReader(request.store), []
    for row, clip in enumerate(chosen.tolist()):
        video, (y, x, h, w) = found.ids[clip], found.boxes[clip].tolist()
        frame = reader.frames(video, [int(found.starts[clip])])[0]
        rows.append(map_pictures.Row(
            reader.index.class_name[reader.index.position(video)] or video, frame[y:y + h, x:x + w],
            found.motion[clip], found.hot[clip], [values[clip] for _, values in columns],
            [float(values[row]) for values in agreement], fixed[clip]))
    reader.close()
    path = request.out / f"{PICTURE}.png"
    map_pictures.keep_compared(path.with_suffix(".npz"), [
        map_pictures.Compared(row.title, None, [row.motion, *row.maps[:2]]) for row in rows])
    figures.save(map_pictures.saliency_figure(rows, [title for title, _ in columns]), path)
    beside = f" Against: {request.against}." if other is not None else ""
    return [Figure(path, "First frame, S-motion (outlined: above its 90th percentile), Grad-CAM and aligned map, each "
                         "from its least to its largest value, clips spread evenly over the test split; r: correlation "
                         f"with the clip's S-motion. Last: the fixed prior map.{beside}")]


def _motion(found: ClipMaps, other: ClipMaps | None, values: np.ndarray) -> np.ndarray:
    """S-motion on the grid of `values`."""
    return found.motion if values.shape == found.motion.shape or other is None else other.motion
