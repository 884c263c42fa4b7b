"""Initial weights, average and precision of a network in training."""

from __future__ import annotations

import copy
import functools
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from espan.branches import GRepConv, Kind, conv_factory
from espan.models import ESPAN, SPAN_NORMALIZATION, Architecture, Network, Normalization
from espan.reparameterize import collapse
from espan.training.initialise import initialise
from espan.training.steps import update_average

SMALL = Architecture(channels=6, convs=(3, 2), scale=2, head_kernel=9)


def grep_network(
    sequences: tuple[int, int] = (2, 0), architecture: Architecture = SMALL, seed: int = 0
) -> Network:
    torch.manual_seed(seed)
    return Network(architecture, conv=functools.partial(GRepConv, sequences=sequences))


def test_the_average_is_over_branches() -> None:
    network = grep_network((2, 2))
    average = copy.deepcopy(network).requires_grad_(False)
    start = collapse(network).state_dict()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    expected = [
        9 / 11 * new + 2 / 11 * old
        for new, old in zip(network.parameters(), average.parameters(), strict=True)
    ]
    update_average(average, network, 1, decay=0.999)
    for mean, value in zip(average.parameters(), expected, strict=True):
        torch.testing.assert_close(mean, value)
    merged, end = collapse(average).state_dict(), collapse(network).state_dict()
    name = "blocks.0.convs.0.weight"
    mean_of_merged = 9 / 11 * end[name] + 2 / 11 * start[name]
    assert (merged[name] - mean_of_merged).abs().max() > 0.1  # averaging merged kernels differs

    before = [p.clone() for p in average.parameters()]
    update_average(average, network, 10**6, decay=0.999)
    for mean, old, new in zip(average.parameters(), before, network.parameters(), strict=True):
        torch.testing.assert_close(mean, 0.999 * old + 0.001 * new)

    update_average(average, network, 1, decay=0)
    for mean, new in zip(average.parameters(), network.parameters(), strict=True):
        assert torch.equal(mean, new)


@pytest.mark.parametrize("norm", [None, SPAN_NORMALIZATION])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_network_starts_near_bilinear_upsampling(norm: Normalization, scale: int) -> None:
    network = grep_network(architecture=SMALL.replace(scale=scale, normalization=norm))
    images = F.interpolate(torch.rand(4, 3, 6, 6), scale_factor=4, mode="bilinear")
    expected = F.interpolate(images, scale_factor=scale, mode="bilinear")
    inner = np.s_[:, :, scale:-scale, scale:-scale]
    initialise(network, images)
    with torch.no_grad():
        assert 0.001 < (network(images) - expected)[inner].std() < 0.1
        upsample = network.tail.upsample
        upsample.wide.weight[:, 3:] -= upsample.merged().weight[:, 3:]  # without any feature
        torch.testing.assert_close(network(images)[inner], expected[inner], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["grep", "plain", "edbb"])
def test_initially_every_block_passes_signals_on(kind: Kind) -> None:
    """Each block passes on signals of half a unit or more, with a gate slope that is not near zero;
    the features reach the output through the last block.
    """
    torch.manual_seed(0)
    network = Network(ESPAN, conv=conv_factory(kind))
    images = F.interpolate(torch.rand(4, 3, 6, 6), scale_factor=4, mode="bilinear")
    initialise(network, images)
    sizes: list[float] = []
    gated: list[Tensor] = []
    for block in network.blocks:
        last_conv = block.get_submodule("convs")[-1]
        last_conv.register_forward_hook(lambda _m, _i, o: gated.append(o.mean(dim=(0, 2, 3))))
        block.register_forward_hook(
            lambda _m, _i, o: sizes.append(o[0].std(dim=(2, 3)).mean().item())
        )
    inputs: list[Tensor] = []
    network.tail.register_forward_pre_hook(lambda _m, i: inputs.extend(i))
    with torch.no_grad():
        network(images)
        assert len(sizes) == 6
        assert min(sizes) > 0.5
        assert max(sizes) < 1.5
        torch.testing.assert_close(torch.stack(gated), torch.ones(6, 32), rtol=0, atol=1e-3)
        head, last, first, _ = inputs
        colour = torch.cat([head[:, :3], torch.zeros_like(head[:, 3:])], dim=1)
        nothing = torch.zeros_like(head)
        everything = network.tail(head, last, first, last)
        without_last = network.tail(head, nothing, first, nothing)
        torch.testing.assert_close(without_last, network.tail(colour, nothing, nothing, nothing))
    assert (everything - without_last).std() > 0.003


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("no", torch.float32)])
def test_mixed_precision_applies_to_convolutions_only(precision: str, dtype: torch.dtype) -> None:
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    network = grep_network()
    dtypes = []
    network.head.register_forward_hook(lambda _m, _i, output: dtypes.append(output.dtype))
    prepared = accelerator.prepare(network)
    output = prepared(torch.rand(1, 3, 8, 8))
    accelerator.backward(output.square().mean())
    assert dtypes == [dtype]
    assert output.dtype == torch.float32
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in network.parameters())


@pytest.mark.parametrize("kind", ["grep", "repvgg", "edbb", "rrrb", "repmbconv"])
def test_gradients_share_no_memory(kind: Kind) -> None:
    """Clipping and accumulation modify gradients in place: each must be modified once."""
    conv = conv_factory(kind, grep=(2, 2))(6, 6, 3)
    for _ in range(2):
        conv(torch.rand(1, 6, 8, 8)).square().sum().backward()
        gradients = [p.grad for p in conv.parameters() if p.grad is not None]
        spans = sorted((g.data_ptr(), g.data_ptr() + g.nbytes) for g in gradients)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
