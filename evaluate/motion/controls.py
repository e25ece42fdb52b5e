"""`controls`: on the synthetic set, what of a representation is motion and what is background?

Classes are motions and groups are backgrounds there, every background under every class. Beside the result always stand
random initialisation of the same backbone, supervised training of it on the training split, and the mean image.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluate import metrics
from evaluate.features.encoders import RANDOM, Encoder, open_encoder, untrained
from evaluate.features.extract import View, choose
from evaluate.features.foreign import Foreign
from evaluate.features.handmade import MeanImage
from evaluate.features.vectors import from_main
from evaluate.finetuned.job import FINETUNED
from evaluate.finetuned.supervised import train_supervised
from evaluate.motion import control_pictures, map_pictures, probes
from evaluate.motion.control_scores import MAPS, Scene, Scores, object_scores, read_scene, score
from evaluate.motion.looks import known_looks
from evaluate.motion.truth import check_synthetic
from evaluate.protocol import Figure, Request, Result, Table
from evaluate.recognition import check_classes
from shared.cli import RequestError, plural
from shared.nn.layers import Backbone
from shared.pictures import figures
from shared.recipes.preprocessing import read_description
from shared.store.index import Index
from shared.store.reader import StoreReader

SUPERVISED, PRIOR = "supervised", "prior"
PROBE = "probe"                   # a png, and an npz of what it shows
GROUP = 8                         # clips that share BN statistics in the supervised baseline
PLAIN = {"accumulate": 1, "bn_group": GROUP, "lr": 0.04, "dropout": 0.0, "rand_n": 0, "flip": True, "area_min": 0.5}
SHARED = "background and motion", "background alone", "motion alone", "neither"


def run(request: Request) -> Result | None:
    """The scores of the checkpoint, with those of the baselines beside them.

    Raises RequestError for a store that is not synthetic, has no groups or no truth, and for hand-made baselines.
    """
    net = request.encoder.net
    if not isinstance(net, (Backbone, Foreign)):
        raise RequestError(f"controls: {net.name} has no backbone; give a checkpoint that has one, such as RUN/last.pt "
                           "or random:r2plus1d_tiny, with features.pool=mean and features.grid=1")
    index = Index.load(request.store)
    train, test = choose(index, request.train_split), choose(index, request.test_split)
    check_synthetic(index, np.concatenate([train, test]))
    check_classes(index.label[train], index.label[test], read_description(index.store)["classes"],
                  f"split {request.train_split!r}", f"split {request.test_split!r}")
    if len(test) < 2:
        raise RequestError(f"--test-split {request.test_split!r} holds one video; the background retrieval asks for "
                           "the nearest among the others")
    view = View.of(request.settings.features, request.encoder)
    if isinstance(net, Foreign) and request.settings.controls.truth:
        net.check_grid(view.geometry.length, view.size)
    # All methods look at the same clips, whatever view is their own.
    pinned = dataclasses.replace(request.settings.features, clip=str(view.geometry), size=view.size,
                                 short_edge=view.short_edge)
    request = dataclasses.replace(request, settings=dataclasses.replace(request.settings, features=pinned))
    scene = read_scene(request, train, test, view) if request.settings.controls.truth else None
    methods = {request.encoder.text: [request.encoder], **baselines(request, index, len(train), view)}
    looks = known_looks(index).take(test)
    scores = {name: [score(request, encoder, test, looks, scene) for encoder in encoders]
              for name, encoders in methods.items()}
    if not request.world.main:
        return None
    return result(request, index, train, test, scene, scores)


def baselines(request: Request, index: Index, videos: int, view: View) -> dict[str, list[Encoder]]:
    """The other methods by name: untrained nets, one that labels trained, the mean image; beside networks of others
    none that labels trained, and untrained ones where Transformers builds them."""
    net, device = request.encoder.net, request.world.device
    if isinstance(net, Foreign):
        twins = {RANDOM: [open_encoder(f"{RANDOM}:{net.text}:{seed}", device, asked=request.settings.features)
                          for seed in range(request.settings.controls.untrained)]} if net.text.startswith("hf:") else {}
        return {**twins, MeanImage.name: [open_encoder(MeanImage.name)]}
    labelled = {SUPERVISED: [supervised(request, index, videos, view)]} \
        if request.settings.controls.supervised_steps else {}
    return {RANDOM: [untrained(net.name, seed, device, net.width, net.eps)
                     for seed in range(request.settings.controls.untrained)],
            **labelled, MeanImage.name: [open_encoder(MeanImage.name)]}


def supervised(request: Request, index: Index, videos: int, view: View) -> Encoder:
    """The backbone trained from scratch with the labels of the training split, kept beside the features."""
    net, world = request.encoder.net, request.world
    batch = GROUP * max(2, world.size)
    if videos < batch:
        raise RequestError(f"controls: {plural(videos, 'training video')}; the supervised baseline takes batches of "
                           f"{batch}: make more videos (--set generate.videos=N of preprocess.run), or use fewer "
                           "processes")
    settings = dataclasses.replace(request.settings.finetune, steps=request.settings.controls.supervised_steps,
                                   batch=batch, **PLAIN)
    start = untrained(net.name, 0, world.device, net.width, net.eps)
    key = {"start": start.sha256, "index": index.generation, "split": request.train_split, "view": view.to_dict(),
           "finetune": dataclasses.asdict(settings)}
    name = f"supervised-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}"
    held = (folder / name for folder in (request.cache.folder, *request.cache.beside))
    out: Path = from_main(next((path for path in held if (path / FINETUNED).is_file()), request.cache.folder / name),
                          world)
    if world.main:
        out.mkdir(parents=True, exist_ok=True)
    train_supervised(start, request.store, request.train_split, settings, view, request.settings.run, 0, world, out)
    return open_encoder(from_main(str(out / FINETUNED), world), world.device)     # once rank 0 has written it


def result(request: Request, index: Index, train: np.ndarray, test: np.ndarray, scene: Scene | None,
           scores: Mapping[str, Sequence[Scores]]) -> Result:
    """Everything as the report has it; the first of `scores` is the checkpoint's."""
    own, *others = scores
    mean = {name: {metric: float(np.mean([one.values[metric] for one in runs])) for metric in runs[0].values}
            for name, runs in scores.items()}
    groups, labels = [index.group[i] for i in test], index.label[test]
    chance = {"linear": metrics.chance_top(labels, 1), "knn": metrics.chance_top(labels, 1),
              "background_r@1": probes.chance_shared(groups), "motion_r@1": probes.chance_shared(labels)}
    trials = dict.fromkeys(chance, len(test))
    chance = {name: 100 * share for name, share in chance.items()}
    if lookalikes := scores[own][0].lookalikes:
        chance, trials = chance | lookalikes.chance, trials | lookalikes.trials
    balanced = len(set(zip(groups, labels.tolist()))) == len(set(groups)) * len(set(labels.tolist()))
    notes = ["Every background occurs under every motion class, so background alone tells no class; the nearest "
             "neighbour is sought among the other test videos, whose backgrounds they share." if balanced else
             "Backgrounds are not before every motion class here, as in sets of look-alikes: what features say of the "
             "class may be the background's doing. The look-alikes' scores are free of it.",
             "Beside the result: "
             + (f"{plural(len(scores[RANDOM]), 'random initialisation')} (mean), " if RANDOM in scores else "")
             + (f"the same backbone trained with labels for "
                f"{plural(request.settings.controls.supervised_steps, 'step')}, " if SUPERVISED in scores else "")
             + f"{'and ' * (RANDOM in scores)}the mean image, which knows what is where and not what moves."]
    counts = {"train_videos": len(train), "test_videos": len(test), "classes": len(np.unique(labels)),
              "train_backgrounds": len({index.group[i] for i in train}), "test_backgrounds": len(set(groups))}
    if scene is not None:
        area = 100 * float(scene.cover[scene.object_seen].mean())
        chance |= {"dense": 0.0, "dense_own_other": 0.0, "energy": 0.0}
        for name in MAPS:
            chance |= {f"{name}_object": 0.0, f"{name}_object_mass": area, f"{name}_object_pointing": area}
            prior = np.broadcast_to(scene.prior, scene.cover.shape)
            mean.setdefault(PRIOR, {}).update(object_scores(name, prior, scene))
        counts |= {"probe_clips": scene.probe.clips, "object_seen": int(scene.object_seen.sum())}
        notes.append(f"The fixed prior of the saliency is the mean object mask of the training videos; by chance a map "
                     f"has {area:.1f} % of its mass on the object, as much as the object's area.")
    if lookalikes:
        notes += lookalikes.notes
    if counts["test_backgrounds"] == 1:
        notes.append("All test videos share one background: the background retrieval says nothing here.")
    beside = {name: values for name, values in mean.items() if name != own}
    return Result(metrics=mean[own], chance=chance, beside=beside, trials=trials, counts=counts,
                  figures=list(_figures(request, index, scene, scores, mean, chance)),
                  tables=[Table("What the nearest test video shares, % of the test videos", ("method", *SHARED), [
                      (name, *np.mean([one.shared for one in runs], 0).tolist()) for name, runs in scores.items()])],
                  notes=notes)


