"""The first convolution as one op: function, weight packing, reference on packed weights."""

import torch
from torch import Tensor

from espan_kernels import _checks, _library, reference
from espan_kernels.packing import cuda_fragments
from espan_kernels.packing.feature_maps import from_nchw, padded

OP = "espan::head"
MAX_KERNEL = 11
ACTIVATIONS = ("none", "silu", "relu")


def head(
    image: Tensor,
    packed: Tensor,
    mean: Tensor | None,
    channels: int,
    kernel: int,
    unshuffle: int = 1,
    activation: str = "none",
) -> Tensor:
    """Convolve an RGB image with a kernel x kernel convolution, in one launch.

    Equivalent to :func:`espan_kernels.reference.head` with the result in NHWC.

    Args:
        image: (N, 3, H, W) with any strides; float16, bfloat16 or float32 with values in 0-1, or
            uint8, which is divided by 255.
        packed: the result of :func:`pack_head`, on the device of ``image``.
        mean: (3,) float32, subtracted from the image before the zero padding; or None.
        channels: the number of output channels C, up to 64.
        kernel: the kernel size, odd, up to 11; 3 with ``unshuffle``.
        unshuffle: u, the factor of the pixel unshuffle before the convolution: 1, 2 or 4.  The
            image is first extended to a multiple of u by reflection at the right and the bottom.
        activation: ``"none"``, ``"silu"`` or ``"relu"``, applied to the result; as in the call of
            :func:`pack_head`.

    Returns:
        Feature maps (N, ceil(H/u), ceil(W/u), P) with the dtype of ``packed``, where P is C rounded
        up to a multiple of 16.  Channels beyond C are zero.

    Note:
        A value that is not finite, or too large for the dtype of ``packed``, reaches the results
        whose window contains it.  On CUDA it may also reach results up to 5 pixels to the left of
        these and up to 2 above, because the kernels multiply neighbours of a window by zero.

    Raises:
        RuntimeError: if the inputs do not match, or one of them requires a gradient.
    """
    return torch.ops.espan.head(image, packed, mean, channels, kernel, unshuffle, activation)


def pack_head(
    weight: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    activation: str = "none",
) -> Tensor:
    """Pack a (C, 3 u^2, k, k) weight and a (C,) bias for :func:`head` with ``activation``.

    The inputs of the weight have the order of ``torch.nn.functional.pixel_unshuffle``.  The other
    arguments and the result are those of :func:`espan_kernels.pack_spab`.
    """
    channels, inputs, kernel = weight.shape[:3]
    unshuffle = round((inputs / 3) ** 0.5)
    _check(channels, kernel, unshuffle, activation)
    _checks.check_dtype("pack_head", dtype)
    shape = (channels, 3 * unshuffle * unshuffle, kernel, kernel)
    _checks.check_weight("pack_head", "weight", weight, shape)
    _checks.check_weight("pack_head", "bias", bias, (channels,))
    p, factor = padded(channels), _factor(activation)
    padded_bias = cuda_fragments.pad(factor * bias.detach().double().cpu(), p)
    padded_bias = padded_bias[cuda_fragments.output_order(p)]
    weight = factor * weight.detach().double().cpu()
    streamed = [_pack_streamed(weight)] if _is_streamed(kernel, unshuffle) else []
    return cuda_fragments.join([_pack(weight)], [padded_bias], dtype, streamed).to(device)


def _factor(activation: str) -> float:
    """SiLU is computed from o/2, so its weights are halved."""
    return 0.5 if activation == "silu" else 1.0


def _pixel(unshuffle: int) -> int:
    """The values of a pixel in a row of the kernel's input: 3 u^2, and padding for u = 2."""
    return {1: 3, 2: 16, 4: 48}[unshuffle]


