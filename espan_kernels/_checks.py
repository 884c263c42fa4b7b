"""The input checks of csrc/host_checks.h, in the same words, for what does not pass through C++."""

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _dtype(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")


def _check_same(op: str, name: str, t: Tensor, like_name: str, like: Tensor) -> None:
    if t.device != like.device:
        raise RuntimeError(
            f"{op}: {name} is on {t.device}; it must be on the device of {like_name}, {like.device}"
        )
    if t.dtype != like.dtype:
        raise RuntimeError(
            f"{op}: {name} has dtype {_dtype(t)}; "
            f"it must have the dtype of {like_name}, {_dtype(like)}"
        )
    if t.shape != like.shape:
        raise RuntimeError(
            f"{op}: {name} has shape {list(t.shape)}; "
            f"it must have the shape of {like_name}, {list(like.shape)}"
        )


def check_gate(op: str, o: Tensor, **others: Tensor) -> None:
    """``o`` is floating-point and every other tensor has its shape, dtype and device."""
    if o.dtype not in FLOATING:
        raise RuntimeError(
            f"{op}: o has dtype {_dtype(o)}; it must be float32, float16, bfloat16 or float64"
        )
    for name, t in others.items():
        _check_same(op, name, t, "o", o)


def check_frequency_loss(op: str, sr: Tensor, hr: Tensor, scale: Tensor | None = None) -> None:
    """As check_frequency_loss of csrc/frequency_loss.h."""
    if sr.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise RuntimeError(
            f"{op}: sr has dtype {_dtype(sr)}; it must be float32, float16 or bfloat16"
        )
    if sr.ndim != 4:
        raise RuntimeError(f"{op}: sr has shape {list(sr.shape)}; it must be (N, C, H, W)")
    if sr.numel() == 0:
        raise RuntimeError(f"{op}: sr has shape {list(sr.shape)}; a mean needs an element")
    _check_same(op, "hr", hr, "sr", sr)
    if scale is None:
        return
    if scale.device != sr.device:
        raise RuntimeError(
            f"{op}: scale is on {scale.device}; it must be on the device of sr, {sr.device}"
        )
    if scale.dtype != torch.float32 or scale.numel() != 1:
        raise RuntimeError(
            f"{op}: scale has dtype {_dtype(scale)} and shape {list(scale.shape)}; "
            f"it must be one float32 number"
        )
