"""The stages of an experiment with their repeats, as they are run."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from espan.training.experiment import Change, Experiment, Stage
from espan.training.shape import Shape


@dataclass(frozen=True)
class Job:
    """One run of a stage.

    Attributes:
        number: among all of the run, from 0.
        stage: what to do.
        repeat: which of the stage's repeats, from 0.
        shape: of the network.
        seed: of its fresh weights and its crops.
        first: steps of the run before it.
    """

    number: int
    stage: Stage
    repeat: int
    shape: Shape
    seed: int
    first: int

    @property
    def name(self) -> str:
        again = f" {self.repeat + 1}/{self.stage.repeats}" if self.stage.repeats > 1 else ""
        return self.stage.name + again

    @property
    def file_name(self) -> str:
        """The name as part of a file's."""
        return "-".join(re.findall(r"\w+", self.name))

    @property
    def change(self) -> Change:
        """Of the network: a repeat changes nothing."""
        return self.stage.change if self.repeat == 0 else Change()

    @property
    def scale(self) -> int:
        return self.shape.architecture.scale

    @property
    def last(self) -> int:
        """Steps of the run when it is over."""
        return self.first + self.stage.iterations

    def lr(self, step: int) -> float:
        """The learning rate of its step `step`, counted from 0."""
        stage = self.stage
        rise = min(1.0, (step + 1) / (stage.warm_up + 1))
        if stage.halve_every is None:
            fall = 0.5 + 0.5 * math.cos(math.pi * step / stage.iterations)
        else:
            fall = 0.5 ** (step // stage.halve_every)
        return stage.lr * rise * fall

    @property
    def patch(self) -> int:
        """Side of the LR crops."""
        return self.stage.hr_patch // self.scale


def jobs(experiment: Experiment, shapes: Sequence[Shape]) -> list[Job]:
    """All stages with their repeats, in order."""
    result: list[Job] = []
    first = 0
    for index, (stage, shape) in enumerate(zip(experiment.stage, shapes, strict=True)):
        for repeat in range(stage.repeats):
            seed = np.random.SeedSequence([experiment.seed, index, repeat]).generate_state(
                1, np.uint64
            )
            result.append(Job(len(result), stage, repeat, shape, int(seed[0] >> 1), first))
            first += stage.iterations
    return result
