"""The loss between an upscaled image and the original: a weighted sum (Sec. 3.3, Tab. 8)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from espan.errors import EspanError
from espan.losses.transforms import haar, spectrum
from espan_kernels import frequency_loss


class Loss:
    """``loss(sr, hr)``: a weighted sum of means over all elements, with ``d = hr - sr``.

    The loss of the paper's Eq. 9 is ``Loss("l2", hf=1, dct=0.001)``.  Pixel, HF and DCT terms are
    computed by one call of the kernel `espan_kernels.frequency_loss`, FFT and DWT terms by
    PyTorch's operations, in float32.

    Args:
        pixel: ``"l1"``: ``|d|``; ``"l2"``: ``d ** 2``; ``"none"``.
        hf: weight of ``|d - B(d)|``, with a 5x5 Gaussian blur B (Eq. 7); alpha in the paper.
        dct: weight of ``|DCT(d)|``, the orthonormal DCT of blocks of 8x8 (Eq. 8); beta in the
            paper.
        fft: weight of ``|rfft2(d)|``, orthonormal, its real and imaginary parts separately.
        dwt: weight of ``|DWT(d)|``, all four bands of one level of the orthonormal Haar wavelet.

    Args of a call:
        sr: (N, 3, H, W), float32, float16 or bfloat16, in 0-1.
        hr: of the shape and device of `sr`.  If the dtypes differ, the wider one is used.

    Returns a float32 tensor of shape (), differentiable with respect to both.

    Raises:
        EspanError: another pixel term, a weight that is negative or not finite, no term at all; in
            a call, shapes that differ.
        RuntimeError: in a call, other shapes or dtypes that the kernel does not support.
    """

    def __init__(
        self,
        pixel: Literal["l1", "l2", "none"] = "l1",
        *,
        hf: float = 0.0,
        dct: float = 0.0,
        fft: float = 0.0,
        dwt: float = 0.0,
    ) -> None:
        if pixel not in ("l1", "l2", "none"):
            raise EspanError(f"loss: pixel must be 'l1', 'l2' or 'none', got {pixel!r}")
        weights = {"hf": hf, "dct": dct, "fft": fft, "dwt": dwt}
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise EspanError(f"loss: {name} must be finite and at least 0, got {weight}")
        if pixel == "none" and not any(weights.values()):
            raise EspanError("loss: pixel is 'none' and all weights are 0; at least one is needed")
        self.pixel, self.hf, self.dct, self.fft, self.dwt = pixel, hf, dct, fft, dwt

    def __call__(self, sr: Tensor, hr: Tensor) -> Tensor:
        if sr.shape != hr.shape:
            raise EspanError(f"loss: sr is {tuple(sr.shape)}, but hr is {tuple(hr.shape)}")
        wider = torch.promote_types(sr.dtype, hr.dtype)
        sr, hr = sr.to(wider), hr.to(wider)
        total = torch.zeros((), device=sr.device)
        if self.pixel != "none" or self.hf or self.dct:
            total = frequency_loss(
                sr,
                hr,
                pixel=0.0 if self.pixel == "none" else 1.0,
                hf=self.hf,
                dct=self.dct,
                squared=self.pixel == "l2",
            )[0]
        d = hr.float() - sr.float() if self.fft or self.dwt else None
        for weight, transform in ((self.fft, spectrum), (self.dwt, haar)):
            if weight and d is not None:
                total = total + weight * transform(d).abs().mean()
        return total
