"""Training data: images in memory or in a pack, and the crops that a network is trained on."""

from espan.data.crops import Crops
from espan.data.images import (
    Photograph,
    TrainingImage,
    fingerprint,
    image_in_memory,
    open_images,
    read_photographs,
)
from espan.data.loader import batches
from espan.data.photographs import Skipped

__all__ = [
    "Crops",
    "Photograph",
    "Skipped",
    "TrainingImage",
    "batches",
    "fingerprint",
    "image_in_memory",
    "open_images",
    "read_photographs",
]
