"""A whole SPAN block as one op: function, weight packing, reference on packed weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from espan_kernels import _checks, _library, reference
from espan_kernels.packing import cuda_fragments
from espan_kernels.packing.feature_maps import from_nchw, padded, to_nchw

OP = "espan::spab"


# The gates that the kernels have with each activation.
GATES = {"silu": ("sigmoid", "none"), "relu": ("linear", "tanh", "act"), "mish": ("sigmoid",)}
LEARNED = ("linear", "tanh")  # they have a 1x1 convolution


def spab(
    x: Tensor,
    packed: Tensor,
    channels: int,
    convs: int,
    with_activation: bool = False,
    activation: str = "silu",
    gate: str = "sigmoid",
) -> tuple[Tensor, Tensor]:
    """Run a block in one launch: 3x3 convolutions with activations between them, gate, residual.

    Equivalent to :func:`espan_kernels.reference.spab` on feature maps in NHWC with padded channels.

    Args:
        x: feature maps (N, H, W, P), contiguous, where P is C rounded up to a multiple of 16;
            channels beyond C must be zero.  float16 or bfloat16 on CUDA; elsewhere, where the
            reference runs, also float32.
        packed: the result of :func:`pack_spab`, with the dtype and device of ``x``.
        channels: the number of channels C, up to 64.
        convs: the number of convolutions, 2 or 3.
        with_activation: whether to return the block's first activation, an input of SPAN's concat.
        activation: silu, with the gate sigmoid or none; relu, with linear, tanh or act; or mish,
            with sigmoid.
        gate: the kind of gate; :func:`espan_kernels.reference.spab` defines them.

    Returns:
        The output of the block, a tensor like ``x``; and the activation, a tensor like ``x``, or an
        empty tensor.

    Raises:
        RuntimeError: if the inputs do not match, or one of them requires a gradient.
    """
    return torch.ops.espan.spab(x, packed, channels, convs, with_activation, activation, gate)


def pack_spab(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    activation: str = "silu",
    gate: str = "sigmoid",
    gate_conv: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Pack two or three (C, C, 3, 3) weights and (C,) biases for :func:`spab`.

    Args:
        weights, biases: tensors of any floating-point dtype.
        dtype: the dtype of the feature maps: float16, bfloat16 or float32.
        device: the device of the feature maps.
        activation, gate: as for :func:`spab`.
        gate_conv: the weight (C, C, 1, 1) and bias (C,) of the gates linear and tanh.

    Returns:
        A 1-D tensor of ``dtype`` on ``device``, in the layout of
        :mod:`~espan_kernels.packing.cuda_fragments`.

    Raises:
        RuntimeError: if a shape or ``dtype`` is unsupported.
    """
    convs, channels = len(weights), weights[0].shape[0]
    _check(channels, convs, activation, gate)
    _checks.check_dtype("pack_spab", dtype)
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        _checks.check_weight("pack_spab", f"weights[{i}]", weight, (channels, channels, 3, 3))
        _checks.check_weight("pack_spab", f"biases[{i}]", bias, (channels,))
    if (gate_conv is not None) != (gate in LEARNED):
        found = "given" if gate_conv else "missing"
        raise RuntimeError(
            f"pack_spab: gate_conv is {found}, and gate is {gate}; linear and tanh have one"
        )
    scales = _scales(convs, activation, gate)
    order = cuda_fragments.output_order(padded(channels))
    p = padded(channels)
    scaled = cuda_fragments.pad(_stacked(weights) * scales.view(-1, 1, 1, 1, 1), convs, p, p)
    rows = scaled[:, order]
    bias = cuda_fragments.pad(_stacked(biases) * scales.view(-1, 1), convs, p)[:, order]
    fragments = [cuda_fragments.conv3x3(w) for w in rows]
    packed_biases = [bias]
    if p == 64:
        streamed = [cuda_fragments.wide_conv3x3(w) for w in scaled]
    else:
        apart = cuda_fragments.taps_apart(p)
        streamed = [cuda_fragments.streamed_conv3x3(w, apart=apart) for w in rows]
    if gate_conv is not None:
        weight, bias = gate_conv
        _checks.check_weight("pack_spab", "gate_conv[0]", weight, (channels, channels, 1, 1))
        _checks.check_weight("pack_spab", "gate_conv[1]", bias, (channels,))
        plain = weight.detach().double().cpu()[:, :, 0, 0]
        square = _square(plain)
        fragments.append(cuda_fragments.conv1x1_of_sums(square))
        packed_biases.append(cuda_fragments.pad(bias.detach().double().cpu(), p)[order])
        if p == 64:
            streamed.append(cuda_fragments.wide_conv1x1(cuda_fragments.pad(plain, p, p)))
        else:
            streamed.append(cuda_fragments.streamed_conv1x1(square))
    return cuda_fragments.join(fragments, packed_biases, dtype, streamed).to(device)


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([t.detach().double().cpu() for t in tensors])


