"""The tolerance rule: what it measures, what it accepts and what it detects."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from espan_kernels import reference
from tests.kernels import gate_cases
from tests.kernels.winograd_reference import by_winograd
from tests.tolerance import Reference, Simulated, assert_accurate, expected, rounded

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
CHANNELS, SIZE = 12, (9, 14)


def values(*shape: int, scale: float = 1.0) -> Tensor:
    """bf16 values, which every dtype can represent, from NumPy, whose sequences never change."""
    random = np.random.Generator(np.random.PCG64(sum(shape))).standard_normal(shape)
    return torch.from_numpy(scale * random).bfloat16().double()


X, WEIGHTS = values(2, CHANNELS, *SIZE), [values(CHANNELS, CHANNELS, 3, 3, scale=0.1)] * 3
BIASES = [values(CHANNELS)] * 3
SIDE, UP = values(CHANNELS, 2 * CHANNELS, 1, 1, scale=0.2), values(12, CHANNELS, 3, 3, scale=0.1)
COLOURS, OTHERS = values(4, 3, *SIZE).chunk(2)
HEAD = values(CHANNELS, 3, 5, 5, scale=0.1)


def cast(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    return [t.to(dtype) for t in tensors]


def spab(dtype: torch.dtype, x: Tensor = X, weights: list[Tensor] = WEIGHTS) -> Tensor:
    return reference.spab(x.to(dtype), cast(dtype, *weights), cast(dtype, *BIASES))[0]


def head(dtype: torch.dtype, x: Tensor = COLOURS, weight: Tensor = HEAD) -> Tensor:
    return reference.head(*cast(dtype, x, weight, BIASES[0]), None)


def tail(dtype: torch.dtype, x: Tensor = X, weight: Tensor = WEIGHTS[0]) -> Tensor:
    last, weight, side, bias, up = cast(dtype, x, weight, SIDE, BIASES[0], UP)
    return reference.tail(last, [last, last], weight, side, bias, up, bias, 2)


def gate(dtype: torch.dtype) -> Tensor:
    return reference.gate(*cast(dtype, X, X.flip(2)))


def gate_gradients(dtype: torch.dtype) -> Tensor:
    return torch.stack(gate_cases.gradients(*cast(dtype, X.flip(3), X, X.flip(2))))


def loss_gradient(dtype: torch.dtype) -> Tensor:
    images = cast(dtype, COLOURS, OTHERS)
    return reference.frequency_loss_gradient(*images, torch.ones(()))[2]


def winograd(dtype: torch.dtype) -> Tensor:
    with by_winograd():
        return spab(dtype)


REFERENCES: tuple[Callable[..., Tensor], ...] = (
    spab,
    head,
    tail,
    gate,
    gate_gradients,
    loss_gradient,
    winograd,
)
# The errors of the simulated references, in each of FLOATS.
ERRORS = {
    "spab": [1.430e-06, 2.447e-03, 2.746e-02],
    "head": [1.505e-06, 1.891e-03, 1.496e-02],
    "tail": [3.272e-06, 4.926e-03, 2.863e-02],
    "gate": [2.323e-07, 1.999e-03, 1.961e-02],
    "gate_gradients": [1.595e-07, 2.104e-03, 1.587e-02],
    "loss_gradient": [1.951e-09, 7.515e-06, 5.999e-05],
    "winograd": [2.089e-6, 2.447e-03, 2.746e-02],
}
each = pytest.mark.parametrize("plain", REFERENCES, ids=lambda f: f.__name__)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)


@each_dtype
@each
def test_the_correctly_rounded_result_passes(plain: Reference, dtype: torch.dtype) -> None:
    assert_accurate(plain(torch.float64).to(dtype), plain)


class NarrowArithmetic(TorchDispatchMode):
    """Lists the operations on numbers of fewer bits than float64."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        narrow = any(t.is_cpu and t.dtype in FLOATS for t in tensors)
        moves = any(a.alias_info and not a.alias_info.is_write for a in op._schema.arguments)
        if narrow and not moves:
            self.found.add(op._schema.name)
        return op(*args, **(kwargs or {}))


@each_dtype
@each
def test_the_rule_uses_no_arithmetic_in_the_dtype(plain: Reference, dtype: torch.dtype) -> None:
    """So the allowed error does not depend on how PyTorch happens to round on this machine."""
    with NarrowArithmetic() as mode:
        expected(plain, dtype)
    copies = {"aten::_to_copy", "aten::copy_"}
    assert mode.found <= copies
    with NarrowArithmetic() as mode:
        plain(dtype)
    assert mode.found - copies


def test_the_allowed_error_is_the_same_on_every_machine() -> None:
    """These values are from one processor; all others must agree."""
    for plain in REFERENCES:
        found = [expected(plain, dtype)[0].error for dtype in FLOATS]
        assert found == pytest.approx(ERRORS[plain.__name__], rel=1e-3), plain.__name__


def several_units(plain: Reference, dtype: torch.dtype) -> float:
    """An error relative to the largest value, slightly above that allowed for a few layers."""
    units = (32 if plain is winograd else 12) if dtype == torch.float32 else 6
    return units * torch.finfo(dtype).eps


