"""Re-parameterised convolutions: the merged kernel equals the branches and can absorb any other."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from espan.branches import EDBBConv, GRepConv, RepMBConv, RepVGGConv, RRRBConv, conv_factory
from espan.errors import EspanError
from espan.models import ESPAN, SPAN, Architecture, Network
from espan.reparameterize import Kernel, Reparameterized, collapse, expand

GREPS = {f"grep {list(ab)}": {"grep": ab} for ab in [(0, 0), (1, 0), (2, 2), (0, 4), (4, 0)]}
GREPS["grep [1, 1] middle 7"] = {"grep": (1, 1), "middle": 7}
OTHERS = ["repvgg", "edbb", "rrrb", "repmbconv"]
KINDS = {**{name: ("grep", options) for name, options in GREPS.items()}}
KINDS |= {name: (name, {}) for name in OTHERS}
# Sizes as in a network: a block, the head, the upsampling, and one with fewer outputs than inputs.
SIZES = [(6, 6, 3), (3, 6, 9), (6, 12, 3), (6, 4, 5)]


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Callable[[int, int, int], nn.Module]:
    """A function that creates an fp64 convolution and changes all of its parameters."""
    kind, options = KINDS[request.param]

    def conv(in_channels: int, out_channels: int, kernel: int) -> nn.Module:
        made = conv_factory(kind, **options)(in_channels, out_channels, kernel).double()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return made

    return conv


def random_kernel(in_channels: int, out_channels: int, kernel: int, dtype=torch.float64) -> Kernel:
    weight = torch.randn(out_channels, in_channels, kernel, kernel, dtype=dtype)
    return Kernel(weight, torch.randn(out_channels, dtype=dtype))


@pytest.mark.parametrize("sizes", SIZES)
def test_values_and_gradients_equal_the_branches(make, sizes) -> None:
    """Compares whole images with borders, and the gradients of all parameters and the input."""
    conv = make(*sizes)
    x = torch.randn(2, sizes[0], 11, 12, dtype=torch.float64, requires_grad=True)
    one, other = conv(x), conv.branches(x)
    assert one.shape == (2, sizes[1], 11, 12)
    torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    weights = torch.randn_like(one)
    names, parameters = zip(*conv.named_parameters(), strict=True)
    inputs = [x, *parameters]
    collapsed = torch.autograd.grad((one * weights).sum(), inputs)
    parallel = torch.autograd.grad((other * weights).sum(), inputs)
    for name, a, b in zip(["the input", *names], collapsed, parallel, strict=True):
        assert b.any(), name
        scale = b.abs().max()
        torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=1e-11, msg=name)


def test_gradcheck_of_the_merge(make) -> None:
    conv = make(2, 2, 3)
    names, parameters = zip(*conv.named_parameters(), strict=True)

    def merged(*values):
        return torch.func.functional_call(
            _Merged(conv), dict(zip([f"conv.{n}" for n in names], values, strict=True)), ()
        )

    assert torch.autograd.gradcheck(merged, parameters)


class _Merged(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self):
        return tuple(self.conv.merged())


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_absorbs_a_kernel_bit_for_bit(make, sizes, dtype) -> None:
    conv = make(*sizes).to(dtype)
    kernel = random_kernel(*sizes, dtype=dtype)
    conv.absorb(kernel)
    for merged in (conv.merged(), conv.merged(torch.float64)):
        assert torch.equal(merged.weight, kernel.weight.to(merged.weight))
        assert torch.equal(merged.bias, kernel.bias.to(merged.bias))


@pytest.mark.parametrize("sizes", SIZES)
def test_all_branches_can_learn_after_absorbing(make, sizes) -> None:
    """It takes two steps: parameters behind initial zeros get no gradient in the first."""
    conv = make(*sizes)
    conv.absorb(random_kernel(*sizes))
    before = copy.deepcopy(conv.state_dict())
    optimizer = torch.optim.SGD(conv.parameters(), lr=1e-3)
    x, target = (torch.randn(2, n, 12, 12, dtype=torch.float64) for n in sizes[:2])
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(conv(x), target).backward()
        optimizer.step()
    for name, value in conv.state_dict().items():
        assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("factor", [0.3, torch.tensor(-2.0, dtype=torch.float64)])
def test_scale(make, sizes, factor) -> None:
    conv = make(*sizes)
    x = torch.randn(1, sizes[0], 10, 9, dtype=torch.float64)
    with torch.no_grad():
        expected = factor * conv.branches(x)
        conv.scale_(factor)
        torch.testing.assert_close(conv.branches(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sizes", SIZES)
def test_add(make, sizes) -> None:
    conv, kernel = make(*sizes), random_kernel(*sizes)
    before = [t.detach().clone() for t in conv.merged()]
    conv.add_(kernel)
    for value, old, new in zip(conv.merged(), before, kernel, strict=True):
        torch.testing.assert_close(value, old + new, rtol=1e-10, atol=1e-10)


def test_copies_and_states(make) -> None:
    conv, other = make(5, 5, 3), make(5, 5, 3)
    x = torch.randn(1, 5, 6, 6, dtype=torch.float64)
    assert not torch.equal(conv(x), other(x))
    other.load_state_dict(conv.state_dict())
    assert torch.equal(conv(x), other(x))
    twin = copy.deepcopy(conv)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.zero_()
    assert torch.equal(twin(x), other(x))


def test_under_autocast_the_merge_stays_in_fp32(make) -> None:
    conv = make(4, 4, 3).float()
    x = torch.randn(1, 4, 8, 8)
    expected = conv.merged(torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
        exact = F.conv2d(x, *(t.float() for t in expected), padding=1)
    assert y.dtype == torch.bfloat16
    # Rounding the kernel to bf16 once gives the same as from fp64, up to ties.
    assert (y != exact).float().mean() < 0.02


@pytest.mark.parametrize("kind", ["plain", *KINDS])
@pytest.mark.parametrize("architecture", [ESPAN, SPAN], ids=["espan", "span c28"])
def test_expand_and_collapse_a_network(kind: str, architecture: Architecture, make_network) -> None:
    kind, options = KINDS.get(kind, (kind, {}))
    plain = make_network(architecture)
    plain.record = {"made by": "hand"}
    trained = expand(plain, conv_factory(kind, **options))
    assert all(p.requires_grad for p in trained.parameters())
    assert isinstance(trained.head, Reparameterized) == (kind != "plain")
    again = collapse(trained)
    assert again.record == plain.record
    states = plain.state_dict(), again.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    x = torch.rand(1, 3, 12, 10).double()
    torch.testing.assert_close(trained.double()(x), plain.double()(x), rtol=1e-9, atol=1e-9)


def test_expand_needs_a_plain_network() -> None:
    network = Network(ESPAN.replace(channels=4), conv=GRepConv)
    with pytest.raises(EspanError, match="already in training form; collapse it first"):
        expand(network, GRepConv)


@pytest.mark.parametrize("kind", ["plain", *OTHERS, "grep"])
def test_factory(kind) -> None:
    conv = conv_factory(kind)(3, 5, 3)
    assert conv(torch.rand(1, 3, 7, 7)).shape == (1, 5, 7, 7)
    if kind == "grep":
        assert len(conv.sequences) == 2


def size(in_channels: int, out_channels: int, kernel: int) -> int:
    return in_channels * out_channels * kernel**2 + out_channels


@pytest.mark.parametrize(
    ("conv", "parameters"),
    [
        (RepVGGConv(6, 6, 3), size(6, 6, 3) + size(6, 6, 1)),
        (GRepConv(6, 4, 5), size(6, 4, 5) + size(6, 4, 1) + 2 * (size(6, 6, 1) + size(6, 4, 5))),
        (
            GRepConv(6, 6, 3, sequences=(1, 1), middle=7),
            size(6, 6, 3)
            + size(6, 6, 1)
            + size(6, 7, 1)
            + size(7, 6, 3)
            # and the one that ends in a 1x1
            + size(6, 7, 3)
            + size(7, 6, 1),
        ),
        (
            EDBBConv(6, 6, 3),
            size(6, 6, 3) + size(6, 6, 1) + size(6, 12, 1) + size(12, 6, 3) + 3 * (36 + 6 + 6),
        ),
        (RRRBConv(6, 6, 3), size(6, 12, 1) + size(12, 12, 3) + size(12, 6, 1)),
        (RepMBConv(6, 6, 3), size(6, 12, 1) + size(12, 12, 3) + size(12, 6, 1) + 12 + 2 * 12 * 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_parameters(conv: nn.Module, parameters: int) -> None:
    assert sum(p.numel() for p in conv.parameters()) == parameters


@pytest.mark.parametrize("kind", OTHERS)
def test_the_identity_passes_where_sizes_match(kind: str) -> None:
    x = torch.rand(1, 4, 5, 5)
    for out_channels in (4, 8):
        conv = conv_factory(kind)(4, out_channels, 3)
        with torch.no_grad():
            for parameter in conv.parameters():
                parameter.zero_()
        assert torch.equal(conv.branches(x)[:, :4], x if out_channels == 4 else 0 * x)


def test_edge_filters_see_edges() -> None:
    """The output of each filter for slopes along x and y and a parabola, one channel each."""
    along_x, along_y = torch.arange(5.0).expand(5, 5), torch.arange(5.0)[:, None].expand(5, 5)
    images = torch.stack([along_x, along_y, along_x**2])[:, None]
    expected = {0: [-8, 0, -32], 1: [0, -8, 0], 2: [0, 0, 2]}
    for index, edges in enumerate(EDBBConv(1, 1, 3).filters):
        with torch.no_grad():
            for parameter in edges.parameters():
                parameter.fill_(1)
            edges.bias.zero_()
            values = edges(images)[:, 0, 1, 1]
        assert values.tolist() == expected[index]


def test_the_attention_starts_at_a_half() -> None:
    assert (RepMBConv(6, 6, 3).gains() == 0.5).all()


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (lambda: conv_factory("acnet"), "unknown convolution 'acnet'; choose one of plain, grep"),
        (lambda: conv_factory("grep", grep=(1, -1))(3, 3, 3), r"two numbers >= 0, got \(1, -1\)"),
        (lambda: conv_factory("grep", middle=0)(3, 3, 3), "must have 1 channel or more, got 0"),
        (lambda: conv_factory("edbb")(3, 3, 1), "at least 3, got 1"),
        *((lambda k=k: conv_factory(k)(3, 3, 4), "odd .* got 4") for k in [*OTHERS, "grep"]),
        *((lambda k=k: conv_factory(k)(0, 3, 3), "got 0 in") for k in [*OTHERS, "grep"]),
        *(
            (
                lambda k=k: conv_factory(k)(3, 4, 5).absorb(random_kernel(3, 4, 3)),
                r"expected a kernel of shape \(4, 3, 5, 5\) .* got \(4, 3, 3, 3\)",
            )
            for k in [*OTHERS, "grep"]
        ),
    ],
)
def test_bad_arguments(fails, message: str) -> None:
    with pytest.raises(EspanError, match=message):
        fails()
