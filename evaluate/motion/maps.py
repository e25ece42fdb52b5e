"""Where a network looks, clip by clip, beside where something moves: Grad-CAM, aligned map and S-motion on one grid.

n clips of L frames, HxW pixels of a stored frame, h'xw' positions of h. docs/method.md 1.4, 1.7.
"""

import copy
import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evaluate import metrics
from evaluate.features.cache import FeatureCache
from evaluate.features.encoders import Encoder, refuse_features
from evaluate.features.extract import View
from evaluate.features.foreign import Foreign
from evaluate.features.vectors import from_main, in_order
from evaluate.motion.towers import AUTO, Towers, open_towers
from evaluate.settings import RunEvaluation
from shared.cli import Progress, RequestError, plural
from shared.clips.index import hot_mask
from shared.clips.resampling import resize
from shared.clips.sampling import VIEW, draw_augment, draw_box, generator
from shared.clips.views import augment, motion_target
from shared.nn.distributed import World, gather
from shared.nn.layers import Backbone
from shared.recipes.preprocessing import read_description
from shared.saliency import aligned_map, differentiate, grad_cam
from shared.store.place import Place
from shared.store.reader import StoreReader

FORMAT = 1        # of the cached maps: another formula, another number
BOX = 4           # numbers of a box, before the three maps in a cached row


@dataclass(frozen=True)
class ClipMaps:
    """Maps of n clips, in the order of their videos.

    ids: n of the videos; numbers (n, L) int64: each clip's frames; boxes (n, 4) int64: y, x, height, width of what is
    seen, pixels of the stored frame; cam, aligned (n, h', w') float32 >= 0, of any scale: Grad-CAM and the aligned map,
    pooled over time; motion (n, h', w') float32: S-motion, px/frame per px; hot (n, h', w') bool: its positions above
    the 90th percentile; notes: how they were made, for the report.
    """

    ids: Sequence[str]
    numbers: np.ndarray
    boxes: np.ndarray
    cam: np.ndarray
    aligned: np.ndarray
    motion: np.ndarray
    hot: np.ndarray
    notes: Sequence[str] = ()

    @property
    def starts(self) -> np.ndarray:
        return self.numbers[:, 0]


@dataclass(frozen=True)
class Shown:
    """A clip as it was read. seen, other: crops (L, h, w, 3) uint8, of the query and of its key; view, of_key:
    `sampling.VIEW`, what becomes of either; motion (L, H/8, W/8) float16 ST-motion of the whole frame."""

    seen: np.ndarray
    other: np.ndarray
    view: np.ndarray
    of_key: np.ndarray
    motion: np.ndarray