@each_dtype
@each
def test_an_error_of_one_element_is_found(plain: Reference, dtype: torch.dtype) -> None:
    exact = plain(torch.float64)
    wrong = exact.clone().view(-1)
    wrong[wrong.numel() // 3] += several_units(plain, dtype) * exact.abs().max()
    with pytest.raises(AssertionError, match="allowed"):
        assert_accurate(wrong.view(exact.shape).to(dtype), plain)


@each_dtype
@each
def test_an_error_of_a_whole_tensor_is_found(plain: Reference, dtype: torch.dtype) -> None:
    wrong = plain(torch.float64) * (1 + several_units(plain, dtype))
    with pytest.raises(AssertionError, match="allowed"):
        assert_accurate(wrong.to(dtype), plain)


@each_dtype
@pytest.mark.parametrize("plain", [spab, head, tail])
def test_one_wrong_tap_is_found(plain: Any, dtype: torch.dtype) -> None:
    """One weight of the first layer is replaced by its neighbour."""
    kernel = HEAD if plain is head else WEIGHTS[0]
    swapped = kernel.clone()
    swapped[:, :, 0, 1] = kernel[:, :, 0, 2]
    given = {"weights": [swapped, *WEIGHTS[1:]]} if plain is spab else {"weight": swapped}
    wrong, other = plain(torch.float64), plain(torch.float64, **given)
    channel = (other - wrong)[1, :, 5, 7].abs().argmax()
    wrong[1, channel, 5, 7] = other[1, channel, 5, 7]
    with pytest.raises(AssertionError, match="allowed"):
        assert_accurate(wrong.to(dtype), plain)


@each_dtype
@pytest.mark.parametrize("plain", [spab, head, tail])
def test_a_missing_halo_row_is_found(plain: Any, dtype: torch.dtype) -> None:
    """The lower part is computed without the rows above it."""
    top = 4
    x = COLOURS if plain is head else X
    wrong = plain(torch.float64)
    part = plain(torch.float64, x=x[:, :, top:])
    wrong[:, :, -part.shape[2] :] = part
    with pytest.raises(AssertionError, match="allowed"):
        assert_accurate(wrong.to(dtype), plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_sums_are_found(dtype: torch.dtype) -> None:
    """A head whose sums are rounded to the dtype after each product."""
    total = torch.zeros(2, CHANNELS, *SIZE, dtype=dtype) + BIASES[0].to(dtype).view(-1, 1, 1)
    for i in range(75):
        tap = torch.zeros_like(HEAD)
        tap.view(CHANNELS, 75)[:, i] = HEAD.view(CHANNELS, 75)[:, i]
        total = (total.double() + torch.conv2d(COLOURS, tap, padding=2)).to(dtype)
    with pytest.raises(AssertionError, match="allowed"):
        assert_accurate(total, head)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_wrong_non_finite_values_are_found(value: float) -> None:
    exact = gate(torch.float64).float()
    exact[0, 0, 0, 0] = value
    with pytest.raises(AssertionError, match="allowed"):
        assert_accurate(exact, gate)


def test_overflow_must_be_preserved() -> None:
    def squares(dtype: torch.dtype) -> Tensor:
        return torch.tensor([1.0, 2.0, 1e3], dtype=dtype).square()

    assert_accurate(torch.tensor([1.0, 4.0, torch.inf]).half(), squares)
    with pytest.raises(AssertionError, match="inf"):
        assert_accurate(torch.tensor([1.0, 4.0, 65504.0]).half(), squares)
    with pytest.raises(AssertionError, match="allowed"):
        assert_accurate(torch.tensor([1.0, torch.inf, torch.inf]).half(), squares)


@each_dtype
def test_rounding_up_or_down(dtype: torch.dtype) -> None:
    """Values are rounded to a neighbour so that the mean is kept; values of the dtype stay."""
    random, info = np.random.default_rng(0), torch.finfo(dtype)
    own = values(1000).numpy()
    special = np.array([0, info.tiny, info.tiny * info.eps, info.max, np.inf, -np.inf, np.nan])
    for kept in (own, special):
        assert np.array_equal(rounded(kept, dtype, random), kept, equal_nan=True)
    for unit in (info.eps, info.tiny * info.eps):  # of 1, and of the smallest values
        base = 1.0 if unit == info.eps else 0.0
        for sign in (1, -1):
            found = rounded(np.full(10_000, sign * (base + 0.3 * unit)), dtype, random)
            steps = (sign * found - base) / unit
            assert set(steps) == {0.0, 1.0}
            assert abs(steps.mean() - 0.3) < 0.02


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("terms", [27, 576])
def test_the_simulated_error_of_a_sum(terms: int, positive: bool) -> None:
    """With rounding to nearest, its error is 1 / sqrt 2 of that with stochastic rounding."""
    random = np.random.Generator(np.random.PCG64(terms))
    a, b = (
        torch.from_numpy(random.standard_normal(s)).float() for s in ((4000, terms), (terms, 1))
    )
    if positive:
        a, b = a.abs(), b.abs()
    running = torch.zeros(4000)
    for i in range(terms):
        running = (running.double() + a[:, i].double() * b[i].double()).float()
    with Simulated(0):
        simulated = (a @ b)[:, 0]
    exact = (a.double() @ b.double())[:, 0]
    errors = [(t.double() - exact).square().mean().sqrt() for t in (simulated, running)]
    assert 0.9 < errors[0] / (errors[1] * 2**0.5) < 1.1
