"""The strict machinery of settings: plain YAML -> frozen dataclasses. A misspelt key or a wrong type is named.

Its users: shared.recipes.preprocessing (what a store holds) and shared.recipes.training (what a training run does).
What exists stays usable: a setting that was added later is declared by `late`, a recipe is written and hashed as
`recorded` gives it, and a request that goes on from a store or a checkpoint takes from it, by `follow`, all that it
does not name.
"""

import contextlib
import dataclasses
import json
import math
import re
import sys
import types
import typing
from fractions import Fraction
from pathlib import Path

import yaml

from shared.cli import RequestError, nearest

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)     # libyaml, where there is one: seven times as fast
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")     # 1e-3 is a word to YAML 1.1
FRACTION = re.compile(r"\d{1,9}/\d{1,9}")
# What the YAML library raises for text that is none: dates of a 13th month, `!!int x`, a thousand brackets.
NO_YAML = yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError
LATE = "late"
EXPECTED = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a word"}


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


def late(before):
    """A setting that older stores or checkpoints lack; before: its value for what was done until it existed, which is
    never written nor hashed, so that their recipes stay theirs. pipelines.yaml names the value of new ones."""
    return dataclasses.field(default=before, metadata={LATE: True})


def recorded(cls: type, tree: dict) -> dict:
    """The tree of a recipe of dataclass `cls` as it is written and hashed: without late settings at their value of
    before. Keys that `cls` does not know stay."""
    fields, out = {field.name: field for field in dataclasses.fields(cls)}, {}
    for key, value in tree.items():
        if key in fields and isinstance(value, dict):
            kinds = typing.get_args(hint := typing.get_type_hints(cls)[key]) or (hint,)
            value = recorded(next(kind for kind in kinds if dataclasses.is_dataclass(kind)), value)
        elif key in fields and LATE in fields[key].metadata and (tuple(value) if isinstance(value, list) else
                                                                 value) == fields[key].default:
            continue
        out[key] = value
    return out


def spelt(cls: type, tree: dict) -> dict:
    """A written recipe with every setting of this version, late ones as before where it lacks them. Raises
    RequestError for settings that this version does not know."""
    return json.loads(json.dumps(dataclasses.asdict(build(cls, tree, ""))))


def known(cls: type, tree):
    """A written recipe without the settings that only a later version knows."""
    if not isinstance(tree, dict) or not dataclasses.is_dataclass(cls):
        return tree
    hints = typing.get_type_hints(cls)
    return {key: known(hints[key], value) for key, value in tree.items() if key in hints}


def telling(trees: typing.Iterable[dict]) -> set[str]:
    """The `section.key`s in which some of these trees differ."""
    leaves = [{f"{section}.{key}": json.dumps(value) for section, values in tree.items() if isinstance(values, dict)
               for key, value in values.items()} for tree in trees]
    return {key for one in leaves for key in one if len({other.get(key) for other in leaves}) > 1}


def follow(defaults: dict, stored: dict, sections: dict[str, type], settings: typing.Sequence[str],
           apart: typing.Iterable[dict] = ()) -> dict:
    """`defaults` (section -> key -> value) with the stored value of all that is not asked for: by a `key=value` of
    `settings`, or by the name of a tree, where the trees `apart` differ."""
    named = telling(apart) | {".".join(named_key(sections, setting)) for setting in settings}
    return {section: values | {key: value for key, value in (stored.get(section) or {}).items()
                               if f"{section}.{key}" not in named} for section, values in defaults.items()}


def kept(alone: dict, tree: dict) -> tuple[str, ...]:
    """The settings of `tree` that a request alone would have given other values, as `key=value`, sorted. None and auto
    leave the choice open, and so does a list that is part of the one found (preprocess.reindex adds to it)."""
    out = []
    for section, values in alone.items():
        for key, value in (values or {}).items():
            found = tree[section][key]
            listed = isinstance(value, (list, tuple)) and bool(value) and set(value) <= set(found)
            if value not in (None, "auto") and not listed and value != found:
                out.append(f"{section}.{key}=" + (
                    ",".join(found) if isinstance(found, (list, tuple)) else str(found).lower()
                    if isinstance(found, bool) else str(found)))
    return tuple(sorted(out))


def pipelines_path() -> Path:
    """The repository's pipelines.yaml, or the installed copy."""
    for path in (Path(__file__).resolve().parents[2] / "pipelines.yaml",
                 Path(sys.prefix) / "share/motionpack/pipelines.yaml"):
        if path.is_file():
            return path
    raise RequestError("pipelines.yaml not found beside the packages nor in share/motionpack; reinstall motionpack")


def load_document(path: Path | None = None) -> dict:
    """pipelines.yaml as plain dictionaries. Raises RequestError where it is no YAML mapping."""
    path = path or pipelines_path()
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), LOADER)
    except NO_YAML as error:
        raise RequestError(f"{path.name} is not valid YAML: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(document, dict):
        raise RequestError(f"{path.name} holds {type(document).__name__}; expected datasets, recipes and run")
    return document


def named_key(sections: dict[str, type], setting: str) -> tuple[str, str]:
    """The section and key that `key=value` names, by its dotted name or its last part; raises RequestError by name."""
    keys = {f"{section}.{field.name}": (section, field.name)
            for section, cls in sections.items() for field in dataclasses.fields(cls)}
    key, equals, _ = setting.partition("=")
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
    return keys[matches[0]]


def apply_settings(tree: dict, sections: dict[str, type], settings: typing.Sequence[str]) -> dict:
    """`tree` (section -> key -> value) with every `key=value` of `settings` replaced; raises RequestError by name."""
    tree = {section: dict(values) if isinstance(values, dict) else values for section, values in tree.items()}
    for setting in settings:
        section, name = named_key(sections, setting)
        text = setting.partition("=")[2]
        words = typing.get_type_hints(sections[section])[name] in (str, tuple[str, ...])
        try:
            if words:      # a group may be called 01, no or a: b
                value = yaml.load(text, yaml.BaseLoader)
                tree[section][name] = text.strip() if isinstance(value, dict) else value
            else:
                tree[section][name] = float(text) if EXPONENT.fullmatch(text.strip()) else yaml.safe_load(text)
        except NO_YAML:
            raise RequestError(f"--set {setting[:200]!r}: the value is not a number, word or list") from None
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
        return _convert_union(value, typing.get_args(hint), where)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if typing.get_origin(hint) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if isinstance(parts, (list, tuple)) and all(isinstance(part, str) for part in parts):
            return tuple(part.strip() for part in parts)
    elif hint is float and not isinstance(value, bool):
        with contextlib.suppress(OverflowError, ZeroDivisionError, TypeError):
            number = float(Fraction(value)) if isinstance(value, str) and FRACTION.fullmatch(value) else value
            if math.isfinite(number):
                return float(number)
    elif type(value) is hint and (hint is not int or abs(value) < 2 ** 99):
        return value
    raise RequestError(f"{where} is {repr(value)[:200]}; expected {EXPECTED.get(hint, 'a list of words')}")


def _convert_union(value, hints, where: str):
    """The first of several types that the value has; None where it is among them."""
    if value is None and type(None) in hints:
        return None
    hints = [hint for hint in hints if hint is not type(None)]
    if len(hints) == 1:
        return _convert(value, hints[0], where)
    for hint in hints:
        try:
            return _convert(value, hint, where)
        except RequestError:
            continue
    raise RequestError(f"{where} is {value!r}; expected {' or '.join(EXPECTED[hint] for hint in hints)}")
