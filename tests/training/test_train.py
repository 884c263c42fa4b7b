"""Whole runs: their output, and that they can be stopped and resumed at any time."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import espan
from espan.checkpoints import save
from espan.data.prepare import prepare
from espan.errors import EspanError
from espan.imaging import Image, read_image, write_image
from espan.models import Network, architecture_from_name
from espan.training import log as log_module
from espan.training import processes as processes_module
from espan.training import steps as steps_module
from espan.training import train as train_module
from espan.training.experiment import Experiment
from espan.training.log import read_metrics
from espan.training.processes import accelerator_for, stop_on_signal
from espan.training.run import Run, Setup, reopen
from espan.training.train import resume, train

ALL_STAGES = (
    {"change": {"teacher": 1}, "iterations": 6},
    {
        "name": "two",
        "change": {"keep": "teacher", "scale": 4},
        "loss": {"pixel": "l2", "hf": 1.0, "dct": 0.001},
        "iterations": 6,
        "repeats": 2,
    },
    {"name": "three", "change": {"remove_convs": 1}, "iterations": 6},
)


def quiet() -> Console:
    return Console(quiet=True)


def recorded() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def setup(photos: Path) -> Setup:
    return Setup(data=(photos,), hold_out=("1.png", "3.png"), cpu=True, about="made up")


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Ask every run to stop after this many steps, like a signal."""
    count = iter(range(1, 10**6))

    class Stop:
        deferred = False
        requested = property(lambda self: next(count) % steps == 0)

    monkeypatch.setattr(train_module, "stop_on_signal", lambda: contextlib.nullcontext(Stop()))


def state_of(run: Path) -> dict:
    found = reopen(run).load(print)
    assert found is not None
    return found


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_a_run_learns_and_writes_its_files(tiny, setup: Setup, tmp_path: Path, drawn: None) -> None:
    experiment = tiny({"iterations": 40}, top={"validate_every": 20})
    console = recorded()
    best = train(tmp_path / "run", experiment, setup, console=console)
    run = tmp_path / "run"
    assert best == run / "best.safetensors"
    assert sorted(p.name for p in run.iterdir()) == [
        "best.safetensors", "crops.png", "curves.png", "experiment.json", "last.safetensors",
        "metrics.jsonl", "setup.json", "stages", "states", "tensorboard",
    ]  # fmt: skip
    metrics = read_metrics(run)
    assert [m["step"] for m in metrics] == [0, 20, 40]
    assert metrics[2]["loss"] < 0.8 * metrics[1]["loss"]
    assert 0 <= metrics[2]["waiting for data"] < 1
    assert {"psnr network", "ssim network", "lr", "gradient norm"} <= metrics[2].keys()

    network = espan.load(best)
    assert network.architecture == architecture_from_name("c8d2k3x2")
    record = network.record
    assert record["images"] == 3
    assert record["pixels"] == 3 * 64 * 80
    assert record["held_out"] == ["1.png", "3.png"]
    assert record["about"] == "made up"
    assert record["precision"] == "fp32"
    assert record["psnr network"] == max(m["psnr network"] for m in metrics)
    assert record["experiment"]["stage"][0]["iterations"] == 40
    assert "/" not in json.dumps({k: v for k, v in record.items() if k != "made by"})
    last = espan.load(run / "last.safetensors").state_dict()
    stage = espan.load(run / "stages" / "01-one.safetensors").state_dict()
    assert same(last, stage)
    assert read_image(run / "crops.png").pixels.shape == (2 * 100 * 3, 3 * 100 * 3, 3)
    assert read_image(run / "curves.png").pixels.std() > 1
    assert "step 40/40" in console.file.getvalue()


