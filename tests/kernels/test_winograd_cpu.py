"""One layer by Winograd's F(4x4, 3x3) keeps a bound that holds for all inputs.

With u = 2^-24, every output of a tile obeys

    |computed - exact|  <=  K u  sum over channels of  sum|d| * sum|g|

where sum|d| runs over the 6x6 inputs of the tile, sum|g| over the 9 weights, and K is one number
for all shapes.  It follows from the three steps, y = A^T [ sum (G g G^T) * (B^T d B) ] A:

- If each step were exact but for one relative rounding, an output would be off by at most
  |A^T| [ (|G| |g| |G^T|) * (|B^T| |d| |B|) ] |A|.  A pair of an input and a weight appears in it
  with a factor, and the factor of two dimensions is the product of those of one; the largest in one
  dimension is a = max over i, j, k of  sum over p |A^T|_ip |G|_pk |B^T|_pj.
- The longest chain of roundings: the weight's 1; B^T twice 3 (a product, and two sums; fewer where
  they are contracted); the product and its sum over the channels, C + 1; A^T twice 4; bias 1.
  That is C + 17.  The family ends at 64 channels; so K = 81 a^2.

The layer is the network's last convolution: the image reaches it unchanged through a head that
copies its colours and a concat that copies the head.
"""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from espan_kernels import _library, network, pack_network

pytestmark = pytest.mark.skipif(_library.compiled is None, reason=_library.why_not_compiled)

AT = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
).double()
BT = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
).double()
G = torch.tensor(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]
).double() / 24  # fmt: skip
AMPLIFICATION = torch.einsum("ip,pk,pj->ikj", AT.abs(), G.abs(), BT.abs()).max().item()
CHANNELS = 64
K = (CHANNELS + 17) * AMPLIFICATION**2
UNIT = 2.0**-24


@pytest.fixture(params=["portable", "avx2", "avx512"])
def cpu_path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that this machine has."""
    assert _library.compiled is not None
    try:
        _library.compiled.select_cpu_path(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    _library.compiled.select_cpu_path("auto")


def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(N, 3, H, W) whose colours repeat over the channels -> (N, outputs, H, W)."""
    outputs, channels = weight.shape[:2]
    scale = round((outputs / 3) ** 0.5)
    zero = torch.zeros(channels, channels, 3, 3), torch.zeros(channels)
    copies = torch.zeros(channels, 3, 1, 1)
    copies[torch.arange(channels), torch.arange(channels) % 3] = 1
    packed = pack_network(
        (copies, torch.zeros(channels)),
        [[zero, zero]],
        zero,
        [torch.eye(channels), torch.zeros(channels, channels)],
        (weight, bias),
        scale=scale,
    )
    y, _ = network(
        x,
        packed,
        channels=channels,
        head_kernel=1,
        convs=(2,),
        concat_activation=False,
        scale=scale,
    )
    return F.pixel_unshuffle(y, scale)


def bound(x: Tensor, weight: Tensor) -> Tensor:
    """K u sum|d| sum|g| of each output; (N, outputs, H, W)."""
    height, width = x.shape[2:]
    rows, columns = -(-height // 4), -(-width // 4)
    padded = F.pad(x.abs().double(), (1, 4 * columns - width + 1, 1, 4 * rows - height + 1))
    tiles = F.avg_pool2d(padded, 6, stride=4, divisor_override=1)
    channels = tiles[:, torch.arange(weight.shape[1]) % 3]
    sums = torch.einsum("nchw,oc->nohw", channels, weight.double().abs().sum((2, 3)))
    whole = sums.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    return K * UNIT * whole[:, :, :height, :width]


def inputs(kind: str, *size: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    x = torch.randn(size, generator=generator)
    if kind == "one side":
        return x.abs()
    if kind == "of all magnitudes":
        return x * 10 ** torch.empty(size).uniform_(-20, 12, generator=generator)
    if kind == "checkerboard":
        return 1e6 * (-1.0) ** torch.arange(x.numel()).view(size)
    if kind == "one pixel":
        x = torch.zeros(size)
        x[..., size[2] // 2, size[3] // 2] = 3e4
    return x


@pytest.mark.parametrize(
    "kind", ["normal", "one side", "of all magnitudes", "checkerboard", "one pixel"]
)
@pytest.mark.parametrize(("channels", "outputs"), [(3, 3), (16, 12), (28, 27), (48, 48), (64, 75)])
def test_layer(cpu_path: str, channels: int, outputs: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(channels)
    weight = torch.randn(outputs, channels, 3, 3, generator=generator)
    bias = torch.zeros(outputs)
    for size in [(1, 1), (4, 4), (5, 9), (6, 130)]:
        x = inputs(kind, 2, 3, *size)
        exact = F.conv2d(x[:, torch.arange(channels) % 3].double(), weight.double(), padding=1)
        error = (layer(x, weight, bias) - exact).abs()
        assert (error <= bound(x, weight)).all(), (error / bound(x, weight)).max()


def test_bias(cpu_path: str) -> None:
    bias = torch.randn(12)
    y = layer(torch.zeros(1, 3, 5, 6), torch.zeros(12, 20, 3, 3), bias)
    assert torch.equal(y, bias.view(1, -1, 1, 1).expand_as(y))


def test_transforms_are_those_of_a_convolution() -> None:
    """The matrices above, which the bound comes from, make a convolution."""
    d, g = torch.randn(6).double(), torch.randn(3).double()
    expected = torch.stack([(d[i : i + 3] * g).sum() for i in range(4)])
    torch.testing.assert_close(AT @ ((G @ g) * (BT @ d)), expected)
    assert round(AMPLIFICATION, 2) == 10.67
