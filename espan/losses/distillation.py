"""Self-distillation: the student learns from the teacher where the teacher is better (Sec. 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from espan.errors import EspanError


def self_distillation(
    student: Tensor, teacher: Tensor, hr: Tensor, *, threshold: float = 0.01
) -> Tensor:
    """``mean(((teacher - student) * mask) ** 2)``, a float32 tensor of shape () (Eq. 1 to 3).

    The mask is 1 where the student's error exceeds the teacher's by more than `threshold`; the
    error is the mean of ``|. - hr|`` over the channels.  The mean is over all elements, masked
    ones included.  Only the student gets a gradient: teacher and mask are detached, as in RIFE, the
    paper's source for the method.

    Args:
        student: (N, C, H, W), in 0-1, of any floating-point dtype; computed in float32.
        teacher: of its shape.
        hr: of its shape.
        threshold: at least 0.

    Raises:
        EspanError: shapes that differ, or a negative threshold.
    """
    if not student.shape == teacher.shape == hr.shape:
        shapes = ", ".join(str(tuple(t.shape)) for t in (student, teacher, hr))
        raise EspanError(f"self_distillation: student, teacher and hr differ in shape: {shapes}")
    if not threshold >= 0:
        raise EspanError(f"self_distillation: threshold must be 0 or more, got {threshold}")
    student, teacher = student.float(), teacher.detach().float()
    with torch.no_grad():
        of_student, of_teacher = ((i - hr).abs().mean(1, keepdim=True) for i in (student, teacher))
        mask = of_student - of_teacher > threshold
    return ((teacher - student) * mask).square().mean()
