"""The tolerance rule for the results of all kernels.

    largest error of the kernel  <=  1.25 x largest error of the reference, rounded after every op
                                     + eps(dtype) x largest exact magnitude

Both errors are measured against the reference in float64.  The allowed error is the same on every
machine, because it does not depend on results of PyTorch in the kernel's dtype.  Instead, the
reference runs in the kernel's dtype with every PyTorch operation simulated:

* The operation is computed in float64, and its result is rounded to the dtype up or down at random,
  with probabilities that preserve the mean (stochastic rounding; exact results stay exact).  The
  generator is seeded.  A small tensor is simulated several times, and the largest error counts, so
  that the rule does not depend on lucky rounding.
* Products and convolutions of n terms p_i in float32 also carry the error of a plain running sum.
  With u = 2^-24, the square of a unit in the last place of a partial sum S_k is 2.16 u^2 S_k^2 on
  average over a binade, and the variance of stochastic rounding a sixth of that: 0.36 u^2 S_k^2.
  The partial sums are taken as a random walk that ends at S, so their squares add up to
  n (S^2 / 3 + sum p_i^2 / 6) on average.  Hence the error of the sum is drawn from a normal
  distribution with the variance 0.36 u^2 n (S^2 / 3 + sum p_i^2 / 6).
* 16-bit products and convolutions are summed in float32, so the error of the sum is negligible
  compared with the final rounding.  The mean of a tensor is rounded once, like a pairwise sum.

Stochastic rounding has sqrt(2) times the RMS error of rounding to nearest, and twice the largest
error.  So the factor 1.25 corresponds to a factor of about 2 with rounding to nearest: it allows
another order of operations.  The term eps allows for one rounding where the reference's error is
zero.  There is no more exact reference for a float64 kernel, so its error counts as two roundings.

The rule compares the largest errors of whole tensors, so a test of small values must put them in a
separate tensor.  Where the exact result, rounded to the dtype, is infinite or NaN, the kernel's
must be the same; such values are excluded from the errors.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# A function that computes the same as a kernel, in the given dtype, on the CPU.
Reference = Callable[[torch.dtype], Tensor | Sequence[Tensor]]

FACTOR = 1.25
# The factor for a whole network of Winograd layers, whose transforms round more than a running
# sum: the worst network in the tests had 4.1 times the reference's error.  The bound for all inputs
# is that of a single layer.
WINOGRAD = 8
# The factor for a network with folded weights, whose layers round in another order than the plain
# ones: the worst network in the tests had 1.01 times the reference's error.
FOLDED = 2

# Layers in three bf16 products, on the CPU path amx, keep 17 bits of each value.  These are the
# allowed error of such a network relative to the largest value, and the factor where gates amplify
# it.  The worst case in tests/kernels had a third of that error.
THREE_PRODUCTS = {"share": 2.0**-15, "factor": 64.0}

aten = torch.ops.aten
PRODUCTS = (aten.convolution.default, aten.mm.default, aten.bmm.default)
# Networks whose Winograd products are of bf16 values, on the CPU path avx512, against results that
# are all rounded to bf16.  The worst network in the tests had 2.4 times the reference's error.
WINOGRAD_BFLOAT16 = {"share": 2.0**-8, "factor": 3.0}
# A tensor is simulated until there are this many values, at most SIMULATIONS times.
ENOUGH_VALUES, SIMULATIONS = 4096, 16


def streamed(path: str) -> dict[str, float]:
    """The arguments of :func:`assert_accurate` for the network as one op on a CPU path."""
    return THREE_PRODUCTS if path == "amx" else {"factor": WINOGRAD}


def rounded(
    values: NDArray[np.float64], dtype: torch.dtype, random: np.random.Generator
) -> NDArray[np.float64]:
    """Each value rounded up or down to a neighbour in ``dtype``, to the nearer one more often."""
    drop, tiny, step = _format(dtype)
    # Adding to the dropped bits carries into the remaining ones.
    noise = random.integers(0, 1 << drop, size=values.shape)
    result = ((values.view(np.int64) + noise) >> drop << drop).view(np.float64)
    magnitudes = np.abs(values)
    if not (magnitudes < np.inf).all():
        result = np.where(magnitudes < np.inf, result, values)
    small = magnitudes < tiny
    if small.any():
        result[small] = np.floor(values[small] / step + random.random(int(small.sum()))) * step
    return result


@cache
def _format(dtype: torch.dtype) -> tuple[int, float, float]:
    """The float64 bits that ``dtype`` drops, its smallest normal number, its subnormal step."""
    info = torch.finfo(dtype)
    return 52 - round(-np.log2(info.eps)), info.tiny, info.tiny * info.eps


class Simulated(TorchDispatchMode):
    """Computes every operation in float64, then rounds the result to its dtype."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = np.random.default_rng(seed)

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _computes(op) or not _any_rounds((*args, *kwargs.values())):
            return op(*args, **kwargs)
        wide_args, wide_kwargs = _mapped(_widened, args), _mapped(_widened, kwargs)
        if op._schema.is_mutable:
            assert op._schema.name.endswith("_"), op  # the first argument is the result
            op(*wide_args, **wide_kwargs)
            return args[0].copy_(self._rounded(wide_args[0], args[0].dtype))
        dtype = _dtype_of_result(op, args, kwargs)
        result = op(*wide_args, **wide_kwargs)
        if op in PRODUCTS and dtype == torch.float32:
            result = result + self._error_of_sum(op, wide_args, result)
        return self._rounded(result, dtype)

    def _rounded(self, result: Tensor, dtype: torch.dtype) -> Tensor:
        if result.dtype != torch.float64 or dtype == torch.float64:
            return result.to(dtype)
        values = result.contiguous().numpy()
        flat = torch.from_numpy(rounded(values.reshape(-1), dtype, self.random))
        return torch.empty_like(result, dtype=dtype).copy_(flat.view(result.shape))

    def _error_of_sum(self, op: Any, args: Any, total: Tensor) -> Tensor:
        first, second, *others = args
        terms = first.shape[-1]
        if op is aten.convolution.default:
            terms, others = second[0].numel(), [None, *others[1:]]  # without the bias
        squares = op(first.square(), second.square(), *others)
        variance = terms * (total.square() / 3 + squares / 6)
        unit = 0.6 * torch.finfo(torch.float32).eps / 2
        normal = torch.from_numpy(self.random.standard_normal(tuple(total.shape)))
        return unit * variance.sqrt() * normal


