"""Upscaling files and folders: names of the results, and continuing after errors."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import espan
from espan import batch
from espan.errors import EspanError
from espan.imaging import Image, read_image, write_image
from espan.models import Architecture
from espan.upscaling import Upscaler


def make(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, Image(np.full((3, 4, 3), 99, np.uint8)))


def pairs(jobs, root):
    return [(str(j.source.relative_to(root)), str(j.target.relative_to(root))) for j in jobs]


@pytest.fixture
def upscaler(make_network):
    return Upscaler(make_network(Architecture(8, (2,), scale=2)), device="cpu")


def test_one_file_to_a_file(tmp_path):
    make(tmp_path / "a.png")
    assert pairs(batch.plan([tmp_path / "a.png"], tmp_path / "b.jpg"), tmp_path) == [
        ("a.png", "b.jpg")
    ]


def test_one_file_to_a_folder(tmp_path):
    make(tmp_path / "a.png")
    assert pairs(batch.plan([tmp_path / "a.png"], tmp_path / "out"), tmp_path) == [
        ("a.png", "out/a.png")
    ]
    (tmp_path / "out.d").mkdir()
    assert pairs(batch.plan([tmp_path / "a.png"], tmp_path / "out.d"), tmp_path) == [
        ("a.png", "out.d/a.png")
    ]


def test_folders_keep_their_tree(tmp_path):
    make(tmp_path / "in/b.png", tmp_path / "in/sub/Ä ö.jpg", tmp_path / "in/sub/deep/c.TIF")
    (tmp_path / "in/notes.txt").write_text("no image")
    assert pairs(batch.plan([tmp_path / "in"], tmp_path / "out"), tmp_path) == [
        ("in/b.png", "out/b.png"),
        ("in/sub/deep/c.TIF", "out/sub/deep/c.TIF"),
        ("in/sub/Ä ö.jpg", "out/sub/Ä ö.jpg"),
    ]


def test_results_below_the_input_folder_are_not_inputs(tmp_path):
    make(tmp_path / "a.png", tmp_path / "out/a.png", tmp_path / "out/sub/b.png")
    assert pairs(batch.plan([tmp_path], tmp_path / "out"), tmp_path) == [("a.png", "out/a.png")]


def test_suffix_and_format(tmp_path):
    make(tmp_path / "in/a.png", tmp_path / "in/b.jpg")
    (tmp_path / "in/c.gif").write_bytes(b"GIF89a")
    jobs = batch.plan([tmp_path / "in"], tmp_path / "out", suffix="_x4", format="webp")
    assert [j.target.name for j in jobs] == ["a_x4.webp", "b_x4.webp", "c_x4.webp"]
    jobs = batch.plan([tmp_path / "in"], tmp_path / "out", suffix="_x4")
    assert [j.target.name for j in jobs] == ["a_x4.png", "b_x4.jpg", "c_x4.png"]


@pytest.mark.parametrize(
    ("inputs", "output", "options", "message"),
    [
        (["nothing.png"], "out", {}, "no such file or folder: .*nothing.png"),
        (["a.png", "nowhere"], "out", {}, "no such file or folder: .*nowhere"),
        (["empty"], "out", {}, "no images in .*empty or its subfolders"),
        (["a.png"], "a.png", {}, "is an input"),
        (["a.png"], ".", {}, "is an input of this command and is not replaced; .* a --suffix"),
        (["a.png"], "in/../a.png", {}, r"in/../a.png is an input of this command \(.*/a.png\)"),
        (["a.png"], "link.png", {}, "link.png is an input"),
        (["a.png"], "hard.png", {}, "hard.png is an input"),
        (["in"], "in", {}, "is an input"),
        (["in"], "linked", {}, "linked/a.(png|jpg) is an input"),
        (["a.png", "a_x4.png"], ".", {"suffix": "_x4", "overwrite": True}, "a_x4.png is an input"),
        (["in"], "in", {"format": "jpg"}, "is an input"),
        (["a.png", "in/a.png"], "out", {}, "would both be written to"),
        (["in", "in2"], "out", {}, "would both be written to .*out/a.png; upscale the folders"),
        (["a.png", "in"], "a.png", {}, "is a file; several images need an output folder"),
        (["a.png", "in"], "new.PNG", {}, "new.PNG would be a folder, because there are several"),
        (["in"], "new.jpg", {}, "new.jpg would be a folder"),
        (["a.png"], "b.xyz", {}, "known: png"),
        (["a.png"], "out", {"format": "xyz"}, "known: png"),
        (["in"], "out", {"format": ""}, "known: png"),
        (["a.png"], "b.jpg", {"format": "png"}, "--format png contradicts .*b.jpg"),
        (["a.png"], "b.png", {"suffix": "a/b"}, "--suffix 'a/b' cannot contain a path separator"),
        (["in"], "out", {"suffix": "\0"}, "cannot contain a path separator"),
    ],
)
def test_bad_plans(inputs, output, options, message, tmp_path):
    make(*(tmp_path / name for name in ("a.png", "a_x4.png", "in/a.png", "in/a.jpg", "in2/a.png")))
    (tmp_path / "empty").mkdir()
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "hard.png").hardlink_to(tmp_path / "a.png")
    (tmp_path / "linked").symlink_to("in")
    with pytest.raises(EspanError, match=message):
        batch.plan([tmp_path / i for i in inputs], tmp_path / output, **options)


def test_a_bad_file_does_not_stop_the_others(tmp_path, upscaler):
    make(tmp_path / "in/a.png", tmp_path / "in/c.png")
    (tmp_path / "in/b.png").write_text("no image")
    jobs = batch.plan([tmp_path / "in"], tmp_path / "out")
    outcomes = batch.run_all(jobs, upscaler, overwrite=False)
    assert [o.error is None for o in outcomes] == [True, False, True]
    assert "b.png" in (outcomes[1].error or "")
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == ["a.png", "c.png"]
    assert read_image(tmp_path / "out/a.png").pixels.shape == (6, 8, 3)


def test_existing_results_are_skipped(tmp_path, upscaler):
    make(tmp_path / "in/a.png", tmp_path / "out/a.png")
    before = (tmp_path / "out/a.png").read_bytes()
    jobs = batch.plan([tmp_path / "in"], tmp_path / "out")
    assert batch.run_all(jobs, upscaler, overwrite=False)[0].skipped
    assert (tmp_path / "out/a.png").read_bytes() == before
    assert not batch.run_all(jobs, upscaler, overwrite=True)[0].skipped
    assert (tmp_path / "out/a.png").read_bytes() != before


def test_alpha_into_jpeg_fails_before_upscaling(tmp_path, upscaler):
    write_image(tmp_path / "a.png", Image(np.zeros((3, 4, 4), np.uint8)))
    jobs = batch.plan([tmp_path / "a.png"], tmp_path / "a.jpg")
    assert "alpha" in (batch.run_all(jobs, upscaler, overwrite=False)[0].error or "")
    assert not (tmp_path / "a.jpg").exists()


def test_profile_depth_and_print_size_are_kept(tmp_path, upscaler):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = np.linspace(0, 65535, 3 * 20 * 20).astype(np.uint16).reshape(20, 20, 3)
    write_image(tmp_path / "a.png", Image(pixels, icc_profile=profile, dpi=(300, 300)))
    jobs = batch.plan([tmp_path / "a.png"], tmp_path / "b.png")
    assert batch.run_all(jobs, upscaler, overwrite=False)[0].error is None
    result = read_image(tmp_path / "b.png")
    assert result.pixels.dtype == np.uint16
    assert result.icc_profile == profile
    assert result.dpi == pytest.approx((600, 600), rel=1e-3)


def test_a_failed_write_is_reported_and_leaves_no_file(tmp_path, upscaler, monkeypatch):
    make(tmp_path / "in/a.png")
    jobs = batch.plan([tmp_path / "in"], tmp_path / "out")

    def full(self, data):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    outcome = batch.run_all(jobs, upscaler, overwrite=False)[0]
    assert "No space left on device" in (outcome.error or "")
    assert not list((tmp_path / "out").iterdir())


class Observed:
    """Replaces the upscaler, reading and writing, and records the order of events."""

    scale = 2

    def __init__(self, monkeypatch, network=lambda i: None, write=lambda i: None):
        self.network, self.write = network, write
        self.happened: list[str] = []
        self.changed = threading.Condition()
        monkeypatch.setattr(batch, "read_image", self.read_image)
        monkeypatch.setattr(batch, "write_image", self.write_image)
        self.calls = 0

    def record(self, what):
        with self.changed:
            self.happened.append(what)
            self.changed.notify_all()

    def wait_for(self, what):
        with self.changed:
            assert self.changed.wait_for(lambda: what in self.happened, 20), f"{what} never came"

    def read_image(self, path):
        self.record(f"read {path.stem}")
        return read_image(path)

    def __call__(self, pixels):
        i, self.calls = self.calls, self.calls + 1
        self.record(f"network {i}")
        self.network(i)
        return np.zeros((6, 8, 3), np.uint8)

    def write_image(self, path, image):
        self.record(f"write {path.stem}")
        self.write(int(path.stem))
        write_image(path, image)
        self.record(f"written {path.stem}")


def numbered(folder: Path, count: int) -> list[batch.Job]:
    make(*(folder / f"in/{i}.png" for i in range(count)))
    return batch.plan([folder / "in"], folder / "out")


def test_reading_and_writing_overlap_with_the_network(tmp_path, monkeypatch):
    """The network waits until the next image is read; a write, for the next image's network."""

    def network(i):
        if i < 3:
            observed.wait_for(f"read {i + 1}")
        if i > 0:
            observed.wait_for(f"write {i - 1}")
            assert f"written {i - 1}" not in observed.happened
        observed.record(f"through {i}")

    def write(i):
        if i < 3:
            observed.wait_for(f"through {i + 1}")

    observed = Observed(monkeypatch, network, write)
    reported: list[str] = []
    jobs = numbered(tmp_path, 4)
    outcomes = batch.run_all(
        jobs, observed, overwrite=False, done=lambda o: reported.append(o.job.source.stem)
    )
    assert [o.error for o in outcomes] == [None] * 4
    assert reported == ["0", "1", "2", "3"]


