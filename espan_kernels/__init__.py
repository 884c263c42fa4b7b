"""Kernels for the SPAN family of super-resolution networks, with their plain PyTorch meaning.

:func:`gate` is SPAB's gate; :func:`frequency_loss` and :func:`frequency_loss_gradient` are the
frequency-aware training loss; :mod:`~espan_kernels.reference` is what each op means;
:mod:`~espan_kernels.backends` tells which implementations can run here, and why others cannot.
"""

from espan_kernels import backends, reference
from espan_kernels.frequency_loss import frequency_loss, frequency_loss_gradient
from espan_kernels.gate import gate

__all__ = ["backends", "frequency_loss", "frequency_loss_gradient", "gate", "reference"]
