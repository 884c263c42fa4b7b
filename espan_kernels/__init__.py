"""Kernels for the SPAN family of super-resolution networks.

* :func:`gate`: SPAB's gate.
* :func:`conv3x3`: a convolution with gradients, for training on a CPU.
* :func:`frequency_loss`, :func:`frequency_loss_gradient`: the frequency-aware training loss.
* :func:`head`, :func:`spab`, :func:`tail`, :func:`upsample`: the first convolution, a whole block
  and the last layers, for GPUs.  They take weights packed by :func:`pack_head`, :func:`pack_spab`,
  :func:`pack_tail` and :func:`pack_upsample`.
* :func:`network`: a whole network on the CPU, as a list of :class:`Layer`.  It takes weights packed
  by :func:`pack_network`.

:mod:`~espan_kernels.reference` defines each op in plain PyTorch.
:mod:`~espan_kernels.backends` reports which implementations can run on this machine, and why the
others cannot.
"""

from espan_kernels import _on_gpus, backends, reference  # noqa: F401  (_on_gpus registers itself)
from espan_kernels.conv3x3 import conv3x3
from espan_kernels.frequency_loss import frequency_loss, frequency_loss_gradient
from espan_kernels.gate import gate
from espan_kernels.head import head, pack_head
from espan_kernels.network import Layer, describe_network, network, pack_network
from espan_kernels.spab import pack_spab, spab
from espan_kernels.tail import pack_tail, tail
from espan_kernels.upsample import pack_upsample, upsample

__all__ = [
    "Layer",
    "backends",
    "conv3x3",
    "describe_network",
    "frequency_loss",
    "frequency_loss_gradient",
    "gate",
    "head",
    "network",
    "pack_head",
    "pack_network",
    "pack_spab",
    "pack_tail",
    "pack_upsample",
    "reference",
    "spab",
    "tail",
    "upsample",
]
