"""The CPU ops where OpenMP grants fewer threads than PyTorch asks for."""

import os
import subprocess
import sys

import pytest

from espan_kernels import _library

pytestmark = pytest.mark.skipif(_library.compiled is None, reason=_library.why_not_compiled)

# Every op with 1 and with 4 threads.  Freed memory is poisoned, so that a part that no thread has
# computed differs.
CODE = """
import torch
from espan_kernels import gate
from tests.kernels.network_cases import SPAN, image

torch.manual_seed(0)
ops = torch.ops.espan
x, grad = torch.randn(2, 8, 72, 72), torch.randn(2, 12, 72, 72)
weight, bias = torch.randn(12, 8, 3, 3), torch.randn(12)
photo = image(1, 3, 40, 30)
packed = SPAN.pack()
terms = (1.0, 1.0, 0.001, True)

def results():
    for size in (x.numel(), grad.numel(), photo.numel() * 16):
        torch.full((size,), 777.0)
    return [
        ops.conv3x3(x, weight, bias),
        *ops.conv3x3_weight_gradient(grad, x),
        *SPAN.run(photo, packed),
        gate(x, x),
        *ops.gate_backward(x, x, x),
        *ops.frequency_loss_gradient(x[:, :3], x[:, 3:6], torch.ones(()), *terms),
    ]

torch.set_num_threads(1)
expected = results()
torch.set_num_threads(4)
assert torch.get_num_threads() == 4
print([bool(torch.equal(a, b)) for a, b in zip(results(), expected, strict=True)])
"""


@pytest.mark.parametrize(
    "setting", ["OMP_DYNAMIC=false", "OMP_DYNAMIC=true", "OMP_THREAD_LIMIT=1", "OMP_THREAD_LIMIT=3"]
)
def test_a_smaller_team_computes_everything(setting: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", CODE],
        env=os.environ | dict([setting.split("=")]),
        capture_output=True,
        text=True,
    )
    assert result.stdout == f"{[True] * 11}\n", result.stderr
