"""Committed packs: each name once, nothing damaged passes, and only our own half-written files are swept."""

import os
import shutil

import pytest

from shared.store.committed import committed_packs, load_pack, sweep_partials
from shared.store.layout import StoreError
from shared.store.verify import verify_pack


def test_two_packs_of_one_name_are_noticed(tmp_path, make):
    make().pack(tmp_path, (3,))
    make(size=(40, 32)).pack(tmp_path, (3,))
    with pytest.raises(StoreError, match="packs/40x32/p0: has the name of packs/32x40/p0"):
        committed_packs(tmp_path)


def test_load_pack_refuses_what_is_not_whole(tmp_path, make):
    row, rows, _ = make().pack(tmp_path, (20,))
    path = tmp_path / row.path
    backup = tmp_path / "backup"
    shutil.copytree(path, backup)

    def damage(name, change):
        shutil.rmtree(path)
        shutil.copytree(backup, path)
        change(path / name)
        with pytest.raises(StoreError, match="p0"):
            load_pack(tmp_path, row.path)
        assert verify_pack(tmp_path, row, rows)

    for name in row.files:
        damage(name, lambda file: file.unlink())
        damage(name, lambda file: file.write_bytes(file.read_bytes()[:-1]))
        damage(name, lambda file: file.write_bytes(file.read_bytes() + b"\0"))
    damage("stray", lambda file: file.write_bytes(b"x"))

    def swap(file):  # both end in their own checksum, so the CRC-32C of the whole files is the same
        other = file.parents[1] / "s_p90" / "c.0"
        one, two = file.read_bytes(), other.read_bytes()
        assert len(one) == len(two) and one != two
        file.write_bytes(two)
        other.write_bytes(one)
    damage("clips/4x2/score/c.0", swap)


def test_only_our_own_partials_are_swept(tmp_path, make):
    make().pack(tmp_path, (5,))
    code = "0123456789abcdef" * 2
    ours = [f".current.{code}.partial", f"index/.000001-00000000.{code}.partial", f"records/.r.json.{code}.partial",
            f"packs/32x40/.p1.{code}.partial", "packs/32x40/.p0.8x8.partial",
            f"packs/32x40/p0/.zarr.json.{code}.partial"]
    theirs = [".download.partial", ".notes.8x8.partial", f"film.{code}.partial", "packs/32x40/.p0.partial",
              f"packs/32x40/p0/.x.{code}.partial", f"elsewhere/.a.{code}.partial", f".a.{code[1:]}.partial"]
    for name in (*ours, *theirs):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "target").mkdir()
    ours.append(f".link.{code}.partial")
    (tmp_path / ours[-1]).symlink_to(tmp_path / "target")
    assert sorted(sweep_partials(tmp_path)) == sorted(ours)
    assert all((tmp_path / name).exists() for name in (*theirs, "target"))
    assert not any(os.path.lexists(tmp_path / name) for name in ours)
