"""The source of the block's CUDA kernels on the CPU, with the emulator in tests/emulator."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.emulator.build import Bug, Module, buffer, check_shared_memory, load, poisoned
from tests.kernels.spab_cases import KINDS, SPAN, Kind, Run, check

FLOATS = (torch.float16, torch.bfloat16)
# (P, rows of a tile) of the instances in spab.cuh, each with a smaller number of channels.
INSTANCES = [
    (16, 16, 13),
    (32, 16, 26),
    (32, 10, 28),
    (32, 6, 32),
    (48, 16, 48),
    (48, 8, 36),
    (64, 16, 64),
    (64, 6, 52),
]
ONE = ("ESPAN_ONE_INSTANCE",)  # per number of warps that share the channels
CODES = {
    "silu": 1,
    "relu": 2,
    "mish": 3,
    "sigmoid": 0,
    "linear": 1,
    "tanh": 2,
    "none": 3,
    "act": 4,
}  # of Activation and GateKind in point.cuh

BUGS: dict[str, Bug] = {
    "missing barrier": (
        "spab.cuh",
        "synchronize();\n  work.template finish",
        "work.template finish",
    ),
    "halo one short": ("spab.cuh", "S::kHeight + 6, p.height", "S::kHeight + 5, p.height"),
    "wrong swizzle": (
        "conv.cuh",
        "In::offset(left + dx, 2 * k + half)",
        "In::offset(left, 2 * k + half) + dx * In::kPixel",
    ),
    "no swizzle": (
        "conv.cuh",
        "if constexpr (P == 32) return column >> 1 & 3;",
        "return 0;",
    ),
}
WRONG = ("missing barrier", "halo one short", "wrong swizzle")  # the last is slow, not wrong
GATE_BUGS: dict[str, Bug] = {
    "the steps of K in another order": (
        "spab.cuh",
        "(k + work.first_pair()) % kSteps",
        "(kSteps - 1 - k + work.first_pair()) % kSteps",
    ),
    "no bias of the gate": (
        "spab.cuh",
        "work.p.bias + work.p.convs * S::P + work.first_pair() * 16",
        "work.p.bias + work.first_pair() * 16",
    ),
    "the gate's weights of the other warp's channels": (
        "spab.cuh",
        "work.p.weights + work.p.convs * S::kWeights + work.first_pair() * 32",
        "work.p.weights + work.p.convs * S::kWeights",
    ),
    "exchanged before the other warp stored": (
        "spab.cuh",
        "          }\n        synchronize();",
        "          }",
    ),
    "exchanged where another warp still reads": (
        "spab.cuh",
        "* 16;\n        synchronize();",
        "* 16;",
    ),
    "the other warp's channels twice": (
        "spab.cuh",
        "(thread ^ (S::kThreads / 2))",
        "thread",
    ),
}


@pytest.fixture(scope="module")
def emulated() -> Module:
    return load("spab")


def instances(
    module: Module, dtype: torch.dtype, channels: int, height: int
) -> list[dict[str, Any]]:
    """The module's instances with these properties; some differ only in their warps."""
    wanted = (dtype == torch.bfloat16, channels, height)
    found = [i for i in module.instances if (i["bfloat16"], i["channels"], i["height"]) == wanted]
    assert found
    return found


def runner(module: Module, instance: dict[str, Any], order: int = 0, kind: Kind = SPAN) -> Run:
    """Runs an instance, its warps in a given order, in arrays that are NaN at first."""
    codes = [CODES[name] for name in kind]

    def run(x: Tensor, packed: Tensor, channels: int, convs: int) -> tuple[Tensor, Tensor]:
        n, height, width, _ = x.shape
        y, activation = (poisoned(tuple(x.shape), x.dtype) for _ in range(2))
        arrays = [buffer(module, t) for t in (x, packed, y, activation)]
        before = x.clone(), packed.view(torch.uint8).clone()
        wavefronts = instance["run"](*arrays, convs, n, height, width, *codes, order)
        assert torch.equal(x, before[0])
        assert torch.equal(packed.view(torch.uint8), before[1])
        # No bank conflicts at all, neither in ldmatrix nor in the stores of activations.
        assert set(wavefronts) == {"ldmatrix", "st.shared"}
        for fewest, needed in wavefronts.values():
            assert fewest == needed
        return y, activation

    return run


def test_shared_memory_fits(emulated: Module) -> None:
    check_shared_memory(emulated)


def test_all_instances_are_tested(emulated: Module) -> None:
    found = {(i["channels"], i["height"]) for i in emulated.instances}
    assert found == {(p, height) for p, height, _ in INSTANCES}
    assert len(emulated.instances) == 2 * (len(INSTANCES) + 1)  # (32, 16) by 4 and by 8 warps


