"""CMYK to sRGB."""

import pyvips


def cmyk_to_srgb(image: pyvips.Image) -> pyvips.Image:
    """Convert 8 or 16-bit CMYK, and alpha if there is one, to sRGB of the same depth.

    The embedded profile is used; if there is none or it is not for CMYK, libvips' default profile.
    """
    depth = 16 if image.format == "ushort" else 8
    return image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=depth)
