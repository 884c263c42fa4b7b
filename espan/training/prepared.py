"""A run that has been checked: its stages, images and first weights fit together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import torch
from accelerate import Accelerator
from rich.console import Console

import espan_kernels
from espan import checkpoints
from espan.branches import conv_factory
from espan.data import Crops
from espan.errors import EspanError
from espan.models import ConvFactory, Network
from espan.reparameterize import expand
from espan.training.data import Data, read_data
from espan.training.initialise import check_architecture
from espan.training.networks import Trainable, build, start
from espan.training.run import Run
from espan.training.stages import StageRun, plan

INITIAL_CROPS = 16  # crops from which the scale of the signals is measured


@dataclass(frozen=True)
class Prepared:
    """What `prepare` checked.

    Attributes:
        run: with the architecture of the weights that it starts from.
        stages: of the run.
        data: the images.
        weights: a plain network to start from; None: new weights, or a run that is resumed.
    """

    run: Run
    stages: list[StageRun]
    data: Data
    weights: Network | None

    @cached_property
    def conv(self) -> ConvFactory:
        table = self.run.experiment.network
        return conv_factory(table.conv, grep=table.grep, middle=table.middle)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, loss and averages."""
        return torch.float64 if self.run.setup.precision == "fp64" else torch.float32

    def first(self) -> Trainable | None:
        """The weights to start from, in training form."""
        if self.weights is None:
            return None
        return expand(self.weights, self.conv, gate=espan_kernels.gate).to(self.dtype)

    def network(self, stage: StageRun) -> Trainable:
        """The network of a stage, with new weights."""
        torch.manual_seed(stage.seed)
        return build(stage.shape, conv=self.conv, gate=espan_kernels.gate).to(self.dtype)

    def crops(self, stage: StageRun) -> Crops:
        """The crops of a stage."""
        return Crops(
            self.data.images(stage.scale),
            patch=stage.patch,
            seed=stage.seed,
            degrade=self.run.experiment.degrade,
        )

    def start(
        self, stage: StageRun, network: Trainable, previous: Trainable | None, crops: Crops
    ) -> str:
        """Give the network of a stage its first weights; returns what was done."""
        images = None
        if self.run.experiment.network.init == "bilinear":
            images = crops.batch(0, INITIAL_CROPS)[0].to(self.dtype)
        return start(network, previous, stage.change, images=images)


def prepare(run: Run, *, new: bool, accelerator: Accelerator, console: Console) -> Prepared:
    """Read and check all that a run needs.  Writes nothing.

    Args:
        run: the run.
        new: whether it starts from its weights, if it has any; otherwise it is resumed.
        accelerator: device and processes.
        console: for messages.

    Raises EspanError for an experiment, data or weights that do not fit.
    """
    setup, experiment = run.setup, run.experiment
    if setup.compile and accelerator.device.type == "cuda" and accelerator.num_processes == 1:
        raise EspanError(
            "--compile is for a CPU and for several processes; on one GPU a step is a CUDA graph "
            "already.  Leave it out"
        )
    weights = None
    if new and setup.weights is not None:
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
    if experiment.network.init == "bilinear":
        for stage in stages:
            check_architecture(stage.shape.architecture)
    data = read_data(setup, stages, console=console, accelerator=accelerator)
    prepared = Prepared(run, stages, data, weights)
    with torch.device("meta"):  # whether the convolutions can be built
        for stage in stages:
            prepared.network(stage)
    return prepared
