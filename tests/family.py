"""The newer members of the family as plain modules, independent of `espan.models`.

They are written from the published definitions, with the names of the published files, so that
their state dicts are such files: `reparameterised` ones have SPAN's training branches, with a stale
`eval_conv` beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espan.models import Architecture


class Conv3XC(nn.Module):
    """SPAN's convolution: in training pad, 1x1, 3x3, 1x1 beside a 1x1; afterwards `eval_conv`."""

    def __init__(self, c_in: int, c_out: int, *, branches: bool, gain: int = 2) -> None:
        super().__init__()
        self.eval_conv = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.branches = branches
        if branches:
            self.sk = nn.Conv2d(c_in, c_out, 1)
            self.conv = nn.Sequential(
                nn.Conv2d(c_in, c_in * gain, 1),
                nn.Conv2d(c_in * gain, c_out * gain, 3),
                nn.Conv2d(c_out * gain, c_out, 1),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.branches:
            return self.conv(F.pad(x, (1, 1, 1, 1))) + self.sk(x)
        return self.eval_conv(x)


class PlainConv(nn.Module):
    """SPANV2's convolution, without bias."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class SPANV2(nn.Module):
    def __init__(self, channels: int = 32, blocks: int = 5, scale: int = 4) -> None:
        super().__init__()
        self.scale, self.blocks, colours = scale, blocks, 3 * scale**2
        for b in range(1, blocks + 1):
            block = nn.Module()
            block.c1 = PlainConv(3 if b == 1 else channels, channels)
            block.c2 = PlainConv(channels, channels)
            block.c3 = PlainConv(channels, channels)
            if b > 1:
                block.guidance_map_conv = nn.Conv2d(channels, channels, 1)
            self.add_module(f"block_{b}", block)
        total = colours + channels
        self.conv_near = nn.Conv2d(3, colours, 3, padding=1, groups=3, bias=False)
        self.depthwise_conv = nn.Conv2d(total, total, 3, padding=1, groups=total, bias=False)
        self.pointwise_conv = nn.Conv2d(total, colours, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        near, f = self.conv_near(x), x
        for b in range(1, self.blocks + 1):
            block = self.get_submodule(f"block_{b}")
            h = block.c3(block.c2(block.c1(f).relu()).relu())
            f = h.relu() if b == 1 else (f + h) * block.guidance_map_conv(h)
        t = self.pointwise_conv(self.depthwise_conv(torch.cat((near, f), 1)))
        return torch.pixel_shuffle(t, self.scale)


class SPANF(nn.Module):
    def __init__(
        self, channels: int = 32, blocks: int = 5, scale: int = 4, *, branches: bool = False
    ) -> None:
        super().__init__()
        self.scale, self.blocks, colours = scale, blocks, 3 * scale**2
        for b in range(1, blocks + 1):
            block = nn.Module()
            block.c1_r = Conv3XC(3 if b == 1 else channels, channels, branches=branches)
            block.c2_r = Conv3XC(channels, channels, branches=branches)
            block.c3_r = Conv3XC(channels, channels, branches=branches)
            self.add_module(f"block_{b}", block)
        self.conv_near = nn.Conv2d(3, colours, 3, padding=1, groups=3, bias=False)
        self.conv_cat = nn.Conv2d(colours + 2 * channels, channels, 1)
        self.conv_2 = Conv3XC(channels, colours, branches=branches)

    def forward(self, x: Tensor) -> Tensor:
        near, f = self.conv_near(x), x
        outputs = []
        for b in range(1, self.blocks + 1):
            block = self.get_submodule(f"block_{b}")
            h = block.c3_r(F.silu(block.c2_r(F.silu(block.c1_r(f)))))
            f = h if b == 1 else (f + h) * (h.sigmoid() - 0.5)
            outputs.append(f)
        y = self.conv_2(self.conv_cat(torch.cat((near, outputs[-1], outputs[0]), 1)))
        return torch.pixel_shuffle(y, self.scale)


class SPANF3(nn.Module):
    def __init__(
        self,
        channels: int = 48,
        blocks: int = 5,
        scale: int = 2,
        unshuffle: int = 2,
        *,
        branches: bool = False,
    ) -> None:
        super().__init__()
        self.scale, self.blocks, self.unshuffle = scale, blocks, unshuffle
        head = Conv3XC(3 * unshuffle**2, channels, branches=branches)
        self.conv_1 = nn.Sequential(nn.PixelUnshuffle(unshuffle), head) if unshuffle > 1 else head
        for b in range(1, blocks + 1):
            block = nn.Module()
            for i in (1, 2, 3):
                block.add_module(f"c{i}_r", Conv3XC(channels, channels, branches=branches))
            block.att_conv = nn.Conv2d(channels, channels, 1)
            self.add_module(f"block_{b}", block)
        self.conv_cat = nn.Conv2d(4 * channels, channels, 1)
        self.to_pixel = Conv3XC(channels, 3 * (scale * unshuffle) ** 2, branches=branches)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        u = self.unshuffle
        if u > 1:
            x = F.pad(x, (0, -width % u, 0, -height % u), "reflect")
        head = f = self.conv_1(x)
        outputs = []
        relu = nn.ReLU(inplace=True)
        for b in range(1, self.blocks + 1):
            block = self.get_submodule(f"block_{b}")
            a1 = block.c1_r(f)
            h = block.c3_r(relu(block.c2_r(relu(a1))))  # overwrites a1
            f = (f + h) * block.att_conv(h).tanh()
            outputs.append(f)
        y = self.to_pixel(self.conv_cat(torch.cat((head, outputs[-1], outputs[0], a1), 1)))
        y = torch.pixel_shuffle(y, self.scale * u)
        return y[:, :, : self.scale * height, : self.scale * width]


class SPANPlus(nn.Module):
    def __init__(
        self,
        channels: int = 48,
        blocks: int = 4,
        scale: int = 4,
        upsampler: str = "ps",
        *,
        branches: bool = False,
    ) -> None:
        super().__init__()
        self.scale, self.blocks = scale, blocks

        def block() -> nn.Module:
            convs = {f"c{i}_r": Conv3XC(channels, channels, branches=branches) for i in (1, 2, 3)}
            return nn.ModuleDict(convs)

        group = nn.Module()
        group.block_1 = block()
        group.block_n = nn.Sequential(*(block() for _ in range(blocks)))
        group.block_end = block()
        group.conv_2 = Conv3XC(channels, channels, branches=branches)
        group.conv_cat = nn.Conv2d(4 * channels, channels, 1)
        self.feats = nn.ModuleList([Conv3XC(3, channels, branches=branches), group])
        last = nn.Conv2d(channels, 3 * scale**2, 3, padding=1)
        shuffled = nn.Sequential(last, nn.PixelShuffle(scale))
        self.upsampler = shuffled if upsampler == "ps" else last

    def forward(self, x: Tensor) -> Tensor:
        head = f = self.feats[0](x)
        group = self.feats[1]
        outputs = []
        mish = nn.Mish(inplace=True)
        for block in (group.block_1, *group.block_n, group.block_end):
            a1 = block["c1_r"](f)
            h = block["c3_r"](mish(block["c2_r"](mish(a1))))  # overwrites a1
            f = (f + h) * (h.sigmoid() - 0.5)
            outputs.append(f)
        y = group.conv_cat(torch.cat((head, group.conv_2(f), outputs[0], a1), 1))
        return self.upsampler(y)


@dataclass(frozen=True)
class Member:
    """A published network, or one like it, and what espan must take it for."""

    make: type[nn.Module]
    arguments: dict
    architecture: Architecture
    branches: bool = True  # whether there is a training form

    def network(self, *, branches: bool = False, seed: int = 0) -> nn.Module:
        """In fp64, with random weights of about unit gain."""
        arguments = self.arguments | ({"branches": branches} if self.branches else {})
        network = self.make(**arguments).double().eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
            values = torch.randn(parameter.shape, generator=generator).double()
            parameter.copy_((values / fan_in**0.5).float())  # files hold fp32
        return network


_V2 = Architecture(
    32,
    (3,) * 5,
    activation="relu",
    gate="linear",
    bias=False,
    stem="activated_block",
    tail="depthwise",
)
_F = Architecture(32, (3,) * 5, stem="block", tail="pointwise")
_F3 = Architecture(
    48,
    (3,) * 5,
    scale=2,
    concat_last="activation",
    activation="relu",
    gate="tanh",
    unshuffle=2,
    tail="pointwise",
)
_PLUS = Architecture(48, (3,) * 6, concat_last="activation", activation="mish")

MEMBERS = {
    "spanv2": Member(SPANV2, {}, _V2, branches=False),
    "spanv2 x3": Member(
        SPANV2,
        {"channels": 20, "blocks": 2, "scale": 3},
        _V2.replace(channels=20, convs=(3, 3), scale=3),
        branches=False,
    ),
    "spanv2 x2, one block": Member(
        SPANV2,
        {"channels": 7, "blocks": 1, "scale": 2},
        _V2.replace(channels=7, convs=(3,), scale=2),
        branches=False,
    ),
    "spanf": Member(SPANF, {}, _F),
    "spanf x2": Member(
        SPANF,
        {"channels": 26, "blocks": 2, "scale": 2},
        _F.replace(channels=26, convs=(3, 3), scale=2),
    ),
    "spanf3 b5f48": Member(SPANF3, {}, _F3),
    "spanf3 b8f64": Member(
        SPANF3, {"channels": 64, "blocks": 8}, _F3.replace(channels=64, convs=(3,) * 8)
    ),
    "spanf3 x1, unshuffled by 4": Member(
        SPANF3,
        {"channels": 18, "blocks": 2, "scale": 1, "unshuffle": 4},
        _F3.replace(channels=18, convs=(3, 3), scale=1, unshuffle=4),
    ),
    "spanf3 x4": Member(
        SPANF3,
        {"channels": 32, "blocks": 1, "scale": 4, "unshuffle": 1},
        _F3.replace(channels=32, convs=(3,), scale=4, unshuffle=1),
    ),
    "spanf3 x1, unshuffled by 3": Member(
        SPANF3,
        {"channels": 8, "blocks": 2, "scale": 1, "unshuffle": 3},
        _F3.replace(channels=8, convs=(3, 3), scale=1, unshuffle=3),
    ),
    "spanplus": Member(SPANPlus, {}, _PLUS),
    "spanplus x2, s": Member(
        SPANPlus,
        {"channels": 32, "blocks": 2, "scale": 2},
        _PLUS.replace(channels=32, convs=(3,) * 4, scale=2),
    ),
    "spanplus x1": Member(
        SPANPlus,
        {"channels": 12, "blocks": 0, "scale": 1, "upsampler": "conv"},
        _PLUS.replace(channels=12, convs=(3,) * 2, scale=1),
    ),
}
