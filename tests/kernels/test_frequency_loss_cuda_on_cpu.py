"""The source of the loss's CUDA kernels on the CPU: values, borders, barriers, bounds."""

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.emulator.build import library, plant
from tests.kernels import frequency_loss_cases as cases

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
Loss = Callable[..., tuple[Tensor, Tensor, Tensor]]


def cuda_headers() -> Path:
    if home := os.environ.get("CUDA_HOME"):
        return Path(home) / "include"
    if (nvcc := shutil.which("nvcc")) is None:
        pytest.skip("there is no CUDA toolkit, whose headers this needs")
    output = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True).stderr
    top = re.search(r"TOP=(.*)", output)
    assert top is not None
    return Path(top[1]) / "include"


def build(bug: tuple[str, str] | None = None) -> ctypes.CDLL:
    """Build the emulated kernels; with a bug in frequency_loss.cuh, those of float32 only."""
    csrc = ROOT / "csrc"
    files = [csrc / "frequency_loss.h", *sorted((csrc / "cuda").glob("*.*h"))]
    sources = {str(p.relative_to(csrc)): p.read_text() for p in files}
    sources["emulator/machine.h"] = (ROOT / "tests/emulator/machine.h").read_text()
    name = "frequency_loss_cuda_on_cpu"
    sources[f"{name}.cpp"] = (HERE / f"{name}.cpp").read_text()
    options = ["-w", f"-I{cuda_headers()}"]
    if bug is not None:
        plant(sources, ("cuda/frequency_loss.cuh", *bug))
        options.append("-DESPAN_FLOAT32_ONLY")
    return ctypes.CDLL(str(library(name, sources, options)))


@pytest.fixture(scope="module")
def kernels() -> ctypes.CDLL:
    return build()


def inside(t: Tensor, margin: int) -> tuple[Tensor, Tensor]:
    """A buffer of NaN, and a copy of ``t`` inside it, ``margin`` elements from its start."""
    buffer = torch.full((t.numel() + 200,), float("nan"), dtype=t.dtype)
    view = buffer[margin : margin + t.numel()].view(t.shape)
    return buffer, view.copy_(t)


