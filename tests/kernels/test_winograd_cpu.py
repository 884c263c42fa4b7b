"""The error of one layer of the network is within the bound of winograd_bound.py on every CPU path.

The layer is the last convolution of the network.  The image reaches it unchanged, through a 1x1
that copies its colours.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from espan_kernels import Layer, _library, describe_network, network, pack_network
from tests.kernels.winograd_bound import AMPLIFICATION, AT, BT, KINDS, G, bound, inputs

pytestmark = pytest.mark.skipif(_library.compiled is None, reason=_library.why_not_compiled)


def layer(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(N, 3, H, W), its colours repeated over the channels -> (N, outputs, H, W)."""
    outputs, channels = weight.shape[:2]
    scale = round((outputs / 3) ** 0.5)
    copies = torch.zeros(channels, 3, 1, 1)
    copies[torch.arange(channels), torch.arange(channels) % 3] = 1
    layers = [
        Layer("image"),
        Layer("pointwise", input=0, weight=copies),
        Layer("upsample", input=1, weight=weight, bias=bias),
    ]
    packed = pack_network(layers, scale=scale, dtype=dtype)
    y, _ = network(x, packed, layers=describe_network(layers), scale=scale)
    return F.pixel_unshuffle(y, scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "outputs"), [(3, 3), (16, 12), (28, 27), (48, 48), (64, 75)])
def test_layer(cpu_path: str, channels: int, outputs: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(channels)
    weight = torch.randn(outputs, channels, 3, 3, generator=generator)
    bias = torch.zeros(outputs)
    for size in [(1, 1), (4, 4), (5, 9), (6, 130)]:
        x = inputs(kind, 2, 3, *size)
        repeated = x[:, torch.arange(channels) % 3]
        exact = F.conv2d(repeated.double(), weight.double(), padding=1)
        error = (layer(x, weight, bias) - exact).abs()
        allowed = bound(repeated, weight)
        assert (error <= allowed).all(), (error / allowed).max()


def test_bias(cpu_path: str) -> None:
    bias = torch.randn(12)
    y = layer(torch.zeros(1, 3, 5, 6), torch.zeros(12, 20, 3, 3), bias)
    assert torch.equal(y, bias.view(1, -1, 1, 1).expand_as(y))


def test_transforms_give_a_convolution() -> None:
    """The matrices above, from which the bound is derived, give a convolution."""
    d, g = torch.randn(6).double(), torch.randn(3).double()
    expected = torch.stack([(d[i : i + 3] * g).sum() for i in range(4)])
    torch.testing.assert_close(AT @ ((G @ g) * (BT @ d)), expected)
    assert round(AMPLIFICATION, 2) == 6.2