def _steps(kernel: int, unshuffle: int) -> tuple[int, int]:
    """The groups of three kernel rows, and the steps of 16 values in a row."""
    return -(-kernel // 3), -(-_pixel(unshuffle) * kernel // 16)


def _rows(weight: Tensor, count: int) -> Tensor:
    """The weight as ``count`` kernel rows of runs of 16 values, in tile order.

    The values of a pixel have the order (dy, dx, rgb), so that neighbours of an image row stay
    neighbours.
    """
    channels, inputs, kernel, _ = weight.shape
    u = round((inputs / 3) ** 0.5)
    p, pixel, (_, runs) = padded(channels), _pixel(u), _steps(kernel, u)
    rows = weight.view(channels, 3, u, u, kernel, kernel).permute(4, 5, 2, 3, 1, 0)
    rows = cuda_fragments.pad(rows.reshape(kernel, kernel, inputs, channels), kernel, kernel, pixel)
    rows = cuda_fragments.pad(rows.flatten(1, 2), count, 16 * runs, p)
    return rows[..., cuda_fragments.output_order(p)].view(count, runs, 16, p)


def _pack(weight: Tensor) -> Tensor:
    """The weight in steps (three kernel rows, 16 values of a row) of three taps dy."""
    groups = -(-weight.shape[-1] // 3)
    rows = _rows(weight, 3 * groups)
    steps = rows.unflatten(0, (groups, 3)).transpose(1, 2)
    return cuda_fragments.fragments(steps).flatten()


def _is_streamed(kernel: int, unshuffle: int) -> bool:
    """Whether csrc/cuda/head_hopper.cuh has kernels for this size."""
    return kernel > 1 and unshuffle < 4


def _pack_streamed(weight: Tensor) -> Tensor:
    """The weight as operand B of csrc/cuda/head_hopper.cuh: (dy, run, 2, P, 8)."""
    rows = _rows(weight, weight.shape[-1])
    return rows.unflatten(2, (2, 8)).transpose(-1, -2).flatten()


def _shape(channels: int, kernel: int, unshuffle: int) -> tuple[int, ...]:
    return channels, 3 * unshuffle * unshuffle, kernel, kernel


def _pack_numbers(channels: int, kernel: int, unshuffle: int) -> Tensor:
    shape = torch.Size(_shape(channels, kernel, unshuffle))
    return _pack(torch.arange(1, shape.numel() + 1, device="cpu").view(shape))


def unpack(
    packed: Tensor, channels: int, kernel: int, unshuffle: int = 1, activation: str = "none"
) -> tuple[Tensor, Tensor]:
    """The weight (C, 3 u^2, k, k) and bias (C,) in ``packed``."""
    flat, bias = sizes(channels, kernel, unshuffle).split(packed)
    order = cuda_fragments.inverse(_pack_numbers, channels, kernel, unshuffle).to(packed.device)
    weight = flat[order].view(_shape(channels, kernel, unshuffle)) / _factor(activation)
    bias = cuda_fragments.natural(bias, padded(channels))[:channels] / _factor(activation)
    return weight, bias.to(packed.dtype)


def sizes(channels: int, kernel: int, unshuffle: int = 1) -> cuda_fragments.Sizes:
    """The sizes of the parts of a packed tensor."""
    p, (groups, runs) = padded(channels), _steps(kernel, unshuffle)
    streamed = kernel * runs * 16 * p if _is_streamed(kernel, unshuffle) else 0
    return cuda_fragments.Sizes(3 * groups * runs * 16 * p, p, streamed)


def _check(channels: int, kernel: int, unshuffle: int, activation: str) -> None:
    _checks.check_channels(OP, channels)
    if kernel % 2 == 0 or not 1 <= kernel <= MAX_KERNEL:
        raise RuntimeError(f"{OP}: kernel is {kernel}; it must be odd, 1 to {MAX_KERNEL}")
    if unshuffle not in (1, 2, 4):
        raise RuntimeError(f"{OP}: unshuffle is {unshuffle}; it must be 1, 2 or 4")
    if unshuffle > 1 and kernel != 3:
        raise RuntimeError(f"{OP}: kernel is {kernel}; with unshuffle {unshuffle} it must be 3")
    if activation not in ACTIVATIONS:
        raise RuntimeError(f"{OP}: activation is {activation}; it must be none, silu or relu")


def check_inputs(
    image: Tensor,
    packed: Tensor,
    mean: Tensor | None,
    channels: int,
    kernel: int,
    unshuffle: int,
    activation: str,
) -> None:
    """Check the arguments of :func:`head`."""
    _check(channels, kernel, unshuffle, activation)
    if image.dtype not in _checks.IMAGE_DTYPES:
        raise RuntimeError(
            f"{OP}: image has dtype {str(image.dtype).removeprefix('torch.')}; "
            "it must be uint8, float16, bfloat16 or float32"
        )
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
        raise RuntimeError(
            f"{OP}: image has shape {list(image.shape)}; it must be (N, 3, H, W) and not empty"
        )
    if min(image.shape[2:]) < unshuffle:
        raise RuntimeError(
            f"{OP}: image has shape {list(image.shape)}; with unshuffle {unshuffle}, its height "
            f"and width must be at least {unshuffle}"
        )
    _checks.check_device(OP, "packed", packed, "image", image)
    _checks.check_dtype(OP, packed.dtype)
    size = sizes(channels, kernel, unshuffle).total(packed.dtype)
    _checks.check_packed(OP, packed, packed.dtype, size)
    if mean is not None:
        _checks.check_device(OP, "mean", mean, "image", image)
        if mean.dtype != torch.float32 or mean.shape != (3,) or not mean.is_contiguous():
            raise RuntimeError(f"{OP}: mean must be contiguous float32 values of shape [3]")


def empty_features(image: Tensor, packed: Tensor, channels: int, unshuffle: int) -> Tensor:
    """An uninitialised tensor for the result."""
    n, _, height, width = image.shape
    rows, columns = -(-height // unshuffle), -(-width // unshuffle)
    return packed.new_empty(n, rows, columns, padded(channels))


def head_by_reference(
    image: Tensor,
    packed: Tensor,
    mean: Tensor | None,
    channels: int,
    kernel: int,
    unshuffle: int,
    activation: str,
) -> Tensor:
    """:func:`head` in plain PyTorch."""
    check_inputs(image, packed, mean, channels, kernel, unshuffle, activation)
    weight, bias = unpack(packed, channels, kernel, unshuffle, activation)
    return from_nchw(reference.head(image, weight, bias, mean, unshuffle, activation))


@torch.library.register_fake(OP)
def _(
    image: Tensor,
    packed: Tensor,
    mean: Tensor | None,
    channels: int,
    kernel: int,
    unshuffle: int,
    activation: str,
) -> Tensor:
    check_inputs(image, packed, mean, channels, kernel, unshuffle, activation)
    return empty_features(image, packed, channels, unshuffle)


_library.implement("head", head_by_reference)
_library.refuse_gradients("head")
