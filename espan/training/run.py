"""The folder of a training run: its settings and its saves."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from espan.data.degrade_table import DegradeTable
from espan.errors import EspanError
from espan.files import atomic_write, json_text
from espan.models import Architecture
from espan.training.experiment import Experiment, from_data

PRECISIONS = ("fp32", "fp16", "bf16", "fp64")
_MAGIC = b"espan training state 1\n"
_KEPT = 2  # if the last save is damaged, the one before it is used


@dataclass(frozen=True)
class Setup:
    """The settings of a run that are not part of its experiment: data, weights, machine.

    Attributes:
        data: folders of images, searched with their subfolders, and packs.
        data_lr: a folder with the LR images of the one source in `data`, or with a subfolder of
            them for each scale (`espan.imaging.lr_folders`); default: LR is made from HR as
            MATLAB's imresize does.
        validate: a folder of HR images to validate on.
        validate_lr: a folder with their LR images, as `data_lr`; default: made from HR.
        hold_out: names of images in `data` to validate on instead of training on them.  Without
            these and without `validate`: one image in twenty, 1 to 8, chosen by their hashes.
        weights: a file or a bundled name to start from; default: new weights.
        precision: of the convolutions; weights and averages are fp32 (with ``"fp64"``: fp64), the
            loss is always fp32.  fp32 is never TF32.  Default: set by the launcher, else fp32.
        cpu: train on the CPU even if there is a GPU.
        accumulate: number of parts that the crops of a step are processed in, to save memory.
        compile: run network and loss through `torch.compile`; rounding differs.
        workers: threads that prepare crops ahead of the steps; 0: none, 6% slower on a CPU.
        about: a description of the images and their licence, for the record in the weights.
    """

    data: tuple[Path, ...]
    data_lr: Path | None = None
    validate: Path | None = None
    validate_lr: Path | None = None
    hold_out: tuple[str, ...] = ()
    weights: str | None = None
    precision: str | None = None
    cpu: bool = False
    accumulate: int = 1
    compile: bool = False
    workers: int = 1
    about: str = ""

    def __post_init__(self) -> None:
        if not self.data:
            raise EspanError("train: no data; folders of images or packs are expected")
        if self.precision not in (None, *PRECISIONS):
            raise EspanError(
                f"train: unknown precision {self.precision!r}; "
                f"choose one of {', '.join(PRECISIONS)}"
            )
        if self.accumulate < 1 or self.workers < 0:
            raise EspanError(
                f"train: accumulate must be 1 or more and workers 0 or more, got "
                f"{self.accumulate} and {self.workers}"
            )
        if self.validate_lr is not None and self.validate is None:
            raise EspanError("train: validate_lr needs validate, the folder of HR images")
        if self.validate is not None and self.hold_out:
            raise EspanError("train: validate and hold_out cannot be combined; choose one")

    def to_dict(self) -> dict[str, Any]:
        """JSON data, with absolute paths; the inverse of `from_dict`."""

        def plain(value: Any) -> Any:
            if isinstance(value, Path):
                return str(value.absolute())
            return [plain(v) for v in value] if isinstance(value, tuple) else value

        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Setup:
        """From the data of `to_dict`."""
        fields = dict(data)
        fields["data"] = tuple(Path(p) for p in fields["data"])
        fields["hold_out"] = tuple(fields["hold_out"])
        for name in ("data_lr", "validate", "validate_lr"):
            fields[name] = None if fields[name] is None else Path(fields[name])
        return cls(**fields)


@dataclass(frozen=True)
class Run:
    """A run and its folder.

    The folder holds::

        experiment.json, setup.json   the settings, which `resume` reads
        states/                       the last two saves
        best.safetensors              the best weights so far of the current network
        last.safetensors              the newest weights
        stages/                       the result of each finished stage
        metrics.jsonl, tensorboard/   measurements
        curves.png, crops.png         pictures, at the end

    Attributes:
        folder: of the run.
        experiment: the stages.
        setup: the other settings.
        start: the architecture of the weights that the run started from, if any.
    """

    folder: Path
    experiment: Experiment
    setup: Setup
    start: Architecture | None = None

    @property
    def degradations(self) -> tuple[DegradeTable | None, ...]:
        """How LR is made for validation: degraded, then clean; given LR is used as it is."""
        table = self.experiment.degrade
        return (None,) if table is None or self.setup.validate_lr is not None else (table, None)

    @property
    def best(self) -> Path:
        return self.folder / "best.safetensors"

    @property
    def last(self) -> Path:
        return self.folder / "last.safetensors"

    @property
    def states(self) -> Path:
        return self.folder / "states"

    @property
    def stages(self) -> Path:
        return self.folder / "stages"

    def check_new(self) -> None:
        """Raise EspanError unless a run can start in this folder."""
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise EspanError(
                f"{self.folder} is not empty; give a new folder, or resume the run in it with "
                f"--resume {self.folder}"
            )
        try:
            str(self.folder).encode()
        except UnicodeEncodeError:
            raise EspanError(
                f"{self.folder}: the name is not UTF-8, which TensorBoard needs; give another name"
            ) from None
        for source in self.setup.data:
            if source.resolve() in self.folder.resolve().parents:
                raise EspanError(
                    f"{self.folder} is inside {source}, so the pictures of the run would become "
                    "training images; give a folder outside"
                )
        parent = self.folder.absolute().parent
        if not parent.is_dir():
            raise EspanError(f"{self.folder}: the folder {parent} does not exist")

    def create(self) -> None:
        """Create the folder of a new run."""
        for path in (self.states, self.stages):
            path.mkdir(parents=True)
        _write(self.folder / "experiment.json", self.experiment.model_dump(mode="json"))
        start = None if self.start is None else self.start.to_dict()
        _write(self.folder / "setup.json", self.setup.to_dict() | {"start": start})

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save the state after a step of the run, and remove all saves but the last two.

        If it cannot be written, the older saves remain.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        body = buffer.getbuffer()
        with atomic_write(self.states / f"{step:09d}.state") as path, path.open("wb") as file:
            file.write(_MAGIC + hashlib.sha256(body).digest())
            file.write(body)
        for old in self._saves()[_KEPT:]:
            old.unlink()

    def load(self, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """The newest undamaged save, on the CPU; None if there is none yet.

        `warn` is called with a sentence for each damaged save.  Raises EspanError if all are.
        """
        for part in self.states.glob(".*.part"):  # from a save that was killed
            part.unlink(missing_ok=True)
        saves = self._saves()
        head = len(_MAGIC) + 32
        for path in saves:
            data = path.read_bytes()
            if data[:head] == _MAGIC + hashlib.sha256(data[head:]).digest():
                return torch.load(io.BytesIO(data[head:]), map_location="cpu", weights_only=True)
            warn(f"{path} is damaged; resuming from the save before it")
        if saves:
            raise EspanError(f"{self.states}: all {len(saves)} saves are damaged")
        return None

    def _saves(self) -> list[Path]:
        """Newest first."""
        return sorted(self.states.glob("*.state"), reverse=True)


def reopen(folder: Path) -> Run:
    """An existing run.  Raises EspanError if there is none in the folder."""
    experiment, setup = folder / "experiment.json", folder / "setup.json"
    try:
        stages = json.loads(experiment.read_text(encoding="utf-8"))
        data = json.loads(setup.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise EspanError(
            f"{folder} is not the folder of a run: experiment.json and setup.json are expected"
        ) from None
    except ValueError as error:
        raise EspanError(f"{folder}: experiment.json or setup.json is damaged: {error}") from error
    start = data.pop("start", None)
    return Run(
        folder,
        from_data(stages, str(experiment)),
        Setup.from_dict(data),
        None if start is None else Architecture.from_dict(start),
    )


def _write(path: Path, data: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json_text(data, indent=2) + "\n", encoding="utf-8")
