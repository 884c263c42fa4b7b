"""The errors that tell a user what was wrong with what they gave.

The command line prints their message without a traceback; anything else is a defect of espan.
"""


class EspanError(ValueError):
    """Bad input.  The message names what was found and what would be right."""


class CheckpointError(EspanError):
    """A weight file that cannot be read, is not recognised, or does not fit its architecture."""


class ImageError(EspanError):
    """An image that cannot be read, is damaged, or is too large to be believed."""