def emulated(kernels: ctypes.CDLL, order: int, margin: int = 64, value_only: bool = False) -> Loss:
    """The op on the emulated kernels; NaN around every array reveals accesses out of bounds."""

    def run(
        sr: Tensor, hr: Tensor, scale: Tensor, *options: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, c, height, width = sr.shape
        (_, sr), (_, hr) = inside(sr, margin), inside(hr, margin)
        buffer, grad = inside(torch.full_like(sr, float("nan")), margin)
        loss, terms = torch.full((), float("nan")), torch.full((3,), float("nan"))
        sums = torch.full((n * c * (height // 16 + 1) * (width // 16 + 1) * 3,), float("nan"))
        aligned = width % (16 // sr.element_size()) == 0
        aligned = aligned and all(t.data_ptr() % 16 == 0 for t in (sr, hr, grad))
        pointers = [
            ctypes.c_void_p(t.data_ptr())
            for t in (sr, hr, grad.new_empty(0) if value_only else grad, scale, sums, loss, terms)
        ]
        sizes = [ctypes.c_int64(size) for size in (n * c, height, width)]
        weights = [ctypes.c_double(weight) for weight in options[:3]]
        flags = [ctypes.c_bool(options[3]), ctypes.c_bool(aligned), ctypes.c_uint(order)]
        function = getattr(kernels, f"loss_{str(sr.dtype).removeprefix('torch.')}")
        function(*pointers, *sizes, *weights, *flags)
        # Recomputing non-finite tiles would hide NaN that was read too early from shared memory.
        assert (kernels.loss_exact_tiles() > 0) != (sr.isfinite().all() and hr.isfinite().all())
        assert buffer[:margin].isnan().all()
        assert buffer[margin + sr.numel() :].isnan().all()
        return loss, terms, grad

    return run


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_and_gradients(kernels: ctypes.CDLL, dtype: torch.dtype) -> None:
    for i, shape in enumerate(cases.SHAPES[FLOATS.index(dtype) :: 2]):
        sr, hr = cases.inputs(*shape, dtype=dtype)
        cases.check(emulated(kernels, order=i % 4, margin=64 + i % 2), sr, hr, squared=i % 3 == 0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_nine_tiles(kernels: ctypes.CDLL, dtype: torch.dtype) -> None:
    """One tile inside the image and eight at its edges; 16-byte loads."""
    sr, hr = cases.inputs(1, 1, 136, 264, dtype=dtype)
    cases.check(emulated(kernels, order=2), sr, hr, 65536.0)


def test_equal_images_and_constant_differences(kernels: ctypes.CDLL) -> None:
    """The derivative of |0| is 0; a constant difference has exactly no high frequencies."""
    run, one = emulated(kernels, order=3), torch.ones(())
    sr = torch.rand(1, 1, 72, 144)
    for squared in (True, False):
        loss, terms, gradient = run(sr, sr, one, 1.0, 1.0, 0.001, squared)
        assert not loss
        assert not terms.any()
        assert not gradient.any()
    _, terms, gradient = run(sr * 0, torch.full_like(sr, 0.3), one, 0.0, 1.0, 0.0, True)
    assert not terms[1]
    assert not gradient.any()


def test_value_alone(kernels: ctypes.CDLL) -> None:
    sr, hr = cases.inputs(2, 1, 24, 32)
    options = tuple(cases.OPTIONS[1].values())
    both = [
        emulated(kernels, order=0, value_only=alone)(sr, hr, torch.ones(()), *options)
        for alone in (False, True)
    ]
    assert torch.equal(both[0][0], both[1][0])
    assert torch.equal(both[0][1], both[1][1])
    assert both[1][2].isnan().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(kernels: ctypes.CDLL, value: float) -> None:
    cases.check_special(emulated(kernels, order=1), value)


def test_order_of_warps_does_not_change_the_result(kernels: ctypes.CDLL) -> None:
    sr, hr = cases.inputs(1, 1, 73, 137)
    options = tuple(cases.OPTIONS[1].values())
    first, *others = (
        emulated(kernels, order)(sr, hr, torch.ones(()), *options) for order in (0, 1, 2, 3)
    )
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def wavefronts(kernels: ctypes.CDLL, kind: str) -> tuple[int, int]:
    """The wavefronts of the last run: the minimum, and the actual number."""
    fewest, needed = ctypes.c_uint64(), ctypes.c_uint64()
    kernels.loss_wavefronts(kind.encode(), ctypes.byref(fewest), ctypes.byref(needed))
    return fewest.value, needed.value


# For a whole tile: the minimum number of wavefronts, and the additional ones due to conflicts.
ACCESSES = {
    # Besides its own 16 bytes, a thread reads 8 of every 16, which are all in half of the banks.
    "ld.shared difference": (824, 688),
    "st.shared signs": (148, 24),
    "ldmatrix": (544, 0),
    "ld.shared pairs": (512, 0),
    "st.shared pairs": (256, 0),
    "ld.shared gradient": (256, 0),
}


@pytest.mark.parametrize(
    ("dtype", "of_stores"), [(torch.float32, 0), (torch.float16, 288), (torch.bfloat16, 288)]
)
def test_bank_conflicts(kernels: ctypes.CDLL, dtype: torch.dtype, of_stores: int) -> None:
    sr, hr = cases.inputs(1, 1, 64, 128, dtype=dtype)
    emulated(kernels, order=0)(sr, hr, torch.ones(()), *cases.OPTIONS[0].values())
    expected = ACCESSES | {"st.shared difference": (288, of_stores)}
    for kind, (fewest, conflicts) in expected.items():
        assert wavefronts(kernels, kind) == (fewest, fewest + conflicts), kind


@pytest.mark.slow
def test_rows_of_an_even_number_of_16_bytes_conflict() -> None:
    right = "kSignRow = kLossColumns + 2 * kHalo"
    kernels = build((right, right + " + 8"))
    sr, hr = cases.inputs(1, 1, 64, 128)
    emulated(kernels, order=0)(sr, hr, torch.ones(()), *cases.OPTIONS[0].values())
    fewest, _ = ACCESSES["ldmatrix"]
    assert wavefronts(kernels, "ldmatrix") == (fewest, 2 * fewest)


PLANTED = {
    "no barrier after the load": ("s.signs)[i] = 0;\n  __syncthreads();", "s.signs)[i] = 0;"),
    "no barrier after the signs": ("  exact = barrier_any(exact);", ""),
    "no barrier before the gradient": (
        "    __syncthreads();\n    if (t.y + t.rows >",
        "    if (t.y + t.rows >",
    ),
    "a halo one short": ("row < rows - kHalo; row", "row < rows - kHalo - 1; row"),
    "no weight at the edge": ("    v = __hadd(v, v);", ""),
    "padding not folded": ("t.x + t.columns > t.width) fold_padding(t, s);", "false);"),
    "half of each product": ("    multiply_tf32(y, rest, forward[0]);", ""),
    "half of each weight": ("multiply_24(v[k], b[0][0], b[1][0], b[2][0], along[1][k]);", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str) -> None:
    kernels = build(PLANTED[bug])
    sr, hr = cases.inputs(1, 1, 73, 137)

    def check() -> None:
        for order in range(4):
            cases.check(emulated(kernels, order), sr, hr)

    with pytest.raises(AssertionError):
        check()