# A simulation runs thousands of operations on small tensors.  With PyTorch's pytree, and a run on
# meta tensors for each operation, these took most of the tests' time.


@cache
def _computes(op: Any) -> bool:
    """Whether ``op`` returns a tensor that is not a view of an argument."""
    view = any(a.alias_info for a in op._schema.arguments) and not op._schema.is_mutable
    return not view and str(op._schema.returns[0].type) == "Tensor"


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _mapped(function, v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_mapped(function, v) for v in value)
    return function(value)


def _any_rounds(values: Any) -> bool:
    return any(_any_rounds(v) if isinstance(v, list | tuple) else _rounds(v) for v in values)


def _rounds(value: Any) -> bool:
    if isinstance(value, torch.dtype):
        return value.is_floating_point and value != torch.float64
    return isinstance(value, Tensor) and _rounds(value.dtype)


def _widened(value: Any) -> Any:
    if not _rounds(value):
        return value
    return value.double() if isinstance(value, Tensor) else torch.float64


_dtypes: dict[Any, torch.dtype] = {}


def _dtype_of_result(op: Any, args: Any, kwargs: Any) -> torch.dtype:
    """The dtype of the result, from a run on meta tensors, once for each kind of arguments."""
    key = op, _mapped(_kind, args), *_mapped(_kind, kwargs).items()
    if key not in _dtypes:
        _dtypes[key] = op(*_mapped(_on_meta, args), **_mapped(_on_meta, kwargs)).dtype
    return _dtypes[key]


