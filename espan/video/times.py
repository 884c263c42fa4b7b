"""Times as people write them, and the decoding times of packets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from espan.errors import EspanError

_TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)", re.ASCII)


def parse_time(text: str, option: str) -> Fraction:
    """Seconds, from "75.5", "1:15.5" or "0:01:15.5"."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise EspanError(f"{option} {text!r}: expected a time such as 75.5, 1:15.5 or 0:01:15.5")
    hours, minutes, seconds = found.groups(default="0")
    return 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)


def clock(seconds: Fraction) -> str:
    """Seconds as 0:01:15.500."""
    milliseconds = round(abs(seconds) * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    sign = "-" if seconds < 0 and milliseconds else ""
    return f"{sign}{minutes // 60}:{minutes % 60:02}:{rest // 1000:02}.{rest % 1000:03}"


def decoding_times(shown: Sequence[int]) -> list[int]:
    """A decoding time for each packet, from the presentation times, which are distinct.

    Encoders choose them from the frames of their own segment, so they may overlap at the borders
    of segments if the frame rate varies.  These increase, and none is after its presentation: they
    are the sorted presentation times, later by the largest number of packets that one waits for.
    """
    times = sorted(shown)
    place = {time: i for i, time in enumerate(times)}
    delay = max((i - place[time] for i, time in enumerate(shown)), default=0)
    step = max(1, times[1] - times[0]) if len(times) > 1 else 1
    early = [times[0] - (delay - i) * step for i in range(min(delay, len(times)))]
    return early + times[: len(times) - len(early)]
