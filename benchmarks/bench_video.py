"""Times `espan video`: the whole command, the network alone, and each other step alone.

    python benchmarks/bench_video.py [--size 320x180] [--frames 96] [--codec libx264] [--batch N]
                                     [--threads N] [--device NAME] [--output FILE]

The clip is synthetic: H.264 4:2:0, 8 bits, moving waves with a little noise, and AAC audio.
"network" is `Upscaler` on the frames as RGB bytes on its device; it and the other steps are timed
one after the other, each on all frames.  "command" is `upscale_video`, from an open network to the
joined result; in it the steps overlap.  What is not the network is the rest of the command's time.

Before it is timed, one frame of the result is compared with `Upscaler` on the decoded frame.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import conftest as machine

from espan import fused
from espan.files import json_text
from espan.upscaling import Upscaler
from espan.video.colour import from_rgb, to_rgb
from espan.video.decode import read_frames
from espan.video.encode import SegmentWriter, plan_encoding
from espan.video.planes import read_planes
from espan.video.run import BATCH_ON_GPU, Options, upscale_video
from espan.video.source import describe


def make_clip(path: Path, width: int, height: int, frames: int) -> None:
    noise = np.random.default_rng(0).normal(0, 3, (height, width + frames, 3))
    y, x = np.mgrid[:height, : width + frames]
    waves = [np.sin(x / (9 + k)) + np.cos(y / (11 + k)) for k in range(3)]
    wide = (127 + 50 * np.stack(waves, axis=-1) + noise).clip(0, 255).astype(np.uint8)
    with av.open(str(path), "w") as container:
        video = container.add_stream(
            "libx264", rate=24, width=width, height=height, pix_fmt="yuv420p"
        )
        audio = container.add_stream("aac", rate=48000, layout="mono")
        for i in range(frames):
            picture = np.ascontiguousarray(wide[:, i : i + width])
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        for i in range(frames * 2000 // 1024):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            sound.sample_rate, sound.time_base, sound.pts = 48000, Fraction(1, 48000), 1024 * i
            container.mux(audio.encode(sound))
        container.mux([*video.encode(), *audio.encode()])


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Wall time, and processor time of all threads."""
    synchronize()
    start, used = time.perf_counter(), time.process_time()
    run()
    synchronize()
    return time.perf_counter() - start, time.process_time() - used


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(folder: Path, options: argparse.Namespace, network: fused.FusedNetwork) -> dict:
    width, height = map(int, options.size.split("x"))
    path = folder / "clip.mp4"
    make_clip(path, width, height, options.frames)
    source = describe(path)
    encoding, _ = plan_encoding(source, network.scale, "matroska", options.codec, None)
    upscaler, device = Upscaler(network), network.device
    batch = options.batch or (BATCH_ON_GPU if device.type == "cuda" else 1)
    small: list[list[Tensor]] = []
    images: list[Tensor] = []
    wall: dict[str, float] = {}
    processor: dict[str, float] = {}

    def decode() -> None:
        small[:] = [read_planes(frame, source.layout) for frame in read_frames(source)]

    def convert_to_rgb() -> None:
        images[:] = [
            to_rgb([plane.to(device) for plane in planes], source.layout, source.colour)
            for planes in small
        ]

    def enlarge() -> None:
        for i in range(0, len(images), batch):
            upscaler(images[i : i + batch])

    decode()
    convert_to_rgb()
    large = upscaler(images[:batch])
    planes = [p.cpu() for p in from_rgb(large[0], encoding.layout, encoding.colour)]

    def convert_from_rgb() -> None:
        for _ in range(0, len(images), batch):
            for image in large:
                [p.cpu() for p in from_rgb(image, encoding.layout, encoding.colour)]

    def encode() -> None:
        with SegmentWriter(folder / "segment.mkv", encoding) as writer:
            step = round(1 / (source.rate * source.time_base))
            for i in range(len(images)):
                writer.write(planes, i * step, step)
            writer.close()

    target = folder / "result.mkv"
    run = Options(codec=options.codec, batch=options.batch, overwrite=True)
    checked = Options(codec="ffv1", batch=options.batch, overwrite=True, end=Fraction(1, 24))
    upscale_video(path, target, network, checked)
    after = describe(target)
    read = read_planes(next(iter(read_frames(after))), after.layout)
    # On a GPU, a frame in a batch and the same frame alone differ by rounding.
    assert all((a.int() - b.int()).abs().max() <= 1 for a, b in zip(read, planes, strict=True))
    for name, step in (
        ("decode", decode),
        ("to RGB", convert_to_rgb),
        ("network", enlarge),
        ("from RGB", convert_from_rgb),
        ("encode one repeated frame", encode),
        ("command", lambda: upscale_video(path, target, network, run)),
    ):
        rounds = [seconds(step) for _ in range(options.rounds)]
        wall[name], processor[name] = (min(each) for each in zip(*rounds, strict=True))
    count = len(images)
    return {
        "size": options.size,
        "result": f"{encoding.width}x{encoding.height}",
        "frames": count,
        "codec": encoding.codec,
        "batch": batch,
        "ms_per_frame": {name: round(1e3 * t / count, 3) for name, t in wall.items()},
        "processor_ms_per_frame": {n: round(1e3 * t / count, 3) for n, t in processor.items()},
        "fps": round(count / wall["command"], 2),
        "not_the_network": round(1 - wall["network"] / wall["command"], 4),
        "processor_not_the_network": round(1 - processor["network"] / processor["command"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="320x180")
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--codec", default="libx264")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    network = fused.load(device=options.device)
    with tempfile.TemporaryDirectory() as folder:
        case = measure(Path(folder), options, network)
    print(
        f"{case['frames']} frames of {case['size']} to {case['result']}, {case['codec']}, batch "
        f"{case['batch']}, {network.backend} on {network.device}"
    )
    print(f"  {'ms a frame':26s} {'wall':>9s} {'processor':>9s}")
    for name, milliseconds in case["ms_per_frame"].items():
        print(f"  {name:26s} {milliseconds:9.3f} {case['processor_ms_per_frame'][name]:9.3f}")
    print(
        f"  {case['fps']:g} frames a second; not the network: {case['not_the_network']:.1%} of the "
        f"time, {case['processor_not_the_network']:.1%} of the processor time"
    )
    if options.output:
        about: dict[str, Any] = {
            "processor": machine._processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load_when_done": round(os.getloadavg()[0], 1),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "versions": {p: importlib.metadata.version(p) for p in ("torch", "av")},
            "FFmpeg": av.ffmpeg_version_info,
            "espan": machine._commit(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "backend": network.backend,
        }
        cases = []
        if options.output.exists():
            cases = json.loads(options.output.read_text())["cases"]
        text = json_text({"machine": about, "cases": [*cases, case]}, indent=1)
        options.output.write_text(f"{text}\n")


if __name__ == "__main__":
    main()
