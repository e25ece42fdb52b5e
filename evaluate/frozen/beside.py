"""What stands beside a result on request (`--beside moments`): the same protocol on temporal moments of the same
network's features, which no training has made."""

import dataclasses
from collections.abc import Callable

from evaluate.features.moments import MOMENTS, pooled
from evaluate.protocol import Request, Result, Table
from evaluate.report.results import interval
from evaluate.report.words import PERCENT, measure


def with_moments(run: Callable[[Request], Result | None], request: Request, result: Result | None) -> Result | None:
    """The result with the row of moments, and a table of both with intervals and chance. Every rank calls it."""
    out = request.out / MOMENTS
    if request.world.main:
        out.mkdir(exist_ok=True)
    other = run(dataclasses.replace(request, encoder=pooled(request.encoder, MOMENTS), out=out))
    if result is None or other is None:
        return None
    rows = [(kind.words, *(cell for one in (result, other) for cell in _said(one, name, kind)),
             kind.say(result.chance[name])) for name in result.metrics if (kind := measure(name))]
    table = Table("Temporal moments of the same features",
                  ("score", "this checkpoint", "95 %", "moments", "95 %", "chance"), rows)
    return dataclasses.replace(result, beside={**result.beside, MOMENTS: other.metrics},
                               tables=[table, *result.tables])


def _said(result: Result, name: str, kind) -> tuple[str, str | None]:
    """A value and its 95 % interval over the test samples, in words."""
    value, trials = result.metrics[name], result.trials.get(name)
    return kind.say(value), PERCENT.span(None if trials is None else interval([value], trials))
