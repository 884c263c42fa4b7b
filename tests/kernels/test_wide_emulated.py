"""The source of the streamed block of 64 channels on the CPU, with the emulator."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.emulator.build import Bug, Module, buffer, load, poisoned
from tests.kernels.spab_cases import KINDS, SPAN, Kind, check

FLOATS = (torch.float16, torch.bfloat16)


def load_kind(kind: Kind, bug: Bug | None = None) -> Module:
    return load(
        "spab_wide", bug=bug, macros=(f"ESPAN_ACTIVATION={kind[0]}", f"ESPAN_GATE={kind[1]}")
    )


def runner(module: Module, dtype: torch.dtype, rows: int, order: int) -> Any:
    """Runs the block in segments of ``rows``, in arrays that are NaN at first."""
    (instance,) = [i for i in module.instances if i["bfloat16"] == (dtype == torch.bfloat16)]
    # A block may use 227 of an SM's 228 KB.
    assert instance["shared_bytes"] <= 227 * 1024

    def run(x: Tensor, packed: Tensor, channels: int, convs: int) -> tuple[Tensor, Tensor]:
        n, height, width, _ = x.shape
        y, activation = (poisoned(tuple(x.shape), x.dtype) for _ in range(2))
        arrays = [buffer(module, t) for t in (x, packed, y, activation)]
        wavefronts = instance["run"](*arrays, convs, n, height, width, rows, order)
        assert set(wavefronts) == {"ldmatrix", "stmatrix"}
        for fewest, needed in wavefronts.values():
            assert fewest == needed  # no bank conflicts
        return y, activation

    return run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("convs", [2, 3])
def test_values(kind: Kind, convs: int) -> None:
    module = load_kind(kind)
    for order, (rows, shape) in enumerate([(1, (1, 1, 1)), (4, (2, 6, 7)), (12, (1, 12, 61))]):
        dtype = FLOATS[(order + convs) % 2]
        run = runner(module, dtype, rows, order)
        check(run, 64 if order % 2 else 53, convs, dtype, shape, kind=kind)
