"""What there is of a machine for tasks."""

import pytest

from preprocess import machine


@pytest.mark.parametrize("files, cores", [
    ({}, 8), ({"cpu.max": "250000 100000\n"}, 2), ({"cpu.max": "max 100000\n"}, 8), ({"cpu.max": "20000 100000\n"}, 1),
    ({"cpu.max": "6400000 100000\n"}, 8),
    ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8)])
def test_a_container_has_the_cores_that_it_is_given_the_time_of(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.machine_cores() == cores


@pytest.mark.parametrize("here, gpus, cores", [(4, 1, 4), (4, 2, 8), (4, 0.5, 2), (1, 1, 16), (0, 1, 16), (4, 0, 16),
                                               (32, 1, 1)])
def test_tasks_on_gpus_share_all_cores_of_their_machine(tmp_path, monkeypatch, here, gpus, cores):
    """Also those tasks do that see one GPU only, as a cluster's workers may (CUDA_VISIBLE_DEVICES)."""
    monkeypatch.setattr(machine, "machine_cores", lambda: 16)
    monkeypatch.setattr(machine, "GPUS", tmp_path)
    for number in range(here):
        (tmp_path / f"0000:{number:02x}:00.0").mkdir()
    assert machine.task_cores(gpus) == cores
