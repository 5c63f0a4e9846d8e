"""What all figures share: size, colours, markers, and how names and legends are set.

Figures are built without pyplot, so they work in scripts, in threads and in notebooks, and leave
no open figure behind. Kept and removed channels differ in colour (a colour-blind-safe pair) and in
marker or frame.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe-Ito colours; figures are narrow (inches) so that their text stays legible on a phone.
KEPT, REMOVED, INK, MUTED, PALE = "#0072B2", "#D55E00", "#222222", "#666666", "#E3E3E3"
CYCLE = (KEPT, REMOVED, "#009E73", "#AA4499", "#8C6D00", "#2F9DC9", "#000000")
MARKERS = "oDs^vPX"
WIDTH = 4.2
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.handletextpad": 0.4,
    "legend.columnspacing": 1.4,
    "lines.linewidth": 1.5,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}


@final
class NotebookFigure(Figure):
    """A figure that notebooks show even when nobody has imported pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=130)
        return buffer.getvalue()


def new_figure(height: float) -> Figure:
    return NotebookFigure(figsize=(WIDTH, height), layout="constrained")


def array(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=float)


def shorten(text: str, length: int) -> str:
    """Cut the middle out of a long name; both ends of a module path tell it apart."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def curve_style(index: int) -> dict[str, Any]:
    """Colour and marker of the curve with this number."""
    # They fall out of step after one cycle, so that 7 x 7 curves stay distinct.
    marker = MARKERS[(index + index // len(CYCLE)) % len(MARKERS)]
    return {"color": CYCLE[index % len(CYCLE)], "marker": marker, "markersize": 4}


def legend_above(axes: Axes, title: str) -> int:
    """Put the legend between the title and the axes, where it hides no data; return its rows."""
    handles, labels = axes.get_legend_handles_labels()
    # Inches that an entry takes, of those that a figure has beside its axis labels.
    entry = 0.45 + 0.075 * max((len(label) for label in labels), default=0)
    columns = min(3, max(1, int(3.6 / entry)))
    rows = math.ceil(len(handles) / columns)
    axes.set_title(title, pad=6 + 15 * rows)
    if handles:
        axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderaxespad=0.2,
            borderpad=0.2,
            ncols=columns,
        )
    return rows


def format_count(number: float) -> str:
    """Write a count with three digits and a unit.

    Parameters
    ----------
    number : float
        A count, at least 0, such as multiply-accumulates.

    Returns
    -------
    str
        For example ``"950"``, ``"159K"`` or ``"2.29M"``.
    """
    unit = ""
    for larger in ("K", "M", "G", "T"):
        if number < 999.5:
            break
        number, unit = number / 1000, larger
    return f"{number:.3g}{unit}"


def numbers(rows: Sequence[Mapping[str, Any]], column: str) -> np.ndarray:
    """Read one column of a table whose cells may be text or missing, such as ``metrics.csv``.

    Parameters
    ----------
    rows : sequence of mappings
        The table.
    column : str
        Its column.

    Returns
    -------
    array of shape (len(rows),)
        The numbers; NaN where a row has none.
    """
    values = np.full(len(rows), math.nan)
    for place, row in enumerate(rows):
        try:
            values[place] = float(row[column])
        except (KeyError, TypeError, ValueError):
            continue
    return values
