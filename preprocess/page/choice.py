"""Which videos of a store get pictures, and in which order they come."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from preprocess.page.suspects import Suspects
from shared.store.index import Index

FEATURED = 12           # videos of a section, at most, and of a kind of suspicion


def by_class(index: Index, motion: np.ndarray) -> dict[str, list[int]]:
    """Positions by class, largest class first, and in it the typical video first: the one nearest to the class's
    median of motion, then those that divide the rest evenly."""
    members = defaultdict(list)
    for position, name in enumerate(index.class_name):
        members[name].append(position)
    return {name: spread(sorted(members[name], key=lambda one: (motion[one], one)))
            for name in sorted(members, key=lambda name: (-len(members[name]), name))}


def spread(items: Sequence) -> list:
    """The middle one, then the middles of both halves, and so on."""
    out, parts = [], [(0, len(items))]
    for low, high in parts:
        if low < high:
            middle = (low + high) // 2
            out.append(items[middle])
            parts += [(low, middle), (middle + 1, high)]
    return out


def choose(order: Sequence[int], found: Suspects, classes: Sequence[Sequence[int]], most: int) -> list[int]:
    """Positions of the videos that get pictures: the least and the most moving, suspicious ones, then class by class.

    order: all positions by motion. Where few are wanted, at least a third of them are for the classes.
    """
    share = min(FEATURED, most // 12)
    sections = [order[::-1][:share], order[:share], *(kind[:share] for kind in featured(found).values())]
    chosen = dict.fromkeys(position for section in sections for position in section)
    for turn in range(max(map(len, classes), default=0)):
        for members in classes:
            if len(chosen) >= most:
                return list(chosen)[:most]
            if turn < len(members):
                chosen.setdefault(members[turn])
    return list(chosen)[:most]


def featured(found: Suspects) -> dict[str, list[int]]:
    """Positions by kind in the order in which the page shows them: equal videos beside each other."""
    return {**found.kinds, "twin": [position for group in found.twins for position in group]}
