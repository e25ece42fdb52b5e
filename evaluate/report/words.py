"""What a metric is called, what it asks and in which unit it is said; and a result as one sentence."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from evaluate.metrics import mean_spread
from shared.cli import plural


@dataclass(frozen=True)
class Measure:
    """words: as a heading; asks: a line on what it asks; share: said in percent, else a number such as a correlation,
    of which metrics.json holds a hundred times."""

    words: str
    asks: str
    share: bool = True

    def number(self, value: float, sign: str = "") -> str:
        """A value of metrics.json without its unit; sign: + shows it always."""
        return f"{value:{sign}z.1f}" if self.share else f"{value / 100:{sign}z.2f}"

    def say(self, value: float) -> str:
        """A value of metrics.json in its unit."""
        return self.number(value) + " %" * self.share

    def mean(self, values: Sequence[float], sign: str = "") -> str:
        """`mean ± sd` of values of metrics.json; of one, itself."""
        mean, spread = mean_spread(values)
        return self.number(mean, sign) + (f" ± {self.number(spread)}" if spread is not None else "")

    def span(self, ends: Sequence[float] | None) -> str | None:
        """An interval in words; None where there is none."""
        return None if ends is None else " to ".join(map(self.number, ends))


PERCENT = Measure("", "")
_MAPS = {"cam": "Grad-CAM", "aligned": "aligned map", "prior": "fixed prior map"}
_SALIENCY = {
    "corr": Measure("correlation with S-motion", "Is it alike to where something moves in its clip? 1 is the same.",
                    False),
    "own_minus_other": Measure("own clip less others", "Is it more alike to its own clip's motion than to that of "
                               "other clips? A habit of looking at the middle gives 0.", False),
    "mass": Measure("share on hot cells", "How much of it lies on the tenth of the cells that move most?"),
    "pointing": Measure("peak on hot cells", "How often is its largest value on one of them?"),
    "object": Measure("own object less others", "Is it more alike to the object of its own clip than to those of other "
                      "videos' clips? Correlation with the object's mask.", False),
    "object_mass": Measure("share on the object", "How much of it lies on the true object?"),
    "object_pointing": Measure("peak on the object", "How often is its largest value there?"),
}
_TAKEN = {"still": "one frame repeated", "shuffled": "frames shuffled", "reversed": "frames in reverse",
          "background_only": "moving cells replaced"}
_OF_TAKEN = {"top1": ("top-1", "How often does the right class score highest?"),
             "r@1": ("R@1", "How often is the nearest training video of the same class?")}
_CHANGED = {"static_look": "another background", "moving_look": "an object with another texture",
            "object": "another object", "view": "another view", "style": "other colours everywhere"}
MEASURES = {
    "top1": Measure("top-1 accuracy", "How often does the right class score highest?"),
    "top5": Measure("top-5 accuracy", "How often is the right class among the five that score highest?"),
    "mean_class": Measure("mean accuracy over classes", "Top-1 accuracy where every class counts the same."),
    "accuracy@1": Measure("accuracy@1", "How often did an annotator name the verb that is put first?"),
    "accuracy@5": Measure("accuracy@5", "How often did an annotator name one of the first five verbs?"),
    "recall@5": Measure("macro recall@5", "How often is a right verb among the first five? Mean over verbs."),
    "map": Measure("frame mAP at IoU 0.5", "Area under precision and recall of every action, mean over actions."),
    "linear": Measure("linear classifier", "How often does it tell the class of motion?"),
    "knn": Measure("nearest neighbours", "How often do they tell the class of motion?"),
    "background_r@1": Measure("nearest video: same background", "How often does the nearest test video have the same "
                              "background? High where features look at the background."),
    "motion_r@1": Measure("nearest video: same motion", "How often does the nearest test video have the same motion?"),
    "dense": Measure("dense motion probe", "Do features tell where something moves? Correlation of a linear probe at "
                     "every position with the true motion there, in a clip, beyond where things move on average.",
                     False),
    "dense_own_other": Measure("dense motion probe, own clip less others", "The same, where things move on average "
                               "left in, less the correlation with clips of other videos.", False),
    "energy": Measure("motion energy", "Do features tell when much moves? Rank correlation over a video's clips.",
                      False),
    "lookalikes": Measure("same motion nearest of look-alikes", "How often is the same motion in another look nearer "
                          "than other motions in the same look? Features of the look alone score below chance."),
    **{f"lookalikes_{name}": Measure(f"same motion nearest: {words}", f"The same, where the positive has {words}.")
       for name, words in _CHANGED.items()},
    "r@1": Measure("R@1", "How often is the nearest training video of the same class?"),
    **{f"r@{k}": Measure(f"R@{k}", f"How often is one of the nearest {k} training videos of the same class?")
       for k in (5, 10, 20)},
    **{f"{variant}_{metric}": Measure(f"{words}, {how}", f"{asks} Of test videos with {how}.")
       for variant, how in _TAKEN.items() for metric, (words, asks) in _OF_TAKEN.items()},
    **{f"{short}_{key}": dataclasses.replace(one, words=f"{name}: {one.words}") for short, name in _MAPS.items()
       for key, one in _SALIENCY.items()},
}
HEADLINES = {"saliency": "cam_own_minus_other", "controls": "dense"}   # elsewhere the first metric
BASELINES = "prior_",                                                  # metrics of fixed maps, beside the checkpoint's


def measure(metric: str) -> Measure:
    """Of a metric of metrics.json; one that is not known is a share under its own name."""
    return MEASURES.get(metric, Measure(metric.replace("_", " "), ""))


def label(protocol: str, metric: str, several: bool) -> str:
    """A metric in words, with its protocol where there are several."""
    return f"{protocol}: {measure(metric).words}" if several else measure(metric).words


def questions(asked: Iterable[tuple[str, str]]) -> list[list[str | None]]:
    """Of each (protocol, metric) its words with its unit, and its line on what it asks."""
    asked = list(asked)
    several = len({protocol for protocol, _ in asked}) > 1
    return [[f"{label(*one, several)}{', %' if measure(one[1]).share else ' (correlation)'}", measure(one[1]).asks or
             None] for one in asked]


def headline(document: Mapping) -> str:
    """Which of a result's metrics the first sentence is about."""
    asked = HEADLINES.get(document["protocol"])
    return asked if asked in document["metrics"] else next(iter(document["metrics"]))


