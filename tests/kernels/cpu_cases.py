"""What the tests of spab, head and tail on the CPU share."""

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from espan_kernels import pack_spab, spab

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# Below, at and above a pixel, a tile of 4, and blocks of 28 tiles.
SIZES = [(1, 1), (1, 9), (2, 3), (3, 4), (4, 4), (5, 8), (7, 1), (9, 13), (12, 17), (33, 5)]
SIZES += [(3, 111), (4, 112), (5, 113)]
NAN = float("nan")

Run = Callable[[], Sequence[Tensor]]


def in_buffer(t: Tensor) -> Tensor:
    """``t`` in the middle of NaN, as contiguous as before, beginning at an odd element."""
    around = torch.full((t.numel() + 2 * 1001,), NAN, dtype=t.dtype)
    view = around[1001:-1001].view(t.shape)
    view.copy_(t)
    return view


def poison_workspace() -> None:
    """Leaves NaN in the memory that the next calls get: all rows of all layers, and scratch."""
    zeros = torch.zeros(64, 64, 3, 3), torch.full((64,), NAN)
    packed = pack_spab([zeros[0]] * 3, [zeros[1]] * 3, torch.float32)
    y, _ = spab(torch.full((1, 60, 200, 64), NAN), packed, 64, 3)
    assert y.isnan().all()


def bits(t: Tensor) -> Tensor:
    """To compare NaN as well."""
    return t.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[t.itemsize])


def assert_same(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """To the last bit."""
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(bits(a), bits(b))


def check_written_whole(run: Run) -> None:
    """Memory handed out again must all be written: it is filled with a pattern first."""
    expected = [t.clone() for t in run()]
    for fill in (0x00, 0x5A, 0xFF):
        poison = [torch.full_like(bits(t), 0).view(torch.uint8).fill_(fill) for t in expected]
        del poison
        assert_same(run(), expected)


def check_threads(run: Run) -> None:
    """The same bits for any number of threads; the caller restores their number."""
    torch.set_num_threads(1)
    expected = run()
    for count in (2, 3, 7):
        torch.set_num_threads(count)
        assert_same(run(), expected)


def check_python_threads(runs: Sequence[Run]) -> None:
    """Calls from many threads at once give what each gives alone."""
    expected = [run() for run in runs]
    wrong: list[int] = []

    def work(i: int) -> None:
        try:
            for _ in range(10):
                assert_same(runs[i](), expected[i])
        except AssertionError:
            wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(runs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
