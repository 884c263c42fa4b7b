"""The source of the streaming Hopper kernels on the CPU, with the emulator in tests/emulator."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.emulator.build import Bug, Module, buffer, load, poisoned
from tests.kernels.spab_cases import KINDS, SPAN, Kind, check_not_finite
from tests.kernels.spab_cases import check as check_spab
from tests.kernels.tail_cases import check as check_tail

FLOATS = (torch.float16, torch.bfloat16)
TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
CHANNELS = [
    (16, 13),
    (32, 26),
    (48, 41),
]  # P of the instances, each with a smaller number of channels

BUGS: dict[str, Bug] = {
    "accumulators rotated the wrong way": (
        "stream.cuh",
        "(3 - kPhase) % 3 * N",
        "kPhase % 3 * N",
    ),
    "a slot filled before it is empty": (
        "spab_hopper.cuh",
        "      out.wait_empty();\n",
        "",
    ),
    "a phase off": (
        "stream.cuh",
        "barrier_wait(full(), phase);",
        "barrier_wait(full(), phase ^ 1);",
    ),
    "a row short": (
        "spab_hopper.cuh",
        "n < rows + 2 * p.convs",
        "n < rows + 2 * p.convs - 1",
    ),
    "a ring one row short": (
        "stream.cuh",
        "kBytes = kSlots * kSlotBytes",
        "kBytes = (kSlots - 1) * kSlotBytes",
    ),
    "a row passed on by one lane before the others stored theirs": (
        "spab_hopper.cuh",
        "      synchronize_warp();\n      if (lane == 0) barrier_arrive(out.full());",
        "      if (lane == 0) barrier_arrive(out.full());",
    ),
    "no fence before the products": (
        "stream.cuh",
        "    wgmma_fence();\n",
        "",
    ),
    "results taken before the wait": (
        "stream.cuh",
        "      wgmma_wait<0>();\n      registers_fence(all);\n",
        "      registers_fence(all);\n",
    ),
    "operands loaded before the products that read them are done": (
        "stream.cuh",
        "          wgmma_wait<1>();\n",
        "",
    ),
    "weights not waited for": (
        "spab_hopper.cuh",
        "\n  barrier_wait(ready + 8 * i, 0);\n",
        "\n",
    ),
}
GATE_BUGS: dict[str, Bug] = {
    "the steps of K in another order": (
        "spab_hopper.cuh",
        "weights + k * (2 * S::P),",
        "weights + (kSteps - 1 - k) * (2 * S::P),",
    ),
    "the first step added to the last row": (
        "spab_hopper.cuh",
        " k > 0);",
        " true);",
    ),
    "no bias of the gate": (
        "spab_hopper.cuh",
        "d[4 * j + 2 * high] + b.x, d[4 * j + 2 * high + 1] + b.y",
        "d[4 * j + 2 * high] + 0 * b.x, d[4 * j + 2 * high + 1] + 0 * b.y",
    ),
    "the gate not waited for": (
        "spab_hopper.cuh",
        "    wgmma_wait<kRunning>();\n",
        "",
    ),
    "the gate waited for with one product too many still running": (
        "stream.cuh",
        "after.template finish<2>();",
        "after.template finish<3>();",
    ),
    "the last gate not waited for": (
        "stream.cuh",
        "after.template finish<0>();",
        "after.template finish<2>();",
    ),
    "the gate of the last row not started": (
        "stream.cuh",
        "    after.start();\n    after.template finish<0>();",
        "    after.template finish<0>();",
    ),
    "no fence before the gate's products": (
        "spab_hopper.cuh",
        "    wgmma_fence();\n",
        "",
    ),
    "the gate's weights not waited for": (
        "spab_hopper.cuh",
        "S::Conv::kBytes + (gate ? S::kGateBytes : 0)",
        "S::Conv::kBytes",
    ),
    "the bias of the last convolution as that of the gate": (
        "spab_hopper.cuh",
        "p.bias + p.convs * S::P, 4",
        "p.bias + (p.convs - 1) * S::P, 4",
    ),
}


def instance(module: Module, dtype: torch.dtype, **wanted: int) -> dict[str, Any]:
    wanted["bfloat16"] = dtype == torch.bfloat16
    (found,) = [i for i in module.instances if all(i[k] == v for k, v in wanted.items())]
    # A block may use 227 of an SM's 228 KB.
    assert found["shared_bytes"] <= 227 * 1024
    return found


def spab_runner(module: Module, p: int, dtype: torch.dtype, rows: int, order: int) -> Any:
    """Runs the block in segments of ``rows``, in arrays that are NaN at first."""
    kernel = instance(module, dtype, channels=p)["run"]

    def run(x: Tensor, packed: Tensor, channels: int, convs: int) -> tuple[Tensor, Tensor]:
        n, height, width, _ = x.shape
        y, activation = (poisoned(tuple(x.shape), x.dtype) for _ in range(2))
        arrays = [buffer(module, t) for t in (x, packed, y, activation)]
        wavefronts = kernel(*arrays, convs, n, height, width, rows, order)
        assert set(wavefronts) == {"ldmatrix", "st.shared"}
        for fewest, needed in wavefronts.values():
            assert fewest == needed  # no bank conflicts
        return y, activation

    return run


def tail_runner(
    module: Module, p: int, sides: int, dtype: torch.dtype, rows: int, order: int
) -> Any:
    def run(
        head: Tensor,
        first: Tensor,
        last: Tensor,
        activation: Tensor | None,
        packed: Tensor,
        channels: int,
        scale: int,
        image_dtype: torch.dtype,
        flag: Tensor,
        last_kernel: int = 3,
    ) -> Tensor:
        n, height, width, _ = last.shape
        hwc = image_dtype == torch.uint8
        size = (n, scale * height, scale * width)
        image = poisoned((*size, 3) if hwc else (n, 3, *size[1:]), image_dtype)
        maps = [head, first] if activation is None else [head, first, activation]
        up_tiles = 6 if scale > 2 else 2
        wanted = {"channels": p, "up_tiles": up_tiles, "sides": sides, "last_kernel": last_kernel}
        kernel = instance(module, dtype, **wanted)["run"]
        wavefronts = kernel(
            buffer(module, last),
            [buffer(module, t) for t in maps],
            *(buffer(module, t) for t in (packed, image, flag)),
            *(TYPES.index(image_dtype), scale, n, height, width, rows, order),
        )
        for fewest, needed in wavefronts.values():
            assert fewest == needed  # no bank conflicts
        return image.permute(0, 3, 1, 2) if hwc else image

    return run


def load_spab(kind: Kind, width: int = 0, bug: Bug | None = None) -> Module:
    """The kernels of a kind of block; with a width, only the one in float16."""
    macros = (f"ESPAN_ACTIVATION={kind[0]}", f"ESPAN_GATE={kind[1]}")
    return load("spab_hopper", bug=bug, macros=(*macros, *[f"ESPAN_WIDTH={width}"] * bool(width)))


@pytest.fixture(scope="module")
def modules() -> dict[str, Module]:
    with ThreadPoolExecutor(2) as pool:
        built = {"spab": pool.submit(load_spab, SPAN), "tail": pool.submit(load, "tail_hopper")}
    return {op: module.result() for op, module in built.items()}


@pytest.mark.parametrize(
    ("dtype", "convs"),
    [
        (torch.float16, 3),
        (torch.bfloat16, 2),
        pytest.param(torch.float16, 2, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, 3, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(("p", "channels"), CHANNELS)
def test_spab(
    modules: dict[str, Module], dtype: torch.dtype, p: int, channels: int, convs: int
) -> None:
    for order, (rows, shape) in enumerate(
        [(1, (1, 1, 1)), (4, (2, 6, 7)), (5, (1, 5, 61)), (3, (1, 8, 29))]
    ):
        run = spab_runner(modules["spab"], p, dtype, rows, order)
        check_spab(run, channels if order % 2 else p, convs, dtype, shape)


# The networks that have them have 32 or 48 channels.
@pytest.mark.parametrize("convs", [2, 3])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_other_activations_and_gates(kind: Kind, convs: int) -> None:
    p, channels = (48, 41) if kind in (("relu", "tanh"), ("mish", "sigmoid")) else (32, 26)
    module = load_spab(kind, p)
    for order, (rows, shape) in enumerate([(1, (1, 1, 1)), (4, (2, 6, 7)), (5, (1, 5, 61))]):
        run = spab_runner(module, p, torch.float16, rows, order)
        check_spab(run, p if order else channels, convs, torch.float16, shape, kind=kind)
    check_not_finite(run, p, kind)


@pytest.mark.parametrize(
    ("sides", "scale"),
    [
        (2, 2),
        (2, 3),
        (3, 1),
        (3, 4),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((2, 1), (2, 4), (3, 2), (3, 3))),
    ],
)
@pytest.mark.parametrize(("p", "channels"), CHANNELS)
def test_tail(modules: dict[str, Module], p: int, channels: int, sides: int, scale: int) -> None:
    for order, (rows, shape) in enumerate([(1, (1, 1, 1)), (4, (2, 6, 7)), (5, (1, 5, 63))]):
        dtype = FLOATS[(order + scale + sides) % 2]
        run = tail_runner(modules["tail"], p, sides, dtype, rows, order)
        check_tail(run, channels, scale, sides, dtype, TYPES[(order + scale) % 4], shape)


@pytest.mark.parametrize("image_dtype", TYPES)
def test_out_of_range_is_flagged(modules: dict[str, Module], image_dtype: torch.dtype) -> None:
    run = tail_runner(modules["tail"], 16, 2, torch.float16, 3, 0)
    check_tail(run, 16, 4, 2, torch.float16, image_dtype, (1, 5, 6), gain=100.0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("convs", [2, 3])
@pytest.mark.parametrize(("p", "channels"), CHANNELS)
@pytest.mark.parametrize("kind", KINDS)
def test_spab_at_all_sizes_and_orders(
    kind: Kind, p: int, channels: int, convs: int, dtype: torch.dtype
) -> None:
    module = load_spab(kind)
    sizes = [(17, 59), (16, 61), (5, 121), (9, 1), (1, 1), (1, 7), (3, 60)]
    cases = [(order, rows) for order in range(4) for rows in (1, 3, 16)]
    if kind != SPAN:  # what differs depends on neither
        sizes, cases = sizes[:4], [(1, 16), (3, 3)]
    for order, rows in cases:
        run = spab_runner(module, p, dtype, rows, order)
        for size in sizes:
            check_spab(run, channels, convs, dtype, (1, *size), kind=kind)


@pytest.fixture(scope="module")
def planted() -> dict[str, Module]:
    """One module for each bug, built two at a time."""
    with ThreadPoolExecutor(2) as pool:
        built = {k: pool.submit(load_spab, SPAN, 16, bug) for k, bug in BUGS.items()}
        learned = ("relu", "tanh")
        built |= {k: pool.submit(load_spab, learned, 32, bug) for k, bug in GATE_BUGS.items()}
    return {name: module.result() for name, module in built.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", GATE_BUGS)
def test_a_planted_bug_of_the_gate_is_found(planted: dict[str, Module], name: str) -> None:
    for order in range(4):
        run = spab_runner(planted[name], 32, torch.float16, 9, order)
        with pytest.raises((AssertionError, RuntimeError)):
            check_spab(run, 32, 3, torch.float16, (1, 18, 9), kind=("relu", "tanh"))


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(planted: dict[str, Module], name: str) -> None:
    """It gives a wrong result or an emulator error, in any order of the warps."""
    for order in range(4):
        run = spab_runner(planted[name], 16, torch.float16, 9, order)
        with pytest.raises((AssertionError, RuntimeError)):
            check_spab(run, 16, 3, torch.float16, (1, 18, 9))
