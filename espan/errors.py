"""The errors that report bad input, and what several modules need to raise or warn.

The command line prints the message of an `EspanError` without a traceback; any other exception is
a defect of espan.
"""

import re
import sys
import warnings

import torch

# The messages of RuntimeErrors when memory runs out: PyTorch's CPU allocator on Linux and on
# Windows, C++, the CUDA runtime, cuDNN and cuBLAS; and a compiled op, whose result is allocated
# through PyTorch's stable ABI, which gives no reason ("aten::empty", aoti_torch_aten_new_empty).
_OUT_OF_MEMORY = re.compile(
    "defaultcpuallocator|bad_alloc|out of memory|_status_alloc_failed|empty.*api call failed"
)


class EspanError(ValueError):
    """Bad input.  The message names what was found and what would be right."""


class CheckpointError(EspanError):
    """A weight file that cannot be read, is not recognised, or does not fit its architecture."""


class ImageError(EspanError):
    """An image that cannot be read, is damaged, or claims an implausible size."""


class NonFiniteError(EspanError):
    """The output of a network is NaN or infinite, even in fp32."""


class ImageWarning(UserWarning):
    """Something in an image is not kept; the message names the file, if any, and what is lost."""


class RangeWarning(UserWarning):
    """The output left the plausible range; the message says what was done."""


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` means that memory ran out, on any device.

    On a GPU PyTorch raises `torch.OutOfMemoryError`, on the CPU a plain RuntimeError.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error).lower()))


def warn(message: str, category: type[Warning] = ImageWarning) -> None:
    """Issue a warning that points at the caller's code, however deep in espan this call is."""
    frame, level = sys._getframe(1), 2
    while frame.f_globals.get("__name__", "").partition(".")[0] == "espan" and frame.f_back:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
