"""The learning rate of every step."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.recipes.training import load_training
from shared.schedule import Schedule

PAPER = load_training("mcl").recipe.optimise


def test_the_paper_s_schedule():
    schedule = Schedule.of(PAPER, 149)      # UCF101's training list, 9,537 videos
    assert (schedule.steps, schedule.warmup) == (200 * 149, 5 * 149)
    assert schedule.rate(0) == pytest.approx(0.01 / 100)
    assert schedule.rate(5 * 149) == pytest.approx(0.01)
    middle = (5 * 149 + 200 * 149) / 2
    assert schedule.rate(round(middle)) == pytest.approx(0.005, rel=1e-3)
    assert 0 < schedule.rate(200 * 149 - 1) < 1e-9
    assert (schedule.epoch(148), schedule.epoch(149), schedule.progress(149 * 50)) == (0, 1, 0.25)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 6), st.booleans())
def test_it_rises_then_falls_and_ends_near_zero(length, steps_per_epoch, warmup, by_steps):
    settings = {"epochs": 0, "steps": length} if by_steps else {"epochs": length, "steps": 0}
    schedule = Schedule.of(replace(PAPER, warmup_epochs=warmup, **settings), steps_per_epoch)
    rates = [schedule.rate(step) for step in range(schedule.steps)]
    assert len(rates) == (length if by_steps else length * steps_per_epoch)
    top = min(schedule.warmup, len(rates))
    assert all(a < b for a, b in zip(rates[:top], rates[1:top]))
    assert all(a > b for a, b in zip(rates[top:], rates[top + 1:]))
    assert all(0 < rate <= PAPER.lr for rate in rates)
    if top < len(rates):
        assert rates[top] == PAPER.lr
        slow = [PAPER.lr * (math.cos(math.pi * i / (len(rates) - top)) + 1) / 2 for i in range(len(rates) - top)]
        assert rates[top:] == pytest.approx(slow)
    assert [schedule.progress(step) for step in (0, schedule.steps - 1)] == [
        0, pytest.approx(schedule.epoch(schedule.steps - 1) * steps_per_epoch / schedule.steps)]
    assert schedule.progress(schedule.steps - 1) < 1
