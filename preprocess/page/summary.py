"""What the page opens with: numbers, histograms, and which videos its sections show."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from preprocess.account import STAGES, spreads
from preprocess.page.choice import FEATURED, featured
from preprocess.page.numbers import VideoNumbers
from preprocess.page.stills import TILES
from preprocess.page.suspects import KINDS, Suspects
from shared.pictures.census import COUNTED
from shared.pictures.overview import StorePicture, bins
from shared.store.index import Index
from shared.store.place import Place
from shared.store.record import each_record
from shared.store.tables import FailureRow

LISTED = 200            # failed videos named of one reason, and groups of equal videos


def summarise(index: Index, census: StorePicture, failures: Sequence[FailureRow], found: Suspects,
              numbers: VideoNumbers, classes: dict[str, list[int]], chosen: Sequence[int], shard: int) -> dict:
    """Positions in the index stand for videos; `known`: id and motion of each that a section names."""
    pictured, motion = set(chosen), numbers.motion
    strips = [{"name": name, "count": len(members), "videos": [one for one in members[:TILES] if one in pictured]}
              for name, members in classes.items()]
    kinds = [{"name": name, "title": KINDS[name][0], "why": KINDS[name][1], "count": len(positions),
              "videos": positions[:FEATURED]} for name, positions in featured(found).items()]
    most, least = numbers.order[::-1][:FEATURED], numbers.order[:FEATURED]
    twins = [group[:FEATURED] for group in found.twins[:LISTED]]
    named = dict.fromkeys(position for part in (most, least, chosen, *(kind["videos"] for kind in kinds), *twins)
                          for position in part)
    return {
        "title": census.title, "store": str(index.store), "facts": list(census.facts), "videos": len(index),
        "shard": shard, "span": census.span, "examined": found.examined, "most": most, "least": least,
        "kinds": kinds, "twins": twins, "cut": {str(position): text for position, text in found.reasons.items()},
        "classes": strips, "chosen": list(chosen),
        "known": {str(position): [index.id[position], float(f"{motion[position]:.4g}")] for position in named},
        "failures": reasons([row for row in failures if row.video not in index]),
        "times": times(index.store), "histograms": histograms(census),
        "sizes": list(census.sizes), "splits": list(census.splits),
    }


def times(store: Place) -> list[dict]:
    """CPU seconds a video by stage, as the records of runs tell: half of them, 95 % of them, and the slowest by id."""
    told = spreads(record for _, record in each_record(store) if isinstance(record, dict))
    return [{"stage": stage, "p50": float(f"{spread.quantile(0.5):.3g}"), "p95": float(f"{spread.quantile(0.95):.3g}"),
             "slowest": [[video, float(f"{spent:.3g}")] for video, spent in spread.slowest]}
            for stage in STAGES if (spread := told.get(stage))]


def reasons(failures: Sequence[FailureRow]) -> list[dict]:
    """Failed videos by reason, the commonest first; reasons that differ in a number of frames are one."""
    groups = defaultdict(list)
    for row in failures:
        groups[COUNTED.sub("N", row.reason)].append(row)
    return [{"reason": reason if len(rows) > 1 else rows[0].reason, "count": len(rows),
             "videos": [[row.video, row.reason, row.stage] for row in rows[:LISTED]]}
            for reason, rows in sorted(groups.items(), key=lambda item: -len(item[1]))]


def histograms(census: StorePicture) -> list[dict]:
    """The distributions of the overview, as edges and shares or counts."""
    moving, medians = census.scores[census.scores > 0], census.medians[census.medians > 0]
    out = []
    if len(moving):
        edges, log = bins(moving)
        out.append({"title": "Motion of clips", "unit": "score, px/frame per px", "log": log, "edges": edges.tolist(),
                    "bars": (100 * np.histogram(moving, edges)[0] / len(census.scores)).round(3).tolist(),
                    "line": (100 * np.histogram(medians, edges)[0] / max(len(census.medians), 1)).round(3).tolist(),
                    "of": "share, %", "names": [f"{len(census.scores):,} clips", "medians of videos"]})
    if len(census.frames):
        edges, log = bins(census.frames, census.span)
        out.append({"title": "Length of videos", "unit": "frames", "log": log, "edges": edges.tolist(),
                    "bars": np.histogram(census.frames, edges)[0].tolist(), "mark": census.span, "of": "videos",
                    "names": [f"{len(census.frames):,} videos", f"span of a clip, {census.span} frames"]})
    return out
