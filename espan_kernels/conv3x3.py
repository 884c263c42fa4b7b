"""A 3x3 convolution for training as an op: function, gradient, fake kernels, reference kernels."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from espan_kernels import _library, reference
from espan_kernels._checks import check_conv3x3, check_conv3x3_weight_gradient


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``F.conv2d(x, weight, bias, padding=1)``, faster on a CPU, with gradients.

    For float32 on the CPU this is Winograd's F(4x4, 3x3) (Lavin and Gray, *Fast Algorithms for
    Convolutional Neural Networks*, 2016), in the forward pass and for both gradients: 36
    multiply-adds instead of 144 for 16 outputs of a channel.  Everywhere else, under autocast, for
    forward-mode derivatives, and where compiled kernels are not installed, it is ``F.conv2d``
    itself.

    Args:
        x: (N, C, H, W), any strides; channels-last needs no copy.
        weight: (outputs, C, 3, 3), any strides.
        bias: (outputs,) or None.

    Returns:
        (N, outputs, H, W); from the kernels in channels-last memory.

    Raises:
        RuntimeError: if shapes or dtypes do not match; with the kernels, if the gradient of
            ``weight`` or ``bias`` is differentiated again.
    """
    if _library.compiled is None or not _takes(x, weight, bias):
        return reference.conv3x3(x, weight, bias)
    return torch.ops.espan.conv3x3(x, weight, bias)


def _takes(*tensors: Tensor | None) -> bool:
    if torch.is_autocast_enabled("cpu") or _library.has_tangent(*tensors):
        return False
    return all(t is None or (t.device.type == "cpu" and t.dtype == torch.float32) for t in tensors)


def conv3x3_by_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch.ops.espan.conv3x3 in plain PyTorch."""
    check_conv3x3("espan::conv3x3", x, weight, bias)
    return _channels_last(reference.conv3x3(x, weight, bias))


def conv3x3_weight_gradient_by_reference(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """torch.ops.espan.conv3x3_weight_gradient in plain PyTorch."""
    check_conv3x3_weight_gradient("espan::conv3x3_weight_gradient", grad, x)
    shape = (grad.shape[1], x.shape[1], 3, 3)
    weight = conv2d_weight(x, shape, grad, padding=1)
    return weight.contiguous(), grad.sum((0, 2, 3))


def _channels_last(t: Tensor) -> Tensor:
    # Not by `contiguous`, which keeps the strides of sizes of one.
    return t.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


def _save_inputs(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    grad = grad.contiguous(memory_format=torch.channels_last)  # both ops would copy it
    of_x, of_weight, of_bias = ctx.needs_input_grad
    grad_x = grad_weight = grad_bias = None
    if of_x:
        grad_x = torch.ops.espan.conv3x3(grad, weight.flip(2, 3).transpose(0, 1), None)
    if of_weight or of_bias:
        grad_weight, grad_bias = torch.ops.espan.conv3x3_weight_gradient(grad, x)
    return grad_x, grad_weight, grad_bias if of_bias else None


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "espan::conv3x3 has no second derivative with respect to weight and bias; F.conv2d has one"
    )


@torch.library.register_fake("espan::conv3x3")
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    check_conv3x3("espan::conv3x3", x, weight, bias)
    n, _, h, w = x.shape
    return x.new_empty(n, h, w, weight.shape[0]).permute(0, 3, 1, 2)


@torch.library.register_fake("espan::conv3x3_weight_gradient")
def _(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    check_conv3x3_weight_gradient("espan::conv3x3_weight_gradient", grad, x)
    return x.new_empty(grad.shape[1], x.shape[1], 3, 3), x.new_empty(grad.shape[1])


torch.library.register_autograd("espan::conv3x3", _backward, setup_context=_save_inputs)
torch.library.register_autograd("espan::conv3x3_weight_gradient", _no_second_derivative)
_library.implement("conv3x3", conv3x3_by_reference)
_library.implement("conv3x3_weight_gradient", conv3x3_weight_gradient_by_reference)
