"""The stages of an experiment as they are run: their networks, repeats, steps and seeds."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from espan.errors import EspanError
from espan.models import Architecture, architecture_from_name
from espan.training.experiment import Change, Experiment, Stage
from espan.training.networks import Shape


@dataclass(frozen=True)
class StageRun:
    """One run of a stage; a stage with repeats has several.

    Attributes:
        number: position in the training run, from 0.
        stage: what to do.
        repeat: which of the stage's repeats, from 0.
        shape: of the network.
        seed: of its new weights and its crops.
        first: number of steps of the training run before it.
    """

    number: int
    stage: Stage
    repeat: int
    shape: Shape
    seed: int
    first: int

    @property
    def name(self) -> str:
        repeat = f" {self.repeat + 1}/{self.stage.repeats}" if self.stage.repeats > 1 else ""
        return self.stage.name + repeat

    @property
    def file_name(self) -> str:
        """Number and name, as part of a file name."""
        words = "-".join(re.findall(r"\w+", self.name))
        return f"{self.number + 1:02d}-{words}"

    @property
    def change(self) -> Change:
        """The change of the network; repeats have none."""
        return self.stage.change if self.repeat == 0 else Change()

    @property
    def scale(self) -> int:
        return self.shape.architecture.scale

    @property
    def last(self) -> int:
        """Number of steps of the training run when it ends."""
        return self.first + self.stage.iterations

    @property
    def patch(self) -> int:
        """Side of the LR crops."""
        return self.stage.hr_patch // self.scale


def plan(experiment: Experiment, start: Architecture | None = None) -> list[StageRun]:
    """All stages with their repeats, in order.

    Args:
        experiment: the stages.
        start: the architecture of the weights that training starts from, if any.

    Raises:
        EspanError: an impossible change, a patch that is not a multiple of the scale, or an
            architecture that is missing or differs from that of the weights.
    """
    named = experiment.network.architecture
    if named is None and start is None:
        raise EspanError(
            "the experiment has no network.architecture: it is for fine-tuning and needs weights "
            "to start from (--from)"
        )
    first = start if named is None else architecture_from_name(named)
    assert first is not None
    if start is not None and start != first:
        raise EspanError(
            f"the weights have another architecture ({_describe(start)}) than the experiment's "
            f"{named!r} ({_describe(first)}); an experiment without network.architecture takes "
            "that of the weights"
        )
    shape, steps, runs = Shape(first), 0, list[StageRun]()
    for index, stage in enumerate(experiment.stage):
        try:
            shape = shape.changed(stage.change)
        except EspanError as error:
            raise EspanError(f"stage {index + 1} ({stage.name}): {error}") from None
        if stage.hr_patch % shape.architecture.scale:
            raise EspanError(
                f"stage {index + 1} ({stage.name}): hr_patch {stage.hr_patch} is not a multiple "
                f"of the scale {shape.architecture.scale}"
            )
        for repeat in range(stage.repeats):
            entropy = np.random.SeedSequence([experiment.seed, index, repeat])
            seed = int(entropy.generate_state(1, np.uint64)[0] >> 1)
            runs.append(StageRun(len(runs), stage, repeat, shape, seed, steps))
            steps += stage.iterations
    return runs


def _describe(architecture: Architecture) -> str:
    return (
        f"{architecture.channels} channels, blocks of {'-'.join(map(str, architecture.convs))}, "
        f"{architecture.head_kernel}x{architecture.head_kernel} head, x{architecture.scale}"
        + ("" if architecture.normalization is None else ", normalised")
    )