def test_at_most_one_image_is_read_ahead_and_one_written(tmp_path, monkeypatch):
    """An image is read only after the last but one is done, and only one is written at a time."""

    def network(i):
        if i < 4:
            observed.wait_for(f"read {i + 1}")
        time.sleep(0.05)  # time for events that should not happen
        observed.record(f"through {i}")

    observed = Observed(monkeypatch, network, lambda i: time.sleep(0.12))
    batch.run_all(numbered(tmp_path, 5), observed, overwrite=False)
    order = observed.happened.index
    for i in range(2, 5):
        assert order(f"through {i - 2}") < order(f"read {i}")
        assert order(f"written {i - 2}") < order(f"write {i - 1}")


def test_a_failed_write_does_not_stop_the_network(tmp_path, monkeypatch):
    def write(i):
        if i == 1:
            observed.wait_for("network 2")
            raise OSError(28, "No space left on device", "1.png")

    observed = Observed(monkeypatch, write=write)
    reported: list[str] = []
    jobs = numbered(tmp_path, 4)
    outcomes = batch.run_all(
        jobs, observed, overwrite=False, done=lambda o: reported.append(o.error or "")
    )
    assert reported == ["", "1.png: No space left on device", "", ""]
    assert [o.width for o in outcomes] == [8, 0, 8, 8]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.png", "2.png", "3.png"]


