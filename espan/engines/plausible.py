"""The range that an output must keep to mean something."""

from torch import Tensor

# On Set5 and Set14 the official networks stay within -0.17 to 1.17.  A 1-px grid drives the
# official ESPAN to 600 and more: out here the values mean nothing, and clamping would only hide it.
# The kernels have the same limits (`espan_kernels.tail`).
PLAUSIBLE = (-1.0, 2.0)


def is_plausible(low: Tensor, high: Tensor) -> Tensor:
    """Whether values from `low` to `high` keep the range; not if one is not a number."""
    return (low >= PLAUSIBLE[0]) & (high <= PLAUSIBLE[1])
