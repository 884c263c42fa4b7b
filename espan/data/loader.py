"""The batches of a run, prepared ahead of the steps that use them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from espan.data.crops import Crops
from espan.data.on_device import RawCrops, cut, finish
from espan.errors import EspanError

T = TypeVar("T")


def batches(
    crops: Crops,
    *,
    batch: int,
    first_step: int,
    steps: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """LR (n, 3, p, p) and HR (n, 3, s*p, s*p) of each step, in order.

    fp32 in 0-1, channels last in memory, on the device.  Step t has the samples t * batch ...
    (t + 1) * batch - 1 of the run, for any number of processes and workers.  They are divided
    equally among the `world` processes.

    Workers are threads, each of which prepares whole steps, up to 2 * workers steps ahead.  NumPy
    and hashing release the interpreter lock, and threads share the images, the mapped packs and
    the record of what has been verified.  For a device other than the CPU they only copy pixels
    and, where LR is degraded, read and write JPEG; the rest is done on the device.

    Args:
        crops: the same in all processes.
        batch: samples per step over all processes; a multiple of `world`.
        first_step: t of the first batch.
        steps: number of batches.
        rank: of this process, 0 ... world - 1.
        world: number of processes.
        workers: number of threads; 0: batches are prepared on demand in the caller's thread.
        device: of the tensors.

    Raises EspanError if the batch cannot be divided equally and, when the batch concerned is
    requested, if a pack is found to be damaged or changed.
    """
    share = _share(batch, world)
    firsts = _firsts(batch, first_step, steps, rank * share)
    if device.type == "cpu":
        return _ahead(lambda first: crops.batch(first, share), firsts, workers)
    raw = _ahead(_cutter(crops, share, device), firsts, workers)
    return (finish(made.to(device)) for made in raw)


def raw_batches(
    crops: Crops,
    *,
    batch: int,
    first_step: int,
    steps: int,
    workers: int = 0,
    device: torch.device,
) -> Iterator[RawCrops]:
    """Like `batches` for one process, but in host memory; `finish` is left to the caller.

    The memory is pinned for a GPU.
    """
    firsts = _firsts(batch, first_step, steps, 0)
    return _ahead(_cutter(crops, batch, device), firsts, workers)


def _share(batch: int, world: int) -> int:
    if batch % world:
        raise EspanError(f"a batch of {batch} cannot be divided equally among {world} processes")
    return batch // world


def _firsts(batch: int, first_step: int, steps: int, offset: int) -> range:
    first = first_step * batch + offset
    return range(first, first + steps * batch, batch)


def _cutter(crops: Crops, count: int, device: torch.device) -> Callable[[int], RawCrops]:
    if device.type != "cuda":
        return lambda first: cut(crops, first, count, pin=False)
    index = torch.cuda.current_device() if device.index is None else device.index

    gpu = torch.device("cuda", index)
    # Degradations do not wait for the steps of the training.
    stream = None if crops.degrade is None else torch.cuda.Stream(gpu)

    def pinned(first: int) -> RawCrops:
        # Otherwise, it would pin memory for GPU 0.
        with torch.cuda.device(index), torch.cuda.stream(stream):
            return cut(crops, first, count, pin=True, device=gpu)

    return pinned


def _ahead(make: Callable[[int], T], firsts: Sequence[int], workers: int) -> Iterator[T]:
    """Like map(make, firsts), but in `workers` threads, which work twice as many results ahead."""
    if workers == 0:
        yield from map(make, firsts)
        return
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers, "crops") as pool:
        for first in firsts:
            waiting.append(pool.submit(make, first))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
