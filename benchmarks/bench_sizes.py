"""Measures time per pixel and memory of the bundled network, from 128x128 to 3000x2000.

    python benchmarks/bench_sizes.py [--threads 2] [--calls 9]

Images are uint8, on the CPU; each size runs in a fresh process.  The fastest call shows the time of
the network alone; the median includes the time that the system takes to allocate each result.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

SIZES = [(128, 128), (256, 256), (339, 510), (512, 512), (1000, 1000), (1080, 1920), (2000, 2000)]
SIZES += [(2000, 3000)]


def peak() -> float:
    """The peak memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(height: int, width: int, threads: int, calls: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(threads)
    import espan.fused

    network = espan.fused.load(device="cpu")
    network(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    x = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    before = peak()
    megabytes = -network(x).nbytes / 2**20 + peak() - before
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        network(x)
        times.append(time.perf_counter() - start)
    per_pixel = [1e9 * t / (height * width) for t in times]
    return {"MB": megabytes, "least": min(per_pixel), "median": statistics.median(per_pixel)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calls", type=int, default=9)
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        height, width = options.one
        print(json.dumps(measure(height, width, options.threads, options.calls), allow_nan=False))
        return
    print("size           ns per pixel: min  median   MB beyond input and output")
    least = []
    for height, width in SIZES:
        command = [sys.executable, __file__, "--one", str(height), str(width)]
        command += ["--threads", str(options.threads), "--calls", str(options.calls)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(result.stdout)
        least.append(found["least"])
        size = f"{width}x{height}"
        print(f"{size:11} {found['least']:20.0f} {found['median']:7.0f} {found['MB']:8.0f}")
    print(f"slowest / fastest size: {max(least) / min(least):.2f}", end="")
    print(f"; without the first size: {max(least[1:]) / min(least[1:]):.2f}")


if __name__ == "__main__":
    main()
