"""The one rule by which every kernel's result is judged.

Against the exact result, which is PyTorch's reference computed in float64 from the same inputs:

    largest error of the kernel  <=  2 x largest error of PyTorch's reference in the kernel's dtype
                                     + eps(dtype) x largest exact magnitude

The factor 2 allows another order of operations; the floor allows for one rounding where PyTorch's
own error happens to be zero.  The "exact" result of a float64 kernel has a few roundings itself,
so there PyTorch's error counts as at least two.

Errors are the largest of a whole tensor, so a test of small values must put them in a tensor of
their own.  Where the exact result, rounded to the dtype, is infinite or not a number, the kernel's
must be the same; such values count towards no error.
"""

import torch
from torch import Tensor

# The factor for a whole network of Winograd layers: on random data one such layer has 11 times the
# error of a direct one (RMS).  The bound that holds for all inputs is that of a layer.
WINOGRAD = 16
# And for one of folded weights, whose layers round in another order than the plain ones: of 800
# random inputs the worst had 3.2 times the error.
FOLDED = 4


# Layers by three products of bf16, on the CPU path amx, keep 17 bits of each value: the share of
# the largest value by which a network of them may be off, and the factor where gates amplify it.
# The worst of the cases in tests/kernels was off by a third of that share; the worst with an
# img_range of 255 had 33 times PyTorch's error.
THREE_PRODUCTS = {"share": 2.0**-15, "factor": 64.0}


def streamed(path: str) -> dict[str, float]:
    """What :func:`assert_accurate` shall allow the network as one op on a CPU path."""
    return THREE_PRODUCTS if path == "amx" else {"factor": WINOGRAD}


def assert_accurate(
    actual: Tensor, reference: Tensor, exact: Tensor, *, factor: float = 2, share: float = 0
) -> None:
    """``actual`` and ``reference`` in one dtype, ``exact`` in float64."""
    assert exact.dtype == torch.float64
    assert actual.dtype == reference.dtype
    assert actual.shape == exact.shape
    dtype, actual, reference = actual.dtype, actual.double().cpu(), reference.double().cpu()
    rounded, exact = exact.to(dtype).double().cpu(), exact.cpu()
    torch.testing.assert_close(
        torch.where(rounded.isfinite(), 0, actual),
        torch.where(rounded.isfinite(), 0, rounded),
        rtol=0,
        atol=0,
        equal_nan=True,
    )
    if not (finite := rounded.isfinite()).any():
        return
    error = (actual - exact)[finite].abs().max().item()
    # The reference may overflow between its steps where the kernel does not.
    both = finite & reference.isfinite()
    theirs = (reference - exact)[both].abs().max().item() if both.any() else 0.0
    rounding = torch.finfo(dtype).eps * exact[finite].abs().max().item()
    if dtype == torch.float64:
        theirs = max(theirs, 2 * rounding)
    bound = factor * theirs + max(rounding, share * exact[finite].abs().max().item())
    # Not `error > bound`: that would pass a NaN.
    assert error <= bound, f"error {error:.3g}, allowed {bound:.3g} (PyTorch's: {theirs:.3g})"
