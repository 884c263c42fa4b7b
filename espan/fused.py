"""The network as it is run: merged weights, our kernels, inference only."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import espan_kernels
from espan import checkpoints
from espan.errors import EspanError
from espan.models import Network, Normalization
from espan.reparameterize import Kernel, add, compose
from espan_kernels import backends, reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def load(
    weights: str | os.PathLike[str] = checkpoints.DEFAULT,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    *,
    normalization: Normalization | str | None = "auto",
) -> FusedNetwork:
    """Load weights for inference.

    Args:
        weights: a file or the name of bundled weights, as for `espan.load`.
        device: default: the GPU if torch sees one, else the CPU.
        dtype: of weights and activations; default: fp16 on a GPU, fp32 on the CPU.
        backend: "auto", "cuda", "triton", "cpu" or "reference"; `espan doctor` tells what is
            available and why.
        normalization: as for `espan.load`.

    Raises:
        CheckpointError: as `espan.load`.
        EspanError: a device, dtype or backend that is not available.
    """
    network = checkpoints.load(weights, normalization=normalization)
    return FusedNetwork(network, device=device, dtype=dtype, backend=backend)


def default_device() -> torch.device:
    """The GPU of this process if torch sees one (by LOCAL_RANK under torchrun), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


class FusedNetwork(nn.Module):
    """(N, 3, H, W) in 0-1 -> (N, 3, s*H, s*W), not clamped, in the module's dtype.

    Equal to the plain `Network` to rounding.  `img_range` is folded into the head, and the concat
    with its 1x1 into one 3x3 convolution of the last block and one 1x1 of what else it takes;
    both foldings are exact, at the border too.

    Attributes:
        architecture: of the network.
        backend: the one that was chosen.
    """

    mean: Tensor | None
    head_weight: Tensor

    def __init__(
        self,
        network: Network,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        place = default_device() if device is None else _device(device)
        if dtype is None:
            dtype = torch.float16 if place.type == "cuda" else torch.float32
        if dtype not in DTYPES:
            raise EspanError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")
        try:
            self.backend = backends.choose(place, backend)
        except (ValueError, RuntimeError) as error:
            raise EspanError(str(error)) from error
        self.gate = _gate(self.backend)
        self.architecture = network.architecture
        self.record = network.record
        self.convs_per_block = network.architecture.convs

        norm = network.architecture.normalization
        head = _kernel(network.head)
        if norm is not None:
            head = Kernel(head.weight * norm.img_range, head.bias)
        self._put("head", head)
        for i, block in enumerate(network.blocks):
            for j, conv in enumerate(block.convs):  # type: ignore[arg-type]
                self._put(f"block{i}_conv{j}", _kernel(conv))
        for name, kernel in _fold_concat(network).items():
            self._put(name, kernel)
        self._put("upsample", _kernel(network.tail.upsample))
        self.to(device=place, dtype=dtype)
        # The mean is subtracted from the image, not folded into the bias: the head's zero padding
        # stands for the mean colour, which a folded bias would get wrong at the border.  In fp32,
        # whatever the dtype: 0.4488 in fp16 is off by an eighth of a uint8 step.
        mean = None if norm is None else torch.tensor(norm.mean, device=place).view(1, 3, 1, 1)
        self.register_buffer("mean", mean)
        self.eval()

    @property
    def scale(self) -> int:
        return self.architecture.scale

    @property
    def device(self) -> torch.device:
        return self.head_weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head_weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape:
            raise EspanError(f"expected an image batch (N, 3, H, W), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise EspanError(f"expected floating-point values in 0-1, got {x.dtype}")
        if x.requires_grad and torch.is_grad_enabled():
            raise EspanError("the fused network is for inference; train the plain `Network`")
        if self.mean is not None:
            x = x - self.mean
        head = self._conv("head", x.to(dtype=self.dtype, memory_format=torch.channels_last))
        first = last = activation = head
        for i, convs in enumerate(self.convs_per_block):
            activation = F.silu(self._conv(f"block{i}_conv0", last), inplace=True)
            o = activation
            for j in range(1, convs - 1):
                o = F.silu(self._conv(f"block{i}_conv{j}", o), inplace=True)
            last = self.gate(self._conv(f"block{i}_conv{convs - 1}", o), last)
            if i == 0:
                first = last
        side = [head, first]
        if self.architecture.concat_last == "activation":
            side.append(activation)
        fused = self._conv("concat_last", last)
        fused += self._conv("concat_side", torch.cat(side, dim=1))
        return F.pixel_shuffle(self._conv("upsample", fused), self.scale)

    def _put(self, name: str, kernel: Kernel) -> None:
        weight = kernel.weight.contiguous(memory_format=torch.channels_last)
        self.register_buffer(f"{name}_weight", weight)
        self.register_buffer(f"{name}_bias", kernel.bias)

    def _conv(self, name: str, x: Tensor) -> Tensor:
        weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


def _fold_concat(network: Network) -> dict[str, Kernel]:
    """The tail's 3x3, concat and 1x1 as one 3x3 of the last block and one 1x1 of the others."""
    channels = network.architecture.channels
    fuse = _kernel(network.tail.fuse)
    of_head, of_post, of_first, of_extra = fuse.weight.split(channels, dim=1)
    no_bias = torch.zeros_like(fuse.bias)
    last = compose(_kernel(network.tail.post), Kernel(of_post, fuse.bias))
    side = [of_head, of_first]
    if network.architecture.concat_last == "output":
        last = add(last, Kernel(of_extra, no_bias))
    else:
        side.append(of_extra)
    return {"concat_last": last, "concat_side": Kernel(torch.cat(side, dim=1), no_bias)}


def _kernel(conv: nn.Module) -> Kernel:
    if not isinstance(conv, nn.Conv2d) or conv.bias is None:
        raise EspanError(
            f"expected a plain network, found a {type(conv).__name__}; "
            "espan.reparameterize.collapse makes one"
        )
    return Kernel(conv.weight.detach().double(), conv.bias.detach().double())


def _device(device: torch.device | str) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise EspanError(f"unknown device {device!r}; e.g. 'cpu', 'cuda' or 'cuda:1'") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise EspanError("device 'cuda' was asked for, but torch sees no NVIDIA GPU")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise EspanError(f"{place} was asked for; there are {torch.cuda.device_count()} GPUs")
    return place


def _gate(backend: str) -> Callable[[Tensor, Tensor], Tensor]:
    if backend == "reference":
        return reference.gate
    if backend == "triton":
        from espan_kernels.triton.gate import gate

        return gate
    return espan_kernels.gate
