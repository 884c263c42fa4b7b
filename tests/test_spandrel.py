"""espan in spandrel: the real package, with a stub of torchvision if that is missing."""

import copy
import importlib
import importlib.util
import pickle
import re
import sys
from types import ModuleType

import pytest
import torch

import espan
import espan.imaging
from espan import checkpoints, export
from espan.errors import CheckpointError, RangeWarning
from espan.extras import install_command
from espan.models import SPAN, Architecture
from tests.family import MEMBERS
from tests.test_checkpoints import official

SMALL = Architecture(8, (3, 2), scale=2, head_kernel=5)
WITH_GATE = Architecture(
    8, (3,) * 6, concat_last="activation", normalization=SPAN.normalization, scale=3
)


@pytest.fixture(scope="module")
def stub() -> None:
    """Make spandrel importable where torchvision, of which it uses three names, is missing."""
    if "spandrel" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        functional = ModuleType("torchvision.transforms.functional")
        for name in ("InterpolationMode", "rotate", "normalize"):
            setattr(functional, name, None)
        for name in ("torchvision", "torchvision.transforms"):
            sys.modules[name] = ModuleType(name)
        sys.modules[functional.__name__] = functional


@pytest.fixture(scope="module")
def spandrel(stub):
    """spandrel, with espan's architecture."""
    reason = "spandrel is not installed (pip install --no-deps spandrel einops)"
    module = pytest.importorskip("spandrel", reason=reason)
    importlib.import_module("espan.spandrel")
    return module


@pytest.fixture
def load(spandrel, make_network, tmp_path):
    """A function that saves a network of random weights in an official layout and loads it."""

    def load(architecture, *, espan_layout, wrap=lambda state: state):
        path = tmp_path / "weights.pth"
        network = make_network(architecture)
        if architecture.normalization is not None:
            network.head.weight.div_(architecture.normalization.img_range)  # for unit gain
        torch.save(wrap(official(network, espan_layout=espan_layout)), path)
        return spandrel.ModelLoader().load_from_file(path), network

    return load


def smooth(*size: int) -> torch.Tensor:
    """An image on which networks of random weights stay in range."""
    coarse = torch.rand(1, 3, 3, 3)
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear") * 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("architecture", "espan_layout"), [(SMALL, True), (WITH_GATE, False)], ids=["espan", "span"]
)
def test_equals_the_upscaler(load, architecture, espan_layout, dtype):
    """Also after a cast to another dtype: the weights are always packed from fp32."""
    model, network = load(architecture, espan_layout=espan_layout)
    assert model.architecture.id == "espan"
    assert (model.scale, model.input_channels, model.output_channels) == (network.scale, 3, 3)
    assert (model.dtype, model.device.type) == (torch.float32, "cpu")
    for size in [(1, 1), (7, 12)]:
        image = smooth(*size).to(dtype)
        expected = espan.Upscaler(network, device="cpu", dtype=dtype)(image)
        result = model.to(torch.bfloat16).to(dtype)(image)
        assert result.dtype == dtype
        assert torch.equal(result, expected)
        if dtype == torch.float32:
            assert (result - network(image).clamp(0, 1)).abs().max() < 1e-5
    assert model.dtype == dtype


def test_half_and_float(load):
    model, _ = load(SMALL, espan_layout=True)
    image = smooth(6, 5)
    before = model(image)
    assert model.half()(image.half()).dtype == torch.float16
    assert torch.equal(model.float()(image), before)


@pytest.mark.parametrize(
    "options",
    [{"feature_channels": 16}, {"upscale": 2, "norm": False}, {"upscale": 1}],
    ids=["c16", "x2", "x1"],
)
def test_span_with_branches(spandrel, options):
    """The pixels are those of spandrel's own SPAN, which is detected later."""
    own = importlib.import_module("spandrel.architectures.SPAN").SPAN
    options = {"feature_channels": 8, **options}
    network = own(num_in_ch=3, num_out_ch=3, **options)
    for branch in (network.conv_1.sk, network.conv_1.conv[0]):
        branch.weight.data.div_(255)  # for a gain near one
    model = spandrel.ModelLoader().load_from_state_dict(network.state_dict())
    assert model.architecture.id == "espan"
    assert model.scale == options.get("upscale", 4)
    assert model.purpose == ("Restoration" if model.scale == 1 else "SR")
    image = smooth(9, 6)
    with torch.no_grad():
        expected = network.eval()(image).clamp(0, 1)
    assert expected.std() > 0
    assert (model(image) - expected).abs().max() < 1e-4


def test_what_espan_does_not_read(spandrel):
    """Gray networks are left to spandrel's own SPAN."""
    own = importlib.import_module("spandrel.architectures.SPAN").SPAN
    state = own(num_in_ch=1, num_out_ch=1, feature_channels=8).state_dict()
    assert spandrel.ModelLoader().load_from_state_dict(state).architecture.id == "SPAN"
    with pytest.raises(spandrel.UnsupportedModelError):
        spandrel.ModelLoader().load_from_state_dict({"conv_1.weight": torch.zeros(1)})


@pytest.mark.parametrize("name", ["spanv2 x3", "spanf x2", "spanf3 b5f48", "spanplus x1"])
def test_newer_members(spandrel, name):
    member = MEMBERS[name]
    theirs = member.network()
    state = {key: value.float() for key, value in theirs.state_dict().items()}
    model = spandrel.ModelLoader().load_from_state_dict(state)
    assert model.architecture.id == "espan"
    assert model.scale == member.architecture.scale
    image = smooth(9, 14)
    expected = theirs(image.double())
    assert (model(image) - expected.clamp(0, 1)).abs().max() < 1e-5
    last = next(k for k in state if k.endswith(("c3.conv.weight", "c3_r.eval_conv.weight")))
    with pytest.raises(CheckpointError, match="state dict: lacks"):
        spandrel.ModelLoader().load_from_state_dict({k: v for k, v in state.items() if k != last})