def _figures(request: Request, index: Index, scene: Scene | None, scores: Mapping[str, Sequence[Scores]],
             mean: Mapping[str, Mapping[str, float]], chance: Mapping[str, float]) -> Iterator[Figure]:
    own = next(iter(scores))
    path = request.out / "controls.png"
    figures.save(control_pictures.scores_figure(list(mean[own]), {"this checkpoint" if name == own else name: values
                                                                  for name, values in mean.items()}, chance), path)
    yield Figure(path, f"Every score of every method; lines: chance. This checkpoint: {own}.", wide=False)
    if scene is None:
        return
    reader = StoreReader(request.store)
    rows = control_pictures.probed(reader, scene, {name: runs[0].said for name, runs in scores.items()})
    reader.close()
    path = request.out / f"{PROBE}.png"
    map_pictures.keep_compared(path.with_suffix(".npz"), rows)
    figures.save(map_pictures.compared_figure(rows, "true motion", [
        ("this checkpoint" if name == own else name, f"r {mean[name]['dense'] / 100:z.2f}") for name in scores]), path)
    yield Figure(path, "The dense probe on test videos, at the time of the middle frame: the frame, the true motion "
                       "there, and what each method's features say of it, each over its own range. r: mean correlation "
                       "with the true motion over all test clips, a fixed prior taken out.", wide=False)