@pytest.mark.parametrize("convs", [2, 3])
@pytest.mark.parametrize(("p", "rows", "channels"), INSTANCES)
def test_values(emulated: Module, p: int, rows: int, channels: int, convs: int) -> None:
    dtype = FLOATS[(rows + convs + p // 16) % 2]
    for order, instance in enumerate(instances(emulated, dtype, p, rows), start=convs - 2):
        run = runner(emulated, instance, order)
        check(run, channels, convs, dtype, (1, 1, 1))
        check(run, channels, convs, dtype, (2 if p < 48 else 1, rows + 1, 29))


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize(("p", "rows", "channels"), [INSTANCES[0], INSTANCES[3], *INSTANCES[5::2]])
def test_other_activations_and_gates(
    emulated: Module, p: int, rows: int, channels: int, kind: Kind
) -> None:
    dtype = FLOATS[(p // 16 + KINDS.index(kind)) % 2]
    for order, instance in enumerate(instances(emulated, dtype, p, rows)):
        run = runner(emulated, instance, order, kind)
        check(run, channels, 3 - order, dtype, (1, rows + 1, 29), kind=kind)


def test_the_bias_does_not_leak_across_the_border(emulated: Module) -> None:
    """With tiny weights, feature maps are silu(bias) inside and zero outside the image."""
    for instance in instances(emulated, torch.float16, 32, 16):
        check(runner(emulated, instance), 28, 3, torch.float16, (1, 1, 7), gain=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("convs", [2, 3])
@pytest.mark.parametrize(("p", "rows", "channels"), INSTANCES)
@pytest.mark.parametrize("kind", KINDS)
def test_all_sizes_and_orders(
    emulated: Module,
    kind: Kind,
    p: int,
    rows: int,
    channels: int,
    convs: int,
    dtype: torch.dtype,
) -> None:
    sizes = [(1, 1), (1, 7), (9, 1), (rows - 1, 27), (rows, 28), (rows + 1, 29), (2 * rows + 3, 57)]
    orders = [0, 1, 2, 3]
    if kind != SPAN:  # what differs depends on neither
        sizes, orders = sizes[1::5], [3]
    for instance in instances(emulated, dtype, p, rows):
        for order in orders:
            run = runner(emulated, instance, order, kind)
            for size in sizes:
                check(run, channels, convs, dtype, (1, *size), kind=kind)
            check(run, p, convs, dtype, (2, rows + 1, 29), kind=kind)


@pytest.fixture(scope="module")
def planted() -> dict[str, Module]:
    """One module for each bug, built two at a time."""
    with ThreadPoolExecutor(2) as pool:
        bugs = BUGS | GATE_BUGS
        built = {k: pool.submit(load, "spab", bug=bug, macros=ONE) for k, bug in bugs.items()}
    return {name: module.result() for name, module in built.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_a_planted_bug_is_found(planted: dict[str, Module], name: str) -> None:
    """It gives a wrong result or an emulator error, in any order of the warps."""
    module = planted[name]
    (instance,) = instances(module, torch.float16, 32, 16)
    for order in (0, 1):
        with pytest.raises((AssertionError, RuntimeError)):
            check(runner(module, instance, order), 32, 3, torch.float16, (1, 18, 9))


@pytest.mark.slow
@pytest.mark.parametrize("name", GATE_BUGS)
def test_a_planted_bug_of_the_gate_is_found(planted: dict[str, Module], name: str) -> None:
    module = planted[name]
    (instance,) = instances(module, torch.float16, 64, 6)
    for order in (0, 1):
        run = runner(module, instance, order, ("relu", "linear"))
        with pytest.raises((AssertionError, RuntimeError)):
            check(run, 64, 2, torch.float16, (1, 7, 9), kind=("relu", "linear"))


@pytest.mark.slow
def test_an_identity_swizzle_causes_bank_conflicts(planted: dict[str, Module]) -> None:
    module = planted["no swizzle"]
    (instance,) = instances(module, torch.float16, 32, 16)
    with pytest.raises(AssertionError, match=r"assert \d+ == \d+"):
        check(runner(module, instance), 32, 3, torch.float16, (1, 9, 9))


def test_the_emulator_detects_out_of_range_accesses(emulated: Module) -> None:
    (instance, *_) = instances(emulated, torch.float16, 32, 16)
    x = torch.zeros(1, 4, 4, 32, dtype=torch.float16)
    packed = torch.zeros(3 * 9 * 32 * 32 + 3 * 2 * 32, dtype=torch.float16)
    y = torch.zeros_like(x)
    arrays = [buffer(emulated, t) for t in (x, packed, y, None)]
    codes = [CODES[name] for name in SPAN]
    instance["run"](*arrays, 3, 1, 4, 4, *codes, 0)
    with pytest.raises(RuntimeError, match="global memory write out of range"):
        instance["run"](*arrays[:2], buffer(emulated, y[:, :3]), arrays[3], 3, 1, 4, 4, *codes, 0)
    with pytest.raises(RuntimeError, match="global memory read out of range"):
        instance["run"](
            arrays[0], buffer(emulated, packed[:-2]), *arrays[2:], 3, 1, 4, 4, *codes, 0
        )
