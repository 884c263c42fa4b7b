"""The steps of one stage."""

from __future__ import annotations

import copy
import datetime
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor, nn

import espan_kernels
from espan import checkpoints
from espan._version import __version__
from espan.data import Crops, batches, raw_batches
from espan.errors import EspanError, NonFiniteError, out_of_memory
from espan.losses import Loss, self_distillation
from espan.models.network import plain_conv
from espan.training.captured import CapturedStep, Numbers
from espan.training.data import Data
from espan.training.experiment import LossTable
from espan.training.log import Log, Speed
from espan.training.networks import Trainable, build, plain_networks
from espan.training.processes import StopRequest, run_once
from espan.training.run import Run
from espan.training.stages import StageRun
from espan.training.validation import validate
from espan_kernels import backends

NON_FINITE_IN_A_ROW = 20
DIVERGED = f"the loss or its gradient was NaN or infinite for {NON_FINITE_IN_A_ROW} steps in a row"
SECONDS_BETWEEN_READS = 0.5  # of the loss, from a GPU; each waits for all steps
SECONDS_BETWEEN_SAVES = 600.0  # where validations are further apart


@dataclass(frozen=True)
class Step:
    """A step that was taken, or discarded because data could not be read.

    Attributes:
        stop: whether any process was asked to stop.
        save: whether the last save of any process is old.
        loss, norm: the loss and the norm of its gradient; NaN if they have not left the GPU.
        error: why the step was discarded.
    """

    stop: bool = False
    save: bool = False
    loss: float = math.nan
    norm: float = math.nan
    error: EspanError | None = None

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss + self.norm)


