"""An experiment as data: a TOML file that lists the stages of a training run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from espan.errors import EspanError
from espan.models import Architecture, architecture_from_name
from espan.training.shape import Shape

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Table(BaseModel):
    """A table of the file: unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class NetworkTable(_Table):
    """The network that the first stage starts with.

    Attributes:
        architecture: a name that `espan.models.architecture_from_name` knows.  Without one, it is
            that of the weights that training starts from.
        conv: what a convolution is made of while it is trained (Tab. 7).
        grep: [a, b] of GRep: a sequences 1x1 - k x k, b sequences k x k - 1x1 (Eq. 5).
        middle: channels between the two convolutions of a sequence; default: as many as its input.
    """

    architecture: str | None = None
    conv: Literal["plain", "grep", "repvgg", "edbb", "rrrb", "repmbconv"] = "grep"
    grep: tuple[int, int] = Field(default=(2, 0), strict=False)
    middle: Positive | None = None


class OptimizerTable(_Table):
    """AdamW, the limit of the gradient's norm, and the running average of the weights."""

    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    weight_decay: Weight = 0.01
    clip: float = Field(default=1.0, gt=0)
    average: float = Field(default=0.999, ge=0, lt=1)


class Change(_Table):
    """What a stage does to the network that the stage before it left, in this order.

    Attributes:
        keep: of a student and its teacher, the one that goes on alone.
        scale: another upscaling factor; the upsampling convolution starts anew.
        remove_blocks: so many of the last blocks go.
        remove_convs: so many convolutions of the last block go, the last ones.
        add_blocks: so many new blocks of three convolutions come after the last.
        teacher: the network becomes the student, with a teacher of so many more blocks (Sec. 3.1).
    """

    keep: Literal["student", "teacher"] | None = None
    scale: Positive | None = None
    remove_blocks: int = Field(default=0, ge=0)
    remove_convs: int = Field(default=0, ge=0)
    add_blocks: int = Field(default=0, ge=0)
    teacher: int = Field(default=0, ge=0)


