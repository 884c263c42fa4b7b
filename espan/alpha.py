"""Colours under a transparent mask."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate


def extend_colour(pixels: Tensor) -> Tensor:
    """Replace the colour of fully transparent pixels with that of the nearest visible ones.

    pixels   (H, W, 2) gray and alpha or (H, W, 4) RGB and alpha, not premultiplied; uint8, uint16
             or floating point.

    Returns a tensor of the same shape and dtype.  Pixels with alpha above 0, and alpha itself, are
    unchanged; an image without transparent pixels, or without visible ones, is returned unchanged.

    A cut-out is often stored with black under alpha 0.  A convolution at its edge sees that black
    and darkens the visible pixels.  Here the colours continue smoothly beyond the edge instead,
    filled in from a pyramid of alpha-weighted means (push-pull).
    """
    alpha = pixels[..., -1:].to(torch.int32) if pixels.dtype == torch.uint16 else pixels[..., -1:]
    hidden = alpha <= 0
    if not bool(hidden.any()) or bool(hidden.all()):
        return pixels
    premultiplied = pixels.permute(2, 0, 1)[None].contiguous().to(torch.float32)
    premultiplied[:, -1:].clamp_(min=0)
    premultiplied[:, :-1] *= premultiplied[:, -1:]
    filled = _fill(premultiplied)[0].permute(1, 2, 0)
    if not pixels.is_floating_point():
        filled = filled.round_()
    dtype = pixels.dtype if pixels.dtype != torch.uint16 else torch.int32  # uint16 has no `where`
    out = pixels.clone()
    out[..., :-1] = torch.where(hidden, filled.to(dtype), pixels[..., :-1].to(dtype))
    return out


def _fill(premultiplied: Tensor) -> Tensor:
    """(1, C + 1, H, W), colour times alpha and alpha -> (1, C, H, W), a colour everywhere.

    Where alpha is 0, the colour is interpolated from a grid of half the size.  Each value of that
    grid is the mean of 4x4 pixels.  The means overlap, so that every pixel contributes to those
    around it, wherever the grid lies.
    """
    alpha = premultiplied[:, -1:]
    known = alpha > 0
    colour = premultiplied[:, :-1] / alpha.where(known, 1)
    if bool(known.all()):
        return colour
    coarse = _fill(avg_pool2d(premultiplied, 4, 2, 1, ceil_mode=True))
    wider = interpolate(coarse, scale_factor=2, mode="bilinear")
    return torch.where(known, colour, wider[..., : alpha.shape[2], : alpha.shape[3]])
