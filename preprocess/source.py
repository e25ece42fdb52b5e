"""One video file through every stage in this process, without a store: what to look at, and to send, when reporting a
fault: `python -m preprocess.show --source VIDEO --out PNG`.
"""

import platform
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from preprocess.machine import versions
from preprocess.picture import video_picture
from preprocess.run import resolve
from preprocess.stages import check_size
from preprocess.task import PackReport, PackTask, make_pack
from shared import cli
from shared.cli import Progress, RequestError, plural, size
from shared.clips.index import ClipGeometry
from shared.datasets.catalog import Video
from shared.datasets.scan import video_file
from shared.pictures import figures
from shared.recipes.preprocessing import Pipeline, load_pipeline, pack_recipe_hash
from shared.store.index import publish
from shared.store.reader import StoreReader
from shared.videos.decode import Probe, frame_size, probe
from shared.videos.files import VideoError, VideoFile, size_of
from shared.videos.streams import open_source


def show_source(asked: str, out: Path, settings: Sequence[str]) -> int:
    """Print and draw what becomes of the file; returns DONE, or FAILURES where some of it failed.

    Raises RequestError for a file that is not there.
    """
    path, name = video_file(asked, "--source"), asked.rpartition("/")[2]
    if path is None:
        raise RequestError(f"--source {asked}: no such file; expected a video file, its URL, or ARCHIVE.tar/NAME")
    pipeline = resolve(load_pipeline("folder", settings=settings))
    lines = [f"{name}: {size(size_of(path))}", _versions()]
    say(lines)
    found, told = _headers(path, pipeline)
    say(told)
    lines += told
    picture, failed = None, found is None
    if found:
        with tempfile.TemporaryDirectory(prefix="motionpack-source-") as temporary:
            report = run_through(path, name, found, pipeline, Path(temporary))
            told = _told(report)
            say(told)
            lines += told
            failed = bool(report.failures or report.misplanned)
            if report.pack:
                publish(Path(temporary), [report.pack], report.videos)
                reader = StoreReader(Path(temporary))
                picture = video_picture(reader, name, pipeline.recipe,
                                        ClipGeometry.parse(pipeline.recipe.clips.geometries[0]))
    figures.save(figures.video_figure(picture, lines) if picture else figure_of(lines), out)
    print(out)
    return cli.FAILURES if failed else cli.DONE


def say(lines: Sequence[str]) -> None:
    """At once: a file that ends this process shall leave what was known."""
    print("\n".join(lines), flush=True)


def _versions() -> str:
    return "; ".join([platform.platform(), *(f"{name} {version}" for name, version in versions().items())])


def _headers(path: VideoFile, pipeline: Pipeline) -> tuple[Probe | None, list[str]]:
    """What the headers say, and it in words; None where they rule the video out."""
    settings, lines = pipeline.recipe.frames, []
    try:
        with open_source(path) as source:
            codec = source.stream.codec_context
            lines.append(f"headers: {source.container.format.name}, {codec.name}, {codec.pix_fmt}, coded "
                         f"{codec.width}x{codec.height}, sample aspect {source.stream.sample_aspect_ratio or 1}, "
                         f"time base {source.stream.time_base}, {plural(len(source.container.streams), 'stream')}")
        found = probe(path, settings.square_pixels, settings.reading)
        height, width = check_size(frame_size(found.source_height, found.source_width, settings.short_side,
                                              settings.multiple), pipeline.recipe)
    except VideoError as error:
        return None, [*lines, f"failed at stage `{error.stage}`: {error.reason}"]
    lines.append(f"plan: {plural(found.frames, 'frame')} by {found.basis}, {found.duration_s:.3f} s, {found.fps:.4g} "
                 f"frames/s, shown at {found.source_width}x{found.source_height}, stored at {width}x{height}"
                 + f"; {found.note}" * bool(found.note))
    return found, lines


def run_through(path: VideoFile, name: str, found: Probe, pipeline: Pipeline, store: Path) -> PackReport:
    """The file's pack in a temporary store; where its frames are of another size than its headers say, once more."""
    recipe, progress, done = pipeline.recipe, Progress("frames", max(found.frames, 1)), [0]

    def tell(videos: int, frames: int) -> None:
        done[0] += frames
        progress.update(done[0], plural(done[0], "frame"))

    size_told = frame_size(found.source_height, found.source_width, recipe.frames.short_side, recipe.frames.multiple)
    video = Video(name, name, -1, "", "", (), path)
    task = PackTask(store, store, "source", size_told, (video,), recipe,
                    pack_recipe_hash(recipe.to_dict()), pipeline.run)
    report = make_pack(task, tell)
    if report.misplanned and report.misplanned[0].frame_size != size_told:
        say([f"frames are of {report.misplanned[0].frame_size}, not of {size_told} as the headers say: again"])
        report = make_pack(replace(task, frame_size=report.misplanned[0].frame_size), tell)
    progress.close(done[0], plural(done[0], "frame"))
    return report


def _told(report: PackReport) -> list[str]:
    """What came of the file, in words."""
    lines = []
    for row in report.videos:
        count = sum(count for count, _ in report.pack.files.values())
        lines.append(f"stored: {plural(row.frames, 'frame')} at {row.fps:.4g} frames/s, {size(count)}"
                     + f"; {row.note}" * bool(row.note))
    for failure in report.failures:
        lines.append(f"failed at stage `{failure.stage}`: {failure.reason}")
    seconds = {stage: spent for stage, spent in report.seconds.items() if spent > 0}
    lines.append(f"CPU seconds: {', '.join(f'{stage} {spent:.3g}' for stage, spent in seconds.items())}; "
                 f"{report.wall_s:.3g} s by the clock, {1000 * report.wall_s / max(report.frames, 1):.3g} ms a frame")
    for text in report.tracebacks:
        lines += text.splitlines()
    return lines


def figure_of(lines: Sequence[str]) -> Figure:
    """The lines alone, where there is nothing to draw."""
    figure = figures.new_figure(12.0, 0.5 + 0.3 * len(figures.folded(lines, 12.0)))
    figures.report(figure, figures.folded(lines, 12.0), 0.4)
    return figure
