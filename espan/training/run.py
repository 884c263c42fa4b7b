"""The folder of a training run: what was asked for, and what has come of it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espan.errors import EspanError
from espan.files import atomic_write
from espan.training.experiment import Experiment, from_data

PRECISIONS = ("fp32", "fp16", "bf16", "fp64")


@dataclass(frozen=True)
class Setup:
    """What a run needs beside its experiment: data, start, machine.

    Attributes:
        data: folders of images, searched with all folders below, and packs.
        data_lr: a folder with the LR images of the one folder in `data`; default: made from HR as
            MATLAB does.
        validate: a folder of HR images to measure on.
        validate_lr: a folder with their LR images; default: made.
        hold_out: names of images in `data` that are not trained on, but measured on.  Without
            these and without `validate`: one in twenty, but 1 to 8, drawn by the seed.
        weights: a file or a bundled name whose weights training starts from; default: fresh ones.
        precision: of the convolutions; weights, loss and averages are fp32 (with ``"fp64"``: fp64).
            Default: what the launcher says, else fp32.
        cpu: train on the CPU even if there is a GPU.
        accumulate: the crops of a step are taken in so many parts, one after the other.
        workers: threads that make crops ahead of the steps; 0: none, at 6% of the time on a CPU.
        about: words on the images for the record: where from, on what terms.
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
    workers: int = 1
    about: str = ""

    def __post_init__(self) -> None:
        if not self.data:
            raise EspanError("train: no data; folders of images or packs are expected")
        if self.precision not in (None, *PRECISIONS):
            raise EspanError(
                f"train: unknown precision {self.precision!r}; known are {', '.join(PRECISIONS)}"
            )
        if self.accumulate < 1 or self.workers < 0:
            raise EspanError(
                f"train: accumulate must be 1 or more and workers 0 or more, got "
                f"{self.accumulate} and {self.workers}"
            )
        if self.validate_lr is not None and self.validate is None:
            raise EspanError("train: validate_lr goes with validate, the folder of HR images")
        if self.validate is not None and self.hold_out:
            raise EspanError("train: give either a folder to validate on or names to hold out")

    def to_dict(self) -> dict[str, Any]:
        """JSON data, with absolute paths; the inverse of `from_dict`."""

        def plain(value: Any) -> Any:
            if isinstance(value, Path):
                return str(value.absolute())
            return [plain(v) for v in value] if isinstance(value, tuple) else value

        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Setup:
        """From `to_dict`'s data."""
        fields = dict(data)
        fields["data"] = tuple(Path(p) for p in fields["data"])
        fields["hold_out"] = tuple(fields["hold_out"])
        for name in ("data_lr", "validate", "validate_lr"):
            fields[name] = None if fields[name] is None else Path(fields[name])
        return cls(**fields)


@dataclass(frozen=True)
class Run:
    """A run and its folder.

    In the folder::

        experiment.json, setup.json   what was asked for; `resume` goes by these
        states/                       the last two saves, from which a run goes on
        best.safetensors              the best average so far of the network as it is now
        last.safetensors              the newest
        stages/                       the result of each stage that is over
        metrics.jsonl, tensorboard/   measurements
        curves.png, crops.png         pictures, at the end
    """

    folder: Path
    experiment: Experiment
    setup: Setup

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


def check_new(folder: Path) -> None:
    """Raise EspanError unless a run can begin in this folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EspanError(
            f"{folder} is not empty; give the folder of a new run, or go on with --resume {folder}"
        )
    if not folder.absolute().parent.is_dir():
        raise EspanError(f"{folder}: the folder {folder.absolute().parent} does not exist")


def create(run: Run) -> None:
    """Make the folder of a new run."""
    for path in (run.states, run.stages):
        path.mkdir(parents=True)
    _write(run.folder / "experiment.json", run.experiment.model_dump(mode="json"))
    _write(run.folder / "setup.json", run.setup.to_dict())


def reopen(folder: Path) -> Run:
    """A run that was begun earlier.  Raises EspanError if the folder holds none."""
    experiment, setup = folder / "experiment.json", folder / "setup.json"
    try:
        asked = json.loads(experiment.read_text(encoding="utf-8"))
        data = json.loads(setup.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise EspanError(
            f"{folder} is not the folder of a run: experiment.json and setup.json are expected"
        ) from None
    except ValueError as error:
        raise EspanError(f"{folder}: experiment.json or setup.json is damaged: {error}") from error
    return Run(folder, from_data(asked, str(experiment)), Setup.from_dict(data))


def _write(path: Path, data: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
