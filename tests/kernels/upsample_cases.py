"""Upsampling layers with random weights, and checks shared by the tests of upsample's kernels."""

from collections.abc import Callable

import torch
from torch import Tensor

from espan_kernels import pack_upsample, reference
from espan_kernels.packing.feature_maps import from_nchw
from tests.kernels.tail_cases import check_image

# (near, last, packed, channels, scale, dtype, flag) -> image
Run = Callable[..., Tensor]


def check(
    run: Run,
    channels: int,
    scale: int,
    dtype: torch.dtype,
    image_dtype: torch.dtype,
    shape: tuple[int, int, int],
    *,
    device: str = "cpu",
    gain: float = 1.0,
) -> None:
    """Check that the image obeys the tolerance rule and that the flag is right."""
    batch, height, width = shape
    generator = torch.Generator().manual_seed(height * 1000 + width)

    def random(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(size, generator=generator, dtype=torch.float64)).to(dtype)

    rows = 3 * scale * scale
    share = 0.1 * gain * (9 * (rows + channels)) ** -0.5
    weights = [
        random(rows, rows, 3, 3, scale=share),
        random(rows, channels, 3, 3, scale=share),
        random(rows, scale=0.1 * gain) + 0.5,
    ]
    maps = [random(batch, n, height, width) for n in (rows, channels)]
    near, last = (from_nchw(t).to(device) for t in maps)
    packed = pack_upsample(*weights, dtype, device)
    flag = torch.zeros(1, dtype=torch.int32, device=device)
    image = run(near, last, packed, channels, scale, image_dtype, flag).cpu()

    def plain(dtype: torch.dtype) -> Tensor:
        return reference.upsample(
            *(t.to(dtype) for t in maps), *(w.to(dtype) for w in weights), scale
        )

    check_image(image, flag, plain, dtype, image_dtype)
