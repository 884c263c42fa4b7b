"""A training run, from stage to stage."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console

import espan_kernels
from espan import checkpoints
from espan.branches import conv_factory
from espan.data import Crops
from espan.errors import EspanError
from espan.reparameterize import expand
from espan.training import pictures
from espan.training.data import read_data
from espan.training.experiment import Experiment
from espan.training.log import Log
from espan.training.networks import Trainable, build, start
from espan.training.processes import StopRequest, accelerator_for, run_once, stop_on_signal
from espan.training.run import Run, Setup, reopen
from espan.training.stages import plan
from espan.training.steps import Trainer

INITIAL_CROPS = 16  # crops from which the scale of the signals is measured


def train(
    folder: Path, experiment: Experiment, setup: Setup, *, console: Console | None = None
) -> Path:
    """Run an experiment.

    Everything is checked before the first step and before the folder is created.  Weights are fp32
    or, with that precision, fp64.  The result of a stage, from which the next one starts, is the
    moving average of its weights, or the weights themselves if the experiment has no average.

    Under ``torchrun`` or ``accelerate launch`` every process calls this function; they divide the
    crops of each step among them.

    Args:
        folder: for the run, new or empty; `Run` lists its contents.
        experiment: from `espan.training.experiment.read`.
        setup: data, weights, machine.
        console: for messages; default: stderr.

    Returns:
        The best weights, `best.safetensors` in the folder.

    Raises:
        EspanError: an experiment, data or weights that do not fit; or, while training, what
            `Trainer.train` raises.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state has been saved.
    """
    run = Run(folder, experiment, setup)
    run.check_new()
    return _run(run, console, new=True)


def resume(
    folder: Path,
    *,
    accumulate: int | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> Path:
    """Resume a run that was stopped, at any moment and in any way.

    On a CPU, with the same number of threads, processes and parts, it ends with exactly the weights
    of a run that was never stopped.

    Args:
        folder: of the run.
        accumulate, workers: as in `Setup`, until the run stops again; default: those of the run.
            They are the only settings that leave the steps as they were, up to rounding.
        console: for messages; default: stderr.

    Returns and raises as `train`; raises EspanError if the training images have changed.
    """
    run = reopen(folder)
    setup = dataclasses.replace(
        run.setup,
        accumulate=run.setup.accumulate if accumulate is None else accumulate,
        workers=run.setup.workers if workers is None else workers,
    )
    return _run(dataclasses.replace(run, setup=setup), console, new=False)


def _run(run: Run, console: Console | None, *, new: bool) -> Path:
    with stop_on_signal() as stop, _no_tf32():
        return _stages(run, console, stop, new=new)


@contextlib.contextmanager
def _no_tf32() -> Iterator[None]:
    """fp32 is fp32: by default PyTorch's convolutions take TF32 on a GPU, which keeps 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _stages(run: Run, console: Console | None, stop: StopRequest, *, new: bool) -> Path:
    # Everything is checked before anything is written.
    setup, experiment = run.setup, run.experiment
    accelerator = accelerator_for(setup)
    main = accelerator.is_main_process
    dtype = torch.float64 if setup.precision == "fp64" else torch.float32
    console = console or Console(stderr=True, soft_wrap=True, highlight=False)
    console.quiet = console.quiet or not main

    state = None if new else run.load(console.print)
    weights = None
    if state is None and setup.weights is not None:
        weights = checkpoints.load(setup.weights)
        run = dataclasses.replace(run, start=weights.architecture)
    stages = plan(experiment, run.start)
    parts = accelerator.num_processes * setup.accumulate
    for stage in stages:
        if stage.stage.batch % parts:
            raise EspanError(
                f"stage {stage.name}: batch {stage.stage.batch} is not a multiple of {parts} "
                "(processes times accumulate)"
            )
    if experiment.degrade is not None and setup.data_lr is not None:
        raise EspanError(
            f"{setup.data_lr}: the experiment makes its LR images from HR ([degrade]); without "
            "[degrade], the given ones can be used, or without --data-lr, [degrade]"
        )
    data = read_data(setup, stages, seed=experiment.seed, console=console, accelerator=accelerator)
    if state is not None and state["data"] != data.fingerprint:
        raise EspanError(
            f"{run.folder}: the training images are not those that the run was started with.  "
            "Restore them, or start a new run from its weights (--from)"
        )
    if new:
        run_once(accelerator, run.create)

    table = experiment.network
    conv = conv_factory(table.conv, grep=table.grep, middle=table.middle)
    gate = espan_kernels.gate
    previous: Trainable | None = None
    if weights is not None:
        previous = expand(weights, conv, gate=gate).to(dtype)
    best = -math.inf
    stop.deferred = True
    with Log(
        run.folder,
        console,
        total=experiment.iterations,
        lines=0 if state is None else state["lines"],
        step=0 if state is None else state["total"],
        enabled=main,
    ) as log:
        for stage in stages:
            if state is not None and stage.number < state["job"]:
                continue
            torch.manual_seed(stage.seed)
            network = build(stage.shape, conv=conv, gate=gate).to(dtype)
            crops = Crops(
                data.images(stage.scale),
                patch=stage.patch,
                seed=stage.seed,
                degrade=experiment.degrade,
            )
            if state is not None:
                origin = f"resuming after step {state['step']}"
            else:
                images = None
                if table.init == "bilinear":
                    images = crops.batch(0, INITIAL_CROPS)[0].to(dtype)
                origin = start(network, previous, stage.change, images=images)
            log.message(f"{stage.name}: {stage.shape}; {origin}")
            trainer = Trainer(
                run, stage, network, data=data, accelerator=accelerator, log=log, stop=stop
            )
            if state is not None:
                trainer.load_state(state)
                state = None
            elif stage.number and stages[stage.number - 1].shape.deployed == stage.shape.deployed:
                trainer.best = best
            trainer.train(crops)
            previous, best = trainer.average, trainer.best
            accelerator.free_memory()
        if main:
            pictures.curves(run.folder)
            network = checkpoints.load(str(run.best))
            pictures.crops(
                run.folder / "crops.png",
                network,
                data.validation,
                degrade=experiment.degrade,
                device=accelerator.device,
            )
            log.message(f"done; the best weights are {run.best}")
    accelerator.wait_for_everyone()
    return run.best
