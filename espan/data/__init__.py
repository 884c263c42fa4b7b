"""Training data: images in memory or in packs, and their crops in batches."""

from espan.data.crops import Crops
from espan.data.images import (
    TrainingImage,
    check_lr,
    fingerprint,
    image_in_memory,
    move_to_pack,
    open_images,
    some_names,
    with_lr,
)
from espan.data.loader import batches, raw_batches
from espan.data.photographs import Skipped

__all__ = [
    "Crops",
    "Skipped",
    "TrainingImage",
    "batches",
    "check_lr",
    "fingerprint",
    "image_in_memory",
    "move_to_pack",
    "open_images",
    "raw_batches",
    "some_names",
    "with_lr",
]