def test_training_runs_on_the_kernels(tiny, setup: Setup, tmp_path: Path) -> None:
    """Gate and loss run on kernels, forward and backward; validation uses the fused network."""
    called: dict[str, int] = {}

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = str(function).removesuffix(".default")
            called[name] = called.get(name, 0) + 1
            return function(*args, **(kwargs or {}))

    experiment = tiny({"loss": {"pixel": "l2", "hf": 1.0, "dct": 0.001}, "iterations": 3})
    with Count():
        train(tmp_path / "run", experiment, setup, console=quiet())
    assert called["espan.gate_backward"] == 2 * 3  # blocks times steps
    assert called["espan.gate"] >= 2 * 3
    assert called["espan.frequency_loss"] == 3
    assert called["espan.frequency_loss_gradient"] == 3
    # Two samples, validated at the start and the end, and upscaled for the pictures.
    assert called["espan.network"] == 2 * 3
    assert "aten.sigmoid" not in called


def test_fp32_is_not_tf32(tiny, setup: Setup, tmp_path: Path, monkeypatch) -> None:
    loss_of, seen = steps_module.loss_of, set()

    def spied(*arguments: object) -> torch.Tensor:
        seen.add(torch.backends.cudnn.allow_tf32)
        return loss_of(*arguments)

    monkeypatch.setattr(steps_module, "loss_of", spied)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # PyTorch's default
    train(tmp_path / "run", tiny(), setup, console=quiet())
    assert seen == {False}
    assert torch.backends.cudnn.allow_tf32


def test_the_stages_follow_each_other(tiny, setup: Setup, tmp_path: Path) -> None:
    console = recorded()
    run = tmp_path / "run"
    train(run, tiny(*ALL_STAGES), setup, console=console)
    text = console.file.getvalue()
    assert "one: x2, 8 channels, blocks of 3-3, teacher of 3 more; new weights" in text
    assert "two 1/2: x4, 8 channels, blocks of 3-3-3; added tail.upsample; dropped student" in text
    assert "two 2/2: x4, 8 channels, blocks of 3-3-3; nothing added, nothing dropped" in text
    assert "three: x4, 8 channels, blocks of 3-3-2; dropped blocks.2.convs.2" in text
    results = {p.name: espan.load(p).architecture for p in (run / "stages").iterdir()}
    assert {name: (a.scale, a.convs) for name, a in results.items()} == {
        "01-one-student.safetensors": (2, (3, 3)),
        "01-one-teacher.safetensors": (2, (3, 3, 3)),
        "02-two-1-2.safetensors": (4, (3, 3, 3)),
        "03-two-2-2.safetensors": (4, (3, 3, 3)),
        "04-three.safetensors": (4, (3, 3, 2)),
    }
    assert espan.load(run / "best.safetensors").architecture.convs == (3, 3, 2)
    by_step = {(m["stage"], m["step"]): m for m in read_metrics(run)}
    # A repeat starts from the average at the end of the first run, measured at the same step.
    end, start = (by_step[name, 12]["psnr network"] for name in ("two 1/2", "two 2/2"))
    assert start == end


