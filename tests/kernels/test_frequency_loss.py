"""The frequency-aware loss on every CPU path, and its behaviour as a PyTorch op."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from espan_kernels import (
    _library,
    frequency_loss,
    frequency_loss_gradient,
    frequency_loss_reference,
    reference,
)
from tests.kernels import frequency_loss_cases as cases

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
ops = torch.ops.espan
ONE = torch.ones(())


@pytest.fixture(params=["portable", "avx2", "avx512"])
def cpu_path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every CPU path that this machine can run."""
    if _library.compiled is None:
        pytest.skip(_library.why_not_compiled)
    try:
        _library.compiled.select_cpu_path(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    _library.compiled.select_cpu_path("auto")


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_and_gradients(cpu_path: str, dtype: torch.dtype) -> None:
    for i, shape in enumerate(cases.SHAPES[FLOATS.index(dtype) :: 2]):
        sr, hr = cases.inputs(*shape, dtype=dtype)
        cases.check(ops.frequency_loss_gradient, sr, hr, squared=i % 2 == 0)


@pytest.mark.parametrize("options", cases.OPTIONS, ids=str)
def test_weights(options: dict[str, Any]) -> None:
    cases.check(ops.frequency_loss_gradient, *cases.inputs(2, 3, 20, 28), **options)


@pytest.mark.parametrize("scale", [-3.7, 65536.0, 0.0])
def test_scales(scale: float) -> None:
    cases.check(ops.frequency_loss_gradient, *cases.inputs(2, 3, 20, 28), scale)


@pytest.mark.slow
@pytest.mark.parametrize("options", cases.OPTIONS, ids=str)
@pytest.mark.parametrize("scale", [-3.7, 65536.0, 0.0])
def test_weights_at_all_scales(options: dict[str, Any], scale: float) -> None:
    cases.check(ops.frequency_loss_gradient, *cases.inputs(2, 3, 20, 28), scale, **options)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS)
def test_both_pixel_terms_at_all_sizes(cpu_path: str, dtype: torch.dtype) -> None:
    for shape in cases.SHAPES:
        for squared in (True, False):
            images = cases.inputs(*shape, dtype=dtype)
            cases.check(ops.frequency_loss_gradient, *images, squared=squared)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite(cpu_path: str, value: float) -> None:
    cases.check_special(ops.frequency_loss_gradient, value)


def test_equal_images_and_constant_differences(cpu_path: str) -> None:
    """The derivative of |0| is 0; a constant difference has exactly no high frequencies."""
    sr = torch.rand(1, 2, 19, 21)
    for squared in (True, False):
        loss, terms, gradient = frequency_loss_gradient(sr, sr, ONE, squared=squared)
        assert not loss
        assert not terms.any()
        assert not gradient.any()
    hr = torch.full_like(sr, 0.3)
    _, terms, gradient = frequency_loss_gradient(sr * 0, hr, ONE, pixel=0, dct=0)
    assert not terms[1]
    assert not gradient.any()


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 2, 1, 7), (2, 1, 3, 5), (1, 1, 2, 17)])
@pytest.mark.parametrize("squared", [True, False])
def test_reference_gradient(shape: tuple[int, ...], squared: bool) -> None:
    """The explicit gradient equals that of autograd, which gradcheck confirms."""
    sr, hr = (t.double() for t in cases.inputs(*shape))
    sr.requires_grad_()
    options = cases.OPTIONS[1] | {"squared": squared}
    assert torch.autograd.gradcheck(lambda t: reference.frequency_loss(t, hr, **options)[0], sr)
    loss, terms = reference.frequency_loss(sr, hr, **options)
    (expected,) = torch.autograd.grad(3 * loss, sr)
    written = reference.frequency_loss_gradient(sr.detach(), hr, torch.tensor(3.0), **options)
    torch.testing.assert_close(written, (loss, terms, expected))


def test_reference_equals_a_plain_composition() -> None:
    """A 5x5 convolution with reflected borders, and the DCT like scipy's type 2, ortho."""
    d = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    line = torch.exp(-(torch.arange(-2.0, 3.0).double() ** 2) / (2 * 1.1**2))
    kernel = (line[:, None] * line / line.sum() ** 2).expand(3, 1, 5, 5)
    padded = torch.nn.functional.pad(d, (2, 2, 2, 2), mode="reflect")
    blurred = torch.nn.functional.conv2d(padded, kernel, groups=3)
    torch.testing.assert_close(frequency_loss_reference._blur(d), blurred)
    k = frequency_loss_reference.dct_matrix()
    torch.testing.assert_close(k @ k.T, torch.eye(8, dtype=torch.float64))
    block = frequency_loss_reference._coefficients(d)[1, 2, 8:, 16:]
    torch.testing.assert_close(block, k @ d[1, 2, 8:, 16:] @ k.T)
    assert torch.equal(k[:, 0] > 0, torch.ones(8, dtype=torch.bool))


