"""Weight layouts found in the wild, converted to the state dict of `espan.models.Network`.

A layout is recognised by its keys; every size is derived from the tensors.  No key of the network
may be missing, and none may be left over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from espan.errors import CheckpointError
from espan.models import SPAN_NORMALIZATION, Architecture
from espan.reparameterize import Kernel, add, compose

# Inserted by torch.compile, DataParallel, FSDP and activation checkpointing into the keys of the
# module that they wrap, which may be the network or a part of it.
_WRAPPER = r"(?:(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)"
# A key that identifies each layout, after any prefix.
_LAYOUT = re.compile(
    rf"(?:^|(?<=\.))(?:(?:feats\.{_WRAPPER}*\d+\.{_WRAPPER}*)?block_1\.{_WRAPPER}*c1(?:_r)?"
    r"|teacher_block_seq)\."
)
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
            "layout of ESPAN (conv_1, block_1 ..., teacher_block_seq), SPAN (conv_1, block_1 ..., "
            "conv_cat, upsampler), SPANV2, SPANF, SPANF3 (block_1 ...) or SPANPlus (feats ...), or "
            "a .safetensors file written by espan"
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
    """Read the layouts of the family, plain or in training form, without prefixes.

    Returns the architecture and the state dict of the equal `Network`, merged in fp64.
    """
    reader = _Reader(state)
    has = {key.partition(".")[0] for key in state}
    if "teacher_block_seq" in has:
        architecture = _read_espan(reader)
    elif "feats" in has:
        architecture = _read_spanplus(reader)
    elif reader.count("block_{}.c1.", start=1):
        architecture = _read_spanv2(reader)
    elif "to_pixel" in has or any(".att_conv." in key for key in state):
        architecture = _read_spanf3(reader)
    elif "conv_near" in has or not has & {"conv_1", "upsampler"}:
        architecture = _read_spanf(reader)
    else:
        architecture = _read_span(reader)
    reader.check_all_taken()
    return architecture, reader.found


def _read_espan(reader: _Reader) -> Architecture:
    """The convolutions of the last block are called c1_r and c2_r like those of the others."""
    reader.conv("head", "conv_1")
    convs = reader.blocks([*reader.numbered_blocks(), "teacher_block_seq"])
    reader.conv("tail.post", "tea_conv_2")
    reader.conv("tail.fuse", "tea_conv_cat")
    reader.conv("tail.upsample", "tea_upsampler.0")
    reader.take_flag("no_norm")  # it never has a normalisation
    return reader.architecture("head", convs)


def _read_span(reader: _Reader) -> Architecture:
    reader.conv("head", "conv_1")
    convs = reader.blocks(reader.numbered_blocks())
    reader.conv("tail.post", "conv_2")
    reader.conv("tail.fuse", "conv_cat")
    reader.conv("tail.upsample", "upsampler.0")
    # An empty buffer switches the normalisation off.
    norm = None if reader.take_flag("no_norm") else SPAN_NORMALIZATION
    return reader.architecture("head", convs, concat_last="activation", normalization=norm)


def _read_spanplus(reader: _Reader) -> Architecture:
    groups = reader.count("feats.{}.", start=1)
    if groups > 1:
        raise CheckpointError(
            f"is a SPANPlus of {groups} groups of blocks (feats.1 to feats.{groups}); espan runs "
            "networks of one group"
        )
    if any(key.startswith("upsampler.offset.") for key in reader.state):
        raise CheckpointError(
            "is a SPANPlus whose upsampler is DySample (upsampler.offset), a learned sampling; "
            "espan runs those that end with a convolution (upsampler 'ps' or 'conv')"
        )
    inner = reader.count("feats.1.block_n.{}.", start=0)
    blocks = ["block_1", *(f"block_n.{i}" for i in range(inner)), "block_end"]
    reader.conv("head", "feats.0")
    convs = reader.blocks([f"feats.1.{block}" for block in blocks])
    reader.conv("tail.post", "feats.1.conv_2")
    reader.conv("tail.fuse", "feats.1.conv_cat")
    shuffled = reader.count("upsampler.{}.", start=0)
    reader.conv("tail.upsample", "upsampler.0" if shuffled else "upsampler")
    return reader.architecture("head", convs, concat_last="activation", activation="mish")


def _read_spanf3(reader: _Reader) -> Architecture:
    unshuffles = any(key.startswith("conv_1.1.") for key in reader.state)
    reader.conv("head", "conv_1.1" if unshuffles else "conv_1")
    convs = reader.blocks(reader.numbered_blocks())
    for i in range(len(convs)):
        reader.conv(f"blocks.{i}.gate_conv", f"block_{i + 1}.att_conv")
    reader.conv("tail.fuse", "conv_cat")
    reader.conv("tail.upsample", "to_pixel")
    return reader.architecture(
        "head",
        convs,
        unshuffle=_unshuffle(reader.found["head.weight"].shape[1]) if unshuffles else 1,
        concat_last="activation",
        activation="relu",
        gate="tanh",
        tail="pointwise",
    )


def _read_spanf(reader: _Reader) -> Architecture:
    reader.conv("near", "conv_near", bias=False)
    convs = reader.blocks(reader.numbered_blocks())
    reader.conv("tail.fuse", "conv_cat")
    reader.conv("tail.upsample", "conv_2")
    return reader.architecture("blocks.0.convs.0", convs, stem="block", tail="pointwise")


def _read_spanv2(reader: _Reader) -> Architecture:
    blocks = reader.count("block_{}.c1.", start=1)
    bias = "block_1.c1.conv.bias" in reader.state
    reader.conv("near", "conv_near", bias=False)
    for i in range(blocks):
        for j in range(3):
            reader.conv(f"blocks.{i}.convs.{j}", f"block_{i + 1}.c{j + 1}.conv", bias=bias)
        if i > 0:
            reader.conv(f"blocks.{i}.gate_conv", f"block_{i + 1}.guidance_map_conv")
    reader.conv("tail.depthwise", "depthwise_conv", bias=False)
    reader.conv("tail.pointwise", "pointwise_conv", bias=False)
    return reader.architecture(
        "blocks.0.convs.0",
        (3,) * blocks,
        activation="relu",
        gate="linear",
        bias=bias,
        stem="activated_block",
        tail="depthwise",
    )


class _Reader:
    """Takes tensors out of a state dict and keeps track of those that are left.

    Attributes:
        found: the state dict of the `Network`, as far as it was read.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state
        self.untaken = set(state)
        self.found: dict[str, Tensor] = {}

    def numbered_blocks(self) -> list[str]:
        return [f"block_{i}" for i in range(1, self.count("block_{}.c1_r.", start=1) + 1)]

    def blocks(self, names: Sequence[str]) -> tuple[int, ...]:
        """Read the convolutions c1_r, c2_r, ... of each block; returns their numbers."""
        convs = tuple(self.count(f"{name}.c{{}}_r.", start=1) for name in names)
        for i, (name, n) in enumerate(zip(names, convs, strict=True)):
            for j in range(n):
                self.conv(f"blocks.{i}.convs.{j}", f"{name}.c{j + 1}_r")
        return convs

    def architecture(
        self, first: str, convs: tuple[int, ...], *, unshuffle: int = 1, **fields: Any
    ) -> Architecture:
        """The architecture, with its sizes from the first and the last convolution."""
        channels, _, head_kernel, _ = self.found[f"{first}.weight"].shape
        upsample = "pointwise" if fields.get("tail") == "depthwise" else "upsample"
        scale = _scale(self.found[f"tail.{upsample}.weight"].shape[0])
        if scale % unshuffle:
            raise CheckpointError(
                f"upscales by {scale} after it has unshuffled {unshuffle} x {unshuffle} pixels; "
                f"expected a multiple of {unshuffle}"
            )
        return Architecture(
            channels=channels,
            convs=convs,
            scale=scale // unshuffle,
            head_kernel=head_kernel,
            unshuffle=unshuffle,
            **fields,
        )

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
        check_dense(key, self.state[key])
        return self.state[key]

    def take_flag(self, key: str) -> bool:
        self.untaken.discard(key)
        return key in self.state

    def conv(self, name: str, key: str, *, bias: bool = True) -> None:
        """Read a convolution of the network: plain, merged (`eval_conv`), or SPAN's branches.

        The branches, if there are any, are the sequence pad, 1x1, kxk, 1x1 and, in parallel, a 1x1.
        An `eval_conv` beside them is left over from the last evaluation and may be stale.
        """
        if any(k.startswith((f"{key}.sk.", f"{key}.conv.")) for k in self.state):
            kernel = self._merged(key)
        else:
            plain = f"{key}.weight" in self.state or not bias
            kernel = self._kernel(key if plain else f"{key}.eval_conv", bias=bias)
        self.found[f"{name}.weight"] = kernel.weight
        if bias:
            self.found[f"{name}.bias"] = kernel.bias

    def _kernel(self, prefix: str, *, bias: bool = True) -> Kernel:
        weight = self.take(f"{prefix}.weight").double()
        values = self.take(f"{prefix}.bias").double() if bias else weight.new_zeros(len(weight))
        square = weight.ndim == 4 and weight.shape[2] == weight.shape[3]
        if not square or values.shape != weight.shape[:1]:
            found = f"weight {tuple(weight.shape)}" + f", bias {tuple(values.shape)}" * bias
            raise CheckpointError(
                f"{prefix!r} is not a square convolution{' with bias' * bias}: {found}"
            )
        return Kernel(weight, values)

    def _merged(self, key: str) -> Kernel:
        for part in ("weight", "bias"):
            self.untaken.discard(f"{key}.eval_conv.{part}")
        sequence = [self._kernel(f"{key}.conv.{i}") for i in range(3)]
        try:
            return add(
                compose(compose(sequence[0], sequence[1]), sequence[2]), self._kernel(f"{key}.sk")
            )
        except (RuntimeError, ValueError) as error:
            shapes = [tuple(k.weight.shape) for k in sequence]
            raise CheckpointError(
                f"the branches of {key!r} do not fit together: {shapes}"
            ) from error

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


def _unshuffle(inputs: int) -> int:
    u = math.isqrt(inputs // 3)
    if 3 * u * u != inputs:
        raise CheckpointError(
            f"the first convolution has {inputs} inputs; 3*u*u is expected, e.g. 12 or 48 for an "
            "image unshuffled by 2 or 4"
        )
    return u


def _some(keys: list[str], most: int = 4) -> str:
    shown = ", ".join(repr(k) for k in keys[:most])
    return shown if len(keys) <= most else f"{shown} and {len(keys) - most} more"


def check_dense(key: str, t: Tensor) -> None:
    """Raise CheckpointError for a tensor that is not of dense real numbers."""
    kinds = {
        "sparse": t.layout != torch.strided,
        "quantized": t.is_quantized,
        "meta": t.is_meta,
        "complex": t.is_complex(),
    }
    for kind, found in kinds.items():
        if found:
            raise CheckpointError(f"{key!r} is a {kind} tensor; dense real numbers are expected")


def check_finite(state: Mapping[str, Tensor]) -> None:
    bad = [k for k, v in state.items() if not torch.isfinite(v).all()]
    if bad:
        raise CheckpointError(f"holds NaN or infinite weights in {_some(bad)}")
