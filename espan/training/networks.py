"""The network of a stage, and how it follows from that of the stage before.

Its shape is planned (`Shape.changed`) before anything is trained.  When the stage begins, the
network is built and given its first weights (`start`), and at intervals it is merged for use
(`plain_networks`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn

from espan.errors import EspanError
from espan.models import Architecture, ConvFactory, Gate, Network, Tail
from espan.reparameterize import merged_state
from espan.training.experiment import Change
from espan.training.initialise import initialise, initialise_added, initialise_upsampling


@dataclass(frozen=True)
class Shape:
    """A network to train: alone, or a teacher with the student that shares its first blocks.

    Attributes:
        architecture: of the network; of the teacher if there is a student.
        student_blocks: number of blocks of the student; None: no student.
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
        """The architecture of the weights to use: the student's if there is one."""
        return self.student or self.architecture

    def changed(self, change: Change) -> Shape:
        """The shape after a change.  Raises EspanError for a change that is impossible here."""
        shape = self
        if change.keep is not None:
            if shape.student is None:
                raise EspanError(f"keep = {change.keep!r}, but there is no student and no teacher")
            shape = Shape(shape.student if change.keep == "student" else shape.architecture)
        if change.scale is not None:
            shape = replace(shape, architecture=shape.architecture.replace(scale=change.scale))
        blocks = change.remove_blocks or change.remove_convs or change.add_blocks or change.teacher
        if blocks and shape.student_blocks:
            raise EspanError(
                "the blocks of a student and its teacher cannot be changed; keep one of the two "
                "first (keep = 'teacher' or 'student')"
            )
        convs = shape.architecture.convs
        if change.remove_blocks:
            if change.remove_blocks >= len(convs):
                raise EspanError(
                    f"remove_blocks = {change.remove_blocks}, but the network has {len(convs)} "
                    f"block{'s' * (len(convs) > 1)}, of which one must remain"
                )
            convs = convs[: -change.remove_blocks]
        if change.remove_convs:
            if convs[-1] - change.remove_convs < 2:
                raise EspanError(
                    f"remove_convs = {change.remove_convs}, but the last block has {convs[-1]} "
                    "convolutions, of which two must remain"
                )
            convs = (*convs[:-1], convs[-1] - change.remove_convs)
        convs += (3,) * (change.add_blocks + change.teacher)
        architecture = shape.architecture.replace(convs=convs)
        if change.teacher:
            return Shape(architecture, student_blocks=len(convs) - change.teacher)
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


class SelfDistilled(nn.Module):
    """A teacher and the student that shares its first blocks (Sec. 3.1, Fig. 1).

    (N, 3, H, W) in 0-1 -> the student's and the teacher's output, both (N, 3, s*H, s*W), in one
    pass.

    Args:
        shape: with `student_blocks`.
        conv, gate: as for `Network`.
    """

    def __init__(self, shape: Shape, *, conv: ConvFactory, gate: Gate) -> None:
        super().__init__()
        assert shape.student_blocks is not None
        self.student_blocks = shape.student_blocks
        architecture = shape.architecture
        self.teacher = Network(architecture, conv=conv, gate=gate)
        self.student_tail = Tail(architecture, conv)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tails = {
            self.student_blocks: self.student_tail,
            len(self.teacher.blocks): self.teacher.tail,
        }
        student, teacher = self.teacher.outputs(x, tails)
        return student, teacher


Trainable = Network | SelfDistilled
_STUDENT = "student_tail."


@dataclass(frozen=True)
class Transfer:
    """Names of the modules that a change of the network added and dropped."""

    added: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        parts = [
            f"{verb} {', '.join(names)}"
            for verb, names in (("added", self.added), ("dropped", self.dropped))
            if names
        ]
        return "; ".join(parts) or "nothing added, nothing dropped"


def build(shape: Shape, *, conv: ConvFactory, gate: Gate) -> Trainable:
    """A network of this shape with PyTorch's initial weights."""
    if shape.student_blocks is None:
        return Network(shape.architecture, conv=conv, gate=gate)
    return SelfDistilled(shape, conv=conv, gate=gate)


def start(
    network: Trainable, previous: Trainable | None, change: Change, *, images: Tensor | None
) -> str:
    """Give the network of a stage its first weights; returns what was done, as text for the log.

    Args:
        network: from `build`.
        previous: the network of the stage before, as for `transfer`; None: all weights are new.
        change: what `network` differs by from `previous`.
        images: for `espan.training.initialise`; None: new convolutions keep PyTorch's weights.
    """
    teacher = _teacher(network)
    if previous is not None:
        moved = transfer(previous, network, change)
        if images is not None:
            initialise_added(teacher, moved.added, images)
            scale = _teacher(previous).scale
            if teacher.scale != scale:
                for tail, old in _tails(network, previous, change):
                    initialise_upsampling(tail.upsample, old.upsample, teacher.scale, scale)
        return str(moved)
    if images is not None:
        initialise(teacher, images)
        if isinstance(network, SelfDistilled):
            network.student_tail.load_state_dict(teacher.tail.state_dict())
    return "new weights"


