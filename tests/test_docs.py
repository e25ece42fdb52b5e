"""Every command and every piece of Python in README and docs: run on small data where that can be, else parsed.

`RUN` says which pages are run from top to bottom, as a reader would, in one folder (slow). All other commands of ours
are parsed by their own parsers, and their pipelines, presets and settings looked up: those need a cluster, a GPU, a
published set or an S3 server. What is not ours (pip, dask, ray, srun, ffmpeg) is left out.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from shared import cli
from shared.datasets.catalog import open_catalog
from shared.recipes.preprocessing import load_pipeline
from shared.recipes.training import load_training

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = "README.md", "own-videos.md"
SHORT = {"train/main.py": "--set steps=4 --set batch=4 --set bn_group=2 --set workers=0 --set images_every=0",
         "evaluate.embed": "--set features.clips=2", "evaluate.run": "--set features.clips=2",
         "preprocess.run": "--set preset=fast"}


def commands(page):
    """The commands of a page, one line each: indented by four or in a fenced block, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", page.read_text())
    blocks = re.findall(r"```(?:bash|sh|)\n(.*?)```", text, re.DOTALL) + re.findall(r"^ {4}\S.*$", text, re.MULTILINE)
    for line in "\n".join(blocks).splitlines():
        if re.match(r" *(python3?|torchrun|make|ray job submit) ", line):
            yield shlex.split(line, comments=True)


def ours(words):
    """(module or script, its arguments) of a command of this repository, else None."""
    words = words[words.index("--") + 1:] if words[:3] == ["ray", "job", "submit"] and "--" in words else words
    if words[0] == "torchrun":
        rest = words[1:]
        while rest and rest[0].startswith("--") and rest[0] != "--":
            rest = rest[2:]
        words = ["python", *rest]
    if words[0] not in ("python", "python3"):
        return None
    return (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])


COMMANDS = [(page, words) for page in PAGES for words in commands(page) if ours(words)]


class Parsed(BaseException):
    """The parser took the command."""


@pytest.mark.parametrize("page, words", COMMANDS,
                         ids=[f"{page.name}: {' '.join(words)}"[:90] for page, words in COMMANDS])
def test_a_command_is_parsed(page, words, monkeypatch, tmp_path, request):
    name, argv = ours(words)
    if "s3://" in " ".join(argv):
        import s3fs

        request.getfixturevalue("s3_server")
        s3fs.S3FileSystem().makedirs("bucket", exist_ok=True)
    if not re.fullmatch(r"(preprocess|evaluate)\.\w+|train/main\.py", name):
        assert name.startswith("pytest") or (ROOT / name).is_file(), f"{page.name} names {name}"
        return
    parse = cli.Arguments.parse_args

    def parsed(self, *args):
        raise Parsed(parse(self, *args))

    monkeypatch.chdir(tmp_path)
    for folder in re.findall(r"VIDEOS|FOLDER", " ".join(argv)):
        Path(folder).mkdir(exist_ok=True)
    monkeypatch.setattr(cli.Arguments, "parse_args", parsed)
    module = import_module("train.main" if name == "train/main.py" else
                           name + ".__main__" if (ROOT / name.replace(".", "/")).is_dir() else name)
    with pytest.raises(Parsed) as taken:
        module.main(argv)
    args = taken.value.args[0]
    if name == "train/main.py" and args.pipeline != "NAME":
        load_training(args.pipeline, args.settings)
    elif name == "preprocess.run" and args.dataset != "NAME":
        load_pipeline(args.dataset, args.recipe, args.settings)


def test_every_make_target_that_is_named_is_there():
    targets = set(re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())[1].split())
    for page in PAGES:
        named = set(re.findall(r"`make ([a-z-]+)", page.read_text()))
        named |= {words[1] for words in commands(page) if words[0] == "make" and len(words) > 1}
        assert named <= targets, f"{page.name} names make {' '.join(named - targets)}"


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_a_page_runs_from_top_to_bottom(page, small_videos, tmp_path, monkeypatch, run_line):
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    for number, video in enumerate(sorted(small_videos.rglob("*.mp4"))):
        place = tmp_path / "VIDEOS" / ("walk", "run")[number % 2] / f"{number // 2 + 1:04d}.mp4"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, place)
    (tmp_path / "labels.csv").write_text("path,label,split,group\nwalk/0003.mp4,walk,train;val,anna\n")
    (tmp_path / "train").symlink_to(ROOT / "train")
    monkeypatch.chdir(tmp_path)
    env = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                        "OMP_NUM_THREADS": "1"}
    ran = 0
    for words in commands(path):
        if not ours(words):
            assert words[0] == "make", words       # test_make.py runs it
            continue
        line = [word.replace("VIDEO", "walk/0003.mp4") if word == "VIDEO" else word for word in words]
        line += shlex.split(SHORT.get(ours(words)[0], ""))
        if line[0] == "python":
            assert run_line(line) == 0, shlex.join(line)
        else:
            done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"{shlex.join(line)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        ran += 1
    assert ran >= 6
    assert (tmp_path / "features/mine/features.npy").is_file() and (tmp_path / "results/mine/report.html").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_a_page_compiles(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        compile(block, str(page), "exec")


def test_lists_of_fine_gym_and_jester_become_a_folders_csv(tmp_path, monkeypatch):
    """The page's Python on small lists of the official forms; no film and no frames are there, so nothing is cut."""
    gym, jester = re.findall(r"```python\n(.*?)```", (ROOT / "docs/published-sets.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    film, clip = "A0xAXXysHUo", "A0xAXXysHUo_E_002184_002237_A_0035_0036"
    Path("gym99_categories.txt").write_text(
        "Clabel: 0; set: 1; Glabel: 1; (VT) round-off, flic-flac with 0.5 turn on\nClabel: 1; set: 22; Glabel: 9; "
        "(FX) switch leap; 1 turn\n")
    Path("gym99_train_element_v1.1.txt").write_text(f"{clip} 1\n-mmq0PT-u8k_E_000010_000014_A_0000_0002 0\n")
    Path("gym99_val_element.txt").write_text(f"{film}_E_002184_002237_A_0040_0043 0\n")
    Path("finegym_annotation_info_v1.1.json").write_text("{}")
    exec(gym, {})
    lists = ["jester-v1-train.csv", "34870;Drumming Fingers\n56557;Sliding Two Fingers Right\n",
             "jester-v1-validation.csv", "9223;Thumb Down\n", "jester-v1-test.csv", "12;\n7\n"]
    for name, text in zip(lists[::2], lists[1::2]):
        Path(name).write_text(text)
    exec(jester, {})
    for name in (f"clips/{clip}", "jester/34870", "jester/9223", "jester/7"):
        Path(f"{name}.mp4").touch()
    catalog = open_catalog("folder", tmp_path / "clips")
    assert [(v.id, v.class_name, v.splits, v.group) for v in catalog.videos] == [
        (f"{clip}.mp4", "(FX) switch leap; 1 turn", ("train",), film)]
    assert len(catalog.absent) == 2 and "(VT) round-off, flic-flac with 0.5 turn on" in catalog.classes
    catalog = open_catalog("folder", tmp_path / "jester")
    assert [(v.id, v.class_name, v.splits) for v in catalog.videos] == [
        ("34870.mp4", "Drumming Fingers", ("train",)), ("7.mp4", "", ("test",)), ("9223.mp4", "Thumb Down", ("val",))]
