"""Experiments: TOML files that list the stages of a training run."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from espan.data.degrade_table import DegradeTable
from espan.errors import EspanError
from espan.models import architecture_from_name
from espan.tables import Count, Positive, Table, Weight

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class NetworkTable(Table):
    """The network of the first stage.

    Attributes:
        architecture: a name that `espan.models.architecture_from_name` knows.  By default, the
            architecture of the weights that training starts from.
        conv: the training form of each convolution (Tab. 7).
        grep: [a, b] of GRep: a sequences 1x1 - kxk and b sequences kxk - 1x1 (Eq. 5).
        middle: channels between the two convolutions of a sequence; default: those of its input.
        init: initial weights, of the first stage's network, of blocks that are added later, and of
            the upsampling convolution for another scale.  ``"pytorch"`` keeps PyTorch's defaults;
            ``"bilinear"`` is that of `espan.training.initialise`.
    """

    architecture: str | None = None
    conv: Literal["plain", "grep", "repvgg", "edbb", "rrrb", "repmbconv"] = "grep"
    grep: tuple[Count, Count] = Field(default=(2, 0), strict=False)
    middle: Positive | None = None
    init: Literal["pytorch", "bilinear"] = "pytorch"

    @model_validator(mode="after")
    def _grep_alone(self) -> NetworkTable:
        if self.conv != "grep" and (self.grep != (2, 0) or self.middle is not None):
            raise ValueError(f'grep and middle have no effect with conv = "{self.conv}"')
        return self


class OptimizerTable(Table):
    """AdamW, and two additions that are off by default.

    Attributes:
        beta1, beta2, weight_decay: of AdamW; PyTorch's defaults.
        clip: largest norm of the gradient; a larger gradient is scaled down to it.
        average: decay of the moving average of the weights (EMA), which is then what is validated
            and what a stage passes on; 0: the weights themselves.
    """

    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    weight_decay: Weight = 0.01
    clip: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    average: float = Field(default=0.0, ge=0, lt=1)


class Change(Table):
    """How a stage changes the network of the stage before it.  Applied in this order.

    Attributes:
        keep: keep the student or the teacher, and drop the other.
        scale: a new upscaling factor; the upsampling convolution is initialised again.
        remove_blocks: number of blocks to remove from the end.
        remove_convs: number of convolutions to remove from the end of the last block.
        add_blocks: number of blocks of three convolutions to append.
        teacher: make the network the student of a teacher with this many more blocks (Sec. 3.1).
    """

    keep: Literal["student", "teacher"] | None = None
    scale: Positive | None = None
    remove_blocks: Count = 0
    remove_convs: Count = 0
    add_blocks: Count = 0
    teacher: Count = 0


class LossTable(Table):
    """The loss: ``pixel + hf * HF + dct * DCT + fft * FFT + dwt * DWT`` (Eq. 9, Tab. 8).

    Attributes:
        pixel: ``"l1"``, ``"l2"`` or ``"none"``.
        hf: weight of the high-frequency loss (Eq. 7), the paper's alpha.
        dct: weight of the DCT loss (Eq. 8), the paper's beta.
        fft, dwt: weights of the losses on Fourier and Haar wavelet coefficients (Tab. 8).
        distillation: weight of L_sd (Eq. 3, 4), for stages with a teacher.
        threshold: a pixel counts in L_sd where the teacher is better by more than this (Eq. 1).
    """

    pixel: Literal["l1", "l2", "none"] = "l1"
    hf: Weight = 0.0
    dct: Weight = 0.0
    fft: Weight = 0.0
    dwt: Weight = 0.0
    distillation: Weight = 0.001
    threshold: Weight = 0.01

    @model_validator(mode="after")
    def _some_term(self) -> LossTable:
        if self.pixel == "none" and not (self.hf or self.dct or self.fft or self.dwt):
            raise ValueError('with pixel = "none", one of hf, dct, fft and dwt must be above 0')
        return self


class Stage(Table):
    """One stage: a change of the network, then `iterations` steps, `repeats` times.

    Attributes:
        name: used in logs and file names.
        change: applied to the network before the first step.
        loss: terms and weights.
        hr_patch: side of the HR crops, a multiple of the scale.
        batch: crops per step, over all processes.
        lr: the highest learning rate.
        decay: ``"halving"`` every `halve_every` steps, or ``"cosine"`` to zero at the end.
        warm_up: steps in which the learning rate rises from zero.
        iterations: number of steps.
        repeats: how often the stage is run; each repeat starts from the result of the one before,
            with a new optimizer and schedule.
    """

    name: str = Field(min_length=1, pattern=r"^[\w .+-]+$")
    change: Change = Change()
    loss: LossTable = LossTable()
    hr_patch: Positive
    batch: Positive
    lr: float = Field(gt=0, allow_inf_nan=False)
    decay: Literal["halving", "cosine"] = "halving"
    halve_every: Positive | None = None
    warm_up: Count = 0
    iterations: Positive
    repeats: Positive = 1

    @model_validator(mode="after")
    def _consistent(self) -> Stage:
        if (self.decay == "halving") != (self.halve_every is not None):
            raise ValueError('halve_every must be given with decay = "halving", and only then')
        if self.warm_up >= self.iterations:
            raise ValueError(f"warm_up ({self.warm_up}) must be below iterations")
        return self

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / (self.warm_up + 1))
        if self.halve_every is None:
            fall = 0.5 + 0.5 * math.cos(math.pi * step / self.iterations)
        else:
            fall = 0.5 ** (step // self.halve_every)
        return self.lr * rise * fall


class Experiment(Table):
    """A training run.

    Attributes:
        about: a description.
        seed: of the initial weights and the crops, 0 or more.
        validate_every: number of steps between two validations, each followed by a save.
        network: the network of the first stage.
        optimizer: used in all stages.
        degrade: how LR images are made from HR; None: as MATLAB's imresize does.
        stage: the stages, in order.
    """

    about: str = ""
    seed: int = Field(default=0, ge=0, lt=2**63)
    validate_every: Positive = 1000
    network: NetworkTable
    optimizer: OptimizerTable = OptimizerTable()
    degrade: DegradeTable | None = None
    stage: list[Stage] = Field(min_length=1)

    @property
    def iterations(self) -> int:
        """Steps of all stages with their repeats."""
        return sum(stage.iterations * stage.repeats for stage in self.stage)

    @property
    def scale(self) -> int | None:
        """The scale of the last stage; None: that of the weights that training starts from."""
        changed = [stage.change.scale for stage in self.stage if stage.change.scale is not None]
        if changed or self.network.architecture is None:
            return changed[-1] if changed else None
        return architecture_from_name(self.network.architecture).scale


def shipped() -> dict[str, Path]:
    """The experiments that come with the package, by name."""
    folder = Path(str(resources.files("espan.training") / "experiments"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read(name: str) -> Experiment:
    """Read an experiment: a shipped one by name or a file by path; ``NAME:VARIANT`` for a variant.

    Raises EspanError for a file that cannot be read, and as `parse` does.
    """
    known = shipped()
    file, _, variant = (name, "", "") if Path(name).is_file() else name.partition(":")
    path = known.get(file, Path(file))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EspanError(
            f"{file} cannot be read ({error}); the experiments that come with espan are "
            f"{', '.join(known)}"
        ) from error
    return parse(text, file, variant or None)


def parse(text: str, name: str, variant: str | None = None) -> Experiment:
    """Parse an experiment; errors call it `name`.

    A file may have variants: tables ``[variant.x]`` whose `network` updates that of the file, whose
    `loss` replaces that of all stages, or whose `stage` replaces all stages.

    Raises EspanError naming each key that is unknown, missing or wrong, or if the file has variants
    and none of them is given.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise EspanError(f"{name} is not TOML: {error}") from error
    found = data.pop("variant", {})
    if variant not in (found or {None: {}}):
        raise EspanError(
            f"{name} has {'the variants ' + ', '.join(found) if found else 'no variants'}; "
            + (f"{variant!r} is not among them" if variant else f"choose one: {name}:VARIANT")
        )
    if variant is not None:
        data = _with_variant(data, found[variant], f"{name}: variant.{variant}")
    experiment = from_data(data, name)
    _check_teachers(experiment, name)
    return experiment


