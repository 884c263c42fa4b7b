"""Upscaling arrays, tensors and PIL images: every kind, tiles, and the range guard."""

import functools
import multiprocessing
import pickle
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import espan
from espan.engines import Blocks
from espan.errors import EspanError, ImageWarning, RangeWarning
from espan.folding import fold
from espan.fused import FusedNetwork
from espan.models import ESPAN, Architecture, Network
from espan.tiling import LARGEST_UNTILED, TILE, tile_size, tiles
from espan.upscaling import Upscaler

SMALL = Architecture(8, (3, 2), scale=2, head_kernel=5)


@pytest.fixture
def nearest():
    """A network that repeats each pixel: the centre of each convolution passes RGB on.

    The gate has no effect, because the tail ignores the output of the blocks.
    """
    network = Network(SMALL).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.zero_()
    for i in range(3):
        network.head.weight[i, i, 2, 2] = 1
        network.tail.fuse.weight[i, i] = 1
        network.tail.upsample.weight[4 * i : 4 * i + 4, i, 1, 1] = 1
    return network


def repeat(pixels):
    return pixels.repeat(2, axis=0).repeat(2, axis=1)


def ramp(channels, dtype):
    """Over 250 levels, different in each channel; alpha is never 0, which would hide colours."""
    levels = np.iinfo(dtype).max
    values = np.linspace(1, levels, 30 * 31 * channels).round().astype(dtype)
    return np.random.default_rng(0).permutation(values).reshape(30, 31, channels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_arrays_keep_depth_and_channels(channels, dtype, nearest):
    pixels = ramp(channels, dtype)
    out = espan.upscale(pixels, nearest, device="cpu")
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, repeat(pixels))


def test_gray_array_without_channel_axis(nearest):
    pixels = ramp(1, np.uint8)[:, :, 0]
    np.testing.assert_array_equal(espan.upscale(pixels, nearest, device="cpu"), repeat(pixels))


def test_readonly_and_strided_arrays(nearest):
    pixels = ramp(3, np.uint8)
    pixels.setflags(write=False)
    for view in (pixels[::-1], pixels[:, ::2], pixels[:, :, ::-1]):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            out = espan.upscale(view, nearest, device="cpu")
        np.testing.assert_array_equal(out, repeat(view))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_arrays(dtype, nearest):
    pixels = (ramp(3, np.uint8) / 255).astype(dtype)
    out = espan.upscale(pixels, nearest, device="cpu")
    assert out.dtype == dtype
    # 17 bits per value, if fp32 is computed from three products of bf16.
    np.testing.assert_allclose(out, repeat(pixels), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 5, 6), (2, 3, 5, 6), (1, 5, 6), (4, 5, 6)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_tensors(shape, dtype, nearest):
    image = torch.rand(shape)
    image = (image * 255).to(dtype) if dtype == torch.uint8 else image.to(dtype)
    out = espan.upscale(image, nearest)
    assert out.dtype == dtype
    assert out.is_contiguous()
    expected = image.repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(out, expected)


def pil(mode):
    base = Image.fromarray(ramp(3, np.uint8))
    if mode == "I;16":
        return Image.fromarray(ramp(1, np.uint16)[:, :, 0])
    if mode == "LA":
        return Image.merge("LA", base.split()[:2])
    if mode == "RGBA":
        return Image.fromarray(ramp(4, np.uint8))
    if mode == "P+alpha":
        image = base.quantize(16)
        image.info["transparency"] = bytes([255, 255, 255, 100])
        return image
    return base.convert(mode)


@pytest.mark.parametrize(
    ("mode", "becomes"),
    [
        ("L", "L"),
        ("LA", "LA"),
        ("RGB", "RGB"),
        ("RGBA", "RGBA"),
        ("I;16", "I;16"),
        ("1", "L"),
        ("P", "RGB"),
        ("P+alpha", "RGBA"),
        ("YCbCr", "RGB"),
    ],
)
def test_pil_modes(mode, becomes, nearest):
    image = pil(mode)
    out = espan.upscale(image, nearest, device="cpu")
    assert out.mode == becomes
    same = image if image.mode == becomes else image.convert(becomes)
    np.testing.assert_array_equal(np.asarray(out), repeat(np.asarray(same)))


def test_pil_orientation_and_profile(nearest):
    image = Image.fromarray(ramp(3, np.uint8)[:20])
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.info["icc_profile"] = profile
    image.getexif()[0x0112] = 6  # turn by 90 degrees
    out = espan.upscale(image, nearest, device="cpu")
    assert out.size == (40, 62)
    assert out.info["icc_profile"] == profile
    assert 0x0112 not in out.getexif()


