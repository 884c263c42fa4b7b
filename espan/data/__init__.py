"""Training data: photographs in memory, and the crops that a network is trained on."""

from espan.data.crops import Crops
from espan.data.photographs import Photograph, Skipped, read_photographs

__all__ = ["Crops", "Photograph", "Skipped", "read_photographs"]
