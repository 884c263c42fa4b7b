"""Training: GRep trained collapsed, the average of its branches, and whole short runs."""

import copy
import functools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

import espan
from espan.branches import GRepConv, Kind, conv_factory
from espan.errors import EspanError
from espan.imaging import Image, imresize, write_image
from espan.models import ESPAN, SPAN_NORMALIZATION, Architecture, Network, Normalization
from espan.reparameterize import collapse
from espan.training import train as module
from espan.training.initialise import initialise
from espan.training.train import TrainConfig, schedule, train, train_step, update_average

SEQUENCES = [(1, 0), (2, 2), (0, 4)]
SMALL = Architecture(channels=6, convs=(3, 2), scale=2, head_kernel=9)
QUIET = Console(quiet=True)


def grep_network(
    sequences: tuple[int, int] = (2, 0), architecture: Architecture = SMALL, seed: int = 0
) -> Network:
    torch.manual_seed(seed)
    return Network(architecture, conv=functools.partial(GRepConv, sequences=sequences))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five made-up photographs: smooth noise with edges."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(5):
        small = np.random.default_rng(seed).random((8, 10, 3)) * 1.6 - 0.3
        pixels = (imresize(small, 8).clip(0, 1) * 255).astype(np.uint8)
        write_image(folder / f"{seed}.png", Image(pixels))
    return folder


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> TrainConfig:
    """Twenty steps, with two photographs held out."""
    return TrainConfig(
        photos=(photos,),
        output=tmp_path / "small.safetensors",
        hold_out=("1.png", "3.png"),
        architecture="c8d2x2",
        steps=20,
        batch=4,
        patch=12,
        device="cpu",
        about="made up",
    )


