"""The folder beside the result that holds finished segments, so that a run can be resumed."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from espan.errors import EspanError
from espan.files import atomic_write, json_text

_JOB = "job.json"
_INDEX = re.compile(r"(\d{5})\.json")


@dataclass(frozen=True)
class Segment:
    """A finished file of encoded frames.

    Attributes:
        path: of the file.
        times: of its packets in the order of decoding, in units of the source's time base.
        duration: of the frame that is shown last.
        notes: about damaged stretches before its last frame.
    """

    path: Path
    times: list[int]
    duration: int
    notes: list[str]


class SegmentFolder:
    """`OUT.segments`, with `job.json`, and `00000.mkv` and `00000.json` for each segment.

    A segment counts from the moment that its JSON file exists, which is written last.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.segments")
        self.segments: list[Segment] = []

    def create(self, job: Mapping[str, object]) -> None:
        """Begin a run.  Raises EspanError if there is a folder of an earlier one."""
        try:
            self.path.mkdir()
        except FileExistsError:
            raise EspanError(
                f"{self.path} holds the segments of an interrupted run; --resume continues it; "
                "to begin anew, delete that folder"
            ) from None
        with atomic_write(self.path / _JOB) as path:
            path.write_text(json_text(job, indent=1))

    def resume(self, job: Mapping[str, object]) -> None:
        """Continue a run.  Raises EspanError if its input or options were others."""
        if not self.path.is_dir():
            raise EspanError(f"there is nothing to resume: {self.path} does not exist")
        began = self._read(_JOB)
        keys = dict.fromkeys([*began, *job])  # in order
        changed = [
            f"{key} is {job.get(key)!r} and was {began.get(key)!r}"
            for key in keys
            if job.get(key) != began.get(key)
        ]
        if changed:
            raise EspanError(
                f"--resume: this is not the run that {self.path} belongs to: {'; '.join(changed)}"
            )
        for part in self.path.glob(".*.part"):  # of a run that was killed
            part.unlink()
        while (index := self._path(len(self.segments), ".json")).exists():
            entry = self._read(index.name)
            path = self._path(len(self.segments), self.target.suffix)
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                raise EspanError(
                    f"{path} is missing or was changed; delete {self.path} to begin anew"
                )
            self.segments.append(Segment(path, entry["times"], entry["duration"], entry["notes"]))

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A path for a temporary file, which is deleted."""
        path = self.path / f".{secrets.token_hex(6)}.part"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def add(self, part: Path, times: list[int], duration: int, notes: list[str]) -> None:
        """Make a finished segment of a file, which is moved, and is on the disk then."""
        number = len(self.segments)
        path = self._path(number, self.target.suffix)
        with atomic_write(path) as temporary:
            part.replace(temporary)
        entry = {
            "times": times,
            "duration": duration,
            "notes": notes,
            "bytes": path.stat().st_size,
        }
        with atomic_write(self._path(number, ".json")) as temporary:
            temporary.write_text(json_text(entry))
        self.segments.append(Segment(path, times, duration, notes))

    def remove(self) -> None:
        """Delete the folder, but no file that espan did not write."""
        names = [path for path in self.path.iterdir() if _INDEX.fullmatch(path.name)]
        for index in names:
            index.with_suffix(self.target.suffix).unlink(missing_ok=True)
            index.unlink()
        (self.path / _JOB).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _path(self, number: int, suffix: str) -> Path:
        return self.path / f"{number:05}{suffix}"

    def _read(self, name: str) -> dict:
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise EspanError(
                f"{self.path / name} cannot be read ({error}); delete {self.path} to begin anew"
            ) from error
