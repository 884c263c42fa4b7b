"""The ops as Triton kernels.  The modules of this package import Triton."""
