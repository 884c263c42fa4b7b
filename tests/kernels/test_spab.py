"""The block as a PyTorch op on the CPU: packing, reference, errors."""

import pytest
import torch
from torch import Tensor

from espan_kernels import pack_spab, spab
from espan_kernels.spab import LEARNED, unpack
from tests.kernels.spab_cases import KINDS, SPAN, Kind, Run, check, check_not_finite

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def run(
    x: Tensor, packed: Tensor, channels: int, convs: int, kind: Kind = SPAN
) -> tuple[Tensor, Tensor]:
    return spab(x, packed, channels, convs, True, *kind)


def run_kind(kind: Kind) -> Run:
    return lambda x, packed, channels, convs: run(x, packed, channels, convs, kind)


def example(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    weights = [torch.randn(20, 20, 3, 3) / 14 for _ in range(3)]
    packed = pack_spab(weights, [torch.randn(20) for _ in range(3)], dtype)
    return torch.randn(1, 5, 4, 32).to(dtype), packed


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("convs", [2, 3])
@pytest.mark.parametrize("channels", [1, 16, 26, 28, 32, 48, 52, 64])
def test_values(channels: int, convs: int, dtype: torch.dtype) -> None:
    for shape in ((1, 1, 1), (1, 1, 7), (2, 9, 6)):
        check(run, channels, convs, dtype, shape)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels", [13, 48, 64])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_other_activations_and_gates(kind: Kind, channels: int, dtype: torch.dtype) -> None:
    for convs in (2, 3):
        check(run_kind(kind), channels, convs, dtype, (2, 5, 6), kind=kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("convs", [2, 3])
@pytest.mark.parametrize("channels", [5, 26, 48, 64])
def test_unpack_returns_what_was_packed(channels: int, convs: int, kind: Kind) -> None:
    activation, gate = kind
    weights = [torch.randn(channels, channels, 3, 3) for _ in range(convs)]
    biases = [torch.randn(channels) for _ in range(convs)]
    conv = torch.randn(channels, channels, 1, 1), torch.randn(channels)
    gate_conv = conv if gate in LEARNED else None
    packed = pack_spab(
        weights, biases, torch.float32, activation=activation, gate=gate, gate_conv=gate_conv
    )
    found = unpack(packed, channels, convs, activation, gate)
    assert torch.equal(found[0], torch.stack(weights))
    assert torch.equal(found[1], torch.stack(biases))
    assert (found[2] is None) == (gate_conv is None)
    if found[2] is not None:
        assert all(torch.equal(a, b) for a, b in zip(found[2], conv, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_reach_the_output(kind: Kind) -> None:
    check_not_finite(run_kind(kind), 16, kind)


def test_without_activation() -> None:
    x, packed = example()
    y, activation = spab(x, packed, 20, 3)
    assert activation.shape == (0,)
    assert torch.equal(y, run(x, packed, 20, 3)[0])


def test_packing_is_pure() -> None:
    weights = [torch.randn(5, 5, 3, 3) for _ in range(2)]
    biases = [torch.randn(5) for _ in range(2)]
    before = [t.clone() for t in weights + biases]
    first, second = (pack_spab(weights, biases, torch.float16) for _ in range(2))
    assert torch.equal(first.view(torch.int16), second.view(torch.int16))
    # The weights are stored twice: 9 taps for mma.sync, 15 for streaming.
    assert first.shape == (2 * ((9 + 15) * 16 * 16 + 32),)
    assert all(torch.equal(a, b) for a, b in zip(weights + biases, before, strict=True))


@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck(dtype: torch.dtype) -> None:
    x, packed = example(dtype)
    for with_activation in (False, True):
        arguments = (x, packed, 20, 3, with_activation, *SPAN)
        torch.library.opcheck(torch.ops.espan.spab.default, arguments)


def test_compile() -> None:
    x, packed = example()
    compiled = torch.compile(lambda x: run(x + 1, packed, 20, 3)[0] * 2, fullgraph=True)
    torch.testing.assert_close(compiled(x), run(x + 1, packed, 20, 3)[0] * 2)


def test_gradients_are_rejected() -> None:
    x, packed = example()
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="espan::spab has no gradient: it is for inference"):
        spab(x, packed, 20, 3)
    with torch.no_grad():
        spab(x, packed, 20, 3)
    with pytest.raises(RuntimeError, match="espan::spab has no forward-mode derivative"):
        torch.func.jvp(lambda x: spab(x, packed, 20, 3)[0], (x.detach(),), (x.detach(),))


X, PACKED = example()


@pytest.mark.parametrize(
    ("x", "packed", "channels", "convs", "message"),
    [
        (X.double(), PACKED, 20, 3, "x has dtype float64; it must be float16, bfloat16 or float32"),
        (X.half(), PACKED, 20, 3, "packed has dtype float32; it must be float16"),
        (X, PACKED, 0, 3, "channels is 0; it must be 1 to 64"),
        (X, PACKED, 65, 3, "channels is 65; it must be 1 to 64"),
        (X, PACKED, 33, 3, r"x has shape \[1, 5, 4, 32\]; it must be \(N, H, W, 48\)"),
        (X[0], PACKED, 20, 3, r"x has shape \[5, 4, 32\]; it must be \(N, H, W, 32\)"),
        (X[:0], PACKED, 20, 3, r"x has shape \[0, 5, 4, 32\]; it must not be empty"),
        (X[:, ::2], PACKED, 20, 3, "x must be contiguous"),
        (X, PACKED, 20, 4, "convs is 4; it must be 2 or 3"),
        (X, PACKED, 20, 2, r"packed has shape \[73824\]; .* must have the shape \[49216\]"),
        (X.to("meta"), PACKED, 20, 3, "packed is on cpu; it must be on the device of x, meta"),
    ],
)
def test_bad_inputs(x: Tensor, packed: Tensor, channels: int, convs: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^espan::spab: {message}"):
        spab(x, packed, channels, convs)


def test_bad_weights() -> None:
    weights, biases = [torch.zeros(5, 5, 3, 3)] * 2, [torch.zeros(5)] * 2
    with pytest.raises(RuntimeError, match=r"weights\[1\] has shape \[5, 5, 1, 1\]; it must"):
        pack_spab([weights[0], weights[1][..., :1, :1]], biases, torch.float16)
    with pytest.raises(RuntimeError, match=r"biases\[0\] has shape \[4\]; it must"):
        pack_spab(weights, [biases[0][:4], biases[1]], torch.float16)
    with pytest.raises(RuntimeError, match="convs is 1; it must be 2 or 3"):
        pack_spab(weights[:1], biases[:1], torch.float16)
    with pytest.raises(RuntimeError, match="it must be float16, bfloat16 or float32"):
        pack_spab(weights, biases, torch.float64)


def test_bad_kinds() -> None:
    weights, biases = [torch.zeros(5, 5, 3, 3)] * 2, [torch.zeros(5)] * 2
    for kind in (("silu", "tanh"), ("gelu", "sigmoid"), ("relu", "sigmoid")):
        message = f"activation is {kind[0]} and gate is {kind[1]}; they must be silu with sigmoid"
        with pytest.raises(RuntimeError, match=message):
            spab(X, PACKED, 20, 3, False, *kind)
        with pytest.raises(RuntimeError, match=message):
            pack_spab(weights, biases, torch.float16, activation=kind[0], gate=kind[1])
    with pytest.raises(RuntimeError, match=r"packed has shape \[73824\]; .* the shape \[75904\]"):
        spab(X, PACKED, 20, 3, False, "relu", "tanh")


def test_bad_gate_convolutions() -> None:
    weights, biases = [torch.zeros(5, 5, 3, 3)] * 2, [torch.zeros(5)] * 2

    def pack(gate: str, *conv: Tensor) -> None:
        activation = "relu" if gate == "tanh" else "silu"
        gate_conv = (conv[0], conv[1]) if conv else None
        pack_spab(
            weights, biases, torch.float16, activation=activation, gate=gate, gate_conv=gate_conv
        )

    with pytest.raises(RuntimeError, match="gate_conv is missing, and gate is tanh; linear and"):
        pack("tanh")
    with pytest.raises(RuntimeError, match="gate_conv is given, and gate is sigmoid; linear and"):
        pack("sigmoid", torch.zeros(5, 5, 1, 1), torch.zeros(5))
    with pytest.raises(RuntimeError, match=r"gate_conv\[0\] has shape \[5, 5\]; it must"):
        pack("tanh", torch.zeros(5, 5), torch.zeros(5))
    with pytest.raises(RuntimeError, match=r"gate_conv\[1\] has shape \[4\]; it must"):
        pack("tanh", torch.zeros(5, 5, 1, 1), torch.zeros(4))
