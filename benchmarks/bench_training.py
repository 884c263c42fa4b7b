"""Times whole training steps, with each part of espan's method and with its alternatives.

    pytest benchmarks/bench_training.py --benchmark-json=benchmarks/results/training.json
    python benchmarks/report.py

A step of ESPAN with GRep [4, 0] on 16 crops of 64 x 64 consists of forward, loss, backward and
AdamW.  bf16 without kernels for it, as on a CPU with AVX2, is slow: select the others by -k fp32.
Before a step is timed, each variant is verified on a small batch in fp32: the gradient of every
parameter must equal that of parallel branches, the eager loss and the plain gate.
"""

import functools
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import espan
import espan_kernels
from benchmarks.bench_frequency_loss import implementation
from benchmarks.bench_ops import finished
from espan.branches import GRepConv, conv_factory
from espan.data import Crops, batches, image_in_memory
from espan.fused import FusedNetwork
from espan.losses import Loss
from espan.models import ESPAN, Network
from espan.training.initialise import initialise
from espan_kernels import reference

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
BATCH, PATCH = 16, 64
EQ_9 = Loss("l2", hf=1, dct=0.001)

LossFunction = Callable[[Tensor, Tensor], Tensor]


def eager_loss(sr: Tensor, hr: Tensor) -> Tensor:
    return reference.frequency_loss(sr, hr)[0]


def loss_of(name: str) -> LossFunction:
    if name == "compiled":
        torch._dynamo.reset()
        compiled = torch.compile(eager_loss, dynamic=False)
        # For two channels-last images, PyTorch 2.13 miscompiles the gradient of the blur: 16% off.
        return lambda sr, hr: compiled(sr.contiguous(), hr.contiguous())
    return EQ_9 if name == "espan" else eager_loss


def by_pytorch(conv: GRepConv, x: Tensor) -> Tensor:
    """The merged convolution by F.conv2d."""
    kernel = conv.merged()
    return F.conv2d(x, *kernel, padding=kernel.weight.shape[-1] // 2)


def network_of(convolutions: str, gate: str) -> Network:
    """A network for training; the weights are the same for all variants."""
    torch.manual_seed(0)
    gate_function = espan_kernels.gate if gate == "espan" else reference.gate
    network = Network(ESPAN, conv=conv_factory("grep", grep=(4, 0)), gate=gate_function)
    initialise(network, torch.rand(4, 3, 32, 32))
    for module in network.modules():
        if isinstance(module, GRepConv) and convolutions == "parallel":
            module.forward = module.branches  # type: ignore[method-assign]
        elif isinstance(module, GRepConv) and convolutions == "collapsed, by PyTorch":
            module.forward = functools.partial(by_pytorch, module)  # type: ignore[method-assign]
    return network.to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]


def crops_of(batch: int, patch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    lr = torch.rand(batch, 3, patch, patch, generator=generator)
    noise = 0.05 * torch.randn(batch, 3, 4 * patch, 4 * patch, generator=generator)
    hr = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bilinear") + noise
    return tuple(x.to(DEVICE, memory_format=torch.channels_last) for x in (lr, hr))  # type: ignore[return-value]


def gradients(network: Network, loss: LossFunction) -> list[Tensor]:
    lr, hr = crops_of(2, 12)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return list(torch.autograd.grad(loss(network(lr), hr), list(network.parameters())))


class Step:
    """A training step; the defaults are those of espan's training."""

    def __init__(
        self,
        precision: str,
        *,
        convolutions: str = "collapsed",
        gate: str = "espan",
        loss: str = "espan",
    ) -> None:
        self.network = network_of(convolutions, gate)
        self.loss = loss_of(loss)
        self.bf16 = precision == "bf16"
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, fused=True)

    def verify(self) -> None:
        plainly = network_of("parallel", "eager")
        expected = gradients(plainly, eager_loss)
        for ours, theirs in zip(gradients(self.network, self.loss), expected, strict=True):
            assert (ours - theirs).norm() <= 1e-3 * theirs.norm()

    def __call__(self, lr: Tensor, hr: Tensor) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=self.bf16):
            sr = self.network(lr)
        self.loss(sr.float(), hr).backward()
        self.optimizer.step()
        finished(DEVICE)


def measure_step(benchmark: BenchmarkFixture, step: Step, rounds: int = 7) -> None:
    step.verify()
    crops = crops_of(BATCH, PATCH)
    benchmark.pedantic(step, crops, warmup_rounds=2, rounds=rounds)
    if not benchmark.disabled:
        benchmark.extra_info["steps_per_s"] = round(1 / benchmark.stats.stats.median, 3)


