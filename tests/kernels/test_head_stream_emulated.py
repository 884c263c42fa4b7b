"""The source of the head's streaming Hopper kernels on the CPU, with the emulator."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from tests.emulator.build import Bug, Module, buffer, load, poisoned
from tests.kernels.head_cases import ACTIVATIONS, LAYOUTS, Run, check, image_of

FLOATS = (torch.float16, torch.bfloat16)
TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
CHANNELS = [(16, 13), (32, 28), (48, 48), (64, 52)]  # P, each with a smaller number of channels
KERNELS = [3, 5, 7, 9, 11]

FILE = "head_hopper.cuh"
BUGS: dict[str, Bug] = {
    "weights rotated the wrong way": (
        FILE,
        "oldest == 0 ? 0 : S::kKernel - oldest",
        "oldest",
    ),
    "a row in the wrong registers": (
        FILE,
        "if (s == oldest) load(",
        "if (s == S::kKernel - 1) load(",
    ),
    "a ring one row short": (
        FILE,
        "(kKernel > kBatch ? kKernel : kBatch) + kBatch;",
        "(kKernel > kBatch ? kKernel : kBatch) + kBatch - 1;",
    ),
    "a row passed on by one lane before the others stored theirs": (
        FILE,
        "    synchronize_warp();\n    if (lane == 0) barrier_arrive(barrier);",
        "    if (lane == 0) barrier_arrive(barrier);",
    ),
    "a row loaded before other warps stored theirs": (
        FILE,
        "      if (batch) wait(barrier, phase);\n",
        "      if (batch) phase ^= 1;\n",
    ),
    "a phase off": (
        FILE,
        "    barrier_wait(barrier, phase);\n",
        "    barrier_wait(barrier, phase ^ 1);\n",
    ),
    "rows of a segment overwritten by the next": (
        FILE,
        "    pass_on(barrier);\n    wait(barrier, phase);\n  }",
        "  }",
    ),
    "the slots of a batch not in turn": (
        FILE,
        "slot + t < S::kRows ? slot + t : slot + t - S::kRows",
        "slot + t < S::kRows ? slot + t : t",
    ),
    "a segment's last rows missing": (
        FILE,
        "end(top + rows + S::kKernel / 2)",
        "end(top + rows + S::kKernel / 2 - 1)",
    ),
    "no fence before the products": (
        FILE,
        "      wgmma_fence();\n",
        "",
    ),
    "results taken before the wait": (
        FILE,
        "      wgmma_wait<0>();\n",
        "",
    ),
    "weights not waited for": (
        FILE,
        "    barrier_wait(weights_ready, 0);\n",
        "",
    ),
    "the second copy of the weights one row short": (
        FILE,
        "kSecond = S::kWeights - S::kWeightRow;",
        "kSecond = S::kWeights - 2 * S::kWeightRow;",
    ),
    "pixels beside the image not zero": (
        FILE,
        "row_inside && inside[i] ? v : 0",
        "row_inside ? v : 0",
    ),
}
# Of the unshuffled image.
PIXEL_BUGS: dict[str, Bug] = {
    "the padding of the pixels not cleared": (
        FILE,
        "  HeadRows<S>::prepare(ring, thread);\n",
        "",
    ),
    "the padding cleared when others store": (
        FILE,
        "  HeadRows<S>::prepare(ring, thread);\n  synchronize();\n",
        "  synchronize();\n  HeadRows<S>::prepare(ring, thread);\n",
    ),
    "no reflection": (
        "head.cuh",
        "return i < size ? i : 2 * size - 2 - i;",
        "return i < size ? i : -1;",
    ),
    "the reflection a pixel off": (
        "head.cuh",
        "2 * size - 2 - i",
        "2 * size - 1 - i",
    ),
    "the image rows of a pixel in the wrong order": (
        FILE,
        "reflected(u * y + dy, ",
        "reflected(u * y + u - 1 - dy, ",
    ),
    "pixels beside the image not zero": (
        FILE,
        "row_inside && column[i] >= 0 ? v : 0",
        "row_inside ? v : 0",
    ),
    "windows a column off": (
        FILE,
        "thread % 16 + dx, thread / 16 % 2",
        "thread % 16 + 2 - dx, thread / 16 % 2",
    ),
}


def runner(
    module: Module,
    p: int,
    kernel: int,
    dtype: torch.dtype,
    rows: int,
    blocks: int,
    order: int,
    unshuffle: int = 1,
) -> Run:
    """Runs an instance in segments of ``rows``, on features that are NaN at first."""
    wanted = {"bfloat16": dtype == torch.bfloat16, "channels": p, "kernel": kernel}
    wanted["unshuffle"] = unshuffle
    (instance,) = (i for i in module.instances if wanted.items() <= i.items())
    # A block may use 227 of an SM's 228 KB.
    assert instance["shared_bytes"] <= 227 * 1024

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
        down, across = -(-height // unshuffle), -(-width // unshuffle)
        features = poisoned((n, down, across, p), packed.dtype)
        storage = image.untyped_storage()
        segments = n * -(-across // 64) * -(-down // rows)  # each block has at least one
        wavefronts = instance["run"](
            module.Buffer(storage.data_ptr(), storage.nbytes()),
            image.data_ptr(),
            image.stride(),
            TYPES.index(image.dtype),
            *(buffer(module, t) for t in (mean, packed, features)),
            *(ACTIVATIONS.index(activation), n, height, width, rows, min(blocks, segments), order),
        )
        for fewest, needed in wavefronts.values():
            assert fewest == needed  # no bank conflicts
        return features

    return run


@pytest.fixture(scope="module")
def emulated() -> Module:
    return load("head_hopper")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("p", "channels"), CHANNELS)
def test_values(emulated: Module, p: int, channels: int, kernel: int) -> None:
    which = kernel // 2 + p // 16
    dtype = FLOATS[which % 2]
    # (rows of a segment, blocks): one segment; several per block; several per warpgroup.
    for i, (rows, blocks, shape) in enumerate(
        [(1, 1, (1, 1, 1)), (4, 2, (2, 6, 7)), (7, 1, (1, 13, 65))]
    ):
        run = runner(emulated, p, kernel, dtype, rows, blocks, order=(which + i) % 4)
        image = image_of(shape, TYPES[(which + i) % 4], LAYOUTS[(which + i) % 3])
        check(run, channels, kernel, dtype, image, with_mean=bool((which + i) % 4))


@pytest.mark.parametrize(("p", "channels"), CHANNELS)
def test_unshuffle(emulated: Module, p: int, channels: int) -> None:
    dtype = FLOATS[p // 16 % 2]
    # Even and odd sizes.
    for i, (rows, blocks, shape) in enumerate(
        [(1, 1, (1, 2, 2)), (4, 2, (2, 11, 13)), (7, 1, (1, 25, 129)), (3, 1, (1, 24, 6))]
    ):
        run = runner(emulated, p, 3, dtype, rows, blocks, (p // 16 + i) % 4, unshuffle=2)
        image = image_of(shape, TYPES[(p // 16 + i) % 4], LAYOUTS[(p // 16 + i) % 3])
        check(run, channels, 3, dtype, image, with_mean=i > 0, unshuffle=2)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_activation(emulated: Module, activation: str, dtype: torch.dtype) -> None:
    run = runner(emulated, 32, 3, dtype, rows=5, blocks=1, order=0)
    image = image_of((1, 6, 9), torch.float32, "planar")
    check(run, 28, 3, dtype, image, activation=activation)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("image_dtype", TYPES)
def test_images(emulated: Module, image_dtype: torch.dtype, layout: str) -> None:
    run = runner(emulated, 16, 3, torch.float16, rows=5, blocks=1, order=0)
    for with_mean in (False, True):
        image = image_of((2, 6, 9), image_dtype, layout)
        check(run, 16, 3, torch.float16, image, with_mean=with_mean)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("p", "channels"), CHANNELS)
def test_all_sizes_and_orders(
    emulated: Module, p: int, channels: int, kernel: int, dtype: torch.dtype
) -> None:
    sizes = [(1, 1), (1, 7), (9, 1), (15, 63), (16, 64), (17, 65), (5, 129)]
    for order in range(4):
        for i, size in enumerate(sizes):
            rows, blocks = ((1, 3), (3, 2), (16, 1))[(i + order) % 3]
            run = runner(emulated, p, kernel, dtype, rows, blocks, order)
            image = image_of((1 + i % 2, *size), TYPES[(i + order) % 4], LAYOUTS[i % 3])
            check(run, channels, kernel, dtype, image, with_mean=bool(order % 2))


@pytest.fixture(scope="module")
def planted() -> dict[str, Module]:
    """One module for each bug, built two at a time."""
    with ThreadPoolExecutor(2) as pool:
        built = {
            k: pool.submit(load, "head_hopper", bug=bug, macros=("ESPAN_ONE_TYPE",))
            for k, bug in (BUGS | {f"unshuffled: {k}": b for k, b in PIXEL_BUGS.items()}).items()
        }
    return {name: module.result() for name, module in built.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(planted: dict[str, Module], name: str) -> None:
    """It gives a wrong result or an emulator error, in any order of the warps."""
    for order in range(4):
        run = runner(planted[name], 16, 3, torch.float16, 8, 1, order)
        image = image_of((1, 40, 9), torch.float32, "strided")
        with pytest.raises((AssertionError, RuntimeError)):
            check(run, 16, 3, torch.float16, image)


@pytest.mark.slow
@pytest.mark.parametrize("name", PIXEL_BUGS)
def test_a_planted_bug_of_the_unshuffled_image_is_found(
    planted: dict[str, Module], name: str
) -> None:
    for order in range(4):
        module = planted[f"unshuffled: {name}"]
        run = runner(module, 16, 3, torch.float16, 8, 1, order, unshuffle=2)
        image = image_of((1, 79, 17), torch.float32, "strided")
        with pytest.raises((AssertionError, RuntimeError)):
            check(run, 16, 3, torch.float16, image, unshuffle=2)