def test_wrapped_weights(load):
    model, network = load(
        SMALL, espan_layout=True, wrap=lambda state: {"params_ema": state, "params": None}
    )
    image = smooth(5, 5)
    assert torch.equal(model(image), espan.Upscaler(network, device="cpu")(image))


def test_bad_weights_have_the_message_of_the_command_line(load):
    def damage(state):
        del state["block_1.c2_r.eval_conv.weight"]
        return state

    with pytest.raises(CheckpointError, match=r"state dict: lacks 'block_1\.c2_r"):
        load(WITH_GATE, espan_layout=False, wrap=damage)


def test_espans_own_format(spandrel, tmp_path):
    """Its tensors do not say whether and how the input is normalised; an exported file does."""
    loader = spandrel.ModelLoader()
    with pytest.raises(CheckpointError, match=r"espan's own format.*espan export FILE NAME\.pth"):
        loader.load_from_file(checkpoints.bundled()["espan_x4"])
    export.to_pth(espan.load("espan_x4"), tmp_path / "w.pth")
    image = smooth(5, 6)
    expected = espan.Upscaler(device="cpu")(image)
    assert torch.equal(loader.load_from_file(tmp_path / "w.pth")(image), expected)


def test_tiles_are_seamless(load, spandrel, monkeypatch):
    """Programs that respect `tiling` pass the whole image, which espan cuts into tiles."""
    model, _ = load(SMALL, espan_layout=True)
    assert model.tiling == spandrel.ModelTiling.INTERNAL
    image = smooth(40, 30)
    whole = model(image)
    monkeypatch.setattr("espan.upscaling.tile_size", lambda *size: 8)
    assert (model(image) - whole).abs().max() < 1e-6


def test_values_out_of_range_are_reported(load):
    model, _ = load(SMALL, espan_layout=True)
    with pytest.warns(RangeWarning, match="plausible range"):
        result = model(torch.rand(1, 3, 8, 8).round())
    assert 0 <= result.min() <= result.max() <= 1


def test_state_dict(load):
    """It holds the weights, not the empty parameter, and `load_state_dict` accepts it."""
    model, network = load(SMALL, espan_layout=True)
    state = model.half().model.state_dict()
    assert all(torch.equal(state[k], v) for k, v in network.state_dict().items())
    image = smooth(5, 4)
    before = model.float()(image)
    model.model.load_state_dict({k: v * 0 for k, v in state.items()})
    assert not model(image).any()
    model.model.load_state_dict(official(network, espan_layout=True))
    assert torch.equal(model(image), before)
    with pytest.raises(CheckpointError, match="of another architecture"):
        model.model.load_state_dict({k: v[:1] for k, v in state.items()})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(load, copied):
    model, _ = load(SMALL, espan_layout=True)
    image = smooth(5, 4)
    before = model(image)
    assert torch.equal(copied(model.model)(image), before)


def test_comfyui_moves_the_parameter_by_its_data(load):
    """ComfyUI's ModelPatcher sets attributes, among them `device`, and assigns `.data`."""
    model, network = load(SMALL, espan_layout=True)
    model(smooth(5, 4))
    model.model.device = torch.device("cpu")
    model.model.placement.data = model.model.placement.data.to(dtype=torch.bfloat16)
    image = smooth(5, 4).bfloat16()
    expected = espan.Upscaler(network, device="cpu", dtype=torch.bfloat16)(image)
    assert torch.equal(model(image), expected)


def test_devices_without_kernels(load, monkeypatch):
    """The plain network runs there (MPS, XPU, ...); here, the CPU is taken for such a device."""
    model, network = load(SMALL, espan_layout=True)
    monkeypatch.setattr("espan.spandrel.Upscaler", None)
    monkeypatch.setattr("espan.spandrel._WITH_KERNELS", ("cuda",))
    image = smooth(5, 4)
    assert torch.equal(model.model(image), network(image).clamp(0, 1))
    expected = network.to(torch.bfloat16)(image.bfloat16()).clamp(0, 1)
    assert torch.equal(model.bfloat16()(image.bfloat16()), expected)


@pytest.mark.parametrize("file", ["espan_x4_official.pth", "span_c28_x4_official.pth"])
def test_official_files(spandrel, testdata, file):
    path = testdata / "weights" / file
    model = spandrel.ModelLoader().load_from_file(path)
    assert model.architecture.id == "espan"
    pixels = espan.imaging.read_image(testdata / "testsets/Set5/LRx4/butterfly.png").pixels
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None, :, :40, :48] / 255
    expected = espan.load(path)(image).clamp(0, 1)
    assert (model(image) - expected).abs().max() < 1e-5
    half = espan.Upscaler(path, device="cpu", dtype=torch.float16)(image.half())
    assert torch.equal(model.half()(image.half()), half)


def test_registered_once(spandrel):
    importlib.reload(sys.modules["espan.spandrel"])
    order = [a.architecture.id for a in spandrel.MAIN_REGISTRY.architectures("detection")]
    assert order.count("espan") == 1
    assert order.index("espan") < order.index("SPAN")


def test_without_spandrel(monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    monkeypatch.delitem(sys.modules, "espan.spandrel", raising=False)
    command = re.escape(install_command("spandrel"))
    with pytest.raises(ImportError, match=f"needs spandrel .*install it with {command}"):
        importlib.import_module("espan.spandrel")
