"""The learning rate over a run: linear warm-up (released code), then cosine to 0 (MCL section 4.2)."""

import math
from dataclasses import dataclass

from shared.recipes.pretraining import Optimise


@dataclass(frozen=True)
class Schedule:
    """steps in all and an epoch; lr: its peak; warmup: steps from warmup_from * lr up to lr."""

    steps: int
    steps_per_epoch: int
    lr: float
    warmup: int
    warmup_from: float

    @classmethod
    def of(cls, optimise: Optimise, steps_per_epoch: int) -> "Schedule":
        steps = optimise.steps or optimise.epochs * steps_per_epoch
        return cls(steps, steps_per_epoch, optimise.lr, optimise.warmup_epochs * steps_per_epoch, optimise.warmup_from)

    def rate(self, step: int) -> float:
        """Learning rate of step 0 .. steps - 1; a warm-up longer than the run is simply cut off."""
        if step < self.warmup:
            return self.lr * (self.warmup_from + (1 - self.warmup_from) * step / self.warmup)
        share = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (1 + math.cos(math.pi * min(1.0, share))) / 2

    def epoch(self, step: int) -> int:
        """The epoch, from 0, that step belongs to."""
        return step // self.steps_per_epoch

    def progress(self, step: int) -> float:
        """epoch / epochs in [0, 1): the order task's weight (docs/method.md 1.3)."""
        return self.epoch(step) * self.steps_per_epoch / self.steps
