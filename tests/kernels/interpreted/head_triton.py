"""The head's Triton kernel on the CPU, in Triton's interpreter.

pytest does not collect this file: TRITON_INTERPRET must be set before Triton is imported, so
test_triton_interpreted.py runs it in a subprocess.  The interpreter has no bfloat16.
"""

import pytest
import torch

import espan_kernels.triton.head  # noqa: F401  (defines torch.ops.espan_triton)
from espan_kernels import pack_head
from espan_kernels.head import sizes
from espan_kernels.triton.conv import BLOCK
from tests.kernels.head_cases import ACTIVATIONS, LAYOUTS, MEAN, check, image_of

head = torch.ops.espan_triton.head
F16 = torch.float16
TYPES = (torch.uint8, F16, torch.float32)


@pytest.mark.parametrize(
    ("channels", "kernel"),
    [
        (1, 1),
        (26, 3),
        (32, 9),
        (48, 7),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((28, 5), (52, 11), (64, 1), (64, 11))
        ),
    ],
)
def test_channels_and_kernels(channels: int, kernel: int) -> None:
    image = image_of((2, 3, 5), TYPES[kernel % 3], LAYOUTS[kernel // 2 % 3])
    check(head, channels, kernel, F16, image)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype) -> None:
    with_mean = (TYPES.index(dtype) + LAYOUTS.index(layout)) % 2 == 0
    check(head, 28, 3, F16, image_of((2, 6, 7), dtype, layout), with_mean=with_mean)


def test_sizes() -> None:
    """One pixel, one row, one column; below, at and above a program's share of the pixels."""
    for shape in ((1, 1, 1), (1, 1, 7), (2, 9, 1), (1, 4, BLOCK), (1, 5, BLOCK + 6)):
        check(head, 32, 5, F16, image_of(shape, torch.uint8, "interleaved"))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str) -> None:
    image = image_of((1, 6, 5), F16, "planar")
    check(head, 28, 3, F16, image, activation=activation)


