"""What a run's record says of the reports of its packs: counts, workers, and how seconds are spread over videos."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable

from preprocess.task import PackReport

TRACEBACKS = 20      # kept in a record
SLOWEST = 10         # videos named of each stage
FINE = 16            # bins of seconds between a number and its double: 4 % wide
STAGES = ("decode", "flow", "motion", "encode", "write")    # those that people are told of


class Spread:
    """Seconds of a number of videos: how many of them lie in each bin, the sum, and the slowest by name.

    A video of s > 0 seconds is in bin floor(FINE log2 s); bins of several records add up, so quantiles do not need the
    videos themselves.
    """

    def __init__(self):
        self.bins, self.seconds, self.slowest = Counter(), 0.0, []

    def add(self, video: str, seconds: float) -> None:
        self.bins[math.floor(FINE * math.log2(max(seconds, 1e-6)))] += 1
        self.seconds += seconds
        if len(self.slowest) < SLOWEST or seconds > self.slowest[-1][1]:
            self.slowest = _slowest([*self.slowest, (video, round(seconds, 4))])

    def quantile(self, share: float) -> float:
        """Seconds that this share of the videos do not exceed, to 2 %; 0 without videos."""
        left = share * self.bins.total()
        for number, count in sorted(self.bins.items()):
            left -= count
            if left <= 1e-9:
                return 2 ** ((number + 0.5) / FINE)
        return 0.0

    def document(self) -> dict:
        return {"videos": self.bins.total(), "seconds": round(self.seconds, 2), "p50": round(self.quantile(0.5), 4),
                "p95": round(self.quantile(0.95), 4), "slowest": [list(one) for one in self.slowest],
                "bins": {str(number): count for number, count in sorted(self.bins.items())}}

    def join(self, document: dict) -> None:
        """Take in what another run's record says."""
        self.bins.update({int(number): count for number, count in document["bins"].items()})
        self.seconds += document["seconds"]
        self.slowest = _slowest([*self.slowest, *map(tuple, document["slowest"])])


def _slowest(found: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """The slowest of them, each video once."""
    best = {}
    for video, seconds in found:
        best[video] = max(seconds, best.get(video, 0.0))
    return sorted(best.items(), key=lambda one: (-one[1], one[0]))[:SLOWEST]


def spreads(records: Iterable[dict]) -> dict[str, Spread]:
    """By stage, over the videos of all these runs' records."""
    found = defaultdict(Spread)
    for record in records:
        for stage, document in record.get("video_seconds", {}).items():
            found[stage].join(document)
    return dict(found)


class Account:
    """The sums of the reports that `take` is given; memory does not grow with them."""

    def __init__(self):
        self.packs = self.videos = self.frames = self.bytes = 0
        self.stages, self.workers, self.tracebacks = Counter(), {}, []
        self.spreads = defaultdict(Spread)

    def take(self, report: PackReport) -> None:
        self.stages.update(report.seconds)
        self.tracebacks += report.tracebacks[:TRACEBACKS - len(self.tracebacks)]
        for video, seconds in report.video_seconds.items():
            for stage, spent in seconds.items():
                self.spreads[stage].add(video, spent)
        if report.pack:
            self.packs += 1
            self.videos += len(report.videos)
            self.frames += report.frames
            self.bytes += sum(count for count, _ in report.pack.files.values())
        if report.worker:
            worker = self.workers.setdefault(report.worker, {"packs": 0, "videos": 0, "frames": 0, "wall_s": 0.0,
                                                             "memory_mb": [round(report.memory / 1e6)] * 2})
            for key, value in (("packs", 1), ("videos", len(report.videos)), ("frames", report.frames),
                               ("wall_s", report.wall_s)):
                worker[key] += value
            worker["memory_mb"][1] = round(report.memory / 1e6)

    def video_seconds(self) -> dict:
        """CPU seconds a video, by stage."""
        return {stage: spread.document() for stage, spread in sorted(self.spreads.items())}

    def document(self) -> dict:
        """memory_mb: what a worker held for itself after the first pack that is told of, and after the last."""
        workers = {name: worker | {"wall_s": round(worker["wall_s"], 2),
                                   "frames_per_s": round(worker["frames"] / max(worker["wall_s"], 1e-9), 2)}
                   for name, worker in self.workers.items()}
        return {"cpu_seconds": {stage: round(spent, 2) for stage, spent in sorted(self.stages.items())},
                "video_seconds": self.video_seconds(), "workers": workers, "tracebacks": self.tracebacks}
