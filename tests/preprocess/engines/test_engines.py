"""The engine contract, with scripted and counted failures."""

import pytest

from preprocess.engines.serial import SerialEngine


class Scripted:
    """Fails on the first `failures[task]` tries of a task; counts every try."""

    def __init__(self, failures):
        self.failures, self.tries = failures, {}

    def __call__(self, task):
        self.tries[task] = self.tries.get(task, 0) + 1
        if self.tries[task] <= self.failures.get(task, 0):
            raise ValueError(f"{task} try {self.tries[task]}")
        return task * 10


def test_every_task_has_one_outcome_and_errors_are_yielded():
    fn = Scripted({1: 1, 2: 9, 4: 2})
    outcomes = {o.task: o for o in SerialEngine().map_unordered(fn, range(6), retries=2)}
    assert sorted(outcomes) == list(range(6))
    assert fn.tries == {0: 1, 1: 2, 2: 3, 3: 1, 4: 3, 5: 1}
    assert {t: o.attempts for t, o in outcomes.items()} == fn.tries
    assert [t for t, o in outcomes.items() if o.kind == "error"] == [2]
    assert str(outcomes[2].error) == "2 try 3" and outcomes[2].value is None
    assert all(outcomes[t].value == t * 10 and outcomes[t].error is None for t in (0, 1, 3, 4, 5))


def test_tasks_are_taken_lazily():
    taken = []

    def tasks():
        for number in range(5):
            taken.append(number)
            yield number

    results = SerialEngine().map_unordered(Scripted({}), tasks())
    next(results)
    assert taken == [0]


def test_an_interrupt_reaches_the_caller():
    def interrupted(task):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(SerialEngine().map_unordered(interrupted, [1, 2], retries=3))
