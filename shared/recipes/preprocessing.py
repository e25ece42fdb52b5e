"""pipelines.yaml -> frozen dataclasses. A misspelt key or a wrong type stops the run and is named.

What is computed (everything in `Recipe`) goes into the store and its hash; `Run` says where and how it is computed and
stays outside both.
"""

import dataclasses
import hashlib
import json
import re
import typing
from dataclasses import dataclass
from pathlib import Path

from shared.cli import RequestError, nearest
from shared.clips.index import ClipGeometry
from shared.datasets.archives import Fields
from shared.recipes.settings import apply_settings, build, follow, kept, known, late, load_document, recorded, spelt
from shared.store.layout import FORMAT, StoreError
from shared.store.place import Place, as_place
from shared.store.record import read_json

MAX_WINDOW = 4096  # frames: 3 GB of 256x340 pixels with their flow


@dataclass(frozen=True)
class Frames:
    """Stored frame size in pixels: short side (larger videos shrink, none grows), sides a multiple of `multiple`;
    whether pixels that are not square are made so before; and by which rules files are read
    (shared.videos.streams.READING)."""

    short_side: int
    multiple: int
    square_pixels: bool = late(False)
    reading: int = late(1)


@dataclass(frozen=True)
class Flow:
    """TV-L1: a preset of preprocess.flow, its parameters where a setting differs from the preset (null = the preset's),
    and the backend, resolved before the recipe is hashed."""

    preset: str
    backend: str
    tau: float | None = None
    lambda_: float | None = None
    theta: float | None = None
    zoom: float | None = None
    scales: int | None = None
    warps: int | None = None
    iterations: int | None = None
    outer: int | None = None
    epsilon: float | None = None
    median: int | None = None
    scale: float | None = late(1.0)


@dataclass(frozen=True)
class Motion:
    """Motion boundary and map (docs/method.md 1.1); border_px is zeroed for scores and crop indices only."""

    derivative: str
    combine: str
    window: int
    border_px: int


@dataclass(frozen=True)
class Clips:
    """Clip geometries (LxS) that are indexed, and the step between clip starts in frames."""

    geometries: tuple[str, ...]
    step: int