def test_an_interrupt_leaves_complete_results(tmp_path, monkeypatch):
    """After Ctrl-C while the second image is computed, the first, being written, is completed."""

    def network(i):
        if i == 1:
            observed.wait_for("write 0")
            observed.record("interrupted")
            raise KeyboardInterrupt

    observed = Observed(monkeypatch, network, lambda i: observed.wait_for("interrupted"))
    jobs = numbered(tmp_path, 4)
    with pytest.raises(KeyboardInterrupt):
        batch.run_all(jobs, observed, overwrite=False)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["0.png"]
    assert read_image(tmp_path / "out/0.png").pixels.shape == (6, 8, 3)
    outcomes = batch.run_all(jobs, Observed(monkeypatch), overwrite=False)
    assert [o.skipped for o in outcomes] == [True, False, False, False]


def test_warnings_are_assigned_to_their_image(tmp_path, monkeypatch):
    """Three threads may warn at once; warnings from elsewhere are not captured."""

    def network(i):
        warnings.warn(f"network of {i}", stacklevel=1)

    def write(i):
        if i < 2:
            observed.wait_for(f"network {i + 1}")
        warnings.warn(f"write of {i}", stacklevel=1)

    observed = Observed(monkeypatch, network, write)
    jobs = numbered(tmp_path, 3)
    with pytest.warns(UserWarning, match="elsewhere") as others:
        outcomes = batch.run_all(
            jobs, observed, overwrite=False, done=lambda o: warnings.warn("elsewhere", stacklevel=1)
        )
    assert [o.notes for o in outcomes] == [(f"network of {i}", f"write of {i}") for i in range(3)]
    assert {str(w.message) for w in others} == {"elsewhere"}


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (".", ["in/a.png", "in/out/b.png"]),  # F02: the output folder above the input
        ("elsewhere", ["in/a.png", "in/out/b.png"]),
        ("in/out", ["in/a.png"]),
        ("link", ["in/a.png"]),
    ],
)
def test_which_folders_are_searched(output, found, tmp_path):
    make(tmp_path / "in/a.png", tmp_path / "in/out/b.png")
    (tmp_path / "link").symlink_to("in/out")
    jobs = batch.plan([tmp_path / "in"], tmp_path / output, suffix="_big")
    assert [source for source, _ in pairs(jobs, tmp_path)] == found


