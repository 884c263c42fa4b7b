"""Reading all weight layouts in use, and clear errors for all other files."""

import errno
import json
import math
import os
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

import espan
from espan import checkpoints
from espan.errors import CheckpointError
from espan.models import ESPAN, SPAN, SPAN_NORMALIZATION, Network, Normalization


def official(network: Network, *, espan_layout: bool) -> OrderedDict:
    """The state dict of a plain network with the keys of the challenge's files."""
    names = {"head": "conv_1.eval_conv"}
    for i, block in enumerate(network.blocks):
        last = i == len(network.blocks) - 1
        name = "teacher_block_seq" if espan_layout and last else f"block_{i + 1}"
        for j in range(len(block.convs)):
            names[f"blocks.{i}.convs.{j}"] = f"{name}.c{j + 1}_r.eval_conv"
    tea = "tea_" if espan_layout else ""
    names["tail.post"] = f"{tea}conv_2.eval_conv"
    names["tail.fuse"] = f"{tea}conv_cat"
    names["tail.upsample"] = f"{tea}upsampler.0" + (".eval_conv" if espan_layout else "")
    return OrderedDict(
        (f"{names[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}", v)
        for k, v in network.state_dict().items()
    )


def assert_same(network: Network, other: Network) -> None:
    assert network.architecture == other.architecture
    for name, tensor in other.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name


@pytest.fixture
def espan_file(tmp_path, make_network):
    path = tmp_path / "espan.pth"
    torch.save(official(make_network(ESPAN), espan_layout=True), path)
    return path


def rewrite(path, change):
    state = torch.load(path)
    change(state)
    torch.save(state, path)
    return path


# Files that can be read


def test_espan_layout(espan_file, make_network):
    network = espan.load(espan_file)
    assert_same(network, make_network(ESPAN))
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(
    "architecture", [SPAN, SPAN.replace(channels=12, scale=2), SPAN.replace(convs=(3, 3))]
)
def test_span_layout(architecture, tmp_path, make_network):
    network = make_network(architecture)
    torch.save(official(network, espan_layout=False), tmp_path / "span.pth")
    assert_same(espan.load(tmp_path / "span.pth"), network)


def test_span_without_norm(tmp_path, make_network):
    state = official(make_network(SPAN), espan_layout=False)
    torch.save({**state, "no_norm": torch.zeros(1)}, tmp_path / "span.pth")
    assert espan.load(tmp_path / "span.pth").architecture.normalization is None


def under(prefix, state):
    return {prefix + k: v for k, v in state.items()}


def other(state):
    return {k: v + 1 for k, v in state.items()}


def averaged_model(state):
    """What `torch.optim.swa_utils.AveragedModel` saves."""
    return {"n_averaged": torch.tensor(3), **under("module.", state)}


@pytest.mark.parametrize("path", ["params", "model / state_dict", "anything"])
@pytest.mark.parametrize(
    "prefix",
    [
        *("", "module.", "netG.", "_orig_mod.", "model.", "net.", "net_g.", "generator."),
        *("module._orig_mod.", "_orig_mod.module.", "model.net_g._orig_mod.", "a.netG.b."),
    ],
)
@pytest.mark.parametrize("espan_layout", [True, False])
def test_wrappers_and_prefixes(path, prefix, espan_layout, tmp_path, make_network):
    network = make_network((ESPAN if espan_layout else SPAN).replace(channels=4))
    saved = under(prefix, official(network, espan_layout=espan_layout))
    for key in reversed(path.split(" / ")):
        saved = {key: saved, "epoch": 3, "optimizer": {"state": {0: torch.zeros(1)}}}
    torch.save(saved, tmp_path / "w.pth")
    loaded = espan.load(tmp_path / "w.pth")
    assert_same(loaded, network)
    assert loaded.record == {"taken from": f"{path} / {prefix}" if prefix else path}


