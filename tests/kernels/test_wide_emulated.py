"""The source of the streamed block of 64 channels on the CPU, with the emulator."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.emulator.build import Bug, Module, buffer, load, poisoned
from tests.kernels.spab_cases import KINDS, SPAN, Kind, check

FLOATS = (torch.float16, torch.bfloat16)
LEARNED: Kind = ("relu", "tanh")

# Each with the kind of block that shows it.
BUGS: dict[str, tuple[Kind, str, str]] = {
    "a row passed on without a proxy fence": (
        SPAN,
        "      proxy_fence();\n      synchronize_warp();\n"
        "      if (lane == 0) barrier_arrive(out.full(u));",
        "      synchronize_warp();\n      if (lane == 0) barrier_arrive(out.full(u));",
    ),
    "a row passed on by one lane before the others stored theirs": (
        SPAN,
        "      synchronize_warp();\n      if (lane == 0) barrier_arrive(out.full(u));",
        "      if (lane == 0) barrier_arrive(out.full(u));",
    ),
    "a slot filled before it is empty": (SPAN, "      out.wait_empty(u);\n", ""),
    "a row released too early": (SPAN, "      release(u);\n", "      release(u + 1);\n"),
    "a row of x loaded while other warps read its slot": (
        SPAN,
        "      if (u > 0) load(1);\n",
        "      load(1);\n",
    ),
    "a row of x loaded over results without a proxy fence": (
        SPAN,
        "      proxy_fence();\n      synchronize_group(2);\n      // Every",
        "      synchronize_group(2);\n      // Every",
    ),
    "a row short": (SPAN, "next < inputs", "next < inputs - 1"),
    "a ring one row short": (
        SPAN,
        "kBytes = kSlots * kSlotBytes",
        "kBytes = (kSlots - 1) * kSlotBytes",
    ),
    "stored by the warps before the others computed": (
        SPAN,
        "      synchronize_group(2);\n      // Every",
        "      // Every",
    ),
    "the activation stored before the other warps computed": (
        SPAN,
        "        synchronize_group(1);\n",
        "",
    ),
    "pixels not swizzled": (SPAN, "return at ^ (at >> 3 & 0x70);", "return at;"),
    "no fence before the products": (
        SPAN,
        "    fill(bias);\n    registers_fence(d);\n    wgmma_fence();\n",
        "    fill(bias);\n    registers_fence(d);\n",
    ),
    "weights not waited for": (SPAN, "  barrier_wait(ready + 8 * i, 0);\n", ""),
    "the gate's operand not waited for": (LEARNED, "        synchronize_group(2);\n", ""),
    "the gate's operand without a proxy fence": (
        LEARNED,
        "        proxy_fence();\n        synchronize_group(2);\n",
        "        synchronize_group(2);\n",
    ),
}


def load_kind(kind: Kind, bug: Bug | None = None) -> Module:
    macros = (f"ESPAN_ACTIVATION={kind[0]}", f"ESPAN_GATE={kind[1]}")
    return load("spab_wide", bug=bug, macros=macros)


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
        assert "stmatrix" in wavefronts
        for fewest, needed in wavefronts.values():
            assert fewest == needed  # no bank conflicts
        return y, activation

    return run


@pytest.mark.parametrize("convs", [2, 3])
@pytest.mark.parametrize(
    "kind", [k if k in (SPAN, LEARNED) else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_values(kind: Kind, convs: int) -> None:
    module = load_kind(kind)
    for order, (rows, shape) in enumerate([(1, (1, 1, 1)), (4, (2, 6, 7)), (12, (1, 12, 61))]):
        dtype = FLOATS[(order + convs) % 2]
        run = runner(module, dtype, rows, order)
        check(run, 64 if order % 2 else 53, convs, dtype, shape, kind=kind)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("convs", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_all_sizes_and_orders(kind: Kind, convs: int, dtype: torch.dtype) -> None:
    module = load_kind(kind)
    for order, rows in enumerate((1, 3, 16, 20)):
        run = runner(module, dtype, rows, order)
        for size in [(1, 7), (9, 1), (17, 59), (3, 60), (16, 61), (20, 121)]:
            check(run, 64, convs, dtype, (1, *size), kind=kind)


@pytest.fixture(scope="module")
def planted() -> dict[str, Module]:
    """One module for each bug, built two at a time."""
    with ThreadPoolExecutor(2) as pool:
        built = {
            name: pool.submit(load_kind, kind, ("spab_wide.cuh", right, wrong))
            for name, (kind, right, wrong) in BUGS.items()
        }
    return {name: module.result() for name, module in built.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(planted: dict[str, Module], name: str) -> None:
    """It gives a wrong result or an emulator error, in any order of the warps."""
    for order in range(4):
        run = runner(planted[name], torch.float16, 18, order)
        with pytest.raises((AssertionError, RuntimeError)):
            check(run, 64, 3, torch.float16, (1, 18, 9), kind=BUGS[name][0])
