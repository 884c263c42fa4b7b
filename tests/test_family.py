"""SPANV2, SPANF, SPANF3 and SPANPlus: files, topology, counts, folding."""

import json
import re

import pytest
import torch

import espan
from espan import checkpoints
from espan.engines import Composed
from espan.errors import CheckpointError, EspanError, RangeWarning
from espan.evaluation.evaluate import evaluate, find_pairs
from espan.folding import fold
from espan.models import ESPAN, NAMED, Architecture, Network, complexity
from espan.tiling import tiles
from espan.upscaling import Upscaler
from espan_kernels import reference
from tests.family import MEMBERS, SPANF3, SPANV2, SPANPlus

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
    torch.testing.assert_close(tiled, whole, rtol=0, atol=2e-6)


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
