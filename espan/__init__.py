"""espan: inference, training and kernels for the SPAN family of super-resolution networks."""

from espan._version import __version__
from espan.checkpoints import load
from espan.errors import CheckpointError, EspanError, ImageError, ImageWarning, RangeWarning
from espan.upscaling import Upscaler, upscale

__all__ = [
    "CheckpointError",
    "EspanError",
    "ImageError",
    "ImageWarning",
    "RangeWarning",
    "Upscaler",
    "__version__",
    "load",
    "upscale",
]
