"""A whole network on the Triton kernels, in Triton's interpreter.

pytest does not collect this file: TRITON_INTERPRET must be set before Triton is imported, so
test_triton_interpreted.py runs it in a subprocess.
"""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from espan import fused
from espan.engines import Blocks
from espan.folding import fold
from espan.models import ESPAN, SPAN, Network
from tests.tolerance import FOLDED, assert_accurate

MEMBERS = {
    "espan": replace(ESPAN, convs=(3, 3, 2)),
    "c26x3": replace(SPAN, channels=26, convs=(3, 2), scale=3, head_kernel=5),
}


def network_of(member: str) -> Network:
    torch.manual_seed(0)
    return Network(MEMBERS[member]).eval().requires_grad_(False)


def engine_of(network: Network) -> Blocks:
    """The engine of the backend triton on a GPU."""
    engine = fused._engine(fold(network), torch.device("cpu"), torch.float16, "triton")
    assert isinstance(engine, Blocks)
    return engine


@pytest.mark.parametrize("member", [pytest.param("espan", marks=pytest.mark.slow), "c26x3"])
def test_equals_the_plain_network(member: str) -> None:
    engine = engine_of(network_of(member))
    x = torch.rand(1, 3, 9, 13)
    flag = torch.zeros(1, dtype=torch.int32)
    plain = {d: network_of(member).to(d) for d in (torch.float64, torch.float16)}
    assert_accurate(engine(x.half(), flag), lambda d: plain[d](x.to(d)), factor=FOLDED)
    exact = network_of(member).double()(x.double())
    assert flag.item() == (not -1 <= exact.min() <= exact.max() <= 2)


def test_uint8_runs_on_these_kernels_only() -> None:
    """No other op runs between the image and the result."""
    network = network_of("espan")
    for parameter in network.tail.upsample.parameters():
        parameter.mul_(0.1)  # well within the range
    engine = engine_of(network)
    image = torch.randint(0, 256, (1, 3, 7, 8), dtype=torch.uint8)
    flag = torch.zeros(1, dtype=torch.int32)
    called: set[str] = set()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.add(str(function))
            return function(*args, **(kwargs or {}))

    with Record():
        result = engine(image, flag)
    exact = 255 * network.double()(image.double() / 255).clamp(0, 1)
    assert result.dtype == torch.uint8
    assert (result - exact).abs().max() < 0.5 + 255 * 2**-9
    assert called == {f"espan_triton.{op}.default" for op in ("head", "spab", "tail")}
