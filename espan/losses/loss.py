"""The loss between an upscaled image and the original: a weighted sum (Sec. 3.3, Tab. 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from espan.errors import EspanError
from espan.losses.transforms import haar, spectrum
from espan_kernels import frequency_loss


@dataclass(frozen=True)
class LossWeights:
    """What a loss is made of; with ``d = hr - sr``, each a mean over all elements:

    Attributes:
        pixel: "l1", ``|d|``; "l2", ``d ** 2``, with a weight of 1 either way; or None.
        alpha: of HF, ``|d - B(d)|`` with a 5x5 Gaussian blur B (Eq. 7).
        beta: of DCT, ``|DCT(d)|`` in blocks of 8x8, orthonormal (Eq. 8).
        fft: of ``|rfft2(d)|``, real and imaginary parts apart, orthonormal.
        dwt: of ``|DWT(d)|``: one level of the orthonormal Haar wavelet, all four bands.

    The loss of the paper's Eq. 9 is ``LossWeights("l2", alpha=1, beta=0.001)``.

    Raises:
        EspanError: another pixel term, a weight that is negative or not finite, or nothing at all.
    """

    pixel: Literal["l1", "l2"] | None = "l1"
    alpha: float = 0.0
    beta: float = 0.0
    fft: float = 0.0
    dwt: float = 0.0

    def __post_init__(self) -> None:
        if self.pixel not in ("l1", "l2", None):
            raise EspanError(f"loss: pixel must be 'l1', 'l2' or None, got {self.pixel!r}")
        weights = {name: getattr(self, name) for name in ("alpha", "beta", "fft", "dwt")}
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise EspanError(f"loss: {name} must be 0 or more, and finite, got {weight}")
        if self.pixel is None and not any(weights.values()):
            raise EspanError("loss: no pixel term and all weights zero: nothing to minimise")


class Loss:
    """``loss(sr, hr)``: the weighted sum, a float32 tensor of shape () with a gradient for both.

    Pixel, HF and DCT are one call of the kernel `espan_kernels.frequency_loss`; FFT and DWT are
    composed of PyTorch's operations, in float32.

    Args of a call:
        sr: (N, 3, H, W), float32, float16 or bfloat16, in 0-1.
        hr: of the shape and device of `sr`.  Where the dtypes differ, the wider one is used.

    Raises:
        EspanError: shapes that differ.
        RuntimeError: other shapes or dtypes that the kernel does not take.
    """

    def __init__(self, weights: LossWeights) -> None:
        self.weights = weights

    def __call__(self, sr: Tensor, hr: Tensor) -> Tensor:
        return self.with_terms(sr, hr)[0]

    def with_terms(self, sr: Tensor, hr: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its terms before they are weighted: detached, of shape (), not yet read.

        The terms' names are "l1" or "l2", "hf", "dct", "fft" and "dwt"; those of no weight are
        left out.
        """
        if sr.shape != hr.shape:
            raise EspanError(f"loss: sr is {tuple(sr.shape)}, but hr is {tuple(hr.shape)}")
        wider = torch.promote_types(sr.dtype, hr.dtype)
        sr, hr = sr.to(wider), hr.to(wider)
        w = self.weights
        losses: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        if w.pixel or w.alpha or w.beta:
            loss, values = frequency_loss(
                sr,
                hr,
                pixel_weight=1.0 if w.pixel else 0.0,
                alpha=w.alpha,
                beta=w.beta,
                squared=w.pixel == "l2",
            )
            losses.append(loss)
            names = ((w.pixel or "", w.pixel), ("hf", w.alpha), ("dct", w.beta))
            terms |= {name: value for (name, on), value in zip(names, values, strict=True) if on}
        if w.fft or w.dwt:
            d = hr.float() - sr.float()
            for name, weight, transform in (("fft", w.fft, spectrum), ("dwt", w.dwt, haar)):
                if weight:
                    terms[name] = transform(d).abs().mean()
                    losses.append(weight * terms[name])
        return torch.stack(losses).sum(), {name: term.detach() for name, term in terms.items()}
