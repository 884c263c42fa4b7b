"""SPANV2, SPANF, SPANF3 and SPANPlus: files, topology, counts, folding."""

import json
import re

import pytest
import torch

import espan
from espan import checkpoints, export
from espan.branches import conv_factory
from espan.engines import Composed
from espan.errors import CheckpointError, EspanError, RangeWarning
from espan.evaluation.evaluate import evaluate, find_pairs
from espan.folding import fold
from espan.models import ESPAN, NAMED, Architecture, Network, complexity
from espan.reparameterize import collapse, expand
from espan.tiling import tiles
from espan.training.experiment import Change
from espan.training.initialise import initialise
from espan.training.networks import Shape, build, start
from espan.upscaling import Upscaler
from espan_kernels import reference
from tests.family import MEMBERS, SPANF3, SPANV2, SPANPlus
from tests.tolerance import assert_accurate

FORMS = [
    (name, branches)
    for name, member in MEMBERS.items()
    for branches in ((False, True) if member.branches else (False,))
]


def saved(state, path, wrap=lambda state: state):
    torch.save(wrap({k: v.float() for k, v in state.items()}), path)
    return path


def assert_equal(found, expected):
    assert (found - expected).abs().max() < 1e-12 * expected.abs().max()


# Files


@pytest.mark.parametrize(("name", "branches"), FORMS)
def test_files(name, branches, tmp_path):
    """The architecture is recognised, and the network gives what the published one gives."""
    member = MEMBERS[name]
    theirs = member.network(branches=branches)
    ours = espan.load(saved(theirs.state_dict(), tmp_path / "w.pth"))
    assert ours.architecture == member.architecture
    for size in [(9, 14), (8, 8)]:
        x = torch.rand(2, 3, *size, dtype=torch.float64)
        found, expected = ours.double()(x), theirs(x)
        # Merged kernels are rounded to fp32; plain ones are the file's.
        tolerance = 3e-5 if branches else 1e-12
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"params": s},
        lambda s: {"params": {k: v + 1 for k, v in s.items()}, "params_ema": s},
        lambda s: {"state_dict": {f"net_g.{k}": v for k, v in s.items()}},
        lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
        lambda s: {re.sub(r"(block_1|feats\.1)\.", r"\1._orig_mod.", k): v for k, v in s.items()},
        lambda s: {k: v.half() for k, v in s.items()},
    ],
)
@pytest.mark.parametrize("name", ["spanv2 x3", "spanf x2", "spanf3 x4", "spanplus x1"])
def test_wrapped_files(name, wrap, tmp_path):
    member = MEMBERS[name]
    state = member.network().state_dict()
    network = espan.load(saved(state, tmp_path / "w.pth", wrap))
    assert network.architecture == member.architecture
    theirs = state["block_1.c1.conv.weight"] if name == "spanv2 x3" else None
    if theirs is not None:
        assert (network.blocks[0].convs[0].weight - theirs).abs().max() < 2e-3


def test_a_network_beside_its_branches(tmp_path):
    """Two networks are refused; the layouts of the family are found by their own keys."""
    state = MEMBERS["spanplus x1"].network().state_dict()
    path = saved(state, tmp_path / "w.pth", lambda s: {"a": s, "b": s})
    with pytest.raises(CheckpointError, match="2 networks, under 'a', 'b'"):
        espan.load(path)