@pytest.mark.parametrize(
    ("images", "options", "targets"),
    [
        ("a.png a.jpg b.jpg", {"format": "png"}, "a.png a_jpg.png b.png"),  # F11
        ("a.webp a.jpg", {"format": "png"}, "a_webp.png a_jpg.png"),
        ("a.png a.jpg", {"format": "PNG", "suffix": "_x4"}, "a_x4.png a_jpg_x4.png"),
        ("a.png a.jpg", {}, "a.png a.jpg"),
        ("a.png a.gif", {}, "a.png a_gif.png"),
        ("a.gif a.GIF", {}, "a_gif.png a_GIF.png"),
        ("d/a.jpg a.png d/a.tif", {"format": "png"}, "d/a_jpg.png a.png d/a_tif.png"),
        ("a.jpg a.png a_jpg.png", {"format": "png"}, "a_jpg.png a.png a_jpg_png.png"),
        ("A.jpg a.png", {"format": "png"}, "A.png a.png"),
    ],
)
def test_images_with_the_same_stem_get_distinct_names(images, options, targets, tmp_path):
    for name in images.split():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    jobs = batch.plan([tmp_path / "in"], tmp_path / "out", **options)
    expected = dict(zip(images.split(), targets.split(), strict=True))
    assert dict(pairs(jobs, tmp_path)) == {f"in/{k}": f"out/{v}" for k, v in expected.items()}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("format", [None, "png"])
