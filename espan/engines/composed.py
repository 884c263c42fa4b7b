"""The fallback engine: PyTorch's convolutions and espan's parameter-free gate."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espan.engines.plausible import is_plausible
from espan.folding import Folded
from espan.models.network import ACTIVATIONS, cut, unshuffled

Gate = Callable[[Tensor, Tensor], Tensor]


class Composed(nn.Module):
    """Runs in any dtype on any device, channels last in memory.  fp32 never uses TF32."""

    mean: Tensor | None
    head_weight: Tensor

    def __init__(
        self, folded: Folded, *, device: torch.device, dtype: torch.dtype, gate: Gate
    ) -> None:
        super().__init__()
        self.architecture = folded.architecture
        self.activation = ACTIVATIONS[folded.architecture.activation]
        self.gate = gate
        self.ends = [block.end for block in folded.blocks]
        self.counts = [len(block.convs) for block in folded.blocks]
        self._put("head", *folded.head)
        if folded.near is not None:
            self._put("near", *folded.near)
        for i, block in enumerate(folded.blocks):
            for j, kernel in enumerate(block.convs):
                self._put(f"block{i}_conv{j}", *kernel)
            if block.gate_conv is not None:
                self._put(f"block{i}_gate", *block.gate_conv)
        if folded.depthwise is not None and folded.pointwise is not None:
            self._put("depthwise", folded.depthwise, None)
            self._put("pointwise", folded.pointwise, None)
        else:
            assert folded.last is not None
            assert folded.side is not None
            assert folded.upsample is not None
            self._put("last", *folded.last)
            self._put("side", folded.side, None)
            self._put("upsample", *folded.upsample)
        self.to(device=device, dtype=dtype)
        # Always fp32: in fp16, 0.4488 would be off by an eighth of a uint8 step.
        mean = None if folded.mean is None else folded.mean.to(device, torch.float32)
        self.register_buffer("mean", None if mean is None else mean.view(1, 3, 1, 1))

    def forward(self, image: Tensor, flag: Tensor) -> Tensor:
        # As the other engines, in the module's dtype: autocast would run convolutions in 16 bits.
        with torch.autocast(image.device.type, enabled=False):
            return self._image(image, flag)

    def _image(self, image: Tensor, flag: Tensor) -> Tensor:
        architecture = self.architecture
        x = image.float() / 255 if image.dtype == torch.uint8 else image
        if self.mean is not None:
            x = x - self.mean
        if architecture.unshuffle > 1:
            x = unshuffled(x, architecture.unshuffle)
        x = x.to(dtype=self.head_weight.dtype, memory_format=torch.channels_last)
        head = last = self._conv("head", x)
        if architecture.has_near:
            head, last = self._conv("near", x), self.activation(last, inplace=True)
        first = activation = last
        for i in range(len(self.counts)):
            last, activation = self._block(i, last)
            if i == 0:
                first = last
        if architecture.tail == "depthwise":
            values = self._conv("depthwise", torch.cat([head, last], dim=1))
            values = self._conv("pointwise", values)
        else:
            side = [head, first, activation] if architecture.concat_activation else [head, first]
            fused = self._conv("last", last)
            fused += self._conv("side", torch.cat(side, dim=1))
            values = self._conv("upsample", fused)
        result = F.pixel_shuffle(values, architecture.tail_scale)
        if architecture.unshuffle > 1:
            result = cut(result, image, architecture.scale)
        flag |= ~is_plausible(*result.aminmax())
        if image.dtype == torch.uint8:
            result = (result.float().nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8)
        return result

    def _block(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output and the first activation."""
        count, end = self.counts[i], self.ends[i]
        first = o = self.activation(self._conv(f"block{i}_conv0", x), inplace=True)
        for j in range(1, count - 1):
            o = self.activation(self._conv(f"block{i}_conv{j}", o), inplace=True)
        o = self._conv(f"block{i}_conv{count - 1}", o)
        if end == "sigmoid":
            return self.gate(o, x), first
        if end in ("none", "act"):
            return (self.activation(o, inplace=True) if end == "act" else o), first
        gate = self._conv(f"block{i}_gate", o)
        return (x + o) * (torch.tanh(gate) if end == "tanh" else gate), first

    def _put(self, name: str, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.contiguous(memory_format=torch.channels_last)
        self.register_buffer(f"{name}_weight", weight)
        self.register_buffer(f"{name}_bias", bias)

    def _conv(self, name: str, x: Tensor) -> Tensor:
        weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
        around, groups = weight.shape[-1] // 2, x.shape[1] // weight.shape[1]
        # PyTorch 2.10 cannot compile the function below for dynamic shapes.
        if torch.compiler.is_compiling() and not x.is_cuda:
            return F.conv2d(x, weight, bias, padding=around, groups=groups)
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
            groups=groups,
            benchmark=torch.backends.cudnn.benchmark,
            deterministic=torch.backends.cudnn.deterministic,
            cudnn_enabled=torch.backends.cudnn.enabled,
            allow_tf32=False,
        )
