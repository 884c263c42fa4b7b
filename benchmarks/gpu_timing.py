"""Timing on a GPU: kernels that are shorter than their launch, and the clock meanwhile."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture

CALLS = 20  # per round of the functions below
SPIN = 1_000_000  # cycles: half a millisecond, short enough for the clock to stay as it was

Call = Callable[[], object]


def clock() -> float:
    """The time in seconds, after the GPU has finished all queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def clock_per_call() -> float:
    """The timer for rounds of CALLS calls: seconds divided by that number."""
    return clock() / CALLS


def back_to_back(calls: Sequence[Call]) -> Call:
    """A function that makes CALLS calls, of each function in turn."""

    def run() -> None:
        for i in range(CALLS):
            calls[i % len(calls)]()

    return run


def graphed(calls: Sequence[Call]) -> Call:
    """The same under a CUDA graph, so that no time of the CPU is measured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # one-time initialisation must not be captured
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        back_to_back(calls)()
    return graph.replay


def megahertz(busy: Call) -> float:
    """The clock of the multiprocessors after ``busy`` has kept them busy for 20 ms."""
    start = clock()
    busy()
    once = clock() - start
    for _ in range(max(1, min(100, int(0.02 / once)))):
        busy()
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    torch.cuda._sleep(SPIN)
    after.record()
    torch.cuda.synchronize()
    return float(SPIN / 1000 / before.elapsed_time(after))


def measure(benchmark: BenchmarkFixture, run: Call) -> dict[str, Any]:
    """Time ``run``, which makes CALLS calls; the benchmark's timer must be clock_per_call.

    Returns the clock and the cycles per call, for extra_info.
    """
    for _ in range(3):
        run()
    start = clock()
    run()
    once = clock() - start
    iterations = max(1, min(50, int(0.01 / once)))
    rounds = max(5, min(20, int(0.5 / (once * iterations))))
    benchmark.pedantic(run, iterations=iterations, rounds=rounds, warmup_rounds=1)
    return {} if benchmark.disabled else cycles(benchmark.stats.stats.median, run)


def milliseconds(call: Call) -> float:
    """The median of 20 rounds of CALLS calls, in milliseconds per call."""
    run, times = back_to_back([call]), []
    for _ in range(20):
        start = clock_per_call()
        run()
        times.append(clock_per_call() - start)
    return round(1e3 * statistics.median(times), 5)


def cycles(seconds: float, busy: Call) -> dict[str, Any]:
    """The clock, and the number of cycles in ``seconds``."""
    mhz = megahertz(busy)
    return {"sm_mhz": round(mhz), "cycles": round(seconds * mhz * 1e6)}