def test_pil_images_without_range_are_rejected(nearest):
    for mode in ("I", "F"):
        with pytest.raises(EspanError, match=f"mode '{mode}' have no defined range"):
            espan.upscale(Image.new(mode, (4, 4)), nearest)


def test_opaque_alpha_stays_opaque(make_network):
    pixels = ramp(4, np.uint8)
    pixels[:, :, 3] = 255
    out = espan.upscale(pixels, make_network(SMALL), device="cpu")
    assert (out[:, :, 3] == 255).all()


def test_one_pixel(nearest):
    assert (
        espan.upscale(np.full((1, 1, 3), 7, np.uint8), nearest, device="cpu").tolist()
        == [[[7, 7, 7]] * 2] * 2
    )


# Tiles


def image_like(shape):
    """Values as in a photograph, for which the networks are trained."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, 9, 9, generator=generator)
    return torch.nn.functional.interpolate(coarse, shape, mode="bicubic").clamp(0, 1)[0]


@pytest.mark.parametrize(("size", "shape"), [(1, (9, 12)), (7, (37, 50)), (64, (37, 150))])
def test_tiled_equals_untiled(size, shape, make_network):
    network = make_network(SMALL)
    pixels = image_like(shape)
    whole = Upscaler(network, device="cpu", tile=None)(pixels)
    tiled = Upscaler(network, device="cpu", tile=size)(pixels)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=2e-6)


def test_a_smaller_halo_would_show(make_network, monkeypatch):
    network = make_network(SMALL)
    pixels = image_like((40, 40))
    whole = Upscaler(network, device="cpu", tile=None)(pixels)
    radius = SMALL.receptive_radius
    monkeypatch.setattr(Architecture, "receptive_radius", radius - 3)
    tiled = Upscaler(network, device="cpu", tile=16)(pixels)
    assert (tiled - whole).abs().max() > 1e-5


def test_bundled_weights_tiled():
    pixels = image_like((70, 90))
    whole, tiled = (Upscaler(device="cpu", tile=t)(pixels) for t in (None, 33))
    torch.testing.assert_close(tiled, whole, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(1, 1), (5, 700), (640, 33), (257, 256)])
@pytest.mark.parametrize("size", [None, 1, 64, 256])
def test_tiles_cover_once(shape, size):
    count = np.zeros(shape, int)
    for tile in tiles(*shape, size, 23):
        count[tile.y.start : tile.y.stop, tile.x.start : tile.x.stop] += 1
        for span, length in zip(tile, shape, strict=True):
            assert span.stop > span.start
            assert size is None or span.stop - span.start <= max(4, size)
            assert span.read_start % 4 == 0
            assert max(0, span.start - 26) <= span.read_start <= max(0, span.start - 23)
            assert min(length, span.stop + 23) <= span.read_stop <= min(length, span.stop + 26)
    assert (count == 1).all()


def test_large_images_are_tiled_automatically():
    assert tile_size(700, 700) is None
    size = tile_size(1000, 1000)
    assert size is not None
    assert size == TILE
    assert (size + 2 * 23) ** 2 < LARGEST_UNTILED


@pytest.mark.parametrize("architecture", [ESPAN, SMALL])
def test_a_gpu_takes_larger_images_at_once(architecture, make_network):
    """Up to 2 GB, in bytes per LR pixel: five maps of 16-bit channels, three 16-bit colours."""
    engine = Blocks(fold(make_network(architecture)), device="cpu", dtype=torch.float16)
    padded, scale = (32, 4) if architecture is ESPAN else (16, 2)
    assert engine.most_pixels == 2**31 // (5 * 2 * padded + 2 * 3 * scale**2)
    assert tile_size(1080, 1920, engine.most_pixels) is None
    size = tile_size(4320, 7680, engine.most_pixels)
    assert size is not None
    assert size + 2 * 23 < engine.most_pixels**0.5


# The range guard


def scaled(network: Network, factor: float) -> Network:
    network.tail.upsample.weight.mul_(factor)
    return network


def test_photographs_cause_no_warnings(nearest):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        espan.upscale(ramp(3, np.uint8), nearest, device="cpu")


def test_implausible_output_is_reported(nearest):
    with pytest.warns(RangeWarning, match=r"range \(-1 to 2\) before it was clamped"):
        espan.upscale(np.full((4, 4, 3), 255, np.uint8), scaled(nearest, 50), device="cpu")


def test_threads_that_share_a_network_get_their_own_warnings(nearest, monkeypatch):
    """Another thread must not reset the flag between the call of the network and the check."""
    fused = FusedNetwork(scaled(nearest, 50), device="cpu")
    bad, good = np.full((4, 4, 3), 255, np.uint8), np.zeros((4, 4, 3), np.uint8)
    computed, finished = threading.Event(), threading.Event()
    check, warned = fused.check, []

    def slow_check():
        if threading.current_thread() is first:
            computed.set()
            finished.wait(0.3)  # in vain, if the other thread waits as it should
        return check()

    def upscale_good():
        espan.upscale(good, fused)
        finished.set()

    monkeypatch.setattr(fused, "check", slow_check)
    monkeypatch.setattr(
        "espan.upscaling.warn", lambda *_: warned.append(threading.current_thread())
    )
    first = threading.Thread(target=espan.upscale, args=(bad, fused))
    second = threading.Thread(target=upscale_good)
    first.start()
    computed.wait()
    second.start()
    first.join()
    second.join()
    assert warned == [first]


def test_overflow_is_recomputed_in_fp32(nearest):
    """In fp16, 60000 * 2 is infinite; in fp32, the following layers reduce it to 1."""
    nearest.head.weight.mul_(60000)
    nearest.tail.fuse.weight.mul_(2)
    nearest.tail.upsample.weight.div_(120000)
    pixels = ramp(3, np.uint8)
    with pytest.warns(RangeWarning, match=r"in torch.float16; .* again in full fp32"):
        out = espan.upscale(pixels, nearest, device="cpu", dtype=torch.float16)
    np.testing.assert_array_equal(out, repeat(pixels))


def test_nan_is_an_error_instead_of_black(nearest):
    nearest.tail.upsample.weight.fill_(float("nan"))
    with pytest.raises(EspanError, match="not finite, even in fp32"):
        espan.upscale(ramp(3, np.uint8), nearest, device="cpu")


def test_official_espan_on_a_grid(testdata):
    """A one-pixel grid drives the output of these networks to hundreds."""
    grid = np.zeros((64, 64, 3), np.uint8)
    grid[::2] = grid[:, ::2] = 255
    weights = testdata / "weights" / "espan_x4_official.pth"
    with pytest.warns(RangeWarning, match="the network is unstable on this image"):
        espan.upscale(grid, weights, device="cpu")


@pytest.mark.parametrize("call", ["upscale", "Upscaler"])
@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize(
    ("image", "category"),
    [
        (np.full((4, 4, 3), 255, np.uint8), RangeWarning),
        ("two_frames.gif", ImageWarning),
        (Image.new("L", (4, 4)), ImageWarning),
    ],
    ids=["array", "file", "PIL"],
)
def test_warnings_name_the_callers_line(call, as_list, image, category, nearest, tmp_path):
    if isinstance(image, str):
        frames = [Image.new("L", (4, 4), v) for v in (0, 9)]
        frames[0].save(tmp_path / image, save_all=True, append_images=frames[1:])
        image = tmp_path / image
    elif isinstance(image, Image.Image):
        image.info["icc_profile"] = bytes(16) + b"RGB " + bytes(200)
    weights = scaled(nearest, 50) if category is RangeWarning else nearest
    upscaler = Upscaler(weights, device="cpu")
    function = (
        upscaler if call == "Upscaler" else functools.partial(espan.upscale, weights=upscaler)
    )
    with pytest.warns(category) as caught:
        function([image] if as_list else image)
    assert [w.filename for w in caught] == [__file__]


# One callable for all


def test_a_file_and_a_list(nearest, tmp_path):
    upscaler = Upscaler(nearest, device="cpu")
    pixels = ramp(3, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    results = upscaler([tmp_path / "a.png", str(tmp_path / "a.png"), pixels])
    assert isinstance(results[0], Image.Image)
    for result in results:
        np.testing.assert_array_equal(np.asarray(result), repeat(pixels))
    assert espan.upscale([], upscaler) == []


def test_equal_images_of_a_list_share_calls(make_network, monkeypatch):
    """As on a GPU.  The results are those of each image alone, in order."""
    upscaler = Upscaler(make_network(SMALL), device="cpu")
    shapes = [(9, 12, 3)] * 5 + [(12, 9, 3), (9, 12, 3), (9, 12, 4), (9, 12, 4), (9, 12)]
    random = np.random.default_rng(1)
    images = [random.integers(0, 256, shape, np.uint8) for shape in shapes]
    images += [torch.from_numpy(random.integers(0, 256, (2, 3, 9, 12), np.uint8))]
    images[7][..., 3] = 200  # the alpha of one image is constant, that of the next is not
    expected = [upscaler(image) for image in images]
    sizes = []
    call = FusedNetwork.forward
    monkeypatch.setattr(Upscaler, "_together", lambda self, pixels: 3)
    monkeypatch.setattr(
        FusedNetwork, "forward", lambda self, x: (sizes.append(len(x)), call(self, x))[1]
    )
    results = upscaler(images)
    assert sizes == [3, 2, 1, 1, 2, 1, 1, 2]
    for result, wanted in zip(results, expected, strict=True):
        assert type(result) is type(wanted)
        np.testing.assert_array_equal(result, wanted)


def test_an_implausible_image_does_not_change_its_neighbours(nearest, monkeypatch):
    """In fp16, 255 overflows in the head; the others are as without it."""
    nearest.head.weight.mul_(60000)
    nearest.tail.fuse.weight.mul_(2)
    nearest.tail.upsample.weight.div_(120000)
    upscaler = Upscaler(nearest, device="cpu", dtype=torch.float16)
    images = [np.full((4, 4, 3), v, np.uint8) for v in (40, 255, 99)]
    expected = [upscaler(images[0]), repeat(images[1]), upscaler(images[2])]
    monkeypatch.setattr(Upscaler, "_together", lambda self, pixels: 3)
    with pytest.warns(RangeWarning, match=r"in torch.float16; .* again in full fp32") as caught:
        results = upscaler(images)
    assert len(caught) == 1
    np.testing.assert_array_equal(results, expected)


@pytest.mark.parametrize("options", [{}, {"tile": 8, "dtype": torch.float32}])
def test_pickle(options, nearest):
    upscaler = Upscaler(nearest, device="cpu", **options)
    copy = pickle.loads(pickle.dumps(upscaler))
    assert copy._tile == upscaler._tile
    assert copy._default.options == upscaler._default.options
    pixels = ramp(3, np.uint8)
    np.testing.assert_array_equal(copy(pixels), upscaler(pixels))


def test_in_a_spawned_process(nearest):
    upscaler = Upscaler(nearest, device="cpu")
    images = [ramp(channels, np.uint8) for channels in (1, 3)]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for result, image in zip(pool.map(upscaler, images), images, strict=True):
            np.testing.assert_array_equal(result, repeat(image))


def test_16_bit_colour_files_have_no_pil_image(nearest, tmp_path):
    from espan.imaging import Image as Pixels
    from espan.imaging import write_image

    write_image(tmp_path / "deep.png", Pixels(ramp(3, np.uint16)))
    with pytest.raises(EspanError, match="pass the pixels as a NumPy array of uint16"):
        espan.upscale(tmp_path / "deep.png", nearest, device="cpu")


def test_a_fused_network_as_weights(nearest):
    fused = FusedNetwork(nearest, device="cpu", dtype=torch.float32)
    upscaler = Upscaler(fused)
    assert (upscaler.backend, upscaler.device) == (fused.backend, fused.device)
    for kind in (np.uint8, np.uint16):
        np.testing.assert_array_equal(upscaler(ramp(3, kind)), repeat(ramp(3, kind)))
    with pytest.warns(RangeWarning, match="before it was clamped"):
        Upscaler(FusedNetwork(scaled(nearest, 50), device="cpu"))(np.full((4, 4, 3), 255, np.uint8))


def test_other_calls_of_a_fused_network_cause_no_warning(nearest):
    fused = FusedNetwork(nearest, device="cpu")
    fused(torch.full((1, 3, 4, 4), 5.0))  # out of range, and not checked
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Upscaler(fused)(ramp(3, np.uint8))


def test_a_fused_network_uses_fp32_for_16_bit_images(nearest):
    """For images of more than 8 bits, unless it was created with an explicit dtype."""
    pixels = ramp(3, np.uint16)
    for options in ({}, {"dtype": torch.float32}):
        upscaler = Upscaler(FusedNetwork(nearest, device="cpu", **options))
        np.testing.assert_array_equal(upscaler(pixels), repeat(pixels))
        exact = upscaler._in_fp32()
        assert exact.options["dtype"] == torch.float32
        assert (exact is upscaler._default) is bool(options)
    narrow = Upscaler(FusedNetwork(nearest, device="cpu", dtype=torch.float16))
    narrow(pixels)
    assert narrow._exact is None
    nearest.head.weight.mul_(60000)  # as above: infinite in fp16
    nearest.tail.fuse.weight.mul_(2)
    nearest.tail.upsample.weight.div_(120000)
    overflows = FusedNetwork(nearest, device="cpu", dtype=torch.float16, backend="reference")
    with pytest.warns(RangeWarning, match=r"in torch.float16; .* again in full fp32"):
        out = Upscaler(overflows)(ramp(3, np.uint8))
    np.testing.assert_array_equal(out, repeat(ramp(3, np.uint8)))


OPTIONS = {
    "device": "cpu",
    "dtype": torch.float32,
    "backend": "reference",
    "tile": 64,
    "graph": True,
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_without_effect_are_rejected(name, nearest):
    option = {name: OPTIONS[name]}
    with pytest.raises(EspanError, match=f"{name}=.* has no effect with an Upscaler"):
        espan.upscale(ramp(3, np.uint8), Upscaler(nearest, device="cpu"), **option)
    if name != "tile":
        with pytest.raises(EspanError, match=f"{name}=.* has no effect with a FusedNetwork"):
            Upscaler(FusedNetwork(nearest, device="cpu"), **option)


def test_a_graph_needs_a_gpu(nearest):
    with pytest.raises(EspanError, match="graph=True needs an NVIDIA GPU"):
        Upscaler(nearest, device="cpu", graph=True)


@pytest.mark.parametrize("made_in", [False, True])
def test_inference_mode(made_in, nearest):
    pixels = ramp(3, np.uint8)
    with torch.inference_mode(made_in):
        upscaler = Upscaler(nearest, device="cpu")
    with torch.inference_mode(not made_in):
        np.testing.assert_array_equal(upscaler(pixels), repeat(pixels))
    # The fp32 network for 16-bit images may be a separate one, created when first used.
    np.testing.assert_array_equal(upscaler(ramp(1, np.uint16)), repeat(ramp(1, np.uint16)))


def test_arrays_and_pil_images_need_no_libvips():
    """They work on a machine with only PyTorch, NumPy and Pillow."""
    code = """
