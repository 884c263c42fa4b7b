"""Networks as files for other programs: ONNX, `torch.export`, and the layouts of official files."""

from __future__ import annotations

import io
import os
import re
from typing import Any

import torch
from torch import Tensor, nn

from espan.checkpoint_layouts import from_state_dict
from espan.errors import EspanError
from espan.extras import install_command
from espan.files import atomic_write, json_text
from espan.models import Architecture, Network

DTYPES = {torch.float32: "fp32", torch.float16: "fp16"}
OPSETS = (18, 19, 20)


def to_onnx(
    network: Network,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    image_dtype: torch.dtype | None = None,
    dynamic_batch: bool = False,
    opset: int = OPSETS[-1],
    licence: str = "unknown",
) -> None:
    """Write a network as ONNX: `input` (N, 3, H, W) in 0-1 -> `output` (N, 3, s*H, s*W).

    H and W may have any size; the output is not clamped.  Every tensor has an explicit type, so
    the precision does not depend on the runtime ("strongly typed" in TensorRT's terms).  Only the
    normalisation of the input is always in fp32.  The metadata holds scale, architecture, licence
    and record.

    Args:
        network: without re-parameterised convolutions (`espan.reparameterize.collapse` first).
        path: the file, which is written whole or not at all.
        dtype: of weights and activations, torch.float32 or torch.float16.
        image_dtype: of input and output; default: `dtype`.
        dynamic_batch: whether N may have any size; otherwise it is 1.
        opset: of ONNX, 18 to 20.
        licence: of the weights, for the metadata.

    Raises:
        EspanError: another dtype or opset, a network in training form, or onnx is not installed.
        OSError: the file cannot be written; an existing file remains unchanged.
    """
    if opset not in OPSETS:
        raise EspanError(f"opset must be one of {', '.join(map(str, OPSETS))}, got {opset}")
    try:
        from espan import onnx_graph
    except ModuleNotFoundError as error:
        raise EspanError(
            f"ONNX needs an additional package ({error}); install it with "
            + install_command("onnx")
        ) from error
    module = _Exported(network, dtype, image_dtype or dtype)
    scale = network.scale
    batch: list[int | str] = ["batch"] if dynamic_batch else [1]
    model = onnx_graph.model(
        module,
        dtype=dtype,
        image_dtype=module.image_dtype,
        input_shape=[*batch, 3, "height", "width"],
        output_shape=[*batch, 3, f"{scale}*height", f"{scale}*width"],
        opset=opset,
        metadata=_metadata(network, licence),
    )
    with atomic_write(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def to_pt2(
    network: Network,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    image_dtype: torch.dtype | None = None,
    dynamic_batch: bool = False,
    licence: str = "unknown",
) -> None:
    """Write a network for `torch.export.load`, with the arguments and errors of `to_onnx`.

    The metadata is in the extra file "espan", as JSON.
    """
    from torch.export import Dim

    module = _Exported(network, dtype, image_dtype or dtype)
    example = torch.zeros(2 if dynamic_batch else 1, 3, 16, 24, dtype=module.image_dtype)
    dims: dict[int, Any] = {0: Dim("batch", min=1)} if dynamic_batch else {}
    unshuffle = network.architecture.unshuffle
    least = 1 if unshuffle == 1 else unshuffle + 1  # torch.export takes a size of 1 as a constant
    dims |= {2: Dim("height", min=least), 3: Dim("width", min=least)}
    program = torch.export.export(module, (example,), dynamic_shapes=(dims,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names the paths of source files
    written = io.BytesIO()
    extra = {"espan": json_text(_metadata(network, licence))}
    torch.export.save(program, written, extra_files=extra)
    with atomic_write(path) as temporary:
        temporary.write_bytes(written.getvalue())


def to_pth(network: Network, path: str | os.PathLike[str]) -> None:
    """Write a state dict in the layout of the official files of the network's kind.

    Programs that use spandrel read it (`espan.spandrel`), because these layouts imply what espan's
    own format says in its header.

    Args:
        network: without re-parameterised convolutions.
        path: the file, which is written whole or not at all.

    Raises:
        EspanError: a network in training form, or one that no layout describes.
        OSError: the file cannot be written; an existing file remains unchanged.
    """
    architecture = network.architecture
    names = _official_names(architecture)
    state = {}
    for key, value in _plain_state(network).items():
        convolution, _, part = key.rpartition(".")
        state[f"{names.get(convolution, convolution)}.{part}"] = value
    if {
        "conv_1.weight",
        "upsampler.0.weight",
    } <= state.keys() and architecture.normalization is None:
        state["no_norm"] = torch.zeros(1)
    try:
        described = from_state_dict(state)[0] == architecture
    except EspanError:
        described = False
    if not described:
        raise EspanError(
            "the layouts of the official files cannot describe this network: ESPAN's has no "
            "normalisation, SPAN's its own or none, and each of the others one kind of activation, "
            "gate, stem and tail"
        )
    written = io.BytesIO()
    torch.save(state, written)
    with atomic_write(path) as temporary:
        temporary.write_bytes(written.getvalue())


def _official_names(architecture: Architecture) -> dict[str, str]:
    """The convolutions under the names of the official files that come closest."""
    last = len(architecture.convs) - 1
    blocks = [f"block_{i + 1}" for i in range(last + 1)]
    conv, gate = "{}.c{}_r", "att_conv"
    if architecture.stem == "activated_block":  # SPANV2
        conv, gate = "{}.c{}.conv", "guidance_map_conv"
        names = {"tail.depthwise": "depthwise_conv", "tail.pointwise": "pointwise_conv"}
    elif architecture.stem == "block":  # SPANF
        names = {"tail.fuse": "conv_cat", "tail.upsample": "conv_2"}
    elif architecture.gate == "tanh":  # SPANF3
        head = "conv_1.1" if architecture.unshuffle > 1 else "conv_1"
        names = {"head": head, "tail.fuse": "conv_cat", "tail.upsample": "to_pixel"}
    elif architecture.activation == "mish":  # SPANPlus
        blocks = ["block_1", *(f"block_n.{i}" for i in range(last - 1)), "block_end"]
        blocks = [f"feats.1.{block}" for block in blocks]
        names = {"head": "feats.0", "tail.upsample": "upsampler.0"}
        names |= {"tail.post": "feats.1.conv_2", "tail.fuse": "feats.1.conv_cat"}
    else:
        espan = architecture.concat_last == "output"
        tail = "tea_" if espan else ""
        blocks[last] = "teacher_block_seq" if espan else blocks[last]
        names = {"head": "conv_1", "tail.post": f"{tail}conv_2", "tail.fuse": f"{tail}conv_cat"}
        names["tail.upsample"] = f"{tail}upsampler.0"
    names["near"] = "conv_near"
    for i, block in enumerate(blocks):
        names[f"blocks.{i}.gate_conv"] = f"{block}.{gate}"
        for j in range(3):
            names[f"blocks.{i}.convs.{j}"] = conv.format(block, j + 1)
    return names


def onnx_name(
    weights: str,
    *,
    scale: int,
    dtype: torch.dtype,
    image_dtype: torch.dtype,
    dynamic_batch: bool,
    opset: int,
) -> str:
    """The file name that users of TensorRT give a model, which says what it takes.

    For example, "2x_NAME_1x3xHxW_dyn-HW_strong_fp16_op20.onnx".
    """
    name = re.sub(rf"^{scale}x[-_ ]?", "", weights, flags=re.IGNORECASE) or weights
    shape = "Nx3xHxW_dyn-NHW" if dynamic_batch else "1x3xHxW_dyn-HW"
    precision = "strong_fp16" if dtype == torch.float16 else DTYPES[dtype]
    if image_dtype != dtype:
        precision += f"_image-{DTYPES[image_dtype]}"
    return f"{scale}x_{name}_{shape}_{precision}_op{opset}.onnx"


class _Exported(nn.Module):
    """A copy of a network that computes in one dtype and takes images of another.

    It normalises the input in fp32: in fp16, a mean of 0.4488 would be off by an eighth of a uint8
    step.
    """

    mean: Tensor
    img_range: Tensor

    def __init__(self, network: Network, dtype: torch.dtype, image_dtype: torch.dtype) -> None:
        super().__init__()
        for given in (dtype, image_dtype):
            if given not in DTYPES:
                raise EspanError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {given}")
        self.dtype, self.image_dtype = dtype, image_dtype
        self.body = Network(network.architecture.replace(normalization=None))
        self.body.load_state_dict(_plain_state(network))
        self.body.to(dtype)
        norm = network.architecture.normalization
        self.normalized = norm is not None
        if norm is not None:
            self.register_buffer("mean", torch.tensor(norm.mean).view(1, 3, 1, 1))
            self.register_buffer("img_range", torch.tensor(float(norm.img_range)))
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.image_dtype
        if self.normalized:
            if dtype != torch.float32:
                x = x.to(torch.float32)
            x, dtype = (x - self.mean) * self.img_range, torch.float32
        if dtype != self.dtype:
            x = x.to(self.dtype)
        x = self.body(x)
        return x if self.dtype == self.image_dtype else x.to(self.image_dtype)


def _plain_state(network: Network) -> dict[str, Tensor]:
    state: dict[str, Tensor] = network.state_dict()
    if set(state) != set(Network(network.architecture).state_dict()):
        raise EspanError(
            "export: the network is in training form; espan.reparameterize.collapse it first"
        )
    return state


def _metadata(network: Network, licence: str) -> dict[str, str]:
    return {
        "scale": str(network.scale),
        "architecture": json_text(network.architecture.to_dict()),
        "licence": licence,
        "record": json_text(network.record),
    }
