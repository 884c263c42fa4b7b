"""What a run tells: a metrics file, TensorBoard, and lines for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from espan.files import atomic_write


class Log:
    """The metrics of a run.

    `metrics.jsonl` has a line of JSON for each measurement, with the step of the whole run;
    `tensorboard/` has the same.  What was written after the save that a run goes on from is
    removed: those steps are made again.

    Args:
        folder: of the run.
        console: for people.
        lines: of metrics.jsonl that stay, from the first; 0 for a new run.
        step: of the whole run, after which TensorBoard's are removed.
        shown: whether this process is the one that tells and writes.
    """

    def __init__(
        self, folder: Path, console: Console, *, lines: int, step: int, shown: bool
    ) -> None:
        self.path = folder / "metrics.jsonl"
        self.console = console
        self.shown = shown
        if not shown:
            return
        kept = read_metrics(folder)[:lines]
        self.lines = len(kept)
        with atomic_write(self.path) as path:
            path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._board = SummaryWriter(
            str(folder / "tensorboard"), purge_step=step + 1 if step else None
        )

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self.shown:
            self._board.close()

    def tell(self, text: str) -> None:
        """A line for people."""
        if self.shown:
            self.console.print(text, markup=False)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """A measurement after `step` steps of the whole run."""
        if not self.shown:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self.lines += 1
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name, value, step)
        self._board.flush()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics file; one that was cut off by a kill is left out."""
    path = folder / "metrics.jsonl"
    lines = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
