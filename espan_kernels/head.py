"""The first convolution as one op: function, weight packing, reference on packed weights."""

import torch
from torch import Tensor

from espan_kernels import _checks, _library, reference
from espan_kernels.packing import cuda_fragments
from espan_kernels.packing.feature_maps import from_nchw, padded

OP = "espan::head"
MAX_KERNEL = 11


def head(image: Tensor, packed: Tensor, mean: Tensor | None, channels: int, kernel: int) -> Tensor:
    """Convolve an RGB image with a kernel x kernel convolution, in one launch.

    Equivalent to :func:`espan_kernels.reference.head` with the result in NHWC.

    Args:
        image: (N, 3, H, W) with any strides; float16, bfloat16 or float32 with values in 0-1, or
            uint8, which is divided by 255.
        packed: the result of :func:`pack_head`, on the device of ``image``.
        mean: (3,) float32, subtracted from the image before the zero padding; or None.
        channels: the number of output channels C, up to 64.
        kernel: the kernel size, odd, up to 11.

    Returns:
        Feature maps (N, H, W, P) with the dtype of ``packed``, where P is C rounded up to a
        multiple of 16.  Channels beyond C are zero.

    Raises:
        RuntimeError: if the inputs do not match, or one of them requires a gradient.
    """
    return torch.ops.espan.head(image, packed, mean, channels, kernel)


def pack_head(
    weight: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Pack a (C, 3, k, k) weight and a (C,) bias for :func:`head`.

    Arguments and result are those of :func:`espan_kernels.pack_spab`.
    """
    channels, kernel = weight.shape[0], weight.shape[-1]
    _check(channels, kernel)
    _checks.check_dtype("pack_head", dtype)
    _checks.check_weight("pack_head", "weight", weight, (channels, 3, kernel, kernel))
    _checks.check_weight("pack_head", "bias", bias, (channels,))
    p = padded(channels)
    padded_bias = cuda_fragments.pad(bias.detach().double().cpu(), p)
    padded_bias = padded_bias[cuda_fragments.output_order(p)]
    weight = weight.detach().double().cpu()
    streamed = [_pack_streamed(weight)] if _is_streamed(kernel) else []
    return cuda_fragments.join([_pack(weight)], [padded_bias], dtype, streamed).to(device)


def _steps(kernel: int) -> tuple[int, int]:
    """The groups of three kernel rows, and the steps of 16 values in a row of 3 ``kernel``."""
    return -(-kernel // 3), -(-3 * kernel // 16)


def _rows(weight: Tensor, count: int) -> Tensor:
    """The weight as ``count`` kernel rows of runs of 16 values RGBRGB..., in tile order."""
    channels, _, kernel, _ = weight.shape
    p, (_, runs) = padded(channels), _steps(kernel)
    rows = weight.permute(2, 3, 1, 0).reshape(kernel, 3 * kernel, channels)  # dy, (dx, rgb), C
    rows = cuda_fragments.pad(rows, count, 16 * runs, p)[..., cuda_fragments.output_order(p)]
    return rows.view(count, runs, 16, p)


def _pack(weight: Tensor) -> Tensor:
    """The weight in steps (three kernel rows, 16 values of a row RGBRGB...) of three taps dy."""
    groups, runs = _steps(weight.shape[-1])
    rows = _rows(weight, 3 * groups)
    steps = rows.view(groups, 3, runs, 16, -1).transpose(1, 2)
    return cuda_fragments.fragments(steps).flatten()


def _is_streamed(kernel: int) -> bool:
    """Whether csrc/cuda/head_hopper.cuh has kernels for this size."""
    return kernel > 1


def _pack_streamed(weight: Tensor) -> Tensor:
    """The weight as operand B of csrc/cuda/head_hopper.cuh: (dy, run, 2, P, 8)."""
    rows = _rows(weight, weight.shape[-1])
    return rows.unflatten(2, (2, 8)).transpose(-1, -2).flatten()


def _pack_numbers(channels: int, kernel: int) -> Tensor:
    count = channels * 3 * kernel * kernel
    return _pack(torch.arange(1, count + 1).view(channels, 3, kernel, kernel))


def unpack(packed: Tensor, channels: int, kernel: int) -> tuple[Tensor, Tensor]:
    """The weight (C, 3, k, k) and bias (C,) in ``packed``."""
    flat, bias = sizes(channels, kernel).split(packed)
    order = cuda_fragments.inverse(_pack_numbers, channels, kernel).to(packed.device)
    weight = flat[order].view(channels, 3, kernel, kernel)
    return weight, cuda_fragments.natural(bias, padded(channels))[:channels].to(packed.dtype)


def sizes(channels: int, kernel: int) -> cuda_fragments.Sizes:
    """The sizes of the parts of a packed tensor."""
    p, (groups, runs) = padded(channels), _steps(kernel)
    streamed = kernel * runs * 16 * p if _is_streamed(kernel) else 0
    return cuda_fragments.Sizes(3 * groups * runs * 16 * p, p, streamed)


def _check(channels: int, kernel: int) -> None:
    _checks.check_channels(OP, channels)
    if kernel % 2 == 0 or not 1 <= kernel <= MAX_KERNEL:
        raise RuntimeError(f"{OP}: kernel is {kernel}; it must be odd, 1 to {MAX_KERNEL}")


def check_inputs(
    image: Tensor, packed: Tensor, mean: Tensor | None, channels: int, kernel: int
) -> None:
    """Check the arguments of :func:`head`."""
    _check(channels, kernel)
    if image.dtype not in _checks.IMAGE_DTYPES:
        raise RuntimeError(
            f"{OP}: image has dtype {str(image.dtype).removeprefix('torch.')}; "
            "it must be uint8, float16, bfloat16 or float32"
        )
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
        raise RuntimeError(
            f"{OP}: image has shape {list(image.shape)}; it must be (N, 3, H, W) and not empty"
        )
    _checks.check_device(OP, "packed", packed, "image", image)
    _checks.check_dtype(OP, packed.dtype)
    _checks.check_packed(OP, packed, packed.dtype, sizes(channels, kernel).total(packed.dtype))
    if mean is not None:
        _checks.check_device(OP, "mean", mean, "image", image)
        if mean.dtype != torch.float32 or mean.shape != (3,) or not mean.is_contiguous():
            raise RuntimeError(f"{OP}: mean must be three contiguous float32 values")


def head_by_reference(
    image: Tensor, packed: Tensor, mean: Tensor | None, channels: int, kernel: int
) -> Tensor:
    """:func:`head` in plain PyTorch."""
    check_inputs(image, packed, mean, channels, kernel)
    weight, bias = unpack(packed, channels, kernel)
    return from_nchw(reference.head(image, weight, bias, mean))


@torch.library.register_fake(OP)
def _(image: Tensor, packed: Tensor, mean: Tensor | None, channels: int, kernel: int) -> Tensor:
    check_inputs(image, packed, mean, channels, kernel)
    n, _, height, width = image.shape
    return packed.new_empty(n, height, width, padded(channels))


_library.implement("head", head_by_reference)
_library.refuse_gradients("head")
