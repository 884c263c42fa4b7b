"""The ops as Triton kernels.  Import a module of this package only where Triton is to be used."""