def groups(state):
    return state | {k.replace("feats.1", "feats.2"): v for k, v in state.items()}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("spanplus x1", groups, "a SPANPlus of 2 groups of blocks"),
        (
            "spanplus x1",
            lambda s: s | {"upsampler.offset.weight": torch.zeros(8, 12, 1, 1)},
            "whose upsampler is DySample",
        ),
        ("spanplus x1", lambda s: without(s, "feats.1.conv_cat.bias"), "lacks 'feats.1.conv_cat"),
        ("spanplus x1", lambda s: s | {"upsampler.0.weight": torch.zeros(1)}, "lacks 'upsampler.0"),
        (
            "spanf3 x4",
            lambda s: without(s, "block_1.att_conv.weight"),
            r"lacks 'block_1.att_conv.*has 'block_1.att_conv.bias'",
        ),
        ("spanf3 x4", lambda s: without(s, "to_pixel."), "lacks 'to_pixel.eval_conv.weight'"),
        (
            "spanf3 x4",
            lambda s: s | {"conv_2.weight": torch.zeros(1)},
            "no part of the network: 'conv_2.weight'",
        ),
        (
            "spanf3 b5f48",
            lambda s: s | {"conv_1.1.eval_conv.weight": torch.zeros(48, 13, 3, 3)},
            r"13 inputs; 3\*u\*u is expected",
        ),
        (
            "spanf3 b5f48",
            lambda s: (
                s
                | {
                    "to_pixel.eval_conv.weight": torch.zeros(27, 48, 3, 3),
                    "to_pixel.eval_conv.bias": torch.zeros(27),
                }
            ),
            "upscales by 3 after it has unshuffled 2 x 2 pixels; expected a multiple of 2",
        ),
        ("spanf x2", lambda s: without(s, "conv_near."), "lacks 'conv_near.weight'"),
        ("spanf x2", lambda s: without(s, "conv_cat.bias"), "lacks 'conv_cat"),
        (
            "spanf x2",
            lambda s: s | {"conv_near.weight": torch.zeros(27, 1, 3, 3)},
            r"'near.weight' is \(27, 1, 3, 3\) where \(12, 1, 3, 3\) is expected",
        ),
        (
            "spanv2 x3",
            lambda s: without(s, "block_2.guidance_map_conv.bias"),
            "lacks 'block_2.guidance_map_conv.bias'",
        ),
        (
            "spanv2 x3",
            lambda s: s | {"block_2.c2.conv.bias": torch.zeros(20)},
            "no part of the network: 'block_2.c2.conv.bias'",
        ),
        (
            "spanv2 x3",
            lambda s: s | {"pointwise_conv.weight": torch.zeros(50, 47, 1, 1)},
            "50 outputs",
        ),
        (
            "spanv2 x3",
            lambda s: s | {"conv_near.weight": torch.zeros(27, 3, 3)},
            r"'conv_near' is not a square convolution: weight \(27, 3, 3\)",
        ),
    ],
)
def test_files_that_are_refused(name, change, message, tmp_path):
    path = saved(change(MEMBERS[name].network().state_dict()), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=message):
        espan.load(path)


def without(state, prefix):
    kept = {k: v for k, v in state.items() if not k.startswith(prefix)}
    assert len(kept) < len(state)
    return kept


@pytest.mark.parametrize(("name", "psnr"), [("Set5", 29.838), ("Set14", 26.551)])
def test_the_official_spanv2(name, psnr, testdata):
    folder = testdata / "testsets" / name
    weights = testdata / "weights" / "spanv2_x4_official.pth"
    assert espan.load(weights).architecture == NAMED["spanv2"]
    pairs = find_pairs(folder / "HR", folder / "LRx4", [4])
    scores = [score.psnr for score in evaluate(pairs, Upscaler(weights, device="cpu"))]
    assert abs(sum(scores) / len(scores) - psnr) < 0.003


# Counts and data


@pytest.mark.parametrize(
    ("name", "theirs", "parameters", "macs"),
    [
        ("spanv2", SPANV2(), 139_104, 138_976),
        ("spanf", MEMBERS["spanf"].network(), 148_288, 147_728),
        # Counted from the published modules' convolutions, at 1/u^2 of the pixels.
        ("spanf3_b5f48", SPANF3(), 358_800, 89_424),
        ("spanf3_b8f64", SPANF3(64, 8), 970_672, 242_112),
        ("spanplus", SPANPlus(), 426_288, 425_232),
    ],
)
def test_counts(name, theirs, parameters, macs):
    counts = complexity(NAMED[name], 8, 6)
    assert counts.parameters == sum(p.numel() for p in theirs.parameters()) == parameters
    assert counts.macs == 48 * macs


def test_macs_of_odd_sizes_count_the_extension():
    assert complexity(NAMED["spanf3_b5f48"], 7, 5).macs == 48 * 89_424


@pytest.mark.parametrize("name", MEMBERS)
def test_dict_round_trip(name):
    architecture = MEMBERS[name].architecture
    assert Architecture.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture


def test_data_of_earlier_versions():
    """Files that were written before the family grew lack the new fields."""
    old = {
        "channels": 32,
        "convs": [3, 3, 3, 3, 3, 2],
        "scale": 4,
        "head_kernel": 9,
        "concat_last": "output",
        "normalization": None,
    }
    assert Architecture.from_dict(old) == ESPAN
    with pytest.raises(EspanError, match=r"missing keys \['convs'\]"):
        Architecture.from_dict({k: v for k, v in old.items() if k != "convs"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "gelu"}, "activation must be 'silu', 'relu' or 'mish', got 'gelu'"),
        ({"gate": "none"}, "gate must be 'sigmoid', 'linear' or 'tanh', got 'none'"),
        ({"stem": "near"}, "stem must be 'conv', 'block' or 'activated_block', got 'near'"),
        ({"tail": "3x3"}, "tail must be 'conv', 'pointwise' or 'depthwise', got '3x3'"),
        ({"bias": 1}, "bias must be true or false, got 1"),
        ({"unshuffle": 0}, "unshuffle must be an integer >= 1, got 0"),
        ({"unshuffle": 2}, "with unshuffle 2, head_kernel must be 3, got 9"),
        ({"stem": "block"}, r"stem 'block' needs 3 conv.* got \(3, 9, 1, 'output'\)"),
        ({"tail": "depthwise"}, "tail 'depthwise' needs the stem 'block' or .* got 'conv'"),
    ],
)
def test_bad_descriptions(change, message):
    with pytest.raises(EspanError, match=message):
        ESPAN.replace(**change)


# Topology


@pytest.mark.parametrize("name", [n for n in MEMBERS if n not in ("spanf3 b8f64", "spanplus")])
def test_receptive_radius(name, make_network):
    """A row at the radius matters, one beyond it does not, for every row of an unshuffled pixel."""
    architecture = MEMBERS[name].architecture
    network, radius = make_network(architecture).double(), architecture.receptive_radius
    u, s = architecture.unshuffle, architecture.scale
    start = -(-radius // u) * u  # of the rows that one unshuffled pixel holds
    rows = slice(s * start, s * (start + u))
    height, width = start + u + radius + u, 2 * (radius // 4) + u
    x = torch.rand(1, 3, 1, width, dtype=torch.float64).expand(1, 3, height, -1).clone()
    before = network(x)[:, :, rows]
    reached = []
    for row in range(height):
        changed = x.clone()
        changed[:, :, row] += 10
        if not torch.equal(network(changed)[:, :, rows], before):
            reached.append(row)
    assert start + u - 1 - reached[0] == radius
    assert reached[-1] - start == radius


@pytest.mark.parametrize("name", MEMBERS)
def test_folding_is_exact_at_the_border(name, make_network):
    network = make_network(MEMBERS[name].architecture, seed=1).double()
    cpu = torch.device("cpu")
    folded = Composed(fold(network), device=cpu, dtype=torch.float64, gate=reference.gate)
    for size in [(5, 6), (4, 4), (9, 7)]:
        x = torch.rand(2, 3, *size, dtype=torch.float64)
        assert_equal(folded(x, torch.zeros(1, dtype=torch.int32)), network(x))


@pytest.mark.parametrize("name", ["spanv2", "spanv2 x3"])
def test_the_depthwise_tail_as_one_convolution(name, make_network):
    network = make_network(MEMBERS[name].architecture).double()
    of_near, of_last = fold(network).merged_upsample()
    near = torch.rand(1, len(of_near), 5, 6, dtype=torch.float64)
    last = torch.rand(1, of_last.shape[1], 5, 6, dtype=torch.float64)
    conv = torch.nn.functional.conv2d
    merged = conv(near, of_near, padding=1) + conv(last, of_last, padding=1)
    expected = network.tail(near, last, last, last)
    assert_equal(torch.pixel_shuffle(merged, network.scale), expected)


def test_a_normalisation_is_folded_into_both_convolutions_of_the_image(make_network):
    """No published file has one; `normalization=` of `espan.load` can set it."""
    norm = espan.models.SPAN_NORMALIZATION
    network = make_network(MEMBERS["spanf x2"].architecture.replace(normalization=norm)).double()
    cpu = torch.device("cpu")
    folded = Composed(fold(network), device=cpu, dtype=torch.float64, gate=reference.gate)
    x = torch.rand(1, 3, 6, 7, dtype=torch.float64)
    expected = network(x)
    error = (folded(x, torch.zeros(1, dtype=torch.int32)) - expected).abs().max()
    assert error < 1e-6 * expected.abs().max()  # the mean is kept in fp32


@pytest.mark.parametrize("size", [(1, 8), (8, 3)])
def test_images_smaller_than_an_unshuffled_pixel(size, make_network):
    network = make_network(MEMBERS["spanf3 x1, unshuffled by 4"].architecture)
    with pytest.raises(EspanError, match="takes 4 x 4 pixels as one and needs at least that many"):
        network(torch.rand(1, 3, *size))


def test_first_weights():
    """SPANF3's gates begin open, and `near` as nearest-neighbour upsampling."""
    network = Network(NAMED["spanf3_b5f48"])
    assert all(
        (b.gate_conv.weight == 0).all() and (b.gate_conv.bias == 3).all() for b in network.blocks
    )
    x = torch.rand(1, 3, 4, 5)
    near = Network(NAMED["spanf"]).near(x)
    expected = torch.nn.functional.interpolate(x, scale_factor=4)
    assert torch.equal(torch.pixel_shuffle(near, 4), expected)


def test_own_form_round_trip(tmp_path, make_network):
    for i, name in enumerate(["spanv2 x3", "spanf x2", "spanf3 b5f48", "spanplus x1"]):
        network = make_network(MEMBERS[name].architecture)
        checkpoints.save(network, tmp_path / f"{i}.safetensors", record={"n": i})
        loaded = espan.load(tmp_path / f"{i}.safetensors")
        assert loaded.architecture == network.architecture
        for key, value in network.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), key


# Tiles and the range guard


@pytest.mark.parametrize("unshuffle", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(1, 1), (5, 700), (257, 256)])
@pytest.mark.parametrize("size", [None, 1, 64])
def test_tiles_begin_on_the_grid_of_unshuffled_pixels(unshuffle, shape, size):
    count = torch.zeros(shape, dtype=int)
    for tile in tiles(*shape, size, 23, unshuffle):
        count[tile.y.start : tile.y.stop, tile.x.start : tile.x.stop] += 1
        for span, length in zip(tile, shape, strict=True):
            assert span.read_start % (4 * unshuffle) == 0
            assert span.read_stop == length or span.read_stop % unshuffle == 0
            assert span.read_start <= max(0, span.start - 23)
            assert span.read_stop >= min(length, span.stop + 23)
    assert (count == 1).all()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("size", [(41, 67), (40, 36)])
