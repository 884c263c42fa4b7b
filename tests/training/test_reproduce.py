"""benchmarks/reproduce.py: rows at a reduced scale, stopped and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import reproduce, reproduction
from benchmarks.reproduce import One
from espan.data.pack import Pack
from espan.data.prepare import prepare
from espan.errors import EspanError
from espan.imaging import Image, imresize, write_image
from espan.training.experiment import from_data, read
from espan.training.log import Log
from espan.training.steps import Trainer

PROGRAM = Path(reproduce.__file__)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """Ten photographs of 200x196."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(10):
        small = np.random.default_rng(seed).random((49, 50, 3))
        write_image(
            folder / f"{seed}.png", Image((imresize(small, 4).clip(0, 1) * 255).astype("u1"))
        )
    path = folder / "photos.pack"
    prepare([folder], path, smallest=64)
    return path


@pytest.fixture
def tiny(monkeypatch):
    """Every row becomes a network of two small blocks that sees 2 crops of 32x32."""
    full = reproduce.reduced

    def reduced(row, *, steps, rate, seed):
        data = full(row, steps=steps, rate=rate, seed=seed).model_dump(
            mode="json", exclude_none=True
        )
        data["network"]["architecture"] = "c8d2k3x2"
        for stage in data["stage"]:
            stage |= {"hr_patch": 32, "batch": 2}
        return from_data(data, row)

    monkeypatch.setattr(reproduce, "reduced", reduced)
    monkeypatch.setattr(reproduce, "VALIDATIONS", 2)


def shared(pack, output, steps=20):
    output.mkdir(exist_ok=True)
    return reproduce.Reproduction(pack, output, steps, "fp32", jobs=1, cpu=True)


def test_rows_are_those_of_the_paper():
    assert set(reproduce.all_rows()) == set(reproduction.PAPER)
    assert {row for claim in reproduction.CLAIMS for row in claim} <= set(reproduction.PAPER)
    assert reproduce.chosen_rows(["fig5", "tab8:l2"]) == ["fig5:alone", "fig5:distilled", "tab8:l2"]
    with pytest.raises(EspanError, match=r"no row 'tab7:grap'; the rows are tab7:plain, "):
        reproduce.chosen_rows(["tab7:grap"])


@pytest.mark.parametrize("row", reproduce.all_rows())
def test_only_the_scale_is_reduced(row):
    full, small = read(row), reproduce.reduced(row, steps=2500, rate=5, seed=3)
    assert (small.network, small.optimizer) == (full.network, full.optimizer)
    assert small.seed == 3
    for before, after in zip(full.stage, small.stage, strict=True):
        assert after.iterations * 200 == before.iterations
        assert [after.learning_rate(t) for t in (0, 499, 500, 2499)] == [
            5 * before.learning_rate(t) for t in (0, 99_999, 100_000, 499_999)
        ]
        assert after.batch * after.hr_patch**2 * 8 * 16 == before.batch * before.hr_patch**2 * 9
        scale = ("hr_patch", "batch", "lr", "iterations", "halve_every")
        assert after.model_dump(exclude=set(scale)) == before.model_dump(exclude=set(scale))


def test_rows_of_several_tables_are_trained_once():
    assert reproduce.trained_as("tab8:l1") == "tab7:grep-4-0" == reproduce.trained_as("fig5:alone")
    assert list(reproduce.runs(["tab7:plain", "tab8:l1", "fig5:alone"], [1, 5], [0, 1])) == [
        One(row, rate, seed)
        for seed in (0, 1)
        for rate in (1, 5)
        for row in ("tab7:plain", "tab7:grep-4-0")
    ]
    assert str(One("tab7:plain", 1, 0)) == "tab7-plain-seed0"
    assert str(One("tab7:plain", 5, 1)) == "tab7-plain-rate5-seed1"


def test_held_out(pack, tmp_path):
    names = reproduce.held_out(Pack(pack))
    assert len(set(names)) == 8
    few = tmp_path / "few.pack"
    prepare([pack.parent], few, smallest=64)
    opened = Pack(few)
    del opened.entries[8:]
    with pytest.raises(EspanError, match=r"has 8 photographs; more than the 8 "):
        reproduce.held_out(opened)


