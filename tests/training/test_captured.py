"""The step for a GPU, with each operation run at once on the CPU: it equals the step of the CPU."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from espan.branches import conv_factory
from espan.errors import EspanError
from espan.models import Network, architecture_from_name
from espan.reparameterize import Reparameterized
from espan.training import steps as steps_module
from espan.training.log import read_metrics
from espan.training.merging import Merging
from espan.training.run import Setup, reopen
from espan.training.steps import Trainer
from espan.training.train import resume, train

EQ_9 = {"pixel": "l2", "hf": 1.0, "dct": 0.001}
STAGES = (
    {"change": {"teacher": 1}, "loss": EQ_9, "iterations": 6},
    {"name": "two", "change": {"keep": "teacher", "scale": 3}, "iterations": 6, "warm_up": 3},
)


@pytest.fixture
def setup(photos: Path) -> Setup:
    return Setup(data=(photos,), hold_out=("1.png", "3.png"), cpu=True, precision="fp64")


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes all runs after its call take the step for a GPU, without a graph."""

    def switch() -> None:
        monkeypatch.setattr(
            Trainer, "_train", lambda self, crops: self._train_captured(crops, capture=False)
        )

    return switch


def state_of(run: Path) -> dict[str, Any]:
    found = reopen(run).load(print)
    assert found is not None
    return found


