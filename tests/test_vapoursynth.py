"""The VapourSynth filter, with a stub of the calls that it makes.

Wheels of VapourSynth need Python 3.12; `tests/vapoursynth_by_hand.py` runs the real package.
"""

import importlib
import itertools
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

import espan
from espan import checkpoints
from espan.errors import CheckpointError, EspanError
from espan.extras import install_command
from espan.models import Architecture

SMALL = Architecture(8, (3, 2), scale=2, head_kernel=5)
FORMATS = {1: ("RGB24", np.uint8), 2: ("RGBH", np.float16), 3: ("RGBS", np.float32)}
RGB24, RGBH, RGBS = FORMATS


class Frame:
    """Planes with a stride, as memoryviews: read-only, except in a copy."""

    def __init__(self, planes, props, writable=False):
        padded = np.pad(planes, ((0, 0), (0, 0), (0, 5)))
        padded.flags.writeable = writable
        self.planes = padded[:, :, :-5]
        self.props = props

    def __getitem__(self, plane):
        return memoryview(self.planes[plane])

    def copy(self):
        return Frame(self.planes, dict(self.props), writable=True)


class Clip:
    """A VideoNode whose frames a function makes."""

    def __init__(self, kind, width, height, frame, num_frames=4):
        name, self.dtype = FORMATS.get(kind, (str(kind), np.uint8))
        self.format = None if kind is None else SimpleNamespace(id=kind, name=name)
        self.width, self.height, self.num_frames = width, height, num_frames
        self.get_frame = frame
        self.std = SimpleNamespace(
            BlankClip=self.blank, ModifyFrame=self.modify, FrameEval=self.evaluate
        )

    def like(self, frame):
        return Clip(self.format.id, self.width, self.height, frame, self.num_frames)

    def blank(self, width, height, keep):
        assert keep
        frame = Frame(np.zeros((3, height, width), self.dtype), {"_DurationNum": 99})
        return Clip(self.format.id, width, height, lambda n: frame, self.num_frames)

    def modify(self, clips, selector):
        return self.like(lambda n: selector(n=n, f=[clip.get_frame(n) for clip in clips]))

    def evaluate(self, function, clip_src):
        assert self in clip_src
        return self.like(lambda n: function(n).get_frame(n))


def source(kind, width=9, height=7):
    """A smooth clip, each frame of which is different and has properties."""
    x = torch.nn.functional.interpolate(torch.rand(4, 3, 3, 3), (height, width), mode="bilinear")
    images = (x * 51).byte() if kind == RGB24 else x * 0.2
    array = images.numpy().astype(FORMATS[kind][1])
    return array, Clip(kind, width, height, lambda n: Frame(array[n], {"_Matrix": 0, "n": n}))


@pytest.fixture
def filter(monkeypatch):
    """`espan.vapoursynth` on the stub."""
    stub = ModuleType("vapoursynth")
    vars(stub).update(RGB24=RGB24, RGBH=RGBH, RGBS=RGBS, VideoNode=Clip, VideoFrame=Frame)
    monkeypatch.setitem(sys.modules, "vapoursynth", stub)
    monkeypatch.delitem(sys.modules, "espan.vapoursynth", raising=False)
    yield importlib.import_module("espan.vapoursynth")
    sys.modules.pop("espan.vapoursynth", None)


@pytest.fixture
def network(make_network):
    return make_network(SMALL)


@pytest.mark.parametrize(
    ("kind", "dtype"), [(RGB24, None), (RGBH, torch.float16), (RGBS, torch.float32)]
)
def test_frames(kind, dtype, filter, network):
    array, clip = source(kind)
    enlarged = filter.upscale(clip, network)
    assert (enlarged.width, enlarged.height, enlarged.num_frames) == (18, 14, 4)
    assert enlarged.format.id == kind
    upscaler = espan.Upscaler(network, device="cpu", dtype=dtype)
    for n in (2, 0, 3):
        frame = enlarged.get_frame(n)
        assert np.array_equal(frame.planes, upscaler(torch.from_numpy(array[n])).numpy())
        assert frame.planes.dtype == array.dtype
        assert frame.props == {"_Matrix": 0, "n": n}