def transfer(old: Trainable, new: Trainable, change: Change) -> Transfer:
    """Copy the weights of `old` into `new`, whose shape is that of `old` after `change`, by name.

    A new teacher's tail starts as a copy of the student's.  New blocks keep their initial weights,
    and so do, for another scale, convolutions that depend on it, with all their branches.
    """
    state = _by_name(old)
    dropped: set[str] = set()
    if change.keep == "student":
        assert isinstance(old, SelfDistilled)
        depths = range(old.student_blocks, len(old.teacher.blocks))
        dropped |= _pop(state, "tail.", *(f"blocks.{i}." for i in depths))
        state = {
            "tail." + name.removeprefix(_STUDENT) if name.startswith(_STUDENT) else name: value
            for name, value in state.items()
        }
    elif change.keep == "teacher":
        dropped |= _pop(state, _STUDENT)
    scale = _teacher(old).scale
    if change.scale not in (None, scale):
        dropped |= _pop(state, "tail.upsample.", f"{_STUDENT}upsample.")
    if change.remove_blocks:
        count = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        removed = range(count - change.remove_blocks, count)
        dropped |= _pop(state, *(f"blocks.{i}." for i in removed))
    if change.teacher:
        state |= {
            _STUDENT + name.removeprefix("tail."): value
            for name, value in state.items()
            if name.startswith("tail.")
        }
    wanted = _by_name(new)
    # `near`, and the first convolution of a tail that reads it, have other sizes for another scale.
    other = [name for name in state.keys() & wanted if state[name].shape != wanted[name].shape]
    dropped |= _pop(state, *(f"{name.rpartition('.')[0]}." for name in other))
    dropped |= state.keys() - wanted.keys()
    for name, value in wanted.items():
        if name in state:
            value.copy_(state[name])
    return Transfer(added=_modules(wanted.keys() - state.keys()), dropped=_modules(dropped))


def _teacher(network: Trainable) -> Network:
    """The teacher, or the only network."""
    return network.teacher if isinstance(network, SelfDistilled) else network


def _tails(new: Trainable, old: Trainable, change: Change) -> Iterator[tuple[Tail, Tail]]:
    """Each tail and the one that `transfer` copies to it."""
    of_student = old.student_tail if isinstance(old, SelfDistilled) else old.tail
    of_teacher = _teacher(old).tail
    yield _teacher(new).tail, of_student if change.keep == "student" else of_teacher
    if isinstance(new, SelfDistilled):
        yield new.student_tail, of_student


def plain_networks(trained: Trainable, shape: Shape) -> dict[str, Network]:
    """The merged networks: ``"network"``, or ``"student"`` and ``"teacher"``."""
    state = merged_state(trained)
    if shape.student is None:
        return {"network": _plain(Network(shape.architecture), state)}
    network = {n.removeprefix("teacher."): v for n, v in state.items() if n.startswith("teacher.")}
    tail = {
        f"tail.{n.removeprefix(_STUDENT)}": v for n, v in state.items() if n.startswith(_STUDENT)
    }
    return {
        "student": _plain(Network(shape.student), network | tail),
        "teacher": _plain(Network(shape.architecture), network),
    }


def _plain(network: Network, state: dict[str, Tensor]) -> Network:
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    return network.eval().requires_grad_(False)


def _by_name(trained: Trainable) -> dict[str, Tensor]:
    """The tensors; the teacher's under the names that they have in a network alone."""
    return {name.removeprefix("teacher."): value for name, value in trained.state_dict().items()}


def _pop(state: dict[str, Tensor], *prefixes: str) -> set[str]:
    """Remove the entries with these prefixes; return their names."""
    names = {name for name in state if name.startswith(prefixes)}
    for name in names:
        del state[name]
    return names


def _modules(names: Iterable[str]) -> tuple[str, ...]:
    """The blocks, convolutions or tails that the tensors belong to, each once."""
    depth = {"head": 1, "near": 1, "blocks": 4, "tail": 2, "student_tail": 2}
    parts = (name.split(".") for name in names)
    return tuple(sorted({".".join(p[: 3 if "gate_conv" in p else depth[p[0]]]) for p in parts}))
