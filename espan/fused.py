"""A network for inference: merged weights on espan's kernels."""

from __future__ import annotations

import copy
import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import espan_kernels
from espan import checkpoints
from espan.engines import Blocks, Composed, Streamed
from espan.engines.blocks import COMPILED, Kernels
from espan.engines.graphs import Graphed
from espan.errors import EspanError
from espan.folding import Folded, fold
from espan.models import Network, Normalization, check_size
from espan.tiling import LARGEST_UNTILED
from espan_kernels import backends, reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def load(
    weights: str | os.PathLike[str] = checkpoints.DEFAULT,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    *,
    graph: bool = False,
    normalization: Normalization | str | None = "auto",
) -> FusedNetwork:
    """Load weights for inference.

    Args:
        weights: a file or the name of bundled weights, as for `espan.load`.
        device: by default the GPU if torch sees one, else the CPU.
        dtype: of weights and activations.  float32 is full fp32 everywhere (never TF32).  Default:
            fp16 on a GPU; fp32 on the CPU, where a matrix unit (AMX) may compute it from bf16
            halves, which keep 17 bits of each value: within 0.001 dB on photographs.
        backend: "auto", "cuda", "triton", "cpu" or "reference"; `espan doctor` lists those that
            are available, and why the others are not.
        graph: run under CUDA graphs, one for each image size; the last 8 are kept.
        normalization: as for `espan.load`.

    Raises:
        CheckpointError: as `espan.load`.
        EspanError: a device, dtype or backend that is not available.
    """
    network = checkpoints.load(weights, normalization=normalization)
    return FusedNetwork(network, device=device, dtype=dtype, backend=backend, graph=graph)


def default_device() -> torch.device:
    """The GPU of this process if torch sees one (by LOCAL_RANK under torchrun), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank = os.environ.get("LOCAL_RANK", "0")
    if not (rank.isascii() and rank.isdecimal()):
        raise EspanError(f"LOCAL_RANK={rank} is not a number; unset it, or launch with torchrun")
    return torch.device("cuda", int(rank) % torch.cuda.device_count())


class FusedNetwork(nn.Module):
    """An image batch (N, 3, H, W) -> (N, 3, s*H, s*W), equal to the plain `Network` to rounding.

    Floating point in 0-1 gives floating point in the module's dtype, not clamped; uint8 gives
    uint8, clamped and rounded.  Inference only.  It can be pickled.

    Attributes:
        architecture: of the network.
        record: how the weights were made.
        backend: the chosen backend.
        engine: what runs the network: `Blocks`, `Streamed` or `Composed`, of `espan.engines`.
        dtype: of weights and activations.
        options: the arguments device, dtype, backend and graph.
        most_pixels: LR pixels that one call should have at most, to limit its memory; `Upscaler`
            cuts larger images into tiles.
        plain: a copy of the plain network from which it was made.
        lock: held by `Upscaler` while a call uses the flag that `check` reads, because several
            threads and upscalers may share a network.
    """

    flag: Tensor

    def __init__(
        self,
        network: Network,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        backend: str = "auto",
        graph: bool = False,
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "backend": backend,
            "graph": graph,
        }
        place = default_device() if device is None else _device(device)
        if dtype is None and place.type == "cuda":
            dtype = torch.float16
        if dtype not in (None, *DTYPES):
            raise EspanError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")
        if graph and place.type != "cuda":
            raise EspanError(f"graph=True needs an NVIDIA GPU; the device is {place}")
        try:
            self.backend = backends.choose(place, backend)
        except (ValueError, RuntimeError) as error:
            raise EspanError(str(error)) from error
        self.dtype = dtype or torch.float32
        self.architecture = network.architecture
        self.record = network.record
        # Tensors made in inference mode could not be modified outside of it.
        with torch.inference_mode(False), torch.no_grad():
            # Later changes of `network` must not reach a part of this one.  In a tuple, so that it
            # is not registered as a submodule.
            self._plain = (copy.deepcopy(network).eval(),)
            engine = _engine(fold(network), place, dtype, self.backend)
            self.most_pixels = LARGEST_UNTILED
            if isinstance(engine, Blocks):
                self.most_pixels = engine.most_pixels
            self.engine = Graphed(engine) if graph else engine
            self.register_buffer("flag", torch.zeros(1, dtype=torch.int32, device=place))
        self.lock = threading.Lock()
        self.eval()

    @property
    def scale(self) -> int:
        return self.architecture.scale

    @property
    def plain(self) -> Network:
        return self._plain[0]

    @property
    def device(self) -> torch.device:
        return self.flag.device

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(FusedNetwork, **self.options), (self.plain,)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FusedNetwork:
        # What .half(), .to() and the like call.  Packed weights are neither cast nor moved.
        raise EspanError(
            "the device and dtype of a fused network cannot be changed, because its weights are "
            "packed for them; make another one: espan.fused.load(weights, device=..., dtype=...)"
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape:
            raise EspanError(f"expected an image batch (N, 3, H, W), got {tuple(x.shape)}")
        if not (x.is_floating_point() or x.dtype == torch.uint8):
            raise EspanError(f"expected floating-point values in 0-1 or uint8, got {x.dtype}")
        if x.device != self.device:
            raise EspanError(f"the image is on {x.device}, the network on {self.device}")
        check_size(x.shape[2:], self.architecture.unshuffle)
        if x.requires_grad and torch.is_grad_enabled():
            raise EspanError("the fused network is for inference; train the plain `Network`")
        return self.engine(x, self.flag)

    def check(self) -> bool:
        """Whether every output since the last call stayed in the plausible range, -1 to 2.

        Values are checked before they are clamped; NaN and infinity are out of range.  Unlike
        `forward`, this waits for the GPU.
        """
        if not self.flag.item():
            return True
        self.flag.zero_()
        return False


def _engine(
    folded: Folded, device: torch.device, dtype: torch.dtype | None, backend: str
) -> nn.Module:
    """The fastest engine for this backend."""
    if backend == "cpu" and Streamed.can_run(dtype):
        return Streamed(folded, dtype=dtype)
    dtype = dtype or torch.float32
    if backend in ("cuda", "triton") and Blocks.can_run(folded.architecture, dtype):
        return Blocks(folded, device=device, dtype=dtype, kernels=_kernels(backend))
    return Composed(folded, device=device, dtype=dtype, gate=_gate(backend))


def _device(device: torch.device | str) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise EspanError(f"unknown device {device!r}; e.g. 'cpu', 'cuda' or 'cuda:1'") from error
    if place.type not in ("cpu", "cuda"):
        raise EspanError(f"device {device!r} is not supported; e.g. 'cpu', 'cuda' or 'cuda:1'")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise EspanError("the device is 'cuda', but torch sees no NVIDIA GPU")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise EspanError(f"the device is {place}, but there are {torch.cuda.device_count()} GPUs")
    return place


def _gate(backend: str) -> Callable[[Tensor, Tensor], Tensor]:
    if backend == "reference":
        return reference.gate
    if backend == "triton":
        from espan_kernels.triton.gate import gate

        return gate
    return espan_kernels.gate


def _kernels(backend: str) -> Kernels:
    if backend == "triton":
        from espan_kernels.triton import head, spab, tail, upsample

        return Kernels(head.head, spab.spab, tail.tail, upsample.upsample)
    return COMPILED
