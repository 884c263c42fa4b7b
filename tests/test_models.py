"""Architectures, and the cost and the output of their networks."""

import dataclasses

import pytest
import torch
from torch import nn

from espan.errors import EspanError
from espan.models import (
    ESPAN,
    SPAN,
    SPAN_NORMALIZATION,
    Architecture,
    Network,
    architecture_from_name,
    complexity,
)

# (architecture, parameters, GMACs at 256x256) from Tab. 2 to 5 of the paper, which rounds some
# values and truncates others; where its GMACs differ (c24d7, c22d7, c22d8), the exact count.
COUNTS = [
    ("c32d5", 166_864, 10.89),
    ("c32d5k9", 173_776, 11.34),
    ("espan", 192_272, 12.56),
    ("span", 150_688, 9.83),
    ("c24d6", 112_368, 7.33),
    ("c24d7", 127_992, 8.35),
    ("c22d7", 108_442, 7.07),
    ("c22d8", 121_576, 7.93),
    ("c28d5", 129_436, 8.45),
    ("c30d5", 147_558, 9.63),
]


@pytest.mark.parametrize(("name", "parameters", "gmacs"), COUNTS)
def test_counts(name, parameters, gmacs):
    counts = complexity(architecture_from_name(name))
    assert counts.parameters == parameters
    assert abs(counts.macs / 1e9 - gmacs) < 0.01


@pytest.mark.parametrize(("name", "millions"), [("span", 41.68), ("espan", 45.09)])
def test_activations(name, millions):
    assert round(complexity(architecture_from_name(name)).activations / 1e6, 2) == millions


def test_macs_equal_those_of_the_executed_convolutions():
    counted = 0

    def count(module, inputs, output):
        nonlocal counted
        counted += output.shape[2] * output.shape[3] * module.weight.numel()

    network = Network(SPAN.replace(scale=3))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    network(torch.rand(1, 3, 5, 7))
    assert counted == complexity(SPAN.replace(scale=3), 5, 7).macs


@pytest.mark.parametrize("architecture", [ESPAN, SPAN, Architecture(16, (2, 3), head_kernel=5)])
def test_receptive_radius(architecture, make_network):
    """A pixel at the radius matters, one beyond it does not."""
    network = make_network(architecture).double()
    radius = architecture.receptive_radius
    x = torch.rand(1, 3, 1, 2 * radius + 3, dtype=torch.float64)
    x = x.expand(1, 3, 2 * radius + 3, -1).clone()
    centre = slice(architecture.scale * (radius + 1), architecture.scale * (radius + 2))
    before = network(x)[..., centre, centre]
    beyond, at = x.clone(), x.clone()
    beyond[..., 0, :] += 10  # a row, because a corner's effect can be lost in rounding
    at[..., 1, :] += 10
    assert torch.equal(network(beyond)[..., centre, centre], before)
    assert not torch.equal(network(at)[..., centre, centre], before)


def test_espan_radius_is_23():
    assert ESPAN.receptive_radius == 23


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("concat_last", ["output", "activation"])
@pytest.mark.parametrize("convs", [(3,), (2,), (3, 3, 2)])
def test_any_member_runs(scale, concat_last, convs):
    network = Network(Architecture(8, convs, scale=scale, concat_last=concat_last))
    assert network(torch.rand(2, 3, 1, 6)).shape == (2, 3, scale, 6 * scale)


def test_span_follows_its_published_code(make_network):
    """An independent implementation after the SPAN code, with its in-place activation."""
    network = make_network(SPAN)
    x = torch.rand(1, 3, 9, 8)

    def block(b, x):
        silu = nn.SiLU(inplace=True)
        o1 = b.convs[0](x)
        o2 = b.convs[1](silu(o1))
        o3 = b.convs[2](silu(o2))
        return (o3 + x) * (torch.sigmoid(o3) - 0.5), o1

    f = network.head((x - torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)) * 255.0)
    b1, _ = block(network.blocks[0], f)
    b = b1
    for module in network.blocks[1:]:
        b, o1 = block(module, b)
    tail = network.tail
    out = tail.fuse(torch.cat([f, tail.post(b), b1, o1], 1))
    torch.testing.assert_close(
        network(x), torch.pixel_shuffle(tail.upsample(out), 4), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("architecture", [ESPAN, SPAN])
def test_dict_round_trip(architecture):
    assert Architecture.from_dict(architecture.to_dict()) == architecture


def test_names():
    assert architecture_from_name("c22d8k9x2") == Architecture(22, (3,) * 8, scale=2, head_kernel=9)
    assert architecture_from_name("span").normalization == SPAN_NORMALIZATION


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Architecture(0, (3,)), "channels must be an integer >= 1, got 0"),
        (lambda: Architecture(32, ()), "convs must list 2 or 3 for each block"),
        (lambda: Architecture(32, (3, 4)), r"got \(3, 4\)"),
        (lambda: Architecture(32, (3,), head_kernel=8), "head_kernel must be odd, got 8"),
        (lambda: Architecture(32, (3,), concat_last="both"), "'output' or 'activation'"),
        (lambda: architecture_from_name("espam"), "unknown architecture 'espam'; choose espan"),
        (lambda: architecture_from_name("c32d0"), "convs must list"),
        (
            lambda: Architecture.from_dict({**ESPAN.to_dict(), "depth": 6}),
            r"unknown keys \['depth'\]",
        ),
        (
            lambda: dataclasses.replace(SPAN_NORMALIZATION, img_range=0.0),
            "img_range must be above 0",
        ),
    ],
)
def test_bad_descriptions(make, message):
    with pytest.raises(EspanError, match=message):
        make()
