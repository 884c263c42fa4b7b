"""`network` as a PyTorch op: compile, export, packing, errors."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from espan_kernels import _library, network, pack_network
from tests.kernels.network_cases import Case, cast, image

needs_library = pytest.mark.skipif(_library.compiled is None, reason=_library.why_not_compiled)
SMALL = Case(8, (2, 3), head_kernel=5, scale=2)
op = torch.ops.espan.network


def description(case: Case) -> tuple[list[int], int, int]:
    return case.describe(), case.sizes["unshuffle"], case.sizes["scale"]


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
    case = Case(6, (2,))  # whose weights are in float32
    wide = [cast(layer, torch.float64) for layer in case.layers]
    assert torch.equal(pack_network(wide, scale=4), case.pack())


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
def test_small_images_cannot_be_unshuffled() -> None:
    case = Case(8, (2,), scale=1, more=(("unshuffle", 4),))
    with pytest.raises(RuntimeError, match="height and width must be at least 4 to be unshuffled"):
        case.run(image(1, 3, 9, 3))
    assert case.run(image(1, 3, 9, 4))[0].shape == (1, 3, 12, 4)


HEAD, PLUS, LAST = [1, -1, -1, 0, 8, 3], [2, 0, -1, 1, 8, 3], [4, 1, -1, 0, 12, 3]


@needs_library
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([HEAD, PLUS, [4, 1, -1, 0, 12]], "layers must have 6 numbers for each layer; got 17"),
        ([], "layers must have 6 numbers for each layer; got 0"),
        ([HEAD, [6, 0, -1, 1, 8, 3], LAST], "layer 1 is of no known kind or activation"),
        ([HEAD, [2, 0, -1, 8, 8, 3], LAST], "layer 1 is of no known kind or activation"),
        ([HEAD, [2, 0, -1, 1, 5000, 3], LAST], "layer 1 has the number 5000"),
        ([HEAD, [2, 0, -2, 1, 8, 3], LAST], "layer 1 has the number -2"),
        ([HEAD, [2, 0, -1, 1, 0, 3], LAST], "layer 1 must have 1 to 4096 outputs"),
        ([HEAD, [2, 1, -1, 1, 8, 3], LAST], "layer 1 must read a layer before it"),
        ([HEAD, [2, -1, -1, 1, 8, 3], LAST], "layer 1 must read a layer before it"),
        ([[1, -1, -1, 0, 8, 4], PLUS, LAST], "layer 0 must have an odd kernel"),
        ([HEAD, [2, 0, 1, 4, 8, 3], LAST], "layer 1 must add or gate with a layer before it"),
        (
            [[0, -1, -1, 0, 3, 1], HEAD, [3, 1, 0, 0, 3, 1], [4, 2, -1, 0, 12, 3]],
            "layer 2 cannot add or gate with an image layer",
        ),
        (
            [HEAD, PLUS, [2, 0, 1, 4, 8, 3], [4, 2, -1, 0, 12, 3]],
            "layer 2 cannot start its sums from a layer with an activation",
        ),
        ([HEAD, [2, 0, -1, 4, 8, 3], LAST], "layer 1 must have a layer to add or gate with"),
        ([HEAD, [2, 0, 0, 1, 8, 3], LAST], "layer 1 must have a layer to add or gate with"),
        ([HEAD, [2, 0, 0, 5, 9, 3], LAST], "layer 1 must have as many outputs as the layer"),
        ([HEAD, [3, 0, 0, 0, 8, 1], LAST], "layer 0 is added to one layer and read otherwise by"),
        ([HEAD, [3, 0, -1, 1, 8, 1], LAST], "layer 1 cannot have an activation"),
        ([HEAD, [3, 0, 0, 5, 8, 1], LAST], "layer 1 cannot add or gate: only a conv can"),
        ([[0, -1, -1, 0, 4, 1], PLUS, LAST], r"layer 0 must have 3 unshuffle\^2 outputs"),
        ([HEAD, PLUS, [4, 1, -1, 0, 27, 3]], r"layer 2 must have 3 scale\^2 outputs"),
        ([HEAD, PLUS, [5, 1, 0, 0, 12, 1]], "layer 2 needs a multiple of 16 channels in its first"),
        ([HEAD, PLUS], "the last layer, and no other, must write the image"),
        ([HEAD, PLUS, LAST, LAST], "the last layer, and no other, must write the image"),
        ([HEAD, PLUS, [4, 0, -1, 0, 12, 3]], "layer 1 is not read by any other"),
        ([HEAD, PLUS, [2, 1, -1, 1, 8, 3], [4, 2, -1, 0, 12, 3]], r"packed has \d+ values; for"),
    ],
)
def test_bad_layers(layers: list[list[int]], message: str) -> None:
    numbers = [number for layer in layers for number in layer]
    packed = torch.zeros(16 + 6 * 9 * 16 + 16 + 2 * (36 * 8 * 16 + 16))
    with pytest.raises(RuntimeError, match=f"^espan::network: {message}"):
        op(X, packed, numbers, 1, 2)
    good = [number for layer in (HEAD, PLUS, LAST) for number in layer]
    op(X, packed, good, 1, 2)


@needs_library
@pytest.mark.parametrize(("unshuffle", "scale"), [(0, 2), (17, 2), (1, 0), (1, 33), (2, 2)])
def test_bad_scales(unshuffle: int, scale: int) -> None:
    message = "cannot read an unshuffled" if unshuffle == 2 else "unshuffle must be 1 to 16 and"
    with pytest.raises(RuntimeError, match=message):
        op(X, SMALL.pack(), SMALL.describe(), unshuffle, scale)


@needs_library
def test_bad_weights() -> None:
    packed = SMALL.pack()
    for bad in (packed.to(torch.float64), packed[None], packed.repeat(2)[::2]):
        with pytest.raises(
            RuntimeError, match="packed must be a contiguous 1-D float32 or bfloat16"
        ):
            op(X, bad, *description(SMALL))


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, {"weight": torch.zeros(8, 3, 4, 4)}, r"head: the weight .*; it must be \[8, 3, 5, 5\]"),
        (0, {"weight": None}, "layer 0, head, lacks a weight"),
        (2, {"weight": torch.zeros(8, 2, 3, 3)}, r"conv: the weight .* \[8, 2, 3, 3\]; it must be"),
        (2, {"bias": torch.zeros(1)}, r"the bias has shape \[1\]; it must be \[8\]"),
        (4, {"activation": "gate_tanh"}, "layer 4, conv, lacks a gate's conv"),
        (
            4,
            {"activation": "gate_tanh", "gate": (torch.zeros(8, 8), torch.zeros(8))},
            r"the gate's weight .* must be \[8, 8, 1, 1\]",
        ),
        (2, {"gate": (torch.zeros(8, 8, 1, 1), torch.zeros(8))}, "has a gate's convolution"),
        (5, {"bias": torch.zeros(8)}, "layer 5, pointwise, adds layer 1 and has a bias"),
        (-1, {"weight": torch.zeros(27, 8, 3, 3)}, r"must be \[12, 8, 3, 3\]"),
        (-1, {"kind": "depthwise", "weight": torch.zeros(12, 20, 1, 1)}, "lacks depthwise"),
    ],
)
def test_bad_weights_of_layers(index: int, change: dict[str, Any], message: str) -> None:
    layers = list(Case(8, (3, 2), scale=2).layers)
    layers[index] = layers[index]._replace(**change)
    with pytest.raises(ValueError, match=f"^pack_network: .*{message}"):
        pack_network(layers, scale=2)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "compiled", None)
    monkeypatch.setattr(_library, "why_not_compiled", "it is not installed")
    with pytest.raises(RuntimeError, match=r"^espan::network: it is not installed"):
        network(X, X, layers=[], scale=2)


def test_explicit_float32_is_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 17 bits of the matrix unit are the default only; float32 is always full precision."""
    amx = SimpleNamespace(cpu_path=lambda: "amx", cpu_path_has_bfloat16=lambda: True)
    monkeypatch.setattr(_library, "compiled", amx)
    assert SMALL.pack(torch.float32).dtype == torch.float32
    halves, one = SMALL.pack(None), SMALL.pack(torch.bfloat16)
    assert halves.dtype == one.dtype == torch.bfloat16
    assert len(halves) > len(one)
    amx.cpu_path = lambda: "avx512"
    assert torch.equal(SMALL.pack(None), SMALL.pack(torch.float32))
