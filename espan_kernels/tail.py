"""From the features to the image as one op: packing, wrapper, meaning on packed weights."""

import torch
from torch import Tensor

from espan_kernels import _features, _library, _packing, _streamed, reference
from espan_kernels._packing import padded

OP = "espan::tail"
IMAGE_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)


def tail(
    head: Tensor,
    first: Tensor,
    last: Tensor,
    activation: Tensor | None,
    packed: Tensor,
    channels: int,
    scale: int,
    dtype: torch.dtype,
    flag: Tensor | None = None,
) -> Tensor:
    """The folded concat, a 3x3 to 3 s^2 channels and the pixel shuffle, in one launch.

    Equivalent to :func:`espan_kernels.reference.tail` with ``sides = [head, first(, activation)]``.

    Args:
        head, first, last, activation: feature maps (N, H, W, P) contiguous, of one dtype and shape.
        packed: from :func:`pack_tail`, of their dtype and for their device.
        channels: C, up to 64.
        scale: s, 1 to 4.
        dtype: of the image: uint8 (clamped to 0-1, rounded), float16, bfloat16 or float32 (not
            clamped).
        flag: int32, one element: set to 1 if any value before clamping is outside [-1, 2] or not
            finite, which no photograph gives; otherwise left as it is.

    Returns:
        (N, 3, s H, s W): uint8 with the strides of NHWC, so that its ``permute(0, 2, 3, 1)`` is an
        ordinary image; the others contiguous.

    Raises:
        RuntimeError: inputs that do not fit together; a gradient, which there is none of.
    """
    return torch.ops.espan.tail(head, first, last, activation, packed, channels, scale, dtype, flag)


def pack_tail(
    last_weight: Tensor,
    side_weight: Tensor,
    bias: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    form: str | None = None,
) -> Tensor:
    """Pack the weights of :func:`espan_kernels.reference.tail` for :func:`tail`.

    Args and result: as of :func:`espan_kernels.pack_spab`.
    """
    channels, sides = bias.shape[0], side_weight.shape[1] // bias.shape[0]
    scale = round((up_bias.shape[0] / 3) ** 0.5)
    _check(channels, scale, sides)
    _packing.check_dtype("pack_tail", dtype)
    shapes = {
        "last_weight": (last_weight, (channels, channels, 3, 3)),
        "side_weight": (side_weight, (channels, sides * channels, 1, 1)),
        "up_weight": (up_weight, (3 * scale * scale, channels, 3, 3)),
        "up_bias": (up_bias, (3 * scale * scale,)),
    }
    for name, (weight, shape) in shapes.items():
        _packing.check_weight("pack_tail", name, weight, shape)
    if _packing.choose_form("pack_tail", form, device) == "cpu":
        order = _streamed.upsample_order(scale)
        layers: list[tuple[Tensor, Tensor | None]] = [
            (_streamed.head(side), None) for side in side_weight.split(channels, dim=1)
        ]
        layers.append((_streamed.winograd(last_weight), bias))
        layers.append((_streamed.winograd(up_weight[order]), up_bias[order]))
        return _streamed.join([], layers).view(dtype).to(device)
    wide = [t.detach().double().cpu() for t in (last_weight, side_weight, up_weight)]
    p = padded(channels)
    biases = [
        _packing.pad(bias.detach().double().cpu(), p)[_packing.output_order(p)],
        _up_rows(up_bias.detach().double().cpu(), scale),
    ]
    streamed = _pack(*wide, streamed=True) if p <= _packing.MAX_STREAMED else []
    return _packing.join(_pack(*wide), biases, dtype, streamed).to(device)


