"""The source of the head's CUDA kernels on the CPU, with the emulator in tests/emulator."""

import pytest
import torch
from torch import Tensor

from tests.emulator.build import Module, buffer, check_shared_memory, load, poisoned
from tests.kernels.head_cases import ACTIVATIONS, LAYOUTS, Run, check, image_of

FLOATS = (torch.float16, torch.bfloat16)
TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
# P of the instances in head.cuh, each with a smaller number of channels; their tiles are 16 x 32.
INSTANCES = [(16, 13), (32, 28), (48, 48), (64, 52)]
ROWS, COLUMNS = 16, 32


@pytest.fixture(scope="module")
def emulated() -> Module:
    return load("head")


def runner(module: Module, p: int, dtype: torch.dtype, order: int = 0) -> Run:
    """Runs an instance, its warps in a given order, on features that are NaN at first."""
    wanted = (dtype == torch.bfloat16, p, ROWS)
    (instance,) = (
        i for i in module.instances if (i["bfloat16"], i["channels"], i["height"]) == wanted
    )

    def run(
        image: Tensor,
        packed: Tensor,
        mean: Tensor | None,
        channels: int,
        kernel: int,
        unshuffle: int,
        activation: str,
    ) -> Tensor:
        n, _, height, width = image.shape
        features = poisoned((n, -(-height // unshuffle), -(-width // unshuffle), p), packed.dtype)
        storage = image.untyped_storage()
        wavefronts = instance["run"](
            module.Buffer(storage.data_ptr(), storage.nbytes()),
            image.data_ptr(),
            image.stride(),
            TYPES.index(image.dtype),
            buffer(module, mean),
            buffer(module, packed),
            buffer(module, features),
            *(kernel, n, unshuffle, ACTIVATIONS.index(activation), height, width, order),
        )
        fewest, needed = wavefronts["ld.shared" if unshuffle == 1 else "ldmatrix"]
        assert fewest == needed  # no bank conflicts in the convolution
        return features

    return run


def test_shared_memory_fits(emulated: Module) -> None:
    check_shared_memory(emulated)


def test_all_instances_are_tested(emulated: Module) -> None:
    found = [(i["channels"], i["height"]) for i in emulated.instances]
    assert found == [(p, ROWS) for p, _ in INSTANCES] * 2


@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9, 11])
@pytest.mark.parametrize(("p", "channels"), INSTANCES)
def test_values(emulated: Module, p: int, channels: int, kernel: int) -> None:
    which = kernel // 2 + p // 16
    dtype = FLOATS[which % 2]
    run = runner(emulated, p, dtype, order=which % 3)
    for i, size in enumerate([(1, 1), (1, 7), (ROWS + 1, COLUMNS + 1)]):
        image = image_of((1, *size), TYPES[(which + i) % 4], LAYOUTS[(which + i) % 3])
        check(run, channels, kernel, dtype, image, with_mean=bool((which + i) % 4))


@pytest.mark.parametrize("unshuffle", [2, 4])
@pytest.mark.parametrize(("p", "channels"), INSTANCES)
def test_unshuffle(emulated: Module, p: int, channels: int, unshuffle: int) -> None:
    which = unshuffle // 2 + p // 16
    dtype = FLOATS[which % 2]
    run = runner(emulated, p, dtype, order=which % 3)
    edges = (unshuffle * ROWS + 1, unshuffle * COLUMNS + unshuffle - 1)
    for i, size in enumerate([(unshuffle, unshuffle), (unshuffle + 1, 2 * unshuffle + 1), edges]):
        image = image_of((1 + i % 2, *size), TYPES[(which + i) % 4], LAYOUTS[(which + i) % 3])
        check(run, channels, 3, dtype, image, with_mean=i > 0, unshuffle=unshuffle)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("unshuffle", [1, 2])
def test_activation(emulated: Module, unshuffle: int, activation: str, dtype: torch.dtype) -> None:
    run = runner(emulated, 32, dtype)
    image = image_of((1, 6, 9), torch.float32, "planar")
    check(run, 28, 3, dtype, image, unshuffle=unshuffle, activation=activation)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("image_dtype", TYPES)
def test_images(emulated: Module, image_dtype: torch.dtype, layout: str) -> None:
    run = runner(emulated, 16, torch.float16)
    for with_mean in (False, True):
        image = image_of((2, 6, 9), image_dtype, layout)
        check(run, 16, 3, torch.float16, image, with_mean=with_mean)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9, 11])
@pytest.mark.parametrize(("p", "channels"), INSTANCES)
def test_all_sizes_and_orders(
    emulated: Module, p: int, channels: int, kernel: int, dtype: torch.dtype
) -> None:
    sizes = [(1, 1), (1, 7), (9, 1), (15, 31), (16, 32), (17, 33), (35, 65)]
    for order in (0, 1, 2, 3):
        run = runner(emulated, p, dtype, order)
        for i, size in enumerate(sizes):
            image = image_of((1 + i % 2, *size), TYPES[(i + order) % 4], LAYOUTS[i % 3])
            check(run, channels, kernel, dtype, image, with_mean=bool(order % 2))
