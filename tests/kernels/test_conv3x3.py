"""The convolution for training, on every CPU path, and its behaviour as a PyTorch op."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from espan_kernels import _library, conv3x3
from tests.kernels import winograd_reference
from tests.kernels.winograd_bound import AT, BT, G
from tests.kernels.winograd_reference import WINOGRAD
from tests.tolerance import assert_accurate

ops = torch.ops.espan
META = "meta"
compiled = pytest.mark.skipif(_library.compiled is None, reason=_library.why_not_compiled)
# Images, inputs, outputs, height, width: of less than a tile, with one row of tiles, with several
# rows in a block of 28 tiles, with several blocks in a row, and with several parts (280 tiles).
SIZES = (
    (1, 1, 1, 1, 1),
    (2, 3, 5, 7, 9),
    (1, 16, 32, 1, 115),
    (3, 28, 48, 5, 40),
    (2, 64, 26, 13, 4),
    (1, 4, 6, 3, 260),
    (6, 9, 12, 48, 48),
)


def inputs(n: int, c: int, outputs: int, h: int, w: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Feature maps, weights, biases and a gradient of the result."""
    generator = torch.Generator().manual_seed(n + c + outputs + h + w)
    shapes = (n, c, h, w), (outputs, c, 3, 3), (outputs,), (n, outputs, h, w)
    x, weight, bias, grad = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, weight, bias, grad


def weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """By Winograd, in the dtype of `x`: G^T [ sum over tiles of (A g A^T) * (B^T d B) ] G."""
    height, width = x.shape[2:]
    rows, columns = -(-height // 4), -(-width // 4)
    right, below = 4 * columns - width, 4 * rows - height
    at, bt = AT.to(x.dtype), BT.to(x.dtype)
    tiles = bt @ F.pad(x, (1, right + 1, 1, below + 1)).unfold(2, 6, 4).unfold(3, 6, 4) @ bt.T
    grads = at.T @ F.pad(grad, (0, right, 0, below)).unfold(2, 4, 4).unfold(3, 4, 4) @ at
    # Products over (image, row, column), one for each of the 36 positions.
    a = grads.permute(4, 5, 1, 0, 2, 3).flatten(3).flatten(0, 1)
    b = tiles.permute(4, 5, 0, 2, 3, 1).flatten(2, 4).flatten(0, 1)
    sums = (a @ b).unflatten(0, (6, 6)).permute(2, 3, 0, 1)
    return G.T.to(x.dtype) @ sums @ G.to(x.dtype)


def check(x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor) -> None:
    """Check the op and its gradients by the tolerance rule."""

    def forward(dtype: torch.dtype) -> Tensor:
        shift = None if bias is None else bias.to(dtype)
        if dtype == torch.float64:
            return F.conv2d(x.to(dtype), weight.to(dtype), shift, padding=1)
        return winograd_reference.conv3x3(x.to(dtype), weight.to(dtype), shift)

    def backward(dtype: torch.dtype) -> Tensor:
        swapped = weight.to(dtype).flip(2, 3).transpose(0, 1)
        if dtype == torch.float64:
            return F.conv2d(grad.to(dtype), swapped, padding=1)
        return winograd_reference.conv3x3(grad.to(dtype), swapped, None)

    def gradient(dtype: torch.dtype) -> Tensor:
        if dtype == torch.float64:
            return conv2d_weight(x.to(dtype), list(weight.shape), grad.to(dtype), padding=1)
        return weight_gradient(x.to(dtype), grad.to(dtype))

    leaves = [t.detach().requires_grad_() for t in (x, weight, bias) if t is not None]
    y = conv3x3(*leaves)
    assert_accurate(y, forward, factor=WINOGRAD)
    found = torch.autograd.grad(y, leaves, grad)
    assert_accurate(found[0], backward, factor=WINOGRAD)
    assert_accurate(found[1], gradient, factor=WINOGRAD)
    if bias is not None:
        assert_accurate(found[2], lambda dtype: grad.to(dtype).sum((0, 2, 3)))


@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients(cpu_path: str, size: tuple[int, int, int, int, int]) -> None:
    check(*inputs(*size))


def test_without_bias(cpu_path: str) -> None:
    x, weight, _, grad = inputs(2, 8, 4, 6, 10)
    check(x, weight, None, grad)


def results(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Of both ops."""
    return ops.conv3x3(x, weight, bias), *ops.conv3x3_weight_gradient(grad, x)


def assert_equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def views(t: Tensor) -> dict[str, Tensor]:
    """The values of `t` in several memory layouts, with NaN in every gap."""
    n, c, h, w = t.shape
    nan = float("nan")
    wide = torch.full((n, h + 3, w + 5, c + 4), nan)
    wide[:, 1 : h + 1, 2 : w + 2, 3 : c + 3] = t.permute(0, 2, 3, 1)
    stepped = torch.full((n, c, h, 2 * w), nan)
    stepped[..., 1::2] = t
    return {
        "contiguous": t.contiguous(),
        "channels_last": t.contiguous(memory_format=torch.channels_last),
        "cropped channels_last": wide[:, 1 : h + 1, 2 : w + 2, 3 : c + 3].permute(0, 3, 1, 2),
        "stepped": stepped[..., 1::2],
        "transposed": t.transpose(2, 3).contiguous().transpose(2, 3),
    }


@compiled
@pytest.mark.parametrize("layout", list(views(torch.zeros(1, 1, 1, 1))))
def test_layouts(layout: str) -> None:
    """All give the same bits; gaps are not read."""
    x, weight, bias, grad = inputs(2, 12, 20, 9, 11)
    expected = results(x, weight, bias, grad)
    x, grad, weight = views(x)[layout], views(grad)[layout], views(weight)[layout]
    assert_equal(results(x, weight, bias, grad), expected)


@compiled
def test_biases_with_gaps() -> None:
    x, weight, bias, _ = inputs(1, 3, 6, 4, 4)
    gaps = torch.stack([bias, torch.full_like(bias, float("nan"))], dim=1)[:, 0]
    assert torch.equal(ops.conv3x3(x, weight, gaps), ops.conv3x3(x, weight, bias))


@pytest.mark.parametrize("size", [(0, 3, 4, 5, 6), (2, 3, 4, 0, 6), (2, 3, 4, 5, 0)])
def test_empty(cpu_path: str, size: tuple[int, int, int, int, int]) -> None:
    x, weight, bias, grad = inputs(*size)
    assert ops.conv3x3(x, weight, bias).shape == grad.shape
    grad_weight, grad_bias = ops.conv3x3_weight_gradient(grad, x)
    assert torch.equal(grad_weight, torch.zeros_like(weight))
    assert torch.equal(grad_bias, torch.zeros_like(bias))


@compiled
@pytest.mark.parametrize("size", [(3, 28, 48, 5, 40), (6, 9, 12, 48, 48)])
def test_memory_of_earlier_calls_is_not_read(size: tuple[int, int, int, int, int]) -> None:
    """Workspace and outputs start with NaN."""
    x, weight, bias, grad = inputs(*size)
    expected = results(x, weight, bias, grad)
    nan = torch.full_like(x, float("nan"))
    ops.conv3x3(nan, weight, bias)
    ops.conv3x3_weight_gradient(torch.full_like(grad, float("nan")), nan)
    del nan
    assert_equal(results(x, weight, bias, grad), expected)


@compiled
def test_nothing_is_written_beside_the_output() -> None:
    """The results of neighbouring images and pixels are those of the images alone."""
    x, weight, bias, _ = inputs(3, 5, 7, 6, 10)
    together = ops.conv3x3(x, weight, bias)
    alone = torch.cat([ops.conv3x3(image[None], weight, bias) for image in x])
    assert torch.equal(together, alone)


@compiled
def test_thread_count_does_not_change_the_result(threads: None) -> None:
    x, weight, bias, grad = inputs(6, 9, 12, 48, 48)
    torch.set_num_threads(1)
    expected = results(x, weight, bias, grad)
    for count in (2, 5):
        torch.set_num_threads(count)
        assert_equal(results(x, weight, bias, grad), expected)


def test_only_the_gradients_that_are_needed() -> None:
    x, weight, bias, grad = inputs(1, 3, 4, 5, 6)
    expected = torch.autograd.functional.vjp(conv3x3, (x, weight, bias), grad)[1]
    for i, wanted in enumerate(expected):
        leaves = [t.clone().requires_grad_(i == j) for j, t in enumerate((x, weight, bias))]
        conv3x3(*leaves).backward(grad)
        assert [t.grad is not None for t in leaves] == [i == j for j in range(3)]
        assert torch.equal(leaves[i].grad, wanted)


@compiled
def test_other_dtypes_and_autocast_are_left_to_pytorch() -> None:
    x, weight, bias, _ = inputs(1, 3, 4, 5, 6)
    for dtype in (torch.float64, torch.bfloat16):
        cast = x.to(dtype), weight.to(dtype), bias.to(dtype)
        assert torch.equal(conv3x3(*cast), F.conv2d(*cast, padding=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv3x3(x, weight, bias).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="must be"):
        ops.conv3x3(x.double(), weight.double(), bias.double())


@compiled
def test_opcheck() -> None:
    x, weight, bias, grad = inputs(2, 3, 4, 5, 6)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    torch.library.opcheck(ops.conv3x3.default, tuple(leaves))
    torch.library.opcheck(ops.conv3x3.default, (x.detach(), weight.detach(), None))
    torch.library.opcheck(ops.conv3x3_weight_gradient.default, (grad, x.detach()))


def test_the_reference_is_the_same_op() -> None:
    x, weight, bias, grad = inputs(2, 3, 4, 5, 6)
    y = _library.references["conv3x3"](x, weight, bias)
    gradients = _library.references["conv3x3_weight_gradient"](grad, x)
    assert y.stride() == ops.conv3x3(x, weight, bias).stride()
    torch.testing.assert_close(y, ops.conv3x3(x, weight, bias))
    torch.testing.assert_close(gradients, ops.conv3x3_weight_gradient(grad, x))


@compiled
def test_compile() -> None:
    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(conv3x3(2 * x, weight, bias))

    *leaves, grad = inputs(2, 3, 4, 5, 6)
    expected = torch.autograd.functional.vjp(layer, tuple(leaves), grad)
    compiled_layer = torch.compile(layer, fullgraph=True)
    found = torch.autograd.functional.vjp(compiled_layer, tuple(leaves), grad)
    torch.testing.assert_close(found, expected)


@compiled
def test_forward_mode() -> None:
    x, direction = torch.randn(2, 1, 4, 5, 6)
    weight = torch.randn(3, 4, 3, 3)
    _, tangent = torch.func.jvp(lambda x: conv3x3(x, weight), (x,), (direction,))
    torch.testing.assert_close(tangent, conv3x3(direction, weight), rtol=1e-4, atol=1e-4)


def test_second_derivative_of_weights_is_rejected() -> None:
    x, weight, bias, _ = inputs(1, 2, 2, 4, 4)
    weight.requires_grad_()
    (first,) = torch.autograd.grad(
        conv3x3(x, weight, bias).square().sum(), weight, create_graph=True
    )
    with pytest.raises(RuntimeError, match="espan::conv3x3 has no second derivative"):
        first.sum().backward()


@compiled
@pytest.mark.parametrize("function", ["op", "reference"])
@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        ((2, 3, 4), (5, 3, 3, 3), (5,), r"x has shape \[2, 3, 4\]; it must be \[N, C, H, W\]"),
        ((2, 0, 4, 4), (5, 0, 3, 3), (5,), r"x has shape .* with C >= 1"),
        ((2, 3, 4, 4), (5, 4, 3, 3), (5,), r"weight has shape .* \[outputs, 3, 3, 3\]"),
        ((2, 3, 4, 4), (5, 3, 5, 5), (5,), r"weight has shape \[5, 3, 5, 5\]"),
        ((2, 3, 4, 4), (0, 3, 3, 3), (0,), r"weight has shape \[0, 3, 3, 3\]"),
        ((2, 3, 4, 4), (5, 3, 3, 3), (4,), r"bias has dtype float32 and shape \[4\]; .* \[5\]"),
    ],
)
def test_bad_shapes(
    x: tuple[int, ...],
    weight: tuple[int, ...],
    bias: tuple[int, ...],
    message: str,
    function: str,
) -> None:
    call = ops.conv3x3 if function == "op" else _library.references["conv3x3"]
    with pytest.raises(RuntimeError, match=f"^espan::conv3x3: {message}"):
        call(torch.zeros(x), torch.zeros(weight), torch.zeros(bias))


@compiled
@pytest.mark.parametrize("function", ["op", "reference"])
def test_bad_dtypes_devices_and_gradients(function: str) -> None:
    x, weight, bias, grad = inputs(2, 3, 4, 5, 6)
    conv, gradient = ops.conv3x3, ops.conv3x3_weight_gradient
    if function == "reference":
        conv = _library.references["conv3x3"]
        gradient = _library.references["conv3x3_weight_gradient"]
    for arguments, message in (
        ((x.half(), weight, bias), "espan::conv3x3: x has dtype float16; it must be float32"),
        ((x, weight.half(), bias), "espan::conv3x3: weight has dtype float16"),
        ((x, weight, bias.half()), "espan::conv3x3: bias has dtype float16"),
        ((x, weight.to(META), bias), "espan::conv3x3: weight is on .*; it must be on the device"),
    ):
        with pytest.raises(RuntimeError, match=message):
            conv(*arguments)
    for arguments, message in (
        ((grad, x[..., 1:]), r"grad has shape .*; it must be \[2, outputs, 5, 5\]"),
        ((grad[:1], x), r"grad has shape .*; it must be \[2, outputs, 5, 6\]"),
        ((grad[0], x), r"grad has shape \[4, 5, 6\]"),
        ((grad, x.half()), "x has dtype float16"),
    ):
        with pytest.raises(RuntimeError, match=f"^espan::conv3x3_weight_gradient: {message}"):
            gradient(*arguments)
