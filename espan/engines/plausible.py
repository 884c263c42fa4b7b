"""The range of plausible output values."""

from torch import Tensor

# On Set5 and Set14, the official networks stay within -0.17 to 1.17.  A one-pixel grid drives the
# official ESPAN beyond 600.  Such values are meaningless, and clamping would only hide them.  The
# kernels use the same limits (`espan_kernels.tail`).
PLAUSIBLE = (-1.0, 2.0)


def is_plausible(low: Tensor, high: Tensor) -> Tensor:
    """Whether `low` and `high` are in the range; false for NaN."""
    return (low >= PLAUSIBLE[0]) & (high <= PLAUSIBLE[1])
