"""The source of upsample's streaming Hopper kernels on the CPU, with the emulator."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.emulator.build import Bug, Module, buffer, load, poisoned
from tests.kernels.test_stream_emulated import instance
from tests.kernels.upsample_cases import Run, check

FLOATS = (torch.float16, torch.bfloat16)
TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)

FILE = "upsample_hopper.cuh"
BUGS: dict[str, Bug] = {
    "the ring of the next segment not in turn": (
        FILE,
        "n < strip.rows + 2; ++n) input.next();",
        "n < strip.rows + 1; ++n) input.next();",
    ),
    "a row copied before its slot is empty": (
        FILE,
        "        input.wait_empty();\n",
        "",
    ),
    "weights not waited for": (
        FILE,
        "  barrier_wait(ready, 0);\n",
        "",
    ),
    "a row short": (
        FILE,
        "n < strip.rows + 2; ++n) {",
        "n < strip.rows + 1; ++n) {",
    ),
    "the rings of both groups at one place": (
        FILE,
        "weights + S::Conv::kBytes + of * S::Input::kBytes",
        "weights + S::Conv::kBytes",
    ),
    "a warp's pixels missing": (
        FILE,
        "(second && own(i))",
        "false",
    ),
    "the wrong map": (
        FILE,
        "8 * chunk < p.near_channels",
        "8 * chunk <= p.near_channels",
    ),
    "pixels beside the image not zero": (
        FILE,
        "row_inside && strip.inside_columns(x + i * kPixels)",
        "row_inside",
    ),
    "the segments of one group twice": (
        FILE,
        "blockIdx.x + of * p.blocks; item < p.items; item += S::kGroups * p.blocks) {\n    const",
        "blockIdx.x; item < p.items; item += S::kGroups * p.blocks) {\n    const",
    ),
}


def runner(module: Module, dtype: torch.dtype, rows: int, blocks: int, order: int) -> Run:
    """Runs the kernel in segments of ``rows``, on an image that is NaN at first."""

    def run(
        near: Tensor, last: Tensor, packed: Tensor, channels: int, scale: int, *image: Any
    ) -> Tensor:
        kind, flag = image
        n, height, width, p = last.shape
        both, up_tiles = near.shape[3] + p, 6 if scale > 2 else 2
        kernel = instance(module, dtype, channels=both, up_tiles=up_tiles)["run"]
        hwc = kind == torch.uint8
        size = (n, scale * height, scale * width)
        result = poisoned((*size, 3) if hwc else (n, 3, *size[1:]), kind)
        segments = n * -(-width // 64) * -(-height // rows)  # each block has at least one
        wavefronts = kernel(
            *(buffer(module, t) for t in (near, last, packed, result, flag)),
            *(near.shape[3], p, TYPES.index(kind), scale, n, height, width),
            *(rows, min(blocks, segments), order),
        )
        assert set(wavefronts) == {"ldmatrix"}
        for fewest, needed in wavefronts.values():
            assert fewest == needed  # no bank conflicts
        return result.permute(0, 3, 1, 2) if hwc else result

    return run


@pytest.fixture(scope="module")
def emulated() -> Module:
    return load("upsample_hopper")


@pytest.mark.parametrize("scale", [3, 4])
@pytest.mark.parametrize("channels", [13, 32, 41, 64])
def test_values(emulated: Module, channels: int, scale: int) -> None:
    # (rows of a segment, blocks): one segment; several per block; several per warpgroup.
    for order, (rows, blocks, shape) in enumerate(
        [(1, 1, (1, 1, 1)), (4, 2, (2, 6, 7)), (3, 1, (1, 13, 65)), (2, 1, (1, 9, 5))]
    ):
        which = channels + scale + order
        dtype = FLOATS[which % 2]
        run = runner(emulated, dtype, rows, blocks, order)
        check(run, channels, scale, dtype, TYPES[which % 4], shape, gain=(1.0, 100.0)[order % 2])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [3, 4])
@pytest.mark.parametrize("channels", [16, 28, 48, 64])
def test_all_sizes_and_orders(
    emulated: Module, channels: int, scale: int, dtype: torch.dtype
) -> None:
    sizes = [(1, 1), (1, 7), (9, 1), (15, 63), (16, 64), (17, 65), (5, 129)]
    for order in range(4):
        for i, size in enumerate(sizes):
            rows, blocks = ((1, 3), (3, 2), (16, 1))[(i + order) % 3]
            run = runner(emulated, dtype, rows, blocks, order)
            check(run, channels, scale, dtype, TYPES[(i + order) % 4], (1 + i % 2, *size))


@pytest.fixture(scope="module")
def planted() -> dict[str, Module]:
    """One module for each bug, built two at a time."""
    with ThreadPoolExecutor(2) as pool:
        built = {
            k: pool.submit(load, "upsample_hopper", bug=bug, macros=("ESPAN_ONE_TYPE",))
            for k, bug in BUGS.items()
        }
    return {name: module.result() for name, module in built.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(planted: dict[str, Module], name: str) -> None:
    """It gives a wrong result or an emulator error, in any order of the warps."""
    for order in range(4):
        run = runner(planted[name], torch.float16, 5, 1, order)
        with pytest.raises((AssertionError, RuntimeError)):
            check(run, 16, 3, torch.float16, torch.float32, (1, 18, 70))
