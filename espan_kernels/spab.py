"""A whole SPAN block as one op: function, weight packing, reference on packed weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from espan_kernels import _checks, _library, reference
from espan_kernels.packing import cuda_fragments
from espan_kernels.packing.feature_maps import from_nchw, padded, to_nchw

OP = "espan::spab"


def spab(
    x: Tensor, packed: Tensor, channels: int, convs: int, with_activation: bool = False
) -> tuple[Tensor, Tensor]:
    """Run a SPAN block in one launch: 3x3 convolutions with SiLU between them, gate, residual.

    Equivalent to :func:`espan_kernels.reference.spab` on feature maps in NHWC with padded channels.

    Args:
        x: feature maps (N, H, W, P), contiguous, where P is C rounded up to a multiple of 16;
            channels beyond C must be zero.  float16 or bfloat16 on CUDA; elsewhere, where the
            reference runs, also float32.
        packed: the result of :func:`pack_spab`, with the dtype and device of ``x``.
        channels: the number of channels C, up to 64.
        convs: the number of convolutions, 2 or 3.
        with_activation: whether to return the block's first activation, an input of SPAN's concat.

    Returns:
        The output of the block, a tensor like ``x``; and the activation, a tensor like ``x``, or an
        empty tensor.

    Raises:
        RuntimeError: if the inputs do not match, or one of them requires a gradient.
    """
    return torch.ops.espan.spab(x, packed, channels, convs, with_activation)


def pack_spab(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Pack two or three (C, C, 3, 3) weights and (C,) biases for :func:`spab`.

    Args:
        weights, biases: tensors of any floating-point dtype.
        dtype: the dtype of the feature maps: float16, bfloat16 or float32.
        device: the device of the feature maps.

    Returns:
        A 1-D tensor of ``dtype`` on ``device``, in the layout of
        :mod:`~espan_kernels.packing.cuda_fragments`.

    Raises:
        RuntimeError: if a shape or ``dtype`` is unsupported.
    """
    convs, channels = len(weights), weights[0].shape[0]
    _check(channels, convs)
    _checks.check_dtype("pack_spab", dtype)
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        _checks.check_weight("pack_spab", f"weights[{i}]", weight, (channels, channels, 3, 3))
        _checks.check_weight("pack_spab", f"biases[{i}]", bias, (channels,))
    # Weights and biases are halved, because SiLU and the gate are functions of tanh(o/2).  This is
    # exact except for subnormal values.
    stacked = torch.stack([w.detach().double().cpu() for w in weights])
    p = padded(channels)
    bias = cuda_fragments.pad(torch.stack([b.detach().double().cpu() for b in biases]), convs, p)
    bias = bias[:, cuda_fragments.output_order(p)]
    rows = _rows(stacked / 2)
    fragments = [cuda_fragments.conv3x3(w) for w in rows]
    streamed = []
    if cuda_fragments.is_streamed(p):
        apart = cuda_fragments.taps_apart(p)
        streamed = [cuda_fragments.streamed_conv3x3(w, apart=apart) for w in rows]
    return cuda_fragments.join(fragments, [bias / 2], dtype, streamed).to(device)


def _rows(weights: Tensor) -> Tensor:
    convs, channels = weights.shape[:2]
    p = padded(channels)
    return cuda_fragments.pad(weights, convs, p, p)[:, cuda_fragments.output_order(p)]


def _pack_numbers(channels: int, convs: int) -> Tensor:
    count = convs * channels * channels * 9
    numbers = torch.arange(1, count + 1).view(convs, channels, channels, 3, 3)
    return torch.cat([cuda_fragments.conv3x3(w) for w in _rows(numbers)])


def unpack(packed: Tensor, channels: int, convs: int) -> tuple[Tensor, Tensor]:
    """The weights (convs, C, C, 3, 3) and biases (convs, C) in ``packed``."""
    p = padded(channels)
    flat, bias = sizes(channels, convs).split(packed)
    order = cuda_fragments.inverse(_pack_numbers, channels, convs).to(packed.device)
    weights = flat[order].view(convs, channels, channels, 3, 3)
    biases = cuda_fragments.natural(bias.view(convs, p).T, p)[:channels].T
    return weights * 2, (biases * 2).to(packed.dtype)


def sizes(channels: int, convs: int) -> cuda_fragments.Sizes:
    """The sizes of the parts of a packed tensor."""
    p = padded(channels)
    streamed = cuda_fragments.streamed_size(p, p, apart=cuda_fragments.taps_apart(p))
    return cuda_fragments.Sizes(
        convs * p * p * 9, convs * p, convs * streamed if cuda_fragments.is_streamed(p) else 0
    )


def _check(channels: int, convs: int) -> None:
    _checks.check_channels(OP, channels)
    if convs not in (2, 3):
        raise RuntimeError(f"{OP}: convs is {convs}; it must be 2 or 3")


def check_inputs(x: Tensor, packed: Tensor, channels: int, convs: int) -> None:
    """Check the arguments of :func:`spab`."""
    _check(channels, convs)
    _checks.check_features(OP, "x", x, padded(channels))
    _checks.check_device(OP, "packed", packed, "x", x)
    _checks.check_packed(OP, packed, x.dtype, sizes(channels, convs).total(x.dtype))


def spab_by_reference(
    x: Tensor, packed: Tensor, channels: int, convs: int, with_activation: bool
) -> tuple[Tensor, Tensor]:
    """:func:`spab` in plain PyTorch."""
    check_inputs(x, packed, channels, convs)
    weights, biases = unpack(packed, channels, convs)
    y, activation = reference.spab(to_nchw(x, channels), weights.unbind(), biases.unbind())
    return from_nchw(y), from_nchw(activation) if with_activation else x.new_empty(0)


@torch.library.register_fake(OP)
def _(
    x: Tensor, packed: Tensor, channels: int, convs: int, with_activation: bool
) -> tuple[Tensor, Tensor]:
    check_inputs(x, packed, channels, convs)
    return torch.empty_like(x), torch.empty_like(x) if with_activation else x.new_empty(0)


_library.implement("spab", spab_by_reference)
_library.refuse_gradients("spab")