@pytest.mark.parametrize(
    ("save", "taken"),
    [
        (lambda s, a: {"params": s, "params_ema": a}, "params_ema (not params)"),
        (lambda s, a: {"state_dict": s, "state_dict_ema": a}, "state_dict_ema (not state_dict)"),
        (lambda s, a: {"model": s, "model_ema": a, "ema": None}, "model_ema (not model)"),
        (lambda s, a: {"net": s, "net_ema": a}, "net_ema (not net)"),
        (lambda s, a: {"model": s, "ema": a}, "ema (not model)"),
        (lambda s, a: {"g": s, "g_ema": a}, "g_ema (not g)"),
        (lambda s, a: {"ema_state_dict": a, "state_dict": s}, "ema_state_dict (not state_dict)"),
        (lambda s, a: {"model": s, "EMA": {"decay": 0.9, "module": a}}, "EMA / module (not model)"),
        (lambda s, a: {"model": {"raw": s, "ema": a}}, "model / ema (not model / raw)"),
        (lambda s, a: {"net": s, "swa": averaged_model(a)}, "swa / module. (not net)"),
        (lambda s, a: {"net": s, "shadow": averaged_model(a)}, "shadow / module. (not net)"),
        (lambda s, a: averaged_model(a), "module."),
        (lambda s, a: under("_orig_mod.", averaged_model(a)), "_orig_mod.module."),
        (lambda s, a: averaged_model(under("_orig_mod.", a)), "module._orig_mod."),
        (
            lambda s, a: {"state_dict": {**under("model.", s), **under("model_ema.", a)}},
            "state_dict / model_ema. (not state_dict / model.)",
        ),
        (
            lambda s, a: {"state_dict": {**under("net.", s), **under("w.", averaged_model(a))}},
            "state_dict / w.module. (not state_dict / net.)",
        ),
        (lambda s, a: {**s, **under("ema.", a)}, "ema. (not no key)"),
        (  # ema_pytorch, beside the model
            lambda s, a: {
                "model": s,
                "ema": {
                    "initted": torch.tensor(True),
                    "step": torch.tensor(9),
                    **under("online_model.", s),
                    **under("ema_model.", a),
                },
            },
            "ema / ema_model. (not model, ema / online_model.)",
        ),
    ],
)
def test_the_average_is_used(save, taken, tmp_path, make_network):
    network = make_network(ESPAN.replace(channels=4))
    state = official(network, espan_layout=True)
    torch.save(save(other(state), state), tmp_path / "w.pth")
    loaded = espan.load(tmp_path / "w.pth")
    assert_same(loaded, network)
    assert loaded.record == {"taken from": taken}


@pytest.mark.parametrize(
    ("beside", "left_out"),
    [
        (
            {"loss.weight": torch.zeros(1), "perceptual.vgg.features.0.weight": torch.zeros(1)},
            "loss., perceptual.",
        ),
        ({"net_d.conv.weight": torch.zeros(1), "net_d.conv.bias": torch.zeros(1)}, "net_d."),
        ({"alpha": torch.zeros(1), "loss.name": "l1"}, "alpha, loss."),
    ],
)
def test_other_modules_are_left_out(beside, left_out, tmp_path, make_network):
    """Lightning saves the whole module, including its losses."""
    network = make_network(SPAN.replace(channels=4))
    state = under("net_g.", official(network, espan_layout=False))
    torch.save({"state_dict": {**beside, **state}, "epoch": 3}, tmp_path / "w.ckpt")
    loaded = espan.load(tmp_path / "w.ckpt")
    assert_same(loaded, network)
    assert loaded.record == {"taken from": f"state_dict / net_g. (not {left_out})"}


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "net_g."])
@pytest.mark.parametrize("espan_layout", [True, False])
@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod."])
def test_wrapped_parts(wrapper, espan_layout, prefix, tmp_path, make_network):
    """Some or all blocks or convolutions are compiled separately."""
    network = make_network((ESPAN if espan_layout else SPAN).replace(channels=4))
    state = official(network, espan_layout=espan_layout)
    for part in (r"^\w+\.", r"^block_\d\.", r"\.c\d_r\.", r"^block_2\."):
        wrapped = {re.sub(f"({part})", rf"\1{wrapper}", key): v for key, v in state.items()}
        assert wrapped.keys() != state.keys()
        torch.save(under(prefix, wrapped), tmp_path / "w.pth")
        assert_same(espan.load(tmp_path / "w.pth"), network)
    twice = {**state, "block_1._orig_mod.c1_r.eval_conv.bias": torch.zeros(4)}
    torch.save(twice, tmp_path / "w.pth")
    assert_rejected(tmp_path / "w.pth", "has 'block_1.c1_r.eval_conv.bias' twice")


def contains_itself(state):
    outer = {"state_dict": state}
    outer["model"] = {"inner": outer}
    return outer


def nested(state):
    for _ in range(100):
        state = {"model": state}
    return state


