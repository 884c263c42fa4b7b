"""The networks of the SPAN family, as data (`Architecture`) and as plain modules (`Network`)."""

from espan.models.architecture import (
    ESPAN,
    NAMED,
    SPAN,
    SPAN_C48,
    SPAN_NORMALIZATION,
    Architecture,
    Normalization,
    architecture_from_name,
)
from espan.models.complexity import Complexity, complexity
from espan.models.network import SPAB, ConvFactory, Gate, Network, Tail, plain_conv

__all__ = [
    "ESPAN",
    "NAMED",
    "SPAB",
    "SPAN",
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
    "complexity",
    "plain_conv",
]