@pytest.mark.parametrize(
    ("unshuffle", "dtype"),
    [
        (2, torch.uint8),
        (4, F16),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((2, F16), (2, torch.float32), (4, torch.uint8), (4, torch.float32))
        ),
    ],
)
def test_unshuffle(unshuffle: int, dtype: torch.dtype) -> None:
    """Padding channels, two groups of channels, each layout; with and without the mean."""
    i = TYPES.index(dtype)
    image = image_of((2, 9, 6), dtype, LAYOUTS[i])
    options = {"with_mean": i != unshuffle // 2, "unshuffle": unshuffle}
    check(head, (5, 48, 64)[i], 3, F16, image, activation=ACTIVATIONS[i], **options)


@pytest.mark.parametrize("unshuffle", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_unshuffled_sizes(unshuffle: int) -> None:
    """One square, and each number of pixels that are missing to whole squares."""
    u = unshuffle
    for shape in ((1, u, u), (2, 2 * u - 1, u), (1, u + 1, 2 * u - 1), (1, u, u * BLOCK + 2)):
        check(head, 16, 3, F16, image_of(shape, torch.uint8, "interleaved"), unshuffle=u)


def test_extent_of_a_pixels_influence_unshuffled() -> None:
    """A NaN pixel affects its square, that of its reflection, and their neighbours."""
    image = torch.zeros(1, 3, 15, 19)
    image[0, 1, 13, 9] = float("nan")  # row 13 is also row 15
    packed = pack_head(torch.ones(16, 48, 3, 3), torch.ones(16), F16)
    spoilt = head(image, packed, None, 16, 3, 4).isnan().all(dim=3)[0]
    expected = torch.zeros(4, 5, dtype=torch.bool)
    expected[2:4, 1:4] = True
    assert torch.equal(spoilt, expected)


def test_expanded_gray() -> None:
    image = image_of((1, 6, 5), torch.float32, "planar")[:, :1].expand(-1, 3, -1, -1)
    check(head, 32, 3, F16, image)


def test_extent_of_a_pixels_influence() -> None:
    """A NaN pixel affects the features that its taps reach, and no others."""
    image = torch.zeros(1, 3, 9, 11)
    image[0, 0, 4, 5] = float("nan")
    packed = pack_head(torch.ones(16, 3, 5, 5), torch.ones(16), F16)
    spoilt = head(image, packed, None, 16, 5).isnan().all(dim=3)[0]
    expected = torch.zeros(9, 11, dtype=torch.bool)
    expected[2:7, 3:8] = True
    assert torch.equal(spoilt, expected)


def test_memory_outside_is_not_accessed() -> None:
    """Runs the kernel itself in the middle of buffers of NaN."""
    from espan_kernels.triton.head import head_kernel

    image = image_of((1, 5, 6), F16, "strided")  # surrounded by NaN
    p, kernel = 32, 9
    packed = pack_head(torch.randn(28, 3, 9, 9) / 9, torch.randn(28), F16)
    expected = head(image, packed, MEAN, 28, kernel)
    weight, bias = sizes(28, kernel).split(packed)
    margin = 8 * p

    def within_nan(t: torch.Tensor) -> torch.Tensor:
        whole = torch.full((t.numel() + 2 * margin,), float("nan"), dtype=t.dtype)
        whole[margin:-margin] = t.flatten()
        return whole[margin:-margin]

    y = torch.full((expected.numel() + 2 * margin,), float("nan"), dtype=F16)
    head_kernel[(1, 1)](
        image,
        within_nan(weight),
        within_nan(bias),
        within_nan(MEAN),
        y[margin:],
        5,
        6,
        1,
        *image.stride(),
        kernel=kernel,
        activation="none",
        p=p,
        depth=32,
        columns=p,
        rows=8,
        block=BLOCK,
    )
    assert torch.equal(y[margin:-margin].view(expected.shape), expected)
    assert y.isnan().sum() == 2 * margin


def test_memory_outside_is_not_accessed_unshuffled() -> None:
    """Runs the kernel itself in the middle of buffers of NaN."""
    from espan_kernels.triton.unshuffle import unshuffled_head_kernel

    image = image_of((1, 7, 9), F16, "strided")  # surrounded by NaN
    p = 32
    packed = pack_head(torch.randn(28, 48, 3, 3) / 20, torch.randn(28), F16)
    expected = head(image, packed, MEAN, 28, 3, 4)
    assert expected.isfinite().all()
    weight, bias = sizes(28, 3, 4).split(packed)
    margin = 8 * p

    def within_nan(t: torch.Tensor) -> torch.Tensor:
        whole = torch.full((t.numel() + 2 * margin,), float("nan"), dtype=t.dtype)
        whole[margin:-margin] = t.flatten()
        return whole[margin:-margin]

    y = torch.full((expected.numel() + 2 * margin,), float("nan"), dtype=F16)
    unshuffled_head_kernel[(1, 1)](
        image,
        within_nan(weight),
        within_nan(bias),
        within_nan(MEAN),
        y[margin:],
        7,
        9,
        1,
        *image.stride(),
        unshuffle=4,
        activation="none",
        p=p,
        columns=p,
        rows=4,
        block=BLOCK,
    )
    assert torch.equal(y[margin:-margin].view(expected.shape), expected)
    assert y.isnan().sum() == 2 * margin


def test_bad_inputs() -> None:
    image = torch.rand(1, 3, 4, 5)
    packed = pack_head(torch.randn(20, 3, 3, 3), torch.randn(20), torch.float32)
    with pytest.raises(RuntimeError, match=r"image has shape \[1, 2, 4, 5\]"):
        head(image[:, :2], packed.half(), None, 20, 3)


def test_float32_runs_the_reference() -> None:
    check(head, 26, 3, torch.float32, image_of((1, 4, 5), torch.uint8, "planar"))
