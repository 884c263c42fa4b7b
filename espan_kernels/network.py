"""The whole network on the CPU as one op: its layers, function, weight packing, fake kernel."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from espan_kernels import _library, backends
from espan_kernels.packing import cpu_amx_tiles, cpu_winograd, cpu_winograd_bf16

Kernel = tuple[Tensor, Tensor]
Kind = Literal["image", "head", "conv", "pointwise", "upsample", "depthwise"]
Activation = Literal[
    "none", "silu", "relu", "mish", "add", "gate_sigmoid", "gate_linear", "gate_tanh"
]


class Layer(NamedTuple):
    """A layer of a network, as a step of a program.

    Attributes:
        kind: ``"image"``: the image itself, unshuffled, as an input of other layers.  ``"head"``:
            a convolution of the image.  ``"conv"``: a 3x3 convolution.  ``"pointwise"``: a 1x1.
            The last layer writes the result: ``"upsample"``, a 3x3 convolution, or
            ``"depthwise"``, a depthwise 3x3 of the channels of `other` and then `input`, and a 1x1;
            a pixel shuffle follows.
        input: index of the layer that it reads; -1 for the image.
        other: index of a second layer, not ``"image"``, or -1: that the activation needs, or that
            starts the sums of a pointwise layer.  A layer that is added has no activation.
        activation: what follows, for the sums o and the values x of `other`: a function of o;
            ``"add"``, o + x; ``"gate_sigmoid"``, (x + o) (sigmoid(o) - 1/2); ``"gate_linear"``,
            (x + o) g or ``"gate_tanh"``, (x + o) tanh(g), where g is the 1x1 convolution `gate` of
            o.  Pointwise layers have none, heads none that needs `other`.
        weight: (outputs, inputs, k, k); None for ``"image"``.
        bias: (outputs,), or None for zeros.  A layer that adds `other` to its sums has none.
        gate: (outputs, outputs, 1, 1) and (outputs,).
        depthwise: (inputs, 1, 3, 3), for ``"depthwise"``, whose `other` has a multiple of 16
            channels.
    """

    kind: Kind
    input: int = -1
    other: int = -1
    activation: Activation = "none"
    weight: Tensor | None = None
    bias: Tensor | None = None
    gate: Kernel | None = None
    depthwise: Tensor | None = None


def describe_network(layers: Sequence[Layer], *, unshuffle: int = 1) -> list[int]:
    """The layers without their weights, as :func:`network` takes them.

    Each is six numbers: kind, input, other, activation, outputs, kernel.
    """
    kinds, activations = get_args(Kind), get_args(Activation)
    numbers = []
    for layer in layers:
        weight = layer.weight
        numbers += [
            kinds.index(layer.kind),
            layer.input,
            layer.other,
            activations.index(layer.activation),
            3 * unshuffle * unshuffle if weight is None else weight.shape[0],
            1 if weight is None else weight.shape[-1],
        ]
    return numbers


def network(
    image: Tensor, packed: Tensor, *, layers: Sequence[int], unshuffle: int = 1, scale: int
) -> tuple[Tensor, Tensor]:
    """Upscale a batch of images with a network of the SPAN family, on the CPU.

    Equal to :func:`espan_kernels.reference.network` with the same layers, up to rounding.  The
    image streams through all layers in strips, so the memory beyond input and output is bounded for
    images of any size.  The result is bitwise the same for any number of threads.

    Args:
        image: (N, 3, H, W) on the CPU with any strides, possibly empty; float32 with values in 0-1,
            or uint8, which is divided by 255.
        packed: the result of :func:`pack_network`.
        layers: the result of :func:`describe_network`.
        unshuffle: u; the layers see u x u pixels of the image as one.  The image is extended by
            reflection at the right and the bottom to a multiple of u; H and W are at least u.
        scale: the upscaling factor s, of the pixels that the layers see.

    Returns:
        The upscaled images (N, 3, s*ceil(H/u), s*ceil(W/u)): float32, not clamped, contiguous; or,
        for a uint8 image, ``round(255 * clamp(y, 0, 1))`` in uint8, channels last.  Also the range
        of each image before clamping, (N, 3) float32: the smallest and the largest value, and 1 if
        any value was infinite or NaN, else 0.

    Raises:
        RuntimeError: if a dtype, device or shape is wrong, the layers are not a network, the
            weights do not match them, or there is no compiled library.
    """
    if _library.compiled is None:
        raise RuntimeError(f"espan::network: {_library.why_not_compiled}")
    return torch.ops.espan.network(image, packed, list(layers), unshuffle, scale)


def pack_network(
    layers: Sequence[Layer],
    *,
    unshuffle: int = 1,
    scale: int,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Pack the weights of a network for :func:`network`.

    The layout of the weights selects the arithmetic.  Winograd-transformed weights, in float32, run
    on every CPU path.  The path ``amx`` also has a layout of bf16 tiles for the matrix unit, which
    other paths reject.  It stores each weight as two bf16 halves, which keep 17 bits of each value
    and take three products, or as a single bf16 value.  The path ``avx512`` has a layout of
    Winograd-transformed weights in bf16, for processors with avx512_bf16.

    Args:
        layers: with weights in float64 or float32.  The Winograd transform of the weights is
            computed in float64 and rounded once.  The inputs of a layer that reads the unshuffled
            image are in the order of ``pixel_unshuffle``, the outputs of the last layer in that of
            ``pixel_shuffle``.
        unshuffle, scale: as for :func:`network`.
        mean: RGB in 0-1, subtracted from the image before the zero padding.
        dtype: selects the arithmetic.  float32 uses Winograd's algorithm.  bfloat16 rounds the
            factors of the products to 8 bits and sums in float32: on ``amx`` weights and feature
            maps, on ``avx512`` with avx512_bf16 those of 3x3 convolutions after Winograd's
            transforms; elsewhere it is not supported.  None is the fastest that is as accurate as
            float32 on photographs: bf16 halves on ``amx``, float32 elsewhere.

    Returns:
        A 1-D tensor, float32 or bfloat16.

    Raises:
        ValueError: if the shapes of the weights do not match, or the CPU path does not support
            ``dtype``.
    """
    bfloat16 = dtype == torch.bfloat16 and backends.cpu_has_bfloat16()
    if dtype not in (None, torch.float32) and not bfloat16:
        raise ValueError(
            f"pack_network: dtype is {dtype}; it must be float32 or, on the CPU path amx and on "
            "avx512 with avx512_bf16, bfloat16"
        )
    form: ModuleType = cpu_winograd
    if backends.cpu_path() == "amx" and dtype != torch.float32:
        form = cpu_amx_tiles
    elif bfloat16:
        form = cpu_winograd_bf16
    parts = [form.vector(torch.tensor(mean, dtype=torch.float64, device="cpu"))]
    for i, layer in enumerate(layers):
        if layer.kind == "image":
            continue
        _check(layers, i, unshuffle=unshuffle, scale=scale)
        assert layer.weight is not None
        weight = layer.weight.detach().double().cpu()
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias
        if layer.kind in ("upsample", "depthwise"):
            order = cpu_winograd.upsample_order(scale)
            weight, bias = weight[order], bias[order]
        of_image = layer.input == -1 or layers[layer.input].kind == "image"
        if of_image:
            weight = weight[:, _image_order(unshuffle)]
        halves = dtype is None or of_image
        if layer.kind == "depthwise":
            assert layer.depthwise is not None
            depthwise = layer.depthwise.detach().double().cpu()
            first = _outputs(layers, layer.other, unshuffle)
            parts.append(form.depthwise(depthwise, weight, first=first, halves=halves))
        elif layer.kind == "head":
            parts.append(form.head(weight, halves=halves))
        elif layer.kind == "pointwise":
            parts.append(form.pointwise(weight, halves=halves))
        else:
            parts.append(form.conv(weight, halves=halves))
        parts.append(form.vector(bias))
        if layer.gate is not None:
            gate = layer.gate[0].detach().double().cpu()
            parts += [form.pointwise(gate, halves=dtype is None), form.vector(layer.gate[1])]
    return torch.cat(parts)


