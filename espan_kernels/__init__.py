"""Kernels for the SPAN family of super-resolution networks, with their plain PyTorch meaning.

:func:`gate` is SPAB's gate; :mod:`~espan_kernels.reference` is what each op means;
:mod:`~espan_kernels.backends` tells which implementations can run here, and why others cannot.
"""

from espan_kernels import backends, reference
from espan_kernels.gate import gate

__all__ = ["backends", "gate", "reference"]
