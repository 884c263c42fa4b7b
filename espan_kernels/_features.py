"""Feature maps as the kernels have them: (N, H, W, P) contiguous, P a multiple of 16."""

from torch import Tensor

from espan_kernels._packing import DTYPES, padded


def check(op: str, name: str, t: Tensor, p: int) -> None:
    """``t`` is a feature map of P channels with at least one pixel."""
    if t.dtype not in DTYPES:
        raise RuntimeError(
            f"{op}: {name} has dtype {_dtype(t)}; it must be float16, bfloat16 or float32"
        )
    if t.ndim != 4 or t.shape[3] != p:
        raise RuntimeError(
            f"{op}: {name} has shape {list(t.shape)}; it must be (N, H, W, {p}): "
            "channels last, rounded up to a multiple of 16"
        )
    if 0 in t.shape:
        raise RuntimeError(f"{op}: {name} has shape {list(t.shape)}; it must not be empty")
    if not t.is_contiguous():
        raise RuntimeError(f"{op}: {name} must be contiguous")


def check_device(op: str, name: str, t: Tensor, like_name: str, like: Tensor) -> None:
    if t.device != like.device:
        raise RuntimeError(
            f"{op}: {name} is on {t.device}; it must be on the device of {like_name}, {like.device}"
        )


def check_like(op: str, name: str, t: Tensor, like_name: str, like: Tensor) -> None:
    """``t`` is a feature map with the shape, dtype and device of ``like``."""
    check_device(op, name, t, like_name, like)
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
    if not t.is_contiguous():
        raise RuntimeError(f"{op}: {name} must be contiguous")


def to_nchw(features: Tensor, channels: int) -> Tensor:
    """(N, H, W, P) -> a view (N, C, H, W)."""
    return features.permute(0, 3, 1, 2)[:, :channels]


def from_nchw(t: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H, W, P), with zeros beyond C."""
    n, channels, height, width = t.shape
    features = t.new_zeros(n, height, width, padded(channels))
    features[..., :channels] = t.permute(0, 2, 3, 1)
    return features


def _dtype(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")