def from_data(data: dict[str, Any], name: str) -> Experiment:
    """Validate an experiment given as plain data, from TOML or JSON."""
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        raise EspanError(f"{name}: {'; '.join(_problems(error))}") from None


def variants(text: str) -> list[str]:
    """The names of the variants in a file."""
    return list(tomllib.loads(text).get("variant", {}))


def _with_variant(data: dict[str, Any], variant: dict[str, Any], name: str) -> dict[str, Any]:
    if unknown := sorted(set(variant) - {"network", "loss", "stage"}):
        raise EspanError(f"{name}: unknown keys {', '.join(unknown)}")
    stages = variant.get("stage", data.get("stage", []))
    if "loss" in variant:
        stages = [stage | {"loss": variant["loss"]} for stage in stages]
    network = data.get("network", {}) | variant.get("network", {})
    return data | {"network": network, "stage": stages}


def _check_teachers(experiment: Experiment, name: str) -> None:
    """Raise EspanError for a weight of distillation without a teacher.

    Only a file that a person wrote is checked: a run's own record has the defaults, too.
    """
    teacher = False
    for stage in experiment.stage:
        teacher = bool(stage.change.teacher) or (teacher and stage.change.keep is None)
        given = "distillation" in stage.loss.model_fields_set and stage.loss.distillation
        if given and not teacher:
            raise EspanError(
                f"{name}: stage {stage.name!r} has a weight for distillation, but no teacher; add "
                "one with change = { teacher = 3 }, or remove the weight"
            )


def _problems(error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        where, key = "", ""
        for part in problem["loc"]:
            where, key = (
                (where + f"[{part + 1}]", "")
                if isinstance(part, int)
                else (f"{where}.{part}" if where else part, part)
            )
        if problem["type"] == "extra_forbidden":
            yield f"{where}: unknown key {key!r}"
        elif problem["type"] == "missing":
            yield f"{where} is missing"
        elif problem["type"] == "value_error":  # raised by a validator of a table
            text = str(problem["ctx"]["error"])
            yield f"{where}: {text}" if where else text
        else:
            yield f"{where or 'file'}: {problem['msg']}, got {problem['input']!r}"
