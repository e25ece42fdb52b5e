"""pipelines.yaml -> frozen dataclasses. A misspelt key or a wrong type stops the run and is named.

What is computed (everything in `Recipe`) goes into the store and its hash; `Run` says where and how it is computed and
stays outside both.
"""

import dataclasses
import hashlib
import json
import sys
import types
import typing
from dataclasses import dataclass
from pathlib import Path

import yaml

from shared.cli import RequestError, nearest
from shared.clips import ClipGeometry


MAX_WINDOW = 4096  # frames: 3 GB of 256x340 pixels with their flow


@dataclass(frozen=True)
class Frames:
    """Stored frame size in pixels: short side (larger videos shrink, none grows), sides a multiple of `multiple`."""

    short_side: int
    multiple: int


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


@dataclass(frozen=True)
class Motion:
    """Motion boundary and map (METHOD.md 1.1); border_px is zeroed for scores and crop indices only."""

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
    """What a pack holds and how large it may grow; jpeg_quality 1-100; edges and flow are stored at half size."""

    jpeg_quality: int
    videos: int
    frames: int
    edges: bool
    flow: bool


@dataclass(frozen=True)
class Recipe:
    """Everything that decides which numbers a store holds."""

    frames: Frames
    flow: Flow
    motion: Motion
    clips: Clips
    packs: Packs

    def to_dict(self) -> dict:
        return json.loads(json.dumps(dataclasses.asdict(self)))


@dataclass(frozen=True)
class Run:
    """Where and how: threads inside a video (0: one a core), frames a decoding window, seconds between publications."""

    threads: int
    window: int
    publish_s: float


@dataclass(frozen=True)
class Generate:
    """Dials of the synthetic videos: counts, frame size in pixels, length in frames, and the seed."""

    videos: int
    backgrounds: int
    textures: int
    frames: int
    height: int
    width: int
    seed: int


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
    """One resolved preprocessing request."""

    dataset: str
    preset: Dataset
    recipe: Recipe
    run: Run


def recipe_hash(recipe: dict) -> str:
    """SHA-256 of the recipe's canonical JSON, first 16 hex digits."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def pack_recipe_hash(recipe: dict) -> str:
    """What a pack's attributes carry: the recipe but for its clip geometries, which reindex may add to later."""
    clips = {key: value for key, value in recipe["clips"].items() if key != "geometries"}
    return recipe_hash({**recipe, "clips": clips})


def differences(stored: dict, asked: dict, prefix: str = "") -> list[str]:
    """The leaves at which two recipes differ, as `key: stored a, asked b`."""
    out = []
    for key in sorted(stored.keys() | asked.keys()):
        a, b = stored.get(key), asked.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            out += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            out.append(f"{prefix}{key}: stored {a!r}, asked {b!r}")
    return out


def pipelines_path() -> Path:
    """The repository's pipelines.yaml, or the installed copy."""
    for path in (Path(__file__).resolve().parent.parent / "pipelines.yaml",
                 Path(sys.prefix) / "share/motionpack/pipelines.yaml"):
        if path.is_file():
            return path
    raise RequestError("pipelines.yaml not found beside the packages nor in share/motionpack; reinstall motionpack")


def load_document(path: Path | None = None) -> dict:
    """pipelines.yaml as plain dictionaries. Raises RequestError where it is no YAML mapping."""
    path = path or pipelines_path()
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RequestError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise RequestError(f"{path.name} holds {type(document).__name__}; expected datasets, recipes and run")
    return document