class LossTable(_Table):
    """Weights of the terms: ``pixel + hf * L_HF + dct * L_DCT + ...`` (Eq. 9, Tab. 8).

    Attributes:
        pixel: ``"l1"``, ``"l2"`` or ``"none"``.
        hf: of the high-frequency loss (Eq. 7), alpha in the paper.
        dct: of the DCT loss (Eq. 8), beta in the paper.
        fft, dwt: of the losses on Fourier and Haar wavelet coefficients (Tab. 8).
        distillation: of L_sd (Eq. 3, 4); counts where there is a teacher.
        threshold: by how much the teacher must be better for a pixel to count in it (Eq. 1).
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


class Stage(_Table):
    """One stage: a change of the network, then `iterations` steps, `repeats` times.

    Attributes:
        name: for logs and files.
        change: of the network, before the first step.
        loss: the terms and their weights.
        hr_patch: side of the HR crops, a multiple of the scale.
        batch: crops per step, over all processes.
        lr: the peak of the learning rate.
        decay: ``"halving"`` every `halve_every` steps, or ``"cosine"`` down to zero at the end.
        warm_up: steps in which the learning rate rises from zero.
        iterations: steps.
        repeats: how often the stage is run, each time from its own result, with a fresh optimizer
            and schedule.
    """

    name: str = Field(min_length=1, pattern=r"^[\w .+-]+$")
    change: Change = Change()
    loss: LossTable = LossTable()
    hr_patch: Positive
    batch: Positive
    lr: float = Field(gt=0, allow_inf_nan=False)
    decay: Literal["halving", "cosine"] = "halving"
    halve_every: Positive | None = None
    warm_up: int = Field(default=0, ge=0)
    iterations: Positive
    repeats: Positive = 1

    @model_validator(mode="after")
    def _fits(self) -> Stage:
        if (self.decay == "halving") != (self.halve_every is not None):
            raise ValueError('halve_every goes with decay = "halving", and must be given there')
        if self.warm_up >= self.iterations:
            raise ValueError(f"warm_up ({self.warm_up}) must be below iterations")
        return self


class Experiment(_Table):
    """A training run from the first stage to the last.

    Attributes:
        about: what it is for, in words.
        seed: of the weights and the crops, 0 or more.
        validate_every: steps between two measurements, each followed by a save.
        network: at the first stage.
        optimizer: in all stages.
        stage: the stages, in order.
    """

    about: str = ""
    seed: int = Field(default=0, ge=0, lt=2**63)
    validate_every: Positive = 1000
    network: NetworkTable
    optimizer: OptimizerTable = OptimizerTable()
    stage: list[Stage] = Field(min_length=1)

    def shapes(self, start: Architecture | None = None) -> list[Shape]:
        """The network of each stage, checked.

        Args:
            start: the architecture of the weights that training starts from, if there are any.

        Raises:
            EspanError: a change that cannot be made, a patch that does not fit the scale, or an
                architecture that is missing or not that of the weights.
        """
        named = self.network.architecture
        if named is None and start is None:
            raise EspanError(
                "the experiment names no network.architecture; it is for fine-tuning and needs "
                "weights to start from (--from)"
            )
        first = start if named is None else architecture_from_name(named)
        assert first is not None
        if start is not None and start != first:
            raise EspanError(
                f"the weights are of another architecture ({_told(start)}) than the experiment's "
                f"{named!r} ({_told(first)}); an experiment without network.architecture takes "
                "that of the weights"
            )
        shape, shapes = Shape(first), []
        for number, stage in enumerate(self.stage, 1):
            try:
                shape = shape.changed(**stage.change.model_dump())
            except EspanError as error:
                raise EspanError(f"stage {number} ({stage.name}): {error}") from None
            scale = shape.architecture.scale
            if stage.hr_patch % scale:
                raise EspanError(
                    f"stage {number} ({stage.name}): hr_patch {stage.hr_patch} is not a multiple "
                    f"of the scale {scale}"
                )
            shapes.append(shape)
        return shapes


def shipped() -> dict[str, Path]:
    """The experiments that come with the package, by name."""
    folder = Path(str(resources.files("espan.training") / "experiments"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read(name: str) -> Experiment:
    """A shipped experiment, by name, or one's own, by path; of several variants, ``NAME:VARIANT``.

    Raises EspanError for a file that is not there, and for what `parse` refuses.
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
    """An experiment from the text of its file, which is called `name`.

    A file may have variants: tables ``[variant.x]`` whose `network` is laid over the file's, whose
    `loss` is that of all stages, or whose `stage` takes the place of the file's.

    Raises EspanError that names each key that is unknown, missing or of a wrong value, and for a
    variant that is missing or not in the file.
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
        data = _overlaid(data, found[variant], f"{name}: variant.{variant}")
    return from_data(data, name)


def from_data(data: dict[str, Any], name: str) -> Experiment:
    """An experiment from the tables of its file, or from its JSON."""
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        raise EspanError(f"{name}: {'; '.join(_problems(error))}") from None


def variants(text: str) -> list[str]:
    """The names of the variants in a file; none for a file that is one experiment."""
    return list(tomllib.loads(text).get("variant", {}))


def _overlaid(data: dict[str, Any], variant: dict[str, Any], name: str) -> dict[str, Any]:
    if unknown := sorted(set(variant) - {"network", "loss", "stage"}):
        raise EspanError(f"{name}: unknown keys {', '.join(unknown)}")
    stages = variant.get("stage", data.get("stage", []))
    if "loss" in variant:
        stages = [stage | {"loss": variant["loss"]} for stage in stages]
    network = data.get("network", {}) | variant.get("network", {})
    return data | {"network": network, "stage": stages}


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
        else:
            yield f"{where or 'file'}: {problem['msg']}, got {problem['input']!r}"


def _told(architecture: Architecture) -> str:
    return (
        f"{architecture.channels} channels, blocks of {'-'.join(map(str, architecture.convs))}, "
        f"{architecture.head_kernel}x{architecture.head_kernel} head, x{architecture.scale}"
        + ("" if architecture.normalization is None else ", normalised")
    )
