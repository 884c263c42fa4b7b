"""The definition of each op in plain PyTorch, used in tests, benchmarks and as the fallback."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from espan_kernels.frequency_loss_reference import frequency_loss, frequency_loss_gradient

if TYPE_CHECKING:
    from espan_kernels.network import Layer

__all__ = ["conv3x3", "frequency_loss", "frequency_loss_gradient", "gate", "gate_backward"]


def gate(o: Tensor, x: Tensor) -> Tensor:
    """SPAB's gate, ``(o + x) * (sigmoid(o) - 1/2)``, differentiable by autograd.

    It computes ``sigmoid(o) - 1/2`` as ``tanh(o/2) / 2``, which is the same but does not lose
    digits by cancellation near zero.  In fp16, the result is about 2 dB closer to the exact one.

    Args:
        o: a floating-point tensor of any shape.
        x: a tensor like ``o``.

    Returns:
        A tensor like ``o``.
    """
    return (o + x) * (0.5 * torch.tanh(0.5 * o))


# `spab` has an argument of the name `gate`.
sigmoid_gate = gate


def gate_backward(grad: Tensor, o: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of :func:`gate` with respect to ``o`` and ``x``, given that of its result.

    With ``h = tanh(o/2) / 2``: ``grad_x = grad * h`` and
    ``grad_o = grad * (h + (o + x) * (1/4 - h**2))``.
    """
    h = 0.5 * torch.tanh(0.5 * o)
    return grad * (h + (o + x) * (0.25 - h * h)), grad * h


