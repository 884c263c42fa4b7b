"""Networks and images for the tests of the op `network`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from espan.imaging import modcrop, read_image
from espan_kernels import network, pack_network, reference

Kernel = tuple[Tensor, Tensor]


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
    kernels: dict[str, object] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.channels)

        def kernel(outputs: int, inputs: int, width: int, gain: float = 1.0) -> Kernel:
            shape = (outputs, inputs, width, width)
            weight = torch.randn(shape, generator=generator, dtype=torch.float64)
            bias = torch.randn(outputs, generator=generator, dtype=torch.float64) / 5
            # fp32 values, so that reference and kernel use the same weights.
            weight = gain * weight / (inputs * width * width) ** 0.5
            return weight.float().double(), bias.float().double()

        c = self.channels
        sides = 3 if self.concat_activation else 2
        self.kernels.update(
            head_kernel=kernel(c, 3, self.head_kernel, self.gain),
            blocks=[[kernel(c, c, 3) for _ in range(n)] for n in self.convs],
            concat_last=kernel(c, c, 3),
            concat_side=[kernel(c, c, 1)[0][:, :, 0, 0] for _ in range(sides)],
            upsample=kernel(3 * self.scale**2, c, 3),
        )

    def pack(self, dtype: torch.dtype | None = None) -> Tensor:
        """The packed weights for the CPU path in use."""
        return pack_network(
            *self.kernels.values(),  # type: ignore[arg-type]
            scale=self.scale,
            mean=self.mean,
            dtype=dtype,
        )

    def run(self, image: Tensor, packed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the op."""
        return network(
            image,
            self.pack() if packed is None else packed,
            channels=self.channels,
            head_kernel=self.head_kernel,
            convs=self.convs,
            concat_activation=self.concat_activation,
            scale=self.scale,
        )

    def reference(self, image: Tensor, dtype: torch.dtype) -> Tensor:
        """Run the reference in float32 or float64."""

        def cast(value: object) -> object:
            if isinstance(value, Tensor):
                return value.to(dtype)
            if isinstance(value, Sequence):
                return type(value)(cast(v) for v in value)  # type: ignore[call-arg]
            return value

        kernels = [cast(value) for value in self.kernels.values()]
        return reference.network(image, *kernels, scale=self.scale, mean=self.mean)  # type: ignore[arg-type]


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
