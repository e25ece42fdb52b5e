"""What messages suggest works as typed: every message of the sources that names a command with its arguments or a
setting with its value needs a case here, which provokes it, takes what it suggests from its text, and runs that.

All of it happens in a folder whose videos and stores have names with blanks, quotes and a leading dash.
"""

import ast
import importlib
import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from shared.cli import RequestError, Stopped
from shared.recipes.preprocessing import load_pipeline
from shared.recipes.training import load_training
from shared.store.index import Index
from shared.store.layout import StoreError, cure
from shared.store.place import as_place
from shared.store.reader import StoreReader

ROOT = Path(__file__).resolve().parents[1]
CONCRETE = re.compile(r"python -m [\w.]+ |`\0 --|--set [\w.\0]+=|--retry-failed|--resume auto|choose --\w+ \w|--help"
                      r"|^--(leave-out|holdout) [\w.]+$")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
OTHERS = {"--nthreads", "--resources", "--nproc-per-node", "--working-dir", "--head", "--run-path", "--run", "--logdir",
          "--array", "--sparse"}
VIDEOS, STORE = "-my 'videos'", "-its a \"store\"   of 6"
SMALL = [word for setting in ("size=16", "model.width=2", "hidden=8", "dim=8", "batch=2", "bn_group=2", "queue=32",
                              "steps=1", "workers=0", "threads=1", "images_every=0") for word in ("--set", setting)]
PACK = ["--engine", "serial", "--flow", "cpu", "--set", "preset=fast", "--set=threads=1"]


@dataclass(frozen=True)
class Site:
    """A text of the sources that names a flag or a command; \\0 stands for what is put in."""

    file: str
    text: str

    def said(self, message: str) -> bool:
        return re.search(".*?".join(map(re.escape, self.text.split("\0"))), message, re.DOTALL) is not None


def texts(node: ast.AST):
    """All strings below a node but docstrings and the help of arguments."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) or \
            isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("add_argument", "Arguments"):
        return
    if isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield re.sub(r"\{\w+\}", "\0", node.value)         # of str.format
    for child in ast.iter_child_nodes(node):
        if not (isinstance(node, ast.JoinedStr) and isinstance(child, ast.Constant)):
            yield from texts(child)


SITES = [Site(path.relative_to(ROOT).as_posix(), text)
         for folder in ("preprocess", "train", "evaluate", "shared") for path in sorted((ROOT / folder).rglob("*.py"))
         for text in texts(ast.parse(path.read_text()))
         if " " in text.strip() and (FLAG.search(text) or "python -m" in text)]
CASES = {}


def case(*needles: str, slow: bool = False):
    """The decorated function provokes the messages that hold these texts of the sources."""
    def add(function):
        CASES[function.__name__] = needles, function, slow
        return function
    return add


class Lab:
    """Runs commands in this process; `messages` is all that they said. Commands that messages suggest are taken from
    the text and typed."""

    def __init__(self, capsys, monkeypatch):
        self.capsys, self.monkeypatch, self.messages = capsys, monkeypatch, []

    def type(self, line: str | list[str]) -> int:
        """The exit code of `python -m NAME ARGUMENTS` or of train/main.py's; several by `&&`."""
        words = shlex.split(line) if isinstance(line, str) else line
        if "&&" in words:
            at = words.index("&&")
            return self.type(words[:at]) or self.type(words[at + 1:])
        assert words[0] == "python"
        name, argv = (words[2], words[3:]) if words[1] == "-m" else ("train.main", words[2:])
        self.monkeypatch.setattr(sys, "argv", [name, *argv])
        try:
            return importlib.import_module(name).main(argv)
        except SystemExit as end:              # of --help
            return end.code
        finally:
            said = self.capsys.readouterr()
            self.messages.append(said.out + said.err)

    def refused(self, line: list[str]) -> str:
        with pytest.raises((RequestError, Stopped)) as caught:
            self.type(line)
        self.messages.append(str(caught.value))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def says(self, kinds, function, *arguments) -> str:
        with pytest.raises(kinds) as caught:
            function(*arguments)
        self.messages.append(str(caught.value))
        return str(caught.value)

    def store(self, name: str) -> str:
        """A copy of the store for a case that changes it."""
        shutil.copytree(STORE, name)
        return name

    def train(self, out: str, *more: str, pipeline: str = "moco-tiny", store: str = STORE) -> list[str]:
        return ["python", "train/main.py", "--pipeline", pipeline, "--store", store, "--out", out, *SMALL, *more]

    def evaluate(self, protocol: str, out: str, *more: str, store: str = STORE,
                 checkpoint: str = "mean-image") -> list[str]:
        return ["python", "-m", "evaluate.run", "--protocol", protocol, "--checkpoint", checkpoint, "--store", store,
                "--out", out, *more]


