"""A pruning plan, and the limits within which one may be chosen."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from bayesprune._describe import html_table
from bayesprune.checkpoint import write_text_atomic
from bayesprune.cost import Cost
from bayesprune.errors import CheckpointError, ConfigError, PlanError
from bayesprune.groups import ChannelGroups

Kept = dict[str, list[int]]


@dataclass(frozen=True)
class PruningPlan:
    """Which units of each group stay.

    Attributes
    ----------
    kept : dict of str to list of int
        Ascending original indices, at least one per group.
    sizes : dict of str to int
        Number of units before pruning.
    method : str
        What chose them.
    cost : Cost, optional
        Predicted cost of the pruned network.
    note : str, optional
        What to know about the choice: why a budget is not used up, for example.

    Raises
    ------
    PlanError
        If indices are empty, repeated, unsorted or out of range.

    Examples
    --------
    >>> import bayesprune as bp
    >>> plan = bp.PruningPlan(kept={"conv": [0, 2]}, sizes={"conv": 3})
    >>> plan.widths
    {'conv': 2}
    >>> plan.masks()
    {'conv': tensor([1., 0., 1.])}
    >>> bp.PruningPlan.from_json(plan.to_json()) == plan
    True
    """

    kept: Kept
    sizes: dict[str, int]
    method: str = ""
    cost: Cost | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if set(self.kept) != set(self.sizes):
            raise PlanError("plan: kept and sizes must name the same groups")
        for name, kept in self.kept.items():
            size = self.sizes[name]
            if not kept:
                raise PlanError(f"{name}: a plan must keep at least one channel")
            if sorted(set(kept)) != list(kept) or kept[0] < 0 or kept[-1] >= size:
                raise PlanError(
                    f"{name}: expected ascending indices in [0, {size}), got {_short(kept)}"
                )

    @property
    def widths(self) -> dict[str, int]:
        """Number of units that stay in each group."""
        return {name: len(kept) for name, kept in self.kept.items()}

    @property
    def architecture(self) -> dict[str, dict[str, int]]:
        """``{group: {"kept": k, "of": n}}``."""
        return {n: {"kept": len(k), "of": self.sizes[n]} for n, k in self.kept.items()}

    def masks(self) -> dict[str, Tensor]:
        """Gates of ones and zeros, shape ``(C,)`` per group."""
        masks = {}
        for name, kept in self.kept.items():
            masks[name] = torch.zeros(self.sizes[name])
            masks[name][kept] = 1.0
        return masks

    def check(self, groups: ChannelGroups) -> None:
        """Raise PlanError unless every group of the plan is in `groups` with the same size."""
        for name, size in self.sizes.items():
            if name not in groups:
                raise PlanError(
                    f"{name}: the plan is for another network; groups here: {', '.join(groups)}"
                )
            if groups[name].size != size:
                raise PlanError(
                    f"{name}: the plan expects {size} channels, the network has {groups[name].size}"
                )

    def then(self, later: PruningPlan) -> PruningPlan:
        """This plan followed by one for the pruned network, in original indices."""
        kept = dict(self.kept)
        for name, indices in later.kept.items():
            if name not in kept or later.sizes[name] != len(kept[name]):
                raise PlanError(f"{name}: the later plan is not for the network this plan leaves")
            kept[name] = [kept[name][i] for i in indices]
        return PruningPlan(kept, self.sizes, later.method, later.cost, later.note)

    def to_json(self) -> str:
        """The plan as JSON."""
        return json.dumps({"schema": 1, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """A plan from `to_json`; raises CheckpointError if the text is something else."""
        try:
            data = json.loads(text)
            cost = None if data["cost"] is None else Cost(**data["cost"])
            numbers = [*data["sizes"].values(), *chain(*data["kept"].values())]
            if data["schema"] != 1 or not all(type(number) is int for number in numbers):
                raise TypeError("expected schema 1 and whole numbers")
            note = data.get("note")  # plans from before there were notes have none
            if not isinstance(note, str | None):
                raise TypeError("expected a text as note")
            return cls(data["kept"], data["sizes"], data["method"], cost, note)
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(f"plan: expected the JSON of a PruningPlan: {error!r}") from error

    def save(self, path: str | Path) -> None:
        """Write the JSON atomically."""
        write_text_atomic(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan; raises CheckpointError if the file is missing or holds no valid plan."""
        try:
            return cls.from_json(Path(path).read_text())
        except (OSError, UnicodeDecodeError, CheckpointError, PlanError) as error:
            raise CheckpointError(f"{path}: expected a plan: {error}") from error

    def __repr__(self) -> str:
        widths = ", ".join(f"{n} {len(k)}/{self.sizes[n]}" for n, k in self.kept.items())
        return f"PruningPlan({widths}; {self._foot})"

    def _repr_html_(self) -> str:
        rows = [(name, len(kept), self.sizes[name]) for name, kept in self.kept.items()]
        return html_table(("group", "kept", "of"), rows) + f"<p>{html.escape(self._foot)}</p>"

    @property
    def _foot(self) -> str:
        return f"{self.method}; predicted {self.cost}" + (f"; {self.note}" if self.note else "")


