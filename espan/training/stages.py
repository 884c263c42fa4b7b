"""From one stage's network to the next one's: weights go over by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from espan.models import ConvFactory, Gate, Network
from espan.reparameterize import merged_state
from espan.training.distillation import SelfDistilled
from espan.training.experiment import Change
from espan.training.shape import Shape

Trained = Network | SelfDistilled
_STUDENT = "student_tail."


@dataclass(frozen=True)
class Carried:
    """Names of modules that a change of the network made anew, and of those it left behind."""

    added: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        said = [
            f"{verb} {', '.join(names)}"
            for verb, names in (("added", self.added), ("dropped", self.dropped))
            if names
        ]
        return "; ".join(said) or "nothing added, nothing dropped"


def build(shape: Shape, *, conv: ConvFactory, gate: Gate) -> Trained:
    """A network of the shape, with fresh weights."""
    if shape.student_blocks is None:
        return Network(shape.architecture, conv=conv, gate=gate)
    return SelfDistilled(shape, conv=conv, gate=gate)


def carry(old: Trained, new: Trained, change: Change) -> Carried:
    """Copy into `new`, made for the shape after `change`, what it keeps of `old`.

    A new teacher's tail starts as a copy of the student's; an upsampling convolution for another
    scale, with all its branches, and new blocks keep the weights they were made with.
    """
    state = _by_name(old)
    left: set[str] = set()
    if change.keep == "student":
        assert isinstance(old, SelfDistilled)
        depths = range(old.student_blocks, len(old.teacher.blocks))
        left |= _take(state, "tail.", *(f"blocks.{i}." for i in depths))
        state = {
            "tail." + name.removeprefix(_STUDENT) if name.startswith(_STUDENT) else name: value
            for name, value in state.items()
        }
    elif change.keep == "teacher":
        left |= _take(state, _STUDENT)
    if change.scale not in (None, _network(old).scale):
        left |= _take(state, "tail.upsample.", f"{_STUDENT}upsample.")
    if change.remove_blocks:
        count = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        gone = range(count - change.remove_blocks, count)
        left |= _take(state, *(f"blocks.{i}." for i in gone))
    if change.teacher:
        state |= {
            _STUDENT + name.removeprefix("tail."): value
            for name, value in state.items()
            if name.startswith("tail.")
        }
    wanted = _by_name(new)
    left |= {name for name in state if name not in wanted}
    for name, value in wanted.items():
        if name in state:
            value.copy_(state[name])
    return Carried(
        added=_modules(name for name in wanted if name not in state),
        dropped=_modules(left),
    )


def plain_networks(trained: Trained, shape: Shape) -> dict[str, Network]:
    """The plain networks that are trained, merged: "network", or "student" and "teacher"."""
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
    own = network.state_dict()
    network.load_state_dict({name: state[name] for name in own})
    return network.eval().requires_grad_(False)


def _network(trained: Trained) -> Network:
    return trained.teacher if isinstance(trained, SelfDistilled) else trained


def _by_name(trained: Trained) -> dict[str, Tensor]:
    """The tensors, the teacher's by the names they have in a network alone."""
    return {name.removeprefix("teacher."): value for name, value in trained.state_dict().items()}


def _take(state: dict[str, Tensor], *prefixes: str) -> set[str]:
    """Remove what starts so, and return its names."""
    names = {name for name in state if name.startswith(prefixes)}
    for name in names:
        del state[name]
    return names


def _modules(names: Iterable[str]) -> tuple[str, ...]:
    """The blocks, convolutions or tails that the tensors are of, each once."""
    depth = {"head": 1, "blocks": 4, "tail": 2, "student_tail": 2}
    parts = (name.split(".") for name in names)
    return tuple(sorted({".".join(p[: depth[p[0]]]) for p in parts}))