@pytest.mark.parametrize("wrap", [contains_itself, nested])
@pytest.mark.parametrize("recognised", [True, False])
def test_recursive_dicts(wrap, recognised, tmp_path, make_network):
    state = {"a": torch.zeros(1)}
    if recognised:
        state = official(make_network(ESPAN.replace(channels=4)), espan_layout=True)
    torch.save(wrap(state), tmp_path / "w.pth")
    assert_rejected(
        tmp_path / "w.pth", "dicts nested more than 20 deep, or one that contains itself"
    )


@pytest.mark.parametrize(
    ("save", "pattern"),
    [
        (
            lambda s: {"student": s, "teacher": other(s)},
            "holds 2 networks, under 'student', 'teacher'; save only one of them",
        ),
        (
            lambda s: {"net": s, "ema_0.99": s, "ema_0.999": other(s)},
            "2 networks, under 'ema_0.99', 'ema_0.999'",
        ),
        (
            lambda s: {**s, "epoch": 3},
            "no part of the network: 'epoch'; expected only tensors",
        ),
        (lambda s: {**s, "n_averaged_": torch.zeros(1)}, "no part of the network: 'n_averaged_'"),
        (
            lambda s: under("net.", {k: v for k, v in s.items() if k != "conv_1.eval_conv.bias"}),
            "lacks 'conv_1.eval_conv.bias'",
        ),
        (
            lambda s: {**s, "block_1.c1_r.eval_conv.weight": 3},
            "no part of the network: 'block_1.c1_r.eval_conv.weight'",
        ),
    ],
)
def test_strict_under_wrappers_and_prefixes(save, pattern, tmp_path, make_network):
    torch.save(save(official(make_network(ESPAN), espan_layout=True)), tmp_path / "w.pth")
    assert_rejected(tmp_path / "w.pth", pattern)


class Conv3XC(nn.Module):
    """SPAN's training convolution, written out from its published code."""

    def __init__(self, c_in, c_out, gain=2):
        super().__init__()
        self.sk = nn.Conv2d(c_in, c_out, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(c_in, c_in * gain, 1),
            nn.Conv2d(c_in * gain, c_out * gain, 3),
            nn.Conv2d(c_out * gain, c_out, 1),
        )

    def forward(self, x):
        return self.conv(F.pad(x, (1, 1, 1, 1))) + self.sk(x)


@pytest.mark.parametrize("stale", [False, True])
def test_span_training_form(stale, tmp_path):
    """Branches are merged, regardless of an `eval_conv` beside them."""
    channels = 10
    torch.manual_seed(0)
    trained = Network(SPAN.replace(channels=channels))
    state = {}

    def replace(parent, key, name):
        old = parent[key] if isinstance(key, int) else getattr(parent, key)
        new = Conv3XC(old.in_channels, old.out_channels)
        if isinstance(key, int):
            parent[key] = new
        else:
            setattr(parent, key, new)
        state.update({f"{name}.{k}": v for k, v in new.state_dict().items()})
        if stale:
            state[f"{name}.eval_conv.weight"] = torch.zeros(old.out_channels, old.in_channels, 3, 3)
            state[f"{name}.eval_conv.bias"] = torch.zeros(old.out_channels)

    replace(trained, "head", "conv_1")
    for i, block in enumerate(trained.blocks):
        for j in range(3):
            replace(block.convs, j, f"block_{i + 1}.c{j + 1}_r")
    replace(trained.tail, "post", "conv_2")
    for name, conv in (("conv_cat", trained.tail.fuse), ("upsampler.0", trained.tail.upsample)):
        state.update({f"{name}.{k}": v for k, v in conv.state_dict().items()})
    torch.save({"params": state}, tmp_path / "train.pth")

    network = espan.load(tmp_path / "train.pth").double()
    x = torch.rand(1, 3, 8, 7, dtype=torch.float64)
    expected = trained.double()(x)
    assert (network(x) - expected).abs().max() < 1e-5 * expected.abs().max()  # weights in fp32


def test_own_form_round_trip(tmp_path, make_network):
    network = make_network(SPAN.replace(channels=12))
    record = {"images": 3, "note": "ünïcode"}
    for name in ("own.safetensors", os.fsdecode(b"not UTF-8 \xe9.safetensors")):
        checkpoints.save(network, tmp_path / name, record=record)
        loaded = espan.load(tmp_path / name)
        assert_same(loaded, network)
        assert loaded.record == record


def test_official_layout_as_safetensors(tmp_path, make_network):
    network = make_network(ESPAN)
    safetensors.torch.save_file(official(network, espan_layout=True), tmp_path / "w.safetensors")
    assert_same(espan.load(tmp_path / "w.safetensors"), network)


