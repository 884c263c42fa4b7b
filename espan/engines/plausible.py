"""The range of outputs that can be an image."""

from torch import Tensor

# On Set5 and Set14 the official networks stay within -0.17 to 1.17.  A one-pixel grid drives the
# official ESPAN beyond 600: such values mean nothing, and clamping would only hide them.  The
# kernels use the same limits (`espan_kernels.tail`).
PLAUSIBLE = (-1.0, 2.0)


def is_plausible(low: Tensor, high: Tensor) -> Tensor:
    """Whether `low` and `high` are in the range; NaN is not."""
    return (low >= PLAUSIBLE[0]) & (high <= PLAUSIBLE[1])
