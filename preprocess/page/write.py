"""`python -m preprocess.show STORE --html DIR`: a folder with one page that needs nothing else.

index.html and page/ are the same for every store; data/store.js holds what the page opens with, data/rows-N.js SHARD
rows of the table each, videos/N.jpg and N.js what is shown of a chosen video. They are scripts because a page that is
opened as a file may load nothing else.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from preprocess.page import stills, suspects
from preprocess.page.choice import by_class, choose
from preprocess.page.folder import write_folder
from preprocess.page.numbers import VideoNumbers
from preprocess.page.readers import of_each
from preprocess.page.summary import summarise
from preprocess.page.suspects import Suspects
from shared.clips.index import ClipGeometry
from shared.pictures.census import store_picture
from shared.recipes.preprocessing import Recipe
from shared.store.index import Index, read_failures
from shared.store.reader import StoreReader

SITE = Path(__file__).with_name("site")
VIDEOS = 500            # with pictures, unless asked otherwise
SHARD = 2000            # rows of the table in a file


def write_page(place: Path, index: Index, document: dict, recipe: Recipe, geometry: ClipGeometry,
               videos: int = VIDEOS) -> Path:
    """Write the page into the folder `place`, which is refused where it holds anything else; returns it.

    document: the store's store.json, recipe: the one in it; videos: how many get pictures. Raises RequestError, and
    StoreError for damage.
    """
    return write_folder(place, index.store, lambda folder: fill(folder, index, document, recipe, geometry, videos))


def fill(folder: Path, index: Index, document: dict, recipe: Recipe, geometry: ClipGeometry, videos: int) -> None:
    failures = read_failures(index.store)
    numbers = VideoNumbers(index, geometry if len(index) > suspects.EXAMINED else None)
    census = store_picture(index, document, geometry, numbers.take)
    found = suspects.find(index, numbers, failures, geometry)
    classes = by_class(index, numbers.motion)
    chosen = choose(numbers.order, found, list(classes.values()), videos)
    for path in filter(Path.is_file, SITE.rglob("*")):
        target = folder / path.relative_to(SITE)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    (folder / "data").mkdir()
    (folder / "videos").mkdir()
    write_rows(folder / "data", index, numbers.motion, found, list(classes))
    summary = summarise(index, census, failures, found, numbers, classes, chosen, SHARD)
    script(folder / "data/store.js", "store", summary)
    number_of = {position: number for number, position in enumerate(chosen)}

    def draw(reader: StoreReader, position: int) -> None:
        number, video = number_of[position], index.id[position]
        (folder / f"videos/{number}.jpg").write_bytes(stills.strip(reader, video))
        script(folder / f"videos/{number}.js", "video", number, stills.details(reader, video, recipe, geometry))

    of_each(index, draw, chosen, "drawing videos")


def script(path: Path, function: str, *arguments) -> None:
    """A call of one of the page's functions; names from outside are JSON strings in ASCII, so they stay strings."""
    text = ",".join(json.dumps(one, separators=(",", ":"), allow_nan=False) for one in arguments)
    path.write_text(f"page.{function}({text})\n", encoding="ascii")


def write_rows(folder: Path, index: Index, motion: np.ndarray, found: Suspects, classes: Sequence[str]) -> None:
    """data/rows-N.js: columns of SHARD rows each, in the index's order."""
    number_of = {name: number for number, name in enumerate(classes)}
    kinds = np.zeros(len(index), int)
    for bit, positions in enumerate(found.kinds.values()):
        kinds[positions] |= 1 << bit
    seconds = index.frames / np.where(index.fps > 0, index.fps, np.inf)
    for number, start in enumerate(range(0, len(index), SHARD)):
        part = slice(start, start + SHARD)
        script(folder / f"rows-{number}.js", "rows", number, {
            "id": index.id[part], "class": [number_of[name] for name in index.class_name[part]],
            "splits": index.split_text[part], "group": index.group[part], "frames": index.frames[part].tolist(),
            "seconds": [round(one, 2) for one in seconds[part].tolist()],
            "height": index.source_height[part].tolist(), "width": index.source_width[part].tolist(),
            "motion": significant(motion[part]), "kinds": kinds[part].tolist(), "note": index.note[part]})


def significant(values: np.ndarray) -> list[float]:
    """Four digits of each."""
    return [float(f"{one:.4g}") for one in values.tolist()]
