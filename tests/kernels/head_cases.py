"""Heads with random weights, and checks shared by the tests of head's kernels."""

from collections.abc import Callable

import torch
from torch import Tensor

from espan_kernels import pack_head, reference
from espan_kernels.packing.feature_maps import to_nchw
from tests.tolerance import assert_accurate

# (image, packed, mean, channels, kernel, unshuffle, activation) -> features
Run = Callable[[Tensor, Tensor, Tensor | None, int, int, int, str], Tensor]

MEAN = torch.tensor((0.4488, 0.4371, 0.4040))
ACTIVATIONS = ("none", "silu", "relu")
LAYOUTS = ("planar", "interleaved", "strided")


def image_of(shape: tuple[int, int, int], dtype: torch.dtype, layout: str) -> Tensor:
    """(N, 3, H, W) in 0-1, or the same as uint8, with NaN or 255 in every gap."""
    batch, height, width = shape
    generator = torch.Generator().manual_seed(height * 1000 + width)
    values = torch.rand(batch, 3, height, width, generator=generator)
    values = (values * 255).round().to(dtype) if dtype == torch.uint8 else values.to(dtype)
    if layout == "planar":
        return values
    if layout == "interleaved":
        return values.contiguous(memory_format=torch.channels_last)
    gap = 255 if dtype == torch.uint8 else float("nan")
    whole = torch.full((batch, 4, height + 2, 2 * width + 1), gap, dtype=dtype)
    view = whole[:, 1:, 1:-1, 1::2]
    view.copy_(values)
    return view


def check(
    run: Run,
    channels: int,
    kernel: int,
    dtype: torch.dtype,
    image: Tensor,
    *,
    with_mean: bool = True,
    unshuffle: int = 1,
    activation: str = "none",
    device: str = "cpu",
) -> None:
    """Check that the features obey the tolerance rule and the padding channels are zero."""
    generator = torch.Generator().manual_seed(kernel)
    inputs = 3 * unshuffle * unshuffle
    weight = torch.randn(channels, inputs, kernel, kernel, generator=generator) / kernel / unshuffle
    bias = torch.randn(channels, generator=generator)
    weight, bias = weight.to(dtype), bias.to(dtype)
    mean = MEAN if with_mean else None
    packed = pack_head(weight, bias, dtype, device, activation=activation)
    on_device = None if mean is None else mean.to(device)
    features = run(
        image.to(device), packed, on_device, channels, kernel, unshuffle, activation
    ).cpu()
    size = (-(-n // unshuffle) for n in image.shape[2:])
    assert features.shape[:3] == (image.shape[0], *size)
    assert features.is_contiguous()
    assert (features[..., channels:] == 0).all()
    assert_accurate(
        to_nchw(features, channels),
        lambda dtype: reference.head(
            image, weight.to(dtype), bias.to(dtype), mean, unshuffle, activation
        ),
    )
