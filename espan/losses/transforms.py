"""Orthonormal transforms of whole images, which Tab. 8 compares with the DCT of blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from espan_kernels.frequency_loss_reference import reflected


def spectrum(d: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, H, W // 2 + 1, 2): real and imaginary parts of the Fourier transform.

    Only one half of the spectrum: as images are real, it determines the other.
    """
    return torch.view_as_real(torch.fft.rfft2(d, norm="ortho"))


def haar(d: Tensor) -> Tensor:
    """(N, C, H, W) -> (4, N, C, ceil(H / 2), ceil(W / 2)): one level of the Haar wavelet.

    The approximation comes first, then the details along y, along x and both.  Wavelet losses in
    the literature use all bands or only the details; here all four are used, because DCT and FFT
    also include the low frequencies.  An odd edge is reflected, as for the DCT.
    """
    for dim in (2, 3):
        if d.shape[dim] % 2:
            d = torch.cat([d, d.narrow(dim, reflected(d.shape[dim], 0, 1)[-1], 1)], dim)
    above, below = d[:, :, 0::2], d[:, :, 1::2]
    rows = torch.stack([above + below, above - below])
    left, right = rows[..., 0::2], rows[..., 1::2]
    return torch.cat([left + right, left - right]) / 2
