"""`espan train`: one L1 run over folders of photographs, from random weights to a checkpoint."""

from __future__ import annotations

import copy
import datetime
import functools
import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

import espan_kernels
from espan import checkpoints
from espan._version import __version__
from espan.branches import GRepConv
from espan.data import Crops, Photograph, Skipped, read_photographs
from espan.data.photographs import find_photographs
from espan.errors import EspanError
from espan.evaluation import psnr
from espan.fused import default_device
from espan.models import Network, architecture_from_name
from espan.reparameterize import collapse
from espan.training.initialise import initialise

WARM_UP = 0.03  # of the run
CLIP = 1.0  # gradient norm; its median is 2 at first and 0.5 later
AVERAGE = 0.999
# With AdamW's 0.999 the steps after a sudden large gradient are too long for a network that
# multiplies its signals six times: runs at 1.5e-3 and 2e-3 diverged within 600 steps.
BETA2 = 0.99
VALIDATIONS = 30  # in a run
VALIDATION_CROP = 128  # LR pixels
NON_FINITE_IN_A_ROW = 20


@dataclass(frozen=True)
class TrainConfig:
    """What to train, on what, for how long.

    Attributes:
        photos: folders of photographs, searched with all folders below.
        output: the .safetensors file to write.
        hold_out: file names that are not trained on, but measured to choose the weights that are
            kept.  Empty: one in twenty, but 1 to 8, drawn by the seed.
        architecture: a name that `architecture_from_name` knows; "espan" is the x4 network.
        steps: the run ends after so many steps ...
        minutes: ... or so much time, whichever comes first; one of them must be given.  The
            learning rate follows what is nearer its end, so it always decays to zero.
        batch: crops per step.
        patch: side of the LR crops.
        lr: peak learning rate of AdamW.
        grep: [a, b] of every re-parameterised convolution.
        seed: of the weights, the crops and the drawing of `hold_out`.
        bf16: convolutions in bf16 (autocast); weights, loss and averages stay fp32.
        device: default: the GPU if there is one.
        about: words on the photographs for the record: where from, on what terms.
    """

    photos: tuple[Path, ...]
    output: Path
    hold_out: tuple[str, ...] = ()
    architecture: str = "espan"
    steps: int | None = None
    minutes: float | None = None
    batch: int = 8
    patch: int = 48
    lr: float = 8e-4
    grep: tuple[int, int] = (2, 0)
    seed: int = 0
    bf16: bool = False
    device: str | None = None
    about: str = ""

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise EspanError("train: steps or minutes (--steps, --minutes) must say when to end")
        for name in ("steps", "minutes", "batch", "patch", "lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise EspanError(f"train: {name} must be above 0, got {value}")
        if len(self.grep) != 2 or min(self.grep) < 0:
            raise EspanError(f"train: grep must be two numbers >= 0, got {self.grep}")
        if not 0 <= self.seed < 2**63:
            raise EspanError(f"train: seed must be in 0 ... 2**63 - 1, got {self.seed}")
        if self.output.suffix != ".safetensors":
            raise EspanError(f"{self.output}: the name must end in .safetensors")


def train(config: TrainConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Train a network, and write the best of its averaged weights to `config.output`.

    The network is trained collapsed: each step merges the branches of every GRep, and one
    convolution runs.  The branches, not the merged kernels, are averaged.  The average is measured
    `VALIDATIONS` times on the photographs held out, and written whenever it is the best so far,
    so that a run that is interrupted leaves its best, too.

    Args:
        config: checked here before any work begins.
        console: where progress goes; default: stderr, with a bar if it is a terminal.

    Returns:
        The record that was written with the weights.

    Raises:
        EspanError: folders without usable images, names to hold out that are not there, an unknown
            architecture, an output that cannot be written, a patch larger than every image, or a
            loss that is not finite for 20 steps in a row.
    """
    console = console or Console(stderr=True, soft_wrap=True, highlight=False)
    architecture = architecture_from_name(config.architecture)
    device = default_device() if config.device is None else torch.device(config.device)
    _check_output(config.output)
    held_out, training = _read(config, architecture.scale, console)
    crops = Crops(training, patch=config.patch, seed=config.seed)

    torch.manual_seed(config.seed)
    conv = functools.partial(GRepConv, sequences=config.grep)
    network = Network(architecture, conv=conv, gate=espan_kernels.gate)
    initialise(network, crops.batch(0, config.batch)[0])
    # 1.3 times the steps per second of NCHW (bf16, two AMX cores).
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.lr, betas=(0.9, BETA2), foreach=True
    )

    record = _record(config, training, held_out, device)
    best, skipped, in_a_row, validations, step = -math.inf, 0, 0, 0, 0
    losses: list[float] = []
    start = time.monotonic()
    with _bar(console) as bar:
        task = bar.add_task("training", total=1.0, note="")
        while (done := _progress(config, step, time.monotonic() - start)) < 1:
            for group in optimizer.param_groups:
                group["lr"] = config.lr * schedule(done)
            lr, hr = crops.batch(step * config.batch, config.batch)
            loss = train_step(network, optimizer, lr.to(device), hr.to(device), bf16=config.bf16)
            step += 1
            if math.isfinite(loss):
                update_average(average, network, step)
                losses.append(loss)
                in_a_row = 0
            else:
                skipped, in_a_row = skipped + 1, in_a_row + 1
                if in_a_row == NON_FINITE_IN_A_ROW:
                    raise EspanError(
                        f"the loss was not finite for {in_a_row} steps up to step {step}; "
                        f"a learning rate below {config.lr:g} may help"
                    )

            done = _progress(config, step, time.monotonic() - start)
            bar.update(task, completed=done, note=f"step {step}  loss {loss:.4f}")
            if done * VALIDATIONS < validations + 1 and done < 1:
                continue
            validations = int(done * VALIDATIONS)
            plain = collapse(average).eval()
            value = validate(plain, held_out)
            minutes = (time.monotonic() - start) / 60
            console.print(
                f"step {step:6d}  {minutes:5.1f} min  loss {np.mean(losses or [math.nan]):.5f}  "
                f"validation {value:.3f} dB" + (f"  skipped {skipped}" if skipped else "")
            )
            losses.clear()
            if value > best:
                best = value
                record |= {
                    "steps": step,
                    "minutes": round(minutes, 1),
                    "validation_psnr": round(value, 3),
                    "skipped_steps": skipped,
                }
                checkpoints.save(plain, config.output, record=record)
    return record


def schedule(done: float) -> float:
    """The learning rate, as a part of its peak, when a part `done` of the run (0-1) is over.

    A linear warm-up, then a cosine to zero.
    """
    return min(1.0, (done + 1e-6) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * done))


def train_step(
    network: Network, optimizer: torch.optim.Optimizer, lr: Tensor, hr: Tensor, *, bf16: bool
) -> float:
    """One step of L1 between the network's output and HR; returns the loss.

    lr (N, 3, p, p) and hr (N, 3, s*p, s*p) in 0-1.  If the loss or a gradient is not finite,
    nothing is changed and NaN is returned.
    """
    optimizer.zero_grad()
    with torch.autocast(lr.device.type, torch.bfloat16, enabled=bf16):
        sr = network(lr)
    loss = F.l1_loss(sr.float(), hr)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
    if not torch.isfinite(loss + norm):
        return math.nan
    optimizer.step()
    return loss.item()


@torch.no_grad()
def update_average(average: Network, network: Network, step: int) -> None:
    """Move the average, branch by branch, towards the network after `step` steps (1, 2, ...).

    The average of merged kernels would be another: a sequence's kernel is a product of two.
    """
    weight = 1 - min(AVERAGE, (1 + step) / (10 + step))  # young averages forget the start faster
    for mean, parameter in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(parameter, weight)


@torch.no_grad()
def validate(network: Network, photographs: Sequence[Photograph]) -> float:
    """Mean RGB PSNR in dB over the photographs' central 128 x 128 LR pixels (or fewer)."""
    device = next(network.parameters()).device
    scale = network.scale
    values = []
    for photograph in photographs:
        y, x = (max(0, n - VALIDATION_CROP) // 2 for n in photograph.lr.shape[:2])
        lr = photograph.lr[y : y + VALIDATION_CROP, x : x + VALIDATION_CROP]
        height, width = lr.shape[0] * scale, lr.shape[1] * scale
        hr = photograph.hr[y * scale : y * scale + height, x * scale : x * scale + width]
        image = torch.from_numpy(lr.copy()).to(device).permute(2, 0, 1)[None].float() / 255
        sr = (network(image)[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
        values.append(psnr(sr.cpu().numpy(), hr, border=scale))
    return float(np.mean(values))


def _check_output(output: Path) -> None:
    if not output.parent.is_dir():
        raise EspanError(f"{output}: the folder {output.parent} does not exist")
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise EspanError(f"{output}: cannot be written")


def _read(
    config: TrainConfig, scale: int, console: Console
) -> tuple[list[Photograph], list[Photograph]]:
    """The photographs to hold out and those to train on."""
    paths = find_photographs(config.photos)
    names = {path.name for path in paths}
    if missing := sorted(set(config.hold_out) - names):
        raise EspanError(f"train: not among the photographs, to be held out: {', '.join(missing)}")
    with _bar(console) as bar:
        task = bar.add_task("reading", total=len(paths), note="")
        photographs, skipped = read_photographs(
            paths, scale=scale, smallest=config.patch, each=lambda: bar.advance(task)
        )
    _tell_skipped(skipped, console)
    hold_out = set(config.hold_out) or _draw(photographs, config.seed)
    held_out = [p for p in photographs if p.name in hold_out]
    training = [p for p in photographs if p.name not in hold_out]
    if not training or not held_out:
        raise EspanError(
            f"train: {len(training)} photographs to train on and {len(held_out)} to hold out; "
            "at least one of each is needed"
        )
    console.print(
        f"{len(training)} photographs to train on, {_pixels(training) / 1e6:.0f} megapixels; "
        f"{len(held_out)} held out"
    )
    return held_out, training


def _tell_skipped(skipped: Sequence[Skipped], console: Console) -> None:
    for file in skipped:
        console.print(f"skipped: {file.reason}", markup=False)


def _draw(photographs: Sequence[Photograph], seed: int) -> set[str]:
    names = sorted({p.name for p in photographs})
    count = min(8, max(1, len(names) // 20))
    return set(np.random.Generator(np.random.Philox(seed)).choice(names, count, replace=False))


def _progress(config: TrainConfig, step: int, seconds: float) -> float:
    """The part of the run that is over, 0-1."""
    by_steps = 0.0 if config.steps is None else step / config.steps
    by_clock = 0.0 if config.minutes is None else seconds / (60 * config.minutes)
    return min(1.0, max(by_steps, by_clock))


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %  {task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _pixels(photographs: Sequence[Photograph]) -> int:
    return sum(p.hr.shape[0] * p.hr.shape[1] for p in photographs)


def _record(
    config: TrainConfig,
    training: Sequence[Photograph],
    held_out: Sequence[Photograph],
    device: torch.device,
) -> dict[str, Any]:
    """What is known of a run before its first step, as JSON data."""
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    else:
        machine = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return {
        "made by": f"espan train {__version__}",
        "date": datetime.date.today().isoformat(),
        "photographs": len(training),
        "pixels": _pixels(training),
        "about": config.about,
        "held_out": [p.name for p in held_out],
        "loss": "L1",
        "batch": config.batch,
        "patch": config.patch,
        "lr": config.lr,
        "grep": list(config.grep),
        "average": AVERAGE,
        "bf16": config.bf16,
        "seed": config.seed,
        "machine": machine,
        "torch": torch.__version__,
    }
