"""Runs of two processes under torchrun are signalled, and continued in one or two processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console

from espan.training.experiment import read
from espan.training.run import Setup, reopen
from espan.training.train import resume, train

EXPERIMENT = """
validate_every = 10
[network]
architecture = "c8d2k3x2"
init = "bilinear"
[optimizer]
clip = 1.0
average = 0.999
[[stage]]
name = "one"
hr_patch = 24
batch = 4
lr = 1e-3
decay = "cosine"
iterations = 400
"""
SECONDS = 120.0  # for one start, on a busy machine


def step_of(run: Path) -> int:
    """The step of the newest save; -1: there is none."""
    saves = sorted((run / "states").glob("0*.state"))
    return int(saves[-1].stem) if saves else -1


def wait_until(condition: object, launcher: subprocess.Popen) -> None:
    assert callable(condition)
    end = time.monotonic() + SECONDS
    while not condition():
        assert launcher.poll() is None, launcher.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)


def stopped_by_signal(run: Path, arguments: list[str], target: str, number: int) -> None:
    """Start two processes, signal one of them or the launcher, and wait for the end of all."""
    before = step_of(run)
    launcher = subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            "-m", "espan", "train", *arguments,
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        wait_until(lambda: step_of(run) > max(before, 0), launcher)
        workers = psutil.Process(launcher.pid).children()
        by_rank = {int(process.environ()["RANK"]): process for process in workers}
        assert sorted(by_rank) == [0, 1]
        if target == "launcher":
            launcher.send_signal(number)
        else:
            by_rank[int(target)].send_signal(number)
        _, printed = launcher.communicate(timeout=SECONDS)
    except BaseException:
        os.killpg(launcher.pid, signal.SIGKILL)
        raise
    assert launcher.returncode != 0
    assert not any(process.is_running() for process in workers)
    stopped = re.findall(r"stopped after step (\d+) of one; continue with --resume", printed)
    state = reopen(run).load(print)
    assert state is not None
    assert stopped == [str(state["step"])], printed
    assert step_of(run) == state["step"] > before


@pytest.mark.slow
def test_signals_and_other_numbers_of_processes(photos: Path, tmp_path: Path) -> None:
    """Whoever is signalled, no step is lost: the weights are those of an uninterrupted run.

    The run starts in one process, continues in two, and ends in one.
    """
    (tmp_path / "experiment.toml").write_text(EXPERIMENT)
    experiment = read(str(tmp_path / "experiment.toml"))
    setup = Setup(data=(photos,), hold_out=("1.png", "3.png"), precision="fp64", cpu=True)
    train(tmp_path / "whole", experiment, setup, console=Console(quiet=True))

    run = tmp_path / "run"
    short = subprocess.Popen(
        [
            sys.executable, "-m", "espan", "train", str(tmp_path / "experiment.toml"),
            str(photos), "-o", str(run), "--cpu", "--precision", "fp64",
            "--hold-out", "1.png", "--hold-out", "3.png",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    wait_until(lambda: step_of(run) > 0, short)
    short.send_signal(signal.SIGINT)
    _, printed = short.communicate(timeout=SECONDS)
    assert "stopped after step" in printed
    for target, number in (
        ("0", signal.SIGTERM),
        ("1", signal.SIGINT),
        ("launcher", signal.SIGTERM),
        ("launcher", signal.SIGINT),
    ):
        stopped_by_signal(run, ["--resume", str(run)], target, number)
    assert step_of(run) < 400
    resume(run, console=Console(quiet=True))
    one, other = (reopen(tmp_path / name).load(print) for name in ("whole", "run"))
    assert one is not None
    assert other is not None
    assert other["step"] == 400
    for kind in ("network", "average"):
        for name, value in one[kind].items():
            torch.testing.assert_close(other[kind][name], value, rtol=1e-9, atol=1e-12)
