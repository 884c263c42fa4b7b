"""Times `espan upscale` on a folder of photographs: each step, and how much the steps overlap.

    python benchmarks/bench_files.py PHOTOGRAPHS [--count 10] [--rounds 5] [--threads 2]

Crops 510x339 pixels from the middle of COUNT photographs, saves them as PNG and as JPEG, and
upscales them to PNG, alternately one by one and as one batch.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from espan import batch
from espan.imaging import Image, is_image_path, read_image, write_image
from espan.upscaling import Upscaler

WIDTH, HEIGHT = 510, 339


def crops(photographs: Path, folder: Path, count: int, kind: str) -> list[batch.Job]:
    folder.mkdir()
    made = 0
    for path in sorted(p for p in photographs.iterdir() if is_image_path(p)):
        pixels = read_image(path).pixels
        y, x = ((n - m) // 2 for n, m in zip(pixels.shape, (HEIGHT, WIDTH), strict=False))
        if min(y, x) >= 0 and pixels.shape[2] == 3 and made < count:
            middle = pixels[y : y + HEIGHT, x : x + WIDTH].copy()
            write_image(folder / f"{path.stem}.{kind}", Image(middle))
            made += 1
    return batch.plan([folder], folder.parent / f"{folder.name} upscaled", format="png")


def milliseconds(run: Callable[[], object]) -> tuple[float, float]:
    """Wall time, and processor time of all threads, in milliseconds."""
    start, used = time.perf_counter(), time.process_time()
    run()
    return 1e3 * (time.perf_counter() - start), 1e3 * (time.process_time() - used)


def steps(job: batch.Job, upscaler: Upscaler) -> dict[str, tuple[float, float]]:
    """The wall and processor milliseconds of each step for one image."""
    network = upscaler._default
    times = {"decode": milliseconds(lambda: read_image(job.source))}
    pixels = torch.from_numpy(read_image(job.source).pixels)

    # The steps of Upscaler, with the network timed apart from the conversions around it.
    def before() -> torch.Tensor:
        return pixels.permute(2, 0, 1)[None].to(network.device)

    times["layout before"] = milliseconds(before)
    x = before()
    times["network"] = milliseconds(lambda: (network(x), network.check()))
    y = network(x)
    times["layout after"] = milliseconds(lambda: y[0].permute(1, 2, 0).contiguous().cpu())
    result = Image(upscaler(pixels.numpy()))
    job.target.parent.mkdir(exist_ok=True)
    times["encode and write"] = milliseconds(lambda: write_image(job.target, result))
    return times


def upscale(jobs: list[batch.Job], upscaler: Upscaler) -> float:
    return milliseconds(lambda: batch.run_all(jobs, upscaler, overwrite=True))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    upscaler = Upscaler()
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("png", "jpg"):
            jobs = crops(options.photographs, Path(folder) / kind, options.count, kind)
            upscaler(read_image(jobs[0].source).pixels)
            each = [steps(job, upscaler) for _ in range(options.rounds) for job in jobs]
            medians = {
                step: [statistics.median(t[step][i] for t in each) for i in (0, 1)]
                for step in each[0]
            }
            singly, together = [], []
            for _ in range(options.rounds):
                singly.append(sum(upscale([job], upscaler) for job in jobs))
                together.append(upscale(jobs, upscaler))
            print(f"{len(jobs)} {kind} of {WIDTH}x{HEIGHT}, {upscaler.backend}")
            print("  median ms per image     wall  processor")
            for step, (wall, processor) in medians.items():
                print(f"  {step:20s} {wall:7.2f}  {processor:9.2f}")
            for i, time_of in enumerate(("wall time", "processor time per thread")):
                conversions = sum(
                    t[i] for step, t in medians.items() if step[:6] in ("decode", "layout")
                )
                share = conversions / medians["network"][i] * (options.threads if i else 1)
                print(f"  decode and layout take {share:.1%} of the network's {time_of}")
            for name, times in (("one by one", singly), ("as one batch", together)):
                print(f"  {name:20s} {statistics.median(times) / len(jobs):7.2f}")


if __name__ == "__main__":
    main()
