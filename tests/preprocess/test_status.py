"""What preprocess.status says of a store while somebody works on it, and of what is no store."""

import pytest

from preprocess import life, status
from preprocess.life import Life, Sign
from preprocess.status import Status, describe, rates
from preprocess.task import PackReport, PackTask
from shared.cli import RequestError
from shared.store.tables import PackRow, VideoRow


def report(name, videos, frames, seconds=0.5):
    rows = tuple(VideoRow(f"{name}-{i}", f"{name}-{i}") for i in range(videos))
    task = PackTask(None, None, name, (64, 80), (), None, "", None)
    pack = PackRow(name, f"packs/64x80/{name}", frames, videos, "cpu", {})
    return PackReport(task, pack, rows, (), (), frames, 1.0, worker="host:1", memory=10**8,
                      video_seconds={row.id: {"flow": seconds} for row in rows})


def test_what_is_no_store(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(RequestError, match="is no store: no run has begun to fill it"):
            status.main([str(path)])


def test_rates_are_those_of_the_last_minutes(tmp_path, monkeypatch):
    """A hundred packs of a second each, then ten minutes of ten seconds a pack: the new pace counts."""
    now = [1000.0]
    monkeypatch.setattr(life.time, "time", lambda: now[0])
    one, other = (Life(tmp_path, f"x-part{i}of2", f"{i}/2") for i in (1, 2))
    for part in (one, other):
        part.planned(300)
    for pace, packs in ((1, 100), (10, 90)):
        for number in range(packs):
            one.begin("under way")
            now[0] += pace
            one.take(report(f"p{pace}-{number}", 4, 100))
    signs = [Sign("a", one.document(), 0.0), Sign("b", other.document(), 0.0)]
    videos, frames = rates(signs)
    assert videos == pytest.approx(0.4, rel=0.05) and frames == pytest.approx(10, rel=0.05)
    assert len(one.recent) < 100                              # however many packs
    told = Status(False, signs, packs=(190, 0, 410), frames=(19_000, 41_000), rates=(videos, frames))
    assert "videos/s, 10.0 frames/s over the last minutes, ETA 1 h 08 min" in describe(told)
    assert "part 1/2     " in describe(told) and "190 of 300 packs" in describe(told) and told.code == 4
    assert one.document()["video_seconds"]["flow"]["videos"] == 760
