"""What methods say of channels: one number per unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bayesprune._checks import check_choice
from bayesprune._describe import html_table
from bayesprune.errors import PlanError

Normalisation = Literal["l2", "none"]


@dataclass(frozen=True)
class ChannelScores:
    """One number per unit, higher = keep.

    Attributes
    ----------
    values : dict of str to Tensor
        Shape ``(C,)`` per group. Scores of different groups are not comparable by themselves.
    measure : str
        What was measured.
    draws : dict of str to Tensor, optional
        Posterior draws of the gates, shape ``(D, C)`` per group, where the measure asks for them.

    Raises
    ------
    PlanError
        If a group's scores are not a vector of finite numbers.
    """

    values: dict[str, Tensor]
    measure: str
    draws: dict[str, Tensor] | None = None

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if value.ndim != 1 or not torch.isfinite(value).all():
                raise PlanError(
                    f"{name}: expected a vector of finite scores ({self.measure}), "
                    f"got shape {tuple(value.shape)}{' with NaN or inf' if value.ndim == 1 else ''}"
                )

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} ({len(values)})" for name, values in self.values.items())
        return f"ChannelScores of {sizes}; {self.measure}"

    def _repr_html_(self) -> str:
        rows = [
            (name, len(v), *(f"{x:.4g}" for x in (v.min(), v.median(), v.max())))
            for name, v in self.values.items()
        ]
        return html_table(("group", "units", "lowest", "median", "highest"), rows, self.measure)

    def order(self, name: str) -> list[int]:
        """Units of a group from the lowest score to the highest; ties by index."""
        return torch.argsort(self.values[name].cpu(), stable=True).tolist()

    def best(self, name: str, count: int) -> list[int]:
        """The `count` units with the highest scores, ascending."""
        order = self.order(name)
        return sorted(order[len(order) - count :])

    def normalised(self, how: Normalisation) -> ChannelScores:
        """Each group's scores divided by their Euclidean norm ("l2"), or as they are ("none").

        Raises
        ------
        ConfigError
            If `how` is neither.
        """
        check_choice("normalise", how, Normalisation)
        if how == "none":
            return self
        values = {name: nn.functional.normalize(v, dim=0) for name, v in self.values.items()}
        return ChannelScores(values, self.measure)
