"""Synthetic videos whose motion is the class: real mp4 files with the true object mask and the true flow beside them.

T frames, HxW pixels. A textured object moves in one of eight ways during a part of the video and rests before and
after; the background, a still distractor and the camera's pan say nothing about the class. With 8 videos a background
each occurs under every class, so a scene alone scores at chance; objects start anywhere, so a fixed place does too.

    root/<class>/<class>_0012.mp4, <class>_0012.truth.npz     annotations.csv     synthetic.json
"""

import csv
import io
import json
import math
import os
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from preprocess.lookalikes import LOOKS, MOVING, TEXTURES, Lookalike, Member, Set
from preprocess.scenes import CLASSES, FORMAT, ORDER, Dials, Scene
from shared.cli import Progress, RequestError, plural
from shared.datasets.truth import truth_path

LEAST = {"videos": 1, "backgrounds": 1, "textures": 1, "frames": 2, "height": 48, "width": 48, "fps": 1, "seed": 0,
         "lookalikes": 0}
COLUMNS = ("path", "label", "split", "group", "background", "texture")
TOLD = ("motion", "look", "factor")     # of look-alikes besides


@dataclass(frozen=True)
class Planned:
    """One video to be; path is relative to the root. The group is the background, or the set of look-alikes, which no
    two splits share. motion, look: names of what look-alikes share; factor: in what a look differs from its set's."""

    number: int
    path: str
    label: str
    split: str
    group: str
    background: int
    texture: int
    motion: str = ""
    look: str = ""
    factor: str = ""


def make_videos(root: Path, *, videos: int, seed: int, backgrounds: int, textures: int, frames: int = 64,
                height: int = 128, width: int = 176, fps: int = 25, lookalikes: int = 0) -> list[Path]:
    """Write the videos, their truth and annotations.csv under `root`; what is there already is kept.

    frames: T; height, width: px, even; fps: frames a second; lookalikes: motions of a set of look-alikes, 0 for videos
    by themselves. Returns the paths of the videos, in the annotations'
    order. The bytes depend on the arguments and the versions of numpy, OpenCV and PyAV only; memory does not grow
    with T. Raises RequestError for impossible arguments, and where `root` holds anything else.
    """
    dials, root = Dials(videos, backgrounds, textures, frames, height, width, fps, seed, lookalikes), Path(root)
    _check(dials)
    planned = plan(dials)
    todo = [video for video in planned
            if not ((root / video.path).is_file() and truth_path(root / video.path).is_file())]
    _claim(root, dials, complete=not todo)
    _complete(root / "annotations.csv", lambda part: part.write_text(_annotations(planned), encoding="utf-8"))
    progress = Progress("synthetic videos", len(todo))
    for done, video in enumerate(todo):
        progress.update(done, f"{done} of {len(todo)}")
        path, scene = root / video.path, Lookalike(dials, Member.of(dials, video.number)) if lookalikes else \
            Scene(dials, video.number, video.label, video.background, video.texture)
        path.parent.mkdir(exist_ok=True)
        # The video gets its name last: where a run was killed, no video stands there without its truth.
        _complete(truth_path(path), lambda part: _write_truth(part, scene))
        _complete(path, lambda part: _write_video(part, scene))
    if todo:
        progress.close(text=f"{len(todo)} made")
    return [root / video.path for video in planned]


