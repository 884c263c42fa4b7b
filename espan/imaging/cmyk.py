"""CMYK to sRGB."""

import pyvips


def cmyk_to_srgb(image: pyvips.Image) -> pyvips.Image:
    """Convert 8 or 16-bit CMYK, and alpha if there is one, to sRGB of the same depth.

    By the embedded profile; by libvips' default CMYK profile if there is none or it is not for
    CMYK.
    """
    depth = 16 if image.format == "ushort" else 8
    return image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=depth)