def test_a_run_in_place_is_resumable(named, format, tmp_path, upscaler):
    """A second run does not take results as inputs, whichever of them exist."""
    make(*(tmp_path / f"{name}" for name in ("a.png", "a.jpg", "sub/b_x2.jpg", "c.png")))

    def run(**options):
        inputs = sorted(p for p in tmp_path.rglob("*.*")) if named else [tmp_path]
        jobs = batch.plan(inputs, tmp_path, suffix="_x2", format=format, **options)
        return jobs, batch.run_all(jobs, upscaler, overwrite=bool(options))

    first, outcomes = run()
    assert [o.error for o in outcomes] == [None] * 4
    second, outcomes = run()
    assert second == first
    assert all(o.skipped for o in outcomes)
    first[0].target.unlink()
    third, outcomes = run()
    assert third == first
    assert [o.skipped for o in outcomes] == [False, True, True, True]
    if not named:
        assert run(overwrite=True)[0] == first
        other = batch.plan([tmp_path], tmp_path, suffix="_x2", format="webp")
        assert [j.source for j in other] == [j.source for j in first]


def test_one_file_with_two_paths_is_one_job(tmp_path):
    make(tmp_path / "in/a.png")
    inputs = [tmp_path / "in/a.png", tmp_path / "in", tmp_path / "in/../in"]
    assert len(batch.plan(inputs, tmp_path / "out")) == 1


def test_unreadable_folders_are_failures(tmp_path, upscaler, monkeypatch):
    """The error is simulated, because root may read all folders."""
    make(tmp_path / "in/a.png", tmp_path / "in/locked/b.png")
    scandir = os.scandir
    locked: list[str] = []

    def refuse(path):
        if Path(path).name in locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for folder, sources in (("locked", ["in/a.png", "in/locked"]), ("in", ["in"])):
        locked.append(folder)
        jobs = batch.plan([tmp_path / "in"], tmp_path / "out")
        assert [source for source, _ in pairs(jobs, tmp_path)] == sources
        *rest, last = batch.run_all(jobs, upscaler, overwrite=True)
        assert all(o.error is None for o in rest)
        assert "Permission denied; not searched" in last.error


def test_a_name_that_is_too_long_is_a_failure(tmp_path, upscaler):
    make(tmp_path / "in" / f"{'k' * 250}.png", tmp_path / "in/z.png")
    jobs = batch.plan([tmp_path / "in"], tmp_path / "out", suffix="_x4big")
    long, other = batch.run_all(jobs, upscaler, overwrite=False)
    assert "File name too long" in long.error
    assert other.error is None
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["z_x4big.png"]


def test_an_unreadable_input_is_a_failure(tmp_path, upscaler, monkeypatch):
    make(tmp_path / "locked/a.png", tmp_path / "b.png")
    inputs = [tmp_path / "locked/a.png", tmp_path / "b.png", tmp_path / f"{'k' * 300}.png"]
    stat = os.stat

    def refuse(path, *arguments, **options):
        if isinstance(path, str | Path) and Path(path).parent.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refuse)
    jobs = batch.plan(inputs, tmp_path / "out")
    locked, good, long = batch.run_all(jobs, upscaler, overwrite=False)
    assert "a.png: no permission to read this file" in locked.error
    assert good.error is None
    # The name of the input or, if another thread has created the output folder, of its result.
    assert "File name too long" in long.error


@pytest.mark.parametrize("refused", ["exists", "mkdir"])
def test_an_unusable_output_folder_is_a_failure(refused, tmp_path, upscaler, monkeypatch):
    make(tmp_path / "in/a/1.png", tmp_path / "in/b/2.png")
    jobs = batch.plan([tmp_path / "in"], tmp_path / "out")
    original = getattr(Path, refused)

    def refuse(self, *arguments, **options):
        if self.is_relative_to(tmp_path / "out/a"):
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, refused, refuse)
    bad, good = batch.run_all(jobs, upscaler, overwrite=False)
    assert "out/a" in bad.error
    assert bad.error.endswith("Permission denied")
    assert good.error is None