def clip_maps(encoder: Encoder, store: Place | str, positions: np.ndarray, view: View, run: RunEvaluation, world: World,
              *, of: str = AUTO, class_name: str = "", seed: int = 0, cache: FeatureCache | None = None,
              label: str = "") -> ClipMaps | None:
    """The maps of `view.clips` clips of every video; None on all ranks but rank 0.

    The query is the clip in the centre crop, without colours; its key the same clip in another crop and other colours,
    drawn by the recorded laws from (seed, video, clip), never around the motion, which would give it away. Grad-CAM is
    taken in eval mode. The aligned map is v3 (Eq. 6) as it was trained: BN takes the statistics of groups of clips of
    the recorded size, queries together and keys among others; a seeded permutation of all clips makes the groups, so
    the same videos and seed give the same maps. Where clips are too few the last group borrows from the first.
    positions: in the index; of, class_name: as `open_towers`; cache: where maps are looked up and kept.
    Raises RequestError for what has no maps, and for fewer than two clips, whose aligned map would be zero.
    """
    reader = StoreReader(store)
    index, document = reader.index, read_description(reader.store)
    clips = [(int(position), numbers) for position in positions for numbers in clip_numbers(view, index, position)]
    if len(clips) < 2:
        raise RequestError(f"{len(clips)} clip of {label or store}; the aligned map takes its BN statistics over two "
                           "clips or more: choose a split with more videos, or set saliency.clips")
    towers = open_towers(encoder, world.device, of, class_name)
    towers = dataclasses.replace(towers, group=min(towers.group, len(clips)))
    cells = encoder.net.h_shape(view.geometry.length, view.size)[2:]
    key = {"maps": FORMAT, "checkpoint": encoder.sha256, "backbone": encoder.net.name, "setting": view.to_dict(),
           "of": of, "class": class_name, "seed": seed, "videos": _digest(positions),
           "store": {"index": index.generation, "recipe_hash": document["recipe_hash"]}}
    rows = cache.whole(key, positions) if world.main and cache else None
    if not from_main(rows is not None, world):
        try:
            rows = _compute(towers, reader, clips, view, cells, run, world, seed, label)
        finally:
            reader.close()
        wrong = ~np.isfinite(rows).all(1)
        if wrong.any():
            refuse_features(encoder, index.id[clips[int(wrong.argmax())][0]], "maps")
        if cache and world.main:
            known = {int(position): (rows.reshape(len(positions), -1), row) for row, position in enumerate(positions)}
            cache.put(key, known, positions.tolist(), rows.size // len(positions))
    if not world.main:
        return None
    rows = np.asarray(rows, np.float32).reshape(len(clips), -1)
    cam, aligned, motion = rows[:, BOX:].reshape(len(clips), 3, *cells).transpose(1, 0, 2, 3)
    notes = [towers.note, "The aligned map is taken in eval mode: batch statistics mean nothing to a network of others."
             if isinstance(encoder.net, Foreign) else
             f"The aligned map takes BN statistics over groups of {towers.group} clips, as in training."]
    return ClipMaps([index.id[position] for position, _ in clips], np.stack([numbers for _, numbers in clips]),
                    rows[:, :BOX].astype(np.int64), cam, aligned, motion, hot_masks(motion), notes)


def clip_numbers(view: View, index, position: int) -> np.ndarray:
    """(clips, L) int64 frames of the view's clips of a video; one that stands for several stands as often."""
    distinct, places, weights = view.frames(int(index.frames[position]))
    return np.repeat(distinct[places], weights, axis=0)


def _digest(positions: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(positions, np.int64).tobytes()).hexdigest()[:16]


def _compute(towers: Towers, reader: StoreReader, clips: Sequence[tuple[int, np.ndarray]], view: View,
             cells: tuple[int, int], run: RunEvaluation, world: World, seed: int, label: str) -> np.ndarray:
    """(n, BOX + 3 h'w') float32 on every rank: box, Grad-CAM, aligned map, S-motion of every clip.

    Work goes out in parts of two groups: their queries stay in their groups, their keys change places.
    """
    order = generator(seed).permutation(len(clips))
    size = min(2, -(-len(clips) // towers.group)) * towers.group
    parts = [order[first:first + size] for first in range(0, len(clips), size)]
    mine = parts[world.rank::world.size]
    items = [clips[i] + (seed,) for part in mine for i in np.resize(np.concatenate([part, order]), size)]
    read = in_order(reader, items, lambda reader, item: read_clip(reader, view, towers, *item), run)
    train = copy.deepcopy(towers.query).train(), copy.deepcopy(towers.key).train()
    found = torch.zeros(len(clips), BOX + 3 * cells[0] * cells[1], device=world.device)
    progress = Progress(f"maps {label}", len(parts)) if world.main else None
    try:
        for number, part in enumerate(mine):
            shown = [next(read) for _ in range(size)]
            maps = part_maps(towers, train, shown, view.size, cells, run.batch, world.device)
            boxes = torch.from_numpy(np.stack([one.view["box"] for one in shown])).to(maps)
            found[torch.from_numpy(part).to(world.device)] = torch.cat([boxes, maps.flatten(1)], 1)[:len(part)]
            if progress:
                progress.update(min((number + 1) * world.size, len(parts)))
    finally:
        read.close()
        if progress:
            progress.close(text=plural(len(clips), "clip"))
    return gather(found, world).view(world.size, *found.shape).sum(0).cpu().numpy()


def read_clip(reader: StoreReader, view: View, towers: Towers, position: int, numbers: np.ndarray, seed: int) -> Shown:
    """One clip with its motion and the crop of its key, a pure function of (seed, video, first frame)."""
    video = reader.index.id[position]
    frames = reader.frames(video, numbers)
    height, width = frames.shape[1:3]
    seen, of_key = centre(view, height, width), np.zeros((), VIEW)
    seen["factors"] = 1, 1, 1, 0
    rng = generator(seed, position, int(numbers[0]))
    box = draw_box(rng, dataclasses.replace(towers.sampling, sa=False), (height, width))
    of_key["box"] = box.y, box.x, box.h, box.w
    draw_augment(rng, towers.augment, of_key)
    low = int(numbers.min())
    return Shown(np.ascontiguousarray(frames[:, *view.crop(height, width)]),
                 np.ascontiguousarray(frames[:, box.y:box.y + box.h, box.x:box.x + box.w]), seen, of_key,
                 reader.motion(video, low, int(numbers.max()) + 1)[numbers - low])


def centre(view: View, height: int, width: int) -> np.ndarray:
    """() of `sampling.VIEW`: the box of the view's crop of a stored frame, pixels."""
    seen = np.zeros((), VIEW)
    rows, columns = view.crop(height, width)
    seen["box"] = rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start
    return seen


def part_maps(towers: Towers, train: tuple[Backbone, Backbone], shown: Sequence[Shown], size: int,
              cells: tuple[int, int], batch: int, device: torch.device) -> Tensor:
    """(n, 3, h', w') float32 of n clips, whole groups: Grad-CAM, aligned map and S-motion, each pooled over time.

    train: query and key backbones in train mode, whose running statistics move; size: pixels of a view; batch: clips a
    forward where BN does not care.
    """
    views, keys = (np.stack([getattr(one, name) for one in shown]) for name in ("view", "of_key"))
    query = _images([one.seen for one in shown], views, towers, size, device)
    key = _images([one.other for one in shown], keys, towers, size, device) if towers.head is None else None
    group, cams, aligned = towers.group, [], []
    said = None if towers.head is None else torch.cat([towers.said(part) for part in query.split(batch)])
    targets = said if key is None else torch.cat([towers.keys(towers.key, part) for part in key.split(batch)])
    for part, target in zip(query.split(batch), targets.split(batch)):
        cams.append(grad_cam(*differentiate(towers.query, part, towers.score(target))).mean(1))
    if key is not None:
        # Clip i of every group, then clip i + 1: a key's companions are not its query's (docs/method.md 1.3).
        mixed = torch.arange(len(shown), device=device).view(-1, group).T.flatten()
        vectors = torch.cat([towers.keys(train[1], part) for part in key[mixed].split(group)])
        targets = vectors[mixed.argsort()]
    for part, target in zip(query.split(group), targets.split(group)):
        h, gradient = differentiate(train[0], part, towers.score(target))
        aligned.append(aligned_map("v3", h, gradient, towers.per_step).mean(1))
    motion = s_motion([one.motion for one in shown], views, cells).to(device)
    return torch.stack([torch.cat(cams), torch.cat(aligned), motion], 1)


def _images(crops: Sequence[np.ndarray], views: np.ndarray, towers: Towers, size: int, device) -> Tensor:
    """Crops (L, h, w, 3) uint8 -> (n, 3, L, S, S) float32 as the network takes them."""
    clips = torch.stack([resize(torch.from_numpy(crop).to(device), size) for crop in crops])
    return augment(clips, views, towers.augment)


def s_motion(motion: Sequence[np.ndarray], views: np.ndarray, cells: tuple[int, int]) -> Tensor:
    """(n, h', w') float32 S-motion of n clips (MCL Eq. 2) in their crops, exact area means, px/frame per px.

    motion: n maps (L, H/8, W/8) of whole frames; views: (n,) of `sampling.VIEW`.
    """
    return motion_target([torch.from_numpy(maps).float() for maps in motion], views, (1, *cells))[:, 0]


def motion_maps(store: Place | str, positions: np.ndarray, view: View, cells: tuple[int, int], run: RunEvaluation,
                label: str = "") -> np.ndarray:
    """(n, h', w') float32 S-motion of every clip of the view, no network asked; n = videos x view.clips.

    cells: (h', w'). Raises StoreError for damage.
    """
    reader, found = StoreReader(store), []
    index = reader.index
    clips = [(int(position), numbers) for position in positions for numbers in clip_numbers(view, index, position)]

    def read(reader: StoreReader, item) -> np.ndarray:
        position, numbers = item
        video, low = index.id[position], int(numbers.min())
        maps = reader.motion(video, low, int(numbers.max()) + 1)[numbers - low]
        return s_motion([maps], centre(view, *(8 * side for side in maps.shape[1:]))[None], cells)[0].numpy()

    progress = Progress(f"motion {label}", len(clips))
    try:
        for maps in in_order(reader, clips, read, run):
            found.append(maps)
            progress.update(len(found))
    finally:
        reader.close()
        progress.close(text=plural(len(found), "clip"))
    return np.stack(found)


def hot_masks(motion: np.ndarray) -> np.ndarray:
    """(n, h', w') bool: positions of each S-motion above its 90th percentile (MCL section 3.2)."""
    return np.stack([hot_mask(one)[1] for one in motion])


def scores(maps: np.ndarray, target: np.ndarray, inside: np.ndarray, ids: Sequence[str]) -> dict[str, float]:
    """How maps agree with a target, percent, each a mean over clips whose target is not constant (docs/method.md 1.7).

    maps, target: (n, h', w') >= 0; inside: (n, h', w') bool, or the share of each position that is inside; ids: n, the
    clips' videos. `corr`: Pearson's r with the own clip's target (chance 0); `own_minus_other`: that less the mean r
    with the targets of all clips of other videos (chance 0; 0 as well for one fixed map); `mass`: share inside;
    `pointing`: whether the largest value is inside (chance of both: `chance_inside`).
    Raises RequestError where fewer than two videos have a target.
    """
    kept = moving(target)
    maps, inside, ids = np.asarray(maps)[kept], np.asarray(inside)[kept], np.asarray(ids)[kept]
    if (videos := len(np.unique(ids))) < 2:
        raise RequestError(f"motion is in view in clips of {plural(videos, 'video')}, of {plural(len(kept), 'clip')} "
                           "in all; own-clip less other-clip correlation takes two or more: choose another "
                           "--test-split or more clips")
    own = metrics.correlations(maps, target[kept])
    other = metrics.other_correlations(maps, target[kept], ids)
    found = {"corr": own, "own_minus_other": own - other, "mass": metrics.mass_inside(maps, inside),
             "pointing": metrics.pointing(maps, inside)}
    return {name: 100 * float(values.mean()) for name, values in found.items()}


def chance_inside(target: np.ndarray, inside: np.ndarray) -> float:
    """Percent of the positions that lie inside, over the clips that `scores` takes."""
    return 100 * float(np.asarray(inside, np.float64)[moving(target)].mean())


def moving(target: np.ndarray) -> np.ndarray:
    """(n,) bool: whose target is not the same everywhere; the others have no direction and are left out."""
    flat = np.asarray(target).reshape(len(target), -1)
    return flat.min(1) < flat.max(1)
