"""What a run reports: metrics, TensorBoard, messages and a progress bar."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from espan.files import atomic_write, json_text

SECONDS_PER_LINE = 60.0


def stderr() -> Console:
    """A console for messages, which leaves lines and numbers as they are."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


class Speed:
    """Steps per second, and the share of the time that was spent waiting for data."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.steps = 0
        self.waited = 0.0

    @property
    def steps_per_second(self) -> float:
        return self.steps / max(1e-9, time.perf_counter() - self.start)

    @property
    def waiting(self) -> float:
        """In 0-1."""
        return self.waited / max(1e-9, time.perf_counter() - self.start)


class Log:
    """Reports the progress of a run.

    `metrics.jsonl` has one line of JSON per measurement, with the step of the whole run;
    `tensorboard/` has the same.  When a run is resumed, what was logged after the save is removed,
    because those steps are repeated.  The progress bar is shown on terminals; elsewhere, a line a
    minute.

    Args:
        folder: of the run.
        console: for messages.
        total: number of steps of the run.
        lines: number of lines of metrics.jsonl to keep; 0 for a new run.
        step: steps of the run that are done.
        enabled: whether this process reports anything.
    """

    def __init__(
        self, folder: Path, console: Console, *, total: int, lines: int, step: int, enabled: bool
    ) -> None:
        self.path = folder / "metrics.jsonl"
        self.console = console
        self.enabled = enabled
        self.lines = 0
        self._total = total
        self._shown = time.perf_counter()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not enabled or not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, note="")
        if not enabled:
            return
        kept = read_metrics(folder)[:lines]
        self.lines = len(kept)
        with atomic_write(self.path) as path:
            path.write_text("".join(json_text(line) + "\n" for line in kept))
        self._board = SummaryWriter(
            str(folder / "tensorboard"), purge_step=step + 1 if step else None
        )

    def __enter__(self) -> Log:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self.enabled:
            self._board.close()

    def message(self, text: str) -> None:
        if self.enabled:
            self.console.print(text, markup=False)
        self._shown = time.perf_counter()

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        """Log a measurement after a step of the whole run."""
        if not self.enabled:
            return
        with self.path.open("a") as file:
            file.write(json_text({"step": step, **values}) + "\n")
        self.lines += 1
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name, value, step)
        self._board.flush()

    def progress(self, step: int, stage: str, loss: float, speed: Speed) -> None:
        """Show the progress after a step of the whole run."""
        note = (
            f"loss {loss:.4f}  {speed.steps_per_second:.1f} steps/s  "
            f"data {100 * speed.waiting:.0f}%"
        )
        self._bar.update(self._task, completed=step, description=stage, note=note)
        if not self.console.is_terminal and time.perf_counter() - self._shown > SECONDS_PER_LINE:
            self.message(f"{stage}  {step}/{self._total} steps of the run  {note}")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics file up to the first that is damaged, as after a kill."""
    path = folder / "metrics.jsonl"
    lines = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
