"""A store over a folder that changes: what is renamed, moved, struck from the list, or now read in another way."""

import errno
import os
import shlex
import shutil
from pathlib import Path

import pytest

from preprocess import reindex, run
from shared.store.index import Index


@pytest.fixture
def tree(small_videos, tmp_path) -> Path:
    """Two classes of two videos each in train/, without a CSV."""
    root = tmp_path / "my videos"
    for number, file in enumerate(sorted(small_videos.rglob("*.mp4"))[:4]):
        (root / "train" / "ab"[number // 2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / "train" / "ab"[number // 2] / f"{number}.mp4")
    return root


def preprocess(root, *more, code=0):
    assert run.main(["--dataset", "folder", "--videos", str(root), "--store", str(root.parent / "store"), "--engine",
                     "serial", "--set", "preset=fast", *more]) == code
    index = Index.load(root.parent / "store")
    return {video: (index.row(video).class_name, index.row(video).label, index.row(video).splits) for video in index.id}


def notes(text: str) -> list[str]:
    return [line.removeprefix("note     ") for line in text.splitlines() if line.startswith("note")]


@pytest.mark.slow
def test_what_was_renamed_is_counted_and_named_with_the_command_that_drops_it(tree, capsys, monkeypatch):
    assert len(preprocess(tree)) == 4 and len(notes(capsys.readouterr().out)) == 1
    (tree / "train/a").rename(tree / "train/c")
    before = f"python -m preprocess.reindex {tree.parent}/store --drop-missing '{tree}'"
    assert len(preprocess(tree)) == 6
    said = notes(capsys.readouterr().out)[1]
    assert said == (f"2 videos of the store are not under {tree} and still in use (first train/a/0.mp4, "
                    f"train/a/1.mp4); what was renamed or moved counts twice: `{before}` drops them")

    # The command as it stands there drops them, and the next run says nothing of them; nor does a failure go on that
    # is of no file any more.
    (tree / "train/c/bad.mp4").write_bytes(b"no video")
    (tree / "train/c/0.mp4").rename(tree / "train/c/4.mp4")
    assert reindex.main(shlex.split(before)[3:]) == 0
    assert len(preprocess(tree, code=1)) == 4
    (tree / "train/c/bad.mp4").unlink()
    capsys.readouterr()
    preprocess(tree, code=1)
    said = notes(capsys.readouterr().out)
    assert said[1:] == [f"1 failure is of a video that is no longer under {tree} (first train/c/bad.mp4); "
                        f"`{before}` drops it"]
    assert reindex.main(shlex.split(before)[3:]) == 0
    capsys.readouterr()
    assert len(preprocess(tree)) == 4 and len(notes(capsys.readouterr().out)) == 1

    # What cannot be read is not gone; what a list leaves out is said as that.
    listed = os.scandir

    def fake(path):
        if not isinstance(path, int) and Path(path).name == "b":     # shutil gives descriptors
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", fake)
    (tree.parent / "list.csv").write_text("path,label\ntrain/c/1.mp4,c\n")
    preprocess(tree, "--annotations", str(tree.parent / "list.csv"))
    said = "\n".join(notes(capsys.readouterr().out))
    assert "1 folder or file left out, since reading failed (first train/b: Permission denied)" in said
    assert "of the store is not under" not in said and "of the store are not under" not in said
    assert (f"1 video of the store is not listed and still in use (first train/c/4.mp4); `python -m preprocess.reindex "
            f"{tree.parent}/store --drop train/c/4.mp4` drops one") in said


@pytest.mark.slow
def test_a_store_that_read_splits_as_classes_goes_on_so(tree, capsys):
    """As today's stores do whose folders are now read as splits: same videos, same ids, one meaning of a class."""
    old = tree.parent / "old.csv"
    old.write_text("path,label,split\n" + "".join(f"train/{name},train,train\n" for name in
                                                  ("a/0.mp4", "a/1.mp4", "b/2.mp4", "b/3.mp4")))
    before = preprocess(tree, "--annotations", str(old))
    assert set(before.values()) == {("train", 0, ("train",))}
    shutil.copytree(tree / "train/a", tree / "val/a")
    capsys.readouterr()
    after = preprocess(tree)
    assert after == before | {f"val/a/{name}.mp4": ("val", 1, ("train",)) for name in "01"}
    said = notes(capsys.readouterr().out)
    assert len(said) == 1 and said[0].startswith("the videos that the store holds were read with the first folder as")
    shutil.rmtree(tree.parent / "store")
    after = preprocess(tree)
    assert {video: after[video] for video in ("train/b/2.mp4", "val/a/0.mp4")} == {
        "train/b/2.mp4": ("b", 1, ("train",)), "val/a/0.mp4": ("a", 0, ("val",))}