def _kind(value: Any) -> Any:
    """The properties of an argument on which the dtype of the result may depend."""
    return (value.dtype, value.dim()) if isinstance(value, Tensor) else (type(value), value)


def _on_meta(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("meta")
    return value.to("meta") if isinstance(value, Tensor) else value


class Expected(NamedTuple):
    """A float64 result, and the error of the simulated reference."""

    exact: Tensor
    error: float


def _tensors(result: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [t.detach() for t in ([result] if isinstance(result, Tensor) else result)]


def expected(reference: Reference, dtype: torch.dtype) -> list[Expected]:
    """Each result of ``reference`` in float64, and its error in ``dtype``."""
    exact = _tensors(reference(torch.float64))
    assert all(t.dtype == torch.float64 for t in exact)
    if dtype == torch.float64:
        return [Expected(t, 2 * torch.finfo(dtype).eps * _largest(t)) for t in exact]
    errors = [0.0] * len(exact)
    values = max(min(t.numel() for t in exact), 1)
    for seed in range(min(-(-ENOUGH_VALUES // values), SIMULATIONS)):
        with Simulated(seed):
            results = _tensors(reference(dtype))
        for i, (simulated, true) in enumerate(zip(results, exact, strict=True)):
            # The reference may overflow in intermediate results where the kernel does not.
            counts = true.to(dtype).double().isfinite()
            errors[i] = max(errors[i], _largest((simulated.double() - true)[counts]))
    return [Expected(t, error) for t, error in zip(exact, errors, strict=True)]


def _largest(t: Tensor) -> float:
    """The largest magnitude of the finite values."""
    finite = t[t.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def allowed(
    error: float, largest: float, dtype: torch.dtype, factor: float = FACTOR, share: float = 0
) -> float:
    """The error that the rule allows."""
    return factor * error + max(torch.finfo(dtype).eps, share) * largest


# The results of `expected` by key and dtype.
_simulated: dict[Hashable, list[Expected]] = {}


def assert_accurate(
    actual: Tensor | Sequence[Tensor],
    reference: Reference,
    *,
    dtype: torch.dtype | None = None,
    factor: float = FACTOR,
    share: float = 0,
    key: Hashable = None,
) -> None:
    """Check one or several results of a kernel against the rule.

    Args:
        actual: the results of the kernel.
        reference: a function that computes the same on the CPU in a given dtype.  It is called
            with float64 and with ``dtype``; its inputs must have the same values in both.
        dtype: the dtype of the kernel's inputs; default: that of ``actual``.
        factor: the allowed multiple of the simulated reference's error.
        share: an allowed error relative to the largest magnitude, for kernels that keep fewer bits
            than their dtype.
        key: identifies ``reference`` and its inputs.  It is simulated once for each key, so that
            several kernels can be checked against the same results.
    """
    results = _tensors(actual)
    known = (key, dtype or results[0].dtype)
    wanted = _simulated.get(known) or expected(reference, known[1])
    if key is not None:
        _simulated[known] = wanted
    for result, (exact, error) in zip(results, wanted, strict=True):
        assert_within(result, exact, error, factor=factor, share=share)


def assert_within(
    actual: Tensor, exact: Tensor, error: float, *, factor: float = FACTOR, share: float = 0
) -> None:
    """Check the rule, given the ``error`` of the reference."""
    assert exact.dtype == torch.float64
    assert actual.shape == exact.shape
    dtype, actual = actual.dtype, actual.double().cpu()
    nearest = exact.to(dtype).double()
    finite = nearest.isfinite()
    torch.testing.assert_close(
        torch.where(finite, 0, actual),
        torch.where(finite, 0, nearest),
        rtol=0,
        atol=0,
        equal_nan=True,
    )
    if not finite.any():
        return
    found = (actual - exact)[finite].abs().max().item()
    bound = allowed(error, exact[finite].abs().max().item(), dtype, factor, share)
    # Not `found > bound`, which would accept NaN.
    assert found <= bound, f"error {found:.3g}, allowed {bound:.3g} (reference's: {error:.3g})"
