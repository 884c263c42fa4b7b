"""Unusual files: each is upscaled or rejected with a one-sentence error."""

import re

import PIL.Image
import pytest

from espan import batch
from espan.imaging import read_image
from espan.models import Architecture
from espan.upscaling import Upscaler
from tests.image_files import by_pillow, photo, sample

ENDINGS = {
    "png": "PNG", "jpg": "JPEG", "webp": "WEBP", "tif": "TIFF", "gif": "GIF", "bmp": "BMP",
}  # fmt: skip
SEVERAL_FRAMES = ("png", "webp", "tif", "gif")


@pytest.fixture
def run(tmp_path, make_network):
    upscaler = Upscaler(make_network(Architecture(8, (2,), scale=2)), device="cpu")

    def run_files(files):
        folder = tmp_path / "in"
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        jobs = batch.plan([folder], tmp_path / "out")
        outcomes = batch.run_all(jobs, upscaler, overwrite=False)
        return {o.job.source.name: o for o in outcomes}

    return run_files


def test_broken_files_are_rejected_and_leave_no_output(run, tmp_path):
    files = {}
    for ending, format in ENDINGS.items():
        data = sample(format)
        files |= {
            f"empty.{ending}": b"",
            f"text.{ending}": b"<!doctype html><title>404</title>",
            f"signature.{ending}": data[:12],
            f"half.{ending}": data[: len(data) // 2],
        }
    # Each gets its own name, because .gif becomes .png.
    outcomes = run({f"{i} {name}": data for i, (name, data) in enumerate(files.items())})
    assert len(outcomes) == len(files)
    for name, outcome in outcomes.items():
        assert outcome.error.startswith(f"{tmp_path / 'in' / name}: "), outcome.error
        assert re.search(r": damaged, truncated or unsupported |; expected a PNG, ", outcome.error)
        assert "\n" not in outcome.error
    assert not (tmp_path / "out").exists()


def test_one_pixel_and_wrong_suffixes(run, tmp_path):
    files = {}
    for ending, format in ENDINGS.items():
        files[f"one {format}.{ending}"] = by_pillow(PIL.Image.fromarray(photo(1, 1)), format)
        files[f"wrong {format}.{'tif' if ending == 'png' else 'png'}"] = sample(format)
    outcomes = run(files)
    assert {name: o.error for name, o in outcomes.items() if o.error} == {}
    for name, outcome in outcomes.items():
        # The suffix decides the format to write, the content the format to read.
        ending = outcome.job.target.suffix[1:]
        assert PIL.Image.open(outcome.job.target).format == ENDINGS[ending]
        height, width = (2, 2) if name.startswith("one") else (120, 160)
        assert read_image(outcome.job.target).pixels.shape[:2] == (height, width)


def test_several_frames_or_pages(run):
    first, second = (PIL.Image.fromarray(photo(9, 12)[::step].copy()) for step in (1, -1))
    files = {
        f"{ending} frames.{ending}": by_pillow(
            first, ENDINGS[ending], save_all=True, append_images=[second]
        )
        for ending in SEVERAL_FRAMES
    }
    for outcome in run(files).values():
        assert outcome.error is None
        # Without the file's name, which is part of the outcome.
        assert outcome.notes == ("holds 2 frames or pages; only the first is read",)
