"""The last layer of SPANV2 as one op: function, weight packing, reference on packed weights."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from espan_kernels import _checks, _library, reference
from espan_kernels.packing import cuda_fragments
from espan_kernels.packing.feature_maps import padded, to_nchw
from espan_kernels.tail import (
    check_image,
    check_scale,
    empty_image,
    finished,
    natural_up_bias,
    up_columns,
    up_rows,
)

OP = "espan::upsample"


def upsample(
    near: Tensor,
    last: Tensor,
    packed: Tensor,
    channels: int,
    scale: int,
    dtype: torch.dtype,
    flag: Tensor | None = None,
) -> Tensor:
    """Run a 3x3 convolution of two feature maps to 3 s^2 channels and the pixel shuffle.

    Equivalent to :func:`espan_kernels.reference.upsample`, in one launch.

    Args:
        near: feature maps (N, H, W, 3 s^2 rounded up to a multiple of 16), contiguous.
        last: the output of the last block, feature maps (N, H, W, P), contiguous.
        packed: the result of :func:`pack_upsample`, with the dtype and device of the feature maps.
        channels: the number of channels C of ``last``, up to 64.
        scale, dtype, flag: as for :func:`espan_kernels.tail`.

    Returns:
        The image batch, as from :func:`espan_kernels.tail`.

    Raises:
        RuntimeError: if the inputs do not match, or one of them requires a gradient.
    """
    return torch.ops.espan.upsample(near, last, packed, channels, scale, dtype, flag)


def pack_upsample(
    near_weight: Tensor,
    last_weight: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Pack the weights of :func:`espan_kernels.reference.upsample` for :func:`upsample`.

    ``dtype``, ``device`` and the result are as for :func:`espan_kernels.pack_spab`.
    """
    outputs, channels = bias.shape[0], last_weight.shape[1]
    scale = round((outputs / 3) ** 0.5)
    _check(channels, scale)
    _checks.check_dtype("pack_upsample", dtype)
    of_near, of_last = _shapes(channels, scale)
    _checks.check_weight("pack_upsample", "near_weight", near_weight, of_near)
    _checks.check_weight("pack_upsample", "last_weight", last_weight, of_last)
    _checks.check_weight("pack_upsample", "bias", bias, (3 * scale * scale,))
    rows = _rows(near_weight.detach().double().cpu(), last_weight.detach().double().cpu())
    bias = up_rows(bias.detach().double().cpu(), scale)
    streamed = []
    if _is_streamed(scale):
        streamed = [cuda_fragments.streamed_conv3x3(rows, apart=_taps_apart(rows.shape[1]))]
    return cuda_fragments.join([cuda_fragments.conv3x3(rows)], [bias], dtype, streamed).to(device)


def _rows(near: Tensor, last: Tensor) -> Tensor:
    """The weights of both maps in the order of the output tiles, their inputs padded and joined."""
    scale = round((near.shape[0] / 3) ** 0.5)
    both = [
        cuda_fragments.pad(w.transpose(0, 1), padded(w.shape[1])).transpose(0, 1)
        for w in (near, last)
    ]
    weight = torch.cat(both, dim=1)
    return up_rows(weight.flatten(1), scale).view(-1, *weight.shape[1:])


def _pack_numbers(channels: int, scale: int) -> Tensor:
    of_near, of_last = (torch.Size(shape) for shape in _shapes(channels, scale))
    near, last = of_near.numel(), of_last.numel()
    numbers = torch.arange(1, near + last + 1, device="cpu")
    return cuda_fragments.conv3x3(_rows(numbers[:near].view(of_near), numbers[near:].view(of_last)))


def _shapes(channels: int, scale: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    outputs = 3 * scale * scale
    return (outputs, outputs, 3, 3), (outputs, channels, 3, 3)


def _is_streamed(scale: int) -> bool:
    """Whether csrc/cuda/upsample_hopper.cuh has kernels for this scale."""
    return scale > 2


def _taps_apart(inputs: int) -> bool:
    """Whether the taps of the streamed convolution are apart, to save shared memory."""
    return inputs > 96


def sizes(channels: int, scale: int) -> cuda_fragments.Sizes:
    """The sizes of the parts of a packed tensor."""
    inputs, up = padded(3 * scale * scale) + padded(channels), up_columns(scale)
    streamed = cuda_fragments.streamed_size(inputs, up, apart=_taps_apart(inputs))
    return cuda_fragments.Sizes(9 * inputs * up, up, streamed if _is_streamed(scale) else 0)


def unpack(packed: Tensor, channels: int, scale: int) -> tuple[Tensor, Tensor, Tensor]:
    """near_weight, last_weight and bias in ``packed``."""
    flat, bias = sizes(channels, scale).split(packed)
    order = cuda_fragments.inverse(_pack_numbers, channels, scale).to(packed.device)
    of_near, of_last = _shapes(channels, scale)
    near, last = flat[order].split([torch.Size(of_near).numel(), torch.Size(of_last).numel()])
    return near.view(of_near), last.view(of_last), natural_up_bias(bias, scale, packed.dtype)


def _check(channels: int, scale: int) -> None:
    _checks.check_channels(OP, channels)
    check_scale(OP, scale)


class UpsampleInputs(NamedTuple):
    """The arguments of :func:`upsample`, in order."""

    near: Tensor
    last: Tensor
    packed: Tensor
    channels: int
    scale: int
    dtype: torch.dtype
    flag: Tensor | None

    def check(self) -> None:
        """Check the arguments."""
        near, last = self.near, self.last
        _check(self.channels, self.scale)
        _checks.check_features(OP, "last", last, padded(self.channels))
        _checks.check_device(OP, "near", near, "last", last)
        _checks.check_features(OP, "near", near, padded(3 * self.scale * self.scale))
        if near.dtype != last.dtype or near.shape[:3] != last.shape[:3]:
            raise RuntimeError(
                f"{OP}: near has shape {list(near.shape)} and dtype {near.dtype}; it must have the "
                f"size and dtype of last, {list(last.shape)} and {last.dtype}"
            )
        _checks.check_device(OP, "packed", self.packed, "last", last)
        size = sizes(self.channels, self.scale).total(last.dtype)
        _checks.check_packed(OP, self.packed, last.dtype, size)
        check_image(OP, self.dtype, self.flag, last)


def upsample_by_reference(*inputs: Any) -> Tensor:
    """:func:`upsample` in plain PyTorch."""
    t = UpsampleInputs(*inputs)
    t.check()
    near, last = to_nchw(t.near, 3 * t.scale * t.scale), to_nchw(t.last, t.channels)
    weights = unpack(t.packed, t.channels, t.scale)
    return finished(reference.upsample(near, last, *weights, t.scale), t.dtype, t.flag)


@torch.library.register_fake(OP)
def _(*inputs: Any) -> Tensor:
    t = UpsampleInputs(*inputs)
    t.check()
    return empty_image(t.last, t.scale, t.dtype)


_library.implement("upsample", upsample_by_reference)
_library.refuse_gradients("upsample")