def test_the_average_is_the_result(tiny, setup: Setup, tmp_path: Path, monkeypatch) -> None:
    def to_zero(average: nn.Module, *_: object, **__: object) -> None:
        for mean in average.parameters():
            mean.detach().zero_()

    monkeypatch.setattr(steps_module, "update_average", to_zero)
    train(tmp_path / "run", tiny({"iterations": 1}), setup, console=quiet())
    last = espan.load(tmp_path / "run" / "last.safetensors")
    assert not any(v.any() for v in last.state_dict().values())
    best = espan.load(tmp_path / "run" / "best.safetensors")  # that of step 0
    assert all(v.any() for n, v in best.state_dict().items() if n.endswith("weight"))


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_resuming_is_exact(tiny, setup: Setup, tmp_path: Path, monkeypatch, precision) -> None:
    """A run that is interrupted after many of its steps ends like an uninterrupted one."""
    experiment, setup = tiny(*ALL_STAGES), replace(setup, precision=precision)
    train(tmp_path / "whole", experiment, setup, console=quiet())

    stop_after(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", experiment, setup, console=quiet())
    for _ in range(20):
        try:
            resume(tmp_path / "cut", console=quiet())
            break
        except KeyboardInterrupt:
            continue
    whole, cut = (state_of(tmp_path / name) for name in ("whole", "cut"))
    assert same(whole, cut)
    for name in ("best", "last", "stages/03-two-2-2"):
        states = [espan.load(tmp_path / f / f"{name}.safetensors") for f in ("whole", "cut")]
        assert same(*(s.state_dict() for s in states)), name
    timed = ("steps per second", "waiting for data", "loss")  # the loss is a mean since the start
    metrics = [
        [{k: v for k, v in line.items() if k not in timed} for line in read_metrics(tmp_path / f)]
        for f in ("whole", "cut")
    ]
    assert metrics[0] == metrics[1]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from espan.training import steps
from espan.training.train import resume
for case in sys.argv[2:]:
    if (child := os.fork()) == 0:
        break
    print(os.waitpid(child, 0)[1])
else:
    sys.exit()
where, count = case.split(":")
count, calls = int(count), iter(range(10**6))
def kill():
    if next(calls) == count:
        os.kill(os.getpid(), signal.SIGKILL)
if where == "step":
    inner = steps.update_average
    steps.update_average = lambda *a, **k: (kill(), inner(*a, **k))
elif where == "save":
    inner = os.fsync  # the save is written, but not yet in place
    os.fsync = lambda f: (kill(), inner(f))
elif where == "prune":
    inner = Path.unlink
    Path.unlink = lambda p, *a, **k: (p.suffix == ".state" and kill(), inner(p, *a, **k))
resume(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_killed_at_any_moment(tiny, setup: Setup, tmp_path: Path, monkeypatch) -> None:
    """With SIGKILL between steps, during a save, and while an old save is removed."""
    experiment = tiny(*ALL_STAGES)
    train(tmp_path / "whole", experiment, setup, console=quiet())
    stop_after(monkeypatch, 1)
    run = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        train(run, experiment, setup, console=quiet())
    monkeypatch.undo()
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    cases = ["step:3", "save:6", "prune:0", "save:2"]
    ended = subprocess.run(
        [sys.executable, str(script), str(run), *cases],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ended.stdout.split() == 4 * [str(int(signal.SIGKILL))], ended.stderr
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')  # a line that was cut off
    resume(run, console=quiet())
    assert same(state_of(tmp_path / "whole"), state_of(run))
    assert not list((run / "states").glob("*.part"))
    steps = [m["step"] for m in read_metrics(run)]
    assert steps == [m["step"] for m in read_metrics(tmp_path / "whole")]


def test_ctrl_c_saves_and_stops(tiny, setup: Setup, tmp_path: Path, monkeypatch) -> None:
    inner, calls = steps_module.loss_of, iter(range(1, 100))

    def loss_of(*args):
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return inner(*args)

    monkeypatch.setattr(steps_module, "loss_of", loss_of)
    console = recorded()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", tiny(), setup, console=console)
    assert "stopped after step 3 of one; continue with --resume" in console.file.getvalue()
    assert state_of(tmp_path / "run")["step"] == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_finished_run_is_not_repeated(tiny, setup: Setup, tmp_path: Path) -> None:
    train(tmp_path / "run", tiny(), setup, console=quiet())
    before = (tmp_path / "run" / "best.safetensors").read_bytes()
    resume(tmp_path / "run", console=quiet())
    assert (tmp_path / "run" / "best.safetensors").read_bytes() == before


def test_a_run_is_not_resumed_with_other_images(tiny, setup, photos, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in photos.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    train(tmp_path / "run", tiny(), replace(setup, data=(folder,)), console=quiet())
    write_image(folder / "2.png", Image(np.zeros((64, 80, 3), np.uint8)))
    with pytest.raises(
        EspanError, match="the training images are not those that the run was started with"
    ):
        resume(tmp_path / "run", console=quiet())


def test_parts_of_a_step_add_up(tiny, setup: Setup, tmp_path: Path) -> None:
    """In fp64, one part of four crops and two parts of two give the same weights."""
    experiment = tiny({"change": {"teacher": 1}, "loss": {"pixel": "l2", "hf": 1.0, "dct": 0.001}})
    for parts in (1, 2):
        configured = replace(setup, precision="fp64", accumulate=parts)
        train(tmp_path / str(parts), experiment, configured, console=quiet())
    one, two = (state_of(tmp_path / str(parts))["network"] for parts in (1, 2))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("conv", ["plain", "grep", "repvgg", "edbb", "rrrb", "repmbconv"])
def test_fine_tuning_starts_from_the_weights(tiny, setup, photos, tmp_path, conv: str) -> None:
    torch.manual_seed(3)
    start = Network(architecture_from_name("c8d2k3x2")).requires_grad_(False)
    for parameter in start.parameters():
        parameter.mul_(1.5)
    save(start, tmp_path / "start.safetensors", record={})
    experiment = tiny({"lr": 1e-9, "iterations": 1}, top={"network": {"conv": conv}})
    begun = replace(setup, weights=str(tmp_path / "start.safetensors"))
    train(tmp_path / "run", experiment, begun, console=quiet())
    first = espan.load(tmp_path / "run" / "best.safetensors").state_dict()
    for name, value in start.state_dict().items():
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6)
    if conv in ("plain", "grep"):
        console = recorded()
        train(tmp_path / "again", experiment, begun, console=console)
        assert "nothing added, nothing dropped" in console.file.getvalue()
        resume(tmp_path / "again", console=quiet())  # without the weights' file
        assert espan.load(tmp_path / "again" / "best.safetensors").record["from"] == (
            "start.safetensors"
        )


def test_non_finite_steps(tiny, setup: Setup, tmp_path: Path, monkeypatch) -> None:
    """They are skipped and counted; twenty in a row end the run and keep the last good state."""
    inner, calls = steps_module.loss_of, iter(range(10**6))
    bad = {3, 4, 9}

    def loss_of(table, output, hr):
        loss = inner(table, output, hr)
        return loss * math.nan if next(calls) in bad else loss

    monkeypatch.setattr(steps_module, "loss_of", loss_of)
    train(tmp_path / "run", tiny({"iterations": 12}), setup, console=quiet())
    state = state_of(tmp_path / "run")
    assert state["skipped"] == 3
    assert state["optimizer"]["state"][0]["step"] == 9
    assert all(v.isfinite().all() for v in state["network"].values())

    bad = set(range(10**6))
    calls = iter(range(10**6))
    with pytest.raises(
        EspanError,
        match=r"stage one, step 20: .* for 20 steps in a row.  Train with a .* below 0.001",
    ):
        train(tmp_path / "bad", tiny({"iterations": 40}), setup, console=quiet())
    assert all(v.isfinite().all() for v in state_of(tmp_path / "bad")["network"].values())


def test_a_learning_rate_that_is_too_high(tiny, setup: Setup, tmp_path: Path) -> None:
    experiment = tiny({"lr": 1e15, "iterations": 60}, top={"optimizer": {}})
    message = r"stage one, step 4: the network's output is not finite.*Train with a .* below 1e\+15"
    with pytest.raises(EspanError, match=message):
        train(tmp_path / "run", experiment, setup, console=quiet())


def test_saves_between_validations(tiny, setup: Setup, tmp_path: Path, monkeypatch) -> None:
    saved: list[int] = []
    inner = Run.save
    monkeypatch.setattr(
        Run, "save", lambda self, step, *a: (saved.append(step), inner(self, step, *a))
    )
    for seconds, expected in ((-1.0, [0, 1, 2, 3, 4, 5, 6]), (600.0, [0, 4, 6])):
        monkeypatch.setattr(steps_module, "SECONDS_BETWEEN_SAVES", seconds)
        saved.clear()
        train(tmp_path / str(seconds), tiny({"iterations": 6}), setup, console=quiet())
        assert saved == expected


def test_progress_without_a_terminal(tiny, setup: Setup, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(log_module, "SECONDS_PER_LINE", -1.0)
    console = recorded()
    train(tmp_path / "run", tiny({"iterations": 3}), setup, console=console)
    lines = console.file.getvalue().splitlines()
    shown = [line for line in lines if "steps of the run" in line]
    assert [line.split()[:2] for line in shown] == [["one", f"{i}/3"] for i in (1, 2, 3)]


def test_a_run_that_was_killed_at_its_start_validates_once(
    tiny, setup: Setup, tmp_path: Path, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(steps_module, "batches", None)  # fails after the first validation
        with pytest.raises(TypeError):
            train(tmp_path / "run", tiny(), setup, console=quiet())
    resume(tmp_path / "run", console=quiet())
    assert [m["step"] for m in read_metrics(tmp_path / "run")] == [0, 4, 8]


def test_bad_input_is_reported_before_training(tiny, setup, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(steps_module, "batches", None)  # would fail if it were reached
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    full = tmp_path / "full"
    full.mkdir()
    (full / "something").touch()
    run, normal = tmp_path / "run", tiny()

    def of_spanv2(conv: str, init: str) -> Experiment:
        return tiny(top={"network": {"architecture": "spanv2", "conv": conv, "init": init}})

    cases: list[tuple[Path, Experiment, dict, str]] = [
        (full, normal, {}, "full is not empty; .* --resume"),
        (tmp_path / "no" / "run", normal, {}, "the folder .*no does not exist"),
        (setup.data[0] / "a" / "run", normal, {}, r"a/run is inside .* outside"),
        (tmp_path / os.fsdecode(b"run\xe9"), normal, {}, "name is not UTF-8"),
        (run, normal, {"data": (tmp_path / "empty",)}, "no images in"),
        (run, normal, {"data": (tmp_path / "none",)}, "none does not exist"),
        (run, tiny({"hr_patch": 66}), {}, "too few"),
        (run, tiny({"batch": 3}), {"accumulate": 2}, "batch 3 is not a multiple of 2"),
        (run, tiny({"change": {"remove_blocks": 2}}), {}, "remove_blocks = 2"),
        (run, normal, {"hold_out": ("1.png", "nine.png")}, "not among the images: nine.png"),
        (run, normal, {"hold_out": tuple(f"{i}.png" for i in range(5))}, "none is left to train"),
        (run, normal, {"hold_out": (), "validate": tmp_path / "empty"}, "no images in"),
        (run, normal, {"weights": "missing.pth"}, "missing.pth"),
        (run, normal, {"weights": "espan_x4"}, "another architecture"),
        (run, normal, {"precision": "fp16"}, "fp16 needs a GPU"),
        (run, of_spanv2("repvgg", "pytorch"), {}, "repvgg"),
        (run, of_spanv2("grep", "bilinear"), {}, 'init = "bilinear" is for'),
        (run, tiny({}, {"change": {"scale": 4}}), {"data_lr": setup.data[0]}, "have one scale"),
    ]
    for folder, experiment, changes, message in cases:
        with pytest.raises(EspanError, match=message):
            train(folder, experiment, replace(setup, **changes), console=quiet())
        assert not run.exists(), message


def test_parts_and_workers_can_be_changed_when_resuming(
    tiny, setup: Setup, tmp_path: Path, monkeypatch
) -> None:
    stop_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", tiny(), setup, console=quiet())
    monkeypatch.undo()
    made: list[tuple[int, int, int]] = []
    inner = steps_module.batches

    def batches(crops, **options):
        made.append((options["batch"], options["first_step"], options["workers"]))
        return inner(crops, **options)

    monkeypatch.setattr(steps_module, "batches", batches)
    with pytest.raises(EspanError, match="stage one: batch 4 is not a multiple of 3"):
        resume(tmp_path / "run", accumulate=3, console=quiet())
    with pytest.raises(EspanError, match="workers 0 or more"):
        resume(tmp_path / "run", workers=-1, console=quiet())
    resume(tmp_path / "run", accumulate=2, workers=0, console=quiet())
    assert made == [(2, 6, 0)]
    assert reopen(tmp_path / "run").setup == replace(
        setup, data=tuple(path.absolute() for path in setup.data)
    )


@pytest.mark.parametrize("launched", [False, True])
def test_a_second_signal(monkeypatch, launched: bool) -> None:
    """It stops a run at once, except under a launcher, which repeats its signal."""
    if launched:
        monkeypatch.setenv("LOCAL_RANK", "0")
    with stop_on_signal() as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)  # before there is anything to save
        stop.deferred = True
        os.kill(os.getpid(), signal.SIGTERM)
        with contextlib.nullcontext() if launched else pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_full_disk_is_named_with_stage_step_and_remedy(
    tiny, setup: Setup, tmp_path: Path, monkeypatch
) -> None:
    """A limit on file sizes makes the system's write fail, like a full disk."""
    inner, calls = steps_module.loss_of, iter(range(1, 100))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def loss_of(*args):
        if next(calls) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
        return inner(*args)

    monkeypatch.setattr(steps_module, "loss_of", loss_of)
    run = tmp_path / "run"
    try:
        with pytest.raises(EspanError) as error:
            train(run, tiny(), setup, console=quiet())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(error.value).startswith(f"stage one, step 4: {run}/")
    assert f"File too large.  Once this is fixed, --resume {run} continues" in str(error.value)
    resume(run, console=quiet())
    assert state_of(run)["step"] == 8


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_named_with_its_remedy(error, tiny, setup, tmp_path, monkeypatch) -> None:
    def loss_of(*_: object) -> None:
        raise error

    monkeypatch.setattr(steps_module, "loss_of", loss_of)
    with pytest.raises(EspanError, match=r"stage one, step 0: cpu .* --resume .* --accumulate 2"):
        train(tmp_path / "run", tiny(), setup, console=quiet())


def test_other_errors_are_not_taken_for_out_of_memory(tiny, setup, tmp_path, monkeypatch) -> None:
    def loss_of(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(steps_module, "loss_of", loss_of)
    with pytest.raises(RuntimeError, match="a defect"):
        train(tmp_path / "run", tiny(), setup, console=quiet())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ()}, "no data"),
        ({"precision": "int8"}, "unknown precision 'int8'; choose one of fp32"),
        ({"accumulate": 0}, "accumulate must be 1 or more"),
        ({"workers": -1}, "workers 0 or more"),
        ({"validate_lr": Path("lr")}, "validate_lr needs validate"),
        ({"validate": Path("hr")}, "validate and hold_out cannot be combined"),
    ],
)
def test_invalid_setups(setup: Setup, change: dict, message: str) -> None:
    with pytest.raises(EspanError, match=message):
        replace(setup, **change)


def test_bad_launcher_variables_are_named(monkeypatch, setup: Setup) -> None:
    def accelerator(**_: object) -> None:
        monkeypatch.setenv("RANK", "0")  # as Accelerate does
        raise ValueError("invalid literal for int() with base 10: ''")

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(processes_module, "Accelerator", accelerator)
    monkeypatch.setenv("WORLD_SIZE", "")
    with pytest.raises(EspanError, match=r"int\(\) .*; a launcher sets WORLD_SIZE=:"):
        accelerator_for(setup)


def test_folders_without_a_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(EspanError, match="is not the folder of a run"):
            resume(folder, console=quiet())
    (tmp_path / "experiment.json").write_text("{")
    (tmp_path / "setup.json").write_text("{}")
    with pytest.raises(EspanError, match="damaged"):
        resume(tmp_path, console=quiet())


def test_a_pack_that_changes_on_disk(tiny, setup, photos, tmp_path, monkeypatch):
    pack = tmp_path / "photos.pack"
    prepare([photos], pack, smallest=8)
    inner = steps_module.update_average

    def changing(*args, **kwargs) -> None:
        inner(*args, **kwargs)
        if args[2] == 3:
            pack.write_bytes(pack.read_bytes()[:-1] + b" ")

    monkeypatch.setattr(steps_module, "update_average", changing)
    configured = replace(setup, data=(pack,), workers=0)  # nothing is read ahead
    with pytest.raises(EspanError, match=r"stage one, step 3: .*photos\.pack was changed"):
        train(tmp_path / "run", tiny(), configured, console=quiet())
    assert state_of(tmp_path / "run")["step"] == 3
