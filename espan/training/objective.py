"""What a stage minimises."""

from __future__ import annotations

from torch import Tensor

from espan.losses import Loss, LossWeights, self_distillation
from espan.training.experiment import LossTable


class Objective:
    """The loss of a network's output; or of a student's and its teacher's, with L_sd (Eq. 4).

    Its arithmetic is fp32, also for outputs in fp64.
    """

    def __init__(self, table: LossTable) -> None:
        self.table = table
        self.loss = Loss(
            LossWeights(
                pixel=None if table.pixel == "none" else table.pixel,
                alpha=table.hf,
                beta=table.dct,
                fft=table.fft,
                dwt=table.dwt,
            )
        )

    def __call__(self, output: Tensor | tuple[Tensor, Tensor], hr: Tensor) -> Tensor:
        hr = hr.float()
        if isinstance(output, Tensor):
            return self.loss(output.float(), hr)
        student, teacher = (image.float() for image in output)
        total = self.loss(student, hr) + self.loss(teacher, hr)
        if self.table.distillation:
            loss = self_distillation(student, teacher, hr, threshold=self.table.threshold)
            total = total + self.table.distillation * loss
        return total