def _outputs(layers: Sequence[Layer], index: int, unshuffle: int) -> int:
    weight = layers[index].weight
    return 3 * unshuffle * unshuffle if weight is None else weight.shape[0]


def _image_order(u: int) -> Tensor:
    """Indices that reorder the inputs of `pixel_unshuffle` to (dy, dx, colour)."""
    return torch.arange(3 * u * u, device="cpu").view(3, -1).T.flatten()


def _check(layers: Sequence[Layer], index: int, *, unshuffle: int, scale: int) -> None:
    """Raise ValueError unless the weights of a layer fit its inputs and its kind."""
    layer = layers[index]
    gated = layer.activation in ("gate_linear", "gate_tanh")
    where = f"pack_network: layer {index}, {layer.kind}"
    if layer.weight is None:
        raise ValueError(f"{where}, lacks a weight")
    if gated != (layer.gate is not None):
        raise ValueError(f"{where}, {'lacks' if gated else 'has'} a gate's convolution")
    if (layer.kind == "depthwise") != (layer.depthwise is not None):
        raise ValueError(f"{where}, {'has' if layer.depthwise is not None else 'lacks'} depthwise")
    adds = layer.activation == "add" or (layer.kind == "pointwise" and layer.other >= 0)
    if adds and layer.bias is not None:
        raise ValueError(
            f"{where}, adds layer {layer.other} and has a bias; put it into the first of the "
            "layers that are added"
        )
    inputs = _outputs(layers, layer.input, unshuffle) if layer.input >= 0 else 3
    if layer.kind == "depthwise":
        inputs += _outputs(layers, layer.other, unshuffle)
    outputs, width = layer.weight.shape[0], 3
    if layer.kind in ("upsample", "depthwise"):
        outputs = 3 * scale * scale
    if layer.kind in ("pointwise", "depthwise"):
        width = 1
    elif layer.kind == "head":
        width = layer.weight.shape[-1] // 2 * 2 + 1  # of any odd size
    gate, gate_bias = layer.gate or (None, None)
    for name, tensor, shape in [
        ("weight", layer.weight, [outputs, inputs, width, width]),
        ("bias", layer.bias, [outputs]),
        ("gate's weight", gate, [outputs, outputs, 1, 1]),
        ("gate's bias", gate_bias, [outputs]),
        ("depthwise weight", layer.depthwise, [inputs, 1, 3, 3]),
    ]:
        if tensor is not None and list(tensor.shape) != shape:
            raise ValueError(
                f"{where}: the {name} has shape {list(tensor.shape)}; it must be {shape}"
            )


@torch.library.register_fake("espan::network")
def _(
    image: Tensor, packed: Tensor, layers: Sequence[int], unshuffle: int, scale: int
) -> tuple[Tensor, Tensor]:
    n, _, height, width = image.shape
    height, width = (-(-side // unshuffle) for side in (height, width))
    # uint8 results are interleaved, as in image files; float32 results are planar.
    layout = torch.channels_last if image.dtype == torch.uint8 else torch.contiguous_format
    shape = (n, 3, scale * height, scale * width)
    return (
        torch.empty(shape, dtype=image.dtype, device=image.device, memory_format=layout),
        torch.empty((n, 3), dtype=torch.float32, device=image.device),
    )


_library.refuse_gradients("network")
