"""The last layers as one op: function, weight packing, reference on packed weights."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from espan_kernels import _checks, _library, reference
from espan_kernels.packing import cuda_fragments
from espan_kernels.packing.feature_maps import padded, to_nchw

OP = "espan::tail"


def tail(
    head: Tensor,
    first: Tensor,
    last: Tensor,
    activation: Tensor | None,
    packed: Tensor,
    channels: int,
    scale: int,
    dtype: torch.dtype,
    flag: Tensor | None = None,
    last_kernel: int = 3,
) -> Tensor:
    """Run the last layers in one launch: folded concat, 3x3 to 3 s^2 channels, pixel shuffle.

    Equivalent to :func:`espan_kernels.reference.tail` with ``sides = [head, first(, activation)]``.

    Args:
        head: the output of :func:`espan_kernels.head`, feature maps (N, H, W, P), contiguous.
        first: the output of the first block, like ``head``.
        last: the output of the last block, like ``head``.
        activation: the first activation of the last block (SPAN), like ``head``; or None.
        packed: the result of :func:`pack_tail`, with the dtype and device of the feature maps.
        channels: the number of channels C, up to 64.
        scale: the upscaling factor s, 1 to 4.
        dtype: the dtype of the image: uint8 (clamped to 0-1, times 255, rounded), or float16,
            bfloat16 or float32 (not clamped).
        flag: int32, one element; set to 1 if any value before clamping is outside [-1, 2] or not
            finite, and otherwise left unchanged.  No photograph causes such values.
        last_kernel: the size of the kernel for ``last``, 3 or 1.

    Returns:
        The image batch (N, 3, s H, s W).  uint8 images have NHWC strides, so that
        ``permute(0, 2, 3, 1)`` returns a contiguous tensor; the others are contiguous.

    Raises:
        RuntimeError: if the inputs do not match, or one of them requires a gradient.
    """
    return torch.ops.espan.tail(
        head, first, last, activation, packed, channels, scale, dtype, flag, last_kernel
    )


def pack_tail(
    last_weight: Tensor,
    side_weight: Tensor,
    bias: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Pack the weights of :func:`espan_kernels.reference.tail` for :func:`tail`.

    ``dtype``, ``device`` and the result are as for :func:`espan_kernels.pack_spab`.
    """
    channels, sides = bias.shape[0], side_weight.shape[1] // bias.shape[0]
    scale = round((up_bias.shape[0] / 3) ** 0.5)
    last_kernel = last_weight.shape[-1]
    _check(channels, scale, sides, last_kernel)
    _checks.check_dtype("pack_tail", dtype)
    shapes = {
        "last_weight": (last_weight, (channels, channels, last_kernel, last_kernel)),
        "side_weight": (side_weight, (channels, sides * channels, 1, 1)),
        "up_weight": (up_weight, (3 * scale * scale, channels, 3, 3)),
        "up_bias": (up_bias, (3 * scale * scale,)),
    }
    for name, (weight, shape) in shapes.items():
        _checks.check_weight("pack_tail", name, weight, shape)
    wide = [t.detach().double().cpu() for t in (last_weight, side_weight, up_weight)]
    p = padded(channels)
    biases = [
        cuda_fragments.pad(bias.detach().double().cpu(), p)[cuda_fragments.output_order(p)],
        up_rows(up_bias.detach().double().cpu(), scale),
    ]
    streamed = _pack_streamed(*wide) if _is_streamed(p, last_kernel) else []
    return cuda_fragments.join(_pack(*wide), biases, dtype, streamed).to(device)


