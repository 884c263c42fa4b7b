"""Exported networks: ONNX, checked by ONNX's checker and ONNX Runtime, and torch.export."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import espan
from espan import checkpoints, export
from espan.branches import GRepConv
from espan.errors import EspanError
from espan.extras import install_command
from espan.imaging import read_image
from espan.models import SPAN, Architecture, Network, Normalization
from tests.test_cli import run  # noqa: F401
from tests.tolerance import assert_accurate

ESPAN_LIKE = Architecture(8, (3, 2), scale=2, head_kernel=5)
SPAN_LIKE = SPAN.replace(channels=8, convs=(3, 3), scale=3)
FP32, FP16 = torch.float32, torch.float16
SIZES = [(1, 1), (7, 12), (19, 10)]
REASON = 'onnx and onnxruntime are not installed (pip install ".[onnx]" onnxruntime)'


@pytest.fixture
def onnx():
    pytest.importorskip("onnxruntime", reason=REASON)
    return pytest.importorskip("onnx", reason=REASON)


@pytest.fixture
def session(onnx):
    """A function that loads a file into ONNX Runtime and returns a function on tensors."""
    runtime = pytest.importorskip("onnxruntime")

    def load(path):
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (taken,) = session.get_inputs()
        assert taken.name == "input"
        return lambda x: torch.from_numpy(session.run(["output"], {"input": x.numpy()})[0])

    return load


def with_unit_gain(network: Network) -> Network:
    if network.img_range is not None:
        network.head.weight.div_(network.img_range)
    return network


@pytest.mark.parametrize(
    ("dtype", "image_dtype"), [(FP32, FP32), (FP16, FP16), (FP16, FP32), (FP32, FP16)]
)
@pytest.mark.parametrize("architecture", [ESPAN_LIKE, SPAN_LIKE], ids=["espan", "span"])
def test_equals_the_plain_network(
    architecture, dtype, image_dtype, make_network, session, tmp_path
):
    path = tmp_path / "network.onnx"
    plain = {d: with_unit_gain(make_network(architecture)).to(d) for d in (torch.float64, dtype)}
    network = with_unit_gain(make_network(architecture))
    export.to_onnx(network, path, dtype=dtype, image_dtype=image_dtype)
    infer = session(path)
    for size in SIZES:
        x = torch.rand(1, 3, *size).half()
        result = infer(x.to(image_dtype))
        assert result.dtype == image_dtype
        lowest = torch.promote_types(FP32, dtype) if image_dtype == dtype == FP32 else FP16
        reference = plain if lowest == dtype else {**plain, FP16: network.half()}
        assert_accurate(result.to(lowest), lambda d, r=reference, x=x: r[d](x.to(d)))


def test_description(onnx, make_network, tmp_path):
    network = make_network(SPAN_LIKE)
    network.record = {"steps": 3}
    export.to_onnx(network, tmp_path / "n.onnx", dtype=FP16, opset=18, licence="CC0-1.0")
    model = onnx.load(tmp_path / "n.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert model.ir_version == 8
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "input": [1, 3, "height", "width"],
        "output": [1, 3, "3*height", "3*width"],
    }
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert (about["scale"], about["licence"]) == ("3", "CC0-1.0")
    assert Architecture.from_dict(json.loads(about["architecture"])) == SPAN_LIKE
    assert json.loads(about["record"]) == {"steps": 3}


@pytest.mark.parametrize(
    ("architecture", "in_fp32", "casts"),
    [(ESPAN_LIKE, set(), 0), (SPAN_LIKE, {"mean", "img_range"}, 2)],
)
def test_fp16_is_strongly_typed(architecture, in_fp32, casts, onnx, make_network, tmp_path):
    """Only the subtraction of the mean is in fp32."""
    export.to_onnx(make_network(architecture), tmp_path / "n.onnx", dtype=FP16)
    graph = onnx.load(tmp_path / "n.onnx").graph
    types = {c.name: c.data_type for c in graph.initializer}
    assert {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT} == in_fp32
    assert set(types.values()) <= {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
    assert [node.op_type for node in graph.node].count("Cast") == casts


def test_merged_and_small(onnx, make_network, tmp_path):
    """One convolution for each of the network's, and no paths of source files."""
    path = tmp_path / "n.onnx"
    network = make_network(ESPAN_LIKE)
    export.to_onnx(network, path)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("Conv") == sum(isinstance(m, nn.Conv2d) for m in network.modules())
    assert str(Path(espan.__file__).parent).encode() not in path.read_bytes()
    assert path.stat().st_size < 4 * sum(p.numel() for p in network.parameters()) + 10_000
    expanded = Network(ESPAN_LIKE, conv=lambda i, o, k: GRepConv(i, o, k))
    for write in (export.to_onnx, export.to_pth, export.to_pt2):
        with pytest.raises(EspanError, match="in training form"):
            write(expanded, path)


