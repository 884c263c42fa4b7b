"""`network` as a PyTorch op: compile, export, packing, errors."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from espan_kernels import _library, network, pack_network
from tests.kernels.network_cases import SPAN, Case, image

needs_library = pytest.mark.skipif(_library.compiled is None, reason=_library.why_not_compiled)
SMALL = Case(8, (2, 3), head_kernel=5, scale=2)
op = torch.ops.espan.network


def description(case: Case) -> tuple[int, int, list[int], bool, int]:
    return case.channels, case.head_kernel, list(case.convs), case.concat_activation, case.scale


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_opcheck(dtype: torch.dtype) -> None:
    packed = SMALL.pack()
    for x in (image(2, 3, 5, 7, dtype=dtype), image(1, 3, 8, 9, dtype=dtype)[..., 1::2]):
        torch.library.opcheck(op.default, (x, packed, *description(SMALL)))


@needs_library
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    packed = SMALL.pack()

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        y, ranges = SMALL.run(x / 2, packed)
        return y + 1, ranges

    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic)
    for width in (6, 9):
        x = image(1, 3, 7, width)
        torch.testing.assert_close(compiled(x), run(x))


@needs_library
def test_export() -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("packed", SMALL.pack())

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return op(x, self.packed, *description(SMALL))

    x = image(1, 3, 8, 9)
    auto = torch.export.Dim.AUTO
    program = torch.export.export(Module(), (x,), dynamic_shapes=({2: auto, 3: auto},))
    assert "torch.ops.espan.network.default" in str(program.graph_module.code)
    x = image(1, 3, 5, 14)
    torch.testing.assert_close(program.module()(x), SMALL.run(x))


@needs_library
def test_no_gradient() -> None:
    with pytest.raises(RuntimeError, match="espan::network has no gradient"):
        SMALL.run(image(1, 3, 4, 4).requires_grad_())


def test_packing_takes_float32_and_float64() -> None:
    half = Case(6, (2,))
    half.kernels["head_kernel"] = tuple(t.float() for t in half.kernels["head_kernel"])  # type: ignore[attr-defined]
    assert torch.equal(half.pack(), Case(6, (2,)).pack())


X = torch.zeros(1, 3, 4, 4)


@needs_library
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X[0], r"image has shape \[3, 4, 4\]; it must be \[N, 3, H, W\]"),
        (X[:, :2], r"image has shape \[1, 2, 4, 4\]; it must be \[N, 3, H, W\]"),
        (X.half(), "image has dtype float16; it must be uint8 or float32"),
        (X.int(), "image has dtype Int; it must be uint8 or float32"),
    ],
)
def test_bad_images(x: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^espan::network: {message}"):
        SMALL.run(x)


@needs_library
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({0: 40}, r"packed has \d+ values; for this network it must have \d+"),
        ({0: 0}, "channels and scale must be at least 1, head_kernel odd; got 0, 2, 5"),
        ({1: 4}, "channels and scale must be at least 1, head_kernel odd; got 8, 2, 4"),
        ({2: []}, "convs must have an entry for each block"),
        ({2: [3, 4]}, "convs must be 2 or 3 for each block; got 4"),
        ({3: True}, "packed has"),
        ({4: -1}, "channels and scale must be at least 1"),
    ],
)
def test_bad_descriptions(changes: dict[int, object], message: str) -> None:
    arguments: list[object] = list(description(SMALL))
    for at, value in changes.items():
        arguments[at] = value
    with pytest.raises(RuntimeError, match=f"^espan::network: {message}"):
        op(X, SMALL.pack(), *arguments)


@needs_library
def test_bad_weights() -> None:
    packed = SMALL.pack()
    for bad in (packed.to(torch.float64), packed[None], packed.repeat(2)[::2]):
        with pytest.raises(
            RuntimeError, match="packed must be a contiguous 1-D float32 or bfloat16"
        ):
            op(X, bad, *description(SMALL))


def test_bad_kernels() -> None:
    good = SPAN.kernels
    c = SPAN.channels
    for name, bad, message in [
        ("head_kernel", (torch.zeros(c, 3, 4, 4), torch.zeros(c)), "head has shapes"),
        ("concat_last", (torch.zeros(c, c, 3, 3), torch.zeros(1)), "concat_last has shapes"),
        ("upsample", (torch.zeros(27, c, 3, 3), torch.zeros(27)), r"upsample .* \[48, 28, 3, 3\]"),
        ("blocks", [[(torch.zeros(c, 2, 3, 3), torch.zeros(c))] * 2], r"blocks\[0\]\[0\] has"),
        ("blocks", [], "got 0 blocks and 3 weights"),
        ("concat_side", [torch.zeros(c, c)], "got 6 blocks and 1 weights"),
        ("concat_side", [torch.zeros(c, c), torch.zeros(c)], r"concat_side\[1\] has shape \[28\]"),
    ]:
        with pytest.raises(ValueError, match=f"^pack_network: {message}"):
            pack_network(*(good | {name: bad}).values(), scale=4)  # type: ignore[arg-type]


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "compiled", None)
    monkeypatch.setattr(_library, "why_not_compiled", "it is not installed")
    with pytest.raises(RuntimeError, match=r"^espan::network: it is not installed"):
        network(X, X, channels=8, head_kernel=3, convs=(2,), concat_activation=False, scale=2)


def test_explicit_float32_is_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 17 bits of the matrix unit are the default only; float32 is always full precision."""
    amx = SimpleNamespace(cpu_path=lambda: "amx")
    monkeypatch.setattr(_library, "compiled", amx)
    assert SMALL.pack(torch.float32).dtype == torch.float32
    halves, one = SMALL.pack(None), SMALL.pack(torch.bfloat16)
    assert halves.dtype == one.dtype == torch.bfloat16
    assert len(halves) > len(one)
    amx.cpu_path = lambda: "avx512"
    assert torch.equal(SMALL.pack(None), SMALL.pack(torch.float32))
