"""What network a stage trains, as data: how it follows from the one before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from espan.errors import EspanError
from espan.models import Architecture


@dataclass(frozen=True)
class Shape:
    """A network to be trained: alone, or as the teacher of a student that shares its first blocks.

    Attributes:
        architecture: of the network; where there is a student, of the teacher.
        student_blocks: blocks of the student; None: there is no student.
    """

    architecture: Architecture
    student_blocks: int | None = None

    @property
    def student(self) -> Architecture | None:
        """The student's architecture."""
        if self.student_blocks is None:
            return None
        return self.architecture.replace(convs=self.architecture.convs[: self.student_blocks])

    @property
    def deployed(self) -> Architecture:
        """What is used in the end: the student's if there is one."""
        return self.student or self.architecture

    def changed(
        self,
        *,
        keep: Literal["student", "teacher"] | None = None,
        scale: int | None = None,
        remove_blocks: int = 0,
        remove_convs: int = 0,
        add_blocks: int = 0,
        teacher: int = 0,
    ) -> Shape:
        """The shape after a `Change`, whose fields these are.

        Raises EspanError, naming the shape, for a change that cannot be made of it.
        """
        shape = self
        if keep is not None:
            if shape.student is None:
                raise EspanError(f"keep = {keep!r}, but there is no student and no teacher")
            shape = Shape(shape.student if keep == "student" else shape.architecture)
        if scale is not None:
            shape = replace(shape, architecture=shape.architecture.replace(scale=scale))
        if (remove_blocks or remove_convs or add_blocks or teacher) and shape.student_blocks:
            raise EspanError(
                "a student and its teacher cannot change their blocks; keep one of them first "
                "(keep = 'teacher' or 'student')"
            )
        convs = shape.architecture.convs
        if remove_blocks:
            if remove_blocks >= len(convs):
                raise EspanError(
                    f"remove_blocks = {remove_blocks}, but the network has {len(convs)} "
                    f"block{'s' * (len(convs) > 1)}, of which one must stay"
                )
            convs = convs[:-remove_blocks]
        if remove_convs:
            if convs[-1] - remove_convs < 2:
                raise EspanError(
                    f"remove_convs = {remove_convs}, but the last block has {convs[-1]} "
                    "convolutions, of which two must stay"
                )
            convs = (*convs[:-1], convs[-1] - remove_convs)
        convs += (3,) * (add_blocks + teacher)
        architecture = shape.architecture.replace(convs=convs)
        if teacher:
            return Shape(architecture, student_blocks=len(convs) - teacher)
        return replace(shape, architecture=architecture)

    def __str__(self) -> str:
        convs = self.architecture.convs
        text = f"x{self.architecture.scale}, {self.architecture.channels} channels, blocks of "
        if self.student_blocks is None:
            return text + "-".join(map(str, convs))
        student, teacher = convs[: self.student_blocks], convs[self.student_blocks :]
        return (
            text + "-".join(map(str, student)) + f", teacher of {'-'.join(map(str, teacher))} more"
        )