@dataclass(frozen=True)
class Packs:
    """What a pack holds and how large it may grow; jpeg_quality 1-100; edges and flow are stored at half size.
    twin_seed: of the noise where the frames are twins of another store's (preprocess.twins), which sets it."""

    jpeg_quality: int
    videos: int
    frames: int
    edges: bool
    flow: bool
    twin_seed: int | None = late(None)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides which numbers a store holds."""

    frames: Frames
    flow: Flow
    motion: Motion
    clips: Clips
    packs: Packs

    def to_dict(self) -> dict:
        return recorded(Recipe, json.loads(json.dumps(dataclasses.asdict(self))))


@dataclass(frozen=True)
class Run:
    """Where and how: threads of a pack (0: the cores shared out among the workers, or the GPUs), frames a decoding
    window, seconds between publications. Of a task: GPUs where flow is on cuda (a fraction lets tasks share one),
    seconds and GB (1e9 bytes) after which its worker is ended (0: by the plan, and a worker's share of the machine),
    and how often it is tried again."""

    threads: int
    window: int
    publish_s: float
    gpus_per_task: float
    time_limit_s: float
    memory_gb: float
    retries: int


@dataclass(frozen=True)
class Generate:
    """Dials of the synthetic videos: counts, frame size in pixels, length in frames, and the seed; lookalikes: motions
    of a set of videos that share motions and looks, 0 for videos by themselves."""

    videos: int
    backgrounds: int
    textures: int
    frames: int
    height: int
    width: int
    seed: int
    lookalikes: int = 0


@dataclass(frozen=True)
class Dataset:
    """A dataset preset: its layout on disk, recipe, splits, and what to expect of it.

    splits: those that the layout's lists define; empty where an annotations CSV names them.
    """

    layout: str
    recipe: str
    splits: tuple[str, ...]
    about: str
    generate: Generate | None = None


@dataclass(frozen=True)
class Pipeline:
    """One resolved preprocessing request; kept: settings that follow the store's, not the defaults, as `key=value`;
    shards: where archives say label, split and group."""

    dataset: str
    preset: Dataset
    recipe: Recipe
    run: Run
    kept: tuple[str, ...] = ()
    shards: Fields = Fields()


def recipe_hash(recipe: dict) -> str:
    """SHA-256 of the recipe's canonical JSON, first 16 hex digits; late settings count where they are not as before."""
    return hashlib.sha256(json.dumps(recorded(Recipe, recipe), sort_keys=True).encode()).hexdigest()[:16]


def pack_recipe_hash(recipe: dict) -> str:
    """What a pack's attributes carry: the recipe but for its clip geometries, which reindex may add to later."""
    clips = {key: value for key, value in recipe["clips"].items() if key != "geometries"}
    return recipe_hash({**recipe, "clips": clips})


def read_description(store: Place) -> dict:
    """store.json, every value of the kind and range that readers count on, whoever wrote it. Raises FileNotFoundError,
    StoreError naming the key, and RequestError for another format."""
    path = as_place(store) / "store.json"
    document = read_json(path)
    if fault := description_fault(document):
        if fault.startswith("format "):
            raise RequestError(f"{store} has {fault}: it was made by another version")
        raise StoreError(f"{path}: {fault}")
    return document


def description_fault(document: dict) -> str:
    """What no store.json of this format says, "" for a good one. Settings that only a later version knows are its own
    to judge."""
    if type(document.get("format")) is not int or document["format"] != FORMAT:
        return f"format {repr(document.get('format'))[:60]}, expected {FORMAT}"
    classes = document.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return "classes is no list of names"
    for key in ("dataset", "recipe_hash"):
        if not isinstance(document.get(key), str):
            return f"{key} is no text"
    try:
        _check_recipe(build(Recipe, known(Recipe, document.get("recipe")), ""))
    except (RequestError, RecursionError) as error:
        return f"recipe: {str(error).replace(' from pipelines.yaml', '')}"
    return ""


def load_pipeline(dataset: str, recipe: str | None = None, settings: typing.Sequence[str] = (),
                  path: Path | None = None, stored: dict | None = None) -> Pipeline:
    """The preset of `dataset` with `key=value` settings laid over it.

    A key is dotted (`clips.step`) or its last part where that is unique (`short_side`). stored: the recipe of the store
    that is to grow, whose values stand wherever neither a setting nor the name of a recipe asks for others.
    Raises RequestError for an unknown dataset, recipe, key or type, naming the nearest right one.
    """
    document = load_document(path)
    presets, recipes = document["datasets"], document["recipes"]
    if dataset not in presets:
        raise RequestError(f"dataset {dataset!r} is unknown{nearest(dataset, presets)}")
    preset = dict(presets[dataset])
    name = recipe or preset.get("recipe", "motion")
    if name not in recipes:
        raise RequestError(f"recipe {name!r} is unknown{nearest(name, recipes)}")
    sections = {field.name: field.type for field in dataclasses.fields(Recipe)} | {"run": Run, "shards": Fields}
    beside = {name: document[name] for name in ("run", "shards")}
    if preset.get("generate"):
        sections["generate"], beside["generate"] = Generate, preset["generate"]
    alone = tree = apply_settings(recipes[name] | beside, sections, settings)
    if stored is not None:
        try:
            base = spelt(Recipe, stored)
        except RequestError as error:
            raise RequestError(f"the store was made by another version: {error}") from None
        followed = follow(recipes[name], base, sections, settings, recipes.values() if recipe else ())
        tree = apply_settings(followed | beside, sections, settings)
    preset |= {"recipe": name, "generate": tree.pop("generate", None)}
    run, shards = build(Run, tree.pop("run"), "run"), build(Fields, tree.pop("shards"), "shards")
    alone = {section: alone[section] for section in tree}
    pipeline = Pipeline(dataset, build(Dataset, preset, f"datasets.{dataset}"), build(Recipe, tree, ""), run,
                        kept(alone, tree), shards)
    _check(pipeline)
    return pipeline


def _check(pipeline: Pipeline) -> None:
    if pipeline.run.window > MAX_WINDOW:
        raise RequestError(f"run.window is {pipeline.run.window}; expected at most {MAX_WINDOW} frames")
    positive = {"run.window": pipeline.run.window}
    if pipeline.preset.generate:
        positive |= {f"generate.{k}": v for k, v in dataclasses.asdict(pipeline.preset.generate).items()
                     if k not in ("seed", "lookalikes")}
    _check_positive(positive)
    for name, value in pipeline.shards.named().items():
        if value not in ("cls", "txt") and not re.fullmatch(r"json\..+", value):
            raise RequestError(f"shards.{name} is {value!r}; expected cls, txt or json.NAME: the file beside a video, "
                               "and of a .json which of its names")
    run = pipeline.run
    for key, value in {"threads": run.threads, "time_limit_s": run.time_limit_s, "memory_gb": run.memory_gb,
                       "retries": run.retries}.items():
        if value < 0:
            raise RequestError(f"run.{key} is {value}; expected 0 or more")
    if not 0 < run.gpus_per_task or run.gpus_per_task > 1 and run.gpus_per_task % 1:
        raise RequestError(f"run.gpus_per_task is {run.gpus_per_task}; expected a fraction of one GPU, or whole GPUs")
    _check_recipe(pipeline.recipe)


def _check_positive(values: dict[str, int]) -> None:
    for key, value in values.items():
        if value < 1 or value >= 2 ** 31:
            raise RequestError(f"{key} is {value}; expected {'at least 1' if value < 1 else 'less than 2,147,483,648'}")


def _check_recipe(r: Recipe) -> None:
    _check_positive({"frames.short_side": r.frames.short_side, "clips.step": r.clips.step,
                     "packs.videos": r.packs.videos, "packs.frames": r.packs.frames, "motion.window": r.motion.window})
    if r.frames.multiple != 8:
        raise RequestError(f"frames.multiple is {r.frames.multiple}; the store's map cells are 8x8 pixels: expected 8")
    if r.frames.short_side < 16:
        raise RequestError(f"frames.short_side is {r.frames.short_side}; TV-L1 needs at least 16")
    if r.motion.border_px < 0 or 2 * r.motion.border_px >= r.frames.short_side:
        raise RequestError(f"motion.border_px is {r.motion.border_px}; expected 0 to under half of frames.short_side")
    if not 1 <= r.packs.jpeg_quality <= 100:
        raise RequestError(f"packs.jpeg_quality is {r.packs.jpeg_quality}; expected 1 to 100")
    for key, value, choices in (("motion.derivative", r.motion.derivative, ("central", "prewitt")),
                                ("frames.reading", r.frames.reading, (1, 2)),
                                ("motion.combine", r.motion.combine, ("root", "sum"))):
        if value not in choices:
            raise RequestError(f"{key} is {value!r}{nearest(value, choices)}")
    if not r.clips.geometries:
        raise RequestError("clips.geometries is empty; expected at least one LxS, such as 16x2")
    if len(set(r.clips.geometries)) < len(r.clips.geometries):
        raise RequestError(f"clips.geometries names {', '.join(r.clips.geometries)}; expected each once")
    for text in r.clips.geometries:
        try:
            ClipGeometry.parse(text)
        except ValueError as error:
            raise RequestError(f"clips.geometries: {error}") from None
