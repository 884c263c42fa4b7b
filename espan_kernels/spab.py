"""A whole SPAN block as one op: its weights packed, its wrapper, its meaning on packed weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from espan_kernels import _features, _library, _packing, _streamed, reference
from espan_kernels._packing import padded

OP = "espan::spab"


def spab(
    x: Tensor, packed: Tensor, channels: int, convs: int, with_activation: bool = False
) -> tuple[Tensor, Tensor]:
    """Two or three 3x3 convolutions with SiLU between them, gate and residual, in one launch.

    Equivalent to :func:`espan_kernels.reference.spab` on feature maps in NHWC with padded channels.

    Args:
        x: (N, H, W, P) contiguous, P = ``padded(channels)``; what is beyond ``channels`` is zero.
            float16 or bfloat16 on CUDA; also float32 elsewhere.  The CPU computes in float32.
        packed: from :func:`pack_spab`, of the dtype and for the device of ``x``.
        channels: C, up to 64.
        convs: 2 or 3.
        with_activation: also return the block's first activation, which SPAN's concat takes.

    Returns:
        y like ``x``, and the activation like ``x`` or an empty tensor.

    Raises:
        RuntimeError: inputs that do not fit together; a gradient, which there is none of.
    """
    return torch.ops.espan.spab(x, packed, channels, convs, with_activation)


def pack_spab(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    form: str | None = None,
) -> Tensor:
    """Pack two or three (C, C, 3, 3) weights and (C,) biases for :func:`spab`.

    Args:
        weights, biases: in any floating-point dtype.
        dtype: that of the feature maps.
        device: where the block will run.
        form: whose kernels read the result, "cpu" or "cuda"; by default those of ``device``.

    Returns:
        One row of ``dtype`` on ``device``.
    """
    convs, channels = len(weights), weights[0].shape[0]
    _check(channels, convs)
    _packing.check_dtype("pack_spab", dtype)
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        _packing.check_weight("pack_spab", f"weights[{i}]", weight, (channels, channels, 3, 3))
        _packing.check_weight("pack_spab", f"biases[{i}]", bias, (channels,))
    if _packing.choose_form("pack_spab", form, device) == "cpu":
        layers = [(_streamed.winograd(w), b) for w, b in zip(weights, biases, strict=True)]
        return _streamed.join([], layers).view(dtype).to(device)
    # All are stored halved (exact but for subnormals): SiLU and gate are functions of tanh(o/2).
    stacked = torch.stack([w.detach().double().cpu() for w in weights])
    p = padded(channels)
    bias = _packing.pad(torch.stack([b.detach().double().cpu() for b in biases]), convs, p)
    bias = bias[:, _packing.output_order(p)]
    rows = _rows(stacked / 2)
    streamed = [_packing.streamed_conv3x3(w) for w in rows] if p <= _packing.MAX_STREAMED else []
    return _packing.join([_packing.conv3x3(w) for w in rows], [bias / 2], dtype, streamed).to(
        device
    )


def _rows(weights: Tensor) -> Tensor:
    convs, channels = weights.shape[:2]
    p = padded(channels)
    return _packing.pad(weights, convs, p, p)[:, _packing.output_order(p)]


def _pack_numbers(channels: int, convs: int) -> Tensor:
    count = convs * channels * channels * 9
    numbers = torch.arange(1, count + 1).view(convs, channels, channels, 3, 3)
    return torch.cat([_packing.conv3x3(w) for w in _rows(numbers)])


def unpack(packed: Tensor, channels: int, convs: int) -> tuple[Tensor, Tensor]:
    """The weights (convs, C, C, 3, 3) and biases (convs, C) that are in ``packed``."""
    if _form(packed, packed.dtype, channels, convs) == "cpu":
        layers = _streamed.split(packed, _layers(channels, convs))
        stacked = torch.stack([_streamed.from_winograd(rows) for rows, _ in layers])
        return stacked.to(packed.dtype), torch.stack([b for _, b in layers]).to(packed.dtype)
    p = padded(channels)
    flat, bias = _packing.split(packed, *_counts(channels, convs)[:2])
    order = _packing.inverse(_pack_numbers, channels, convs).to(packed.device)
    weights = flat[order].view(convs, channels, channels, 3, 3)
    biases = _packing.natural(bias.view(convs, p).T, p)[:channels].T
    return weights * 2, (biases * 2).to(packed.dtype)


def _layers(channels: int, convs: int) -> list[tuple[int, int]]:
    return [(36 * channels, channels)] * convs


def _form(packed: Tensor, dtype: torch.dtype, channels: int, convs: int) -> str:
    return _packing.form_of(OP, packed, dtype, _counts(channels, convs), _layers(channels, convs))


def _counts(channels: int, convs: int) -> tuple[int, int, int]:
    """Weights, biases and streamed weights in a packed tensor."""
    p = padded(channels)
    streamed = _packing.streamed_size(p, p) if p <= _packing.MAX_STREAMED else 0
    return convs * p * p * 9, convs * p, convs * streamed


def _check(channels: int, convs: int) -> None:
    _packing.check_channels(OP, channels)
    if convs not in (2, 3):
        raise RuntimeError(f"{OP}: convs is {convs}; it must be 2 or 3")


def _check_inputs(x: Tensor, packed: Tensor, channels: int, convs: int) -> None:
    _check(channels, convs)
    _features.check(OP, "x", x, padded(channels))
    _features.check_device(OP, "packed", packed, "x", x)
    _form(packed, x.dtype, channels, convs)


def _reference(
    x: Tensor, packed: Tensor, channels: int, convs: int, with_activation: bool
) -> tuple[Tensor, Tensor]:
    _check_inputs(x, packed, channels, convs)
    weights, biases = unpack(packed, channels, convs)
    y, activation = reference.spab(
        _features.to_nchw(x, channels), weights.unbind(), biases.unbind()
    )
    kept = _features.from_nchw(activation) if with_activation else x.new_empty(0)
    return _features.from_nchw(y), kept


@torch.library.register_fake(OP)
def _(
    x: Tensor, packed: Tensor, channels: int, convs: int, with_activation: bool
) -> tuple[Tensor, Tensor]:
    _check_inputs(x, packed, channels, convs)
    return torch.empty_like(x), torch.empty_like(x) if with_activation else x.new_empty(0)


_library.implement("spab", _reference)
_library.refuse_gradients("spab")
