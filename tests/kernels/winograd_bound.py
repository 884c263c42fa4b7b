"""A bound for the error of one layer with Winograd's F(4x4, 3x3), for all inputs.

With u = 2^-24, every output of a tile obeys

    |computed - exact|  <=  K u  sum over channels of  sum|d| * sum|g|

where sum|d| is over the 6x6 inputs of the tile, sum|g| over the 9 weights, and K is the same for
all shapes.  It follows from the three steps of y = A^T [ sum (G g G^T) * (B^T d B) ] A:

- If every product had a single relative rounding error u, an output would be off by at most
  u |A^T| [ (|G| |g| |G^T|) * (|B^T| |d| |B|) ] |A|.  In this expression, each pair of an input and
  a weight has a factor, which is the product of the factors of the two dimensions.  The largest
  factor in one dimension is a = max over i, j, k of  sum over p |A^T|_ip |G|_pk |B^T|_pj.
- The longest chain of roundings: the weight 1; B^T twice 4 (two products and two sums; fewer if
  contracted); the product and its sum over the channels, C + 1; A^T twice 5 (a constant, a product
  and three sums); bias 1.  That is C + 21.  The family has up to 64 channels, so K = 85 a^2.
- In bf16 both factors of a product are also rounded, each by at most 2^-8 = 2^16 u, and the product
  is exact: K = (2^17 + 2^8 + 85) a^2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from espan_kernels.packing import cpu_winograd

A, B = 5 / 8, 3 / 2  # the points are 0, a, -a, b, -b and infinity
S, P = A**2 + B**2, (A * B) ** 2
AT = torch.tensor(
    [
        [1, 1 / A, 1 / A, 1 / B**2, 1 / B**2, 0],
        [0, 1, -1, 1 / B, -1 / B, 0],
        [0, A, A, 1, 1, 0],
        [0, A**2, -(A**2), B, -B, 1],
    ],
    dtype=torch.float64,
)
BT = torch.tensor(
    [
        [P, 0, -S, 0, 1, 0],
        [0, -A * B**2, -(B**2), A, 1, 0],
        [0, A * B**2, -(B**2), -A, 1, 0],
        [0, -B * A**2, -(A**2), B, 1, 0],
        [0, B * A**2, -(A**2), -B, 1, 0],
        [0, P, 0, -S, 0, 1],
    ],
    dtype=torch.float64,
)
G = torch.tensor(cpu_winograd._G, dtype=torch.float64)
AMPLIFICATION = torch.einsum("ip,pk,pj->ikj", AT.abs(), G.abs(), BT.abs()).max().item()
CHANNELS = 64
K = (CHANNELS + 21) * AMPLIFICATION**2
K_BFLOAT16 = (2**17 + 2**8 + CHANNELS + 21) * AMPLIFICATION**2
UNIT = 2.0**-24
KINDS = ("normal", "one side", "of all magnitudes", "checkerboard", "one pixel")


def bound(x: Tensor, weight: Tensor, k: float = K) -> Tensor:
    """K u sum|d| sum|g| of each output; (N, outputs, H, W)."""
    height, width = x.shape[2:]
    rows, columns = -(-height // 4), -(-width // 4)
    padded = F.pad(x.abs().double(), (1, 4 * columns - width + 1, 1, 4 * rows - height + 1))
    tiles = F.avg_pool2d(padded, 6, stride=4, divisor_override=1)
    sums = torch.einsum("nchw,oc->nohw", tiles, weight.double().abs().sum((2, 3)))
    whole = sums.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    return k * UNIT * whole[:, :, :height, :width]


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