def _short(values: Sequence[int]) -> str:
    return str(list(values[:8]))[:-1] + (", …]" if len(values) > 8 else "]")


@dataclass(frozen=True)
class Limits:
    """How many units each group may keep, whatever rule decides.

    Parameters
    ----------
    minimum : int or dict of str to int
        Fewest units, >= 1, of every group or of the groups named; a smaller group stays whole.
    round_to : int
        A group that is not whole keeps a multiple of this, >= 1; one that has fewer units keeps any
        number of them.
    protect : list of str
        Groups that stay whole.

    Raises
    ------
    ConfigError
        If a number is below 1.
    """

    minimum: int | dict[str, int] = 1
    round_to: int = 1
    protect: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        minima = self.minimum.values() if isinstance(self.minimum, dict) else [self.minimum]
        if any(number < 1 for number in minima):
            raise ConfigError(f"minimum: expected at least 1 unit per group, got {self.minimum}")
        if self.round_to < 1:
            raise ConfigError(f"round_to: expected at least 1, got {self.round_to}")

    def check(self, groups: ChannelGroups) -> None:
        """Raise PlanError if a name is not that of a group."""
        minimum = self.minimum if isinstance(self.minimum, dict) else {}
        for argument, names in (("minimum", minimum), ("protect", self.protect)):
            unknown = [name for name in names if name not in groups]
            if unknown:
                raise PlanError(
                    f"{argument}: expected names of groups ({', '.join(groups)}), "
                    f"got {', '.join(unknown)}"
                )

    def widths(self, name: str, size: int) -> np.ndarray:
        """The numbers of units that a group of `size` may keep, ascending; the last is `size`."""
        fewest = self.minimum.get(name, 1) if isinstance(self.minimum, dict) else self.minimum
        if name in self.protect:
            fewest = size
        widths = np.arange(1, size + 1)
        multiple = (widths % self.round_to == 0) | (size < self.round_to)
        return widths[(widths >= fewest) & multiple | (widths == size)]

    def _repr_html_(self) -> str:
        minimum = self.minimum if isinstance(self.minimum, dict) else {"every group": self.minimum}
        rows = [(name, f"at least {count}") for name, count in minimum.items()]
        rows += [(name, "stays whole") for name in self.protect]
        if self.round_to > 1:
            rows.append(("every group that is cut", f"a multiple of {self.round_to}"))
        return html_table(("group", "units"), rows)

    def fit(self, name: str, size: int, count: float) -> int:
        """The smallest of the `widths` that is at least `count`, or the whole group."""
        widths = self.widths(name, size)
        return int(widths[min(np.searchsorted(widths, count), len(widths) - 1)])
