"""Training photographs and the crops made of them."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from espan.data import Crops, Photograph, read_photographs
from espan.data.photographs import find_photographs
from espan.errors import EspanError
from espan.imaging import Image, imresize, write_image


def made_up(height: int, width: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Noise with some structure, uint8."""
    small = np.random.default_rng(seed).random((height // 4 + 2, width // 4 + 2, channels))
    return (imresize(small, 4)[:height, :width].clip(0, 1) * 255).astype(np.uint8)


def photograph(height: int, width: int, seed: int = 0) -> Photograph:
    hr = made_up(height, width, seed)
    return Photograph(f"{seed}.png", hr, imresize(hr, Fraction(1, 4)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good photographs (one of them below), and six files that cannot be used."""
    (tmp_path / "below").mkdir()
    write_image(tmp_path / "b.png", Image(made_up(67, 50, 1)))
    write_image(tmp_path / "below" / "a.jpg", Image(made_up(48, 64, 2, channels=1)))
    write_image(tmp_path / "tiny.png", Image(made_up(31, 64, 3)))
    write_image(tmp_path / "alpha.png", Image(made_up(64, 64, 4, channels=4)))
    (tmp_path / "broken.png").write_bytes((tmp_path / "b.png").read_bytes()[:2000])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_photographs_are_found_below_and_unusable_ones_are_told(folder: Path) -> None:
    paths = find_photographs([folder])
    photographs, skipped = read_photographs(paths, scale=4, smallest=8)
    assert [p.name for p in photographs] == ["b.png", "a.jpg"]
    assert [s.path.name for s in skipped] == ["alpha.png", "broken.png", "empty.jpg", "tiny.png"]
    assert all(str(s.path) in s.reason for s in skipped)
    first, gray = photographs
    assert first.hr.shape == (64, 48, 3)  # of 67 x 50, cropped to multiples of 4
    assert first.lr.shape == (16, 12, 3)
    np.testing.assert_array_equal(first.hr, made_up(67, 50, 1)[:64, :48])
    np.testing.assert_array_equal(first.lr, imresize(first.hr, Fraction(1, 4)))
    assert gray.hr.shape == (48, 64, 3)
    assert (gray.hr == gray.hr[:, :, :1]).all()


def test_16_bit_samples_are_rounded(tmp_path: Path) -> None:
    values = np.array([0, 128, 129, 257, 65406, 65407, 65535], np.uint16)
    write_image(tmp_path / "deep.png", Image(np.resize(values, (8, 56, 3))))
    [photo], _ = read_photographs([tmp_path / "deep.png"], scale=4, smallest=2)
    assert photo.hr.dtype == np.uint8
    np.testing.assert_array_equal(
        photo.hr, np.resize(np.array([0, 0, 1, 1, 254, 255, 255], np.uint8), (8, 56, 3))
    )


def test_the_same_folder_twice_counts_once(folder: Path) -> None:
    assert find_photographs([folder, folder]) == find_photographs([folder])


def test_folders_without_usable_images(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(EspanError, match="no images in"):
        find_photographs([empty])
    with pytest.raises(EspanError, match="missing is not a folder"):
        find_photographs([empty / "missing"])
    with pytest.raises(EspanError, match="both sides need 128 for a patch of 32 at x4"):
        read_photographs([folder / "b.png"], scale=4, smallest=32)


def test_a_sample_depends_on_seed_and_index_alone() -> None:
    photographs = [photograph(64, 80), photograph(48, 52, 1)]
    one, same, other = (Crops(photographs, patch=8, seed=s) for s in (5, 5, 6))
    lr, hr = one.batch(10, 6)
    for i in reversed(range(6)):  # another order, one at a time
        lr_i, hr_i = same.batch(10 + i, 1)
        assert torch.equal(lr_i[0], lr[i])
        assert torch.equal(hr_i[0], hr[i])
    assert not any(torch.equal(a, b) for a, b in zip(lr, other.batch(10, 6)[0], strict=True))
    assert len({one.sample(i)[0].tobytes() for i in range(50)}) > 40


def test_a_batch_is_in_0_to_1_and_channels_last() -> None:
    lr, hr = Crops([photograph(64, 64)], patch=8, seed=0).batch(0, 3)
    assert lr.shape == (3, 3, 8, 8)
    assert hr.shape == (3, 3, 32, 32)
    assert lr.is_contiguous(memory_format=torch.channels_last)
    assert lr.dtype == hr.dtype == torch.float32
    assert 0 <= hr.min() < 0.3 < 0.7 < hr.max() <= 1


def test_crops_are_aligned_cut_from_the_whole_lr_and_of_all_symmetries() -> None:
    """Pixels that tell their own position tell where a crop is from and how it was turned."""
    y, x = np.mgrid[:10, :13]
    lr = np.stack([y, x, np.zeros_like(x)], axis=2).astype(np.uint8)
    hr = np.kron(lr, np.ones((4, 4, 1), np.uint8))
    hr[..., 2] = np.arange(40)[:, None] % 4 * 4 + np.arange(52) % 4
    crops = Crops([Photograph("p", hr, lr)], patch=4, seed=0)
    turns, places = set(), set()
    for index in range(600):
        small, large = crops.sample(index)
        np.testing.assert_array_equal(large[::4, ::4, :2], small[..., :2])
        np.testing.assert_array_equal(large[3::4, 3::4, :2], small[..., :2])
        turns.add(large[:4, :4, 2].tobytes())
        top, left = small[..., 0].min(), small[..., 1].min()
        places.add((int(top), int(left)))
        rows = {tuple(r) for r in small[..., :2].reshape(-1, 2).tolist()}
        assert rows == {(top + i, left + j) for i in range(4) for j in range(4)}
    assert len(turns) == 8
    assert places == {(i, j) for i in range(7) for j in range(10)}


def test_photographs_are_equally_likely_whatever_their_size() -> None:
    large, small = photograph(80, 80), photograph(36, 36, 1)
    small.hr[:] = 7
    crops = Crops([large, small], patch=8, seed=1)
    drawn = sum((crops.sample(i)[1] == 7).all() for i in range(1000))
    assert drawn == pytest.approx(500, abs=4 * 1000**0.5 / 2)
