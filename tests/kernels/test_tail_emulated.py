"""The source of the tail's CUDA kernels on the CPU, with the emulator in tests/emulator."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.emulator.build import Module, buffer, check_shared_memory, load, poisoned
from tests.kernels.tail_cases import Run, check

FLOATS = (torch.float16, torch.bfloat16)
TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
# (P, rows of a tile) of the instances in tail.cuh, each with a smaller number of channels.
INSTANCES = [(16, 16, 13), (32, 16, 28), (48, 10, 48), (64, 8, 52)]


@pytest.fixture(scope="module")
def emulated() -> Module:
    return load("tail")


def instances(
    module: Module, dtype: torch.dtype, channels: int, scale: int
) -> list[dict[str, Any]]:
    wanted = (dtype == torch.bfloat16, channels, 6 if scale > 2 else 2)
    found = [i for i in module.instances if (i["bfloat16"], i["channels"], i["up_tiles"]) == wanted]
    assert found
    return found


def runner(module: Module, instance: dict[str, Any], order: int = 0) -> Run:
    """Runs an instance, its warps in a given order, on an image that is NaN at first."""

    def run(
        head: Tensor,
        first: Tensor,
        last: Tensor,
        activation: Tensor | None,
        packed: Tensor,
        channels: int,
        scale: int,
        dtype: torch.dtype,
        flag: Tensor,
        last_kernel: int = 3,
    ) -> Tensor:
        n, height, width, _ = last.shape
        hwc = dtype == torch.uint8
        size = (n, scale * height, scale * width)
        image = poisoned((*size, 3) if hwc else (n, 3, *size[1:]), dtype)
        sides = [head, first] if activation is None else [head, first, activation]
        wavefronts = instance["run"](
            buffer(module, last),
            [buffer(module, side) for side in sides],
            *(buffer(module, t) for t in (packed, image, flag)),
            *(TYPES.index(dtype), scale, n, height, width, last_kernel, order),
        )
        assert set(wavefronts) == {"ldmatrix", "st.shared"}
        for fewest, needed in wavefronts.values():
            assert fewest == needed  # no bank conflicts
        return image.permute(0, 3, 1, 2) if hwc else image

    return run


def test_shared_memory_fits(emulated: Module) -> None:
    check_shared_memory(emulated)


def test_all_instances_are_tested(emulated: Module) -> None:
    found = {(i["channels"], i["height"]) for i in emulated.instances}
    assert found == {(p, height) for p, height, _ in INSTANCES}
    assert len(emulated.instances) == 2 * 2 * len(INSTANCES)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize(("p", "rows", "channels"), INSTANCES)
def test_values(emulated: Module, p: int, rows: int, channels: int, scale: int) -> None:
    dtype, sides = FLOATS[(scale + p // 16) % 2], 2 + (scale + p // 16) // 2 % 2
    for order, instance in enumerate(instances(emulated, dtype, p, scale), start=scale % 3):
        run = runner(emulated, instance, order)
        check(run, channels, scale, sides, dtype, TYPES[scale % 4], (1, 1, 1))
        check(run, channels, scale, sides, dtype, TYPES[scale - 1], (1, 1, 7))
        check(run, channels, scale, sides, dtype, TYPES[(scale + 1) % 4], (1, rows + 1, 31))


@pytest.mark.parametrize(("p", "rows", "channels"), INSTANCES)
def test_last_1x1(emulated: Module, p: int, rows: int, channels: int) -> None:
    for i, scale in enumerate((2, 4)):
        dtype = FLOATS[(i + p // 16) % 2]
        for order, instance in enumerate(instances(emulated, dtype, p, scale)):
            run = runner(emulated, instance, order)
            for sides, shape in ((2 + i, (2, 1, 7)), (3 - i, (1, rows + 1, 31))):
                kind = TYPES[(sides + p // 16) % 4]
                check(run, channels, scale, sides, dtype, kind, shape, last_kernel=1)


@pytest.mark.parametrize("image_dtype", TYPES)
@pytest.mark.parametrize("scale", [2, 4])
def test_out_of_range_is_flagged(emulated: Module, scale: int, image_dtype: torch.dtype) -> None:
    (instance, *_) = instances(emulated, torch.float16, 16, scale)
    check(
        runner(emulated, instance), 16, scale, 2, torch.float16, image_dtype, (2, 5, 6), gain=100.0
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_are_flagged(emulated: Module, bad: float) -> None:
    (instance, *_) = instances(emulated, torch.float16, 16, 4)
    zeros = torch.zeros(1, 3, 3, 16, dtype=torch.float16)
    last = zeros.clone()
    last[0, 1, 1, 5] = bad
    packed = torch.zeros(16 * (9 * 16 + 2 * 16 + 9 * 48) + 2 * 64, dtype=torch.float16)
    packed[: 16 * 16 * 9] = 1  # a non-finite value spreads to every channel and becomes NaN
    for features, expected in ((last, 1), (zeros, 0)):
        flag = torch.zeros(1, dtype=torch.int32)
        run = runner(emulated, instance)
        image = run(zeros, zeros, features, None, packed, 16, 4, torch.uint8, flag)
        assert flag.item() == expected
        assert (image == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize(("p", "rows", "channels"), INSTANCES)
def test_all_sizes_and_orders(
    emulated: Module, p: int, rows: int, channels: int, scale: int, dtype: torch.dtype
) -> None:
    sizes = [(1, 1), (1, 7), (9, 1), (rows - 1, 29), (rows, 30), (rows + 1, 31), (2 * rows + 3, 61)]
    for instance in instances(emulated, dtype, p, scale):
        for order in (0, 1, 2, 3):
            run = runner(emulated, instance, order)
            for i, size in enumerate(sizes):
                for sides in (2, 3):
                    kind = TYPES[(i + order + sides) % 4]
                    check(run, channels, scale, sides, dtype, kind, (1, *size))
            check(run, p, scale, 2, dtype, torch.uint8, (2, rows + 1, 31))
