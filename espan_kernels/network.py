"""The whole network on the CPU as one op: function, weight packing, fake kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from espan_kernels import _library
from espan_kernels.packing import cpu_amx_tiles, cpu_winograd

Kernel = tuple[Tensor, Tensor]


def network(
    image: Tensor,
    packed: Tensor,
    *,
    channels: int,
    head_kernel: int,
    convs: Sequence[int],
    concat_activation: bool,
    scale: int,
) -> tuple[Tensor, Tensor]:
    """Upscale a batch of images with a network of the SPAN family, on the CPU.

    Equal to :func:`espan_kernels.reference.network` with the same weights, up to rounding.  The
    image streams through all layers in strips, so the memory beyond input and output is bounded for
    images of any size.  The result is bitwise the same for any number of threads.

    Args:
        image: (N, 3, H, W) on the CPU with any strides, possibly empty; float32 with values in 0-1,
            or uint8, which is divided by 255.
        packed: the result of :func:`pack_network`.
        channels: the number of channels C of the feature maps.
        head_kernel: the kernel size of the first convolution, odd.
        convs: the number of convolutions in each block, 2 or 3.
        concat_activation: whether the concat includes the first activation of the last block, as in
            SPAN.
        scale: the upscaling factor s.

    Returns:
        The upscaled images (N, 3, s*H, s*W): float32, not clamped, contiguous; or, for a uint8
        image, ``round(255 * clamp(y, 0, 1))`` in uint8, channels last.  Also the range of each
        image before clamping, (N, 3) float32: the smallest and the largest value, and 1 if any
        value was infinite or NaN, else 0.

    Raises:
        RuntimeError: if a dtype, device or shape is wrong, the weights do not match the other
            arguments, or there is no compiled library.
    """
    if _library.compiled is None:
        raise RuntimeError(f"espan::network: {_library.why_not_compiled}")
    return torch.ops.espan.network(
        image, packed, channels, head_kernel, list(convs), concat_activation, scale
    )


def pack_network(
    head: Kernel,
    blocks: Sequence[Sequence[Kernel]],
    concat_last: Kernel,
    concat_side: Sequence[Tensor],
    upsample: Kernel,
    *,
    scale: int,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Pack the weights of a network for :func:`network`.

    The layout of the weights selects the arithmetic.  Winograd-transformed weights, in float32, run
    on every CPU path.  The path ``amx`` also has a layout of bf16 tiles for the matrix unit, which
    other paths reject.  It stores each weight as two bf16 halves, which keep 17 bits of each value
    and take three products, or as a single bf16 value.

    Each kernel is a weight (outputs, inputs, k, k) and a bias (outputs,), in float64 or float32.
    The Winograd transform of the weights is computed in float64 and rounded once.

    Args:
        head: the first convolution, (C, 3, k, k).  An img_range is folded into its weight.
        blocks: the 2 or 3 convolutions of each block, (C, C, 3, 3).
        concat_last: the layers from the output of the last block to the 1x1 convolution of the
            concat, merged into one convolution (C, C, 3, 3).
        concat_side: the 1x1 weights (C, C) that the concat applies to the output of the head, the
            output of the first block and, for SPAN, the first activation of the last block.
        upsample: the last convolution, (3*s*s, C, 3, 3), its outputs in the order of
            ``pixel_shuffle``.
        scale: the upscaling factor s.
        mean: RGB in 0-1, subtracted from the image before the head's zero padding.
        dtype: selects the arithmetic.  float32 uses Winograd's algorithm.  bfloat16, on the path
            ``amx`` only, rounds weights and feature maps to 8 bits and sums in float32.  None is
            the fastest that is as accurate as float32 on photographs: bf16 halves on ``amx``,
            float32 elsewhere.

    Returns:
        A 1-D tensor: float32 for Winograd, bfloat16 for tiles.

    Raises:
        ValueError: if the shapes of the weights do not match, or the CPU path does not support
            ``dtype``.
    """
    channels = head[0].shape[0]
    square = (channels, channels, 3, 3)
    _check("head", head, (channels, 3, head[0].shape[-1], head[0].shape[-1]))
    _check("concat_last", concat_last, square)
    _check("upsample", upsample, (3 * scale * scale, channels, 3, 3))
    if not blocks or len(concat_side) not in (2, 3):
        raise ValueError(
            f"pack_network: got {len(blocks)} blocks and {len(concat_side)} weights for the "
            "concat; there must be at least one block, and 2 or 3 weights"
        )
    amx = _library.compiled is not None and _library.compiled.cpu_path() == "amx"
    if dtype not in (None, torch.float32) and not (amx and dtype == torch.bfloat16):
        raise ValueError(
            f"pack_network: dtype is {dtype}; it must be float32 or, on the CPU path amx, bfloat16"
        )
    tiles = amx and dtype != torch.float32
    layers: list[tuple[Tensor, Tensor | None]] = []
    form = cpu_amx_tiles if tiles else cpu_winograd
    # With tiles, the sums of concat_last start from those of the side: the bias is added there.
    bias = concat_last[1]

    def side(i: int, bias: Tensor | None = None) -> None:
        if concat_side[i].shape != square[:2]:
            raise ValueError(
                f"pack_network: concat_side[{i}] has shape {list(concat_side[i].shape)}; "
                f"it must be {list(square[:2])}"
            )
        layers.append((form.pointwise(concat_side[i]), bias))

    layers.append((form.head(head[0]), head[1]))
    side(0, bias if tiles else None)
    for i, block in enumerate(blocks):
        for j, kernel in enumerate(block):
            _check(f"blocks[{i}][{j}]", kernel, square)
            layers.append((form.conv(kernel[0]), kernel[1]))
        if i == 0:
            side(1)
    if len(concat_side) == 3:
        side(2)
    layers.append((form.conv(concat_last[0]), None if tiles else bias))
    order = cpu_winograd.upsample_order(scale)
    layers.append((form.conv(upsample[0][order]), upsample[1][order]))
    if tiles:
        return cpu_amx_tiles.join(mean, layers, halves=dtype is None)
    return cpu_winograd.join(mean, layers)


def _check(name: str, kernel: Kernel, shape: tuple[int, ...]) -> None:
    if kernel[0].shape != shape or kernel[1].shape != shape[:1] or shape[-1] % 2 == 0:
        raise ValueError(
            f"pack_network: {name} has shapes {list(kernel[0].shape)} and {list(kernel[1].shape)}; "
            f"they must be {list(shape)} and {list(shape[:1])}, with an odd kernel size"
        )


@torch.library.register_fake("espan::network")
def _(
    image: Tensor,
    packed: Tensor,
    channels: int,
    head_kernel: int,
    convs: Sequence[int],
    concat_activation: bool,
    scale: int,
) -> tuple[Tensor, Tensor]:
    n, _, height, width = image.shape
    # uint8 results are interleaved, as in image files; float32 results are planar.
    layout = torch.channels_last if image.dtype == torch.uint8 else torch.contiguous_format
    shape = (n, 3, scale * height, scale * width)
    return (
        torch.empty(shape, dtype=image.dtype, device=image.device, memory_format=layout),
        torch.empty((n, 3), dtype=torch.float32, device=image.device),
    )


_library.refuse_gradients("network")
