"""How far a selection has come that takes its time."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_PATIENCE = 2.0  # seconds before anything is shown
_PAUSE = 30.0  # seconds between lines


class Descent:
    """From a cost down to a lower one, then its use in full.

    A bar on a terminal or in a notebook, elsewhere lines; what is done within two seconds shows
    nothing.
    """

    def __init__(self, start: float, end: float, *, shown: bool) -> None:
        self._start, self._end = start, end
        self._shown = shown
        self._began = self._told = time.monotonic()
        console = Console(stderr=True)
        self._live = console.is_interactive or console.is_jupyter
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True)

    def __enter__(self) -> Descent:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar.task_ids:
            self._bar.stop()

    def at(self, cost: float) -> None:
        """Tell that the cost has come to this."""
        done, total = self._start - cost, self._start - self._end
        share = f"{min(done / total, 1.0):.0%} of the way"
        self._tell(share, "select", total=total, completed=done)

    def filling(self) -> None:
        """Tell that units are given back or exchanged, of which nobody knows how many."""
        self._tell("filling up the budget", "select: filling up", total=None)

    def _tell(self, line: str, description: str, **bar: Any) -> None:
        now = time.monotonic()
        if not self._shown or now - self._began < _PATIENCE:
            return
        if self._live:
            if not self._bar.task_ids:
                self._bar.add_task(description)
                self._bar.start()
            self._bar.update(self._bar.task_ids[0], description=description, **bar)
        elif now - self._told >= _PAUSE:
            self._told = now
            print(f"select: {line}", file=sys.stderr, flush=True)
