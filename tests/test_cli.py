"""The command line."""

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer

from espan import checkpoints
from espan.cli import main, options
from espan.cli.commands import app
from espan.cli.options import parse_dtype
from espan.errors import EspanError
from espan.fused import default_device
from espan.imaging import Image, imresize, read_image, write_image
from espan.models import ESPAN, SPAN, Architecture
from espan.upscaling import Upscaler
from espan_kernels import _library
from tests.test_checkpoints import official


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command in this process and return its output.  Its status must be `status`."""

    def run(*arguments, status=0):
        monkeypatch.setattr(sys, "argv", ["espan", *map(str, arguments)])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main sets it
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert (ended.value.code or 0) == status, (out, err)
        return SimpleNamespace(stdout=out, stderr=err)

    return run


def test_in_a_separate_process(tmp_path):
    """The installed command prints no traceback, returns a status and leaves no other files."""

    def espan(*arguments):
        command = [sys.executable, "-c", "from espan.cli import main; main()", *arguments]
        environment = {**os.environ, "ESPAN_CPU": "portable"}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    write_image(tmp_path / "a.png", Image(np.full((2, 3, 3), 9, np.uint8)))
    good = espan("upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"))
    assert (good.returncode, good.stderr) == (0, "")
    assert read_image(tmp_path / "b.png").pixels.shape == (8, 12, 3)
    bad = espan("upscale", str(tmp_path / "nothing.png"), "-o", str(tmp_path / "c.png"))
    assert bad.returncode == 1
    assert bad.stderr.startswith("espan: error: no such file or folder")
    assert "Traceback" not in bad.stderr


def test_what_fails_before_the_commands_are_imported():
    """A wrong environment variable, and Ctrl-C."""
    code = "from espan.cli import main; main()"
    environment = {**os.environ, "ESPAN_CPU": "wrong"}
    command = [sys.executable, "-c", code, "info"]
    wrong = subprocess.run(command, capture_output=True, text=True, env=environment)
    message = (
        "espan: error: the environment variable ESPAN_CPU: there is no CPU path 'wrong'; choose"
    )
    if _library.compiled is not None:
        assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1), wrong.stderr
        assert wrong.stderr.startswith(message)
    code = f"""
