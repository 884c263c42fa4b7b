"""Input checks for the reference, Triton and tracing, and for weights before packing.

Compiled kernels have their own checks, in csrc, with the same messages.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from espan_kernels.packing.feature_maps import DTYPES, MAX_CHANNELS

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
IMAGE_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)


def check_device(op: str, name: str, t: Tensor, like_name: str, like: Tensor) -> None:
    if t.device != like.device:
        raise RuntimeError(
            f"{op}: {name} is on {t.device}; it must be on the device of {like_name}, {like.device}"
        )


def check_same(op: str, name: str, t: Tensor, like_name: str, like: Tensor) -> None:
    """Check that ``t`` has the shape, dtype and device of ``like``."""
    check_device(op, name, t, like_name, like)
    if t.dtype != like.dtype:
        raise RuntimeError(
            f"{op}: {name} has dtype {_name(t.dtype)}; "
            f"it must have the dtype of {like_name}, {_name(like.dtype)}"
        )
    if t.shape != like.shape:
        raise RuntimeError(
            f"{op}: {name} has shape {list(t.shape)}; "
            f"it must have the shape of {like_name}, {list(like.shape)}"
        )


def check_gate(op: str, o: Tensor, **others: Tensor) -> None:
    """Check that ``o`` is floating-point and that ``others`` match its shape, dtype and device."""
    if o.dtype not in FLOATING:
        raise RuntimeError(
            f"{op}: o has dtype {_name(o.dtype)}; it must be float32, float16, bfloat16 or float64"
        )
    for name, t in others.items():
        check_same(op, name, t, "o", o)


def check_conv3x3(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Check the feature maps, and that the weights and biases match them."""
    _check_maps(op, "x", x)
    check_device(op, "weight", weight, "x", x)
    if weight.dtype != x.dtype:
        raise RuntimeError(f"{op}: weight has dtype {_name(weight.dtype)}; it must be float32")
    if weight.ndim != 4 or weight.shape[1:] != (x.shape[1], 3, 3) or len(weight) < 1:
        raise RuntimeError(
            f"{op}: weight has shape {list(weight.shape)}; it must be "
            f"[outputs, {x.shape[1]}, 3, 3], for the channels of x"
        )
    if bias is None:
        return
    check_device(op, "bias", bias, "x", x)
    if bias.shape != weight.shape[:1] or bias.dtype != x.dtype:
        raise RuntimeError(
            f"{op}: bias has dtype {_name(bias.dtype)} and shape {list(bias.shape)}; it must be "
            f"float32 with shape [{len(weight)}], for the outputs of weight"
        )


def check_conv3x3_weight_gradient(op: str, grad: Tensor, x: Tensor) -> None:
    """Check the feature maps, and that the gradient of the result matches them."""
    _check_maps(op, "x", x)
    _check_maps(op, "grad", grad)
    check_device(op, "grad", grad, "x", x)
    n, _, h, w = x.shape
    if (grad.shape[0], *grad.shape[2:]) != (n, h, w):
        raise RuntimeError(
            f"{op}: grad has shape {list(grad.shape)}; it must be [{n}, outputs, {h}, {w}], "
            "for the images of x"
        )


def _check_maps(op: str, name: str, t: Tensor) -> None:
    if t.dtype != torch.float32:
        raise RuntimeError(f"{op}: {name} has dtype {_name(t.dtype)}; it must be float32")
    if t.ndim != 4 or t.shape[1] < 1:
        raise RuntimeError(
            f"{op}: {name} has shape {list(t.shape)}; it must be [N, C, H, W] with C >= 1"
        )


def check_frequency_loss(op: str, sr: Tensor, hr: Tensor, scale: Tensor | None = None) -> None:
    """Check the images, and the scale of the gradient if there is one."""
    if sr.dtype not in DTYPES:
        raise RuntimeError(
            f"{op}: sr has dtype {_name(sr.dtype)}; it must be float32, float16 or bfloat16"
        )
    if sr.ndim != 4:
        raise RuntimeError(f"{op}: sr has shape {list(sr.shape)}; it must be (N, C, H, W)")
    if sr.numel() == 0:
        raise RuntimeError(f"{op}: sr has shape {list(sr.shape)}; it must not be empty")
    check_same(op, "hr", hr, "sr", sr)
    if scale is None:
        return
    check_device(op, "scale", scale, "sr", sr)
    if scale.dtype != torch.float32 or scale.numel() != 1:
        raise RuntimeError(
            f"{op}: scale has dtype {_name(scale.dtype)} and shape {list(scale.shape)}; "
            f"it must be one float32 number"
        )


def check_channels(op: str, channels: int) -> None:
    if not 1 <= channels <= MAX_CHANNELS:
        raise RuntimeError(f"{op}: channels is {channels}; it must be 1 to {MAX_CHANNELS}")


def check_features(op: str, name: str, t: Tensor, p: int) -> None:
    """Check that ``t`` is a feature map of ``p`` channels with at least one pixel."""
    if t.dtype not in DTYPES:
        raise RuntimeError(
            f"{op}: {name} has dtype {_name(t.dtype)}; it must be float16, bfloat16 or float32"
        )
    if t.ndim != 4 or t.shape[3] != p:
        raise RuntimeError(
            f"{op}: {name} has shape {list(t.shape)}; it must be (N, H, W, {p}): "
            "channels last, padded to a multiple of 16"
        )
    if 0 in t.shape:
        raise RuntimeError(f"{op}: {name} has shape {list(t.shape)}; it must not be empty")
    _check_contiguous(op, name, t)


def check_features_like(op: str, name: str, t: Tensor, like_name: str, like: Tensor) -> None:
    """Check that ``t`` is a feature map with the shape, dtype and device of ``like``."""
    check_same(op, name, t, like_name, like)
    _check_contiguous(op, name, t)


def _check_contiguous(op: str, name: str, t: Tensor) -> None:
    if not t.is_contiguous():
        raise RuntimeError(f"{op}: {name} must be contiguous")


def check_packed(op: str, packed: Tensor, dtype: torch.dtype, size: int) -> None:
    """Check that ``packed`` has the shape (``size``,) and dtype ``dtype``."""
    if packed.dtype != dtype:
        raise RuntimeError(
            f"{op}: packed has dtype {_name(packed.dtype)}; it must be {_name(dtype)}"
        )
    if packed.shape != (size,):
        raise RuntimeError(
            f"{op}: packed has shape {list(packed.shape)}; for these channels and this kernel it "
            f"must have the shape [{size}]"
        )


def check_dtype(op: str, dtype: torch.dtype) -> None:
    """Check that feature maps may have this dtype."""
    if dtype not in DTYPES:
        raise RuntimeError(f"{op}: dtype is {dtype}; it must be float16, bfloat16 or float32")


def check_weight(op: str, name: str, weight: Tensor, shape: Sequence[int]) -> None:
    if list(weight.shape) != list(shape):
        raise RuntimeError(
            f"{op}: {name} has shape {list(weight.shape)}; it must have the shape {list(shape)}"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
