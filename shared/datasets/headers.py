"""What a store keeps of its archives' headers: records/archives.json, so that each archive is read once."""

import dataclasses
import json
from pathlib import Path

from shared.datasets.archives import Contents, Fields
from shared.datasets.scan import Headers
from shared.store.layout import StoreError
from shared.store.place import Place
from shared.store.record import read_json, write_json_atomic

KIND = "archives"     # of this file in records/, which readers of runs' records leave out


def read_headers(store: Place) -> tuple[Fields, Headers]:
    """The fields that were read, and the archives' headers; none of both where the store keeps none that can be read:
    they are read again."""
    try:
        document = read_json(store / "records" / f"{KIND}.json")
        fields = Fields(**{name: str(value) for name, value in document["fields"].items()})
        return fields, {place: (str(version), _contents(json.loads(text)))
                        for place, (version, text) in document["archives"].items()}
    except (FileNotFoundError, StoreError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return Fields(), {}


def _contents(document: dict) -> Contents:
    """Raises one of several errors for what `keep_headers` has not written."""
    videos = {str(name): (int(offset), int(size), str(fault), {str(key): str(value) for key, value in told.items()})
              for name, (offset, size, fault, told) in document["videos"].items()}
    if any(offset < 0 or size < 0 for offset, size, *_ in videos.values()):
        raise ValueError("bytes before the archive")
    return Contents(videos, dict(document["refused"]), int(document["others"]))


def keep_headers(store: Place, fields: Fields, headers: Headers) -> None:
    """Add to what the store keeps, if that changes it. Damaged archives are looked at again each time."""
    whole = {place: found for place, found in headers.items() if not found[1].damage}
    if not whole:
        return
    before, known = read_headers(store)
    known = dict(known) if before == fields else {}
    if whole.items() <= known.items():
        return
    # An archive's members are one line: spread out, they would be most of the file.
    lines = {place: [version, json.dumps(dataclasses.asdict(contents), separators=(",", ":"))]
             for place, (version, contents) in (known | whole).items()}
    if isinstance(store, Path):
        (store / "records").mkdir(exist_ok=True)
    write_json_atomic(store / "records" / f"{KIND}.json", {"kind": KIND, "fields": fields.named(), "archives": lines})