@pytest.mark.parametrize("sequences", SEQUENCES)
@pytest.mark.parametrize(
    ("kernel", "in_channels", "out_channels"), [(3, 6, 6), (9, 3, 6), (3, 6, 12)]
)
def test_collapsed_gradients_are_those_of_the_branches(
    sequences: tuple[int, int], kernel: int, in_channels: int, out_channels: int
) -> None:
    torch.manual_seed(0)
    conv = GRepConv(in_channels, out_channels, kernel, sequences=sequences).double()
    x = torch.randn(2, in_channels, 11, 12, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, out_channels, 11, 12, dtype=torch.float64)
    inputs = [x, *conv.parameters()]
    collapsed = torch.autograd.grad((conv(x) * weights).sum(), inputs)
    parallel = torch.autograd.grad((conv.branches(x) * weights).sum(), inputs)
    for one, other in zip(collapsed, parallel, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("sequences", SEQUENCES)
def test_a_trained_network_and_its_collapse_are_equal(
    sequences: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp64, whole images with their borders, against branches that run in parallel."""
    network = grep_network(sequences).double()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for step in range(5):  # so that no bias is as it was made
        lr = torch.rand(1, 3, 12, 12, dtype=torch.float64)
        loss = train_step(network, optimizer, lr, torch.rand(1, 3, 24, 24).double(), bf16=False)
        assert math.isfinite(loss), step
    x = torch.rand(1, 3, 13, 10, dtype=torch.float64)
    plain = collapse(network)
    assert not any(isinstance(m, GRepConv) for m in plain.modules())
    monkeypatch.setattr(GRepConv, "forward", GRepConv.branches)
    torch.testing.assert_close(plain(x), network(x), rtol=1e-11, atol=1e-11)


def test_under_autocast_the_merge_stays_in_fp32() -> None:
    torch.manual_seed(0)
    conv = GRepConv(4, 4, 3, sequences=(2, 2))
    x = torch.randn(1, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
        expected = F.conv2d(x, *collapsed_in_fp64(conv), padding=1)
    assert y.dtype == torch.bfloat16
    # Rounding the kernel to bf16 once gives the same as from fp64, up to ties.
    assert (y != expected).float().mean() < 0.01


def collapsed_in_fp64(conv: GRepConv) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", enabled=False):
        weight, bias = conv.merged(torch.float64)
    return weight.float(), bias.float()


def test_the_average_is_of_the_branches() -> None:
    network = grep_network((2, 2))
    average = copy.deepcopy(network).requires_grad_(False)
    start = collapse(network).state_dict()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    expected = [
        9 / 11 * new + 2 / 11 * old
        for new, old in zip(network.parameters(), average.parameters(), strict=True)
    ]
    update_average(average, network, step=1)
    for mean, value in zip(average.parameters(), expected, strict=True):
        torch.testing.assert_close(mean, value)
    merged, end = collapse(average).state_dict(), collapse(network).state_dict()
    name = "blocks.0.convs.0.weight"
    mean_of_merged = 9 / 11 * end[name] + 2 / 11 * start[name]
    assert (merged[name] - mean_of_merged).abs().max() > 0.1  # the other order is another thing

    before = [p.clone() for p in average.parameters()]
    update_average(average, network, step=10**6)
    for mean, old, new in zip(average.parameters(), before, network.parameters(), strict=True):
        torch.testing.assert_close(mean, 0.999 * old + 0.001 * new)


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    rates = [schedule(i / 100) for i in range(101)]
    assert rates[0] < 1e-4
    assert rates.index(max(rates)) == 3
    assert max(rates) > 0.99
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[100] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("norm", [None, SPAN_NORMALIZATION])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_network_starts_near_bilinear_upsampling(norm: Normalization, scale: int) -> None:
    network = grep_network(architecture=SMALL.replace(scale=scale, normalization=norm))
    images = F.interpolate(torch.rand(4, 3, 6, 6), scale_factor=4, mode="bilinear")
    expected = F.interpolate(images, scale_factor=scale, mode="bilinear")
    inner = np.s_[:, :, scale:-scale, scale:-scale]
    initialise(network, images)
    with torch.no_grad():
        assert 0.001 < (network(images) - expected)[inner].std() < 0.1
        upsample = network.tail.upsample
        upsample.wide.weight[:, 3:] -= upsample.merged().weight[:, 3:]  # without any feature
        torch.testing.assert_close(network(images)[inner], expected[inner], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["grep", "plain", "edbb"])
def test_at_the_start_every_block_lives_and_matters(kind: Kind) -> None:
    """Each block passes on signals of half a unit or more; the features come through the last."""
    torch.manual_seed(0)
    network = Network(ESPAN, conv=conv_factory(kind))
    images = F.interpolate(torch.rand(4, 3, 6, 6), scale_factor=4, mode="bilinear")
    initialise(network, images)
    sizes: list[float] = []
    for block in network.blocks:
        block.register_forward_hook(
            lambda _m, _i, o: sizes.append(o[0].std(dim=(2, 3)).mean().item())
        )
    inputs: list[Tensor] = []
    network.tail.register_forward_pre_hook(lambda _m, i: inputs.extend(i))
    with torch.no_grad():
        network(images)
        assert len(sizes) == 6
        assert min(sizes) > 0.5
        assert max(sizes) < 1.5
        head, last, first, _ = inputs
        colour = torch.cat([head[:, :3], torch.zeros_like(head[:, 3:])], dim=1)
        nothing = torch.zeros_like(head)
        everything = network.tail(head, last, first, last)
        without_last = network.tail(head, nothing, first, nothing)
        torch.testing.assert_close(without_last, network.tail(colour, nothing, nothing, nothing))
    assert (everything - without_last).std() > 0.003


def test_gradients_are_of_one_step_alone() -> None:
    network = grep_network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)
    lr, hr = 100 * torch.rand(1, 3, 8, 8), torch.rand(1, 3, 16, 16)  # large: to be clipped
    gradients = []
    for _ in range(2):
        train_step(network, optimizer, lr, hr, bf16=False)
        gradients.append([p.grad.clone() for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    total = sum(g.square().sum().item() for g in gradients[0]) ** 0.5
    assert total == pytest.approx(1, abs=1e-3)  # clipped


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bf16_is_for_the_convolutions_alone(bf16: bool, dtype: torch.dtype) -> None:
    network = grep_network()
    dtypes = []
    network.head.register_forward_hook(lambda _m, _i, output: dtypes.append(output.dtype))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    train_step(network, optimizer, torch.rand(1, 3, 8, 8), torch.rand(1, 3, 16, 16), bf16=bf16)
    assert dtypes == [dtype]
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in network.parameters())


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    network = grep_network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    lr, hr = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 16, 16)
    train_step(network, optimizer, lr, hr, bf16=False)
    before = [p.clone() for p in network.parameters()]
    moments = copy.deepcopy(optimizer.state_dict()["state"])
    hr[0, 0, 0, 0] = math.inf
    assert math.isnan(train_step(network, optimizer, lr, hr, bf16=False))
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    for index, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, moments[index][key]) for key, value in state.items())


@pytest.mark.parametrize("bf16", [False, True])
def test_a_short_run_learns_and_writes_a_checkpoint(
    config: TrainConfig, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []

    def step(*args, **kwargs) -> float:
        losses.append(train_step(*args, **kwargs))
        return losses[-1]

    monkeypatch.setattr(module, "train_step", step)
    record = train(replace(config, bf16=bf16), console=QUIET)
    assert len(losses) == 20
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])

    network = espan.load(config.output)
    assert network.architecture == espan.models.architecture_from_name("c8d2x2")
    assert network.record == record == json.loads(json.dumps(record))
    assert record["photographs"] == 3
    assert record["pixels"] == 3 * 64 * 80
    assert record["held_out"] == ["1.png", "3.png"]
    assert record["about"] == "made up"
    assert record["steps"] <= 20
    assert record["grep"] == [2, 0]
    assert record["bf16"] is bf16
    assert record["skipped_steps"] == 0
    assert record["validation_psnr"] > 15
    assert "/" not in record["machine"]


def test_the_same_seed_gives_the_same_weights(config: TrainConfig, tmp_path: Path) -> None:
    first = replace(config, steps=4)
    again = replace(first, output=tmp_path / "again.safetensors")
    other = replace(first, output=tmp_path / "other.safetensors", seed=1)
    for each in (first, again, other):
        train(each, console=QUIET)
    states = [espan.load(c.output).state_dict() for c in (first, again, other)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])


def test_the_best_average_is_kept(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([20.0, 23.0, 21.0])
    monkeypatch.setattr(module, "VALIDATIONS", 3)
    monkeypatch.setattr(module, "validate", lambda *_: next(values))
    record = train(replace(config, steps=6), console=QUIET)
    assert next(values, None) is None  # all three were asked for
    assert record["validation_psnr"] == 23.0
    assert record["steps"] == 4
    assert espan.load(config.output).record == record


def test_what_is_written_is_the_average(config, monkeypatch: pytest.MonkeyPatch) -> None:
    def to_zero(average: Network, network: Network, step: int) -> None:
        for mean in average.parameters():
            mean.zero_()

    monkeypatch.setattr(module, "update_average", to_zero)
    train(replace(config, steps=1), console=QUIET)
    assert not any(v.any() for v in espan.load(config.output).state_dict().values())


def test_minutes_end_a_run(config: TrainConfig) -> None:
    record = train(replace(config, steps=None, minutes=0.02), console=QUIET)
    assert record["steps"] >= 1
    assert record["minutes"] <= 0.1


def test_skipped_steps_are_counted(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty of forty, but never two in a row: the run goes on."""
    calls = iter(range(40))

    def step(*args, **kwargs) -> float:
        return math.nan if next(calls) % 2 else train_step(*args, **kwargs)

    monkeypatch.setattr(module, "train_step", step)
    monkeypatch.setattr(module, "VALIDATIONS", 1)
    assert train(replace(config, steps=40), console=QUIET)["skipped_steps"] == 20


def test_a_run_that_diverges_stops_with_a_reason(config, monkeypatch) -> None:
    monkeypatch.setattr(module, "train_step", lambda *_, **__: math.nan)
    monkeypatch.setattr(module, "VALIDATIONS", 1)
    with pytest.raises(EspanError, match="not finite for 20 steps up to step 20"):
        train(config, console=QUIET)
    assert not config.output.exists()


def test_without_names_to_hold_out_some_are_drawn_by_the_seed(config: TrainConfig) -> None:
    drawn = {
        tuple(train(replace(config, hold_out=(), steps=1, seed=s), console=QUIET)["held_out"])
        for s in range(4)
    }
    assert all(len(names) == 1 for names in drawn)
    assert len(drawn) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": None}, "steps or minutes"),
        ({"steps": 0}, "steps must be above 0, got 0"),
        ({"minutes": -1.0}, "minutes must be above 0"),
        ({"lr": math.inf}, "lr must be above 0"),
        ({"lr": math.nan}, "lr must be above 0"),
        ({"batch": 0}, "batch must be above 0"),
        ({"grep": (1, -1)}, "grep must be two numbers"),
        ({"seed": -1}, "seed must be in"),
        ({"output": Path("weights.pth")}, "must end in .safetensors"),
    ],
)
def test_options_that_cannot_be(config: TrainConfig, change: dict, message: str) -> None:
    with pytest.raises(EspanError, match=message):
        replace(config, **change)


def test_bad_inputs_are_told_before_training(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "train_step", None)  # would fail if it were reached
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "folder.safetensors").mkdir()
    for change, message in [
        ({"photos": (empty,)}, "no images in"),
        ({"photos": (tmp_path / "none",)}, "none is not a folder"),
        ({"patch": 33}, "64 pixels are too few; both sides need 66 for a patch of 33 at x2"),
        ({"output": tmp_path / "no" / "w.safetensors"}, "the folder .*no does not exist"),
        ({"output": tmp_path / "folder.safetensors"}, "cannot be written"),
        ({"architecture": "esspan"}, "unknown architecture 'esspan'"),
        ({"hold_out": ("1.png", "nine.png")}, "to be held out: nine.png"),
        ({"hold_out": tuple(f"{i}.png" for i in range(5))}, "0 photographs to train on"),
    ]:
        with pytest.raises(EspanError, match=message):
            train(replace(config, **change), console=QUIET)
