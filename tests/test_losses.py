"""Losses against their definitions in fp64, and the mask of self-distillation."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from espan.errors import EspanError
from espan.losses import Loss, self_distillation
from tests.tolerance import assert_within

TAB_8 = {
    "L1": Loss("l1"),
    "L2": Loss("l2"),
    "HF": Loss("none", hf=1),
    "DCT": Loss("none", dct=0.001),
    "L1 + HF": Loss("l1", hf=1),
    "L1 + DCT": Loss("l1", dct=0.001),
    "L1 + HF + DCT": Loss("l1", hf=1, dct=0.001),
    "L1 + FFT": Loss("l1", fft=0.1),
    "L1 + DWT": Loss("l1", dwt=0.1),
    "L2 + HF + DCT": Loss("l2", hf=1, dct=0.001),
    "all at once": Loss("l2", hf=0.5, dct=0.3, fft=0.7, dwt=0.9),
}


def gaussian_5x5() -> Tensor:
    row = torch.exp(-(torch.arange(-2.0, 3.0, dtype=torch.float64) ** 2) / (2 * 1.1**2))
    row /= row.sum()
    return (row[:, None] * row).expand(3, 1, 5, 5)


def dct_matrix() -> Tensor:
    k, n = torch.arange(8.0, dtype=torch.float64)[:, None], torch.arange(8.0, dtype=torch.float64)
    matrix = torch.cos(math.pi * (2 * n + 1) * k / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix


def haar_matrix(size: int) -> Tensor:
    """Rows: sums, then differences, of neighbours; orthonormal except for a factor 1 / sqrt 2.

    The values are integers, so that coefficients that should be zero are exactly zero.
    """
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size // 2):
        matrix[i, 2 * i] = matrix[i, 2 * i + 1] = 1
        matrix[size // 2 + i, 2 * i], matrix[size // 2 + i, 2 * i + 1] = 1, -1
    return matrix


def straightforward(sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
    """Every term in fp64, with matrices and PyTorch's transforms; sides are multiples of 8."""
    d = hr.double() - sr.double()
    h, w = d.shape[2:]
    blurred = F.conv2d(F.pad(d, [2] * 4, mode="reflect"), gaussian_5x5(), groups=3)
    blocks = d.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)
    full = torch.fft.fft2(d, norm="ortho")[..., : w // 2 + 1]
    return {
        "l1": d.abs().mean(),
        "l2": d.square().mean(),
        "hf": (d - blurred).abs().mean(),
        "dct": (dct_matrix() @ blocks @ dct_matrix().T).abs().mean(),
        "fft": (full.real.abs().mean() + full.imag.abs().mean()) / 2,
        "dwt": (haar_matrix(h) @ d @ haar_matrix(w).T).abs().mean() / 2,
    }


def expected(loss: Loss, sr: Tensor, hr: Tensor) -> Tensor:
    terms = straightforward(sr, hr)
    total = sum(getattr(loss, name) * terms[name] for name in ("hf", "dct", "fft", "dwt"))
    return total if loss.pixel == "none" else total + terms[loss.pixel]


def images(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    hr = torch.rand(2, 3, 16, 24)
    return (hr + 0.1 * torch.randn_like(hr)).to(dtype).requires_grad_(), hr.to(dtype)


@pytest.mark.parametrize("name", TAB_8)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values_and_gradients(name: str, dtype: torch.dtype) -> None:
    sr, hr = images(dtype)
    loss = TAB_8[name](sr, hr)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    exact_sr = sr.detach().double().requires_grad_()
    exact = expected(TAB_8[name], exact_sr, hr)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    loss.backward()
    exact.backward()
    assert sr.grad.dtype == dtype
    # Rounded three times: the kernel's part, the other terms, and their sum.
    rounding = (exact_sr.grad.to(dtype).double() - exact_sr.grad).abs().max().item()
    assert_within(sr.grad, exact_sr.grad, rounding, factor=3)


@pytest.mark.parametrize("name", ["L1 + FFT", "L1 + DWT", "L2 + HF + DCT"])
def test_under_autocast_and_with_mixed_dtypes(name: str) -> None:
    """The bf16 output of a network against fp32 images: the values are used without rounding."""
    sr, hr = images()
    half = sr.detach().bfloat16().requires_grad_()
    outside = TAB_8[name](half, hr)
    with torch.autocast("cpu", torch.bfloat16):
        inside = TAB_8[name](half, hr)
    assert torch.equal(inside, outside)
    assert outside.item() == pytest.approx(expected(TAB_8[name], half, hr).item(), rel=1e-5)
    outside.backward()
    assert half.grad.dtype == torch.bfloat16


def test_an_odd_edge_is_reflected() -> None:
    d = torch.randn(1, 3, 7, 5)
    padded = F.pad(d, [0, 1, 0, 1], mode="reflect").double()
    exact = (haar_matrix(8) @ padded @ haar_matrix(6).T).abs().mean() / 2
    loss = Loss("none", dwt=1)
    assert loss(d, 0 * d).item() == pytest.approx(exact.item(), rel=1e-6)
    one = torch.full((1, 3, 1, 1), 0.5)
    assert loss(one, 0 * one).item() == pytest.approx(0.25)  # 2 * 0.5 in one band of four


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"pixel": "huber"}, "pixel must be 'l1', 'l2' or 'none', got 'huber'"),
        ({"hf": -1.0}, "hf must be finite and at least 0, got -1.0"),
        ({"dct": math.nan}, "dct must be finite and at least 0, got nan"),
        ({"fft": math.inf}, "fft must be"),
        ({"dwt": -0.1}, "dwt must be"),
        ({"pixel": "none"}, "at least one is needed"),
    ],
)
def test_invalid_weights(weights: dict, message: str) -> None:
    with pytest.raises(EspanError, match=message):
        Loss(**weights)


