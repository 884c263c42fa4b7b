"""The frequency-aware loss as an op: functions, gradient, fake kernels, reference kernels."""

from typing import Any

import torch
from torch import Tensor

from espan_kernels import _library, reference
from espan_kernels._checks import check_frequency_loss
from espan_kernels.frequency_loss_reference import DCT_WEIGHT, HF_WEIGHT


def frequency_loss(
    sr: Tensor,
    hr: Tensor,
    *,
    pixel: float = 1.0,
    hf: float = HF_WEIGHT,
    dct: float = DCT_WEIGHT,
    squared: bool = True,
) -> tuple[Tensor, Tensor]:
    """Compute the frequency-aware loss, ``pixel * L + hf * HF + dct * DCT``.

    These are equations 7 to 9 of the ESPAN paper.  With ``d = hr - sr``:

    * ``L = mean(d ** 2)``, or ``mean(|d|)`` unless ``squared``;
    * ``HF = mean(|d - B(d)|)``, where ``B`` is a 5x5 Gaussian blur of sigma 1.1 (Eq. 7);
    * ``DCT = mean(|DCT(d)|)``, with the orthonormal DCT-II of the 8x8 blocks of each channel
      (Eq. 8);
    * the weighted sum is Eq. 9.

    Borders are reflected, and so are edges that are not a multiple of 8.  The means are over all
    elements, that of the DCT over all coefficients.  The derivative of ``|.|`` at 0 is 0.
    Arithmetic is float32.  Equivalent to :func:`espan_kernels.reference.frequency_loss`, which
    also computes forward-mode derivatives.

    The loss is differentiable once.  The backward pass reads ``sr`` and ``hr`` again.  For 16-bit
    types, forward and backward move 10 bytes per element; storing a float32 gradient would move 14
    and occupy 4.  For float32, either way moves 20.  If the incoming gradient is known, call
    :func:`frequency_loss_gradient` instead, which moves 6 bytes (16-bit) or 12 (float32).

    Args:
        sr: (N, C, H, W) in any memory layout, at least one element; float32, float16 or bfloat16.
            The default weights are meant for values in 0 to 1.
        hr: a tensor with the shape, dtype and device of ``sr``.  Under autocast the dtypes may
            differ; the wider one is used.
        pixel: weight of L; 0 leaves it out of the sum.
        hf: weight of HF, alpha in the paper.
        dct: weight of DCT, beta in the paper.
        squared: whether L is the mean square, as in Eq. 9, or the mean absolute difference.

    Returns:
        The loss, of shape (), and the three terms before weighting, of shape (3,): L, HF, DCT.
        Both are float32; the terms have no gradient.  NaN and infinity propagate.  The result
        does not depend on the number of threads.

    Raises:
        RuntimeError: if a dtype or shape is unsupported, ``hr`` does not match ``sr``, or a second
            derivative is requested.
    """
    sr, hr = _library.promote_under_autocast(sr, hr)
    if _library.has_tangent(sr, hr):
        return reference.frequency_loss(sr, hr, pixel=pixel, hf=hf, dct=dct, squared=squared)
    return torch.ops.espan.frequency_loss(sr, hr, pixel, hf, dct, squared)


def frequency_loss_gradient(
    sr: Tensor,
    hr: Tensor,
    scale: Tensor,
    *,
    pixel: float = 1.0,
    hf: float = HF_WEIGHT,
    dct: float = DCT_WEIGHT,
    squared: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the loss, its terms and ``scale`` times its gradient in one pass over the images.

    The gradient is with respect to ``sr``.  The function itself is not differentiable; pass the
    gradient to ``sr.backward``::

        scale = scaler.scale(torch.ones((), device=sr.device))  # torch.ones without a GradScaler
        loss, terms, gradient = frequency_loss_gradient(sr, hr, scale)
        sr.backward(gradient)

    ``scale`` is applied before the gradient is rounded to the dtype of ``sr``.  Without it, the
    factor 1/N for 16x3x512x512 elements is 8e-8, about the smallest number in float16.

    Args:
        sr: as for :func:`frequency_loss`.
        hr: as for :func:`frequency_loss`.
        scale: a float32 tensor with one element, on the device of ``sr``.
        pixel, hf, dct, squared: as for :func:`frequency_loss`.

    Returns:
        The loss and the terms, as :func:`frequency_loss` returns them, and the gradient: a tensor
        like ``sr``, with the same strides if ``sr`` is dense.

    Raises:
        RuntimeError: as for :func:`frequency_loss`.
    """
    sr, hr = _library.promote_under_autocast(sr.detach(), hr.detach())
    return torch.ops.espan.frequency_loss_gradient(sr, hr, scale.detach(), pixel, hf, dct, squared)


def frequency_loss_by_reference(
    sr: Tensor, hr: Tensor, pixel: float, hf: float, dct: float, squared: bool
) -> tuple[Tensor, Tensor]:
    """torch.ops.espan.frequency_loss in plain PyTorch."""
    check_frequency_loss("espan::frequency_loss", sr, hr)
    return reference.frequency_loss(sr, hr, pixel, hf, dct, squared)


def frequency_loss_gradient_by_reference(
    sr: Tensor, hr: Tensor, scale: Tensor, pixel: float, hf: float, dct: float, squared: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """torch.ops.espan.frequency_loss_gradient in plain PyTorch."""
    check_frequency_loss("espan::frequency_loss_gradient", sr, hr, scale)
    loss, terms, gradient = reference.frequency_loss_gradient(
        sr, hr, scale.reshape(()), pixel, hf, dct, squared
    )
    return loss, terms, _library.strides_like(sr, gradient)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    sr, hr, *ctx.options = inputs
    ctx.save_for_backward(sr, hr)
    ctx.mark_non_differentiable(output[1])


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "espan::frequency_loss has no second derivative; "
        "espan_kernels.reference.frequency_loss has one, by autograd"
    )


def register_gradient(namespace: str) -> None:
    """Make ``namespace::frequency_loss`` differentiable once, using its ``_gradient`` op."""
    ops = getattr(torch.ops, namespace)

    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        sr, hr = ctx.saved_tensors
        grad_sr = ops.frequency_loss_gradient(sr, hr, grad, *ctx.options)[2]
        grad_hr = -grad_sr if ctx.needs_input_grad[1] else None
        return grad_sr, grad_hr, None, None, None, None

    torch.library.register_autograd(f"{namespace}::frequency_loss", backward, setup_context=_save)
    torch.library.register_autograd(f"{namespace}::frequency_loss_gradient", _no_second_derivative)


@torch.library.register_fake("espan::frequency_loss")
def _(
    sr: Tensor, hr: Tensor, pixel: float, hf: float, dct: float, squared: bool
) -> tuple[Tensor, Tensor]:
    check_frequency_loss("espan::frequency_loss", sr, hr)
    return sr.new_empty((), dtype=torch.float32), sr.new_empty(3, dtype=torch.float32)


@torch.library.register_fake("espan::frequency_loss_gradient")
def _(
    sr: Tensor,
    hr: Tensor,
    scale: Tensor,
    pixel: float,
    hf: float,
    dct: float,
    squared: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    check_frequency_loss("espan::frequency_loss_gradient", sr, hr, scale)
    loss = sr.new_empty((), dtype=torch.float32)
    return loss, sr.new_empty(3, dtype=torch.float32), torch.empty_like(sr)


register_gradient("espan")
_library.implement("frequency_loss", frequency_loss_by_reference)
_library.implement("frequency_loss_gradient", frequency_loss_gradient_by_reference)