ACTIVATIONS = {"silu": F.silu, "relu": F.relu, "mish": F.mish}


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 3x3 convolution with zero padding of 1: (N, C, H, W) -> (N, outputs, H, W).

    Args:
        x: a floating-point tensor, (N, C, H, W).
        weight: (outputs, C, 3, 3).
        bias: (outputs,) or None.
    """
    return F.conv2d(x, weight, bias, padding=1)


def spab(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: str = "silu",
    gate: str = "sigmoid",
    gate_conv: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """A block of the family (SPAB): 3x3 convolutions with activations between them, then a gate.

    With h the result of the last convolution and g a 1x1 convolution of h, the gates are

    * ``sigmoid``: ``(h + x) * (sigmoid(h) - 1/2)``, that of :func:`gate`
    * ``linear``: ``(h + x) * g``
    * ``tanh``: ``(h + x) * tanh(g)``
    * ``none``: ``h``
    * ``act``: the activation of ``h``

    Args:
        x: (N, C, H, W), floating-point.
        weights: two or three tensors (C, C, 3, 3).
        biases: as many tensors (C,).
        activation: silu, relu or mish.
        gate: the kind of gate.
        gate_conv: the weight (C, C, 1, 1) and bias (C,) of g, for the gates linear and tanh.

    Returns:
        The block's output and its first activation, both (N, C, H, W).
    """
    function = ACTIVATIONS[activation]
    first = o = function(F.conv2d(x, weights[0], biases[0], padding=1))
    for weight, bias in zip(weights[1:-1], biases[1:-1], strict=True):
        o = function(F.conv2d(o, weight, bias, padding=1))
    h = F.conv2d(o, weights[-1], biases[-1], padding=1)
    if gate_conv is not None:
        g = F.conv2d(h, *gate_conv)
        return (h + x) * (torch.tanh(g) if gate == "tanh" else g), first
    if gate == "sigmoid":
        return sigmoid_gate(h, x), first
    return function(h) if gate == "act" else h, first


def head(
    image: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor | None,
    unshuffle: int = 1,
    activation: str = "none",
) -> Tensor:
    """The first convolution, optionally of the pixel-unshuffled image.

    Args:
        image: (N, 3, H, W), floating-point, or uint8, which is divided by 255.
        weight: (C, 3 u^2, k, k), k odd.
        bias: (C,).
        mean: (3,) in float32 or wider, subtracted before the image is rounded to the dtype of
            ``weight``, and before the zero padding; or None.
        unshuffle: the factor u.  The image is first extended at the right and the bottom, by
            reflection, to a multiple of u.
        activation: none, silu or relu.

    Returns:
        (N, C, ceil(H/u), ceil(W/u)) in the dtype of ``weight``.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    values = image.to(wide) / 255 if image.dtype == torch.uint8 else image.to(wide)
    if mean is not None:
        values = values - mean.view(1, 3, 1, 1)
    values = values.to(weight.dtype)
    height, width = image.shape[2:]
    if unshuffle > 1:
        extra = (0, -width % unshuffle, 0, -height % unshuffle)
        values = F.pixel_unshuffle(F.pad(values, extra, mode="reflect"), unshuffle)
    result = F.conv2d(values, weight, bias, padding=weight.shape[-1] // 2)
    return {"none": lambda t: t, "silu": F.silu, "relu": F.relu}[activation](result)


def tail(
    last: Tensor,
    sides: Sequence[Tensor],
    last_weight: Tensor,
    side_weight: Tensor,
    bias: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    scale: int,
) -> Tensor:
    """The last layers: the folded concat, a 3x3 convolution to 3 s^2 channels, pixel shuffle.

    Args:
        last: the output of the last block, (N, C, H, W).
        sides: the other inputs of the concat, each (N, C, H, W).
        last_weight: (C, C, 3, 3) or (C, C, 1, 1).
        side_weight: (C, len(sides) C, 1, 1).
        bias: (C,).
        up_weight: (3 s^2, C, 3, 3).
        up_bias: (3 s^2,).
        scale: the upscaling factor s.

    Returns:
        An image batch (N, 3, s H, s W), not clamped.
    """
    fused = F.conv2d(last, last_weight, bias, padding=last_weight.shape[-1] // 2)
    fused = fused + F.conv2d(torch.cat(list(sides), dim=1), side_weight)
    return F.pixel_shuffle(F.conv2d(fused, up_weight, up_bias, padding=1), scale)


def upsample(
    near: Tensor,
    last: Tensor,
    near_weight: Tensor,
    last_weight: Tensor,
    bias: Tensor,
    scale: int,
) -> Tensor:
    """The last layer of SPANV2: a 3x3 convolution of two feature maps, then the pixel shuffle.

    Args:
        near: (N, 3 s^2, H, W), which the pixel shuffle alone would make an upscaled image.
        last: the output of the last block, (N, C, H, W).
        near_weight: (3 s^2, 3 s^2, 3, 3).
        last_weight: (3 s^2, C, 3, 3).
        bias: (3 s^2,).
        scale: the upscaling factor s.

    Returns:
        An image batch (N, 3, s H, s W), not clamped.
    """
    weight = torch.cat((near_weight, last_weight), dim=1)
    pixels = F.conv2d(torch.cat((near, last), dim=1), weight, bias, padding=1)
    return F.pixel_shuffle(pixels, scale)


def network(
    image: Tensor,
    layers: "Sequence[Layer]",
    *,
    unshuffle: int = 1,
    scale: int,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
) -> Tensor:
    """A whole network, with the layers that :func:`espan_kernels.pack_network` takes.

    Args:
        image: (N, 3, H, W), floating-point with values in 0-1, or uint8, which is divided by 255.
        layers: the network.
        unshuffle: u; the layers see u x u pixels of the image as one.
        scale: the upscaling factor s, of those pixels.
        mean: RGB in 0-1, subtracted from the image before the zero padding.

    Returns:
        (N, 3, s ceil(H/u), s ceil(W/u)) in the dtype of the weights, not clamped.
    """
    dtype = next(layer.weight.dtype for layer in layers if layer.weight is not None)
    wide = torch.promote_types(dtype, torch.float32)
    x = image.to(wide) / 255 if image.dtype == torch.uint8 else image.to(wide)
    x = x - torch.tensor(mean, dtype=torch.float64).float().view(1, 3, 1, 1)
    below, right = (-side % unshuffle for side in x.shape[-2:])
    if below or right:
        x = F.pad(x, (0, right, 0, below), mode="reflect")
    image = F.pixel_unshuffle(x, unshuffle).to(dtype)
    outputs: list[Tensor] = []
    for layer in layers:
        if layer.weight is None:
            outputs.append(image)
            continue
        value = image if layer.input < 0 else outputs[layer.input]
        other = None if layer.other < 0 else outputs[layer.other]
        if layer.depthwise is not None:
            value = torch.cat([outputs[layer.other], value], dim=1)
            value = F.conv2d(value, layer.depthwise, padding=1, groups=value.shape[1])
        o = F.conv2d(value, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)
        if layer.kind == "pointwise" and other is not None:
            o = o + other
        elif layer.activation != "none":
            o = _activated(o, other, layer)
        outputs.append(o)
    return F.pixel_shuffle(outputs[-1], scale)


def _activated(o: Tensor, other: Tensor | None, layer: "Layer") -> Tensor:
    activation = layer.activation
    if activation in ("silu", "relu", "mish"):
        return getattr(F, activation)(o)
    assert other is not None
    if activation == "add":
        return o + other
    if activation == "gate_sigmoid":
        return gate(o, other)
    assert layer.gate is not None
    g = F.conv2d(o, *layer.gate)
    return (other + o) * (torch.tanh(g) if activation == "gate_tanh" else g)
