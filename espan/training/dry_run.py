"""A dry run: checks a training run, takes a few steps of each stage, and estimates the whole."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from espan.errors import EspanError, out_of_memory
from espan.models.complexity import complexity
from espan.training.captured import WARM_UP
from espan.training.data import Data
from espan.training.experiment import Experiment, NetworkTable
from espan.training.log import Log, stderr
from espan.training.networks import Trainable, plain_networks
from espan.training.prepared import Prepared, prepare
from espan.training.processes import StopRequest, accelerator_for, no_tf32
from espan.training.run import Run, Setup
from espan.training.stages import StageRun
from espan.training.steps import Step, Trainer
from espan.training.validation import validate

WARM_UP_STEPS = WARM_UP + 1  # the last of them captures the graph on a GPU
FEWEST_STEPS = 3
SECONDS = 2.0  # of steps that are timed
SECONDS_BETWEEN_SAMPLES = 0.005  # of the memory of the process; a step of ESPAN takes longer


@dataclass(frozen=True)
class Estimate:
    """What a stage costs, with all its repeats.

    Attributes:
        stage: its first repeat.
        parameters: of the deployed network, and those that are trained.
        step: seconds of a step.
        validation: seconds of a validation.
        validate_every: steps between two validations.
        memory: bytes: the most that was allocated on the GPU, or that the process grew by.
    """

    stage: StageRun
    parameters: tuple[int, int]
    step: float
    validation: float
    validate_every: int
    memory: int

    @property
    def seconds(self) -> float:
        """Expected time of the stage."""
        stage = self.stage.stage
        validations = 1 + math.ceil(stage.iterations / self.validate_every)
        return stage.repeats * (stage.iterations * self.step + validations * self.validation)


def dry_run(
    experiment: Experiment,
    setup: Setup,
    *,
    folder: Path | None = None,
    console: Console | None = None,
) -> list[Estimate]:
    """Check all that `espan.training.train.train` checks, time each stage and print a table.

    Nothing is written.  Each stage takes four steps to warm up, then three or more, for about two
    seconds, on the device and with the precision of the run.  A validation is timed on its first
    image.  Under a launcher all processes take the steps, and one prints.

    Args:
        experiment: from `espan.training.experiment.read`.
        setup: data, weights, machine.
        folder: of the run; checked if it is given.
        console: for the messages and the table; default: stderr.

    Returns:
        The estimates, one for each stage.

    Raises EspanError as `train` does before its first step, or naming a stage whose steps do not
    fit into memory or whose data cannot be read.
    """
    run = Run(Path("run") if folder is None else folder, experiment, setup)
    if folder is not None:
        run.check_new()
    accelerator = accelerator_for(setup)
    console = console or stderr()
    console.quiet = console.quiet or not accelerator.is_main_process
    with no_tf32():
        prepared = prepare(run, new=True, accelerator=accelerator, console=console)
        before = psutil.Process().memory_info().rss
        estimates: list[Estimate] = []
        previous = prepared.first()
        for stage in prepared.stages:
            if stage.repeat == 0:  # the others have the same network and the same steps
                estimate, previous = _estimate(prepared, stage, previous, accelerator, before)
                estimates.append(estimate)
                console.print(_described(estimate, experiment.network), markup=False)
    _print(estimates, accelerator, before, console)
    return estimates


def _estimate(
    prepared: Prepared,
    stage: StageRun,
    previous: Trainable | None,
    accelerator: Accelerator,
    before: int,
) -> tuple[Estimate, Trainable]:
    """The estimate of a stage, and its network after a few steps; `before`: bytes, see `_memory`.

    The memory of the network before is freed, as in a run.
    """
    network, crops = prepared.network(stage), prepared.crops(stage)
    prepared.start(stage, network, previous, crops)
    # More steps than are taken, so that none is the last.
    steps = stage.stage.model_copy(update={"iterations": 2**40})
    log = Log(Path(), Console(quiet=True), total=0, lines=0, step=0, enabled=False)
    trainer = Trainer(
        prepared.run,
        dataclasses.replace(stage, stage=steps),
        network,
        data=prepared.data,
        accelerator=accelerator,
        log=log,
        stop=StopRequest(),
    )
    try:
        with _memory(accelerator.device, before) as memory:
            seconds = _seconds_of_a_step(trainer.steps(crops), accelerator)
    except EspanError as error:
        raise EspanError(f"stage {stage.name}: {error}") from error
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise EspanError(
            f"stage {stage.name}: {accelerator.device} is out of memory.  --accumulate "
            f"{2 * prepared.run.setup.accumulate} takes the steps in smaller parts"
        ) from error
    estimate = Estimate(
        stage,
        (
            complexity(stage.shape.deployed).parameters,
            sum(p.numel() for p in network.parameters()),
        ),
        seconds,
        _seconds_of_a_validation(trainer, prepared.data, accelerator),
        prepared.run.experiment.validate_every,
        memory[0],
    )
    accelerator.free_memory()
    return estimate, trainer.average


def _seconds_of_a_step(steps: Iterator[Step], accelerator: Accelerator) -> float:
    """The time of a step, the same number in all processes."""

    def timed(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            taken = next(steps)
            if taken.error is not None:
                raise taken.error
        _synchronise(accelerator.device)
        return time.perf_counter() - started

    timed(WARM_UP_STEPS - 1)
    elapsed = torch.tensor(timed(1), device=accelerator.device)
    # The same number of steps in all processes, which wait for each other in each of them.
    count = max(FEWEST_STEPS, math.ceil(SECONDS / accelerator.reduce(elapsed, "mean").item()))
    elapsed = torch.tensor(timed(count) / count, device=accelerator.device)
    return accelerator.reduce(elapsed, "mean").item()


def _seconds_of_a_validation(trainer: Trainer, data: Data, accelerator: Accelerator) -> float:
    """From the time of the first image.  The processes divide the images among them."""
    started = time.perf_counter()
    networks = plain_networks(trainer.average, trainer.stage.shape)
    for network in networks.values():
        for degrade in trainer.run.degradations:
            validate(network, data.validation[:1], degrade=degrade, device=accelerator.device)
    images = math.ceil(len(data.validation) / accelerator.num_processes)
    return images * (time.perf_counter() - started)


@contextlib.contextmanager
def _memory(device: torch.device, before: int) -> Iterator[list[int]]:
    """Measure the peak of the memory while the block runs; the list then holds it, in bytes.

    On a GPU that is what PyTorch allocated, otherwise the resident memory of the process above
    `before`.
    """
    peak: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.append(torch.cuda.max_memory_allocated(device))
        return
    process, done = psutil.Process(), threading.Event()
    largest = before

    def sample() -> None:
        nonlocal largest
        while not done.wait(SECONDS_BETWEEN_SAMPLES):
            largest = max(largest, process.memory_info().rss)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
    peak.append(largest - before)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _described(estimate: Estimate, table: NetworkTable) -> str:
    """The network of a stage, in one line."""
    form = f"grep {list(table.grep)}" if table.conv == "grep" else table.conv
    deployed, trained = estimate.parameters
    return (
        f"{estimate.stage.stage.name}: {estimate.stage.shape}; {deployed:,} parameters, "
        f"{trained:,} in training ({form})"
    )


def _print(
    estimates: list[Estimate], accelerator: Accelerator, before: int, console: Console
) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("stage", overflow="fold")
    for heading in ("crops of LR", "steps", "steps/s", "time", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    for estimate in estimates:
        stage, repeats = estimate.stage, estimate.stage.stage.repeats
        table.add_row(
            stage.stage.name,
            f"{stage.stage.batch} x {stage.patch}x{stage.patch}",
            (f"{repeats} x " if repeats > 1 else "") + f"{stage.stage.iterations:,}",
            f"{1 / estimate.step:.3g}",
            _duration(estimate.seconds),
            _bytes(estimate.memory),
        )
    console.print(table)
    total = sum(estimate.seconds for estimate in estimates)
    steps = sum(e.stage.stage.iterations * e.stage.stage.repeats for e in estimates)
    memory = max(estimate.memory for estimate in estimates)
    on_gpu = accelerator.device.type == "cuda"
    device = torch.cuda.get_device_name(accelerator.device) if on_gpu else "the CPU"
    console.print(
        f"{steps:,} steps in about {_duration(total)} on {device}, with validations; at most "
        + _bytes(memory)
        + (" of its memory" if on_gpu else f" beside {_bytes(before)} for PyTorch and the images")
    )


def _duration(seconds: float) -> str:
    """For example "9.4 s", "2:03:00" or "3 days, 4:00:00"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return str(datetime.timedelta(seconds=round(seconds)))


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
