"""The errors that tell a user what was wrong with what they gave.

The command line prints their message without a traceback; anything else is a defect of espan.
"""

import torch

# What a RuntimeError says where memory ran out: PyTorch's CPU allocator on Linux and on Windows,
# C++, the CUDA runtime, cuDNN and cuBLAS.
_OUT_OF_MEMORY = ("defaultcpuallocator", "bad_alloc", "out of memory", "_status_alloc_failed")


class EspanError(ValueError):
    """Bad input.  The message names what was found and what would be right."""


class CheckpointError(EspanError):
    """A weight file that cannot be read, is not recognised, or does not fit its architecture."""


class ImageError(EspanError):
    """An image that cannot be read, is damaged, or is too large to be believed."""


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, on any device.

    On a GPU PyTorch raises `torch.OutOfMemoryError`, on the CPU a plain RuntimeError.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(text in said for text in _OUT_OF_MEMORY)