def plan(dials: Dials) -> list[Planned]:
    """Class, background, texture and split of every video.

    Walks the table of classes and backgrounds, no pair twice before each occurred once. The last third of the
    backgrounds (at least one, if there are two) is the test split. Of look-alikes it is the last third of the sets.
    """
    if dials.lookalikes:
        return _plan_lookalikes(dials)
    order = dials.random(ORDER).permutation(dials.videos)
    tested = max(1, dials.backgrounds // 3) if dials.backgrounds > 1 else 0
    cycle = math.lcm(len(CLASSES), dials.backgrounds)
    planned = []
    for number in range(dials.videos):
        label = CLASSES[number % len(CLASSES)]
        background = (number + number // cycle) % dials.backgrounds
        split = "test" if background >= dials.backgrounds - tested else "train"
        planned.append(Planned(number, f"{label}/{label}_{number:04d}.mp4", label, split, f"b{background:03d}",
                               background, int(order[number]) % dials.textures))
    return planned


def _plan_lookalikes(dials: Dials) -> list[Planned]:
    sets = -(-dials.videos // (dials.lookalikes * len(LOOKS)))
    tested = max(1, sets // 3) if sets > 1 else 0
    planned = []
    for number in range(dials.videos):
        member = Member.of(dials, number)
        label, group, shared = member.label(dials), f"s{member.set:03d}", Set.draw(dials, member.set)
        planned.append(Planned(number, f"{label}/{label}_{number:04d}.mp4", label,
                               "test" if member.set >= sets - tested else "train", group,
                               shared.background(member.factor), shared.texture(member.factor), f"{group}-{label}",
                               "-".join([group, *member.factor.split()]), member.factor))
    return planned


def _check(dials: Dials) -> None:
    for name, value in asdict(dials).items():
        if value < LEAST[name]:
            raise RequestError(f"synthetic videos: {name} is {value}; expected at least {LEAST[name]}")
        if name in ("height", "width") and value % 2:
            raise RequestError(f"synthetic videos: {name} is {value} px; H.264 needs an even number")
        if name in ("backgrounds", "textures") and value > dials.videos:
            raise RequestError(f"synthetic videos: {value:,} {name} for {plural(dials.videos, 'video')}; expected at "
                               "most as many")
    motions = dials.lookalikes
    if motions and not 2 <= motions <= len(MOVING):
        raise RequestError(f"synthetic videos: lookalikes is {motions}; expected 0, or 2 to {len(MOVING)} motions of a "
                           "set")
    for name, least in {"videos": motions * len(LOOKS), "backgrounds": 2, "textures": TEXTURES}.items():
        if motions and (value := getattr(dials, name)) < least:
            raise RequestError(f"synthetic videos: {plural(value, name[:-1])}; expected at least {least} for sets of "
                               f"{motions} motions in {len(LOOKS)} looks")


def _claim(root: Path, dials: Dials, complete: bool) -> None:
    """Refuse a folder that holds other videos; leave the settings in a new one."""
    settings = {"format": FORMAT, **asdict(dials)}
    versions = {"numpy": np.__version__, "opencv": cv2.__version__, "pyav": av.__version__}
    record = root / "synthetic.json"
    if not record.is_file():
        if root.is_dir() and any(root.iterdir()):
            raise RequestError(f"{root} holds other files and no synthetic.json; expected a new or an empty folder")
        root.mkdir(parents=True, exist_ok=True)
        written = {name: value for name, value in settings.items() if value or name != "lookalikes"}  # as before them
        text = json.dumps({"settings": written, "versions": versions}, indent=1) + "\n"
        _complete(record, lambda part: part.write_text(text, encoding="utf-8"))
        return
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        stored, made_with = {"lookalikes": 0} | found["settings"], dict(found["versions"])
    except (ValueError, TypeError, KeyError):
        raise RequestError(f"{record} is not a record of synthetic videos; remove {root} or choose another") from None
    if stored != settings:
        other = [f"{name} {stored.get(name)}, asked {settings.get(name)}" for name in sorted(stored | settings)
                 if stored.get(name) != settings.get(name)]
        raise RequestError(f"{root} holds synthetic videos of other settings ({'; '.join(other)}); "
                           "choose another folder or remove this one")
    if not complete and made_with != versions:
        raise RequestError(f"{root} is unfinished and was begun with {made_with}, now {versions}; "
                           "remove it to start anew")


def _annotations(planned: list[Planned]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = (*COLUMNS, *TOLD) if any(video.motion for video in planned) else COLUMNS
    writer.writerow(columns)
    writer.writerows([getattr(video, name) for name in columns] for video in planned)
    return out.getvalue()


def _complete(path: Path, write: Callable[[Path], object]) -> None:
    """`write` to a hidden sibling, sync it, and only then give it its name."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(part)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_video(path: Path, scene: Scene) -> None:
    """H.264 in mp4, 4:2:0, limited range, BT.601.

    One thread and one fixed quantiser: with threads, or with x264's macroblock tree (rate control in floating point
    that depends on where its memory lies), the bytes differ from run to run.
    """
    dials = scene.dials
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(dials.fps), options={"qp": "18", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = dials.width, dials.height, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.colorspace, stream.codec_context.color_range = Colorspace.ITU601, ColorRange.MPEG
        for t in range(dials.frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene.frame(t), format="rgb24")))
        container.mux(stream.encode(None))


def _write_truth(path: Path, scene: Scene) -> None:
    """An npz written frame by frame: mask (T, H, ceil(W/8)) packed bits, flow (T, 2, H, W) float16."""
    dials = scene.dials
    shapes = {"mask": (dials.frames, dials.height, -(-dials.width // 8)),
              "flow": (dials.frames, 2, dials.height, dials.width)}
    draw = {"mask": lambda t: np.packbits(scene.mask(t), axis=-1), "flow": lambda t: scene.flow(t).astype("<f2")}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, shape in shapes.items():
            descr = np.lib.format.dtype_to_descr(draw[name](0).dtype)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
                for t in range(dials.frames):
                    file.write(draw[name](t).tobytes())
