"""Image files and resizing."""

from espan.imaging.folders import find_images, lr_folders, pair_lr
from espan.imaging.image import Image, without_opaque_alpha
from espan.imaging.image_read import IMAGE_SUFFIXES, MAX_PIXELS, is_image_path, read_image
from espan.imaging.image_write import check_output, write_image
from espan.imaging.resize import imresize, modcrop

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "Image",
    "check_output",
    "find_images",
    "imresize",
    "is_image_path",
    "lr_folders",
    "modcrop",
    "pair_lr",
    "read_image",
    "without_opaque_alpha",
    "write_image",
]
