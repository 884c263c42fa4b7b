"""Blocks with random weights, and checks shared by the tests of spab's kernels."""

from collections.abc import Callable

import torch
from torch import Tensor

from espan_kernels import pack_spab, reference
from espan_kernels.packing.feature_maps import from_nchw, to_nchw
from espan_kernels.spab import GATES, LEARNED
from tests.tolerance import assert_accurate

Kind = tuple[str, str]  # activation and gate
KINDS: list[Kind] = [(activation, gate) for activation in GATES for gate in GATES[activation]]
SPAN: Kind = ("silu", "sigmoid")

# Runs blocks of one kind: (x, packed, channels, convs) -> y and activation
Run = Callable[[Tensor, Tensor, int, int], tuple[Tensor, Tensor]]


def check(
    run: Run,
    channels: int,
    convs: int,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    *,
    device: str = "cpu",
    gain: float = 1.0,
    kind: Kind = SPAN,
) -> None:
    """Check that the block obeys the tolerance rule and the padding channels stay zero."""
    function, gate = kind
    batch, height, width = shape
    generator = torch.Generator().manual_seed(height * 1000 + width)

    def random(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(size, generator=generator, dtype=torch.float64)).to(dtype)

    scale = gain / (9 * channels) ** 0.5
    weights = [random(channels, channels, 3, 3, scale=scale) for _ in range(convs)]
    # Large, to reveal a border that is silu(bias) instead of zero.
    biases = [random(channels) for _ in range(convs)]
    x = random(batch, channels, height, width)
    conv = None
    if gate in LEARNED:
        conv = random(channels, channels, 1, 1, scale=channels**-0.5), random(channels)
    packed = pack_spab(
        weights, biases, dtype, device, activation=function, gate=gate, gate_conv=conv
    )
    features = from_nchw(x)
    results = run(features.to(device), packed, channels, convs)
    for t in results:
        assert t.shape[:3] == shape
        assert t.is_contiguous()
        assert (t[..., channels:] == 0).all()

    def block(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        cast = [[t.to(dtype) for t in tensors] for tensors in (weights, biases)]
        gate_conv = None if conv is None else (conv[0].to(dtype), conv[1].to(dtype))
        return reference.spab(x.to(dtype), cast[0], cast[1], function, gate, gate_conv)

    assert_accurate([to_nchw(t, channels) for t in results], block)
