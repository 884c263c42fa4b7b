"""The batches of a run, made ahead of the step that uses them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from espan.data.crops import Crops
from espan.data.on_device import Cuttings, cut, finish
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
    (t + 1) * batch - 1 of the run, and each of `world` processes an equal part of them in turn:
    what a step is made of depends on nothing else.

    Workers are threads, each of which makes a whole step, up to 2 * workers steps ahead.  NumPy and
    the hashes let go of the interpreter while they copy and compute, and threads share the images,
    the map of a pack and what of it has been checked.  On a device other than the CPU they only cut
    out pixels; the rest is done there.

    Args:
        crops: of all processes alike.
        batch: samples of a step in all processes together; a multiple of `world`.
        first_step: t of the first batch.
        steps: how many there are.
        rank: of this process, 0 ... world - 1.
        world: number of processes.
        workers: 0: each batch is made when it is asked for, in the caller's thread.
        device: where the tensors are wanted.

    Raises EspanError for a batch that cannot be shared equally, and, when the batch in question is
    asked for, if a pack turns out to be damaged or was changed.
    """
    if batch % world:
        raise EspanError(f"a batch of {batch} cannot be shared equally by {world} processes")
    share = batch // world
    first = first_step * batch + rank * share
    firsts = range(first, first + steps * batch, batch)

    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())

    def make(first: int) -> tuple[Tensor, Tensor] | Cuttings:
        if device.type == "cpu":
            return crops.batch(first, share)
        if device.type != "cuda":
            return cut(crops, first, share, pin=False)
        with torch.cuda.device(device):  # or a thread's pinned memory would belong to the first GPU
            return cut(crops, first, share, pin=True)

    def ready(made: tuple[Tensor, Tensor] | Cuttings) -> tuple[Tensor, Tensor]:
        return finish(made.to(device)) if isinstance(made, Cuttings) else made

    return map(ready, _ahead(make, firsts, workers))


def _ahead(make: Callable[[int], T], firsts: Sequence[int], workers: int) -> Iterator[T]:
    """As map(make, firsts), by so many threads, with twice as many results ahead."""
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
