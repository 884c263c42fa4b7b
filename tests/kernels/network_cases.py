"""Networks and images for the tests of the op `network`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from espan.engines.streamed import layers_of
from espan.folding import fold
from espan.imaging import modcrop, read_image
from espan.models import Architecture, Network, Normalization
from espan_kernels import Layer, describe_network, network, pack_network, reference


@dataclass(frozen=True)
class Case:
    """A network of the family, with random weights of about unit gain."""

    channels: int
    convs: tuple[int, ...]
    head_kernel: int = 3
    scale: int = 4
    concat_activation: bool = False
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    gain: float = 1.0  # factor of the head's weights, like an img_range
    more: tuple[tuple[str, object], ...] = ()  # other fields of `Architecture`
    layers: list[Layer] = field(default_factory=list, compare=False, repr=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.channels)
        network = Network(self.architecture).double().requires_grad_(False)
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(values / fan_in**0.5)
        self.layers.extend(cast(layer, torch.float32) for layer in layers_of(fold(network)))

    @property
    def architecture(self) -> Architecture:
        return Architecture(
            self.channels,
            self.convs,
            scale=self.scale,
            head_kernel=self.head_kernel,
            concat_last="activation" if self.concat_activation else "output",
            normalization=Normalization(self.mean, self.gain),
            **dict(self.more),  # type: ignore[arg-type]
        )

    @property
    def sizes(self) -> dict[str, int]:
        """The options that the op and its packing share."""
        architecture = self.architecture
        return {"unshuffle": architecture.unshuffle, "scale": architecture.tail_scale}

    def pack(self, dtype: torch.dtype | None = None) -> Tensor:
        """The packed weights for the CPU path in use."""
        return pack_network(self.layers, mean=self.mean, dtype=dtype, **self.sizes)

    def describe(self) -> list[int]:
        """The layers without their weights."""
        return describe_network(self.layers, unshuffle=self.sizes["unshuffle"])

    def run(self, image: Tensor, packed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the op."""
        packed = self.pack() if packed is None else packed
        return network(image, packed, layers=self.describe(), **self.sizes)

    def reference(self, image: Tensor, dtype: torch.dtype) -> Tensor:
        """Run the reference in float32 or float64."""
        layers = [cast(layer, dtype) for layer in self.layers]
        return reference.network(image, layers, mean=self.mean, **self.sizes)


def cast(layer: Layer, dtype: torch.dtype) -> Layer:
    """The layer with weights of another dtype; fp32 values are the same in both."""

    def to(value: object) -> object:
        if isinstance(value, Tensor):
            return value.to(dtype)
        return tuple(map(to, value)) if isinstance(value, tuple) else value

    return Layer(*map(to, layer))  # type: ignore[arg-type]


SPAN_MEAN = (0.4488, 0.4371, 0.4040)
ESPAN = Case(32, (3, 3, 3, 3, 3, 2), head_kernel=9)
SPAN = Case(28, (3,) * 6, concat_activation=True, mean=SPAN_MEAN, gain=10.0)
# Channel counts below, at and above whole vectors of 4, 8 and 16; depths; scales; concats.
FAMILY = [
    ESPAN,
    SPAN,
    Case(1, (2,), head_kernel=1, scale=1),
    Case(5, (2, 3), head_kernel=5, scale=2),
    Case(16, (3,), scale=3),
    Case(22, (3, 2), scale=2, concat_activation=True),
    Case(26, (2,), scale=5, concat_activation=True, mean=SPAN_MEAN),
    Case(48, (3, 2), concat_activation=True),
    Case(52, (2,), scale=3),
    Case(64, (3,), scale=8),
    Case(70, (2,), head_kernel=7, scale=2),
]
SPANV2 = (
    ("activation", "relu"),
    ("gate", "linear"),
    ("bias", False),
    ("stem", "activated_block"),
    ("tail", "depthwise"),
)
SPANF = (("stem", "block"), ("tail", "pointwise"))
SPANF3 = (("activation", "relu"), ("gate", "tanh"), ("tail", "pointwise"))
# The newer members, and mixtures that no published network has.
NEWER = [
    Case(32, (3,) * 5, more=SPANV2),
    Case(20, (3, 2), scale=3, more=SPANV2, mean=SPAN_MEAN, gain=3.0),
    Case(7, (3,), scale=2, more=SPANV2),
    Case(52, (3, 3), scale=1, more=SPANV2),
    Case(32, (3,) * 5, more=SPANF),
    Case(26, (3, 3, 2), scale=2, more=SPANF),
    Case(48, (3,) * 5, scale=2, concat_activation=True, more=(*SPANF3, ("unshuffle", 2))),
    Case(64, (3, 3), scale=2, concat_activation=True, more=(*SPANF3, ("unshuffle", 2))),
    Case(18, (3, 2), scale=1, concat_activation=True, more=(*SPANF3, ("unshuffle", 4))),
    Case(70, (2,), scale=1, more=(*SPANF3, ("unshuffle", 3))),
    Case(40, (3,), concat_activation=True, more=SPANF3),
    Case(48, (3, 3), concat_activation=True, more=(("activation", "mish"),)),
    Case(30, (3, 2), scale=3, concat_activation=True, more=(("activation", "mish"),)),
    Case(33, (2, 3), scale=2, more=(("activation", "mish"), ("gate", "linear"))),
]


def image(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random pixels; (N, 3, H, W)."""
    generator = torch.Generator().manual_seed(seed + sum(size))
    values = torch.rand(size, generator=generator)
    return (values * 255).round().to(dtype) if dtype == torch.uint8 else values.to(dtype)


def photographs(folder: Path) -> Iterator[tuple[Tensor, NDArray[np.uint8]]]:
    """The images of a x4 test set: LR (1, 3, H, W) and HR (4 H, 4 W, 3)."""
    for path in sorted((folder / "LRx4").iterdir()):
        low = torch.from_numpy(read_image(path).pixels)
        low = low.expand(-1, -1, 3).permute(2, 0, 1)[None]
        high = read_image(folder / "HR" / path.name).pixels
        yield low, np.broadcast_to(modcrop(high, 4), (4 * low.shape[2], 4 * low.shape[3], 3))
