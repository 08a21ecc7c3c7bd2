"""The one progress bar: what is being done, how far it is, when it ends."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class bar:
    """A bar on stderr that is redrawn only when it advances: no thread runs beside a measurement.

    Where stderr is not a terminal, it writes one line at the end instead.
    """

    def __init__(self, title: str, total: int, show: bool = True) -> None:
        self.title, self.total = title, total
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=Console(stderr=True),
            auto_refresh=False,
            disable=not show or not sys.stderr.isatty(),
        )
        self._show = show
        self._started = False

    def start(self, done: int = 0) -> None:
        """Draw it; so many of its steps were taken before."""
        self._progress.start()
        self._task = self._progress.add_task(self.title, total=self.total, completed=done, note="")
        self._started = True

    def advance(self, note: str = "") -> None:
        """One step further; `note` says which."""
        self._progress.update(self._task, advance=1, note=note, refresh=True)

    def stop(self) -> None:
        """Leave it as it stands."""
        if self._started:
            self._started = False
            self._progress.stop()
            if self._show and self._progress.disable:
                task = self._progress.tasks[0]
                print(
                    f"{self.title}: {task.completed:.0f} of {self.total} in {task.elapsed or 0:.0f} s",
                    file=sys.stderr,
                )

    def __enter__(self) -> bar:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