@pytest.mark.parametrize(
    ("precision", "convolutions"),
    [
        ("fp32", "collapsed"),
        ("fp32", "collapsed, by PyTorch"),
        ("fp32", "parallel"),
        ("bf16", "collapsed"),  # by PyTorch
        ("bf16", "parallel"),
    ],
)
def test_convolutions(benchmark: BenchmarkFixture, precision: str, convolutions: str) -> None:
    benchmark.group = f"step {DEVICE} {precision}, convolutions"
    measure_step(benchmark, Step(precision, convolutions=convolutions))


# Compiling takes a minute on a GPU; bench_frequency_loss.py includes it there.
@pytest.mark.parametrize("loss", ["espan", "eager"] + ["compiled"] * (not GPU))
def test_loss_in_a_step(benchmark: BenchmarkFixture, loss: str) -> None:
    benchmark.group = f"step {DEVICE} bf16, loss"
    measure_step(benchmark, Step("bf16", loss=loss))


@pytest.mark.parametrize("loss", ["autograd", "eager"] + ["compiled"] * (not GPU))
def test_loss_alone(benchmark: BenchmarkFixture, loss: str) -> None:
    """The loss of one step and its gradient for the output; "autograd" is espan's kernel."""
    hr = crops_of(BATCH, PATCH)[1].contiguous()
    sr = hr + 0.1 * torch.rand_like(hr)
    run, expected = implementation(loss, sr, hr), implementation("eager", sr, hr)()
    # Some signs are of values that would be zero but for rounding.
    wrong = (run() - expected).abs() > 1e-3 * expected.abs().max()
    assert wrong.float().mean() < 1e-3

    def timed() -> None:
        run()
        finished(DEVICE)

    benchmark.group = f"loss alone {DEVICE}"
    benchmark.pedantic(timed, warmup_rounds=2, rounds=15)


@pytest.mark.parametrize("gate", ["espan", "eager"])
def test_gate_in_a_step(benchmark: BenchmarkFixture, gate: str) -> None:
    benchmark.group = f"step {DEVICE} bf16, gate"
    measure_step(benchmark, Step("bf16", gate=gate))


@pytest.mark.parametrize("name", ["espan", "eager"])
def test_validation(benchmark: BenchmarkFixture, name: str) -> None:
    """One 256 x 256 image through the fused network and through plain PyTorch, both in fp32."""
    plain = espan.load().to(DEVICE)
    run = FusedNetwork(plain, device=DEVICE, dtype=torch.float32) if name == "espan" else plain
    x = crops_of(1, 256)[0]

    def timed() -> None:
        run(x)
        finished(DEVICE)

    benchmark.group = f"validation {DEVICE} 256x256"
    with torch.inference_mode():
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            torch.testing.assert_close(run(x), plain(x), rtol=1e-3, atol=1e-3)
        benchmark.pedantic(timed, warmup_rounds=2, rounds=15)


@pytest.mark.parametrize("workers", [0, 2])
def test_waiting_for_data(benchmark: BenchmarkFixture, workers: int) -> None:
    """Steps on batches from images in memory; `waiting` is the share of time spent on loading."""
    rounds, warm_up = 7, 2
    random = np.random.default_rng(0)
    images = [
        image_in_memory(str(i), random.integers(0, 256, (1024, 1024, 3), np.uint8), 4)
        for i in range(8)
    ]
    crops = Crops(images, patch=PATCH, seed=0)
    step = Step("bf16")
    step.verify()
    waits: list[float] = []

    def made() -> Iterator[tuple[Tensor, Tensor]]:
        return batches(
            crops,
            batch=BATCH,
            first_step=0,
            steps=rounds + warm_up,
            workers=workers,
            device=torch.device(DEVICE),
        )

    lr, hr = next(made())
    torch.testing.assert_close(lr, crops.batch(0, BATCH)[0].to(DEVICE))
    torch.testing.assert_close(hr, crops.batch(0, BATCH)[1].to(DEVICE))
    ready = made()

    def timed() -> None:
        start = time.perf_counter()
        crops_now = next(ready)
        waits.append(time.perf_counter() - start)
        step(*crops_now)

    benchmark.group = f"step {DEVICE} bf16, data"
    benchmark.pedantic(timed, warmup_rounds=warm_up, rounds=rounds)
    if not benchmark.disabled:
        share = sum(waits[warm_up:]) / sum(benchmark.stats.stats.data)
        benchmark.extra_info["waiting"] = round(share, 4)