def _up_rows(rows: Tensor, scale: int) -> Tensor:
    """The rows (rgb, dy, dx) of the upsampling convolution in the order of the output tiles.

    Lane q of a quad has the 3 r values of r neighbouring pixels of the result: r = s for s > 2, so
    that it stores a row of its pixel's s x s; else one pixel, q-th of s x s.
    """
    run = scale if scale > 2 else 1
    tiles = 6 if scale > 2 else 2
    lanes = rows.view(3, scale * scale // run, run, -1).permute(1, 2, 0, 3)  # q, pixel, rgb
    lanes = _packing.pad(lanes.reshape(scale * scale // run, 3 * run, -1), 4, 2 * tiles)
    # tile j, column (q, e) is value 2 j + e of lane q
    order = lanes.view(4, tiles, 2, -1).transpose(0, 1)
    return order.reshape(8 * tiles, *rows.shape[1:])


def _pack(last: Tensor, side: Tensor, up: Tensor, *, streamed: bool = False) -> list[Tensor]:
    channels = last.shape[0]
    p = padded(channels)
    order = _packing.output_order(p)
    conv3x3 = _packing.streamed_conv3x3 if streamed else _packing.conv3x3
    conv1x1 = _packing.streamed_conv1x1 if streamed else _packing.conv1x1
    sides = [_packing.pad(s.flatten(1), p, p)[order] for s in side.split(channels, 1)]
    scale = round((up.shape[0] / 3) ** 0.5)
    rows = _up_rows(up.flatten(1), scale).view(-1, channels, 9)
    rows = _packing.pad(rows.transpose(0, 1), p).transpose(0, 1).reshape(-1, p, 3, 3)
    last = _packing.pad(last, p, p)[order]
    return [conv3x3(last), *(conv1x1(s) for s in sides), conv3x3(rows)]


def _shapes(channels: int, scale: int, sides: int) -> list[tuple[int, ...]]:
    return [
        (channels, channels, 3, 3),
        (channels, sides * channels, 1, 1),
        (3 * scale * scale, channels, 3, 3),
    ]


def _pack_numbers(channels: int, scale: int, sides: int) -> Tensor:
    shapes = _shapes(channels, scale, sides)
    counts = [torch.Size(shape).numel() for shape in shapes]
    numbers = torch.arange(1, sum(counts) + 1).split(counts)
    views = (n.view(shape) for n, shape in zip(numbers, shapes, strict=True))
    return torch.cat(_pack(*views))


def _bias_numbers(scale: int) -> Tensor:
    return _up_rows(torch.arange(1, 3 * scale * scale + 1), scale)


def _counts(channels: int, scale: int, sides: int) -> tuple[int, int, int]:
    """Weights, biases and streamed weights in a packed tensor."""
    p, up = padded(channels), 48 if scale > 2 else 16
    wide = _packing.streamed_size(p, p) + _packing.streamed_size(p, up)
    streamed = wide + sides * p * p if p <= _packing.MAX_STREAMED else 0
    return p * (9 * p + sides * p + 9 * up), p + up, streamed


def unpack(
    packed: Tensor, channels: int, scale: int, sides: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """last_weight, side_weight, bias, up_weight and up_bias as they are in ``packed``."""
    if _form(packed, packed.dtype, channels, scale, sides) == "cpu":
        return _unpack_streamed(packed, channels, scale, sides)
    p = padded(channels)
    flat, biases = _packing.split(packed, *_counts(channels, scale, sides)[:2])
    order = _packing.inverse(_pack_numbers, channels, scale, sides).to(packed.device)
    shapes = _shapes(channels, scale, sides)
    parts = flat[order].split([torch.Size(shape).numel() for shape in shapes])
    last, side, up = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
    bias = _packing.natural(biases[:p], p)[:channels]
    up_bias = biases[p:][_packing.inverse(_bias_numbers, scale).to(packed.device)]
    return last, side, bias.to(packed.dtype), up, up_bias.to(packed.dtype)


def _unpack_streamed(
    packed: Tensor, channels: int, scale: int, sides: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *side_layers, (last, bias), (up, up_bias) = _streamed.split(
        packed, _layers(channels, scale, sides)
    )
    side = torch.cat([_streamed.from_head(rows, 1) for rows, _ in side_layers], dim=1)
    back = _streamed.upsample_order(scale)[: 3 * scale * scale].argsort().to(packed.device)
    parts = (
        _streamed.from_winograd(last),
        side,
        bias,
        _streamed.from_winograd(up)[back],
        up_bias[back],
    )
    return tuple(part.to(packed.dtype) for part in parts)  # type: ignore[return-value]


def _layers(channels: int, scale: int, sides: int) -> list[tuple[int, int]]:
    wide = [(36 * channels, channels), (36 * channels, 3 * scale * scale)]
    return [(channels, channels)] * sides + wide


def _form(packed: Tensor, dtype: torch.dtype, channels: int, scale: int, sides: int) -> str:
    cuda = _counts(channels, scale, sides)
    return _packing.form_of(OP, packed, dtype, cuda, _layers(channels, scale, sides))


def _check(channels: int, scale: int, sides: int) -> None:
    _packing.check_channels(OP, channels)
    if not 1 <= scale <= 4:
        raise RuntimeError(f"{OP}: scale is {scale}; it must be 1 to 4")
    if sides not in (2, 3):
        raise RuntimeError(f"{OP}: the concat has {sides} sides; it must have 2 or 3")


def _check_inputs(
    head: Tensor,
    first: Tensor,
    last: Tensor,
    activation: Tensor | None,
    packed: Tensor,
    channels: int,
    scale: int,
    dtype: torch.dtype,
    flag: Tensor | None,
) -> None:
    sides = 2 if activation is None else 3
    _check(channels, scale, sides)
    _features.check(OP, "last", last, padded(channels))
    others = {"head": head, "first": first, "activation": activation}
    for name, t in others.items():
        if t is not None:
            _features.check_like(OP, name, t, "last", last)
    _features.check_device(OP, "packed", packed, "last", last)
    _form(packed, last.dtype, channels, scale, sides)
    if dtype not in IMAGE_DTYPES:
        raise RuntimeError(f"{OP}: dtype is {dtype}; it must be uint8, float16, bfloat16, float32")
    if flag is not None:
        _features.check_device(OP, "flag", flag, "last", last)
        if flag.dtype != torch.int32 or flag.numel() != 1:
            raise RuntimeError(f"{OP}: flag must be one element in int32")


def _reference(
    head: Tensor,
    first: Tensor,
    last: Tensor,
    activation: Tensor | None,
    packed: Tensor,
    channels: int,
    scale: int,
    dtype: torch.dtype,
    flag: Tensor | None,
) -> Tensor:
    _check_inputs(head, first, last, activation, packed, channels, scale, dtype, flag)
    sides = [head, first] if activation is None else [head, first, activation]
    maps = [_features.to_nchw(t, channels) for t in (last, *sides)]
    weights = unpack(packed, channels, scale, len(sides))
    image = reference.tail(maps[0], maps[1:], *weights, scale)
    if flag is not None:
        flag |= ~((image >= -1) & (image <= 2)).all()
    if dtype != torch.uint8:
        return image.to(dtype).contiguous()
    levels = (image.float().nan_to_num(0).clamp(0, 1) * 255).round()
    return levels.to(torch.uint8).contiguous(memory_format=torch.channels_last)


@torch.library.register_fake(OP)
def _(
    head: Tensor,
    first: Tensor,
    last: Tensor,
    activation: Tensor | None,
    packed: Tensor,
    channels: int,
    scale: int,
    dtype: torch.dtype,
    flag: Tensor | None,
) -> Tensor:
    _check_inputs(head, first, last, activation, packed, channels, scale, dtype, flag)
    n, height, width, _ = last.shape
    shape = (n, scale * height, scale * width, 3)
    if dtype == torch.uint8:
        return last.new_empty(shape, dtype=dtype).permute(0, 3, 1, 2)
    return last.new_empty(n, 3, *shape[1:3], dtype=dtype)


_library.implement("tail", _reference)
_library.refuse_gradients("tail")