@pytest.mark.usefixtures("tiny")
def test_result(pack, tmp_path):
    runs = shared(pack, tmp_path)
    assert not runs.is_done(One("fig5:distilled", 5, 1))
    runs.train(One("fig5:distilled", 5, 1))
    assert runs.is_done(One("fig5:distilled", 5, 1))
    (result,) = reproduction.load(tmp_path)
    assert (result["rows"], result["rate"], result["seed"]) == (["fig5:distilled"], 5, 1)
    assert result["failed"] is None
    assert (result["steps"], result["skipped"]) == (20, 0)
    assert [step for step, _ in result["curves"]["student"]] == [0, 10, 20]
    assert result["psnr"] == result["curves"]["student"][-1][1]
    assert result["psnr"] > result["curves"]["student"][0][1]
    assert result["seconds"] > 0
    assert result["photographs"]["number"] == 10
    assert len(result["photographs"]["held_out"]) == 8
    assert 5 < result["photographs"]["bicubic"] < 50
    assert str(tmp_path) not in json.dumps(result)
    with pytest.raises(
        EspanError, match=r"other settings than fig5:distilled with --steps 30 --precision fp32;"
    ):
        shared(pack, tmp_path, steps=30).is_done(One("fig5:distilled", 5, 1))


@pytest.mark.usefixtures("tiny")
def test_resumed_in_the_middle(pack, tmp_path, monkeypatch):
    expected = shared(pack, tmp_path / "whole").train(One("tab7:repvgg", 1, 0))

    progress, steps = Log.progress, []

    def stopping(log, step, *others):
        progress(log, step, *others)
        steps.append(step)
        if steps == [*range(1, 14)]:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Log, "progress", stopping)
    runs = shared(pack, tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        runs.train(One("tab7:repvgg", 1, 0))
    assert not runs.is_done(One("tab7:repvgg", 1, 0))
    with pytest.raises(EspanError, match="other settings"):
        shared(pack, tmp_path / "stopped", steps=30).is_done(One("tab7:repvgg", 1, 0))
    found = runs.train(One("tab7:repvgg", 1, 0))
    for key in ("psnr", "curves", "steps", "experiment"):
        assert found[key] == expected[key]


@pytest.mark.usefixtures("tiny")
def test_divergence_is_a_result_and_other_errors_are_not(pack, tmp_path, monkeypatch):
    def diverged(self, crops):
        self._validate({})
        raise EspanError("the loss or its gradient was NaN or infinite for 20 steps in a row.")

    monkeypatch.setattr(Trainer, "_train", diverged)
    runs = shared(pack, tmp_path)
    assert "NaN or infinite" in runs.train(One("tab8:hf", 1, 0))["failed"]
    assert runs.is_done(One("tab8:hf", 1, 0))

    def full(self, crops):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Trainer, "_train", full)
    with pytest.raises(EspanError, match="No space left"):
        runs.train(One("tab8:hf", 1, 1))
    assert not runs.is_done(One("tab8:hf", 1, 1))


def start(pack, output, *arguments):
    command = [sys.executable, PROGRAM, pack, "-o", output, "--cpu", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment)


@pytest.mark.slow
def test_command(pack, tmp_path):
    """Two runs side by side at the real scale of a step; nothing is done twice."""
    rows = ("--rows", "tab7:plain", "tab8:l2", "--jobs", 2, "--steps")
    out, err = (process := start(pack, tmp_path, *rows, 2)).communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.startswith("2 runs, of which 0 are done\n")
    assert {line.partition(":")[0] for line in out.splitlines()[1:]} == {
        "tab7-plain-seed0",
        "tab8-l2-seed0",
    }
    assert {r["rows"][0] for r in reproduction.load(tmp_path)} == {"tab7:plain", "tab8:l2"}

    out, _ = start(pack, tmp_path, *rows, 2).communicate(timeout=60)
    assert out == "2 runs, of which 2 are done\n"
    _, err = (process := start(pack, tmp_path, *rows, 3)).communicate(timeout=60)
    assert process.returncode == 2
    assert "other settings than tab7:plain with --steps 3" in err


@pytest.mark.slow
def test_command_is_stopped(pack, tmp_path):
    process = start(pack, tmp_path, "--rows", "tab7:plain")
    log = tmp_path / "tab7-plain-seed0.log"
    deadline = time.monotonic() + 100
    while not (log.exists() and "step 0/2500" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "stopped; the same command continues\n"
    assert "stopped after step" in log.read_text()
    assert not reproduction.load(tmp_path)
