"""The line that shows how a run goes on."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Speed:
    """Steps per second, and the share of the time that was spent waiting for data."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
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


class Line:
    """A line on a terminal with the stage, the loss, the throughput and the time that is left.

    On anything but a terminal, and in all processes but the first, there is none.
    """

    def __init__(self, console: Console, *, total: int, shown: bool) -> None:
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not shown or not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=total, note="")

    def __enter__(self) -> Line:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def show(self, done: int, stage: str, loss: float, speed: Speed) -> None:
        """After `done` steps of the run."""
        note = (
            f"loss {loss:.4f}  {speed.steps_per_second:.1f} steps/s  "
            f"data {100 * speed.waiting:.0f}%"
        )
        self.bar.update(self.task, completed=done, description=stage, note=note)
