"""The training loop: stage after stage, on one device or many, to be stopped and gone on with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from rich.console import Console

import espan_kernels
from espan import checkpoints
from espan.branches import conv_factory
from espan.data import Crops
from espan.errors import EspanError
from espan.models import Architecture
from espan.reparameterize import expand
from espan.training import fresh, pictures
from espan.training.experiment import Experiment
from espan.training.interrupt import stop_by_signal
from espan.training.jobs import Job, jobs
from espan.training.log import Log
from espan.training.progress import Line
from espan.training.run import Run, Setup, check_new, create, reopen
from espan.training.samples import read_data
from espan.training.stages import Trained, build, carry
from espan.training.state import load_state
from espan.training.steps import Session, Trainee, steps


def train(
    folder: Path, experiment: Experiment, setup: Setup, *, console: Console | None = None
) -> Path:
    """Run an experiment from its first step to its last.

    Everything is checked before the first step.  Weights are fp32 (fp64 if asked for) and averaged
    branch by branch; a stage's result, from which the next one starts, is its average.

    Under ``torchrun`` or ``accelerate launch`` every process calls this; they share the crops of
    each step.

    Args:
        folder: for the run, new or empty; `Run` says what it will hold.
        experiment: the stages; `espan.training.experiment.read` reads one from a file.
        setup: data, start, machine.
        console: for people; default: stderr.

    Returns:
        The best weights, `best.safetensors` in the folder.

    Raises:
        EspanError: an experiment, data or a start that do not fit, or a loss that is not finite for
            20 steps in a row; the saves then hold the last good state.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; the state has been saved.
    """
    check_new(folder)
    return _run(Run(folder, experiment, setup), console, new=True)


def resume(folder: Path, *, console: Console | None = None) -> Path:
    """Go on with a run that was stopped, at any moment and in any way.

    On a CPU, with the same number of threads and processes, it ends with the weights, to the last
    bit, that it would have ended with.  Result and errors: as `train`; and EspanError if the data
    is not what the run began with.
    """
    return _run(reopen(folder), console, new=False)


def _run(run: Run, console: Console | None, *, new: bool) -> Path:
    """From the beginning, or from the last save."""
    # What is asked for, all of it checked before anything is written.
    setup, experiment = run.setup, run.experiment
    accelerator = _accelerator(setup)
    main = accelerator.is_main_process
    dtype = torch.float64 if setup.precision == "fp64" else torch.float32
    console = console or Console(stderr=True, soft_wrap=True, highlight=False)
    console.quiet = console.quiet or not main

    state = None if new else load_state(run.states, console.print)
    start = begun_with = None
    if state is not None and state["begun_with"] is not None:
        begun_with = Architecture.from_dict(state["begun_with"])
    elif state is None and setup.weights is not None:
        start = checkpoints.load(setup.weights)
        begun_with = start.architecture
    todo = jobs(experiment, experiment.shapes(begun_with))
    _check_batches(todo, accelerator.num_processes * setup.accumulate)
    data = read_data(setup, todo, seed=experiment.seed, console=console)
    if state is not None and state["data"] != data.fingerprint:
        raise EspanError(f"{run.folder}: the images are not those that the run began with")
    accelerator.wait_for_everyone()
    if main and new:
        create(run)
    accelerator.wait_for_everyone()

    table = experiment.network
    conv = conv_factory(table.conv, grep=table.grep, middle=table.middle)
    gate = espan_kernels.gate
    previous: Trained | None = None
    if start is not None:
        previous = expand(start, conv, gate=gate).to(dtype)
    best = -math.inf
    at = (
        {"lines": 0, "step": 0}
        if state is None
        else {"lines": state["lines"], "step": state["total"]}
    )
    with (
        Log(run.folder, console, shown=main, **at) as log,
        Line(console, total=todo[-1].last, shown=main) as line,
        stop_by_signal() as stopped,
    ):
        for job in todo:
            if state is not None and job.number < state["job"]:
                continue
            # The network: as it was saved; or made of the one before, or fresh.
            torch.manual_seed(job.seed)
            trained = build(job.shape, conv=conv, gate=gate).to(dtype)
            crops = Crops(data.images(job.scale), patch=job.patch, seed=job.seed)
            if state is not None:
                log.tell(f"{job.name}: {job.shape}; going on after step {state['step']}")
            elif previous is not None:
                carried = carry(previous, trained, job.change)
                fresh.added(trained, carried.added, crops)
                log.tell(f"{job.name}: {job.shape}; {carried}")
            else:
                fresh.whole(trained, crops)
                log.tell(f"{job.name}: {job.shape}; fresh weights")
            trainee = Trainee.of(trained, experiment.optimizer, accelerator)
            if state is not None:
                trainee.load(state)
                state = None
            elif job.number and todo[job.number - 1].shape.deployed == job.shape.deployed:
                trainee.best = best
            steps(
                Session(run, job, accelerator, data, begun_with, log, line, stopped), trainee, crops
            )
            previous, best = trainee.average, trainee.best
            accelerator.free_memory()
        if main:
            pictures.curves(run.folder)
            network = checkpoints.load(str(run.best))
            pictures.crops(
                run.folder / "crops.png", network, data.samples, device=accelerator.device
            )
            log.tell(f"done; the best weights: {run.best}")
    accelerator.wait_for_everyone()
    return run.best


def _accelerator(setup: Setup) -> Accelerator:
    """Device, mixed precision and distribution, by the launcher's environment where it says so."""
    mixed = {"fp32": "no", "fp64": "no"}.get(setup.precision or "", setup.precision)
    try:
        return Accelerator(
            cpu=setup.cpu or not torch.cuda.is_available(),
            mixed_precision=mixed,
            gradient_accumulation_steps=setup.accumulate,
            # The one buffer is a constant.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    except (ValueError, RuntimeError) as error:
        raise EspanError(f"train: {error}") from error


def _check_batches(todo: Sequence[Job], parts: int) -> None:
    for job in todo:
        if job.stage.batch % parts:
            raise EspanError(
                f"stage {job.name}: batch {job.stage.batch} cannot be divided among {parts} "
                "(processes times accumulate)"
            )
