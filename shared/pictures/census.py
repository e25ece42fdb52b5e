"""What the overview of a store shows, read from it: the index, every pack's clip tables, the failures."""

import re
from collections import Counter

import numpy as np

from shared import cli
from shared.cli import Progress
from shared.clips.index import ClipGeometry
from shared.pictures import overview
from shared.store.index import Index, read_failures
from shared.store.reader import OpenPack

COUNTED = re.compile(r"[\d,]+(?= (good )?frames?\b)|(?<=at frame )[\d,]+")  # reasons alike but for these are one


def store_picture(index: Index, document: dict, geometry: ClipGeometry) -> overview.StorePicture:
    """Counts over the index and every pack's clip tables."""
    failures, packs, recipe = read_failures(index.store), index.pack_rows(), document["recipe"]
    scores, medians, sizes, videos = [], [], Counter(), Counter(index.pack)
    progress = Progress("reading clips", len(packs))
    for number, row in enumerate(packs):
        pack = OpenPack(index.store, row)
        arrays = pack.clip_layouts(geometry)
        count = int(pack.array(arrays["offset"], row.videos + 1)[-1])
        scores.append(pack.array(arrays["score"], count))
        medians.append(pack.array(arrays["median"], row.videos))
        sizes["{}x{}".format(*pack.frame_size)] += videos[row.pack]
        pack.close()
        progress.update(number + 1)
    progress.close()
    medians = np.concatenate([*medians, np.zeros(0, np.float32)])
    seconds = float((index.frames / np.where(index.fps > 0, index.fps, np.inf)).sum())
    disk = sum(size for row in packs for size, _ in row.files.values())
    backends = ", ".join(sorted({row.backend for row in packs})) or recipe["flow"]["backend"]
    facts = [("videos", f"{len(index):,}"), ("failed", f"{len(failures):,}"),
             ("classes", f"{len(document['classes']):,}"), ("frames", f"{int(index.frames.sum()):,}"),
             ("duration", cli.duration(seconds)),
             ("packs", f"{len(packs):,}, {cli.size(disk)}"), (f"clips {geometry}", f"{sum(map(len, scores)):,}"),
             ("too short for one", f"{int(np.isnan(medians).sum()):,}"),
             ("flow", f"{recipe['flow']['preset']} preset on {backends}"), ("recipe", document["recipe_hash"]),
             ("format", str(document["format"]))]
    return overview.StorePicture(
        title=f"{index.store.resolve().name}: dataset {document['dataset']}", facts=facts,
        scores=np.concatenate([*scores, np.zeros(0, np.float32)]), medians=medians[~np.isnan(medians)],
        frames=index.frames, span=geometry.span, sizes=sizes.most_common(),
        splits=Counter(s for text in index.split_text for s in text.split(";") if s).most_common(),
        classes=Counter(name or "unlabelled" for name in index.class_name).most_common(),
        reasons=Counter(COUNTED.sub("N", row.reason) for row in failures).most_common())
