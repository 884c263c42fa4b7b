"""Two processes train like one, and always stop together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from espan.training.experiment import read
from espan.training.log import read_metrics
from espan.training.run import Setup, reopen
from espan.training.train import train

EXPERIMENT = """
validate_every = 100
[network]
architecture = "c8d2k3x2"
init = "bilinear"
[optimizer]
clip = 1.0
average = 0.999
[[stage]]
name = "one"
change = { teacher = 1 }
loss = { pixel = "l2", hf = 1.0, dct = 0.001 }
hr_patch = 24
batch = 4
lr = 1e-3
decay = "cosine"
iterations = 40
"""

# Events in one process: (step, process, event, the step after which all processes stop).
EVENTS = [
    (3, 0, "signal before the reduction", 3),
    (7, 1, "signal before the reduction", 7),
    (11, 0, "signal after the reduction", 12),
    (15, 1, "signal after the reduction", 16),
    (19, 1, "two signals", 19),
    (23, 0, "two signals", 23),
    (27, 1, "damaged data", 26),
    (31, 0, "damaged data", 30),
    (35, 1, "full disk", 30),  # the step of the last save
]

SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from espan.data import photographs
from espan.errors import EspanError
from espan.training import steps
from espan.training.experiment import read
from espan.training.run import Run, Setup, reopen
from espan.training.train import resume, train

experiment, photos, run = map(Path, sys.argv[1:4])
rank = int(os.environ["RANK"])
setup = Setup(data=(photos,), hold_out=("1.png", "3.png"), precision="fp64", cpu=True, workers=0)
event = trainer = None
decoded, happened = [], []

def now(*whats, done=0):
    return event is not None and event[:2] == [trainer.step + 1 - done, rank] and event[2] in whats

def signal_self():
    os.kill(os.getpid(), (signal.SIGINT, signal.SIGTERM)[rank])

def replaced(owner, name):
    def decorator(function):
        inner = getattr(owner, name)
        setattr(owner, name, lambda *args, **options: function(inner, *args, **options))
    return decorator

@replaced(steps.Trainer, "train")
def _(inner, self, crops):
    global trainer
    trainer = self
    inner(self, crops)

@replaced(steps, "loss_of")
def _(inner, *args):
    if now("signal before the reduction", "two signals", "full disk"):
        signal_self()
    if now("two signals"):
        signal_self()
    return inner(*args)

@replaced(steps, "update_average")
def _(inner, *args, **options):
    if now("signal after the reduction", done=1):
        signal_self()
    inner(*args, **options)

@replaced(steps.Crops, "batch")
def _(inner, self, first, count):
    if trainer is not None and count < 16 and now("damaged data"):
        raise EspanError("a damaged pack")
    return inner(self, first, count)

@replaced(Run, "save")
def _(inner, *args):
    if event is not None and event[2] == "full disk":
        raise OSError(28, "No space left on device", "a file")
    inner(*args)

@replaced(photographs, "read_image")
def _(inner, path):
    decoded.append(path.name)
    return inner(path)

for event in [*json.loads(sys.argv[4]), None]:
    try:
        if run.exists():
            resume(run)
        else:
            train(run, read(str(experiment)), setup)
        happened.append("done")
    except (KeyboardInterrupt, EspanError) as error:
        happened.append([f"{type(error).__name__} {error}", reopen(run).load(print)["step"]])
(run.parent / f"{rank}.json").write_text(json.dumps([happened, decoded]))
"""


@pytest.fixture(scope="module")
def two(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list, str]:
    """A folder with a run of two processes, what each process recorded, and their output."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "tmp").mkdir()
    (folder / "script.py").write_text(SCRIPT)
    (folder / "experiment.toml").write_text(EXPERIMENT)
    events = json.dumps([event[:3] for event in EVENTS])
    launched = subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            *map(str, (folder / "script.py", folder / "experiment.toml", photos, folder / "run")),
            events,
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")},
    )  # fmt: skip
    try:
        _, printed = launched.communicate(timeout=240)
    except subprocess.TimeoutExpired:  # one process waits for the other
        os.killpg(launched.pid, signal.SIGKILL)
        raise
    assert launched.returncode == 0, printed
    seen = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    return folder, seen, printed


@pytest.mark.parametrize("number", range(len(EVENTS)))
def test_all_processes_stop_after_the_same_step(two, number: int) -> None:
    """Whichever process was signalled or failed, nothing is lost."""
    _, seen, _ = two
    _, rank, what, step = EVENTS[number]
    stopped = [happened[number] for happened, _ in seen]
    assert [done for _, done in stopped] == [step, step]
    for process, (error, _) in enumerate(stopped):
        if "signal" in what:
            assert error == "KeyboardInterrupt "
        elif what == "full disk":
            assert "No space left on device.  Once this is fixed, --resume" in error
        elif process == rank:
            assert error == f"EspanError stage one, step {step}: a damaged pack"
        else:
            assert "another process could not read its training data" in error


def test_two_processes_train_as_one(two, photos: Path, tmp_path: Path) -> None:
    """In fp64, the weights are equal, and the measurements, which the processes share."""
    folder, seen, _ = two
    assert [happened[-1] for happened, _ in seen] == ["done", "done"]
    setup = Setup(data=(photos,), hold_out=("1.png", "3.png"), precision="fp64", cpu=True)
    experiment = read(str(folder / "experiment.toml"))
    train(tmp_path / "run", experiment, setup, console=Console(quiet=True))
    runs = [tmp_path / "run", folder / "run"]
    one, other = (reopen(run).load(print) for run in runs)
    assert one is not None
    assert other is not None
    for kind in ("network", "average"):
        for name, value in one[kind].items():
            assert value.dtype == torch.float64
            torch.testing.assert_close(other[kind][name], value, rtol=1e-9, atol=1e-12)
    metrics = [read_metrics(run)[-1] for run in runs]
    assert metrics[0]["psnr teacher"] == pytest.approx(metrics[1]["psnr teacher"], abs=1e-3)


def test_no_warnings_are_printed(two) -> None:
    _, _, printed = two
    assert "Warning: " not in printed


def test_images_are_decoded_once_and_mapped_by_all_processes(two) -> None:
    folder, seen, printed = two
    attempts = len(EVENTS) + 1
    assert printed.count("images to train on") == attempts  # printed by one process
    first, second = (decoded for _, decoded in seen)
    assert len(first) == 5 * attempts
    assert second == []
    assert list((folder / "tmp").glob("espan-*")) == []
