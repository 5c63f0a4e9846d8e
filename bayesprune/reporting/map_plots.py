"""Feature maps of a layer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from bayesprune.errors import DataError
from bayesprune.reporting._figures import KEPT, REMOVED, STYLE, array, new_figure


def _picture(image: Any) -> np.ndarray:
    """Bring (h, w), (c, h, w) or (h, w, 1|3) to what imshow takes, scaled to [0, 1]."""
    picture = array(image)
    if picture.ndim not in (2, 3):
        raise DataError(f"image: expected (h, w), (c, h, w) or (h, w, 1|3), got {picture.shape}")
    if picture.ndim == 3 and picture.shape[0] in (1, 3):
        picture = np.moveaxis(picture, 0, -1)
    if picture.ndim == 3 and picture.shape[-1] == 1:
        picture = picture[..., 0]
    elif picture.ndim == 3 and picture.shape[-1] != 3:
        picture = picture.mean(0)
    spread = float(np.ptp(picture))
    return (picture - picture.min()) / (spread if spread > 0 else 1.0)


@rc_context(STYLE)
def feature_maps(
    image: Any,
    maps: Any,
    importance: Any | None = None,
    kept: Iterable[int] | None = None,
    max_maps: int = 64,
) -> Figure:
    """Draw an input image and a layer's feature maps, ranked by importance.

    Each map is titled with its original channel index and importance.  Removed maps are faded in
    a dashed frame, kept maps have a solid one.  All maps share one grey scale (1st to 99th
    percentile, dark is strong), so that a channel that does little looks flat.

    After Adamczewski & Park, *Dirichlet Pruning for Neural Network Compression*, AISTATS 2021,
    supplement, Figure 2.

    Parameters
    ----------
    image : array of shape (h, w), (c, h, w) or (h, w, 1 or 3)
        The input, in any range; the mean of its channels where they are not 3.
    maps : array of shape (C, h', w')
        Feature maps; row i belongs to original channel i.
    importance : array of shape (C,), optional
        For example the posterior mean of each gate; NaN marks a channel without a value, ranked
        last.  Without it, kept channels come first and nothing is ranked.
    kept : iterable of int, optional
        Original indices of the kept channels; without it, nothing is framed.
    max_maps : int, default 64
        Draw no more than the first so many maps.

    Returns
    -------
    Figure

    Raises
    ------
    DataError
        An argument has another shape, or `kept` names a channel that is not there.
    """
    maps = array(maps)
    if maps.ndim != 3 or maps.size == 0:
        raise DataError(f"maps: expected shape (C, h, w), got {maps.shape}")
    count = len(maps)
    values = np.full(count, math.nan) if importance is None else array(importance)
    if values.shape != (count,):
        raise DataError(f"importance: expected shape ({count},), got {values.shape}")
    alive = None if kept is None else set(kept)
    if alive and not alive <= set(range(count)):
        raise DataError(f"kept: expected indices below {count}, got {max(alive)}")
    removed = np.array([alive is not None and i not in alive for i in range(count)])
    # Unranked channels last; among those without a value, kept ones first.
    order = np.lexsort((removed, np.nan_to_num(-values, nan=math.inf)))[:max_maps]

    columns = 5
    rows = math.ceil((1 + len(order)) / columns)
    cell = 0.2 + 0.85 * min(2.0, max(0.5, maps.shape[1] / maps.shape[2]))
    figure = new_figure(height=0.25 + cell * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[1 + len(order) :]:
        axes.remove()
    for axes in grid[: 1 + len(order)]:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    grid[0].imshow(_picture(image), cmap="gray", vmin=0, vmax=1)
    grid[0].set_title("input", fontsize=8, pad=3)
    low, high = np.percentile(maps, (1, 99))
    for axes, channel in zip(grid[1:], order, strict=False):
        faded = removed[channel]
        axes.imshow(maps[channel], cmap="gray_r", vmin=low, vmax=high, alpha=0.45 if faded else 1)
        value = values[channel]
        title = f"{channel}" if math.isnan(value) else f"{channel}: {value:.2g}"
        axes.set_title(title, fontsize=8, fontweight="normal", pad=3)
        if alive is not None:
            axes.spines[:].set(
                visible=True,
                edgecolor=REMOVED if faded else KEPT,
                linestyle=(0, (3, 2)) if faded else "solid",
                linewidth=1.2 if faded else 1.8,
            )
    notes = [] if count == len(order) else [f"first {len(order)} of {count} channels"]
    notes += [] if alive is None else ["solid frame: kept, dashed: removed"]
    figure.supxlabel("; ".join([*notes, "dark: strong"]), fontsize=8)
    return figure
