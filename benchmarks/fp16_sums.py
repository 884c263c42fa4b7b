"""What sums in fp16 cost in PSNR, and how large they become: an emulation on the CPU.

    ESPAN_TESTDATA=... python benchmarks/fp16_sums.py

It runs the official ESPAN x4 on Set14 with weights and feature maps in fp16.  Each convolution is a
chain of products with 16 inputs, as with mma.m16n8k16; a sum in fp16 is rounded once per product.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import espan
from espan.evaluation import psnr
from espan.folding import Folded, fold
from espan.reparameterize import Kernel
from espan_kernels import reference

# "channels": fp16 for the taps of 16 input channels (in the head, of a row), fp32 between them.
SUMS = ("fp32", "fp16", "channels")


def half(values: Tensor) -> Tensor:
    return values.half().float()


class Emulation:
    """A network whose sums are of one kind; `largest` is the largest absolute value of a sum."""

    def __init__(self, folded: Folded, sums: str) -> None:
        self.folded, self.sums, self.largest = folded, sums, 0.0

    def conv(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor) -> Tensor:
        """The sum of several convolutions, not yet rounded."""
        total = bias.float().view(-1, 1)
        chain = torch.zeros(())
        for x, weight in zip(inputs, weights, strict=True):
            size = weight.shape[-1]
            columns = F.unfold(x, size, padding=size // 2)[0]
            rows = half(weight.float()).flatten(1)
            for group in groups(*weight.shape[1:3]):
                for step in group:
                    chain = chain + rows[:, step] @ columns[step]
                    chain = chain if self.sums == "fp32" else half(chain)
                    self.largest = max(self.largest, chain.abs().max().item())
                if self.sums == "channels":
                    total, chain = total + chain, torch.zeros(())
        return (total + chain).view(1, -1, *inputs[0].shape[2:])

    def __call__(self, image: Tensor) -> Tensor:
        f, mean = self.folded, self.folded.mean
        x = half(image / 255 if mean is None else image / 255 - mean.float().view(1, 3, 1, 1))
        head = last = half(self.conv([x], [f.head.weight], f.head.bias))
        outputs = [head]
        for block in f.blocks:
            o = last
            for kernel in block[:-1]:
                activation = o = half(F.silu(self.layer(o, kernel)))
                outputs.append(activation)
            last = half(reference.gate(self.layer(o, block[-1]), last))
            outputs.append(last)
        first = outputs[len(f.blocks[0])]
        sides = [head, first, outputs[-len(f.blocks[-1])]]
        side = f.side.split(f.architecture.channels, dim=1)
        maps = [last, *sides[: len(side)]]
        fused = half(self.conv(maps, [f.last.weight, *side], f.last.bias))
        return F.pixel_shuffle(self.layer(fused, f.upsample), f.architecture.scale)

    def layer(self, x: Tensor, kernel: Kernel) -> Tensor:
        return self.conv([x], [kernel.weight], kernel.bias)


def groups(channels: int, size: int) -> list[list[Tensor]]:
    """The inputs of each product, in the order of the kernels; the groups as in "channels"."""
    at = torch.arange(channels * size * size).view(channels, size, size)
    if channels == 3:  # a row of the head has values RGBRGB...
        return [list(at[:, dy].T.flatten().split(16)) for dy in range(size)]
    return [[taps[:, dy, dx] for dx in range(size) for dy in range(size)] for taps in at.split(16)]


def main() -> None:
    data = Path(os.environ["ESPAN_TESTDATA"])
    folded = fold(espan.load(data / "weights" / "espan_x4_official.pth"))
    scores: dict[str, list[float]] = {sums: [] for sums in SUMS}
    largest = dict.fromkeys(SUMS, 0.0)
    for file in sorted((data / "testsets" / "Set14" / "LRx4").glob("*.png")):
        lr = torch.from_numpy(np.array(Image.open(file).convert("RGB")))
        hr = np.array(Image.open(file.parents[1] / "HR" / file.name).convert("RGB"))
        for sums in SUMS:
            network = Emulation(folded, sums)
            result = network(lr.permute(2, 0, 1)[None].float())
            pixels = (result[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            size = pixels.shape
            scores[sums].append(psnr(pixels, hr[: size[0], : size[1]], border=4))
            largest[sums] = max(largest[sums], network.largest)
    for sums, values in scores.items():
        change = np.mean(values) - np.mean(scores["fp32"])
        worst = np.min(np.subtract(values, scores["fp32"]))
        print(
            f"{sums:9} {np.mean(values):.4f} dB, {change:+.4f} dB, worst image {worst:+.4f} dB; "
            f"largest sum {largest[sums]:.1f} of 65504"
        )


if __name__ == "__main__":
    with torch.inference_mode():
        main()
