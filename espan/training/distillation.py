"""A student and its teacher over one backbone (Sec. 3.1, Fig. 1)."""

from __future__ import annotations

from torch import Tensor, nn

from espan.models import ConvFactory, Gate, Network, Tail
from espan.training.shape import Shape


class SelfDistilled(nn.Module):
    """A network, the teacher, whose first blocks with a tail of their own are the student.

    (N, 3, H, W) in 0-1 -> the student's and the teacher's output, both (N, 3, s*H, s*W), in one
    pass.

    Args:
        shape: with `student_blocks`.
        conv: as `Network` takes it.
        gate: as `Network` takes it.
    """

    def __init__(self, shape: Shape, *, conv: ConvFactory, gate: Gate) -> None:
        super().__init__()
        assert shape.student_blocks is not None
        self.student_blocks = shape.student_blocks
        about = shape.architecture
        self.teacher = Network(about, conv=conv, gate=gate)
        self.student_tail = Tail(about.channels, about.scale, conv)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        teacher = self.teacher
        student, taught = teacher.outputs(
            x, {self.student_blocks: self.student_tail, len(teacher.blocks): teacher.tail}
        )
        return student, taught
