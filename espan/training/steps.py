"""The steps of one stage."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from espan import checkpoints
from espan.data import Crops, batches
from espan.errors import EspanError
from espan.models import Architecture
from espan.training.average import update_average
from espan.training.experiment import OptimizerTable
from espan.training.jobs import Job
from espan.training.log import Log
from espan.training.objective import Objective
from espan.training.progress import Line, Speed
from espan.training.record import record
from espan.training.run import Run
from espan.training.samples import Data
from espan.training.stages import Trained, plain_networks
from espan.training.state import save_state
from espan.training.validation import measure

NON_FINITE_IN_A_ROW = 20


@dataclass
class Trainee:
    """What is trained, and all of it that a save holds.

    Attributes:
        network: in training form.
        average: its running average.
        optimizer: AdamW.
        accelerator: whose loss scale belongs to it (fp16).
        step: steps that are done of the stage.
        best: the best PSNR so far, in dB.
        skipped: steps whose loss or gradient was not finite.
    """

    network: Trained
    average: Trained
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    step: int = 0
    best: float = -math.inf
    skipped: int = 0

    @classmethod
    def of(cls, network: Trained, options: OptimizerTable, accelerator: Accelerator) -> Trainee:
        """A network before its first step, on the accelerator's device."""
        # 1.3 times the steps per second of NCHW (bf16, two AMX cores).
        network = network.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(
            network.parameters(),
            betas=(options.beta1, options.beta2),
            weight_decay=options.weight_decay,
            fused=True,  # a third of foreach's time on a CPU, 4% of a step of ESPAN with [4, 0]
        )
        average = copy.deepcopy(network).requires_grad_(False)
        return cls(network, average, optimizer, accelerator)

    def state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "step": self.step,
            "best": self.best,
            "skipped": self.skipped,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.best, self.skipped = state["step"], state["best"], state["skipped"]


@dataclass(frozen=True)
class Session:
    """Where a stage is run, and what it tells."""

    run: Run
    job: Job
    accelerator: Accelerator
    data: Data
    begun_with: Architecture | None
    log: Log
    line: Line
    stopped: Callable[[], bool]


def steps(session: Session, trainee: Trainee, crops: Crops) -> None:
    """Train from `trainee.step` to the end of the stage, measuring and saving as it goes.

    Raises:
        EspanError: the loss or the gradient was not finite for 20 steps in a row; or the data
            turned out to be damaged, after the state was saved.
        KeyboardInterrupt: the run was asked to stop; its state is saved.
    """
    run, job, accelerator, line = session.run, session.job, session.accelerator, session.line
    stage, options = job.stage, run.experiment.optimizer
    parts, every = run.setup.accumulate, run.experiment.validate_every
    network, optimizer = accelerator.prepare(trainee.network, trainee.optimizer)
    objective = Objective(stage.loss)
    dtype = next(trainee.network.parameters()).dtype
    stream = batches(
        crops,
        batch=stage.batch // parts,
        first_step=trainee.step * parts,
        steps=(stage.iterations - trainee.step) * parts,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        workers=run.setup.workers,
        device=accelerator.device,
    )
    if trainee.step == 0:
        _measure(session, trainee, {})
        _save(session, trainee)
    speed, in_a_row = Speed(), 0
    losses: list[float] = []
    while trainee.step < stage.iterations:
        for group in optimizer.param_groups:
            group["lr"] = job.lr(trainee.step)
        loss: Any = 0.0
        for _ in range(parts):
            asked = time.perf_counter()
            try:
                lr, hr = next(stream)
            except EspanError:  # a pack that changed on disk
                _save(session, trainee)
                raise
            speed.waited += time.perf_counter() - asked
            with accelerator.accumulate(network):
                part = objective(network(lr.to(dtype)), hr)
                accelerator.backward(part)
            loss = loss + part.detach() / parts
        norm = accelerator.clip_grad_norm_(network.parameters(), options.clip)
        loss = accelerator.reduce(loss, "mean")
        finite = bool(torch.isfinite(loss + norm))
        if finite or accelerator.scaler is not None:  # the scaler skips by itself, and must know
            optimizer.step()
        optimizer.zero_grad()

        trainee.step += 1
        speed.steps += 1
        if finite:
            update_average(trainee.average, trainee.network, trainee.step, decay=options.average)
            losses.append(float(loss))
            in_a_row = 0
        else:
            trainee.skipped, in_a_row = trainee.skipped + 1, in_a_row + 1
            if in_a_row == NON_FINITE_IN_A_ROW:
                raise EspanError(
                    f"{job.name}: the loss or its gradient was not finite for {in_a_row} steps up "
                    f"to step {trainee.step}; a learning rate below {stage.lr:g} may help.  The "
                    f"last good state is saved in {run.states}"
                )
        line.show(job.first + trainee.step, job.name, float(loss), speed)

        if trainee.step % every == 0 or trainee.step == stage.iterations:
            values = {
                "loss": sum(losses) / max(1, len(losses)),
                "lr": job.lr(trainee.step - 1),
                "gradient norm": float(norm),
                "skipped": trainee.skipped,
                "steps per second": round(speed.steps_per_second, 3),
                "waiting for data": round(speed.waiting, 4),
            }
            _measure(session, trainee, values)
            _save(session, trainee)
            speed, losses = Speed(), []
        if _asked_to_stop(session):
            _save(session, trainee)
            session.log.tell(
                f"stopped after step {trainee.step} of {job.name}; go on with --resume"
            )
            raise KeyboardInterrupt