def up_rows(rows: Tensor, scale: int) -> Tensor:
    """Reorder the rows (rgb, dy, dx) of the upsampling convolution to the order of output tiles.

    Lane q of a quad holds the 3 r values of r adjacent pixels of the result.  For s > 2, r = s: the
    lane stores one row of the s x s pixels.  Otherwise r = 1: it stores pixel q of the s x s.
    """
    run = scale if scale > 2 else 1
    tiles = 6 if scale > 2 else 2
    lanes = rows.view(3, scale * scale // run, run, -1).permute(1, 2, 0, 3)  # q, pixel, rgb
    lanes = cuda_fragments.pad(lanes.reshape(scale * scale // run, 3 * run, -1), 4, 2 * tiles)
    # tile j, column (q, e) is value 2 j + e of lane q
    order = lanes.view(4, tiles, 2, -1).transpose(0, 1)
    return order.reshape(8 * tiles, *rows.shape[1:])


def _rows(last: Tensor, side: Tensor, up: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """The weights with padded channels, and their rows in the order of the output tiles."""
    channels = last.shape[0]
    p = padded(channels)
    order = cuda_fragments.output_order(p)
    sides = [cuda_fragments.pad(s.flatten(1), p, p)[order] for s in side.split(channels, 1)]
    scale = round((up.shape[0] / 3) ** 0.5)
    rows = up_rows(up.flatten(1), scale).view(-1, channels, 9)
    rows = cuda_fragments.pad(rows.transpose(0, 1), p).transpose(0, 1).reshape(-1, p, 3, 3)
    return cuda_fragments.pad(last, p, p)[order], sides, rows


def _pack(*weights: Tensor) -> list[Tensor]:
    last, sides, up = _rows(*weights)
    conv3x3, conv1x1 = cuda_fragments.conv3x3, cuda_fragments.conv1x1
    of_last = conv3x3(last) if last.shape[-1] == 3 else conv1x1(last.flatten(1))
    return [of_last, *(conv1x1(s) for s in sides), conv3x3(up)]


def _pack_streamed(*weights: Tensor) -> list[Tensor]:
    last, sides, up = _rows(*weights)
    conv3x3, conv1x1 = cuda_fragments.streamed_conv3x3, cuda_fragments.streamed_conv1x1
    p = last.shape[0]
    if last.shape[-1] == 3:
        of_last = conv3x3(last, apart=cuda_fragments.taps_apart(p))
    else:
        of_last = conv1x1(last.flatten(1))
    return [of_last, *(conv1x1(s) for s in sides), conv3x3(up, apart=_up_taps_apart(p))]


def _is_streamed(p: int, last_kernel: int) -> bool:
    """Whether csrc/cuda/tail_hopper.cuh has kernels: a 3x3 of 64 channels would not fit."""
    return p <= 48 or last_kernel == 1


def _up_taps_apart(p: int) -> bool:
    """Whether the taps of the upsampling convolution are apart, to save shared memory."""
    return p > 48


def _shapes(channels: int, scale: int, sides: int, last_kernel: int) -> list[tuple[int, ...]]:
    return [
        (channels, channels, last_kernel, last_kernel),
        (channels, sides * channels, 1, 1),
        (3 * scale * scale, channels, 3, 3),
    ]


def _pack_numbers(channels: int, scale: int, sides: int, last_kernel: int) -> Tensor:
    shapes = _shapes(channels, scale, sides, last_kernel)
    counts = [torch.Size(shape).numel() for shape in shapes]
    numbers = torch.arange(1, sum(counts) + 1, device="cpu").split(counts)
    views = (n.view(shape) for n, shape in zip(numbers, shapes, strict=True))
    return torch.cat(_pack(*views))


def _bias_numbers(scale: int) -> Tensor:
    return up_rows(torch.arange(1, 3 * scale * scale + 1, device="cpu"), scale)


def up_columns(scale: int) -> int:
    """The outputs of the upsampling convolution, 3 s^2, with padding."""
    return 48 if scale > 2 else 16


def sizes(channels: int, scale: int, sides: int, last_kernel: int = 3) -> cuda_fragments.Sizes:
    """The sizes of the parts of a packed tensor."""
    p, up, taps = padded(channels), up_columns(scale), last_kernel * last_kernel
    size = cuda_fragments.streamed_size
    streamed = size(p, up, apart=_up_taps_apart(p)) + sides * p * p
    streamed += size(p, p, apart=cuda_fragments.taps_apart(p)) if last_kernel == 3 else p * p
    streamed = streamed if _is_streamed(p, last_kernel) else 0
    return cuda_fragments.Sizes(p * ((taps + sides) * p + 9 * up), p + up, streamed)


def unpack(
    packed: Tensor, channels: int, scale: int, sides: int, last_kernel: int = 3
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """last_weight, side_weight, bias, up_weight and up_bias in ``packed``."""
    p = padded(channels)
    flat, biases = sizes(channels, scale, sides, last_kernel).split(packed)
    order = cuda_fragments.inverse(_pack_numbers, channels, scale, sides, last_kernel)
    shapes = _shapes(channels, scale, sides, last_kernel)
    parts = flat[order.to(packed.device)].split([torch.Size(shape).numel() for shape in shapes])
    last, side, up = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
    bias = cuda_fragments.natural(biases[:p], p)[:channels]
    return last, side, bias.to(packed.dtype), up, natural_up_bias(biases[p:], scale, packed.dtype)


def natural_up_bias(rows: Tensor, scale: int, dtype: torch.dtype) -> Tensor:
    """The bias (3 s^2,) of the upsampling convolution from its packed form."""
    return rows[cuda_fragments.inverse(_bias_numbers, scale).to(rows.device)].to(dtype)


def check_scale(op: str, scale: int) -> None:
    """Check the upscaling factor."""
    if not 1 <= scale <= 4:
        raise RuntimeError(f"{op}: scale is {scale}; it must be 1 to 4")


def _check(channels: int, scale: int, sides: int, last_kernel: int) -> None:
    _checks.check_channels(OP, channels)
    check_scale(OP, scale)
    if sides not in (2, 3):
        raise RuntimeError(f"{OP}: the concat has {sides} sides; it must have 2 or 3")
    if last_kernel not in (1, 3):
        raise RuntimeError(f"{OP}: last_kernel is {last_kernel}; it must be 3 or 1")


def check_image(op: str, dtype: torch.dtype, flag: Tensor | None, last: Tensor) -> None:
    """Check the dtype of the image and the flag."""
    if dtype not in _checks.IMAGE_DTYPES:
        raise RuntimeError(f"{op}: dtype is {dtype}; it must be uint8, float16, bfloat16, float32")
    if flag is not None:
        _checks.check_device(op, "flag", flag, "last", last)
        if flag.dtype != torch.int32 or flag.numel() != 1:
            raise RuntimeError(f"{op}: flag must be one int32 element")


def empty_image(last: Tensor, scale: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised image batch."""
    n, height, width, _ = last.shape
    height, width = scale * height, scale * width
    if dtype == torch.uint8:
        return last.new_empty(n, height, width, 3, dtype=dtype).permute(0, 3, 1, 2)
    return last.new_empty(n, 3, height, width, dtype=dtype)


def finished(image: Tensor, dtype: torch.dtype, flag: Tensor | None) -> Tensor:
    """``image`` in ``dtype``, uint8 after clamping; sets the flag."""
    if flag is not None:
        flag.bitwise_or_(~((image >= -1) & (image <= 2)).all())
    if dtype != torch.uint8:
        return image.to(dtype).contiguous()
    levels = (image.float().nan_to_num(0).clamp(0, 1) * 255).round()
    return levels.to(torch.uint8).contiguous(memory_format=torch.channels_last)


class TailInputs(NamedTuple):
    """The arguments of :func:`tail`, in order."""

    head: Tensor
    first: Tensor
    last: Tensor
    activation: Tensor | None
    packed: Tensor
    channels: int
    scale: int
    dtype: torch.dtype
    flag: Tensor | None
    last_kernel: int = 3

    @property
    def sides(self) -> dict[str, Tensor]:
        """The inputs of the concat other than the output of the last block, by name."""
        sides = {"head": self.head, "first": self.first}
        return sides if self.activation is None else sides | {"activation": self.activation}

    def check(self) -> None:
        """Check the arguments."""
        last, count = self.last, len(self.sides)
        _check(self.channels, self.scale, count, self.last_kernel)
        _checks.check_features(OP, "last", last, padded(self.channels))
        for name, t in self.sides.items():
            _checks.check_features_like(OP, name, t, "last", last)
        _checks.check_device(OP, "packed", self.packed, "last", last)
        size = sizes(self.channels, self.scale, count, self.last_kernel).total(last.dtype)
        _checks.check_packed(OP, self.packed, last.dtype, size)
        check_image(OP, self.dtype, self.flag, last)

    def empty_image(self) -> Tensor:
        """An uninitialised tensor for the result."""
        return empty_image(self.last, self.scale, self.dtype)


def tail_by_reference(*inputs: Any) -> Tensor:
    """:func:`tail` in plain PyTorch."""
    t = TailInputs(*inputs)
    t.check()
    sides = [to_nchw(side, t.channels) for side in t.sides.values()]
    weights = unpack(t.packed, t.channels, t.scale, len(sides), t.last_kernel)
    image = reference.tail(to_nchw(t.last, t.channels), sides, *weights, t.scale)
    return finished(image, t.dtype, t.flag)


@torch.library.register_fake(OP)
def _(*inputs: Any) -> Tensor:
    t = TailInputs(*inputs)
    t.check()
    return t.empty_image()


_library.implement("tail", tail_by_reference)
_library.refuse_gradients("tail")
