"""What methods say of channels: one number per unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bayesprune._checks import check_choice
from bayesprune._describe import html_table
from bayesprune.errors import ConfigError, PlanError

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
    interval_scale : bool
        Whether only differences between scores mean something, since there is no zero to measure
        from: logarithms and logits, as of most switch families.

    Raises
    ------
    PlanError
        If a group's scores are not a vector of finite numbers.
    """

    values: dict[str, Tensor]
    measure: str
    draws: dict[str, Tensor] | None = None
    interval_scale: bool = False

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

        Scores on an interval scale stay as they are either way: divided, the lower of two groups
        could come out as the higher one.

        Raises
        ------
        ConfigError
            If `how` is neither, or scores to be divided are negative.
        """
        check_choice("normalise", how, Normalisation)
        if how == "none" or self.interval_scale:
            return self
        if negative := [name for name, v in self.values.items() if (v < 0).any()]:
            raise ConfigError(
                f"normalise: expected scores of at least 0 ({self.measure}), got negative ones for "
                f"{', '.join(negative)}; give normalise='none'"
            )
        values = {name: nn.functional.normalize(v, dim=0) for name, v in self.values.items()}
        return ChannelScores(values, self.measure)
