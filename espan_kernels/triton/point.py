"""The activations and gates of the family, on the float32 sums of a convolution.

pack_spab halves the weights of the convolutions whose sum ``o`` goes into SiLU or into SPAN's gate.
The functions here take the stored sum: o/2 for these two, o for the others.  They are exact to
1e-7, which is enough because results are rounded to 16 bits.
"""
# Triton does not allow the annotations of typing inside a kernel:
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def _sigmoid(h):
    """The sigmoid of ``o = 2 h``."""
    return 1.0 / (1.0 + tl.exp2(-2.8853900817779268 * h))


@triton.jit
def _mish(o):
    """``o tanh(log(1 + e^o))``, without logarithm and tanh.

    With n = e^o (e^o + 2), the tanh is n / (n + 2).  It is 1 in float32 long before n overflows.
    """
    e = tl.exp2(1.4426950408889634 * tl.minimum(o, 20.0))
    n = e * (e + 2.0)
    return o * (n / (n + 2.0))


@triton.jit
def activated(o, activation: tl.constexpr):
    """Apply an activation: none, silu, relu or mish."""
    if activation == "silu":
        return 2.0 * o * _sigmoid(o)
    elif activation == "relu":
        return tl.maximum(o, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif activation == "mish":
        return _mish(o)
    else:
        return o


@triton.jit
def gated(o, residual, g, gate: tl.constexpr):
    """Apply a gate: sigmoid, or with a 1x1 convolution ``g`` of ``o``, linear or tanh."""
    if gate == "sigmoid":
        return (2.0 * o + residual) * (_sigmoid(o) - 0.5)
    elif gate == "tanh":
        return (o + residual) * (2.0 * _sigmoid(g) - 1.0)
    else:
        return (o + residual) * g
