"""The source of upsample's CUDA kernels on the CPU, with the emulator in tests/emulator."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.emulator.build import Module, buffer, load, poisoned
from tests.kernels.upsample_cases import Run, check

FLOATS = (torch.float16, torch.bfloat16)
TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
HEIGHTS = (16, 8)


@pytest.fixture(scope="module")
def emulated() -> Module:
    return load("upsample")


def runner(module: Module, dtype: torch.dtype, scale: int, rows: int, order: int = 0) -> Run:
    """Runs the instance with ``rows``, its warps in a given order, on an image that is NaN."""
    wanted = (dtype == torch.bfloat16, 6 if scale > 2 else 2, rows)
    (instance,) = (
        i for i in module.instances if (i["bfloat16"], i["up_tiles"], i["height"]) == wanted
    )

    def run(
        near: Tensor, last: Tensor, packed: Tensor, channels: int, scale: int, *image: Any
    ) -> Tensor:
        kind, flag = image
        n, height, width, p = last.shape
        hwc = kind == torch.uint8
        size = (n, scale * height, scale * width)
        result = poisoned((*size, 3) if hwc else (n, 3, *size[1:]), kind)
        wavefronts = instance["run"](
            *(buffer(module, t) for t in (near, last, packed, result, flag)),
            *(near.shape[3], p, TYPES.index(kind), scale, n, height, width, order),
        )
        assert set(wavefronts) == {"ldmatrix"}
        for fewest, needed in wavefronts.values():
            assert fewest == needed  # no bank conflicts
        return result.permute(0, 3, 1, 2) if hwc else result

    return run


def test_shared_memory_fits(emulated: Module) -> None:
    """One instance fits the smallest GPUs for all channels, the other for those of SPANV2."""
    assert {i["height"] for i in emulated.instances} == set(HEIGHTS)
    for i in emulated.instances:
        assert i["bytes_of_80" if i["height"] == 16 else "bytes_of_112"] <= 99 * 1024


@pytest.mark.parametrize("rows", HEIGHTS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [13, 32, 41, 64])
def test_values(emulated: Module, channels: int, scale: int, rows: int) -> None:
    which = channels + scale + rows // 8
    dtype = FLOATS[which % 2]
    run = runner(emulated, dtype, scale, rows, order=which % 4)
    for i, shape in enumerate([(1, 1, 1), (2, 3, 7), (1, rows + 1, 33)]):
        gain = (1.0, 100.0)[i % 2]
        check(run, channels, scale, dtype, TYPES[(which + i) % 4], shape, gain=gain)


@pytest.mark.parametrize("image_dtype", TYPES)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_images(emulated: Module, scale: int, image_dtype: torch.dtype) -> None:
    run = runner(emulated, torch.float16, scale, 8)
    check(run, 16, scale, torch.float16, image_dtype, (1, 5, 6), gain=100.0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", HEIGHTS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [16, 28, 48, 64])
def test_all_sizes_and_orders(
    emulated: Module, channels: int, scale: int, rows: int, dtype: torch.dtype
) -> None:
    sizes = [(1, 1), (1, 7), (9, 1), (rows - 1, 31), (rows, 32), (rows + 1, 33), (35, 65)]
    for order in range(4):
        run = runner(emulated, dtype, scale, rows, order)
        for i, size in enumerate(sizes):
            check(run, channels, scale, dtype, TYPES[(i + order) % 4], (1 + i % 2, *size))