import sys
sys.modules["pyvips"] = None
import numpy as np
from PIL import Image
import espan
upscaler = espan.Upscaler(device="cpu")
for channels in (1, 3, 4):
    assert upscaler(np.zeros((4, 5, channels), np.uint8)).shape == (16, 20, channels)
assert upscaler(Image.new("RGBA", (5, 4), (1, 2, 3, 4))).size == (20, 16)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Bad input


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"photo.png", "got an object of type bytes"),
        ("no such.png", "no such.png"),
        (np.zeros((4, 4, 5), np.uint8), r"shape \(4, 4, 5\)"),
        (np.zeros((4,), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.int32), "int32"),
        (np.zeros((4, 4, 3), ">u2"), "array of >u2"),
        (np.zeros((4, 4, 3), bool), "bool"),
        (np.zeros((4, 4, 3), complex), "complex"),
        (np.zeros((4, 4, 3), object), "object"),
        (np.full((4, 4, 3), 255.0), "range from 255 to 255; divide by 255"),
        (np.full((4, 4, 3), -1.0), "must lie in 0-1"),
        (np.full((4, 4, 3), np.nan), "NaN or infinite"),
        (torch.full((3, 4, 4), torch.inf), "NaN or infinite"),
        (torch.zeros(4, 4), r"shape \(4, 4\)"),
        (torch.zeros(0, 3, 4, 4), r"shape \(0, 3, 4, 4\)"),
        (torch.zeros(7, 4, 4), "shape"),
    ],
)
def test_bad_images(image, message, nearest):
    with pytest.raises(EspanError, match=message):
        espan.upscale(image, nearest, device="cpu")


@pytest.mark.parametrize("tile", [0, -1, 1.5, "big", True])
def test_bad_tile(tile, nearest):
    with pytest.raises(EspanError, match="tile must be"):
        espan.upscale(ramp(3, np.uint8), nearest, device="cpu", tile=tile)


def test_unknown_weights():
    with pytest.raises(EspanError, match="neither a file nor the name"):
        espan.upscale(ramp(3, np.uint8), "espan_x9")


def test_espan_default_is_the_architecture_of_the_paper():
    assert espan.load().architecture == ESPAN
