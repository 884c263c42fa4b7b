"""The feature maps of `head`, `spab` and `tail`: (N, H, W, P), contiguous.

P is the number of channels C rounded up to a multiple of 16.  The weights of the padding channels
are zero, so these stay zero.
"""

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_CHANNELS = 64


def padded(channels: int) -> int:
    """P: ``channels`` rounded up to a multiple of 16."""
    return -(-channels // 16) * 16


def to_nchw(features: Tensor, channels: int) -> Tensor:
    """(N, H, W, P) -> a view (N, C, H, W)."""
    return features.permute(0, 3, 1, 2)[:, :channels]


def from_nchw(t: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H, W, P), zero beyond C."""
    n, channels, height, width = t.shape
    features = t.new_zeros(n, height, width, padded(channels))
    features[..., :channels] = t.permute(0, 2, 3, 1)
    return features
