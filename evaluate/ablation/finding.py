"""What the rows have shown of motion, where `controls` or `saliency` has asked them: pictures and words."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from evaluate.ablation.plan import SUPERVISED, UNTRAINED, UNTRAINED_MACLR, Run, folder_name
from evaluate.ablation.runs import Ablation
from evaluate.ablation.tables import Scores, column
from evaluate.features.handmade import FrameDifference, MeanImage, MotionHistory
from evaluate.motion import saliency
from evaluate.motion.controls import PROBE
from evaluate.motion.map_pictures import Compared, compared_figure, kept_compared
from evaluate.protocol import Figure
from shared.cli import plural
from shared.pictures import figures
from shared.recipes.pretraining import Pretraining

DENSE, ENERGY, KNN, BACKGROUND = (f"controls {name}" for name in ("dense", "energy", "knn", "background_r@1"))
BARE_WORDS = {UNTRAINED: "random weights", UNTRAINED_MACLR: "random weights of MaCLR's visual pathway",
              SUPERVISED: "trained with labels", MeanImage.name: "what is where, without motion",
              FrameDifference.name: "hand-made motion: mean difference of neighbouring frames",
              MotionHistory.name: "hand-made motion: motion history images"}
CLEAR = 10      # hundredths of a correlation
# Pictures side by side: protocol; its maps in the order in which they are kept, name and metric of each; the picture
# that keeps them, what their motion is called, and what it shows.
SHOWN = (
    ("controls", {"r": "dense"}, PROBE, "true motion",
     "Where it moves in {videos}, spread evenly over all, at the middle of the clip that moves most: a frame, the true "
     "motion, and what a linear probe reads off each row's features, each map over its own range. {rows}. r: mean "
     "correlation with the true motion over the clips of all test videos, a fixed prior taken out. Seed {seed}."),
    ("saliency", {"Grad-CAM": "cam_own_minus_other", "aligned": "aligned_own_minus_other"}, saliency.PICTURE,
     "S-motion", "Where each net looks in {videos}, spread evenly over those that move: the clip's S-motion, Grad-CAM "
     "and the aligned map, each over its own range (black all over: zero everywhere); the frames are in each "
     "evaluation's own report. {rows}. Numbers: mean correlation with the own clip's S-motion less that with other "
     "clips', over all test videos. Seed {seed}."),
)


def sentences(scores: Scores, rows: Sequence[str]) -> list[str]:
    """What was shown and what not; none where fewer than two rows were asked."""
    rows = [row for row in rows if row in scores.values.get(DENSE, {})]
    if len(rows) < 2:
        return []

    def mean(column: str, row: str) -> float:
        return float(np.mean(list(scores.values[column][row].values())))

    def best(column: str) -> str:
        return max(rows, key=lambda row: mean(column, row))

    def correlations(column: str) -> str:
        return ", ".join(f"{row} {mean(column, row) / 100:z.2f}" for row in rows)

    def says_best(column: str) -> str:
        """Whose lead holds in every seed, and on the mean is more than a seed's change."""
        row, values = best(column), scores.values[column]
        leads = [[values[row][seed] - values[other][seed] for seed in values[row] if seed in values[other]]
                 for other in rows if other != row]
        return f"{row} says best" if all(lead and min(lead) > 0 and np.mean(lead) >= CLEAR for lead in leads) else \
            "no row says clearly best"

    where, kinds = best(DENSE), ", ".join(f"{row} {mean(KNN, row):.1f}" for row in rows)
    seeds = "One seed does not show how much this varies. " if len(scores.seeds) == 1 else ""
    return [f"Shown: {says_best(DENSE)} where things move in test videos (correlation with the true motion: "
            f"{correlations(DENSE)}; by chance 0), and {says_best(ENERGY)} which moments of a video move most "
            f"(rank correlation: {correlations(ENERGY)}; by chance 0). Both are read off the features by a linear "
            "probe.",
            f"Not shown: which kind of motion it is (named by the nearest neighbours in {kinds} % of the videos; by "
            f"chance {scores.chance[KNN]:.1f} %), that features leave the background aside (with {where} the nearest "
            f"video shares it in {mean(BACKGROUND, where):.0f} %; by chance {scores.chance[BACKGROUND]:.0f} %), or "
            f"what comes of real videos and long trainings. {seeds}Rows that learn from motion maps are taught "
            "something close to what is asked here."]


def meaning(row: str, recipe: Pretraining) -> str:
    """What a row is, in words."""
    if row in BARE_WORDS:
        return BARE_WORDS[row]
    motion = [words for on, words in (
        (recipe.sampling.ta, "clips chosen by motion"), (recipe.sampling.sa, "crops chosen by motion"),
        (recipe.alignment.variant != "none", "features aligned with motion maps"),
        (recipe.maclr and recipe.maclr.reads, "a second network that sees motion")) if on]
    return ", ".join(["contrast", *motion]) if motion else "contrast alone"


def pictures(ablation: Ablation, scores: Scores, recipes: Mapping[str, Pretraining]) -> list[Figure]:
    """What each row says of test videos, side by side, from the first seed, of every group that is left out; none for a
    single row."""
    made, seed = [], ablation.plan.seeds[0]
    for group in ablation.plan.groups:
        for protocol, maps, stem, motion, says in SHOWN:
            values = {name: scores.values.get(column(protocol, metric, group), {}) for name, metric in maps.items()}
            asked = [row for row, of_seeds in next(iter(values.values())).items() if seed in of_seeds]
            kept = _kept(ablation, protocol, asked, stem, group)
            if len(kept) < 2:
                continue
            first = next(iter(kept.values()))
            clips = [dataclasses.replace(same[0], maps=[same[0].maps[0], *(
                one.maps[place] for place in range(1, 1 + len(maps)) for one in same)]) for same in zip(*kept.values())]
            says_of = [(row, f"{name} {own[row][seed] / 100:z.2f}") for name, own in values.items() for row in kept]
            path = ablation.out / f"{stem if group is None else f'{stem}-{folder_name(group)}'}.png"
            figures.save(compared_figure(clips, motion, says_of), path)
            videos = plural(len(first), "test video") + ("" if group is None else f" of group {group}")
            rows = "; ".join(f"{row}: {meaning(row, recipes[row])}" for row in kept)
            others = [row for row in asked if row not in kept]
            beside = f" Not shown, of other clips or without kept maps: {', '.join(others)}." if others else ""
            made.append(Figure(path, says.format(videos=videos, rows=rows, seed=seed) + beside, wide=False))
    return made


def _kept(ablation: Ablation, protocol: str, rows: Sequence[str], stem: str,
          group: str | None) -> dict[str, list[Compared]]:
    """The clips that each row has kept of its first seed, of rows that were asked of the same clips as the first."""
    kept = {}
    for row in rows:
        run = Run(row, ablation.plan.seeds[0], group)
        for one in ablation.found(run, protocol)["figures"]:
            path = (ablation.result(run, protocol) / one["file"]).with_suffix(".npz")
            if path.stem == stem and path.is_file():            # results of before they were kept have none
                kept[row] = kept_compared(path)
    moved = {row: np.array([one.maps[0] for one in clips]) for row, clips in kept.items()}
    first = next(iter(moved.values()), None)
    return {row: kept[row] for row, motion in moved.items() if motion.shape == first.shape
            and np.allclose(motion, first, rtol=1e-3)}