def load_pipeline(dataset: str, recipe: str | None = None, settings: typing.Sequence[str] = (),
                  path: Path | None = None) -> Pipeline:
    """The preset of `dataset` with `key=value` settings laid over it.

    A key is dotted (`clips.step`) or its last part where that is unique (`short_side`).
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
    tree = {**recipes[name], "run": document["run"]}
    if preset.get("generate"):
        tree["generate"] = preset["generate"]
    sections = {field.name: field.type for field in dataclasses.fields(Recipe)} | {"run": Run}
    sections |= {"generate": Generate} if "generate" in tree else {}
    tree = apply_settings(tree, sections, settings)
    preset |= {"recipe": name, "generate": tree.pop("generate", None)}
    run = build(Run, tree.pop("run"), "run")
    pipeline = Pipeline(dataset, build(Dataset, preset, f"datasets.{dataset}"), build(Recipe, tree, ""), run)
    _check(pipeline)
    return pipeline


def _check(pipeline: Pipeline) -> None:
    r = pipeline.recipe
    if pipeline.run.window > MAX_WINDOW:
        raise RequestError(f"run.window is {pipeline.run.window}; expected at most {MAX_WINDOW} frames")
    positive = {"frames.short_side": r.frames.short_side, "clips.step": r.clips.step, "packs.videos": r.packs.videos,
                "packs.frames": r.packs.frames, "motion.window": r.motion.window, "run.window": pipeline.run.window}
    if pipeline.preset.generate:
        positive |= {f"generate.{k}": v for k, v in dataclasses.asdict(pipeline.preset.generate).items() if k != "seed"}
    for key, value in positive.items():
        if value < 1:
            raise RequestError(f"{key} is {value}; expected at least 1")
    if r.frames.multiple != 8:
        raise RequestError(f"frames.multiple is {r.frames.multiple}; the store's map cells are 8x8 pixels: expected 8")
    if r.frames.short_side < 16:
        raise RequestError(f"frames.short_side is {r.frames.short_side}; TV-L1 needs at least 16")
    if r.motion.border_px < 0 or 2 * r.motion.border_px >= r.frames.short_side:
        raise RequestError(f"motion.border_px is {r.motion.border_px}; expected 0 to under half of frames.short_side")
    if not 1 <= r.packs.jpeg_quality <= 100:
        raise RequestError(f"packs.jpeg_quality is {r.packs.jpeg_quality}; expected 1 to 100")
    if pipeline.run.threads < 0:
        raise RequestError(f"run.threads is {pipeline.run.threads}; expected 0 (one a core) or more")
    for key, value, choices in (("motion.derivative", r.motion.derivative, ("central", "prewitt")),
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


def apply_settings(tree: dict, sections: dict[str, type], settings: typing.Sequence[str]) -> dict:
    """`tree` (section -> key -> value) with every `key=value` of `settings` replaced; raises RequestError by name."""
    tree = {section: dict(values) if isinstance(values, dict) else values for section, values in tree.items()}
    keys = {f"{section}.{field.name}": (section, field.name)
            for section, cls in sections.items() for field in dataclasses.fields(cls)}
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals:
            raise RequestError(f"--set {setting!r}; expected key=value, such as clips.step=8")
        matches = [full for full in keys if full == key or full.rpartition(".")[2] == key]
        if key in keys:
            matches = [key]
        if not matches:
            raise RequestError(f"--set {key!r} is no setting{nearest(key, [*keys, *(k[1] for k in keys.values())])}")
        if len(matches) > 1:
            raise RequestError(f"--set {key!r} is ambiguous; say one of {', '.join(matches)}")
        section, name = keys[matches[0]]
        try:
            tree[section][name] = yaml.safe_load(text) if text.strip() else None
        except yaml.YAMLError:
            raise RequestError(f"--set {setting!r}: the value is not a number, word or list") from None
    return tree


def build(cls: type, values, where: str):
    """`values` as the frozen dataclass `cls`, every key known and every value of the declared type."""
    if not isinstance(values, dict):
        raise RequestError(f"{where or 'recipe'} is {values!r}; expected keys {', '.join(_names(cls))}")
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in _names(cls):
            raise RequestError(f"{prefix}{key} is no setting{nearest(key, _names(cls))}")
    hints = typing.get_type_hints(cls)
    built = {}
    for field in dataclasses.fields(cls):
        if field.name in values:
            built[field.name] = _convert(values[field.name], hints[field.name], prefix + field.name)
        elif field.default is dataclasses.MISSING:
            raise RequestError(f"{prefix}{field.name} is missing from pipelines.yaml")
    return cls(**built)


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _convert(value, hint, where: str):
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if typing.get_origin(hint) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if isinstance(parts, (list, tuple)) and all(isinstance(part, str) for part in parts):
            return tuple(part.strip() for part in parts)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif type(value) is hint:
        return value
    expected = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    raise RequestError(f"{where} is {value!r}; expected {expected.get(hint, 'a list of words')}")
