"""The networks of the SPAN family, as data (`Architecture`) and as plain modules (`Network`)."""

from espan.models.architecture import (
    ESPAN,
    NAMED,
    SPAN,
    SPAN_C48,
    SPAN_NORMALIZATION,
    SPANF,
    SPANF3_B5F48,
    SPANF3_B8F64,
    SPANPLUS,
    SPANV2,
    Architecture,
    Normalization,
    architecture_from_name,
)
from espan.models.complexity import Complexity, complexity
from espan.models.network import ConvFactory, Gate, Network, Tail, check_size, plain_conv

__all__ = [
    "ESPAN",
    "NAMED",
    "SPAN",
    "SPANF",
    "SPANF3_B5F48",
    "SPANF3_B8F64",
    "SPANPLUS",
    "SPANV2",
    "SPAN_C48",
    "SPAN_NORMALIZATION",
    "Architecture",
    "Complexity",
    "ConvFactory",
    "Gate",
    "Network",
    "Normalization",
    "Tail",
    "architecture_from_name",
    "check_size",
    "complexity",
    "plain_conv",
]
