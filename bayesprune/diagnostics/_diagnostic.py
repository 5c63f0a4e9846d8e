"""What every diagnostic returns: numbers, and what they mean in words."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import track

LARGEST_RHAT = 1.01
"""Of chains that agree (Vehtari et al., Bayesian Analysis 2021)."""


class Diagnostic(ABC):
    """Abstract: the numbers of a check, as attributes and as a table, with a verdict."""

    @property
    @abstractmethod
    def verdict(self) -> str:
        """What the numbers mean, with the threshold and its source where there is one."""

    @property
    def threshold(self) -> float | None:
        """The largest good value of what is judged; None where there is no such bound."""
        return None

    @abstractmethod
    def to_frame(self) -> pd.DataFrame:
        """The numbers as a table."""

    def _repr_html_(self) -> str:
        table = self.to_frame().to_html(max_rows=20, float_format="{:.3g}".format, index=False)
        return f"{table}<p>{html.escape(self.verdict)}</p>"

    def __str__(self) -> str:
        return f"{type(self).__name__}: {self.verdict}"

    __repr__ = __str__


def has_display() -> bool:
    """Whether a bar can be shown: on a terminal or in a notebook."""
    console = Console(stderr=True)
    return console.is_interactive or console.is_jupyter


def shown(items: Iterable[Any], what: str, progress: bool, total: int | None = None) -> Any:
    """The items one by one, with a bar where there is a display for it."""
    hidden = not (progress and has_display())
    return track(items, what, total=total, console=Console(stderr=True), disable=hidden)