def test_batch(make_network, session, tmp_path):
    network = make_network(ESPAN_LIKE)
    x = torch.rand(3, 3, 6, 5)
    export.to_onnx(network, tmp_path / "n.onnx", dynamic_batch=True)
    result = session(tmp_path / "n.onnx")(x)
    torch.testing.assert_close(result, network(x), rtol=1e-5, atol=1e-5)
    export.to_onnx(network, tmp_path / "n.onnx")
    infer = session(tmp_path / "n.onnx")
    with pytest.raises(Exception, match="Got: 3 Expected: 1"):
        infer(x)


@pytest.mark.parametrize(
    ("module", "found"),
    [(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), "1 is a ReLU"), (nn.Softmax(1), "softmax")],
)
def test_unknown_operations(module, found, onnx):
    from espan import onnx_graph

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):
            return torch.softmax(x, 1) if isinstance(self.inner, nn.Softmax) else self.inner(x)

    about = {"dtype": FP32, "image_dtype": FP32, "opset": 20, "metadata": {}}
    with pytest.raises(NotImplementedError, match=found):
        onnx_graph.model(Wrapped(), input_shape=[1], output_shape=[1], **about)


@pytest.mark.parametrize("weights", ["espan_x4_official.pth", "span_c28_x4_official.pth"])
def test_official_files(weights, session, testdata, tmp_path):
    pixels = read_image(testdata / "testsets/Set5/LRx4/butterfly.png").pixels
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None, :, :40, :48] / 255
    network = espan.load(testdata / "weights" / weights)
    expected = network(x)
    for dtype, error in ((FP32, 1e-5), (FP16, 2 / 255)):
        export.to_onnx(network, tmp_path / "n.onnx", dtype=dtype, image_dtype=FP32)
        assert (session(tmp_path / "n.onnx")(x) - expected).abs().max() < error


@pytest.mark.slow
def test_pt2(make_network, tmp_path):
    network = with_unit_gain(make_network(SPAN_LIKE))
    export.to_pt2(network, tmp_path / "n.pt2", image_dtype=FP16, dynamic_batch=True)
    extra = {"espan": ""}
    loaded = torch.export.load(tmp_path / "n.pt2", extra_files=extra).module()
    assert json.loads(extra["espan"])["scale"] == "3"
    for n, size in enumerate(SIZES, 1):
        x = torch.rand(n, 3, *size).half()
        torch.testing.assert_close(loaded(x), network(x.float()).half())
    assert str(Path(espan.__file__).parent).encode() not in (tmp_path / "n.pt2").read_bytes()


@pytest.mark.parametrize(
    "architecture",
    [
        ESPAN_LIKE,
        SPAN_LIKE,
        SPAN_LIKE.replace(normalization=None),
        Architecture(8, (2,), scale=1),
    ],
)
def test_pth(architecture, make_network, tmp_path):
    """The layout of the official files says what the network is, and every bit is kept."""
    network = make_network(architecture)
    export.to_pth(network, tmp_path / "w.pth")
    read = espan.load(tmp_path / "w.pth")
    assert read.architecture == architecture
    assert all(torch.equal(read.state_dict()[k], v) for k, v in network.state_dict().items())
    assert not any(key.startswith("blocks.") for key in torch.load(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    "changes",
    [{"concat_last": "output"}, {"normalization": Normalization((0.5, 0.5, 0.5), 1.0)}],
    ids=["concat", "normalization"],
)
def test_pth_cannot_describe_all(changes, make_network, tmp_path):
    with pytest.raises(EspanError, match="cannot describe this network"):
        export.to_pth(make_network(SPAN_LIKE.replace(**changes)), tmp_path / "w.pth")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("weights", "options", "name"),
    [
        ("a", {}, "2x_a_1x3xHxW_dyn-HW_fp32_op20.onnx"),
        ("a", {"dtype": FP16}, "2x_a_1x3xHxW_dyn-HW_strong_fp16_image-fp32_op20.onnx"),
        ("2x-a", {"dynamic_batch": True}, "2x_a_Nx3xHxW_dyn-NHW_fp32_op20.onnx"),
        ("4x_a", {"opset": 18}, "2x_4x_a_1x3xHxW_dyn-HW_fp32_op18.onnx"),
        ("2x", {}, "2x_2x_1x3xHxW_dyn-HW_fp32_op20.onnx"),
    ],
)
def test_names(weights, options, name):
    defaults = {"dtype": FP32, "image_dtype": FP32, "dynamic_batch": False, "opset": 20}
    assert export.onnx_name(weights, scale=2, **{**defaults, **options}) == name


