"""A training run, from stage to stage."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from rich.console import Console

from espan import checkpoints
from espan.errors import EspanError
from espan.training import pictures
from espan.training.experiment import Experiment
from espan.training.log import Log, stderr
from espan.training.prepared import prepare
from espan.training.processes import (
    StopRequest,
    accelerator_for,
    no_tf32,
    run_once,
    stop_on_signal,
)
from espan.training.run import Run, Setup, reopen
from espan.training.steps import Trainer


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

    Returns and raises as `train`; raises EspanError if the images have changed.
    """
    run = reopen(folder)
    setup = dataclasses.replace(
        run.setup,
        accumulate=run.setup.accumulate if accumulate is None else accumulate,
        workers=run.setup.workers if workers is None else workers,
    )
    return _run(dataclasses.replace(run, setup=setup), console, new=False)


def _run(run: Run, console: Console | None, *, new: bool) -> Path:
    with stop_on_signal() as stop, no_tf32():
        return _stages(run, console, stop, new=new)


def _stages(run: Run, console: Console | None, stop: StopRequest, *, new: bool) -> Path:
    # Everything is checked before anything is written.
    accelerator = accelerator_for(run.setup)
    main = accelerator.is_main_process
    console = console or stderr()
    console.quiet = console.quiet or not main
    state = None if new else run.load(console.print)
    prepared = prepare(run, new=state is None, accelerator=accelerator, console=console)
    run, stages, data = prepared.run, prepared.stages, prepared.data
    if state is not None and state["data"] != data.fingerprint:
        raise EspanError(
            f"{run.folder}: the training images are not those that the run was started with.  "
            "Restore them, or start a new run from its weights (--from)"
        )
    if state is not None and state.get("validation", data.validated) != data.validated:
        raise EspanError(
            f"{run.folder}: the validation images are not those that the run was started with, so "
            "PSNR cannot be compared with that of its best weights.  Restore them, or start a new "
            "run from its weights (--from)"
        )
    previous = prepared.first()
    if new:
        run_once(accelerator, run.create)

    best = -math.inf
    stop.deferred = True
    with Log(
        run.folder,
        console,
        total=run.experiment.iterations,
        lines=0 if state is None else state["lines"],
        step=0 if state is None else state["total"],
        enabled=main,
    ) as log:
        for stage in stages:
            if state is not None and stage.number < state["job"]:
                continue
            network, crops = prepared.network(stage), prepared.crops(stage)
            if state is not None:
                origin = f"resuming after step {state['step']}"
            else:
                origin = prepared.start(stage, network, previous, crops)
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
            plain = checkpoints.load(str(run.best))
            pictures.crops(
                run.folder / "crops.png",
                plain,
                data.validation,
                degrade=run.experiment.degrade,
                device=accelerator.device,
            )
            log.message(f"done; the best weights are {run.best}")
    accelerator.wait_for_everyone()
    return run.best