@pytest.mark.parametrize(
    ("error", "fails"),
    [
        (MemoryError(), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), False),
        (RuntimeError("a defect"), True),
    ],
)
def test_running_out_of_memory_is_a_failure(error, fails, tmp_path, monkeypatch):
    def network(i):
        if i == 0:
            raise error

    observed = Observed(monkeypatch, network)
    jobs = numbered(tmp_path, 3)
    if fails:
        with pytest.raises(RuntimeError, match="a defect"):
            batch.run_all(jobs, observed, overwrite=False)
        return
    first, *others = batch.run_all(jobs, observed, overwrite=False)
    assert first.error == f"{jobs[0].source}: not enough memory; try a smaller --tile"
    assert [o.error for o in others] == [None, None]


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_names_of_one_file_are_a_failure(overwrite, tmp_path, upscaler):
    """Like "A.png" and "a.png" on a case-insensitive file system."""
    make(tmp_path / "A.png", tmp_path / "a.png", tmp_path / "b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "also").symlink_to("out")
    jobs = [
        batch.Job(tmp_path / "A.png", tmp_path / "out/a.png"),
        batch.Job(tmp_path / "b.png", tmp_path / "out/b.png"),
        batch.Job(tmp_path / "a.png", tmp_path / "also/a.png"),
    ]
    first, _, last = batch.run_all(jobs, upscaler, overwrite=overwrite)
    assert first.error is None
    assert "is already the result of another image" in last.error


def test_results_of_other_processes_are_kept(tmp_path, monkeypatch):
    jobs = numbered(tmp_path, 1)
    observed = Observed(monkeypatch, network=lambda i: make(jobs[0].target))
    [outcome] = batch.run_all(jobs, observed, overwrite=False)
    assert outcome.skipped
    assert outcome.error is None
    assert read_image(jobs[0].target).pixels.shape == (3, 4, 3)


def test_results_of_other_processes_are_not_computed_again(tmp_path, monkeypatch):
    jobs = numbered(tmp_path, 2)
    computed = []

    def network(i):
        computed.append(i)
        make(jobs[1].target)

    outcomes = batch.run_all(jobs, Observed(monkeypatch, network=network), overwrite=False)
    assert [o.skipped for o in outcomes] == [False, True]
    assert computed == [0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_during_the_network(number, tmp_path):
    """The op for a large image takes seconds, in which Python does not react to signals."""
    make(tmp_path / "a.png")
    code = (
        "import sys, time, espan.upscaling\n"
        "from espan.cli import main\n"
        "def slow(self, image):\n"
        "    print('started', flush=True)\n"
        "    time.sleep(60)\n"
        "espan.upscaling.Upscaler.__call__ = slow\n"
        "sys.argv = ['espan', 'upscale', 'a.png', '-o', 'b.png', '--device', 'cpu']\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(espan.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "espan: interrupted" in errors
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png"]


def test_opaque_alpha_does_not_prevent_jpeg(tmp_path, upscaler):
    pixels = np.full((4, 5, 4), 255, np.uint8)
    write_image(tmp_path / "a.png", Image(pixels))
    pixels[0, 0, 3] = 254
    write_image(tmp_path / "b.png", Image(pixels))
    jobs = [batch.Job(tmp_path / f"{n}.png", tmp_path / f"{n}.jpg") for n in "ab"]
    opaque, transparent = batch.run_all(jobs, upscaler, overwrite=False)
    assert opaque.error is None
    assert "JPEG has no alpha channel" in transparent.error


def test_processes_share_the_work(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert batch.share_of_process() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        assert batch.share_of_process() == (rank, 3)


@pytest.mark.parametrize(
    ("rank", "world"),
    [("7", "4"), ("4", "4"), ("-1", "4"), ("0", "0"), ("0", ""), ("", ""), ("x", "4"), ("²", "4")],
)
def test_inconsistent_ranks(rank, world, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(EspanError, match=f"RANK={rank} and WORLD_SIZE={world} are inconsistent"):
        batch.share_of_process()


@pytest.mark.parametrize("value", ["4", "", "x"])
@pytest.mark.parametrize(("name", "other"), [("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")])
def test_a_single_variable_does_not_share_the_work(name, other, value, monkeypatch):
    monkeypatch.setenv(name, value)
    monkeypatch.delenv(other, raising=False)
    with pytest.warns(UserWarning, match=f"{name} is set without {other}"):
        assert batch.share_of_process() == (0, 1)
