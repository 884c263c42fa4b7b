"""The ways to run a folded network.

Each engine is a module that takes an image batch (N, 3, H, W), uint8 or floating-point in 0-1, and
a flag: int32, one element.  It sets the flag to 1 if an output value is outside `PLAUSIBLE` or not
finite, and otherwise leaves it unchanged.  It returns a batch (N, 3, s*H, s*W): for uint8 images,
uint8, clamped and rounded; otherwise floating-point, not clamped.
"""

from espan.engines.blocks import Blocks
from espan.engines.composed import Composed
from espan.engines.streamed import Streamed

__all__ = ["Blocks", "Composed", "Streamed"]
