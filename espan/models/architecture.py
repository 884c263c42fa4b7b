"""The SPAN family as data: `Architecture` describes every network in it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from espan.errors import EspanError


@dataclass(frozen=True)
class Normalization:
    """The input becomes ``(x - mean) * img_range`` before the first convolution.

    ``mean`` is RGB, in the range of the input (0-1).
    """

    mean: tuple[float, float, float]
    img_range: float

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or not all(isinstance(m, (int, float)) for m in self.mean):
            raise EspanError(f"normalization: mean must be three numbers (RGB), got {self.mean!r}")
        if not self.img_range > 0:
            raise EspanError(f"normalization: img_range must be above 0, got {self.img_range!r}")


# The normalisation of the SPAN code: the mean colour of DIV2K, data in 0-255.
SPAN_NORMALIZATION = Normalization(mean=(0.4488, 0.4371, 0.4040), img_range=255.0)


# Fields that files of earlier versions lack: they describe networks that have the defaults.
_ADDED_LATER = {"activation", "gate", "bias", "unshuffle", "stem", "tail"}

BlockEnd = Literal["sigmoid", "linear", "tanh", "none", "act"]


@dataclass(frozen=True)
class Architecture:
    """A network of the SPAN family.

    Attributes:
        channels: C, the width of every feature map.
        convs: number of 3x3 convolutions in each block, from first to last: 3 in a full SPAB, 2 if
            progressive learning removed the third.
        scale: upscaling factor s.
        head_kernel: odd width of the first convolution (SPAN: 3, ESPAN: 9).
        concat_last: the last operand of the concat, from the last block: its ``"output"`` (ESPAN)
            or its first ``"activation"`` (SPAN).
        normalization: applied to the input in 0-1; None: no normalisation.
        activation: between the convolutions of a block.
        gate: the end of a block, for its input x and the result h of its last convolution:
            ``"sigmoid"``, (x + h) (sigmoid(h) - 1/2); with a learned 1x1 convolution,
            ``"linear"``, (x + h) conv1(h), or ``"tanh"``, (x + h) tanh(conv1(h)).
        bias: whether the 3x3 convolutions of the blocks have one.
        unshuffle: u; each u x u pixels of the image become 3*u*u channels before the first
            convolution, and the last one upscales by s*u.  Images are extended to a multiple of u
            by reflection at the right and the bottom, and the result is cut to s times their size.
        stem: what takes the image: ``"conv"``, the head, a convolution; or the first block, which
            then has no gate and ends with its last convolution (``"block"``) or with one more
            activation (``"activated_block"``).  With a block, there is no head; its place in the
            concat is taken by `near`, a depthwise 3x3 from each colour to s*s channels.
        tail: ``"conv"``: a 3x3 convolution of the last block's output, a 1x1 of the concat, and a
            3x3 to the image; ``"pointwise"``: the same without the first of the three;
            ``"depthwise"``: a depthwise 3x3 of the concat and a 1x1 to the image.

    The concat is ``[head, conv3(last block), first block, concat_last]`` for the tail ``"conv"``,
    ``[head, last block, first block, activation]`` for ``"pointwise"``, where the activation is
    left out if `concat_last` is ``"output"``, and ``[near, last block]`` for ``"depthwise"``.
    """

    channels: int
    convs: tuple[int, ...]
    scale: int = 4
    head_kernel: int = 3
    concat_last: Literal["output", "activation"] = "output"
    normalization: Normalization | None = None
    activation: Literal["silu", "relu", "mish"] = "silu"
    gate: Literal["sigmoid", "linear", "tanh"] = "sigmoid"
    bias: bool = True
    unshuffle: int = 1
    stem: Literal["conv", "block", "activated_block"] = "conv"
    tail: Literal["conv", "pointwise", "depthwise"] = "conv"

    def __post_init__(self) -> None:
        for name in ("channels", "scale", "head_kernel", "unshuffle"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise EspanError(f"architecture: {name} must be an integer >= 1, got {value!r}")
        if self.head_kernel % 2 == 0:
            raise EspanError(f"architecture: head_kernel must be odd, got {self.head_kernel}")
        if not self.convs or any(n not in (2, 3) for n in self.convs):
            raise EspanError(
                "architecture: convs must list 2 or 3 for each block, e.g. (3, 3, 3, 3, 3, 2); "
                f"got {self.convs!r}"
            )
        for field in dataclasses.fields(self):
            choices = get_args(_CHOICES.get(field.name))
            value = getattr(self, field.name)
            if choices and value not in choices:
                wanted = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
                raise EspanError(f"architecture: {field.name} must be {wanted}, got {value!r}")
        if not isinstance(self.bias, bool):
            raise EspanError(f"architecture: bias must be true or false, got {self.bias!r}")
        stem = (self.convs[0], self.head_kernel, self.unshuffle, self.concat_last)
        if self.has_near and stem != (3, 3, 1, "output"):
            raise EspanError(
                f"architecture: the stem {self.stem!r} needs 3 convolutions in the first block, "
                f"head_kernel 3, unshuffle 1 and concat_last 'output', got {stem}"
            )
        if self.unshuffle > 1 and self.head_kernel != 3:
            raise EspanError(
                f"architecture: with unshuffle {self.unshuffle}, head_kernel must be 3, "
                f"got {self.head_kernel}"
            )
        if self.tail == "depthwise" and not self.has_near:
            raise EspanError(
                "architecture: the tail 'depthwise' needs the stem 'block' or 'activated_block', "
                f"got {self.stem!r}"
            )

    @property
    def has_near(self) -> bool:
        """Whether the first block takes the image."""
        return self.stem != "conv"

    @property
    def tail_scale(self) -> int:
        """The factor of the pixel shuffle; the last convolution has 3 times its square outputs."""
        return self.scale * self.unshuffle

    @property
    def concat_activation(self) -> bool:
        """Whether the concat holds the first activation of the last block."""
        return self.concat_last == "activation"

    def end_of_block(self, index: int) -> BlockEnd:
        """`gate`, or for a first block that takes the image ``"none"`` or ``"act"``."""
        if index == 0 and self.has_near:
            return "act" if self.stem == "activated_block" else "none"
        return self.gate

    @property
    def receptive_radius(self) -> int:
        """The output of a pixel depends on this many LR pixels on each side of it (ESPAN: 23)."""
        head = 0 if self.has_near else self.head_kernel // 2
        tail = 2 if self.tail == "conv" else 1  # 3x3 convolutions, one after the other
        pixels = head + sum(self.convs) + tail
        # Of u x u pixels, the first depends on those of the last pixel this far away.
        return pixels * self.unshuffle + self.unshuffle - 1

    def replace(self, **changes: Any) -> Architecture:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """JSON data; the inverse of `from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Architecture:
        """From the data of `to_dict`, also of earlier versions.

        Unknown and missing keys are errors.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        unknown, missing = set(data) - known, known - _ADDED_LATER - set(data)
        if unknown or missing:
            raise EspanError(
                f"architecture: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}"
            )
        fields = dict(data)
        fields["convs"] = tuple(fields["convs"])
        if (norm := fields["normalization"]) is not None:
            fields["normalization"] = Normalization(tuple(norm["mean"]), norm["img_range"])
        return cls(**fields)


_CHOICES = {
    name: hint for name, hint in get_type_hints(Architecture).items() if get_origin(hint) is Literal
}

# The entries in the NTIRE efficient-SR challenges of 2025 and 2024, and the wider SPAN in common
# use.
ESPAN = Architecture(channels=32, convs=(3, 3, 3, 3, 3, 2), head_kernel=9)
SPAN = Architecture(
    channels=28, convs=(3,) * 6, concat_last="activation", normalization=SPAN_NORMALIZATION
)
SPAN_C48 = SPAN.replace(channels=48)
# Other entries, of 2026 and 2025.
SPANV2 = Architecture(
    channels=32,
    convs=(3,) * 5,
    activation="relu",
    gate="linear",
    bias=False,
    stem="activated_block",
    tail="depthwise",
)
SPANF = Architecture(channels=32, convs=(3,) * 5, stem="block", tail="pointwise")
# Networks of training frameworks: two sizes in use for video, and SPAN with Mish.
SPANF3_B8F64 = Architecture(
    channels=64,
    convs=(3,) * 8,
    scale=2,
    concat_last="activation",
    activation="relu",
    gate="tanh",
    unshuffle=2,
    tail="pointwise",
)
SPANF3_B5F48 = SPANF3_B8F64.replace(channels=48, convs=(3,) * 5)
SPANPLUS = Architecture(channels=48, convs=(3,) * 6, concat_last="activation", activation="mish")
NAMED = {
    "espan": ESPAN,
    "span": SPAN,
    "span_c48": SPAN_C48,
    "spanv2": SPANV2,
    "spanf": SPANF,
    "spanf3_b8f64": SPANF3_B8F64,
    "spanf3_b5f48": SPANF3_B5F48,
    "spanplus": SPANPLUS,
}

_PAPER_NAME = re.compile(r"c(\d+)d(\d+)(?:k(\d+))?(?:x(\d+))?")


def architecture_from_name(name: str) -> Architecture:
    """A name in `NAMED`, or the paper's notation (Tab. 2 and 4).

    ``"c32d5k9x4"`` is 32 channels, 5 blocks, a 9x9 head (default 3x3), x4 (default), with ESPAN's
    concat and no normalisation.
    """
    if name in NAMED:
        return NAMED[name]
    if match := _PAPER_NAME.fullmatch(name):
        channels, depth, kernel, scale = (int(g) if g else None for g in match.groups())
        return Architecture(
            channels=channels or 0,
            convs=(3,) * (depth or 0),
            head_kernel=3 if kernel is None else kernel,
            scale=4 if scale is None else scale,
        )
    raise EspanError(
        f"unknown architecture {name!r}; choose {', '.join(NAMED)} or the paper's notation, "
        "e.g. c32d5k9x4 (32 channels, 5 blocks, 9x9 head, x4)"
    )
