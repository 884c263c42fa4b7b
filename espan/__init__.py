"""espan: inference, training and kernels for the SPAN family of super-resolution networks."""

import importlib
from typing import TYPE_CHECKING

from espan._version import __version__

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

if TYPE_CHECKING:
    from espan.checkpoints import load
    from espan.errors import CheckpointError, EspanError, ImageError, ImageWarning, RangeWarning
    from espan.upscaling import Upscaler, upscale
else:
    # Their modules import PyTorch, which takes seconds, and can fail.  They are imported when a
    # name is first used, so that the command line can handle errors and Ctrl-C meanwhile.
    _MODULES = ("espan.errors", "espan.checkpoints", "espan.upscaling")

    def __getattr__(name: str) -> object:
        if name in __all__:
            for module in map(importlib.import_module, _MODULES):
                if name in vars(module):
                    return vars(module)[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
