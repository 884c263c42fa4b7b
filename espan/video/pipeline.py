"""Three threads with bounded queues between them: produce, process, consume."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")

_CHECK_EVERY = 0.1  # seconds between looks at whether another thread has failed


class StoppedError(Exception):
    """Another thread has failed, or this run was interrupted."""


class _Queue(Generic[T]):
    """A bounded queue whose waiting ends when the run ends."""

    def __init__(self, depth: int, stop: threading.Event) -> None:
        self._queue: queue.Queue[T | None] = queue.Queue(depth)
        self._stop = stop

    def put(self, item: T | None) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=_CHECK_EVERY)
            except queue.Full:
                pass
        raise StoppedError

    def __iter__(self) -> Iterator[T]:
        while not self._stop.is_set():
            try:
                item = self._queue.get(timeout=_CHECK_EVERY)
            except queue.Empty:
                continue
            if item is None:
                return
            yield item
        raise StoppedError


def _join(threads: Sequence[threading.Thread]) -> None:
    """Wait for the threads, through one more Ctrl-C: they save what has been encoded."""
    interrupted = False
    for thread in threads:
        while thread.is_alive():
            try:
                thread.join()
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
    if interrupted:
        raise KeyboardInterrupt


def overlap(
    source: Iterable[T],
    process: Callable[[list[T]], Iterable[U]],
    consume: Callable[[Iterable[U]], None],
    *,
    batch: int,
    depth: int,
) -> None:
    """Process items in order while others are produced and consumed.

    `source` is iterated in one thread, `consume` is called once in another, with an iterable of all
    results, and `process` is called in this thread, with `batch` items or, at the end, fewer.  Up
    to `depth` items and results wait in the queues.  The first error of any of them, or
    KeyboardInterrupt, ends the others and is raised; `consume` sees it as an exception of its
    iterable.
    """
    stop = threading.Event()
    items: _Queue[T] = _Queue(max(depth, batch), stop)
    results: _Queue[U] = _Queue(depth, stop)
    errors: list[BaseException] = []

    def produce() -> None:
        for item in source:
            items.put(item)
        items.put(None)

    def guarded(run: Callable[[], None]) -> None:
        try:
            run()
        except StoppedError:
            pass
        except BaseException as error:
            errors.append(error)
            stop.set()

    threads = [
        threading.Thread(target=guarded, args=(run,), daemon=True)
        for run in (produce, lambda: consume(results))
    ]
    for thread in threads:
        thread.start()
    try:
        waiting: list[T] = []
        for item in items:
            waiting.append(item)
            if len(waiting) == batch:
                for result in process(waiting):
                    results.put(result)
                waiting = []
        for result in process(waiting) if waiting else ():
            results.put(result)
        results.put(None)
        threads[1].join()
    except StoppedError:
        pass
    finally:
        stop.set()
        _join(threads)
    if errors:
        raise errors[0]