import importlib.abc, signal, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
{code}
"""
    interrupted = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (interrupted.returncode, interrupted.stderr) == (130, "espan: interrupted\n")


def test_ctrl_c(run, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("espan.cli.info._network", interrupt)
    assert run("info", "espan_x4", status=130).stderr == "espan: interrupted\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two images, a text file with the name of an image, and small weights."""
    path = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    for name in ("a.png", "sub/b.jpg"):
        (path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(path / "in" / name, Image(rng.integers(0, 256, (9, 8, 3), np.uint8)))
    (path / "bad.png").write_text("no image")
    return path


def test_upscale_a_photograph(run, folder, tmp_path):
    result = run("upscale", folder / "in/a.png", "-o", tmp_path / "out.png")
    assert read_image(tmp_path / "out.png").pixels.shape == (36, 32, 3)
    assert f"{tmp_path / 'out.png'}  32x36" in result.stdout
    assert result.stderr == ""  # no progress bar without a terminal


def test_upscale_again_skips(run, folder, tmp_path):
    run("upscale", folder / "in", "-o", tmp_path / "out")
    assert (tmp_path / "out/sub/b.jpg").exists()
    result = run("upscale", folder / "in", "-o", tmp_path / "out")
    assert "0 upscaled" in result.stdout
    assert "2 exist already" in result.stdout


def test_upscale_continues_after_a_bad_file(run, folder, tmp_path):
    inputs = (folder / "bad.png", folder / "in/a.png")
    result = run("upscale", *inputs, "-o", tmp_path / "out", "--json", status=1)
    report = json.loads(result.stdout)
    assert [i["status"] for i in report["images"]] == ["failed", "upscaled"]
    assert "bad.png" in report["images"][0]["error"]
    assert "bad.png" in result.stderr
    assert report["scale"] == 4
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.png"]


def test_upscale_reports_unreadable_files_as_failures(run, folder, tmp_path, monkeypatch):
    """A folder for the results need only be writable."""
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    (tmp_path / "out").mkdir()
    assert "1 upscaled" in run("upscale", folder / "in/a.png", "-o", tmp_path / "out").stdout


def test_processes_share_an_upscale_command(run, folder, tmp_path, monkeypatch):
    command = ("upscale", folder / "in", "-o", tmp_path / "out")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert f", share {int(rank) + 1} of 2" in run(*command).stdout
        assert sum(p.is_file() for p in (tmp_path / "out").rglob("*")) == int(rank) + 1

    assert json.loads(run(*command, "--json").stdout)["share"] == [2, 2]
    monkeypatch.setenv("RANK", "2")
    assert "RANK=2 and WORLD_SIZE=2 are inconsistent" in run(*command, status=1).stderr
    monkeypatch.delenv("RANK")
    result = run(*command)
    assert "espan: note: WORLD_SIZE is set without RANK" in result.stderr
    assert "2 exist already" in result.stdout
    assert "share" not in result.stdout
    assert "share" not in json.loads(run(*command, "--json").stdout)


def test_each_process_uses_its_own_gpu(monkeypatch):
    """Under torchrun, by default and with --device cuda; an explicit number is kept."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for rank, device in (("3", "cuda:3"), ("5", "cuda:1"), ("0", "cuda:0")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert str(options.parse_device("cuda")) == str(default_device()) == device
        assert options.parse_device("cuda:2") == "cuda:2"
        assert options.parse_device("cpu") == "cpu"
        assert options.parse_device(None) is None
    for rank in ("", "x", "-1", "²"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(EspanError, match=f"LOCAL_RANK={rank} is not a number"):
            options.parse_device("cuda")
    with pytest.raises(EspanError, match="cuda:9, but there are 4 GPUs"):
        Upscaler(device="cuda:9")


@pytest.mark.parametrize("command", ["upscale", "evaluate"])
def test_commands_use_the_gpu_of_the_process(command, run, folder, tmp_path, monkeypatch):
    def stop(*_, device, **__):
        raise EspanError(f"the device is {device}")

    module = importlib.import_module(f"espan.cli.{command}")
    monkeypatch.setattr(module, "Upscaler", stop)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    inputs = {"upscale": (folder / "in", "-o", tmp_path), "evaluate": ("--hr", folder / "in")}
    ended = run(command, *inputs[command], "--device", "cuda", status=1)
    assert "the device is cuda:3" in ended.stderr


def test_upscale_lists_failures_by_their_files(run, folder, tmp_path, monkeypatch):
    """Including failures whose error names the output, and folders that cannot be read."""
    (tmp_path / "in/locked").mkdir(parents=True)
    for name in ("good.png", f"{'k' * 250}.png", "locked/x.png", "._good.png"):
        (tmp_path / "in" / name).write_bytes((folder / "in/a.png").read_bytes())
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    result = run("upscale", tmp_path / "in", "-o", tmp_path / "out", "--suffix", "_x4big", status=1)
    assert f"{'k' * 250}.png: " in result.stderr
    assert "locked: Permission denied; not searched" in result.stderr
    assert "2 failed:" in result.stderr
    assert result.stdout.startswith(f"{tmp_path / 'out/good_x4big.png'}  32x36")


def test_upscale_into_the_folder_above(run, folder, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes((folder / "in/a.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    run("upscale", "photos", "-o", ".", "--suffix", "_x4")
    assert read_image(tmp_path / "a_x4.png").pixels.shape == (36, 32, 3)


def test_names_that_are_not_utf_8(folder, tmp_path):
    """They are printed with escapes, because a terminal with a UTF-8 locale accepts only UTF-8."""
    raw = os.fsencode(tmp_path / "raw") + b"/x_\xe9.png"
    (tmp_path / "raw").mkdir()
    with open(raw, "wb") as file:
        file.write((folder / "in/a.png").read_bytes())
    with open(os.fsencode(tmp_path / "raw") + b"/bad_\xe9.png", "wb") as file:
        file.write(b"no image")

    def espan(*arguments):
        return subprocess.run(
            [sys.executable, "-c", "from espan.cli import main; main()", *arguments],
            capture_output=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        )

    result = espan("upscale", tmp_path / "raw", "-o", tmp_path / "out", "--json")
    assert result.returncode == 1
    bad, good = json.loads(result.stdout)["images"]
    assert (bad["status"], good["status"]) == ("failed", "upscaled")
    assert os.fsencode(good["input"]) == raw
    assert os.path.exists(good["output"])
    assert "bad_\\udce9.png" in result.stderr
    assert "Traceback" not in result.stderr
    result = espan("upscale", raw, "-o", tmp_path / "again")
    assert (result.returncode, result.stderr) == (0, "")
    assert "x_\\udce9.png  32x36" in result.stdout


@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "{in}/w.safetensors", "{out}.safetensors", "--overwrite"],
        ["prepare", "{in}", "-o", "{out}.png", "--overwrite", "--smallest", "1"],
        ["upscale", "{in}/w.png", "-o", "{out}.png", "--overwrite"],
        ["upscale", "{in}", "-o", "{out}", "--overwrite"],
    ],
)
def test_no_command_replaces_its_input(run, arguments, link, folder, tmp_path):
    """Neither by its path, another spelling of it, nor a link to it."""
    source, out = tmp_path / "in", tmp_path / "in"
    source.mkdir()
    shutil.copy(folder / "in/a.png", source / "w.png")
    shutil.copy(checkpoints.bundled()["espan_x4"], source / "w.safetensors")
    before = {path: path.read_bytes() for path in source.iterdir()}
    if link is not None:
        out = tmp_path / "out"
        out.mkdir()
        for path in before:
            getattr(out / path.name, link)(path)
    target = out if "{out}" in arguments else out / ".." / out.name / "w"
    filled = [a.format(**{"in": source, "out": target}) for a in arguments]
    assert "is an input of this command" in run(*filled, status=1).stderr
    assert {path: path.read_bytes() for path in source.iterdir()} == before
    assert len(list(tmp_path.rglob("*"))) == (3 if link is None else 6)


def test_weights_are_inputs_too(run, folder, tmp_path):
    bundled, weights = checkpoints.bundled()["espan_x4"], tmp_path / "a.png"
    shutil.copy(bundled, weights)
    for command in (
        ["convert", "espan_x4", bundled],
        ["upscale", folder / "in/a.png", "-o", tmp_path, "--weights", weights],
        ["evaluate", "--hr", folder / "in", "--save", tmp_path, "--weights", weights],
    ):
        result = run(*command, "--overwrite", status=1)
        assert "is an input of this command" in result.stderr
    assert weights.read_bytes() == bundled.read_bytes()


@pytest.mark.parametrize(
    ("weights", "scale", "photo", "name"),
    [
        (None, None, False, checkpoints.DEFAULT),
        (None, 4, False, "espan_x4"),
        (None, 2, False, "espan_x2"),
        (None, None, True, "espan_x4_photo"),
        (None, 2, True, "espan_x2_photo"),
        ("mine.pth", None, False, "mine.pth"),
    ],
)
def test_the_scale_and_photo_choose_bundled_weights(weights, scale, photo, name):
    assert options.chosen_weights(weights, scale, photo) == name


def test_weights_that_are_not_bundled(run, folder, tmp_path):
    upscale = ["upscale", folder / "in/a.png", "-o", tmp_path / "b.png"]
    result = run(*upscale, "--scale", 5, status=1)
    assert "no bundled weights espan_x5; there are espan_x2, " in result.stderr
    result = run(*upscale, "--weights", "mine.pth", "--photo", status=1)
    assert "--scale and --photo choose bundled weights" in result.stderr


def test_upscale_by_scale(run, folder, tmp_path):
    run("upscale", folder / "in/a.png", "-o", tmp_path / "b.png", "--scale", 3)
    small, large = (read_image(p).pixels.shape for p in (folder / "in/a.png", tmp_path / "b.png"))
    assert large == (3 * small[0], 3 * small[1], small[2])


def test_upscale_reports_an_implausible_output(run, folder, tmp_path, make_network):
    network = make_network(Architecture(8, (2,), scale=2))
    network.tail.upsample.bias.fill_(9)
    checkpoints.save(network, tmp_path / "w.safetensors", record={})
    result = run(
        "upscale", folder / "in/a.png", "-o", tmp_path / "o.png", "--weights",
        tmp_path / "w.safetensors", "--tile", "4", "--suffix", "_big",
    )  # fmt: skip
    assert "left the plausible range" in result.stderr
    assert (tmp_path / "o_big.png").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["upscale", "{in}/a.png"], 2, "--output"),
        (["upscale", "{in}/missing.png", "-o", "{out}"], 1, "no such file or folder"),
        (["upscale", "{in}/a.png", "-o", "{out}/a.png", "--weights", "nope"], 1, "bundled weights"),
        (["upscale", "{in}/a.png", "-o", "{out}/a.png", "--dtype", "fp8"], 1, "choose auto"),
        (["upscale", "{in}/a.png", "-o", "{out}/a.png", "--backend", "gpu"], 1, "'gpu'"),
        (["upscale", "{in}/a.png", "-o", "{out}/a.png", "--device", "gpu"], 1, "unknown device"),
        (["upscale", "{in}/a.png", "-o", "{out}/a.png", "--tile", "-3"], 1, "number of LR pixels"),
        (["upscale", "{in}/a.png", "-o", "{out}/a.png", "--tile", "²"], 1, "number of LR pixels"),
        (["upscale", "{in}/a.png", "-o", "{out}/a.png", "--tile", "1.5"], 1, "number of LR pixels"),
        (["upscale", "{in}/a.png", "-o", "{out}/a.png", "--format", "doc"], 1, "known: png"),
        (["upscale", "{in}/a.png", "-o", "{out}/a.png", "--suffix", "a/b"], 1, "a path separator"),
        *(
            (["upscale", "{in}/a.png", "-o", "{out}/a.png", "--device", device], 1, message)
            for device, message in (
                ("mps", "device 'mps' is not supported"),
                ("meta", "device 'meta' is not supported"),
                ("xpu:1", "device 'xpu:1' is not supported"),
                ("cuda:-1", "unknown device 'cuda:-1'"),
                ("", "unknown device ''"),
            )
        ),
        (["upscale", "{in}/a.png", "-o", "{out}/a.png", "--no-such"], 2, "No such option"),
        (["evaluate", "--hr", "{out}/nowhere"], 1, "is not a folder"),
        (["evaluate", "--hr", "{in}", "--lr", "{in}/sub"], 1, "a.png has none"),
        (["convert", "nope.pth", "{out}/w.safetensors"], 1, "neither a file"),
        (["convert", "espan_x4", "{out}/w.pth"], 1, "must end in .safetensors"),
        (["convert", "espan_x4", "{out}/w.safetensors", "--normalization", "1,2"], 1, "four numb"),
        (["convert", "espan_x4", "{out}/w.safetensors", "--normalization", "nan,0,0,1"], 1, "four"),
        (["convert", "espan_x4", "{out}/w.safetensors", "--normalization", "0,0,0,0"], 1, "four"),
        (["info", "c32"], 1, "unknown architecture"),
        (["info", "espan", "--size", "9"], 1, "HEIGHTxWIDTH"),
        (["info", "espan", "--size", "²x9"], 1, "HEIGHTxWIDTH"),
        (["info", "espan", "--size", "0x9"], 1, "HEIGHTxWIDTH"),
        (["prepare", "{in}"], 1, "--output, the pack to write, is missing"),
        (["prepare", "{in}", "-o", "{out}/no/p"], 1, "does not exist"),
        (["prepare", "{in}", "-o", "{out}/p"], 1, "both sides need 64 (--smallest)"),
        (["prepare", "{out}", "-o", "{out}/p"], 1, "no images"),
        (["prepare", "{in}/a.png", "-o", "{out}/p"], 1, "a.png is not a folder"),
        (["prepare", "--check", "{in}/a.png"], 1, "is not a pack"),
        (
            ["prepare", "--check", "{in}", "-o", "{out}/p"],
            1,
            "--output cannot be combined with --check",
        ),
        (
            ["prepare", "--check", "{in}", "--smallest", "9", "--overwrite"],
            1,
            "--smallest, --overwrite cannot be combined with --check",
        ),
        (["prepare", "{in}", "-o", "{out}/p", "--smallest", "0"], 2, "--smallest"),
        (["upscale", "-", "-o", "{out}/a.png"], 1, "standard input and output are not supported"),
        (["upscale", "{in}", "-o", "-"], 1, "standard input and output are not supported"),
        (["info", "{in}/no.pth"], 1, "no.pth is neither a file nor the name of bundled weights"),
        (["info", "{in}"], 1, "is a folder"),
        (["info", "nope"], 1, "or a weight file, or bundled weights: espan_x2"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_bad_input(run, arguments, status, message, folder, tmp_path):
    filled = [a.format(**{"in": folder / "in", "out": tmp_path}) for a in arguments]
    result = run(*filled, status=status)
    assert message in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())


def test_evaluate(run, folder, tmp_path):
    rng = np.random.default_rng(0)
    for name, size in (("x.png", (61, 75, 3)), ("gray.png", (64, 64, 1))):
        (tmp_path / "hr").mkdir(exist_ok=True)
        coarse = rng.integers(0, 256, (size[0] // 4 + 1, size[1] // 4 + 1, size[2]), np.uint8)
        hr = imresize(coarse, 4)[: size[0], : size[1]]
        write_image(tmp_path / "hr" / name, Image(np.ascontiguousarray(hr)))
    command = ("evaluate", "--hr", tmp_path / "hr", "--save", tmp_path / "sr")
    report = json.loads(run(*command, "--json").stdout)
    assert [i["name"] for i in report["images"]] == ["gray", "x"]
    assert report["psnr"] == pytest.approx(np.mean([i["psnr"] for i in report["images"]]))
    assert report["ssim"] == pytest.approx(np.mean([i["ssim"] for i in report["images"]]))
    assert report["failed"] == []
    assert report["lr"] == "imresize"
    assert (report["weights"], report["scale"], report["border"]) == ("espan_x4", 4, 4)
    assert f"{report['psnr']:.3f}" in run(*command, "--overwrite").stdout
    luma = json.loads(run(*command, "--overwrite", "--json", "--y").stdout)
    assert (report["compared"], luma["compared"]) == ("RGB", "luma")
    assert luma["psnr"] > report["psnr"] + 0.1
    assert "PSNR of the luma [dB]" in run(*command, "--overwrite", "--y").stdout
    assert read_image(tmp_path / "sr/x.png").pixels.shape == (60, 72, 3)


def test_evaluate_takes_lr_images(run, folder, tmp_path):
    """LR files give the same scores as LR made from HR; LR of another size is rejected."""
    coarse = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    for sub in ("hr", "lr"):
        (tmp_path / sub).mkdir()
    hr = imresize(coarse, 4)
    write_image(tmp_path / "hr/x.png", Image(hr))
    write_image(tmp_path / "lr/x.bmp", Image(imresize(hr, 1 / 4)))
    reports = []
    for more in ([], ["--lr", tmp_path / "lr"]):
        report = run("evaluate", "--hr", tmp_path / "hr", "--json", *more)
        reports.append(json.loads(report.stdout))
    assert [report.pop("lr") for report in reports] == ["imresize", "given"]
    assert reports[0] == reports[1]
    write_image(tmp_path / "lr/x.bmp", Image(coarse[1:]))
    result = run("evaluate", "--hr", tmp_path / "hr", "--lr", tmp_path / "lr", status=1)
    assert "20x19; for x.png at x4 20x20 is expected" in result.stderr


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("damaged", "{hr}/m.png"),
        ("missing", "{hr}/m.png"),
        ("alpha", "{hr}/m.png has an alpha channel; RGB or gray is expected"),
        ("16 bits", "{hr}/m.png has 16 bits per channel"),
        ("small", "{hr}/m.png: "),
        ("tiny", "{hr}/m.png: an image of 2x2 has fewer than 4 pixels on a side"),
        ("LR damaged", "{lr}/m.png"),
        ("LR size", "{lr}/m.png is 9x8; for m.png at x4 8x8 is expected"),
        ("not written", "{sr}/m.png"),
        ("memory", "{hr}/m.png: not enough memory"),
    ],
)
@pytest.mark.parametrize("all_fail", [False, True])
def test_evaluate_keeps_the_other_scores(run, wrong, message, all_fail, tmp_path, monkeypatch):
    """The failed image is listed by name and has no result; the status is 1."""
    folders = {name: tmp_path / name for name in ("hr", "lr", "sr")}
    hr, lr, sr = folders.values()
    hr.mkdir()
    lr.mkdir()
    for name in ("m",) if all_fail else ("a", "m", "z"):
        side = {"small": 8, "tiny": 2}.get(wrong, 32) if name == "m" else 32
        write_image(hr / f"{name}.png", Image(np.full((side, side, 3), 90, np.uint8)))
        small = max(1, side // 4)
        write_image(lr / f"{name}.png", Image(np.full((small, small, 3), 90, np.uint8)))
    for folder in (hr, lr):
        if wrong == f"{'LR ' * (folder == lr)}damaged":
            (folder / "m.png").write_bytes(b"no image")
    if wrong == "missing":
        (hr / "m.png").unlink()
        (hr / "m.png").symlink_to("nowhere")
    elif wrong in ("alpha", "16 bits"):
        dtype = np.uint8 if wrong == "alpha" else np.uint16
        write_image(hr / "m.png", Image(np.full((32, 32, 4 if wrong == "alpha" else 3), 9, dtype)))
    elif wrong == "LR size":
        write_image(lr / "m.png", Image(np.full((8, 9, 3), 90, np.uint8)))
    elif wrong == "not written":
        (sr / "m.png").mkdir(parents=True)
    elif wrong == "memory":

        def read(path):
            if path == hr / "m.png":
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return Image(np.full((32 if path.parent == hr else 8,) * 2 + (3,), 90, np.uint8))

        monkeypatch.setattr("espan.evaluation.evaluate.read_image", read)
    command = ("evaluate", "--hr", hr, "--lr", lr, "--save", sr)
    message = message.format(**folders)
    out = run(*command, "--json", status=1)
    report = json.loads(out.stdout, parse_constant=pytest.fail)
    assert [image["name"] for image in report["images"]] == ([] if all_fail else ["a", "z"])
    assert [failure["name"] for failure in report["failed"]] == ["m"]
    assert message in report["failed"][0]["error"]
    assert f"espan: failed: {report['failed'][0]['error']}\n" == out.stderr
    assert sorted(p.name for p in sr.iterdir() if p.is_file()) == (
        [] if all_fail else ["a.png", "z.png"]
    )
    out = run(*command, "--overwrite", status=1)
    assert message in out.stderr
    if all_fail:
        assert (report["psnr"], out.stdout) == (None, "")
    else:
        assert report["psnr"] == pytest.approx(np.mean([i["psnr"] for i in report["images"]]))
        assert "PSNR [dB]" in out.stdout
        assert "mean of 2 of 3" in out.stdout


def test_evaluate_reports_defects_of_espan(tmp_path, monkeypatch):
    """A defect is not reported as a failed image."""
    write_image(tmp_path / "a.png", Image(np.full((32, 32, 3), 90, np.uint8)))

    def broken(*arguments, **options):
        raise RuntimeError("a defect")

    monkeypatch.setattr("espan.evaluation.evaluate.psnr", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        app(["evaluate", "--hr", str(tmp_path)], standalone_mode=False)


def test_infinite_psnr_is_null_in_json(run, tmp_path, monkeypatch):
    for name in "ab":
        write_image(tmp_path / f"{name}.png", Image(np.full((32, 32, 3), 90, np.uint8)))
    scores = iter([math.inf, 30.0])
    monkeypatch.setattr("espan.evaluation.evaluate.psnr", lambda *_, **__: next(scores))
    text = run("evaluate", "--hr", tmp_path, "--json").stdout
    report = json.loads(text, parse_constant=pytest.fail)
    assert [image["psnr"] for image in report["images"]] == [None, 30.0]
    assert report["psnr"] is None


@pytest.mark.parametrize(
    ("weights", "dataset", "psnr"),
    [
        ("espan_x4_official", "Set5", 30.042),
        ("espan_x4_official", "Set14", 26.698),
        ("span_c28_x4_official", "Set5", 29.848),
        ("span_c28_x4_official", "Set14", 26.592),
    ],
)
def test_published_psnr(run, weights, dataset, psnr, testdata):
    sets = testdata / "testsets" / dataset
    out = run(
        "evaluate", "--hr", sets / "HR", "--lr", sets / "LRx4", "--weights",
        testdata / "weights" / f"{weights}.pth", "--json",
    )  # fmt: skip
    assert json.loads(out.stdout)["psnr"] == pytest.approx(psnr, abs=0.003)


def test_info_on_an_architecture_name(run):
    report = json.loads(run("info", "espan", "--json").stdout)
    assert report["parameters"] == 192_272
    assert report["receptive_radius"] == 23
    assert "12.56" in run("info", "espan").stdout


def test_names_are_not_markup(run, tmp_path):
    hr = tmp_path / "hr"
    hr.mkdir()
    write_image(hr / "a[bold]x.png", Image(np.zeros((64, 64, 3), np.uint8)))
    assert "a[bold]x" in run("evaluate", "--hr", hr, "--device", "cpu").stdout
    name = tmp_path / "[red]a.safetensors"
    shutil.copy(checkpoints.bundled()["espan_x4"], name)
    assert "[red]a" in run("info", name).stdout.replace("\n", "")


def test_info_on_bundled_weights(run):
    report = json.loads(run("info", "espan_x4", "--json").stdout)
    assert Architecture.from_dict(report["architecture"]) == ESPAN
    assert report["record"]["steps"] == 19_000
    shown = run("info", "espan_x4").stdout
    assert "record: held_out" in shown
    assert "budgie_casa-mila.jpg, budgie_kitten-on-lawn.jpg" in shown
    assert '"name": "1 L1"' in shown
    assert "None" not in shown


def test_convert(run, testdata, tmp_path):
    official = testdata / "weights" / "span_c28_x4_official.pth"
    target = tmp_path / "span.safetensors"
    run("convert", official, target)
    assert checkpoints.load(target).architecture == SPAN
    assert "exists" in run("convert", official, target, status=1).stderr
    run("convert", official, target, "--overwrite", "--normalization", "0.5,0.5,0.5,1")
    norm = checkpoints.load(target).architecture.normalization
    assert norm is not None
    assert (norm.mean, norm.img_range) == ((0.5, 0.5, 0.5), 1.0)


def test_info_and_convert_show_the_source_of_the_weights(run, tmp_path, make_network):
    critic = {"conv_1.weight": torch.zeros(3)}  # no network of the family: ignored
    state = official(make_network(ESPAN.replace(channels=4)), espan_layout=True)
    torch.save({"critic": critic, "model": state, "model_ema": state}, tmp_path / "w.pth")
    taken = "model_ema (not model)"
    shown = " ".join(run("info", tmp_path / "w.pth").stdout.split())
    assert f"record: taken from │ {taken}" in shown
    run("convert", tmp_path / "w.pth", tmp_path / "w.safetensors")
    record = {"converted from": "w.pth", "taken from": taken}
    assert checkpoints.load(tmp_path / "w.safetensors").record == record


def test_prepare(run, folder, tmp_path):
    pack = tmp_path / "p"
    command = ("prepare", folder / "in", folder, "-o", pack, "--smallest", "8")
    result = run(*command)
    assert f"{pack}  2 images, 0.00 GB, 1 files skipped" in result.stdout
    assert f"skipped: {folder / 'bad.png'}: begins with" in result.stderr
    assert "exists; --overwrite replaces it" in run(*command, status=1).stderr
    run(*command, "--overwrite")
    assert run("prepare", "--check", pack).stdout == f"{pack} is intact\n"
    data = bytearray(pack.read_bytes())
    data[64] ^= 1
    pack.write_bytes(data)
    result = run("prepare", "--check", pack, pack, status=1)
    assert result.stderr.count(f"damaged: {pack}: a.png\n") == 2


def test_doctor(run):
    report = json.loads(run("doctor", "--json").stdout)
    names = {b["name"]: b for b in report["backends"]}
    assert set(names) == {"cuda", "triton", "cpu", "reference"}
    assert names["reference"]["available"]
    for backend in names.values():
        assert backend["available"] or backend["reason"]
    for name in names:
        assert name in run("doctor").stdout
    assert report["folder"] == str(Path(checkpoints.__file__).parent)


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("prepare", "espan prepare --check photos.pack"),
        ("train", "espan train --resume run                       # after an interruption"),
    ],
)
def test_help(run, command, line):
    """Examples keep their lines, and brackets are not taken for markup."""
    shown = run(command, "--help").stdout
    assert line in [text.strip() for text in shown.splitlines()]
    assert "\\b" not in shown
    assert ("[degrade] table" in shown) == (command == "prepare")


def test_version(run):
    assert run("--version").stdout.startswith("espan ")


def test_train_lists_its_experiments(run) -> None:
    listed = run("train", "--list")
    for name in ("espan_ntire2025", "smoke", "tab7:repvgg", "finetune"):
        assert name in listed.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected: espan train EXPERIMENT DATA... -o RUN"),
        (["smoke", "photos"], "expected: espan train EXPERIMENT DATA... -o RUN"),
        (["smok", "photos", "-o", "run"], "the experiments that come with espan are"),
        (["tab7", "photos", "-o", "run"], "choose one: tab7:VARIANT"),
        (["smoke", "no", "-o", "run"], "no does not exist"),
        (["smoke", "--list"], "EXPERIMENT cannot be combined with --list"),
        (["--list", "--cpu"], "--cpu cannot be combined with --list"),
        (["--resume", "run"], "run is not the folder of a run"),
        (["smoke", "photos", "-o", "run", "--precision", "int8"], "unknown precision 'int8'"),
    ],
)
def test_train_usage_errors(run, arguments, message, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in run("train", *arguments, status=1).stderr


def test_options_without_effect_on_a_resumed_run(run) -> None:
    """All parameters but the two that can be changed, including any that are added later."""
    parameters = typer.main.get_command(app).commands["train"].params
    names = {parameter.name for parameter in parameters}
    assert {"accumulate", "workers", "precision", "validate"} < names
    for parameter in parameters:
        if parameter.name in ("resume", "accumulate", "workers", "help", "list_"):
            continue
        option = parameter.opts[0] if parameter.opts[0].startswith("-") else None
        value = [] if getattr(parameter, "is_flag", False) else ["1"]
        arguments = value if option is None else [option, *value]
        if parameter.name == "data":
            arguments = ["smoke", "photos"]
        error = run("train", "--resume", "run", *arguments, status=1).stderr
        assert f"{option or parameter.name.upper()} " in error.replace(",", " ")
        assert "cannot be combined with --resume, which uses the settings of the run" in error


def test_dtypes():
    """fp32 means full fp32; only auto leaves the choice to espan."""
    dtypes = {name: parse_dtype(name) for name in ("auto", "fp32", "fp16", "bf16")}
    assert list(dtypes.values()) == [None, torch.float32, torch.float16, torch.bfloat16]
