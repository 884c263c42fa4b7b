"""The CPU kernels on images that end or begin next to an inaccessible page.

This runs as a separate program: a read or write of one byte outside of an image ends it with a
signal.
"""

import ctypes
import mmap

import torch
from torch import Tensor

from espan_kernels import _library, frequency_loss_gradient

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
kept: list[object] = []


def guarded(shape: tuple[int, ...], dtype: torch.dtype, at_end: bool) -> Tensor:
    """A tensor between two inaccessible pages, adjacent to the upper or the lower one."""
    size = torch.empty(shape, dtype=dtype).nbytes
    inner = (size + PAGE - 1) // PAGE * PAGE
    memory = mmap.mmap(-1, inner + 2 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (address, address + PAGE + inner):
        assert libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0) == 0
    kept.append(memory)
    offset = PAGE + (inner - size if at_end else 0)
    count = size // dtype.itemsize
    flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=offset)
    return flat.view(shape).fill_(0.5)


for path in ("portable", "avx2", "avx512"):
    if _library.compiled is None:
        break
    try:
        _library.compiled.select_cpu_path(path)
    except ValueError:
        continue
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape in ((1, 1, 1, 1), (1, 1, 3, 5), (1, 1, 9, 17), (1, 1, 33, 137), (2, 1, 8, 16)):
            for at_end in (False, True):
                sr, hr = (guarded(shape, dtype, at_end) for _ in range(2))
                frequency_loss_gradient(sr, hr, torch.ones(()))
print("nothing outside was touched")