def commands(message: str) -> list[str]:
    return re.findall(r"`(python .*?)`", message)


def ways(message: str, after: str) -> list[list[str]]:
    """What is to be added to the command, alternatives by `or`."""
    said = message.rpartition(after)[2]
    return [re.findall(r"--[a-z-]+(?: (?!--|or\b)[^\s,;)]+)?", way) for way in re.split(r";? or ", said)]


def added(way: list[str]) -> list[str]:
    return shlex.split(" ".join(way))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with six videos and their store."""
    from preprocess import run
    from preprocess.synthetic import make_videos

    folder, before, argv = tmp_path_factory.mktemp("it's here") / "a  b", Path.cwd(), sys.argv
    folder.mkdir()
    os.chdir(folder)
    make_videos(as_place(folder / VIDEOS), videos=6, seed=3, backgrounds=3, textures=3, frames=32, height=64, width=64)
    sys.argv = ["preprocess.run", "--dataset", "folder", "--videos", VIDEOS, "--store", STORE, *PACK,
                "--set", "geometries=8x2"]
    try:
        assert run.main(sys.argv[1:]) == 0
        yield folder
    finally:
        os.chdir(before)
        sys.argv = argv


@pytest.fixture
def lab(place, capsys, monkeypatch, quiet_torch):
    return Lab(capsys, monkeypatch)


@case("`\0 --drop-missing \0`", "`\0 --drop \0`", "`\0 --annotations CSV`", "--retry-failed",
      "python -m preprocess.reindex \0", "`python -m preprocess.show \0 --list` lists",
      "`python -m preprocess.show \0 --list` prints", "has packs but no store.json",
      "python -m preprocess.reindex \0 --clips \0", "add another with")
def what_preprocessing_says(lab):
    store, videos = lab.store("-grown"), "-grown 'videos'"
    shutil.copytree(VIDEOS, videos)
    again = ["python", "-m", "preprocess.run", "--dataset", "folder", "--videos", videos, "--store", store, *PACK]
    table = [line.split(",")[:4] for line in Path(videos, "annotations.csv").read_text().splitlines()]
    gone, struck, moved = (row[0] for row in table[1:4])
    os.remove(Path(videos, gone))
    shutil.copy(Path(videos, struck), Path(videos, "new.mp4"))
    Path(videos, "broken.mp4").write_bytes(Path(videos, moved).read_bytes()[:300])
    table[1:4] = [[path, "other", "train", ""] for path in (moved, "new.mp4", "broken.mp4")]
    Path(videos, "annotations.csv").write_text("\n".join(map(",".join, table)))
    shutil.copy(Path(videos, "annotations.csv"), "CSV")
    assert lab.type(again) == 1
    said = lab.messages[-1]
    typed = commands(said)
    assert len(typed) == 3 and [lab.type(line) for line in typed] == [0, 0, 0]
    index = Index.load(as_place(Path(store).absolute()))
    assert not {gone, struck} & set(index.id) and index.row(moved).class_name == "other"
    shutil.copy(Path(videos, moved), Path(videos, "broken.mp4"))
    assert "--retry-failed tries them again" in said and lab.type([*again, "--retry-failed"]) == 0
    assert "`" not in lab.messages[-1] and "broken.mp4" in Index.load(as_place(Path(store).absolute())).id

    for line in (["python", "-m", "preprocess.show", f"./{store}", "--video", "?", "--out", "a.png"],
                 ["python", "-m", "preprocess.reindex", f"./{store}", "--drop", "?"]):
        assert lab.type(commands(lab.refused(line))[0]) == 0 and "broken.mp4" in lab.messages[-1]
    os.remove(Path(store, "store.json"))
    assert lab.type(commands(lab.refused(again))[0]) == 0
    wider = [*again, "--set", "geometries=8x2,4x2,4x3"]
    assert lab.type(commands(lab.refused(wider))[0]) == 0 and lab.type(wider) == 0
    picture = ["python", "-m", "preprocess.show", f"./{store}", "--clips", "2x2", "--out", "a.png"]
    assert lab.type(commands(lab.refused(picture))[0]) == 0 and lab.type(picture) == 0


@case("lists all that is damaged", "the same command with --resume auto goes on", "go on with it by --resume auto",
      "rebuilds index", "does it at once", "adds clips from", "is damaged; `python -m preprocess.check \0`")
def what_a_damaged_store_and_an_old_run_say(lab):
    store, run = lab.store("-damaged"), "-run"
    shard = next(Path(store).glob("packs/*/*/rgb/c*"))
    for path in [shard] if shard.is_file() else filter(Path.is_file, shard.rglob("*")):
        whole = path.read_bytes()
        path.write_bytes(bytes(len(whole)))
        said = lab.refused(lab.train(run, store=store))
        assert lab.type(commands(said)[0]) == 1 and lab.messages[-1].count("packs/")
        path.write_bytes(whole)
    assert "--resume auto" in said and lab.type(lab.train(run, "--resume", "auto", store=store)) == 0
    assert "--resume auto" in lab.refused(lab.train(run))
    assert lab.type(lab.train(run, "--resume", "auto", store=store)) == 0
    next(Path(store, "records").glob("[0-9]*.json")).write_bytes(b"{}")
    lab.type(["python", "-m", "preprocess.status", f"./{store}"])
    assert lab.type(commands(lab.messages[-1])[0]) == 1
    for fault in ("pack p lacks clips 8x2", "packs/p: the index does not list it", "store.json: is damaged"):
        lab.messages.append(cure(fault, Path(store)))
        line = commands(lab.messages[-1])[0].replace("LxS", "4x2")
        assert lab.type(line) == 0


@case(" --set batch=\0", " --set bn_group=\0", " --set clip=\0", "\0 --set motion_clip=\0", "add them with `python",
      "contrast.queue is", "contrast.bn is shuffle", "--set reshard=true")
def what_a_training_says(lab):
    """Each way by itself; those of the settings alone get past what was refused, the others train."""
    from shared.nn import checkpoint

    asked = ["--set", "batch=63", "--set", "bn_group=61"]
    for number, way in enumerate(ways(said := lab.refused(lab.train("no", *asked)), "process: ")):
        assert lab.type(lab.train(f"batch {number}", *asked, *added(way))) == 0, said
    said = lab.refused(lab.train("no", "--set", "clip=8x8"))
    assert lab.type(lab.train("clip", *added(ways(said, "long enough for, ")[0]))) == 0
    said = lab.refused(lab.train("no", "--set", "clip=8x8", "--set", "motion_clip=8x8", pipeline="maclr-tiny"))
    assert "keeps no edges" in lab.refused(lab.train("no", *added(ways(said, "long enough for, ")[0]), "--set",
                                                     "motion_clip=8x2", pipeline="maclr-tiny"))
    store = lab.store("-more clips")
    said = lab.refused(lab.train("no", "--set", "clip=4x2", store=store))
    assert lab.type(commands(said)[0]) == 0 and lab.type(lab.train("more", "--set", "clip=4x2", store=store)) == 0
    said = lab.says(StoreError, StoreReader(store).clips, Index.load(store).id[0], "2x2")
    assert lab.type(commands(said)[0]) == 0 and len(StoreReader(store).clips(Index.load(store).id[0], "2x2").start)
    for setting in ("queue=1", "bn=shuffle"):
        said = lab.refused(lab.train("no", "--set", setting))
        for number, way in enumerate(ways(said, "; add ")):
            if way:
                assert lab.type(lab.train(f"{setting} {number}", "--set", setting, *added(way))) == 0, said
    state = checkpoint.load("more/last.pt")
    state["provenance"]["world_size"] = 2
    checkpoint.save("more/last.pt", state)
    before = lab.train("more", "--set", "clip=4x2", "--resume", "auto", store=store)
    assert lab.type([*before, *added(ways(lab.refused(before), "or add ")[0])]) == 0


@case("keeps no \0", slow=True)
def what_a_store_without_edges_says(lab):
    """The whole command, with the videos, annotations and settings of the run that made the store."""
    asked = ["--set", "clip=8x2", "--set", "motion_clip=8x2"]
    said = lab.refused(lab.train("no", *asked, pipeline="maclr-tiny"))
    [line] = commands(said)
    assert lab.type(line) == 0
    other = next(word for before, word in zip(shlex.split(line), shlex.split(line)[1:]) if before == "--store")
    assert lab.type(lab.train("edges", *asked, pipeline="maclr-tiny", store=other)) == 0
    assert "--flow cpu --set preset=fast --set threads=1" in line
    asked += added(ways(said, "or train with ")[0])
    assert lab.type(lab.train("difference", *asked, pipeline="maclr-tiny")) == 0


@case("sees single frames and", "single frames, for", "--set alignment.\0=\0", "expected the same time: add",
      "MaCLR takes one key")
def what_recipes_say(lab):
    for pipeline, *settings in (("moco-tiny", "backbone=r2d_50", "clip=8x2"),
                                ("moco-tiny", "clip=1x1"), ("mcl-tiny", "backbone=r2d_50", "clip=1x1", "st=true"),
                                ("maclr-tiny", "clip=16x2"),
                                ("maclr-tiny", "keys=3")):
        said = lab.says(RequestError, load_training, pipeline, settings)
        assert (more := re.findall(r"--set ([^\s,;)]+)", said)), said
        load_training(pipeline, [*settings, *more])


@case("`python -m preprocess.reindex \0 --annotations CSV`", "--leave-out group", "--holdout 0.2", "finetune.batch=\0",
      "finetune.nesterov is true", "--leave-out \0", "test asks about", "the videos have no groups")
def what_evaluations_say(lab):
    from evaluate import folds
    from evaluate.finetuned import supervised

    def label(columns):
        """The file CSV: a row a video, of its number."""
        rows = [f"{path},{columns(number)}" for number, path in enumerate(Index.load(store).path)]
        Path("CSV").write_text("\n".join(["path,label,split,group", *rows]))

    def past(*_, **__):
        raise Stopped("past")

    store = lab.store("-labels")
    label(lambda number: f"{number % 2},train,g{number % 3}")
    assert lab.type(["python", "-m", "preprocess.reindex", f"./{store}", "--annotations", "CSV"]) == 0
    lab.monkeypatch.setattr(folds, "extract", past)
    said = lab.refused(lab.evaluate("retrieval", "none", store=store))
    for way in ("--leave-out group", "--holdout 0.2"):
        assert f"use {way}" in said
        assert lab.refused(lab.evaluate("retrieval", "none", *way.split(), store=store)) == "past"
    label(lambda number: f"{number % 2},{'test' if number < 2 else 'train'},g{number % 3}")
    assert lab.type(commands(said)[0]) == 0
    assert lab.refused(lab.evaluate("retrieval", "none", store=store)) == "past"
    for bare, asked in ((",train,", ["--leave-out", "group"]), ("a,train,", ["--leave-out", "group"]),
                        ("a,train,", ["--holdout", "0.5", "--by", "group"]), ("a,train,g", ["--leave-out", "group"])):
        label(lambda number: bare)
        assert lab.type(["python", "-m", "preprocess.reindex", f"./{store}", "--annotations", "CSV"]) == 0
        said = lab.refused(lab.evaluate("retrieval", "none", *asked, store=store))
        label(lambda number: f"{number % 2},train,g{number % 3}")
        assert lab.type(commands(said)[0]) == 0
        assert lab.refused(lab.evaluate("retrieval", "none", *asked, store=store)) == "past"
    label(lambda number: "a,train,")
    assert lab.type(["python", "-m", "preprocess.reindex", f"./{store}", "--annotations", "CSV"]) == 0
    trained = lab.train("groups", "--set", "leave_out=it's 1", store=store)
    said = lab.refused(trained)
    label(lambda number: f"{number % 2},train,it's {number % 3}")
    assert lab.type(commands(said)[0]) == 0 and lab.type([*trained, "--resume", "auto"]) == 0
    said = lab.refused(lab.evaluate("retrieval", "none", "--leave-out", "group=it's 2", store=store,
                                    checkpoint="groups/last.pt"))
    way, again = (shlex.split(said.partition(word)[2].partition(", or ")[0]) for word in ("ask with ", ": add "))
    assert lab.refused(lab.evaluate("retrieval", "none", *way, store=store, checkpoint="groups/last.pt")) == "past"
    assert lab.type(lab.train("others", *again, store=store)) == 0
    label(lambda number: f"{number % 2},{'test' if number < 2 else 'train'},g{number % 3}")
    assert lab.type(["python", "-m", "preprocess.reindex", f"./{store}", "--annotations", "CSV"]) == 0
    lab.monkeypatch.setattr(supervised, "carry_out", past)
    for asked in (["finetune.batch=64"], ["momentum=0.0", "finetune.batch=2"], ["finetune.batch=4", "bn_group=3"]):
        settings = [word for setting in asked for word in ("--set", setting)]
        line = lab.evaluate("finetune", "none", *settings, store=store, checkpoint="random:r2plus1d_tiny")
        way = ways(lab.refused(line), ": add " if "batch" in asked[0] else "; add ")[0]
        assert lab.refused([*line, *added(way)]) == "past"


@case("the --out folder of an evaluation", "evaluate.run --help", "evaluate.embed --help", "\0 --help",
      "`python -m evaluate.export --hub`", "choose --engine dask", "choose --flow cpu", "make it with `python",
      "every video lies in")
def what_requests_say(lab):
    from evaluate.motion.truth import check_synthetic
    from preprocess.engines.dask import _local_cluster

    for line in (["python", "-m", "evaluate.run"], ["python", "-m", "evaluate.embed", "--store", "s", "--out", "o"],
                 lab.train("no", "--sets", "batch=2")):
        assert lab.type(commands(lab.refused(line))[0]) == 0
    plan = ["python", "-m", "preprocess.run", "--dataset", "folder", "--videos", VIDEOS, "--plan"]
    assert "dask" in lab.refused([*plan[:-1], "--store", "-serial", "--engine", "serial", "--workers", "2"])
    assert "--flow cpu" in lab.says(RequestError, _local_cluster, None, 999.0)
    assert lab.type([*plan, "--store", "-s", "--engine", "dask", "--flow", "cpu"]) == 0
    line = commands(lab.says(RequestError, check_synthetic, Index.load(STORE), [0]))[0]
    small = "--set generate.videos=3 --set backgrounds=2 --set textures=2 --set generate.frames=8"
    assert lab.type(f"{line} {small} --plan") == 0
    lab.refused(["python", "-m", "evaluate.run", "--compare", VIDEOS, "none", "--out", "no"])
    shutil.copytree(VIDEOS, "-one folder/it's/train", ignore=shutil.ignore_patterns("*.csv"))
    shutil.copytree("-one folder/it's/train", "-one folder/it's/val")
    assert lab.type([*plan[:-2], "-one folder", "--store", "-s", "--plan"]) == 0
    found = re.search(r"(--videos .*) takes", lab.messages[-1])[1]
    assert lab.type([*plan[:-3], *shlex.split(found), "--store", "-s", "--plan"]) == 0
    assert "as the split" in lab.messages[-1]

    assert lab.type(lab.train("-trained")) == 0
    line = commands(lab.refused(lab.evaluate("retrieval", "none", checkpoint="./-trained")))
    assert lab.type([*shlex.split(line[0]), "-hub", "--checkpoint", "-trained/last.pt"]) == 0
    embed = ["python", "-m", "evaluate.embed", "--checkpoint", "-hub", "--store", STORE, "--out", "-features"]
    assert lab.type(embed) == 0


# What needs another machine, a GPU, many videos or a long run to be said; the tests of its own module provoke it. Here:
# the settings are of the command that it is said of, and are taken.
SPELT = {"Training clips were flipped": "finetune flip=auto", "liblinear stopped": "linear normalise=true",
         "raise it with --set run.time_limit_s": "preprocess run.time_limit_s=84",
         "raise it with --set run.memory_gb": "preprocess run.memory_gb=3",
         "--set run.gpus_per_task=1, or": "preprocess run.gpus_per_task=1",
         "ask for less by --set run.gpus_per_task=\0": "preprocess run.gpus_per_task=1",
         "--set run.threads=1": "preprocess run.threads=1",
         "no test video moves more": "controls controls.truth=false; generate generate.frames=64",
         "show their object": "controls controls.truth=false", "takes batches of": "generate generate.videos=64",
         "does not record where": "controls controls.truth=false controls.videos=DIR",
         "have no truth": "controls controls.truth=false controls.videos=DIR",
         "sees no motion in single frames": "linear features.clip=16x2",
         "no annotations.csv is beside": "lookalikes lookalikes.motion=class lookalikes.look=group",
         "neither a whole movie": "detection detection.start_s=9", "so small that": "preprocess motion.border_px=0",
         "which maps of": "preprocess geometries=8x2,4x2"}


@pytest.mark.parametrize("needle", SPELT)
def test_settings_that_messages_name_are_taken(needle):
    from evaluate.protocol import load_settings

    text = next(site.text for site in SITES if needle in site.text)
    for asked in SPELT[needle].split("; "):
        command, *settings = asked.split()
        assert all(f"--set {setting.partition('=')[0]}=" in text for setting in settings)
        if command in ("preprocess", "generate"):
            load_pipeline("synthetic" if command == "generate" else "folder", None, settings)
        else:
            load_settings(command, settings)


def test_flags_that_messages_name_are_of_the_command():
    of = {}
    for folder in ("preprocess", "train", "evaluate"):
        source = "\n".join(path.read_text() for path in (ROOT / folder).rglob("*.py"))
        of[folder] = set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', source)) | {"--help"}
    wrong = [(site.file, flag) for site in SITES for flag in FLAG.findall(site.text)
             if flag not in OTHERS.union(*(flags for folder, flags in of.items() if site.file.startswith(
                 (f"{folder}/", "shared/")) or f"{folder}." in site.text))]
    assert not wrong


def test_every_suggestion_has_a_case():
    needles = [*SPELT, *(needle for needles, _, _ in CASES.values() for needle in needles)]
    missing = [site for site in SITES if CONCRETE.search(site.text) and not any(n in site.text for n in needles)]
    assert not missing, "\n".join(f"{site.file}: {site.text!r}" for site in missing)
    assert not [needle for needle in needles if not any(needle in site.text for site in SITES)]


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * slow)
                                  for name, (_, _, slow) in CASES.items()])
def test_what_messages_suggest_works_as_typed(name, lab):
    needles, function, _ = CASES[name]
    function(lab)
    said = "\n".join(lab.messages)
    unsaid = [needle for needle in needles if not any(needle in site.text and site.said(said) for site in SITES)]
    assert not unsaid
