"""Overlapping steps: their order, their errors, and that they do run at the same time."""

import itertools
import threading
import time

import pytest

from espan.video.pipeline import StoppedError, overlap


def test_order_and_batches():
    batches, results = [], []

    def process(items):
        batches.append(len(items))
        return [2 * item for item in items]

    overlap(range(10), process, results.extend, batch=4, depth=2)
    assert results == [2 * i for i in range(10)]
    assert batches == [4, 4, 2]


def test_nothing():
    results = []
    overlap([], lambda items: items, results.extend, batch=3, depth=1)
    assert results == []


def test_the_steps_overlap():
    """All three steps are at work at the same time, each on a frame of its own."""
    together = threading.Barrier(3, timeout=20)

    def meeting_at(frame):
        def step(items):
            for item in items:
                if item == frame:
                    together.wait()
                yield item

        return step

    last = meeting_at(0)
    overlap(meeting_at(2)(range(10)), meeting_at(1), lambda r: list(last(r)), batch=1, depth=2)


def test_queues_are_bounded():
    """A slow last step holds up the first one."""
    made = []

    def produce():
        for i in range(100):
            made.append(i)
            yield i

    most = 0

    def consume(results):
        nonlocal most
        for done, _ in enumerate(results):
            time.sleep(0.001)
            most = max(most, len(made) - done)

    overlap(produce(), lambda items: items, consume, batch=2, depth=3)
    assert len(made) == 100
    assert most <= 3 + 3 + 2 * 2 + 2


def fails(*_):
    raise ValueError("this step")


def failing_source():
    yield 1
    raise ValueError("this step")


@pytest.mark.parametrize(
    ("source", "process", "consume"),
    [
        (failing_source(), lambda items: items, list),
        (range(1000), fails, list),
        (range(1000), lambda items: items, fails),
        (itertools.count(), lambda items: items, lambda results: fails(next(iter(results)))),
    ],
)
def test_an_error_ends_all_steps(source, process, consume):
    before = threading.active_count()
    with pytest.raises(ValueError, match="this step"):
        overlap(source, process, consume, batch=1, depth=2)
    assert threading.active_count() == before


def test_a_second_ctrl_c_lets_the_last_step_finish(monkeypatch):
    """Only a third one does not wait."""
    finished = threading.Event()

    def consume(results):
        try:
            list(results)
        except StoppedError:
            time.sleep(0.2)
            finished.set()
            raise

    inner, calls = threading.Thread.join, iter(range(10))

    def join(thread, *arguments):
        if next(calls) < 1:
            raise KeyboardInterrupt
        return inner(thread, *arguments)

    monkeypatch.setattr(threading.Thread, "join", join)
    with pytest.raises(KeyboardInterrupt):
        overlap(itertools.count(), fails_with_ctrl_c, consume, batch=1, depth=2)
    assert finished.is_set()


def fails_with_ctrl_c(items):
    raise KeyboardInterrupt


def test_the_last_step_sees_that_a_run_ends_early():
    """So that it can finish what it has begun."""
    seen, finished = [], []

    def consume(results):
        try:
            seen.extend(results)
        except StoppedError:
            finished.append(True)
            raise

    def process(items):
        if items[0] == 5:
            while len(seen) < 5:
                time.sleep(0.001)
            raise KeyboardInterrupt
        return items

    with pytest.raises(KeyboardInterrupt):
        overlap(itertools.count(), process, consume, batch=1, depth=2)
    assert finished == [True]
    assert seen == [0, 1, 2, 3, 4]
