"""Runs the filter in the real VapourSynth, which needs Python 3.12 or later.

    python -m tests.vapoursynth_by_hand [WIDTHxHEIGHT]

Every frame of a synthetic clip must equal the result of `espan.Upscaler`, with four streams, in
each format.
"""

import sys
import time

import numpy as np
import torch
import vapoursynth as vs

import espan
import espan.vapoursynth

LENGTH = 24
FORMATS = {vs.RGB24: None, vs.RGBS: torch.float32, vs.RGBH: torch.float16}


def image(n: int, frame: vs.VideoFrame) -> np.ndarray:
    """A smooth pattern (3, H, W) that moves with n, in the type of the frame."""
    y, x = np.mgrid[: frame.height, : frame.width]
    planes = [np.sin((x + 3 * n) / (7 + c)) * np.cos((y - n) / (9 + c)) for c in range(3)]
    values = (np.stack(planes) * 0.3 + 0.5).astype(np.float32)
    dtype = np.asarray(frame[0]).dtype
    return (values * 255).round().astype(dtype) if dtype == np.uint8 else values.astype(dtype)


def fill(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
    frame = f.copy()
    for plane, values in enumerate(image(n, frame)):
        np.copyto(np.asarray(frame[plane]), values)
    frame.props["n"] = n
    return frame


def main() -> None:
    """Compare and time each format."""
    width, height = map(int, (sys.argv[1] if len(sys.argv) > 1 else "97x60").split("x"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(
        f"Python {sys.version.split()[0]}, VapourSynth {vs.core.core_version.release_major}, ",
        end="",
    )
    print(f"torch {torch.__version__}, {device}")
    for kind, dtype in FORMATS.items():
        options = {"width": width, "height": height, "length": LENGTH, "fpsnum": 24000}
        blank = vs.core.std.BlankClip(format=kind, fpsden=1001, **options)
        clip = blank.std.ModifyFrame(blank, fill)
        enlarged = espan.vapoursynth.upscale(clip, num_streams=4)
        assert (enlarged.width, enlarged.height) == (4 * width, 4 * height)
        assert (enlarged.format.id, enlarged.num_frames, enlarged.fps) == (kind, LENGTH, clip.fps)
        upscaler = espan.Upscaler(device=device, dtype=dtype)
        enlarged.get_frame(0)
        started = time.perf_counter()
        frames = list(enlarged.frames(close=False))
        seconds = time.perf_counter() - started
        for n, (frame, before) in enumerate(zip(frames, clip.frames(), strict=True)):
            expected = upscaler(torch.from_numpy(image(n, before))).numpy()
            for plane in range(3):
                assert np.array_equal(np.asarray(frame[plane]), expected[plane]), (n, plane)
            assert dict(frame.props) == dict(before.props)
            assert frame.props["n"] == n
        print(f"{enlarged.format.name}: {LENGTH} frames equal, {LENGTH / seconds:.1f} frames/s")


if __name__ == "__main__":
    main()
