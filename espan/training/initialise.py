"""Starting weights: every block passes its input on, and the output is upsampled bilinearly.

With random kernels the last blocks die: what they give is noise, so the tail learns from the head
and the first block instead and shrinks what comes from the others; and the gate, whose slope is
proportional to the signal near zero, shrinks small signals further until no gradient comes back.
That start (unit variance, no bias) left block 6 a deviation of 1e-6 after 1,500 steps on Set5's
butterfly, and nothing was lost with its output made constant.  With this one it is 0.34, and 0.80
of 26.46 dB on eight photographs held out are lost; the other start came to 26.19 dB.  (AdamW at
8e-4, cosine, batch 8, patch 48, GRep [2, 0], bf16, one seed.)  After 400 steps and with a mean of 2
before the gates it was at 25.98 dB, with 1 at 26.07; without the zeros for the head and the first
block, and a mean of 2, at 25.83.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from espan.models import Network
from espan.reparameterize import Kernel, Reparameterized

MIX = 0.3  # random part of a block's kernels, beside an identity of 1, in deviation of the output
OPEN = 1.0  # mean of a block's last convolution: where the gate's slope is not near zero
DETAIL = 0.01  # standard deviation that the features give the output at the start, in 0-1


@torch.no_grad()
def initialise(network: Network, images: Tensor) -> None:
    """Change a network of freshly made convolutions, plain or of `espan.branches`, in place.

    The convolutions of the blocks and the one after them become identities plus `MIX` times a
    random kernel.  Then all convolutions are scaled, in the order in which they run, so that on
    `images` (N, 3, H, W), in 0-1, their outputs have a standard deviation of 1 over space
    (layer-sequential unit variance; Mishkin and Matas, 2016), and shifted to a mean of 0, or of
    `OPEN` before a gate.  The features reach the output through the last block alone: the 1x1 after
    the concat has zeros for the head and the first block.  The first three channels of the head and
    of that 1x1 are made to carry the input, and the last convolution to upsample it bilinearly.
    """
    head, post, fuse = network.head, network.tail.post, network.tail.fuse
    upsample, channels, scale = network.tail.upsample, fuse.out_channels, network.scale
    # A bias between two convolutions of a branch makes every step of the second one move the merged
    # bias: 26.05 dB on the photographs held out after 500 steps of 1,500, and 26.20 dB without.
    _zero_biases(network)
    rgb = torch.arange(3)
    img_range = network.img_range or 1.0  # the head's input is (x - mean) * img_range

    # The mean colour tells nothing, and would make up most of the deviation over all channels.
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


@torch.no_grad()
def initialise_added(network: Network, names: Sequence[str], images: Tensor) -> None:
    """Make the blocks that were added to a trained network as `initialise` makes them, in place.

    Args:
        network: with the new blocks.
        names: of the new modules; those that are not a block's convolution are left as they are.
        images: as for `initialise`.
    """
    convs = [network.get_submodule(name) for name in names if name.startswith("blocks.")]
    for conv in convs:
        _zero_biases(conv)
        weight = _near_identity(_kernel(conv).weight)
        _set(conv, weight, weight.new_zeros(len(weight)))
    _standardise(network, convs, images)


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
    """A forward hook: scale and shift a convolution by what it gave, and return what it gives then.

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
    """Multiply the output, in each of the branches."""
    if isinstance(conv, Reparameterized):
        conv.scale_(factor)
    else:
        for parameter in conv.parameters():
            parameter.mul_(factor)


def _set(conv: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Make this the merged kernel; the other branches stay as they are, to be trained on."""
    old = _kernel(conv)
    if isinstance(conv, Reparameterized):
        conv.add_(Kernel(weight - old.weight, bias - old.bias))
    else:
        conv.load_state_dict({"weight": weight, "bias": bias})


def _bilinear(scale: int) -> Tensor:
    """(scale, 3): the weights of the three nearest pixels for each position within a pixel."""
    position = (torch.arange(scale) + 0.5) / scale - 0.5
    return (1 - (position[:, None] - torch.tensor([-1.0, 0.0, 1.0])).abs()).clamp(min=0)
