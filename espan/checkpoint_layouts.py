"""Weight layouts found in the wild, converted to the state dict of `espan.models.Network`.

A layout is recognised by its keys; every size is derived from the tensors.  No key of the network
may be missing, and none may be left over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from espan.errors import CheckpointError
from espan.models import SPAN_NORMALIZATION, Architecture
from espan.reparameterize import Kernel, add, compose

# Inserted by torch.compile, DataParallel, FSDP and activation checkpointing into the keys of the
# module that they wrap, which may be the network or a part of it.
_WRAPPER = r"(?:(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)"
# A key that identifies each layout, after any prefix.
_LAYOUT = re.compile(rf"(?:^|(?<=\.))(?:block_1\.{_WRAPPER}*c1_r|teacher_block_seq)\.")
# Names under which training code stores an average: params_ema, model_ema, ema, swa_model, ...
_AVERAGE = re.compile(r"(?:^|[._])(?:ema|swa|averaged?)(?=[._]|$)", re.IGNORECASE)
# Other tensors of averaging code: PyTorch's AveragedModel, ema_pytorch.
_COUNTERS = ("n_averaged", "initted", "step")
_DEEPEST = 20  # levels of nested dicts


@dataclass(frozen=True)
class _Copy:
    """A state dict of a known layout, and the keys and prefixes that lead to it."""

    path: tuple[str, ...]
    state: dict[str, Tensor]
    averages: int  # number of indications that it is an average
    others: tuple[str, ...]  # other modules in the same dict, e.g. "loss."

    @property
    def name(self) -> str:
        return " / ".join(self.path)


def unwrap(data: object) -> tuple[dict[str, Tensor], str]:
    """Find the one state dict of a known layout, under any keys and prefixes.

    If there are both raw weights and their average, the average is used.  Other modules, under
    other prefixes, such as a loss, are left out.

    Returns:
        The state dict without prefixes, and where it was found and what was left out ("" for
        a plain state dict).

    Raises:
        CheckpointError: there is none, there are several, or entries among its keys that are not
            tensors.
    """
    if not isinstance(data, Mapping) or not data:
        found = "an empty dict" if isinstance(data, Mapping) else type(data).__name__
        raise CheckpointError(f"holds {found}, where a dict of tensors (a state dict) is expected")
    copies = list(_copies(data, ()))
    if not copies:
        keys = _tensor_keys(data)
        if not keys:
            raise CheckpointError(
                f"is not a state dict: there are no tensors under {_some(sorted(map(str, data)))}"
            )
        raise CheckpointError(
            f"is not recognised: its keys begin with {_some(sorted(keys))}; expected the official "
            "ESPAN layout (conv_1, block_1 ..., teacher_block_seq), the SPAN layout (conv_1, "
            "block_1 ..., conv_cat, upsampler) or a .safetensors file written by espan"
        )
    most = max(copy.averages for copy in copies)
    best = [copy for copy in copies if copy.averages == most]
    if len(best) > 1:
        raise CheckpointError(
            f"holds {len(best)} networks, under {_some([copy.name for copy in best])}; save only "
            "one of them, or one network and its average"
        )
    (taken,) = best
    left_out = [copy.name or "no key" for copy in copies if copy is not taken]
    left_out += taken.others
    return taken.state, taken.name + (f" (not {', '.join(left_out)})" if left_out else "")


def _copies(data: Mapping[Any, object], path: tuple[str, ...]) -> Iterator[_Copy]:
    """All state dicts of known layouts in nested dicts."""
    if len(path) > _DEEPEST:
        raise CheckpointError(
            f"has dicts nested more than {_DEEPEST} deep, or one that contains itself, under "
            f"{_some(list(path))}; expected a plain state dict"
        )
    for key, inside in _dicts(data):
        yield from _copies(inside, (*path, key))
    tensors = {str(k): v for k, v in data.items() if isinstance(v, Tensor)}
    prefixes = {k[: match.start()] for k in tensors if (match := _LAYOUT.search(k))}
    if not prefixes:
        return
    states: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in prefixes}
    counted, strays, others = [], [], set()
    for key in map(str, data):
        around = [p for p in prefixes if key.startswith(p)]
        name = key.rpartition(".")[2]
        if name in _COUNTERS and any(p.startswith(key[: -len(name)]) for p in prefixes):
            counted += [key[: -len(name)]] * (name == "n_averaged")
        elif around and key in tensors:
            prefix = max(around, key=len)
            inner = re.sub(rf"(?:^|(?<=\.)){_WRAPPER}+", "", key[len(prefix) :])
            if inner in states[prefix]:
                raise CheckpointError(f"has {prefix + inner!r} twice, once as {key!r}")
            states[prefix][inner] = tensors[key]
        elif around:
            strays.append(key)
        else:
            module, dot, _ = key.partition(".")
            others.add(module + dot)
    if strays:
        raise CheckpointError(
            f"has keys that belong to no part of the network: {_some(sorted(strays))}; expected "
            "only tensors"
        )
    for prefix, state in sorted(states.items()):
        names = (*path, prefix) if prefix else path
        averages = sum(bool(_AVERAGE.search(name)) for name in names)
        averages += sum(prefix.startswith(start) for start in counted)
        yield _Copy(names, state, averages, tuple(sorted(others)))


def _tensor_keys(data: Mapping[Any, object]) -> list[str]:
    keys = [str(key) for key, value in data.items() if isinstance(value, Tensor)]
    return keys + [f"{key}.{name}" for key, inside in _dicts(data) for name in _tensor_keys(inside)]


def _dicts(data: Mapping[Any, object]) -> Iterator[tuple[str, Mapping[Any, object]]]:
    """The nested dicts that may hold a network; those of optimizers are skipped."""
    for key, value in data.items():
        if isinstance(value, Mapping) and not str(key).startswith("optim"):
            yield str(key), value


def from_state_dict(state: Mapping[str, Tensor]) -> tuple[Architecture, dict[str, Tensor]]:
    """Read the official ESPAN and SPAN layouts, plain or in training form, without prefixes.

    Returns the architecture and the state dict of the equal `Network`, merged in fp64.
    """
    reader = _Reader(state)
    if any(k.startswith("teacher_block_seq.") for k in state):
        return _read(reader, tail_prefix="tea_", last_block="teacher_block_seq")
    return _read(reader, tail_prefix="", last_block=None)


def _read(
    reader: _Reader, *, tail_prefix: str, last_block: str | None
) -> tuple[Architecture, dict[str, Tensor]]:
    """ESPAN and SPAN name their parts alike; they differ in the tail's prefix and the last block.

    The convolutions of ESPAN's last block are called c1_r and c2_r like those of the others.
    """
    blocks = [f"block_{i}" for i in range(1, reader.count("block_{}.c1_r.", start=1) + 1)]
    if last_block is not None:
        blocks.append(last_block)
    convs = tuple(reader.count(f"{block}.c{{}}_r.", start=1) for block in blocks)
    # The ESPAN layout has no normalisation; in the SPAN layout an empty buffer switches it off.
    no_norm = reader.take_flag("no_norm") or last_block is not None

    kernels = {"head": reader.conv("conv_1")}
    for i, (block, n) in enumerate(zip(blocks, convs, strict=True)):
        for j in range(n):
            kernels[f"blocks.{i}.convs.{j}"] = reader.conv(f"{block}.c{j + 1}_r")
    kernels["tail.post"] = reader.conv(f"{tail_prefix}conv_2")
    kernels["tail.fuse"] = reader.conv(f"{tail_prefix}conv_cat")
    kernels["tail.upsample"] = reader.conv(f"{tail_prefix}upsampler.0")
    reader.check_all_taken()

    channels, _, head_kernel, _ = kernels["head"].weight.shape
    concat: Literal["output", "activation"] = "output" if last_block else "activation"
    architecture = Architecture(
        channels=channels,
        convs=convs,
        scale=_scale(kernels["tail.upsample"].weight.shape[0]),
        head_kernel=head_kernel,
        concat_last=concat,
        normalization=None if no_norm else SPAN_NORMALIZATION,
    )
    state = {}
    for name, kernel in kernels.items():
        state[f"{name}.weight"], state[f"{name}.bias"] = kernel
    return architecture, state


class _Reader:
    """Takes tensors out of a state dict and keeps track of those that are left."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state
        self.untaken = set(state)

    def count(self, pattern: str, start: int) -> int:
        """How many of pattern.format(start), pattern.format(start + 1), ... begin a key."""
        n = start
        while any(k.startswith(pattern.format(n)) for k in self.state):
            n += 1
        return n - start

    def take(self, key: str) -> Tensor:
        if key not in self.state:
            near = [k for k in sorted(self.untaken) if k.split(".")[0] == key.split(".")[0]]
            hint = f" (of this part, it has {_some(near)})" if near else ""
            raise CheckpointError(f"lacks {key!r}{hint}")
        self.untaken.discard(key)
        return self.state[key]

    def take_flag(self, key: str) -> bool:
        self.untaken.discard(key)
        return key in self.state

    def kernel(self, prefix: str) -> Kernel:
        weight, bias = self.take(f"{prefix}.weight").double(), self.take(f"{prefix}.bias").double()
        if weight.ndim != 4 or weight.shape[2] != weight.shape[3] or bias.shape != weight.shape[:1]:
            raise CheckpointError(
                f"{prefix!r} is not a square convolution with bias: weight {tuple(weight.shape)}, "
                f"bias {tuple(bias.shape)}"
            )
        return Kernel(weight, bias)

    def conv(self, name: str) -> Kernel:
        """One convolution: plain, merged (`eval_conv`), or from SPAN's branches, if there are any.

        The branches are the sequence pad, 1x1, kxk, 1x1 and, in parallel, a 1x1.  An `eval_conv`
        beside them is left over from the last evaluation and may be stale.
        """
        if any(k.startswith(f"{name}.sk.") or k.startswith(f"{name}.conv.") for k in self.state):
            for part in ("weight", "bias"):
                self.untaken.discard(f"{name}.eval_conv.{part}")
            sequence = [self.kernel(f"{name}.conv.{i}") for i in range(3)]
            try:
                return add(
                    compose(compose(sequence[0], sequence[1]), sequence[2]),
                    self.kernel(f"{name}.sk"),
                )
            except (RuntimeError, ValueError) as error:
                shapes = [tuple(k.weight.shape) for k in sequence]
                raise CheckpointError(
                    f"the branches of {name!r} do not fit together: {shapes}"
                ) from error
        if f"{name}.weight" in self.state:
            return self.kernel(name)
        return self.kernel(f"{name}.eval_conv")

    def check_all_taken(self) -> None:
        if self.untaken:
            raise CheckpointError(
                f"has keys that belong to no part of the network: {_some(sorted(self.untaken))}"
            )


def _scale(rows: int) -> int:
    scale = math.isqrt(rows // 3)
    if 3 * scale * scale != rows:
        raise CheckpointError(
            f"the upsampling convolution has {rows} outputs; 3*s*s is expected, "
            "e.g. 12, 27 or 48 for x2, x3, x4"
        )
    return scale


def _some(keys: list[str], most: int = 4) -> str:
    shown = ", ".join(repr(k) for k in keys[:most])
    return shown if len(keys) <= most else f"{shown} and {len(keys) - most} more"


def check_finite(state: Mapping[str, Tensor]) -> None:
    bad = [k for k, v in state.items() if not torch.isfinite(v).all()]
    if bad:
        raise CheckpointError(f"holds NaN or infinite weights in {_some(bad)}")