def test_half_precision_files_become_fp32(espan_file):
    rewrite(espan_file, lambda s: s.update({k: v.half() for k, v in s.items()}))
    assert espan.load(espan_file).head.weight.dtype == torch.float32


def test_normalization_override(tmp_path, make_network):
    torch.save(official(make_network(SPAN), espan_layout=False), tmp_path / "span.pth")
    other = Normalization((0.5, 0.5, 0.5), 1.0)
    for given in (other, None):
        network = espan.load(tmp_path / "span.pth", normalization=given)
        assert network.architecture.normalization == given
    x = torch.rand(1, 3, 6, 6)
    assert not torch.equal(network(x), espan.load(tmp_path / "span.pth")(x))


def test_official_files(testdata):
    network = espan.load(testdata / "weights" / "espan_x4_official.pth")
    assert network.architecture == ESPAN
    network = espan.load(testdata / "weights" / "span_c28_x4_official.pth")
    assert network.architecture == SPAN
    assert network.architecture.normalization == SPAN_NORMALIZATION


def test_bundled_weights():
    network = espan.load()
    assert network.scale == 4
    assert network.record["psnr network"] > 26.5  # on the photographs held out
    path = checkpoints.bundled()[checkpoints.DEFAULT]
    assert path.stat().st_size < 1_000_000


# Files that are rejected


def assert_rejected(path, pattern):
    with pytest.raises(CheckpointError) as caught:
        espan.load(path)
    message = str(caught.value)
    assert re.search(pattern, message), message
    assert str(path) in message
    assert "\n" not in message


def test_an_extra_key(espan_file):
    rewrite(espan_file, lambda s: s.update({"block_9.c1.weight": torch.zeros(1)}))
    assert_rejected(espan_file, "keys that belong to no part of the network: 'block_9.c1.weight'")


def test_a_missing_key(espan_file):
    rewrite(espan_file, lambda s: s.pop("block_3.c2_r.eval_conv.bias"))
    assert_rejected(espan_file, "lacks 'block_3.c2_r.eval_conv.bias'")


def test_a_missing_layer(espan_file):
    def change(state):
        for part in ("weight", "bias"):
            state.pop(f"tea_conv_2.eval_conv.{part}")

    assert_rejected(rewrite(espan_file, change), "lacks 'tea_conv_2.eval_conv.weight'")


def test_wrong_shape(espan_file):
    rewrite(
        espan_file,
        lambda s: s.update({"block_1.c1_r.eval_conv.weight": torch.zeros(32, 30, 3, 3)}),
    )
    assert_rejected(espan_file, r"\(32, 30, 3, 3\) where \(32, 32, 3, 3\) is expected")


def test_odd_upsampler(espan_file):
    def change(state):
        state["tea_upsampler.0.eval_conv.weight"] = torch.zeros(50, 32, 3, 3)
        state["tea_upsampler.0.eval_conv.bias"] = torch.zeros(50)

    assert_rejected(rewrite(espan_file, change), "50 outputs")


def test_nan_weights(espan_file):
    rewrite(espan_file, lambda s: s["conv_1.eval_conv.bias"].fill_(math.nan))
    assert_rejected(espan_file, "NaN or infinite weights in 'head.bias'")


def test_other_network(tmp_path):
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pth")
    assert_rejected(tmp_path / "other.pth", "not recognised: its keys begin with 'layer.weight'")


def test_not_a_state_dict(tmp_path):
    torch.save({"params": {"a": 3}}, tmp_path / "x.pth")
    assert_rejected(tmp_path / "x.pth", "not a state dict: there are no tensors under 'params'")
    torch.save([1, 2], tmp_path / "y.pth")
    assert_rejected(tmp_path / "y.pth", "holds list, where a dict of tensors")


def test_pickle_with_code_is_not_run(tmp_path):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return ran.write_text, ("x",)

    torch.save({"params": Evil()}, tmp_path / "evil.pth")
    assert_rejected(tmp_path / "evil.pth", "holds more than tensors")
    assert not ran.exists()