@pytest.fixture
def here(tmp_path, monkeypatch, make_network):
    monkeypatch.chdir(tmp_path)
    checkpoints.save(make_network(ESPAN_LIKE), "w.safetensors", record={"licence": "CC0-1.0"})
    return tmp_path


def test_command(here, run, onnx):  # noqa: F811
    name = "2x_w_1x3xHxW_dyn-HW_strong_fp16_op20.onnx"
    assert run("export", "w.safetensors", ".", "--dtype", "fp16").stdout.strip() == name
    about = {entry.key: entry.value for entry in onnx.load(name).metadata_props}
    assert about["licence"] == "CC0-1.0"
    before = Path(name).read_bytes()
    options = ("export", "w.safetensors", ".", "--dtype", "fp16")
    assert f"{name} exists; --overwrite replaces it" in run(*options, status=1).stderr
    Path(name).write_bytes(b"")
    run(*options, "--overwrite")
    assert Path(name).read_bytes() == before
    arguments = ("--dynamic-batch", "--opset", "19", "--dtype", "fp16", "--image-dtype", "fp32")
    run("export", "espan_x4", "n.onnx", *arguments)
    model = onnx.load("n.onnx")
    assert {e.key: e.value for e in model.metadata_props}["licence"] == "Apache-2.0"
    assert model.opset_import[0].version == 19
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    Path("in.pth").mkdir()
    run("export", "w.safetensors", "in.pth", "--opset", "18")
    assert [p.name for p in Path("in.pth").iterdir()] == ["2x_w_1x3xHxW_dyn-HW_fp32_op18.onnx"]
    shutil.rmtree("in.pth")
    run("export", "w.safetensors", "new/")
    assert [p.name for p in Path("new").iterdir()] == ["2x_w_1x3xHxW_dyn-HW_fp32_op20.onnx"]
    shutil.rmtree("new")
    run("export", "w.safetensors", "n.pth", "--overwrite")
    assert espan.load("n.pth").architecture == ESPAN_LIKE
    assert sorted(p.name for p in here.iterdir()) == [name, "n.onnx", "n.pth", "w.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "w.safetensors n.trt",
            "n.trt: the name must end in .onnx, .pt2 or .pth, or",
        ),
        ("w.safetensors no/n.onnx", "no/n.onnx: the folder no does not exist"),
        ("w.safetensors n.onnx --dtype bf16", "--dtype 'bf16': expected fp32 or fp16"),
        ("w.safetensors n.onnx --image-dtype 8", "--image-dtype '8': expected fp32 or fp16"),
        ("w.safetensors n.onnx --opset 17", "--opset 17: expected 18, 19, 20"),
        ("w.safetensors n.pt2 --opset 18", "--opset cannot be combined with a .pt2 file"),
        ("w.safetensors n.pth --dtype fp16", "--dtype cannot be combined with a .pth file"),
        ("w.onnx w.onnx --overwrite", "w.onnx is an input of this command"),
        ("missing n.onnx", "missing is neither a file nor the name of bundled weights"),
    ],
)
def test_bad_input(arguments, message, here, run):  # noqa: F811
    Path("w.onnx").hardlink_to("w.safetensors")
    assert message in run("export", *arguments.split(), status=1).stderr
    assert sorted(p.name for p in here.iterdir()) == ["w.onnx", "w.safetensors"]


def test_without_onnx(here, run, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "espan.onnx_graph", raising=False)
    monkeypatch.delattr(espan, "onnx_graph", raising=False)
    error = run("export", "w.safetensors", "n.onnx", status=1).stderr
    assert "ONNX needs an additional package" in error
    assert error.endswith(f"install it with {install_command('onnx')}\n")