class Trainer:
    """Trains a network for one run of a stage.

    Args:
        run: its folder, experiment and setup.
        stage: the stage.
        network: in training form, before its first step.
        data: the images to train and to validate on.
        accelerator: device and processes.
        log: where to report progress.
        stop: whether the run was asked to stop.

    Attributes:
        average: the moving average of the weights, which is validated and passed on.
        step: number of steps done.
        best: the best PSNR so far, in dB.
        skipped: number of steps whose loss or gradient was not finite.
    """

    def __init__(
        self,
        run: Run,
        stage: StageRun,
        network: Trainable,
        *,
        data: Data,
        accelerator: Accelerator,
        log: Log,
        stop: StopRequest,
    ) -> None:
        self.run, self.stage, self.data, self.log, self.stop = run, stage, data, log, stop
        self.accelerator = accelerator
        # Channels last: 1.3 times the steps per second of NCHW (bf16, two AMX cores).
        self.network = network.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        options = run.experiment.optimizer
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            betas=(options.beta1, options.beta2),
            weight_decay=options.weight_decay,
            fused=True,  # a third of foreach's time on a CPU, 4% of a step of ESPAN with [4, 0]
        )
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.step = 0
        self.best = -math.inf
        self.skipped = 0
        self._speed = Speed()
        self._resumed = False
        self._saved = time.perf_counter()
        self._captured: CapturedStep | None = None

    def state(self) -> dict[str, Any]:
        """What a save contains."""
        scaler = self.accelerator.scaler  # of fp16
        if self._captured is not None:
            self._captured.write_optimizer()
        return {
            "job": self.stage.number,
            "total": self.stage.first + self.step,
            "lines": self.log.lines,
            "data": self.data.fingerprint,
            "validation": self.data.validated,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "step": self.step,
            "best": self.best,
            "skipped": self.skipped,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        # A fused AdamW reads parameters and moments in the order of their memory.
        for parameter, moments in self.optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = torch.empty_like(parameter).copy_(moments[name])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.best, self.skipped = state["step"], state["best"], state["skipped"]
        self._resumed = True

    def train(self, crops: Crops) -> None:
        """Train to the end of the stage, validating and saving at intervals.

        Raises:
            EspanError: naming stage, step and remedy.  The loss or the gradient was not finite for
                20 steps in a row, data turned out to be damaged, or a file could not be written.
            KeyboardInterrupt: after the run was asked to stop and its state was saved.
        """
        try:
            if self._on_one_gpu:
                self._train_captured(crops, capture=self._can_capture)
            else:
                self._train(crops)
        except EspanError as error:
            raise EspanError(f"{self._where}: {error}") from error
        except OSError as error:  # a full disk, for example
            raise EspanError(
                f"{self._where}: {error.filename or self.run.folder}: {error.strerror}.  Once this "
                f"is fixed, --resume {self.run.folder} continues from the last save"
            ) from error
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise EspanError(
                f"{self._where}: {self.accelerator.device} is out of memory.  --resume "
                f"{self.run.folder} --accumulate {2 * self.run.setup.accumulate} takes the steps "
                "in smaller parts"
            ) from error

    def steps(self, crops: Crops) -> Iterator[Step]:
        """Take the steps of the stage, without validating or writing anything."""
        if self._on_one_gpu:
            return self._captured_steps(crops, capture=self._can_capture)
        return self._plain_steps(crops)

    @property
    def _where(self) -> str:
        return f"stage {self.stage.name}, step {self.step}"

    @property
    def _on_one_gpu(self) -> bool:
        return self.accelerator.device.type == "cuda" and self.accelerator.num_processes == 1

    @property
    def _can_capture(self) -> bool:
        # The reference kernels copy constants from the host, which a graph cannot.
        return backends.choose(self.accelerator.device) != "reference"

    def _train(self, crops: Crops) -> None:
        stage, every = self.stage.stage, self.run.experiment.validate_every
        self._begin()
        in_a_row = 0
        losses: list[float] = []
        for taken in self._plain_steps(crops):
            if taken.error is not None:
                self._save()
                raise taken.error
            if taken.finite:
                losses.append(taken.loss)
                in_a_row = 0
            else:
                self.skipped, in_a_row = self.skipped + 1, in_a_row + 1
                if in_a_row == NON_FINITE_IN_A_ROW:
                    raise self._diverged()
            total = self.stage.first + self.step
            self.log.progress(total, self.stage.name, taken.loss, self._speed)

            if self.step % every == 0 or self.step == stage.iterations:
                self._measured(sum(losses) / max(1, len(losses)), taken.norm)
                losses = []
            elif taken.save:
                self._save()
            if taken.stop:
                self._stopped()

    def _plain_steps(self, crops: Crops) -> Iterator[Step]:
        stage, options = self.stage.stage, self.run.experiment.optimizer
        accelerator, parts = self.accelerator, self.run.setup.accumulate
        network, optimizer = accelerator.prepare(self.network, self.optimizer)
        dtype = next(self.network.parameters()).dtype

        def loss_from(lr: Tensor, hr: Tensor) -> Tensor:
            return loss_of(stage.loss, network(lr.to(dtype)), hr)

        if self.run.setup.compile:
            loss_from = torch.compile(loss_from)
        stream = batches(
            crops,
            batch=stage.batch // parts,
            first_step=self.step * parts,
            steps=(stage.iterations - self.step) * parts,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            workers=self.run.setup.workers,
            device=accelerator.device,
        )
        while self.step < stage.iterations:
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate(self.step)
            total = torch.zeros((), device=accelerator.device)
            error: EspanError | None = None
            for _ in range(parts):
                started = time.perf_counter()
                try:
                    lr, hr = next(stream)
                except (EspanError, StopIteration) as found:  # a pack that was damaged or changed
                    # The other processes are in this step already and wait for this one's
                    # gradients, so it computes some; then all of them discard the step.
                    error = error or EspanError(str(found))
                    lr, hr = crops.zeros(
                        stage.batch // parts // accelerator.num_processes, accelerator.device
                    )
                self._speed.waited += time.perf_counter() - started
                with accelerator.accumulate(network):
                    part = loss_from(lr, hr)
                    accelerator.backward(part)
                total += part.detach() / parts
            gradient = accelerator.clip_grad_norm_(network.parameters(), options.clip or math.inf)
            # All processes take the same decisions: what only one of them knows, that it was
            # signalled or that its data are damaged, goes through the reduction of the loss.
            flags = total.new_tensor([self.stop.requested, self._save_is_old, error is not None])
            status = torch.cat([total[None], gradient[None].to(total), flags])
            loss, norm, stop, save, failed = accelerator.reduce(status, "mean").tolist()
            if failed:
                optimizer.zero_grad()
                text = "another process could not read its training data"
                yield Step(error=error or EspanError(text))
                return
            taken = Step(bool(stop), bool(save), loss, norm)
            if taken.finite or accelerator.scaler is not None:  # which skips such steps and adapts
                optimizer.step()
            optimizer.zero_grad()
            self.step += 1
            self._speed.steps += 1
            if taken.finite:
                update_average(self.average, self.network, self.step, decay=options.average)
            yield taken

    def _train_captured(self, crops: Crops, *, capture: bool) -> None:
        """The steps of one process on a GPU: the host reads numbers twice a second, if that."""
        stage, every = self.stage.stage, self.run.experiment.validate_every
        self._begin()
        read = time.perf_counter()
        for taken in self._captured_steps(crops, capture=capture):
            if taken.error is not None:
                self._numbers()
                self._save()
                raise taken.error
            if self.step % every == 0 or self.step == stage.iterations:
                found = self._numbers()
                self._measured(found.loss, found.norm)
                assert self._captured is not None
                self._captured.reset()
                read = time.perf_counter()
            elif time.perf_counter() - read > SECONDS_BETWEEN_READS:
                self._numbers()
                if self._save_is_old:
                    self._save()
                read = time.perf_counter()
            if taken.stop:
                self._numbers()
                self._stopped()

    def _captured_steps(self, crops: Crops, *, capture: bool) -> Iterator[Step]:
        stage, options = self.stage.stage, self.run.experiment.optimizer
        device, scaler = self.accelerator.device, self.accelerator.scaler
        parts = self.run.setup.accumulate
        types = {"fp16": torch.float16, "bf16": torch.bfloat16}
        plain = build(self.stage.shape, conv=plain_conv, gate=espan_kernels.gate)
        step = self._captured = CapturedStep(
            self.network,
            self.average,
            plain.to(device, next(self.network.parameters()).dtype),
            self.optimizer,
            loss=lambda output, hr: loss_of(stage.loss, output, hr),
            clip=options.clip,
            autocast=types.get(self.accelerator.mixed_precision),
            scaler=scaler,
            skipped=self.skipped,
            capture=capture,
        )
        stream = raw_batches(
            crops,
            batch=stage.batch // parts,
            first_step=self.step * parts,
            steps=(stage.iterations - self.step) * parts,
            workers=self.run.setup.workers,
            device=device,
        )
        while self.step < stage.iterations:
            started = time.perf_counter()
            try:
                raw = [next(stream) for _ in range(parts)]
            except EspanError as error:  # a pack that was damaged or changed
                yield Step(error=error)
                return
            if step.waiting():  # otherwise the GPU works meanwhile, and no time is lost
                self._speed.waited += time.perf_counter() - started
            rate = stage.learning_rate(self.step)
            step(raw, rate=rate, weight=average_weight(self.step + 1, decay=options.average))
            self.optimizer.param_groups[0]["lr"] = rate
            self.step += 1
            self._speed.steps += 1
            yield Step(stop=self.stop.requested)

    def _numbers(self) -> Numbers:
        """What the captured steps measured, after waiting for them."""
        assert self._captured is not None
        found = self._captured.read()
        self.skipped = found.skipped
        if found.longest >= NON_FINITE_IN_A_ROW:
            raise self._diverged()
        total = self.stage.first + self.step
        self.log.progress(total, self.stage.name, found.last_loss, self._speed)
        return found

    def _begin(self) -> None:
        if self.step == 0 and not self._resumed:
            self._validate({})
            self._save()
        self._speed = Speed()

    @property
    def _save_is_old(self) -> bool:
        return time.perf_counter() - self._saved > SECONDS_BETWEEN_SAVES

    def _measured(self, loss: float, norm: float) -> None:
        """Validate, log and save after some steps."""
        speed = self._speed
        values = {
            "loss": loss,
            "lr": self.stage.stage.learning_rate(self.step - 1),
            "gradient norm": norm,
            "skipped": self.skipped,
            "steps per second": round(speed.steps_per_second, 3),
            "waiting for data": round(speed.waiting, 4),
        }
        try:
            self._validate(values)
        finally:
            self._save()
        self._speed = Speed()

    def _diverged(self, found: str = DIVERGED) -> EspanError:
        return EspanError(
            f"{found}.  Train with a learning rate below {self.stage.stage.lr:g} or clip the "
            f"gradient (optimizer.clip); the last save in {self.run.states} is older"
        )

    def _stopped(self) -> NoReturn:
        self._save()
        self.log.message(
            f"stopped after step {self.step} of {self.stage.name}; continue with --resume"
        )
        raise KeyboardInterrupt

    def _validate(self, values: dict[str, Any]) -> None:
        """Measure PSNR and SSIM of the averaged networks; write the last and the best weights.

        Where LR is degraded, and not given, also of LR made as MATLAB's imresize does ("clean"),
        which does not affect what is best.
        """
        run, stage, accelerator = self.run, self.stage, self.accelerator
        images = self.data.validation
        share = images[accelerator.process_index :: accelerator.num_processes]
        networks = plain_networks(self.average, stage.shape)
        cases = {
            f"clean {name}" if i else name: (network, degrade)
            for i, degrade in enumerate(run.degradations)
            for name, network in networks.items()
        }
        for name, (network, table) in cases.items():
            error: EspanError | None = None
            sums = torch.zeros(3)
            try:
                for score in validate(network, share, degrade=table, device=accelerator.device):
                    sums += torch.tensor([score.psnr, score.ssim, 0])
            except NonFiniteError as found:
                error, sums[2] = self._diverged(str(found)), 1
            except EspanError as found:  # an image that was removed or replaced
                error, sums[2] = found, 1
            psnr, ssim, failed = accelerator.reduce(sums.to(accelerator.device), "sum").tolist()
            if failed:
                raise error or EspanError("another process could not read its validation images")
            psnr, ssim = psnr / len(images), ssim / len(images)
            values |= {f"psnr {name}": round(psnr, 4), f"ssim {name}": round(ssim, 5)}
        deployed = next(iter(networks))
        better = values[f"psnr {deployed}"] > self.best
        self.best = max(self.best, values[f"psnr {deployed}"])
        self.log.message(self._summary(values))

        def write() -> None:
            self.log.metrics(stage.first + self.step, {"stage": stage.name, **values})
            record = self._record(values)
            checkpoints.save(networks[deployed], run.last, record=record)
            if better:
                checkpoints.save(networks[deployed], run.best, record=record)
            if self.step == stage.stage.iterations:
                for name, network in networks.items():
                    suffix = "" if name == "network" else f"-{name}"
                    path = run.stages / f"{stage.file_name}{suffix}.safetensors"
                    checkpoints.save(network, path, record=record)

        run_once(accelerator, write)

    def _save(self) -> None:
        """Save the state.  All processes wait, because a launcher ends them all when one ends."""
        step = self.stage.first + self.step
        run_once(self.accelerator, lambda: self.run.save(step, self.state()))
        self._saved = time.perf_counter()

    def _summary(self, values: dict[str, Any]) -> str:
        line = f"{self.stage.name}  step {self.step}/{self.stage.stage.iterations}"
        if "loss" in values:
            line += (
                f"  loss {values['loss']:.5f}  {values['steps per second']:.2f} steps/s  "
                f"data {values['waiting for data']:.1%}"
            )
        names = ("network", "student", "teacher")
        for name in (*names, *(f"clean {name}" for name in names)):
            if f"psnr {name}" in values:
                psnr, ssim = values[f"psnr {name}"], values[f"ssim {name}"]
                line += f"  {name} {psnr:.3f} dB, SSIM {ssim:.4f}"
        return line + (f"  skipped {self.skipped}" if self.skipped else "")

    def _record(self, values: dict[str, Any]) -> dict[str, Any]:
        """How the weights were made, as JSON data for their file.  It has no paths."""
        setup, accelerator = self.run.setup, self.accelerator
        if accelerator.device.type == "cuda":
            machine = torch.cuda.get_device_name(accelerator.device)
        else:
            machine = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
        return {
            "made by": f"espan train {__version__}",
            "date": datetime.date.today().isoformat(),
            "stage": self.stage.name,
            "steps": self.stage.first + self.step,
            **{name: value for name, value in values.items() if name.startswith(("psnr", "ssim"))},
            "images": len(self.data.training),
            "pixels": self.data.pixels,
            "about": setup.about,
            "held_out": list(self.data.held_out),
            "from": setup.weights and setup.weights.rpartition("/")[2],
            "experiment": self.run.experiment.model_dump(mode="json", exclude_none=True),
            "precision": setup.precision or accelerator.mixed_precision.replace("no", "fp32"),
            "processes": accelerator.num_processes,
            "machine": machine,
            "torch": torch.__version__,
        }


def loss_of(table: LossTable, output: Tensor | tuple[Tensor, Tensor], hr: Tensor) -> Tensor:
    """The loss of a network's output, or of a student's and its teacher's with L_sd (Eq. 4).

    Computed in fp32, also for outputs in fp64.
    """
    loss = Loss(table.pixel, hf=table.hf, dct=table.dct, fft=table.fft, dwt=table.dwt)
    hr = hr.float()
    if isinstance(output, Tensor):
        return loss(output.float(), hr)
    student, teacher = (image.float() for image in output)
    total = loss(student, hr) + loss(teacher, hr)
    if table.distillation:
        distance = self_distillation(student, teacher, hr, threshold=table.threshold)
        total = total + table.distillation * distance
    return total


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, step: int, *, decay: float) -> None:
    """Move the average, branch by branch, towards the network after `step` steps (1, 2, ...).

    With a decay of 0 it becomes the network.  An average of merged kernels would be different,
    because the kernel of a sequence is a product of two.
    """
    weight = average_weight(step, decay=decay)
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), weight)


def average_weight(step: int, *, decay: float) -> float:
    """The weight of the network after `step` steps in the new average."""
    return 1 - min(decay, (1 + step) / (10 + step))  # the first steps are forgotten faster