def test_truncated(espan_file):
    data = espan_file.read_bytes()
    # At some lengths, torch.load raises an OSError without a file name.
    for kept in (*range(10, len(data), len(data) // 40), 5000, len(data) // 2):
        espan_file.write_bytes(data[:kept])
        assert_rejected(espan_file, "damaged|neither a PyTorch")


def test_safetensors_of_4_bits(tmp_path):
    path = tmp_path / "w.safetensors"
    tensor = {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}
    header = json.dumps({"block_1.c1_r.weight": tensor}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    assert_rejected(path, "tensors of a type that is not supported: 'F4'")


def test_truncated_safetensors(tmp_path, make_network):
    path = tmp_path / "own.safetensors"
    checkpoints.save(make_network(ESPAN), path, record={})
    path.write_bytes(path.read_bytes()[:-1000])
    assert_rejected(path, "damaged or truncated safetensors")


def test_empty_and_text(tmp_path):
    (tmp_path / "e.pth").write_bytes(b"")
    assert_rejected(tmp_path / "e.pth", "is empty")
    (tmp_path / "t.pth").write_text("hello, these are no weights")
    assert_rejected(tmp_path / "t.pth", "neither a PyTorch nor a safetensors file")
    np.save(tmp_path / "n.npy", np.zeros(3))
    assert_rejected(tmp_path / "n.npy", "neither a PyTorch nor a safetensors file")


def test_folder_and_missing(tmp_path):
    assert_rejected(tmp_path, "is a folder")
    with pytest.raises(CheckpointError, match=r"neither a file nor .* did you mean 'espan_x4'"):
        espan.load("espan_x44")


def test_other_files_are_named(tmp_path):
    layer, x = torch.nn.Conv2d(3, 3, 3), torch.rand(1, 3, 5, 5)
    torch.jit.trace(layer, x).save(str(tmp_path / "script.pth"))
    torch.export.save(torch.export.export(layer, (x,)), str(tmp_path / "program.pt2"))
    (tmp_path / "model.onnx").write_bytes(b"\x08\x09\x12\x05espan")
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("readme.txt", "")
    assert_rejected(tmp_path / "script.pth", "is a TorchScript archive; espan reads weights")
    assert_rejected(tmp_path / "program.pt2", "is a program of torch.export; espan reads weights")
    assert_rejected(tmp_path / "model.onnx", "is an ONNX model; espan reads weights")
    assert_rejected(tmp_path / "zip.pth", "is a zip archive without weights of PyTorch")


@pytest.mark.parametrize("kind", ["sparse", "quantized", "meta", "complex"])
def test_tensors_that_are_not_dense_real_numbers(kind, tmp_path, make_network):
    state = official(make_network(SPAN), espan_layout=False)
    key = "block_2.c1_r.eval_conv.weight"
    change = {
        "sparse": torch.Tensor.to_sparse,
        "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        "meta": lambda t: t.to("meta"),
        "complex": lambda t: t.to(torch.complex64),
    }
    torch.save(state | {key: change[kind](state[key])}, tmp_path / "w.pth")
    assert_rejected(tmp_path / "w.pth", f"{key!r} is a {kind} tensor")


def test_damaged_metadata(tmp_path, make_network):
    state = make_network(ESPAN).state_dict()

    def write(about):
        safetensors.torch.save_file(state, path, metadata={"espan": json.dumps(about)})

    path = tmp_path / "m.safetensors"
    good = {"format": 1, "architecture": ESPAN.to_dict(), "range": [0.0, 1.0], "record": {}}
    write(good)
    espan.load(path)
    write({**good, "format": 2})
    assert_rejected(path, "format 2")
    for damaged in ({"format": 1}, {**good, "record": "text"}, [], {**good, "architecture": 3}):
        write(damaged)
        assert_rejected(path, "metadata is damaged")
    safetensors.torch.save_file(state, path, metadata={"espan": "[" * 100_000})
    assert_rejected(path, "metadata is damaged")
    write({**good, "architecture": {**ESPAN.to_dict(), "channels": 30}})
    assert_rejected(path, "where .* is expected")


# Writing


def test_save_refuses_training_form(tmp_path):
    from espan.branches import GRepConv

    network = Network(ESPAN, conv=GRepConv)
    with pytest.raises(CheckpointError, match="collapse it first"):
        checkpoints.save(network, tmp_path / "w.safetensors", record={})
    assert not list(tmp_path.iterdir())


def test_failed_save_keeps_the_old_file(tmp_path, make_network, monkeypatch):
    path = tmp_path / "w.safetensors"
    path.write_text("old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(make_network(ESPAN), path, record={})
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_record_is_json(tmp_path, make_network):
    """The PSNR of equal images is infinite, which JSON cannot express."""
    path = tmp_path / "w.safetensors"
    checkpoints.save(make_network(ESPAN), path, record={"psnr": math.inf, "lr": [0.1, math.nan]})
    with safetensors.safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["espan"], parse_constant=pytest.fail)
    assert about["record"] == espan.load(path).record == {"psnr": None, "lr": [0.1, None]}
