"""Initial weights with which every block passes its input on and the output is bilinear upsampling.

An experiment enables them with ``init = "bilinear"``; the paper does not describe its own.

With random kernels the last blocks die.  Their output is noise, so the tail learns from the head
and the first block and shrinks the others.  The gate, whose slope near zero is proportional to the
signal, shrinks small signals further, until no gradient comes back.  From such a start (unit
variance, no bias) the output of block 6 had a standard deviation of 1e-6 after 1,500 steps on
Set5's butterfly, and replacing it by a constant cost nothing.  From this start it is 0.34, and
replacing it by a constant costs 0.80 dB of the 26.46 dB on eight held-out photographs; the other
start reached 26.19 dB.
(AdamW at 8e-4, cosine, batch 8, patch 48, GRep [2, 0], bf16, one seed.)  After 400 steps, a mean of
2 before the gates had reached 25.98 dB, a mean of 1 26.07 dB; a mean of 2 without the zeros for the
head and the first block, 25.83 dB.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from espan.errors import EspanError
from espan.models import Architecture, Network
from espan.reparameterize import Kernel, Reparameterized

MIX = 0.3  # standard deviation of a block's random kernels at their output; the identity has 1
OPEN = 1.0  # mean of a block's last convolution, where the slope of the gate is not near zero
DETAIL = 0.01  # standard deviation that the features add to the output, in 0-1


@torch.no_grad()
def initialise(network: Network, images: Tensor) -> None:
    """Initialise a new network of convolutions, plain or of `espan.branches`, in place.

    The convolutions of the blocks and the one after them become identities plus `MIX` times a
    random kernel.  Then all convolutions are scaled, in the order in which they run, so that their
    outputs for `images` (N, 3, H, W), in 0-1, have a standard deviation of 1 over space
    (layer-sequential unit variance; Mishkin and Matas, 2016), and shifted to a mean of 0, or of
    `OPEN` before a gate.  The features reach the output through the last block alone: the 1x1 after
    the concat has zeros for the head and the first block.  The first three channels of the head and
    of that 1x1 carry the input, and the last convolution upsamples it bilinearly.
    """
    check_architecture(network.architecture)
    head, post, fuse = network.head, network.tail.post, network.tail.fuse
    upsample, channels, scale = network.tail.upsample, fuse.out_channels, network.scale
    # If there is a bias between two convolutions of a branch, each step of the second one moves the
    # merged bias: 26.05 dB on the held-out photographs after 500 of 1,500 steps; 26.20 dB without.
    _zero_biases(network)
    rgb = torch.arange(3)
    img_range = network.img_range or 1.0  # the head's input is (x - mean) * img_range

    # The mean colour carries no detail, but would dominate the deviation over all channels.
    factor = 1 / head((images - images.mean()) * img_range).std()
    weight = factor * _kernel(head).weight
    bias = weight.new_zeros(channels)
    weight[rgb] = 0
    weight[rgb, rgb, weight.shape[2] // 2, weight.shape[3] // 2] = 1 / img_range
    bias[rgb] = network.mean.flatten()
    _scale(head, factor)
    _set(head, weight, bias)

    inner = [conv for block in network.blocks for conv in block.get_submodule("convs").children()]
    inner.append(post)
    for conv in inner:
        _set(conv, _near_identity(_kernel(conv).weight), weight.new_zeros(channels))
    fuse.weight[:, :channels] = 0
    fuse.weight[:, 2 * channels : 3 * channels] = 0
    _standardise(network, [*inner, fuse, upsample], images)

    assert fuse.bias is not None
    fuse.weight[rgb] = 0
    fuse.weight[rgb, rgb] = 1
    fuse.bias[rgb] = 0

    weight = DETAIL * _kernel(upsample).weight
    weight[:, rgb] = 0
    taps = _bilinear(scale)
    phases = weight.view(3, scale, scale, *weight.shape[1:])
    for colour in range(3):
        phases[colour, :, :, colour] = taps[:, None, :, None] * taps[None, :, None, :]
    _set(upsample, weight, weight.new_zeros(len(weight)))


def check_architecture(a: Architecture) -> None:
    """Raise EspanError for a network that has no such start: its parts are SPAN's and ESPAN's."""
    if (a.gate, a.unshuffle, a.stem, a.tail) != ("sigmoid", 1, "conv", "conv"):
        raise EspanError(
            'init = "bilinear" is for networks such as SPAN and ESPAN, with the gate "sigmoid", '
            f'the tail "conv", the stem "conv", unshuffle 1; this one has {a.gate!r}, {a.tail!r}, '
            f'{a.stem!r} and {a.unshuffle}; use init = "pytorch"'
        )


@torch.no_grad()
def initialise_added(network: Network, names: Sequence[str], images: Tensor) -> None:
    """Initialise blocks that were added to a trained network as `initialise` does, in place.

    Args:
        network: the network with the new blocks.
        names: of the new modules; those that are not convolutions of a block are left unchanged.
        images: as for `initialise`.
    """
    check_architecture(network.architecture)
    convs = [network.get_submodule(name) for name in names if name.startswith("blocks.")]
    for conv in convs:
        _zero_biases(conv)
        weight = _near_identity(_kernel(conv).weight)
        _set(conv, weight, weight.new_zeros(len(weight)))
    _standardise(network, convs, images)


@torch.no_grad()
def initialise_upsampling(new: nn.Module, old: nn.Module, scale: int, before: int) -> None:
    """Initialise the last convolution for another scale: the phases of the old one, interpolated.

    Args:
        new: (s*s*3 outputs), changed in place.
        old: (t*t*3 outputs).
        scale, before: s and t.
    """
    position = ((torch.arange(scale) + 0.5) * before / scale - 0.5).clamp(0, before - 1)
    taps = (1 - (position[:, None] - torch.arange(before)).abs()).clamp(min=0)  # (s, t)

    def at_scale(values: Tensor) -> Tensor:
        phases = values.unflatten(0, (3, before, before))
        weights = taps.to(values.dtype)
        return torch.einsum("iy,jx,cyx...->cij...", weights, weights, phases).flatten(0, 2)

    weight, bias = _kernel(old)
    _set(new, at_scale(weight), at_scale(bias))


def _standardise(network: Network, convs: Sequence[nn.Module], images: Tensor) -> None:
    """Scale and shift convolutions, in the order in which they run."""
    before_gate = {id(block.get_submodule("convs")[-1]) for block in network.blocks}  # type: ignore[index]
    hooks = [
        conv.register_forward_hook(
            functools.partial(_standardise_one, mean=OPEN if id(conv) in before_gate else 0.0)
        )
        for conv in convs
    ]
    network(images)
    for hook in hooks:
        hook.remove()


def _zero_biases(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and part.bias is not None:
            part.bias.zero_()


def _near_identity(weight: Tensor) -> Tensor:
    """An identity plus `weight` (C, C, k, k), scaled to give `MIX` for an input of unit size."""
    weight = weight * (MIX / (weight.std() * weight[0].numel() ** 0.5))
    every, centre = torch.arange(len(weight)), weight.shape[-1] // 2
    weight[every, every, centre, centre] += 1
    return weight


def _standardise_one(conv: nn.Module, _: object, output: Tensor, *, mean: float) -> Tensor:
    """A forward hook: scale and shift a convolution and its output.

    The deviation over space, averaged over the channels, becomes 1; each channel's mean `mean`.
    """
    factor = 1 / output.std(dim=(0, 2, 3)).mean()
    shift = mean - factor * output.mean(dim=(0, 2, 3))
    _scale(conv, factor)
    weight, bias = _kernel(conv)
    _set(conv, weight, bias + shift)
    return output * factor + shift[:, None, None]


def _kernel(conv: nn.Module) -> Kernel:
    if isinstance(conv, Reparameterized):
        return conv.merged()
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    return Kernel(conv.weight.clone(), conv.bias.clone())


def _scale(conv: nn.Module, factor: Tensor) -> None:
    """Multiply the output by a factor, in every branch."""
    if isinstance(conv, Reparameterized):
        conv.scale_(factor)
    else:
        for parameter in conv.parameters():
            parameter.mul_(factor)


def _set(conv: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Make this the merged kernel.  Only the k x k branch changes."""
    old = _kernel(conv)
    if isinstance(conv, Reparameterized):
        conv.add_(Kernel(weight - old.weight, bias - old.bias))
    else:
        conv.load_state_dict({"weight": weight, "bias": bias})


def _bilinear(scale: int) -> Tensor:
    """(scale, 3): the weights of the three nearest pixels for each position within a pixel."""
    position = (torch.arange(scale) + 0.5) / scale - 0.5
    return (1 - (position[:, None] - torch.tensor([-1.0, 0.0, 1.0])).abs()).clamp(min=0)