@pytest.mark.parametrize(
    "name",
    ["spanf3 x1, unshuffled by 4", "spanf3 x1, unshuffled by 3", "spanv2 x3", "spanf x2"],
)
def test_tiles_do_not_show(name, size, backend, make_network):
    network = make_network(MEMBERS[name].architecture)
    image = torch.rand(3, *size)
    whole = Upscaler(network, device="cpu", tile=None, backend=backend)(image)
    tiled = Upscaler(network, device="cpu", tile=12, backend=backend)(image)
    assert whole.shape[1:] == tuple(network.scale * side for side in size)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=4e-6)


def test_small_images(make_network):
    upscaler = Upscaler(make_network(MEMBERS["spanf3 b5f48"].architecture), device="cpu")
    assert upscaler(torch.rand(3, 2, 3)).shape == (3, 4, 6)
    with pytest.raises(EspanError, match="the image has 1 x 9 pixels"):
        upscaler(torch.rand(3, 1, 9))


@pytest.mark.parametrize("name", ["spanv2 x3", "spanf x2", "spanf3 b5f48", "spanplus x1"])
def test_the_range_guard(name, make_network):
    network = make_network(MEMBERS[name].architecture)
    last = network.tail.upsample if hasattr(network.tail, "upsample") else network.tail.pointwise
    last.weight.mul_(1000)
    with pytest.warns(RangeWarning, match="the output left the plausible range"):
        Upscaler(network, device="cpu")(torch.rand(3, 9, 12))


# Training


@pytest.mark.parametrize("kind", ["plain", "grep"])
@pytest.mark.parametrize("name", ["spanv2 x3", "spanf x2", "spanf3 b5f48", "spanplus x1"])
def test_training_forms(name, kind, make_network):
    """A network becomes one in training form and back, bit for bit; gradients reach all weights."""
    network = make_network(MEMBERS[name].architecture.replace(channels=8))
    trained = expand(network, conv_factory(kind, grep=(1, 1)))
    merged = collapse(trained).state_dict()
    assert all(torch.equal(merged[key], value) for key, value in network.state_dict().items())
    assert merged.keys() == network.state_dict().keys()
    trained.requires_grad_().train()
    x = torch.rand(2, 3, 7, 9)
    trained(x).square().mean().backward()
    unused = [k for k, p in trained.named_parameters() if p.grad is None or p.grad.isnan().any()]
    assert not unused
    fresh = Network(network.architecture, conv=conv_factory(kind, grep=(1, 1))).double()
    x = x.double()
    assert_equal(collapse(fresh)(x), fresh(x))