def _views(t: Tensor) -> dict[str, Tensor]:
    """The values of a (2, 3, 9, 12) tensor in many memory layouts, with NaN in every gap."""

    def inside(shape: tuple[int, ...], index: tuple[slice, ...]) -> Tensor:
        buffer = torch.full(shape, float("nan"), dtype=t.dtype)
        buffer[index] = t
        return buffer[index]

    every = slice(None)
    offset = torch.full((t.numel() + 9,), float("nan"), dtype=t.dtype)
    offset[3 : 3 + t.numel()] = t.flatten()
    return {
        "contiguous": t.clone(),
        "channels_last": t.to(memory_format=torch.channels_last),
        "transposed": t.transpose(2, 3).contiguous().transpose(2, 3),
        "offset": offset[3 : 3 + t.numel()].view(t.shape),
        "cropped": inside((2, 3, 12, 15), (every, every, slice(2, 11), slice(1, 13))),
        "stepped": inside((2, 3, 9, 24), (every, every, every, slice(1, None, 2))),
        "channel slice": inside((2, 5, 9, 12), (every, slice(1, 4))),
    }


LAYOUTS = tuple(_views(torch.zeros(2, 3, 9, 12)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    sr, hr = cases.inputs(2, 3, 9, 12)
    for a, b in ((layout, "contiguous"), ("channels_last", layout), (layout, layout)):
        view_sr, view_hr = _views(sr)[a], _views(hr)[b]
        cases.check(ops.frequency_loss_gradient, view_sr, view_hr)
        assert torch.equal(view_sr, sr)
        assert torch.equal(view_hr, hr)


BOUNDS = Path(__file__).parent / "frequency_loss_bounds.py"


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect by its number")
def test_memory_outside_is_not_read() -> None:
    result = subprocess.run([sys.executable, BOUNDS], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "nothing outside was touched\n"), result.stderr


@pytest.mark.parametrize("incoming", [1.0, 65536.0, -0.3])
def test_autograd_with_any_incoming_gradient(incoming: float) -> None:
    sr, hr = cases.inputs(1, 3, 17, 20, dtype=torch.float16)
    expected = frequency_loss_gradient(sr, hr, torch.tensor(incoming))
    sr.requires_grad_()
    hr.requires_grad_()
    loss, terms = frequency_loss(sr, hr)
    assert torch.equal(loss, expected[0])
    assert torch.equal(terms, expected[1])
    assert not terms.requires_grad
    (loss * incoming).backward()
    assert sr.grad is not None
    assert hr.grad is not None
    assert torch.equal(sr.grad, expected[2])
    assert torch.equal(hr.grad, -expected[2])


def test_small_gradients_are_scaled_before_they_are_rounded() -> None:
    """The gradients of a mean over 16 x 3 x 512 x 512 elements; the test has a sixth of these."""
    sr, hr = cases.inputs(1, 3, 41, 43, dtype=torch.float16)
    many = sr.numel() / (16 * 3 * 512 * 512)
    cases.check(ops.frequency_loss_gradient, sr, hr, many * 65536)
    lost = frequency_loss_gradient(sr, hr, torch.tensor(many))[2]
    kept = frequency_loss_gradient(sr, hr, torch.tensor(many * 65536))[2]
    assert lost.unique().numel() < 20
    assert kept.unique().numel() > 1000


@pytest.mark.slow
@pytest.mark.parametrize("one_pass", [True, False])
def test_float16_under_a_gradient_scaler(one_pass: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hr, noise = (torch.rand(16, 3, 512, 512, generator=generator) for _ in range(2))
    sr = (hr + 0.1 * noise).half().requires_grad_()
    hr = hr.half()
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    if one_pass:
        _, _, gradient = frequency_loss_gradient(sr, hr, scaler.scale(torch.ones(())))
        sr.backward(gradient)
    else:
        scaler.scale(frequency_loss(sr, hr)[0]).backward()
    assert sr.grad is not None
    scale = torch.tensor(65536.0)
    exact = reference.frequency_loss_gradient(sr.detach().double(), hr.double(), scale)[2]
    error = (sr.grad.double() - exact).abs()
    # Some of the 25 million signs are of values that would be zero but for rounding.  Each
    # contributes 2/N at its pixel and less around it.
    assert (error <= 2.0**-11 * exact.abs() + 2.0**-24).double().mean() > 0.999
    assert error.max() < 3 * scale / sr.numel()


def test_forward_mode() -> None:
    sr, hr, direction = (torch.rand(1, 3, 8, 16) for _ in range(3))
    _, tangent = torch.func.jvp(lambda sr: frequency_loss(sr, hr)[0], (sr,), (direction,))
    gradient = frequency_loss_gradient(sr, hr, torch.ones(()))[2]
    torch.testing.assert_close(tangent.float(), (gradient * direction).sum())


def test_second_derivative_is_rejected() -> None:
    sr, hr = cases.inputs(1, 1, 9, 9)
    sr.requires_grad_()
    (first,) = torch.autograd.grad(frequency_loss(sr, hr)[0], sr, create_graph=True)
    with pytest.raises(RuntimeError, match="espan::frequency_loss has no second derivative"):
        first.sum().backward()


@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck(dtype: torch.dtype) -> None:
    sr, hr = cases.inputs(2, 2, 9, 10, dtype=dtype)
    options = tuple(cases.OPTIONS[1].values())
    torch.library.opcheck(ops.frequency_loss.default, (sr.requires_grad_(), hr, *options))
    for layout in (torch.contiguous_format, torch.channels_last):
        tensors = (t.detach().to(memory_format=layout) for t in (sr, hr))
        torch.library.opcheck(ops.frequency_loss_gradient.default, (*tensors, ONE, *options))
    cropped = sr.detach()[:, :, 1:, ::2]
    torch.library.opcheck(
        ops.frequency_loss_gradient.default, (cropped, hr[:, :, 1:, ::2], ONE, *options)
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    def step(sr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
        loss, terms = frequency_loss(sr * 2, hr, hf=0.5)
        return 3 * loss, terms

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic)
    for height in (9, 12):
        sr, hr = cases.inputs(1, 3, height, 10)
        found = []
        for run in (compiled, step):
            leaf = sr.clone().requires_grad_()
            loss, terms = run(leaf, hr)
            loss.backward()
            found.append((loss, terms, leaf.grad))
        torch.testing.assert_close(*found)


def test_export() -> None:
    class Loss(torch.nn.Module):
        def forward(self, sr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return frequency_loss_gradient(sr, hr, torch.ones(()))

    sr, hr = cases.inputs(2, 3, 9, 10)
    shapes = ({2: torch.export.Dim.AUTO},) * 2
    program = torch.export.export(Loss(), (sr, hr), dynamic_shapes=shapes)
    assert "torch.ops.espan.frequency_loss_gradient.default" in str(program.graph_module.code)
    sr, hr = cases.inputs(2, 3, 12, 10)
    torch.testing.assert_close(program.module()(sr, hr), frequency_loss_gradient(sr, hr, ONE))


def test_thread_count_does_not_change_the_result() -> None:
    sr, hr = torch.rand(2, 3, 100, 300), torch.rand(2, 3, 100, 300)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(frequency_loss_gradient(sr, hr, ONE))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_autocast_takes_the_wider_dtype() -> None:
    sr, hr = cases.inputs(1, 1, 9, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = frequency_loss(sr.bfloat16(), hr)
    assert torch.equal(mixed[1], frequency_loss(sr.bfloat16().float(), hr)[1])
    with pytest.raises(RuntimeError, match=r"hr has dtype float32; .* of sr, bfloat16"):
        frequency_loss(sr.bfloat16(), hr)


IMAGE, META = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8, device="meta")


@pytest.mark.parametrize(
    ("sr", "hr", "message"),
    [
        (IMAGE.double(), IMAGE.double(), "sr has dtype float64; it must be float32, float16 or"),
        (IMAGE.byte(), IMAGE.byte(), "sr has dtype (Byte|uint8); it must be float32"),
        (IMAGE[0], IMAGE[0], r"sr has shape \[3, 8, 8\]; it must be \(N, C, H, W\)"),
        (IMAGE[:0], IMAGE[:0], r"sr has shape \[0, 3, 8, 8\]; it must not be empty"),
        (IMAGE, IMAGE[:, :, 1:], r"hr has shape \[1, 3, 7, 8\]; .* of sr, \[1, 3, 8, 8\]"),
        (IMAGE, IMAGE.half(), "hr has dtype float16; .* of sr, float32"),
        (IMAGE, META, "hr is on meta; .* of sr, cpu"),
        (META, META[0], r"hr has shape \[3, 8, 8\]"),
        (META.double(), META.double(), "sr has dtype float64"),
    ],
)
def test_bad_inputs(sr: Tensor, hr: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^espan::frequency_loss: {message}"):
        frequency_loss(sr, hr)
    with pytest.raises(RuntimeError, match=f"^espan::frequency_loss_gradient: {message}"):
        frequency_loss_gradient(sr, hr, torch.ones((), device=sr.device))


@pytest.mark.parametrize("image", [IMAGE, META])
def test_bad_scale(image: Tensor) -> None:
    for scale in (torch.ones(2), torch.ones((), dtype=torch.float64)):
        with pytest.raises(
            RuntimeError, match=r"scale has dtype .*; it must be one float32 number"
        ):
            frequency_loss_gradient(image, image, scale.to(image.device))
    other = "cpu" if image.is_meta else "meta"
    with pytest.raises(RuntimeError, match=r"scale is on .*; it must be on the device of sr"):
        frequency_loss_gradient(image, image, torch.ones((), device=other))


def test_constants_of_cpp_equal_the_reference() -> None:
    near, far = frequency_loss_reference.gaussian()
    constants = {near, far, 1 - 2 * near - 2 * far}
    constants |= {abs(v) for v in frequency_loss_reference.dct_matrix().flatten().tolist()}
    text = (Path(__file__).parents[2] / "csrc" / "frequency_loss.h").read_text()
    found = set(map(float, re.findall(r"\b0\.\d{12,}", text)))
    assert len(found) == 9
    for value in found:
        assert min(abs(value - constant) for constant in constants) < 1e-15, value
