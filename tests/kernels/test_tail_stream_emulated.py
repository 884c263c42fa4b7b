"""The tail's streaming Hopper kernels without a 3x3 in the concat, with the emulator."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.emulator.build import Bug, Module, load
from tests.kernels.tail_cases import check
from tests.kernels.test_stream_emulated import tail_runner

FLOATS = (torch.float16, torch.bfloat16)
TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
CHANNELS = [(16, 13), (32, 26), (48, 41), (64, 52)]  # P, each with a smaller number of channels

FILE = "tail_hopper.cuh"
BUGS: dict[str, Bug] = {
    "a row passed on before its slot is empty": (
        FILE,
        "    out.wait_empty();\n",
        "",
    ),
    "a row passed on by one lane before the others stored theirs": (
        FILE,
        "    synchronize_warp();\n    if (lane == 0) barrier_arrive(out.full());",
        "    if (lane == 0) barrier_arrive(out.full());",
    ),
    "a row read before it is there": (
        FILE,
        "      in.wait_full();\n",
        "",
    ),
    "no fence before the products": (
        FILE,
        "      wgmma_fence();\n",
        "",
    ),
    "results taken before the wait": (
        FILE,
        "      wgmma_wait<0>();\n      registers_fence(d);\n",
        "",
    ),
    "the first product added to old results": (
        FILE,
        "weights + s * (S::P * 2), s > 0);",
        "weights + s * (S::P * 2), true);",
    ),
    "weights not waited for": (
        FILE,
        "      barrier_wait(ready, 0);\n      work.fuse_pixels(",
        "      work.fuse_pixels(",
    ),
    "a row of the maps short": (
        FILE,
        "n < rows + S::kLastKernel + 1",
        "n < rows + S::kLastKernel",
    ),
    "a column off": (
        FILE,
        "lane % 16 + 1, 2 * k",
        "lane % 16, 2 * k",
    ),
    "a row off": (
        FILE,
        "S::kLastKernel == 1 ? top - 1 :",
        "S::kLastKernel == 1 ? top - 2 :",
    ),
}


@pytest.fixture(scope="module")
def emulated() -> Module:
    return load("tail_hopper")


INSTANCES = [(p, c, 3, scale) for p, c in CHANNELS for scale in (1, 2, 3, 4)]
INSTANCES += [(32, 26, 2, 3), (32, 26, 2, 4)]


@pytest.mark.parametrize(("p", "channels", "sides", "scale"), INSTANCES)
def test_values(emulated: Module, p: int, channels: int, sides: int, scale: int) -> None:
    for order, (rows, shape) in enumerate([(1, (1, 1, 1)), (4, (2, 6, 7)), (5, (1, 5, 63))]):
        dtype = FLOATS[(order + scale + sides) % 2]
        run = tail_runner(emulated, p, sides, dtype, rows, order)
        kind = TYPES[(order + scale) % 4]
        check(run, channels, scale, sides, dtype, kind, shape, last_kernel=1)


@pytest.fixture(scope="module")
def planted() -> dict[str, Module]:
    """One module for each bug, built two at a time."""
    with ThreadPoolExecutor(2) as pool:
        built = {
            k: pool.submit(load, "tail_hopper", bug=bug, macros=("ESPAN_ONE_TYPE",))
            for k, bug in BUGS.items()
        }
    return {name: module.result() for name, module in built.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(planted: dict[str, Module], name: str) -> None:
    """It gives a wrong result or an emulator error, in any order of the warps."""
    for order in range(4):
        run = tail_runner(planted[name], 16, 2, torch.float16, 9, order)
        with pytest.raises((AssertionError, RuntimeError)):
            check(run, 16, 2, 2, torch.float16, torch.float32, (1, 18, 9), last_kernel=1)