def _asked_to_stop(session: Session) -> bool:
    return session.stopped()


def _measure(session: Session, trainee: Trainee, values: dict[str, Any]) -> None:
    """PSNR and SSIM of the averaged networks; writes the last and the best weights."""
    run, job, accelerator = session.run, session.job, session.accelerator
    samples, total = session.data.samples, job.first + trainee.step
    share = samples[accelerator.process_index :: accelerator.num_processes]
    networks = plain_networks(trainee.average, job.shape)
    for name, network in networks.items():
        scores = measure(network, share, device=accelerator.device)
        sums = torch.tensor([[0.0, 0.0], *((s.psnr, s.ssim) for s in scores)]).sum(0)
        psnr, ssim = (
            accelerator.reduce(sums.to(accelerator.device), "sum") / len(samples)
        ).tolist()
        values |= {f"psnr {name}": round(psnr, 4), f"ssim {name}": round(ssim, 5)}
    deployed = next(iter(networks))
    better = values[f"psnr {deployed}"] > trainee.best
    trainee.best = max(trainee.best, values[f"psnr {deployed}"])
    session.log.write(total, {"stage": job.name, **values})
    session.log.tell(_told(job, trainee, values))
    if not accelerator.is_main_process:
        return
    about = record(run, job, session.data, accelerator, total=total, measured=values)
    checkpoints.save(networks[deployed], run.last, record=about)
    if better:
        checkpoints.save(networks[deployed], run.best, record=about)
    if trainee.step == job.stage.iterations:
        for name, network in networks.items():
            suffix = "" if name == "network" else f"-{name}"
            path = run.stages / f"{job.number + 1:02d}-{job.file_name}{suffix}.safetensors"
            checkpoints.save(network, path, record=about)


def _told(job: Job, trainee: Trainee, values: dict[str, Any]) -> str:
    """A line for people."""
    line = f"{job.name}  step {trainee.step}/{job.stage.iterations}"
    if "loss" in values:
        line += (
            f"  loss {values['loss']:.5f}  {values['steps per second']:.2f} steps/s  "
            f"data {values['waiting for data']:.1%}"
        )
    for name in ("network", "student", "teacher"):
        if f"psnr {name}" in values:
            line += f"  {name} {values[f'psnr {name}']:.3f} dB, SSIM {values[f'ssim {name}']:.4f}"
    return line + (f"  skipped {trainee.skipped}" if trainee.skipped else "")


def _save(session: Session, trainee: Trainee) -> None:
    job = session.job
    total = job.first + trainee.step
    if session.accelerator.is_main_process:
        begun_with = session.begun_with
        about = {
            "job": job.number,
            "total": total,
            "lines": session.log.lines,
            "data": session.data.fingerprint,
            "begun_with": None if begun_with is None else begun_with.to_dict(),
        }
        save_state(session.run.states, total, about | trainee.state())
