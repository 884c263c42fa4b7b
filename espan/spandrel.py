"""Makes spandrel, and the programs that load models with it, use espan.

Importing this module registers one architecture with `spandrel.MAIN_REGISTRY`, which is detected
before spandrel's own SPAN.  From then on, `spandrel.ModelLoader` returns models of SPAN, ESPAN and
the newer members of the family that run on espan's kernels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from espan.checkpoint_layouts import check_finite, from_state_dict, unwrap
from espan.errors import CheckpointError, EspanError
from espan.extras import install_command
from espan.models import Network
from espan.upscaling import Upscaler

try:
    from spandrel import MAIN_REGISTRY, Architecture, ArchSupport, ImageModelDescriptor, ModelTiling
except ImportError as error:
    raise ImportError(
        f"espan.spandrel needs spandrel ({error}); install it with " + install_command("spandrel")
    ) from error

_WITH_KERNELS = ("cpu", "cuda")


class Model(nn.Module):
    """An image batch (N, 3, H, W) in 0-1 -> (N, 3, s*H, s*W) in 0-1, of the same dtype and device.

    The module has one empty parameter, whose device and dtype `to`, `half` and the like change.
    The network for them is created when an image first needs it, always from the fp32 weights.
    Images of any size are cut into seamless tiles where necessary, and checked for values out of
    range, as by `espan.Upscaler`.  On devices other than CPUs and NVIDIA GPUs, the plain network
    runs instead, without tiles and checks.

    Args:
        network: a plain network.
    """

    placement: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._network = (network,)  # in a tuple, so that it is neither cast nor moved
        self.placement = nn.Parameter(torch.empty(0), requires_grad=False)
        self._prepared: tuple[tuple[torch.device, torch.dtype], Callable[[Tensor], Tensor]] | None
        self._prepared = None

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The merged fp32 weights, under the names of `espan.models.Network`."""
        return self._network[0].state_dict(*args, **kwargs)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights in any layout that espan reads, or those of `state_dict`.

        Raises CheckpointError for weights of another architecture.  `strict` and `assign` have no
        effect: no key may be missing or left over, and values are copied.
        """
        network = self._network[0]
        if set(state_dict) != set(network.state_dict()):
            state_dict = _read(state_dict).state_dict()
        self._prepared = None
        try:
            return network.load_state_dict(state_dict)
        except RuntimeError as error:
            raise CheckpointError(f"the weights are of another architecture: {error}") from error

    def forward(self, image: Tensor) -> Tensor:
        # The device and dtype are looked up here, because ComfyUI also sets `placement.data`.
        key = (self.placement.device, self.placement.dtype)
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = key, _runner(self._network[0], *key)
        return self._prepared[1](image)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}  # for copies, pickles and `spawn`


class _Family(Architecture):
    """What espan reads: the layouts of the family, merged or with their branches."""

    def __init__(self) -> None:
        super().__init__(id="espan", name="SPAN (espan)", detect=_detect)

    def load(self, state_dict: dict[str, Any]) -> ImageModelDescriptor:
        network = _read(state_dict)
        architecture = network.architecture
        return ImageModelDescriptor(
            Model(network),
            state_dict,
            architecture=self,
            purpose="Restoration" if network.scale == 1 else "SR",
            tags=[f"{architecture.channels}nf", f"{len(architecture.convs)}b"],
            supports_half=True,
            supports_bfloat16=True,
            scale=network.scale,
            input_channels=3,
            output_channels=3,
            tiling=ModelTiling.INTERNAL,
        )


def _detect(state_dict: dict[str, Any]) -> bool:
    """Whether espan reads it, or nothing else does and `load` can say what is wrong."""
    try:
        _read(state_dict)
    except EspanError:
        # spandrel's own SPAN also reads networks that espan does not, such as gray ones.
        parts = {key.partition(".")[0] for key in state_dict}
        of_span = parts >= {"conv_1", "block_1"} and not MAIN_REGISTRY["SPAN"].detect(state_dict)
        newer = "block_1" in parts and bool(parts & {"conv_near", "to_pixel"})
        return of_span or newer or _is_spanplus(state_dict) or _is_own(state_dict)
    return True


def _is_spanplus(state_dict: Mapping[str, Any]) -> bool:
    return any(key.startswith("feats.1.block_1.c1_r.") for key in state_dict)


def _is_own(state_dict: Mapping[str, Any]) -> bool:
    tails = {"tail.fuse.weight", "tail.depthwise.weight"}
    return "blocks.0.convs.0.weight" in state_dict and not tails.isdisjoint(state_dict)


def _read(state_dict: Mapping[str, Any]) -> Network:
    """The plain network, in eval mode, of a state dict in any layout that spandrel passes on."""
    try:
        if _is_own(state_dict):
            raise CheckpointError(
                "is in espan's own format, whose file header describes the network; spandrel "
                "passes on the tensors without the header; `espan export FILE NAME.pth` writes a "
                "file that it can load"
            )
        architecture, state = from_state_dict(unwrap(state_dict)[0])
        check_finite(state)
        network = Network(architecture)
        network.load_state_dict(state)
    except (EspanError, RuntimeError) as error:
        raise CheckpointError(f"the state dict: {error}") from error
    return network.eval().requires_grad_(False)


def _runner(
    network: Network, device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    if device.type in _WITH_KERNELS:
        return Upscaler(network, device=device, dtype=dtype)
    plain = copy.deepcopy(network).to(device=device, dtype=dtype)
    return lambda image: plain(image).clamp(0, 1)


MAIN_REGISTRY.add(
    ArchSupport.from_architecture(_Family(), before=("SPAN",)), ignore_duplicates=True
)
