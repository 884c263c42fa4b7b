"""The SPAN family as data: `Architecture` describes every network in it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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


@dataclass(frozen=True)
class Architecture:
    """A network of the SPAN family.

    Attributes:
        channels: C, the width of every feature map.
        convs: number of 3x3 convolutions in each block, from first to last: 3 in a full SPAB, 2 if
            progressive learning removed the third.
        scale: upscaling factor s; the last convolution has 3*s*s outputs.
        head_kernel: odd width of the first convolution (SPAN: 3, ESPAN: 9).
        concat_last: the last operand of the concat, from the last block: its ``"output"`` (ESPAN)
            or its first ``"activation"`` (SPAN).
        normalization: applied to the input in 0-1; None: no normalisation.

    The concat is always ``[head, conv3(last block), first block, concat_last]``.
    """

    channels: int
    convs: tuple[int, ...]
    scale: int = 4
    head_kernel: int = 3
    concat_last: Literal["output", "activation"] = "output"
    normalization: Normalization | None = None

    def __post_init__(self) -> None:
        for name in ("channels", "scale", "head_kernel"):
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
        if self.concat_last not in ("output", "activation"):
            raise EspanError(
                f"architecture: concat_last must be 'output' or 'activation', "
                f"got {self.concat_last!r}"
            )

    @property
    def receptive_radius(self) -> int:
        """The output of a pixel depends on this many LR pixels on each side of it (ESPAN: 23)."""
        return self.head_kernel // 2 + sum(self.convs) + 2  # + the tail's two 3x3 convolutions

    def replace(self, **changes: Any) -> Architecture:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """JSON data; the inverse of `from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Architecture:
        """From the data of `to_dict`.  Unknown and missing keys are errors."""
        known = {f.name for f in dataclasses.fields(cls)}
        if set(data) != known:
            raise EspanError(
                f"architecture: unknown keys {sorted(set(data) - known)}, "
                f"missing keys {sorted(known - set(data))}"
            )
        fields = dict(data)
        fields["convs"] = tuple(fields["convs"])
        if (norm := fields["normalization"]) is not None:
            fields["normalization"] = Normalization(tuple(norm["mean"]), norm["img_range"])
        return cls(**fields)


# The entries in the NTIRE efficient-SR challenges of 2025 and 2024, and the wider SPAN in common
# use.
ESPAN = Architecture(channels=32, convs=(3, 3, 3, 3, 3, 2), head_kernel=9)
SPAN = Architecture(
    channels=28, convs=(3,) * 6, concat_last="activation", normalization=SPAN_NORMALIZATION
)
SPAN_C48 = SPAN.replace(channels=48)
NAMED = {"espan": ESPAN, "span": SPAN, "span_c48": SPAN_C48}

_PAPER_NAME = re.compile(r"c(\d+)d(\d+)(?:k(\d+))?(?:x(\d+))?")


def architecture_from_name(name: str) -> Architecture:
    """``"espan"``, ``"span"``, ``"span_c48"``, or the paper's notation (Tab. 2 and 4).

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
