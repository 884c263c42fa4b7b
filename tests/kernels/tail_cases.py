"""Tails with random weights, and checks shared by the tests of tail's kernels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from espan_kernels import pack_tail, reference
from espan_kernels.packing.feature_maps import from_nchw
from tests.tolerance import FACTOR, Reference, allowed, assert_within, expected

# (head, first, last, activation, packed, channels, scale, dtype, flag, last_kernel) -> image
Run = Callable[..., Tensor]


def check(
    run: Run,
    channels: int,
    scale: int,
    sides: int,
    dtype: torch.dtype,
    image_dtype: torch.dtype,
    shape: tuple[int, int, int],
    *,
    device: str = "cpu",
    gain: float = 1.0,
    last_kernel: int = 3,
) -> None:
    """Check that the image obeys the tolerance rule and that the flag is right."""
    batch, height, width = shape
    generator = torch.Generator().manual_seed(height * 1000 + width)

    def random(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(size, generator=generator, dtype=torch.float64)).to(dtype)

    rows = 3 * scale * scale
    weights = [
        random(
            *(channels, channels, last_kernel, last_kernel),
            scale=(last_kernel * last_kernel * channels) ** -0.5,
        ),
        random(channels, sides * channels, 1, 1, scale=(sides * channels) ** -0.5),
        random(channels),
        random(rows, channels, 3, 3, scale=0.1 * gain * (9 * channels) ** -0.5),
        random(rows, scale=0.1 * gain) + 0.5,
    ]
    maps = [random(batch, channels, height, width) for _ in range(sides + 1)]
    features = [from_nchw(t) for t in maps]
    packed = pack_tail(*weights, dtype, device)
    last, head, first, *activation = (t.to(device) for t in features)
    flag = torch.zeros(1, dtype=torch.int32, device=device)
    arguments: list[Any] = [head, first, last, activation[0] if activation else None, packed]
    image = run(*arguments, channels, scale, image_dtype, flag, last_kernel).cpu()

    def plain(dtype: torch.dtype) -> Tensor:
        last, *sides = (t.to(dtype) for t in maps)
        return reference.tail(last, sides, *(w.to(dtype) for w in weights), scale)

    check_image(image, flag, plain, dtype, image_dtype)


def check_image(
    image: Tensor,
    flag: Tensor,
    plain: Reference,
    dtype: torch.dtype,
    image_dtype: torch.dtype,
) -> None:
    """Check an image and its flag against the reference."""
    ((exact, error),) = expected(plain, dtype)
    assert image.shape == exact.shape
    out_of_range = not ((exact >= -1) & (exact <= 2)).all()
    assert flag.item() == out_of_range
    if image_dtype == torch.uint8:
        assert image.permute(0, 2, 3, 1).is_contiguous()
        levels = exact.clamp(0, 1) * 255
        # Rounding to a level adds an error of half a level to what the rule allows.
        bound = allowed(error, exact.abs().clamp(max=3).max().item(), dtype, FACTOR)
        assert ((image.double() - levels).abs() <= 0.5 + 255 * bound).all()
        return
    assert image.is_contiguous()
    # A float32 image holds unrounded values: judge them rounded to the features' dtype.
    image = image.to(dtype) if image_dtype == torch.float32 else image
    assert_within(image, exact, error)
