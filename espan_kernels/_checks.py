"""The input checks of csrc/host_checks.h, in the same words, for what does not pass through C++."""

import torch

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _dtype(t: torch.Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")


def check_gate(op: str, o: torch.Tensor, **others: torch.Tensor) -> None:
    """``o`` is floating-point and every other tensor has its shape, dtype and device."""
    if o.dtype not in FLOATING:
        raise RuntimeError(
            f"{op}: o has dtype {_dtype(o)}; it must be float32, float16, bfloat16 or float64"
        )
    for name, t in others.items():
        if t.device != o.device:
            raise RuntimeError(
                f"{op}: {name} is on {t.device}; it must be on the device of o, {o.device}"
            )
        if t.dtype != o.dtype:
            raise RuntimeError(
                f"{op}: {name} has dtype {_dtype(t)}; it must have the dtype of o, {_dtype(o)}"
            )
        if t.shape != o.shape:
            raise RuntimeError(
                f"{op}: {name} has shape {list(t.shape)}; "
                f"it must have the shape of o, {list(o.shape)}"
            )