@pytest.mark.parametrize("name", ["L1", "L1 + FFT"])
def test_shapes_must_match(name: str) -> None:
    with pytest.raises(EspanError, match=r"sr is \(2, 3, 16, 24\), but hr is \(3, 16, 24\)"):
        TAB_8[name](images()[0], images()[1][0])


def test_the_mask_by_hand() -> None:
    """Six pixels; hr is 0.5 everywhere, so that the error of an output is its distance from 0.5."""
    hr = torch.full((1, 3, 1, 6), 0.5)
    student, teacher = hr.clone(), hr.clone()
    student[..., 0], teacher[..., 0] = 0.60, 0.55  # worse by 0.05: learned
    student[..., 1], teacher[..., 1] = 0.56, 0.445  # worse by 0.005: not enough
    student[..., 2], teacher[..., 2] = 0.52, 0.60  # the teacher is worse
    student[..., 3], teacher[..., 3] = 0.40, 0.56  # on the other side; worse by 0.04: learned
    # One channel much worse, two a little better, in the mean worse by 0.02: all are learned.
    student[0, :, 0, 4] = torch.tensor([0.60, 0.51, 0.51])
    teacher[0, :, 0, 4] = torch.tensor([0.50, 0.53, 0.53])
    # The same with the mean worse by 0.01 - 1/300: none are.
    student[0, :, 0, 5] = torch.tensor([0.56, 0.51, 0.51])
    teacher[0, :, 0, 5] = torch.tensor([0.50, 0.53, 0.53])
    squares = [3 * 0.05**2, 0, 0, 3 * 0.16**2, 0.1**2 + 2 * 0.02**2, 0]
    student.requires_grad_()
    teacher.requires_grad_()
    loss = self_distillation(student, teacher, hr)
    assert loss.item() == pytest.approx(sum(squares) / 18, rel=1e-5)
    loss.backward()
    assert teacher.grad is None
    gradient = 2 * (student - teacher).detach() / 18
    learned = torch.tensor([1, 0, 0, 1, 1, 0])
    torch.testing.assert_close(student.grad, gradient * learned)


def test_the_threshold_counts() -> None:
    student, teacher, hr = (torch.full((1, 3, 1, 1), v) for v in (0.6, 0.55, 0.5))
    for threshold, value in [(0.0, 0.05**2), (0.049, 0.05**2), (0.051, 0.0)]:
        loss = self_distillation(student, teacher, hr, threshold=threshold)
        assert loss.item() == pytest.approx(value, rel=1e-5)
    assert self_distillation(teacher, teacher, hr, threshold=0.0).item() == 0


def test_distillation_against_fp64_and_in_bf16() -> None:
    rng = np.random.default_rng(0)
    student, teacher, hr = (rng.random((2, 3, 9, 7), dtype=np.float32) for _ in range(3))
    errors = [np.abs(x.astype(np.float64) - hr).mean(1, keepdims=True) for x in (student, teacher)]
    mask = errors[0] - errors[1] > 0.01
    assert 0.2 < mask.mean() < 0.8
    exact = np.mean(((teacher.astype(np.float64) - student) * mask) ** 2)
    tensors = [torch.from_numpy(x) for x in (student, teacher, hr)]
    assert self_distillation(*tensors).item() == pytest.approx(exact, rel=1e-6)
    low = self_distillation(tensors[0].bfloat16(), tensors[1].bfloat16(), tensors[2])
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(exact, rel=0.02)


def test_distillation_arguments() -> None:
    x = torch.rand(1, 3, 4, 4)
    with pytest.raises(EspanError, match=r"differ in shape: \(1, 3, 4, 4\), \(3, 4, 4\), "):
        self_distillation(x, x[0], x)
    with pytest.raises(EspanError, match="threshold must be 0 or more, got -1"):
        self_distillation(x, x, x, threshold=-1)
