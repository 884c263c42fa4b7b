"""Times loading the bundled weights, the first call and later calls, in fresh processes.

    python benchmarks/bench_first_call.py [--threads 2] [--processes 7]

The image is 256x256, in fp32 on the CPU.  Prints the medians over the processes, as wall time and
as processor time, which is less affected by other load on the machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

CALLS = 8


def measure(threads: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(threads)
    import espan.fused

    times: dict[str, float] = {}

    def timed(name: str, run: Callable[[], object]) -> object:
        wall, used = time.perf_counter(), time.process_time()
        result = run()
        times[name] = 1e3 * (time.perf_counter() - wall)
        times[f"{name}, processor"] = 1e3 * (time.process_time() - used)
        return result

    network = timed("load", lambda: espan.fused.load(device="cpu"))
    x = torch.rand(1, 3, 256, 256)
    timed("first", lambda: network(x))  # type: ignore[operator]
    warm = []
    for _ in range(CALLS):
        timed("warm", lambda: network(x))  # type: ignore[operator]
        warm.append((times["warm"], times["warm, processor"]))
    times["warm"], times["warm, processor"] = (
        statistics.median(t) for t in zip(*warm, strict=True)
    )
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processes", type=int, default=7)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.threads), allow_nan=False))
        return
    command = [sys.executable, __file__, "--one", "--threads", str(options.threads)]
    runs = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(options.processes)
    ]
    for name in runs[0]:
        print(f"{name:20s} {statistics.median(r[name] for r in runs):8.1f} ms")
    for kind in ("", ", processor"):
        ratio = statistics.median(r[f"first{kind}"] / r[f"warm{kind}"] for r in runs)
        print(f"first / warm{kind}: {ratio:.2f}")


if __name__ == "__main__":
    main()