@pytest.mark.parametrize("kind", [RGBH, RGBS])
def test_values_out_of_gamut_are_clamped(kind, filter, network):
    array, clip = source(kind)
    array[0] = np.array([0.84, 0.75, 1.77])[:, None, None]
    array[1] = np.array([0.84, 0.75, 1.0])[:, None, None]
    found, expected = (filter.upscale(clip, network).get_frame(n).planes for n in (0, 1))
    assert np.array_equal(found, expected)


def test_options(filter, network, tmp_path):
    path = tmp_path / "w.safetensors"
    checkpoints.save(network, path, record={})
    array, clip = source(RGBS, 30, 20)
    frame = filter.upscale(clip, path, tile=12).get_frame(1)
    expected = espan.Upscaler(network, device="cpu", tile=None)(torch.from_numpy(array[1]))
    np.testing.assert_allclose(frame.planes, expected.numpy(), rtol=0, atol=2e-6)
    assert filter.upscale(source(RGB24)[1]).width == 36  # the bundled weights


@pytest.mark.parametrize("streams", [1, 3])
def test_streams(streams, filter, network, monkeypatch):
    """As many frames at a time as there are streams, and each frame is the right one."""
    array, clip = source(RGB24)
    lock, running, most = threading.Lock(), 0, 0
    started, together = itertools.count(), threading.Barrier(streams, timeout=20)
    call = espan.Upscaler.__call__

    def observed(self, image):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            first = next(started) < streams
        if first:
            together.wait()
        time.sleep(0.02)  # time for calls that should not happen
        try:
            return call(self, image)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(espan.Upscaler, "__call__", observed)
    enlarged = filter.upscale(clip, network, num_streams=streams)
    with ThreadPoolExecutor(8) as pool:
        frames = list(pool.map(enlarged.get_frame, [n % 4 for n in range(16)]))
    assert most == streams
    upscaler = espan.Upscaler(network, device="cpu")
    for n, frame in enumerate(frames):
        assert np.array_equal(frame.planes, upscaler(torch.from_numpy(array[n % 4])).numpy())


def test_a_frame_that_fails_does_not_block_the_next(filter, network):
    array, _ = source(RGBS)
    bad = np.full_like(array[0], 300)
    clip = Clip(RGBS, 9, 7, lambda n: Frame(bad if n == 0 else array[n], {}))
    enlarged = filter.upscale(clip, network)
    with pytest.raises(EspanError, match="must lie in 0-1"):
        enlarged.get_frame(0)
    assert enlarged.get_frame(1).planes.shape == (3, 14, 18)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_streams": 0}, "num_streams must be an integer of 1 or more, got 0"),
        ({"device_index": -1}, "device_index must be an integer of 0 or more, got -1"),
        ({"tile": 0}, "tile must be 'auto', None or a number of pixels, got 0"),
    ],
)
def test_bad_options(options, message, filter, network):
    with pytest.raises(EspanError, match=message):
        filter.upscale(source(RGB24)[1], network, **options)


def test_bad_clips_and_weights(filter, network):
    with pytest.raises(EspanError, match=r"got a clip of YUV420P8; expected RGB24, RGBH or RGBS"):
        filter.upscale(Clip("YUV420P8", 4, 4, None), network)
    for clip in (Clip(None, 4, 4, None), Clip(RGBS, 0, 0, None)):
        with pytest.raises(EspanError, match="of variable format or size"):
            filter.upscale(clip, network)
    with pytest.raises(CheckpointError, match="neither a file nor the name"):
        filter.upscale(source(RGB24)[1], "missing")


def test_without_vapoursynth(monkeypatch):
    monkeypatch.setitem(sys.modules, "vapoursynth", None)
    monkeypatch.delitem(sys.modules, "espan.vapoursynth", raising=False)
    command = re.escape(install_command("vapoursynth"))
    with pytest.raises(ImportError, match=f"needs VapourSynth .*install it with {command}, with P"):
        importlib.import_module("espan.vapoursynth")
