"""What the overview of a store shows, read from it: the index, every pack's clip tables, the failures."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np

from shared import cli
from shared.cli import Progress
from shared.clips.index import ClipGeometry
from shared.pictures import overview
from shared.store.index import Index, read_failures
from shared.store.object_path import PARALLEL
from shared.store.reader import OpenPack
from shared.store.tables import DROPPED, PackRow

COUNTED = re.compile(r"[\d,]+(?= (good )?frames?\b)|(?<=at frame )[\d,]+")  # reasons alike but for these are one


def store_picture(index: Index, document: dict, geometry: ClipGeometry,
                  visit: Callable[[OpenPack, np.ndarray, np.ndarray], None] | None = None) -> overview.StorePicture:
    """Counts over the index and every pack's clip tables; a dropped video, whose pack still holds it, counts no more.

    visit: is given every pack while it is open, in threads; where its videos stand in the index, and in the pack.
    """
    failures, packs, recipe = read_failures(index.store), index.pack_rows(), document["recipe"]
    scores, medians, sizes, listed = [], [], Counter(), defaultdict(list)
    for position, name in enumerate(index.pack):
        listed[name].append(position)

    def read(row: PackRow) -> tuple[np.ndarray, np.ndarray, str]:
        pack = OpenPack(index.store, row)
        arrays = pack.clip_layouts(geometry)
        positions = np.array(listed[row.pack], np.int64)
        offsets = pack.array(pack.layouts["frame_offset"], row.videos + 1)
        places = np.searchsorted(offsets, index.first_frame[positions], "right") - 1
        bounds = pack.array(arrays["offset"], row.videos + 1)
        score = pack.array(arrays["score"], int(bounds[-1]))
        if visit:
            visit(pack, positions, places)
        pack.close()
        return (np.concatenate([score[:0], *(score[bounds[place]:bounds[place + 1]] for place in places)]),
                pack.array(arrays["median"], row.videos)[places], "{}x{}".format(*pack.frame_size))

    progress = Progress("reading packs", len(packs))
    with ThreadPoolExecutor(PARALLEL) as pool, closing(pool.map(read, packs)) as found:
        for row, (score, median, size) in zip(packs, found):
            scores.append(score)
            medians.append(median)
            sizes[size] += len(listed[row.pack])
            progress.update(len(scores))
    progress.close()
    medians = np.concatenate([*medians, np.zeros(0, np.float32)])
    seconds = float((index.frames / np.where(index.fps > 0, index.fps, np.inf)).sum())
    disk = sum(size for row in packs for size, _ in row.files.values())
    backends = ", ".join(sorted({row.backend for row in packs})) or recipe["flow"]["backend"]
    classes = Counter(name or "unlabelled" for name in index.class_name)
    empty, dropped = len(set(document["classes"]) - classes.keys()), sum(row.stage == DROPPED for row in failures)
    halved = recipe["flow"].get("scale") == 0.5 and recipe["flow"]["preset"] != "half"
    facts = [("videos", f"{len(index):,}"),
             ("failed", f"{len(failures) - dropped:,}" + (f", {dropped:,} dropped" if dropped else "")),
             ("classes", f"{len(document['classes']) - empty:,}" + (f", {empty:,} without videos" if empty else "")),
             ("frames", f"{int(index.frames.sum()):,}"),
             ("duration", cli.duration(seconds)),
             ("packs", f"{len(packs):,}, {cli.size(disk)}"), (f"clips {geometry}", f"{sum(map(len, scores)):,}"),
             ("too short for one", f"{int(np.isnan(medians).sum()):,}"),
             ("flow", f"{recipe['flow']['preset']} preset{' at half size' * halved} on {backends}"),
             ("recipe", document["recipe_hash"]), ("format", str(document["format"]))]
    return overview.StorePicture(
        title=f"{index.store.resolve().name}: dataset {document['dataset']}", facts=facts,
        scores=np.concatenate([*scores, np.zeros(0, np.float32)]), medians=medians[~np.isnan(medians)],
        frames=index.frames, span=geometry.span, sizes=(+sizes).most_common(),
        splits=Counter(s for text in index.split_text for s in text.split(";") if s).most_common(),
        classes=classes.most_common(),
        reasons=Counter(COUNTED.sub("N", row.reason) for row in failures if row.stage != DROPPED).most_common())
