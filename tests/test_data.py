"""Training images and their crops."""

import pickle
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from espan.data import (
    Crops,
    batches,
    fingerprint,
    image_in_memory,
    images,
    move_to_pack,
    open_images,
    with_lr,
)
from espan.data.downscale import context, downscale, weights
from espan.data.on_device import cut, finish
from espan.data.pack import Pack
from espan.data.photographs import find_photographs
from espan.data.prepare import prepare
from espan.errors import EspanError
from espan.imaging import Image, imresize, modcrop, write_image

CPU = torch.device("cpu")


def synthetic(height: int, width: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Noise with some structure, uint8."""
    small = np.random.default_rng(seed).random((height // 4 + 2, width // 4 + 2, channels))
    return (imresize(small, 4)[:height, :width].clip(0, 1) * 255).astype(np.uint8)


def image(height: int, width: int, seed: int = 0, scale: int = 4) -> images.TrainingImage:
    return image_in_memory(f"{seed}.png", synthetic(height, width, seed), scale)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good photographs (one of them in a subfolder), and six unusable files."""
    path = tmp_path / "photos"
    (path / "below").mkdir(parents=True)
    write_image(path / "b.png", Image(synthetic(67, 50, 1)))
    write_image(path / "below" / "a.jpg", Image(synthetic(48, 64, 2, channels=1)))
    write_image(path / "tiny.png", Image(synthetic(31, 64, 3)))
    write_image(path / "alpha.png", Image(synthetic(64, 64, 4, channels=4)))
    (path / "broken.png").write_bytes((path / "b.png").read_bytes()[:2000])
    (path / "empty.jpg").touch()
    (path / "notes.txt").write_text("no image")
    return path


def test_subfolders_are_searched_and_unusable_images_reported(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    found, skipped = open_images(
        [folder], scale=4, smallest=8, each=lambda done, total: calls.append((done, total))
    )
    assert calls == [(i, 6) for i in range(1, 7)]
    assert [i.name for i in found] == ["b.png", "below/a.jpg"]
    assert [s.path.name for s in skipped] == ["alpha.png", "broken.png", "empty.jpg", "tiny.png"]
    assert all(str(s.path) in s.reason for s in skipped)
    first, gray = found
    assert (first.height, first.width) == (16, 12)  # of 67 x 50, cropped to multiples of 4
    np.testing.assert_array_equal(first.hr, synthetic(67, 50, 1)[:64, :48])
    np.testing.assert_array_equal(first.lr, imresize(first.hr, Fraction(1, 4)))
    assert gray.hr.shape == (48, 64, 3)
    assert (gray.hr == gray.hr[:, :, :1]).all()


def test_16_bit_samples_are_rounded(tmp_path: Path) -> None:
    values = np.array([0, 128, 129, 257, 65406, 65407, 65535], np.uint16)
    write_image(tmp_path / "deep.png", Image(np.resize(values, (8, 56, 3))))
    [deep], _ = open_images([tmp_path], scale=4, smallest=2)
    assert deep.hr.dtype == np.uint8
    np.testing.assert_array_equal(
        deep.hr, np.resize(np.array([0, 0, 1, 1, 254, 255, 255], np.uint8), (8, 56, 3))
    )


def test_duplicate_sources_are_used_once(folder: Path) -> None:
    assert find_photographs([folder, folder]) == find_photographs([folder])
    assert len(open_images([folder, folder], scale=4, smallest=8)[0]) == 2


def test_sources_without_usable_images(folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(EspanError, match=r"no images in .*empty"):
        open_images([folder, empty], scale=4, smallest=8)
    with pytest.raises(EspanError, match="missing does not exist"):
        open_images([empty / "missing"], scale=4, smallest=8)
    with pytest.raises(EspanError, match=r"none of 1 images .* need 128 for a patch of 32 at x4"):
        open_images([folder / "below"], scale=4, smallest=32)
    with pytest.raises(EspanError, match=r"notes.txt is not a pack; `espan prepare"):
        open_images([folder / "notes.txt"], scale=4, smallest=8)


def test_images_that_do_not_fit_into_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """b.png has 10050 bytes of pixels, a.jpg 9216."""
    monkeypatch.setattr(images, "free_memory", lambda: 2 * 19266)
    assert len(open_images([folder], scale=4, smallest=8)[0]) == 2
    monkeypatch.setattr(images, "free_memory", lambda: 2 * 19265)
    with pytest.raises(EspanError, match=r"file 3 of 6\); .*`espan prepare DIR -o PACK`"):
        open_images([folder], scale=4, smallest=8)


def test_free_memory_is_a_number_of_bytes() -> None:
    assert 2**20 < images.free_memory() < 2**50


@pytest.fixture
def pairs(tmp_path: Path) -> tuple[Path, Path]:
    """HR and LR folders.  LR differs from the output of imresize; one name is as in DIV2K."""
    hr, lr = tmp_path / "hr", tmp_path / "lr"
    for name, lr_name, seed in (("0001.png", "0001x4.png", 1), ("d/b.png", "d/b.bmp", 2)):
        for path in (hr / name, lr / lr_name):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_image(hr / name, Image(synthetic(64, 80, seed)))
        write_image(lr / lr_name, Image(synthetic(16, 20, seed + 10)))
    return hr, lr


@pytest.mark.parametrize("packed", [False, True])
def test_given_lr_images(pairs: tuple[Path, Path], packed: bool, tmp_path: Path) -> None:
    source, lr = pairs
    if packed:
        prepare([source], tmp_path / "p", smallest=1)
        source = tmp_path / "p"
    found, skipped = open_images([source], scale=4, smallest=8, lr=lr)
    assert not skipped
    for one, seed in zip(found, (1, 2), strict=True):
        np.testing.assert_array_equal(one.lr, synthetic(16, 20, seed + 10))
        small, large = one.crop(3, 5, 9, 8)
        np.testing.assert_array_equal(small, synthetic(16, 20, seed + 10)[3:12, 5:13])
        np.testing.assert_array_equal(large, synthetic(64, 80, seed)[12:48, 20:52])
    assert fingerprint(found) != fingerprint(open_images([source], scale=4, smallest=8)[0])
    crops = Crops(found, patch=8, seed=2)
    for a, b in zip(crops.batch(3, 9), finish(cut(crops, 3, 9, pin=False)), strict=True):
        assert torch.equal(a, b)


def test_mismatched_lr_images(pairs: tuple[Path, Path], tmp_path: Path) -> None:
    hr, lr = pairs
    with pytest.raises(EspanError, match="of one source, not of 2"):
        open_images([hr, tmp_path], scale=4, smallest=8, lr=lr)
    write_image(lr / "0001.png", Image(synthetic(16, 20)))
    with pytest.raises(EspanError, match=r"0001.png has .*0001.png and .*0001x4.png$"):
        open_images([hr], scale=4, smallest=8, lr=lr)
    (lr / "0001.png").unlink()
    (lr / "0001x4.png").rename(lr / "0001x3.png")
    with pytest.raises(EspanError, match=r"0001.png has none$"):
        open_images([hr], scale=4, smallest=8, lr=lr)
    write_image(lr / "0001.png", Image(synthetic(16, 21)))
    with pytest.raises(EspanError, match=r"but is not: 0001.png 80x64 and .*lr/0001.png 21x16$"):
        open_images([hr], scale=4, smallest=8, lr=lr)
    (lr / "0001.png").write_bytes(b"no image")
    found, skipped = open_images([hr], scale=4, smallest=8, lr=lr)
    assert [i.name for i in found] == ["d/b.png"]
    assert [s.path for s in skipped] == [lr / "0001.png"]


def test_two_hr_images_with_one_lr_image(pairs: tuple[Path, Path]) -> None:
    hr, lr = pairs
    write_image(hr / "0001.bmp", Image(synthetic(64, 80)))
    with pytest.raises(EspanError, match=r"0001.bmp and 0001.png share .*0001x4.png$"):
        open_images([hr], scale=4, smallest=8, lr=lr)


def test_hr_must_be_an_exact_multiple_of_lr(pairs: tuple[Path, Path]) -> None:
    hr, lr = pairs
    write_image(hr / "0001.png", Image(synthetic(66, 80)))
    with pytest.raises(EspanError, match=r"4 times the size of LR, but is not: 0001.png 80x66"):
        open_images([hr], scale=4, smallest=8, lr=lr)


@pytest.mark.parametrize("given", [False, True])
def test_images_moved_to_a_pack_can_be_pickled(
    pairs: tuple[Path, Path], given: bool, tmp_path: Path
) -> None:
    """Other processes map the images that one process decodes; existing packs are not moved."""
    hr, lr = pairs
    prepare([hr], tmp_path / "there", smallest=1)
    sources = [hr] if given else [hr, tmp_path / "there"]
    before, _ = open_images(sources, scale=4, smallest=8, lr=lr if given else None)
    moved = move_to_pack(before, tmp_path / "moved")
    after = pickle.loads(pickle.dumps(moved))
    assert fingerprint(after) == fingerprint(before)
    packs = [image.hr_pixels.pack.path.name for image in after]
    assert packs == (["moved"] * 2 if given else ["moved"] * 2 + ["there"] * 2)
    assert len(Pack(tmp_path / "moved").entries) == (4 if given else 2)
    assert len({id(image.hr_pixels.pack) for image in after}) == len(set(packs))
    assert len(pickle.dumps(moved)) < 2000  # no pixels
    a, b = (Crops(images, patch=8, seed=4).batch(5, 20) for images in (before, after))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


def test_images_at_several_scales_share_their_hr_pixels(tmp_path: Path) -> None:
    hr, lr = tmp_path / "hr", tmp_path / "lr"
    hr.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 36, 3), np.uint8)
    write_image(hr / "a.png", Image(pixels))
    found, _ = open_images([hr], scale=4, smallest=8)
    others = {}
    for scale in (2, 3):
        (lr / str(scale)).mkdir(parents=True)
        small = pixels[: 48 // scale, : 36 // scale].copy()
        write_image(lr / str(scale) / f"ax{scale}.png", Image(small))
        others[scale], skipped = with_lr(found, lr / str(scale), scale)
        assert not skipped
        np.testing.assert_array_equal(others[scale][0].lr, small)
    moved = move_to_pack([*found, *others[2], *others[3]], tmp_path / "moved")
    assert (tmp_path / "moved").stat().st_size < 3 * 48 * 36 * 1.5 + 1000
    for one, other in zip(moved, [*found, *others[2], *others[3]], strict=True):
        np.testing.assert_array_equal(one.hr, other.hr)
        np.testing.assert_array_equal(one.lr, other.lr)
    assert len({image.sha256 for image in moved}) == 3
    (lr / "2" / "ax2.png").write_bytes(b"damaged")
    with_damage = with_lr(found, lr / "2", 2)
    assert with_damage[0] == []
    assert "ax2.png" in with_damage[1][0].reason


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 6])
def test_lr_crops_are_crops_of_the_lr_image(scale: int) -> None:
    """Bit for bit, including borders and corners, in NumPy and in torch."""
    rng = np.random.default_rng(scale)
    for trial in range(60):
        h, w = (int(n) for n in rng.integers(1, (12, 400) if trial % 2 else (30, 30)))
        shape = (scale * h + trial % scale, scale * w, 3)
        hr = rng.integers(0, 256, shape, np.uint8)
        if trial % 3 == 0:
            hr = rng.choice(np.array([0, 1, 128, 255], np.uint8), shape)
        whole = imresize(modcrop(hr, scale), Fraction(1, scale))
        one = image_in_memory("i", hr, scale)
        ph, pw = int(rng.integers(1, h + 1)), int(rng.integers(1, w + 1))
        for y, x in ((0, 0), (h - ph, w - pw), ((h - ph) // 2, (w - pw) // 2)):
            small, large = one.crop(y, x, ph, pw)
            assert small.dtype == np.uint8
            np.testing.assert_array_equal(small, whole[y : y + ph, x : x + pw])
            s = scale
            np.testing.assert_array_equal(large, hr[s * y : s * (y + ph), s * x : s * (x + pw)])
            rows, columns = (torch.from_numpy(weights(s, *at)) for at in ((y, ph), (x, pw)))
            pixels = torch.from_numpy(context(one.hr, s, y, x, (ph, pw)).astype(np.float64))
            tensor = downscale(pixels.to(rows.dtype), rows, columns, s)
            np.testing.assert_array_equal(tensor.numpy(), small)


@pytest.mark.parametrize(("scale", "unit"), [(2, 2**8), (4, 2**12)])
def test_sums_at_x2_and_x4_are_exact_in_fp32(scale: int, unit: int) -> None:
    """All terms are multiples of 1 / unit, and the largest sum fits in 24 bits: nothing rounds."""
    for start in (0, 1, 1000, 4095):
        assert weights(scale, start, 3).dtype == np.float32
        values = weights(scale, start, 3).astype(np.float64) * unit
        np.testing.assert_array_equal(values, np.round(values))
        assert (values.sum(axis=1) == unit).all()
        assert np.abs(values).sum(axis=1).max() * 255 + unit / 2 < 2**24


def test_halves_at_x6_fall_as_in_the_whole_image() -> None:
    """For a few sums in 100,000, which are halves, the order of additions matters; test one."""
    hr = np.random.default_rng(5).choice(np.array([0, 1, 128, 255], np.uint8), (600, 600, 3))
    one = image_in_memory("i", hr, 6)
    np.testing.assert_array_equal(one.crop(0, 0, 100, 100)[0], one.lr)


def test_sums_at_x3_are_never_near_a_half() -> None:
    """Multiples of 1/81 are at least 1/162 from a half; the error of fp32 is much smaller."""
    exact = np.array([-1, -2, 0, 9, 21, 27, 21, 9, 0, -2, -1])
    for start in (0, 1, 1000, 4095):
        values = weights(3, start, 3).astype(np.float64)
        assert values.shape[1] == 13
        np.testing.assert_allclose(81 * values, np.tile([0, *exact, 0], (3, 1)), atol=1e-5)
    most, roundings = np.abs(exact).sum() / 81 * 255, 1 + 13 + 1  # weight, products and sums
    assert roundings * 2**-24 * most < 0.0004 < 1 / 162


def test_a_sample_depends_on_seed_and_index_alone() -> None:
    photographs = [image(64, 80), image(48, 52, 1)]
    one, same, other = (Crops(photographs, patch=8, seed=s) for s in (5, 5, 6))
    lr, hr = one.batch(10, 6)
    for i in reversed(range(6)):  # another order, one at a time
        lr_i, hr_i = same.batch(10 + i, 1)
        assert torch.equal(lr_i[0], lr[i])
        assert torch.equal(hr_i[0], hr[i])
    assert not any(torch.equal(a, b) for a, b in zip(lr, other.batch(10, 6)[0], strict=True))
    assert len({one.sample(i)[0].tobytes() for i in range(50)}) > 40


def test_a_batch_is_in_0_to_1_and_channels_last() -> None:
    crops = Crops([image(64, 64)], patch=8, seed=0)
    for lr, hr in (crops.batch(0, 3), finish(cut(crops, 0, 3, pin=False))):
        assert lr.shape == (3, 3, 8, 8)
        assert hr.shape == (3, 3, 32, 32)
        assert lr.is_contiguous(memory_format=torch.channels_last)
        assert hr.is_contiguous(memory_format=torch.channels_last)
        assert lr.dtype == hr.dtype == torch.float32
        assert 0 <= hr.min() < 0.3 < 0.7 < hr.max() <= 1
        np.testing.assert_array_equal(
            (lr[1].permute(1, 2, 0) * 255).round().byte().numpy(), crops.sample(1)[0]
        )


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_crops_finished_on_the_device_equal_those_of_the_host(scale: int) -> None:
    crops = Crops([image(99, 80, 0, scale), image(52, 48, 1, scale)], patch=11, seed=3)
    assert {crops.place(i)[3] for i in range(7, 57)} == set(range(8))
    moved = cut(crops, 7, 50, pin=False).to(CPU)
    for a, b in zip(crops.batch(7, 50), finish(moved), strict=True):
        assert torch.equal(a, b)


def test_crops_are_aligned_and_have_all_symmetries() -> None:
    """The pixels encode their position, which reveals the origin and the flip of a crop."""
    y, x = np.mgrid[:10, :13]
    hr = np.kron(np.stack([y, x, 0 * x], axis=2), np.ones((4, 4, 1))).astype(np.uint8)
    hr[..., 2] = np.arange(40)[:, None] % 4 * 4 + np.arange(52) % 4
    one = image_in_memory("p", hr, 4)
    lr = one.lr
    crops = Crops([one], patch=4, seed=0)
    symmetries, places = set(), set()
    for index in range(600):
        small, large = crops.sample(index)
        top, left = large[..., 0].min(), large[..., 1].min()
        for i, j in np.ndindex(4, 4):
            from_y, from_x = large[4 * i, 4 * j, :2]
            assert (large[4 * i : 4 * i + 4, 4 * j : 4 * j + 4, 0] == from_y).all()
            np.testing.assert_array_equal(small[i, j], lr[from_y, from_x])
        symmetries.add(large[:4, :4, 2].tobytes())
        places.add((int(top), int(left)))
    assert len(symmetries) == 8
    assert places == {(i, j) for i in range(7) for j in range(10)}


def test_images_of_all_sizes_are_equally_likely() -> None:
    large, small = image(80, 80), image(36, 36, 1)
    small.hr[:] = 7
    crops = Crops([large, small], patch=8, seed=1)
    drawn = sum((crops.sample(i)[1] == 7).all() for i in range(1000))
    assert drawn == pytest.approx(500, abs=4 * 1000**0.5 / 2)


def test_crops_of_images_that_are_too_small() -> None:
    with pytest.raises(EspanError, match="no images"):
        Crops([], patch=8, seed=0)
    with pytest.raises(
        EspanError, match=r"1.png: LR has 20 x 16 pixels, too few for a patch of 17"
    ):
        Crops([image(80, 80), image(64, 80, 1)], patch=17, seed=0)


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_steps_do_not_depend_on_processes_and_workers(workers: int, world: int) -> None:
    crops = Crops([image(64, 80), image(48, 52, 1)], patch=8, seed=5)
    shares = [
        list(
            batches(
                crops, batch=6, first_step=2, steps=4, rank=rank, world=world, workers=workers,
                device=CPU,
            )
        )
        for rank in range(world)
    ]  # fmt: skip
    assert {len(share) for share in shares} == {4}
    for t in range(4):
        lr, hr = crops.batch((2 + t) * 6, 6)
        assert torch.equal(torch.cat([share[t][0] for share in shares]), lr)
        assert torch.equal(torch.cat([share[t][1] for share in shares]), hr)


def test_another_device_receives_the_same_batches() -> None:
    crops = Crops([image(64, 80)], patch=8, seed=5)
    [(lr, hr)] = batches(crops, batch=6, first_step=2, steps=1, device=torch.device("meta"))
    for found, expected in zip((lr, hr), crops.batch(12, 6), strict=True):
        assert found.device.type == "meta"
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU")
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_gpu_gives_the_same_batches_as_the_cpu(scale: int) -> None:
    crops = Crops([image(264, 280, 0, scale), image(248, 252, 1, scale)], patch=48, seed=5)
    steps = batches(crops, batch=32, first_step=2, steps=5, workers=2, device=torch.device("cuda"))
    for t, batch in enumerate(steps, 2):
        for found, expected in zip(batch, crops.batch(32 * t, 32), strict=True):
            assert found.is_cuda
            assert torch.equal(found.cpu(), expected)


def test_a_batch_that_cannot_be_divided() -> None:
    crops = Crops([image(64, 80)], patch=8, seed=5)
    with pytest.raises(
        EspanError, match="a batch of 8 cannot be divided equally among 3 processes"
    ):
        batches(crops, batch=8, first_step=0, steps=1, rank=0, world=3, device=CPU)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_number_of_batches_prepared_ahead(workers: int) -> None:
    made: list[int] = []

    class Counted(Crops):
        def batch(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
            made.append(first)
            return super().batch(first, count)

    crops = Counted([image(64, 80)], patch=8, seed=5)
    steps = batches(crops, batch=2, first_step=0, steps=100, workers=workers, device=CPU)
    for _ in range(3):
        next(steps)
    del steps  # waits for unfinished work
    assert len(made) == 3 + 2 * workers


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_reaches_the_caller(workers: int) -> None:
    class Broken(Crops):
        def batch(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
            if first >= 4:
                raise EspanError("damaged")
            return super().batch(first, count)

    crops = Broken([image(64, 80)], patch=8, seed=5)
    steps = batches(crops, batch=2, first_step=0, steps=100, workers=workers, device=CPU)
    next(steps)
    next(steps)
    with pytest.raises(EspanError, match="damaged"):
        next(steps)


def test_the_fingerprint_depends_on_names_pixels_and_order() -> None:
    one, two = image(64, 80), image(48, 52, 1)
    assert fingerprint([one, two]) == fingerprint([image(64, 80), image(48, 52, 1)])
    changed = synthetic(48, 52, 1)
    changed[3, 4, 0] ^= 1
    others = [[two, one], [one], [one, image_in_memory("1.png", changed, 4)]]
    assert len({fingerprint(o) for o in [[one, two], *others]}) == 4