def _scales(convs: int, activation: str, gate: str) -> Tensor:
    """The factor of each convolution's packed weights and bias.

    SiLU and the gate sigmoid are functions of tanh(o/2), so the weights before them are halved.
    This is exact except for subnormal values.
    """
    halved = [activation == "silu"] * (convs - 1) + [gate == "sigmoid"]
    return torch.tensor(
        [0.5 if half else 1.0 for half in halved], dtype=torch.float64, device="cpu"
    )


def _rows(weights: Tensor) -> Tensor:
    convs, channels = weights.shape[:2]
    p = padded(channels)
    return cuda_fragments.pad(weights, convs, p, p)[:, cuda_fragments.output_order(p)]


def _square(weight: Tensor) -> Tensor:
    """The (C, C) weight of the gate with its rows and columns in the order of the tiles."""
    p = padded(len(weight))
    order = cuda_fragments.output_order(p)
    return cuda_fragments.pad(weight, p, p)[order][:, order]


def _pack_numbers(channels: int, convs: int, learned: bool) -> Tensor:
    count, one = convs * channels * channels * 9, channels * channels
    numbers = torch.arange(1, count + one + 1, device="cpu")
    parts = [
        cuda_fragments.conv3x3(w)
        for w in _rows(numbers[:count].view(convs, channels, channels, 3, 3))
    ]
    if learned:
        parts.append(cuda_fragments.conv1x1_of_sums(_square(numbers[count:].view(channels, -1))))
    return torch.cat(parts)


def unpack(
    packed: Tensor, channels: int, convs: int, activation: str = "silu", gate: str = "sigmoid"
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """The weights (convs, C, C, 3, 3), biases (convs, C) and ``gate_conv`` in ``packed``."""
    p, learned = padded(channels), gate in LEARNED
    flat, bias = sizes(channels, convs, gate).split(packed)
    order = cuda_fragments.inverse(_pack_numbers, channels, convs, learned).to(packed.device)
    found = flat[order]
    count = convs * channels * channels * 9
    scales = _scales(convs, activation, gate).to(packed.device, torch.float32)
    weights = found[:count].view(convs, channels, channels, 3, 3)
    weights = weights / scales.to(packed.dtype).view(-1, 1, 1, 1, 1)
    biases = cuda_fragments.natural(bias.view(-1, p).T, p)[:channels].T
    conv_biases = (biases[:convs] / scales.view(-1, 1)).to(packed.dtype)
    if not learned:
        return weights, conv_biases, None
    square = found[count:].view(channels, channels, 1, 1)
    return weights, conv_biases, (square, biases[convs].to(packed.dtype))


def sizes(channels: int, convs: int, gate: str = "sigmoid") -> cuda_fragments.Sizes:
    """The sizes of the parts of a packed tensor.

    Those of the gate's convolution follow those of the 3x3 convolutions in each part.
    """
    p, learned = padded(channels), gate in LEARNED
    streamed = convs * cuda_fragments.streamed_size(p, p, apart=cuda_fragments.taps_apart(p))
    return cuda_fragments.Sizes(
        convs * p * p * 9 + learned * p * p,
        (convs + learned) * p,
        streamed + learned * p * p,
    )


def _check(channels: int, convs: int, activation: str, gate: str) -> None:
    _checks.check_channels(OP, channels)
    if convs not in (2, 3):
        raise RuntimeError(f"{OP}: convs is {convs}; it must be 2 or 3")
    if gate not in GATES.get(activation, ()):
        raise RuntimeError(
            f"{OP}: activation is {activation} and gate is {gate}; they must be silu with sigmoid "
            "or none, relu with linear, tanh or act, or mish with sigmoid"
        )


def check_inputs(
    x: Tensor,
    packed: Tensor,
    channels: int,
    convs: int,
    activation: str = "silu",
    gate: str = "sigmoid",
) -> None:
    """Check the arguments of :func:`spab`."""
    _check(channels, convs, activation, gate)
    _checks.check_features(OP, "x", x, padded(channels))
    _checks.check_device(OP, "packed", packed, "x", x)
    _checks.check_packed(OP, packed, x.dtype, sizes(channels, convs, gate).total(x.dtype))


def spab_by_reference(
    x: Tensor,
    packed: Tensor,
    channels: int,
    convs: int,
    with_activation: bool,
    activation: str = "silu",
    gate: str = "sigmoid",
) -> tuple[Tensor, Tensor]:
    """:func:`spab` in plain PyTorch."""
    check_inputs(x, packed, channels, convs, activation, gate)
    weights, biases, gate_conv = unpack(packed, channels, convs, activation, gate)
    y, first = reference.spab(
        to_nchw(x, channels), weights.unbind(), biases.unbind(), activation, gate, gate_conv
    )
    return from_nchw(y), from_nchw(first) if with_activation else x.new_empty(0)


@torch.library.register_fake(OP)
def _(
    x: Tensor,
    packed: Tensor,
    channels: int,
    convs: int,
    with_activation: bool,
    activation: str,
    gate: str,
) -> tuple[Tensor, Tensor]:
    check_inputs(x, packed, channels, convs, activation, gate)
    return torch.empty_like(x), torch.empty_like(x) if with_activation else x.new_empty(0)


_library.implement("spab", spab_by_reference)
_library.refuse_gradients("spab")
