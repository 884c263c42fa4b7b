"""The fallback engine: PyTorch's convolutions and espan's gate."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espan.engines.plausible import is_plausible
from espan.folding import Folded

Gate = Callable[[Tensor, Tensor], Tensor]


class Composed(nn.Module):
    """Runs in any dtype on any device, channels last in memory.  fp32 never uses TF32."""

    mean: Tensor | None
    head_weight: Tensor

    def __init__(
        self, folded: Folded, *, device: torch.device, dtype: torch.dtype, gate: Gate
    ) -> None:
        super().__init__()
        self.gate = gate
        self.convs_per_block = folded.architecture.convs
        self.with_activation = folded.architecture.concat_last == "activation"
        self.scale = folded.architecture.scale
        self._put("head", *folded.head)
        for i, block in enumerate(folded.blocks):
            for j, kernel in enumerate(block):
                self._put(f"block{i}_conv{j}", *kernel)
        self._put("last", *folded.last)
        self._put("side", folded.side, None)
        self._put("upsample", *folded.upsample)
        self.to(device=device, dtype=dtype)
        # Always fp32: in fp16, 0.4488 would be off by an eighth of a uint8 step.
        mean = None if folded.mean is None else folded.mean.to(device, torch.float32)
        self.register_buffer("mean", None if mean is None else mean.view(1, 3, 1, 1))

    def forward(self, image: Tensor, flag: Tensor) -> Tensor:
        x = image.float() / 255 if image.dtype == torch.uint8 else image
        if self.mean is not None:
            x = x - self.mean
        dtype = self.head_weight.dtype
        head = self._conv("head", x.to(dtype=dtype, memory_format=torch.channels_last))
        first = last = activation = head
        for i, convs in enumerate(self.convs_per_block):
            activation = F.silu(self._conv(f"block{i}_conv0", last), inplace=True)
            o = activation
            for j in range(1, convs - 1):
                o = F.silu(self._conv(f"block{i}_conv{j}", o), inplace=True)
            last = self.gate(self._conv(f"block{i}_conv{convs - 1}", o), last)
            if i == 0:
                first = last
        side = [head, first, activation] if self.with_activation else [head, first]
        fused = self._conv("last", last)
        fused += self._conv("side", torch.cat(side, dim=1))
        result = F.pixel_shuffle(self._conv("upsample", fused), self.scale)
        flag |= ~is_plausible(*result.aminmax())
        if image.dtype == torch.uint8:
            result = (result.float().nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8)
        return result

    def _put(self, name: str, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.contiguous(memory_format=torch.channels_last)
        self.register_buffer(f"{name}_weight", weight)
        self.register_buffer(f"{name}_bias", bias)

    def _conv(self, name: str, x: Tensor) -> Tensor:
        weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
        around = weight.shape[-1] // 2
        # PyTorch 2.10 cannot compile the function below for dynamic shapes.
        if torch.compiler.is_compiling() and not x.is_cuda:
            return F.conv2d(x, weight, bias, padding=around)
        # The function behind F.conv2d.  On a GPU, F.conv2d itself uses TF32, which keeps 10 bits of
        # a value, if a global setting of the user allows it.
        return torch._convolution(
            x,
            weight,
            bias,
            stride=(1, 1),
            padding=(around, around),
            dilation=(1, 1),
            transposed=False,
            output_padding=(0, 0),
            groups=1,
            benchmark=torch.backends.cudnn.benchmark,
            deterministic=torch.backends.cudnn.deterministic,
            cudnn_enabled=torch.backends.cudnn.enabled,
            allow_tf32=False,
        )
