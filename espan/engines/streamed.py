"""The engine for CPUs: the whole network as one op, which streams the image in strips."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from espan.engines.plausible import is_plausible
from espan.folding import Folded
from espan.models import Architecture
from espan_kernels import backends, network, pack_network


class Streamed(nn.Module):
    """Computes in fp32; on CPUs with AMX also in bf16 with fp32 accumulation.

    With dtype None, AMX computes fp32 from bf16 halves, which keep 17 bits of each value.
    """

    packed: Tensor

    def __init__(self, folded: Folded, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        architecture = folded.architecture
        self.channels = architecture.channels
        self.head_kernel = architecture.head_kernel
        self.convs = list(architecture.convs)
        self.concat_activation = architecture.concat_last == "activation"
        self.scale = architecture.scale
        assert folded.last is not None
        assert folded.side is not None
        assert folded.upsample is not None
        packed = pack_network(
            folded.head,
            [block.convs for block in folded.blocks],
            folded.last,
            folded.side[:, :, 0, 0].split(architecture.channels, dim=1),
            folded.upsample,
            scale=architecture.scale,
            mean=(0.0, 0.0, 0.0) if folded.mean is None else folded.mean.tolist(),
            dtype=dtype,
        )
        self.dtype = dtype or torch.float32
        self.register_buffer("packed", packed)

    @staticmethod
    def can_run(architecture: Architecture, dtype: torch.dtype | None) -> bool:
        """Whether the CPU path in use supports `dtype`."""
        if (architecture.activation, architecture.tail) != ("silu", "conv"):
            return False
        bfloat16 = dtype == torch.bfloat16 and backends.cpu_path() == "amx"
        return dtype in (None, torch.float32) or bfloat16

    def forward(self, image: Tensor, flag: Tensor) -> Tensor:
        if image.dtype != torch.uint8:
            image = image.float()
        result, values = network(
            image,
            self.packed,
            channels=self.channels,
            head_kernel=self.head_kernel,
            convs=self.convs,
            concat_activation=self.concat_activation,
            scale=self.scale,
        )
        low, high, not_finite = values.unbind(1)
        flag |= ~(is_plausible(low, high) & (not_finite == 0)).all()
        return result if result.dtype == torch.uint8 else result.to(self.dtype)