def check_states(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """Equal but for rounding, with the same names, shapes and types."""
    assert found.keys() == expected.keys()
    for part in ("network", "average"):
        check_tensors(found[part], expected[part], tolerance)
    mine, other = found["optimizer"], expected["optimizer"]
    assert mine["param_groups"] == other["param_groups"]
    assert list(mine["state"]) == list(other["state"])
    for index, moments in mine["state"].items():
        check_tensors(moments, other["state"][index], tolerance)
    for name in ("job", "total", "step", "skipped", "lines", "data", "scaler"):
        assert found[name] == expected[name]


def check_tensors(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        torch.testing.assert_close(tensor, expected[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("conv", ["plain", "grep", "repvgg", "edbb", "rrrb", "repmbconv"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_kernels_merged_together_equal_those_merged_alone(conv: Any, channels_last: bool) -> None:
    torch.manual_seed(0)
    network = Network(architecture_from_name("c8d3k5x2"), conv=conv_factory(conv, grep=(2, 1)))
    network.double()
    expected, kernels = {}, []
    for name, module in network.named_modules():
        if isinstance(module, Reparameterized):
            kernels.append(module.merged())
        elif name in ("tail.fuse", *(("head",) if conv == "plain" else ())):
            kernels.append((module.weight, module.bias))
        else:
            continue
        expected[f"{name}.weight"], expected[f"{name}.bias"] = kernels[-1]
    parameters = list(network.parameters())
    weights = {name: torch.randn_like(k) for name, k in expected.items()}
    gradients = torch.autograd.grad(
        sum((weights[n] * k).sum() for n, k in expected.items()), parameters, allow_unused=True
    )
    of = dict(zip(parameters, gradients, strict=True))

    merging = Merging(network, channels_last=channels_last)
    found = merging(torch.float64)
    assert len(found) == 2 * (2 + 3 * 3 + 2)
    for name, kernel in expected.items():
        torch.testing.assert_close(found[name], kernel, rtol=1e-12, atol=1e-12)
    (flat,) = torch.autograd.grad(sum((weights[n] * found[n]).sum() for n in weights), merging.flat)
    at = merging.flat.detach()
    for parameter in parameters:
        offset = parameter.data_ptr() - at.data_ptr()
        assert 0 <= offset < at.nbytes  # a view
        gradient = flat.as_strided(parameter.shape, parameter.stride(), offset // at.itemsize)
        wanted = torch.zeros_like(parameter) if of[parameter] is None else of[parameter]
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("conv", "accumulate"),
    [
        ("plain", 1),
        ("grep", 2),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("plain", 2), ("grep", 1), ("edbb", 1), ("edbb", 2))
        ),
    ],
)
def test_a_run_equals_that_of_the_cpu(
    tiny, setup: Setup, tmp_path: Path, as_on_a_gpu, conv: str, accumulate: int
) -> None:
    network = {"architecture": "c8d2k3x2", "init": "bilinear", "conv": conv}
    experiment = tiny(*STAGES, top={"network": network, "validate_every": 3})
    setup = replace(setup, accumulate=accumulate)
    for name in ("expected", "found"):
        train(tmp_path / name, experiment, setup, console=Console(quiet=True))
        as_on_a_gpu()
    # Only the learning rate is fp32, and AdamW divides small numbers by small numbers.
    check_states(state_of(tmp_path / "found"), state_of(tmp_path / "expected"), 1e-6)
    expected, found = (read_metrics(tmp_path / name) for name in ("expected", "found"))
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - {"stage", "steps per second", "waiting for data"}:
            assert one[key] == pytest.approx(other[key], rel=1e-4)  # images are rounded to uint8


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [pytest.param("fp32", 2e-5, marks=pytest.mark.slow), ("bf16", 2e-3)],
)
def test_other_precisions(
    tiny, setup: Setup, tmp_path: Path, as_on_a_gpu, precision: str, tolerance: float
) -> None:
    setup = replace(setup, precision=precision)
    for name in ("expected", "found"):
        train(tmp_path / name, tiny(*STAGES), setup, console=Console(quiet=True))
        as_on_a_gpu()
    check_states(state_of(tmp_path / "found"), state_of(tmp_path / "expected"), tolerance)


@pytest.mark.parametrize("first_on_a_gpu", [True, False])
def test_a_run_is_resumed_by_either_step(
    tiny, setup: Setup, tmp_path: Path, monkeypatch, as_on_a_gpu, first_on_a_gpu: bool
) -> None:
    train(tmp_path / "whole", tiny({"iterations": 8}), setup, console=Console(quiet=True))
    with monkeypatch.context() as patch:
        if first_on_a_gpu:
            patch.setattr(
                Trainer, "_train", lambda self, crops: self._train_captured(crops, capture=False)
            )
        patch.setattr(
            steps_module.Trainer, "_stopped", lambda self: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        calls = iter(range(10**6))
        patch.setattr(
            "espan.training.processes.StopRequest.requested",
            property(lambda self: next(calls) == 4, lambda self, value: None),
            raising=False,
        )
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", tiny({"iterations": 8}), setup, console=Console(quiet=True))
    assert state_of(tmp_path / "run")["step"] == 4
    if not first_on_a_gpu:
        as_on_a_gpu()
    resume(tmp_path / "run", console=Console(quiet=True))
    check_states(state_of(tmp_path / "run"), state_of(tmp_path / "whole"), 1e-6)


def with_nan(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    """The loss is NaN in these steps."""
    inner, calls = steps_module.loss_of, iter(range(10**6))

    def loss_of(*arguments: Any) -> torch.Tensor:
        return inner(*arguments) * (torch.nan if next(calls) in steps else 1)

    monkeypatch.setattr(steps_module, "loss_of", loss_of)


def test_steps_that_are_not_finite_change_nothing(
    tiny, setup: Setup, tmp_path: Path, monkeypatch, as_on_a_gpu
) -> None:
    for name in ("expected", "found"):
        with_nan(monkeypatch, range(2, 5))
        train(tmp_path / name, tiny({"iterations": 8}), setup, console=Console(quiet=True))
        monkeypatch.undo()
        as_on_a_gpu()
    found = state_of(tmp_path / "found")
    assert found["skipped"] == 3
    check_states(found, state_of(tmp_path / "expected"), 1e-6)


@pytest.mark.parametrize(("between_reads", "step"), [(-1.0, 25), (math.inf, 30)])
def test_a_run_that_diverges_ends(
    tiny,
    setup: Setup,
    tmp_path: Path,
    monkeypatch,
    as_on_a_gpu,
    between_reads: float,
    step: int,
) -> None:
    """At the next read of the numbers: after the 20th step, or when it validates."""
    as_on_a_gpu()
    with_nan(monkeypatch, range(5, 25))
    monkeypatch.setattr(steps_module, "SECONDS_BETWEEN_READS", between_reads)
    experiment = tiny({"iterations": 40}, top={"validate_every": 30})
    with pytest.raises(EspanError, match=rf"step {step}: .* for 20 steps in a row"):
        train(tmp_path / "run", experiment, setup, console=Console(file=io.StringIO()))
    assert state_of(tmp_path / "run")["step"] == 0