def sentence(document: Mapping) -> str:
    """A result as a reader wants it first: the headline, on how many videos, its interval, and whether that is more
    than chance gives."""
    name = headline(document)
    kind, value, (pairs, runs) = measure(name), document["metrics"][name], pairs_and_runs(document)
    tested, chance = document["counts"].get("test_videos"), document["chance"].get(name)
    interval, spread = document["interval"].get(name), document["spread"].get(name)
    said = f"{kind.words[0].upper()}{kind.words[1:]}: {kind.say(value)}"
    if tested:
        said += f" on {plural(tested, 'test video')}"
    if pairs > 1:
        said += f", the first of {pairs} pairs of splits"
    if runs > 1:
        said += f", mean of {runs} runs"
    if interval:
        low, high = interval
        said += f", 95 % {low:.0f} to {high:.0f}"
        if chance is not None:
            said += (f": above chance, which is {chance:.1f} %" if low > chance else
                     f": below chance, which is {chance:.1f} %" if high < chance else
                     f": not distinguishable from chance, which is {chance:.1f} %")
    elif chance is not None:
        of = f", ± {kind.say(spread)} over the runs" if spread is not None and pairs == 1 else ""
        said += f"{of}; chance is {kind.say(chance)}"
    if pairs > 1 and spread is not None:
        said += f"; mean over all pairs {kind.say(document['mean'][name])} ± {kind.say(spread)}"
    return said + "."


def pairs_and_runs(document: Mapping) -> tuple[int, int]:
    """How many pairs of splits a result has runs of, and how many runs of the first of them, the headline."""
    asked = [(run.get("train_split"), run.get("test_split")) for run in document["runs"]]
    return len(set(asked)), asked.count(asked[0])
