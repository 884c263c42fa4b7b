"""Train the rows of the paper's ablations at a reduced scale, and record their PSNR.

    espan prepare photographs/ -o photos.pack
    python benchmarks/reproduce.py photos.pack -o runs/reproduction
    python benchmarks/reproduce.py photos.pack -o runs/reproduction --rows tab7 tab8:l1 --jobs 4

A row is a variant of an experiment in espan/training/experiments, with patches of three quarters
the side, an eighth of the batch, and `--steps` steps instead of each 500,000.  `--rates` are
factors of the learning rates.  Nothing else is changed.  Eight photographs of the pack are held
out and validated on, the same in all runs.

The output has a folder, a log and finally a JSON file for each row and seed.  After Ctrl-C, or if
the program is killed, the same command continues where it stopped.  A row that several tables have
is trained once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch
from rich.console import Console

from benchmarks import conftest as machine
from espan.data import open_images
from espan.data.pack import Pack
from espan.errors import EspanError
from espan.evaluation.metrics import psnr
from espan.files import atomic_write
from espan.imaging import imresize
from espan.training.experiment import Experiment, from_data, read, shipped, variants
from espan.training.log import read_metrics
from espan.training.run import Setup, reopen
from espan.training.train import resume, train
from espan.training.validation import ValidationImage

TABLES = ("tab7", "tab8", "tab6", "fig5")
FULL_STEPS, SCALE = 500_000, 4
HELD_OUT, VALIDATIONS = 8, 8
# What the trainer says when a run has diverged.  That is a result, as in Tab. 8.
DIVERGED = "was NaN or infinite for"


def all_rows() -> list[str]:
    """The rows of all tables, such as ``tab7:plain``."""
    return [f"{t}:{v}" for t in TABLES for v in variants(shipped()[t].read_text("utf-8"))]


def chosen_rows(names: Sequence[str]) -> list[str]:
    """The rows with these names, where the name of a table stands for all its rows."""
    rows = []
    for name in names:
        found = [row for row in all_rows() if name in (row, row.partition(":")[0])]
        if not found:
            raise EspanError(f"no row {name!r}; the rows are {', '.join(all_rows())}")
        rows += found
    return rows


def reduced(row: str, *, steps: int, rate: float, seed: int) -> Experiment:
    """The experiment of a row with `steps` steps instead of each 500,000.

    Learning rates are multiplied by `rate`.
    """
    data = read(row).model_dump(mode="json", exclude_none=True)

    def scaled(count: int) -> int:
        return max(1, count * steps // FULL_STEPS)

    for stage in data["stage"]:
        stage["hr_patch"] = stage["hr_patch"] * 3 // 4
        stage["batch"] //= 8
        stage["lr"] *= rate
        for key in ("iterations", "halve_every"):
            stage[key] = scaled(stage[key])
    data |= {"about": row, "seed": seed, "validate_every": max(1, steps // VALIDATIONS)}
    return from_data(data, row)


@cache
def trained_as(row: str) -> str:
    """The first row of all tables that is the same experiment, which is trained for both."""

    def content(name: str) -> dict[str, Any]:
        return read(name).model_dump(exclude={"about"})

    return next(other for other in all_rows() if content(other) == content(row))


def held_out(pack: Pack) -> tuple[str, ...]:
    """Every n-th of the photographs in the pack, in the order of their names."""
    names = sorted(entry.name for entry in pack.entries)
    if len(names) <= HELD_OUT:
        raise EspanError(
            f"{pack.path} has {len(names)} photographs; more than the {HELD_OUT} that are held "
            "out for validation are needed"
        )
    return tuple(names[i * len(names) // HELD_OUT] for i in range(HELD_OUT))


class One(NamedTuple):
    """A row, a factor of its learning rates, and a seed."""

    row: str
    rate: float
    seed: int

    def __str__(self) -> str:
        rate = "" if self.rate == 1 else f"-rate{self.rate:g}"
        return f"{self.row.replace(':', '-')}{rate}-seed{self.seed}"


def bicubic(pack: Pack) -> float:
    """PSNR of bicubic interpolation on what is held out, in dB."""
    images, _ = open_images((pack.path,), scale=SCALE, smallest=1)
    chosen = [image for image in images if image.name in held_out(pack)]
    pairs = (ValidationImage(image).pair(SCALE) for image in chosen)
    return mean(psnr(imresize(lr, SCALE), hr, border=SCALE) for lr, hr in pairs)


@dataclass(frozen=True)
class Reproduction:
    """The settings that all runs share.

    Attributes:
        pack: the photographs.
        output: the folder for the runs and their results.
        steps: for each 500,000 of the paper.
        precision: of the convolutions, "fp32" or "bf16".
        jobs: number of runs at a time.
        cpu: train on the CPU even if there is a GPU.
    """

    pack: Path
    output: Path
    steps: int
    precision: str
    jobs: int
    cpu: bool

    def experiment(self, one: One) -> Experiment:
        return reduced(one.row, steps=self.steps, rate=one.rate, seed=one.seed)

    def folder(self, one: One) -> Path:
        return self.output / str(one)

    def result(self, one: One) -> Path:
        return self.output / f"{one}.json"

    def is_done(self, one: One) -> bool:
        """Whether the result of a run exists.

        Raises EspanError if the result, or the run that would be resumed, has other settings.
        """
        result, folder = self.result(one), self.folder(one)
        if result.exists():
            data = json.loads(result.read_text("utf-8"))
            found, precision = from_data(data["experiment"], str(result)), data["precision"]
        elif (folder / "setup.json").exists():
            run = reopen(folder)
            found, precision = run.experiment, run.setup.precision
        else:
            return False
        if (found, precision) != (self.experiment(one), self.precision):
            raise EspanError(
                f"{folder} has other settings than {one.row} with --steps {self.steps} --precision "
                f"{self.precision}; give another output folder"
            )
        return result.exists()

    def train(self, one: One) -> dict[str, Any]:
        """Train a row, or resume it, and write its result."""
        experiment = self.experiment(one)
        folder, pack = self.folder(one), Pack(self.pack)
        failed = None
        with (self.output / f"{one}.log").open("a", encoding="utf-8") as log:
            console = Console(file=log, soft_wrap=True, highlight=False)
            try:
                if (folder / "setup.json").exists():
                    resume(folder, console=console)
                else:
                    shutil.rmtree(folder, ignore_errors=True)  # killed before the first save
                    setup = Setup(
                        data=(self.pack,),
                        hold_out=held_out(pack),
                        precision=self.precision,
                        cpu=self.cpu,
                    )
                    train(folder, experiment, setup, console=console)
            except EspanError as error:
                if DIVERGED not in str(error):
                    raise
                failed = str(error)
        result = {
            "rows": [other for other in all_rows() if trained_as(other) == one.row],
            "seed": one.seed,
            "rate": one.rate,
            "precision": self.precision,
            "failed": failed,
            **measured(read_metrics(folder)),
            "machine": self._machine(),
            "photographs": {
                "number": len(pack.entries),
                "sha256": _hash(pack),
                "held_out": held_out(pack),
                "bicubic": round(bicubic(pack), 4),
            },
            "experiment": experiment.model_dump(mode="json", exclude_none=True),
        }
        with atomic_write(self.result(one)) as path:
            path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", "utf-8")
        return result

    def _machine(self) -> dict[str, Any]:
        gpu = not self.cpu and torch.cuda.is_available()
        return {
            "gpu": torch.cuda.get_device_name() if gpu else None,
            "processor": machine._processor(),
            "cores": os.cpu_count(),
            "jobs": self.jobs,
            "torch": torch.__version__,
            "espan": machine._commit(),
        }


def measured(metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """PSNR by steps of each network, and how long the steps took, without the validations."""
    curves: dict[str, list[tuple[int, float | None]]] = {}
    seconds, before = 0.0, 0
    for line in metrics:
        for name, value in line.items():
            if name.startswith("psnr "):
                curves.setdefault(name.removeprefix("psnr "), []).append((line["step"], value))
        if "steps per second" in line:
            seconds += (line["step"] - before) / line["steps per second"]
        before = line["step"]
    deployed = next(name for name in ("student", "network") if f"psnr {name}" in metrics[-1])
    return {
        "psnr": metrics[-1][f"psnr {deployed}"],
        "curves": curves,
        "steps": before,
        "seconds": round(seconds, 1),
        "steps_per_second": round(before / max(1e-9, seconds), 2),
        "skipped": metrics[-1].get("skipped", 0),
    }


def _hash(pack: Pack) -> str:
    """Of the names and pixels of all photographs."""
    digest = hashlib.sha256()
    for entry in pack.entries:
        digest.update(f"{entry.name} {entry.sha256}\n".encode())
    return digest.hexdigest()


def runs(rows: Sequence[str], rates: Sequence[float], seeds: Sequence[int]) -> Iterator[One]:
    """All rows with the first seed at each rate, then all with the next seed; each row once."""
    for seed in seeds:
        for rate in rates:
            yield from dict.fromkeys(One(trained_as(row), rate, seed) for row in rows)


def work(queue: Any, shared: Reproduction) -> None:
    """Train the runs in the queue, in a process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until the trainer handles it
    os.setpgrp()  # Ctrl-C reaches the main process alone, which then stops the others
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // shared.jobs))
    try:
        for one in iter(queue.get, None):
            result = shared.train(one)
            verdict = "diverged" if result["failed"] else f"{result['psnr']:.3f} dB"
            print(f"{one}: {verdict}, {result['seconds']:.0f} s", flush=True)
    except KeyboardInterrupt:
        pass
    except EspanError as error:
        sys.exit(f"{one}: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pack", type=Path, help="photographs, from `espan prepare`")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", default=TABLES, help="tables, or rows as tab7:plain")
    parser.add_argument("--steps", type=int, default=2500, help="for each 500,000 of the paper")
    parser.add_argument(
        "--rates",
        nargs="+",
        type=float,
        default=[1],
        metavar="FACTOR",
        help="of the learning rates",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--cpu", action="store_true", help="even if there is a GPU")
    options = parser.parse_args()
    shared = Reproduction(
        options.pack,
        options.output,
        options.steps,
        options.precision,
        options.jobs,
        options.cpu,
    )
    try:
        held_out(Pack(shared.pack))
        shared.output.mkdir(parents=True, exist_ok=True)
        wanted = list(runs(chosen_rows(options.rows), options.rates, options.seeds))
        left = [run for run in wanted if not shared.is_done(run)]
    except (EspanError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(wanted)} runs, of which {len(wanted) - len(left)} are done", flush=True)

    # Forked, because importing PyTorch and the trainer takes seconds; nothing here uses a GPU.
    context = multiprocessing.get_context("fork")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    queue = context.SimpleQueue()
    processes = [context.Process(target=work, args=(queue, shared)) for _ in range(shared.jobs)]
    try:
        for process in processes:
            process.start()
        for run in [*left, *[None] * len(processes)]:
            queue.put(run)
        for process in processes:
            process.join()
    except KeyboardInterrupt:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    return max(process.exitcode != 0 for process in processes)


if __name__ == "__main__":
    sys.exit(main())