def test_convolutions_without_bias_cannot_have_all_branches():
    with pytest.raises(EspanError, match="conv = 'edbb': its branches have biases"):
        Network(NAMED["spanv2"], conv=conv_factory("edbb"))


@pytest.mark.parametrize("name", ["spanv2", "spanf", "spanf3_b5f48"])
def test_the_bilinear_start_is_for_span_and_espan(name):
    network = Network(NAMED[name].replace(channels=8))
    with pytest.raises(EspanError, match='init = "bilinear" is for networks such as SPAN'):
        initialise(network, torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("name", ["spanv2 x3", "spanf x2", "spanf3 b5f48", "spanplus x1"])
def test_another_scale_keeps_what_does_not_depend_on_it(name):
    shape = Shape(MEMBERS[name].architecture.replace(channels=8))
    change = Change(scale=4)
    conv = conv_factory("grep", grep=(1, 0))
    old = build(shape, conv=conv, gate=reference.gate).requires_grad_(False)
    new = build(shape.changed(change), conv=conv, gate=reference.gate).requires_grad_(False)
    text = start(new, old, change, images=None)
    assert ("near" in text) == name.startswith(("spanv2", "spanf x"))
    for key, value in old.blocks.state_dict().items():
        assert torch.equal(new.blocks.state_dict()[key], value)
    assert new(torch.rand(1, 3, 6, 6)).shape == (1, 3, 24, 24)


# Other programs


@pytest.mark.parametrize("name", [n for n in MEMBERS if "b8f64" not in n])
def test_pth(name, make_network, tmp_path):
    """Written in the published layout, and every bit is kept."""
    network = make_network(MEMBERS[name].architecture)
    export.to_pth(network, tmp_path / "w.pth")
    read = espan.load(tmp_path / "w.pth")
    assert read.architecture == network.architecture
    assert all(torch.equal(read.state_dict()[k], v) for k, v in network.state_dict().items())
    theirs = MEMBERS[name].network().state_dict()
    kept = {key.replace(".eval_conv", "") for key in theirs}
    assert kept - torch.load(tmp_path / "w.pth").keys() <= {"upsampler.weight", "upsampler.bias"}


def test_pth_cannot_describe_mixtures(make_network, tmp_path):
    mixed = MEMBERS["spanf x2"].architecture.replace(activation="mish")
    with pytest.raises(EspanError, match="cannot describe this network"):
        export.to_pth(make_network(mixed), tmp_path / "w.pth")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "name", ["spanv2 x3", "spanf x2", "spanf3 b5f48", "spanf3 x1, unshuffled by 4", "spanplus x1"]
)
def test_onnx(name, dtype, make_network, tmp_path):
    """Also images whose sides are not multiples of the unshuffled pixels."""
    pytest.importorskip("onnx", reason='onnx is not installed (pip install ".[onnx]")')
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    network = make_network(MEMBERS[name].architecture)
    export.to_onnx(network, tmp_path / "n.onnx", dtype=dtype, opset=18)
    session = runtime.InferenceSession(tmp_path / "n.onnx", providers=["CPUExecutionProvider"])
    plain = {d: make_network(MEMBERS[name].architecture).to(d) for d in (torch.float64, dtype)}
    for size in [(4, 4), (7, 13)]:
        x = torch.rand(1, 3, *size).to(dtype)
        found = torch.from_numpy(session.run(["output"], {"input": x.numpy()})[0])
        assert_accurate(found, lambda d, x=x: plain[d](x.to(d)), factor=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spanv2 x3", "spanf3 b5f48", "spanf3 x1, unshuffled by 4"])
def test_pt2(name, make_network, tmp_path):
    network = make_network(MEMBERS[name].architecture)
    export.to_pt2(network, tmp_path / "n.pt2")
    loaded = torch.export.load(tmp_path / "n.pt2").module()
    for size in [(5, 5), (7, 13), (10, 8)]:
        x = torch.rand(1, 3, *size)
        torch.testing.assert_close(loaded(x), network(x))
