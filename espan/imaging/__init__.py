"""Image files and resizing."""

from espan.imaging.image import Image, ImageWarning
from espan.imaging.image_read import IMAGE_SUFFIXES, MAX_PIXELS, is_image_path, read_image
from espan.imaging.image_write import check_output, write_image
from espan.imaging.resize import imresize, modcrop

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "Image",
    "ImageWarning",
    "check_output",
    "imresize",
    "is_image_path",
    "modcrop",
    "read_image",
    "write_image",
]
