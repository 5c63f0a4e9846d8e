"""Rules that keep as much as a limit of the cost allows."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import torch

from bayesprune._checks import check_choice, check_number
from bayesprune.cost import Price
from bayesprune.errors import BudgetError, ConfigError
from bayesprune.plan import Kept
from bayesprune.selection.allocation import TOLERANCE, Allocation, ByLoss, ByRank
from bayesprune.selection.context import Context
from bayesprune.selection.nesting import settled
from bayesprune.selection.rules import Rule
from bayesprune.selection.scores import ChannelScores, Normalisation

_TRIES = 10  # how often an allocation is corrected by what its network is found to cost


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


@dataclass(frozen=True)
class CostLimit(Rule):
    """Abstract: keeps as much as a limit of the cost allows; see `Budget`."""

    macs: float | None = None
    params: float | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        kinds = {"macs": self.macs, "params": self.params, "latency_ms": self.latency_ms}
        given = {kind: value for kind, value in kinds.items() if value is not None}
        if len(given) != 1 or not all(value > 0 for value in given.values()):
            found = ", ".join(f"{kind}={value}" for kind, value in given.items()) or "none"
            more = "; set the others to None (on the command line: null)" if len(given) > 1 else ""
            raise ConfigError(
                f"{type(self).__name__}: expected exactly one of macs, params and latency_ms, "
                f"above 0; got {found}{more}"
            )

    @abstractmethod
    def allocation(self, scores: ChannelScores, context: Context) -> Allocation:
        """What shares the cost out between groups."""

    @property
    def kind(self) -> Literal["macs", "params", "latency_ms"]:
        """Which cost is limited."""
        if self.latency_ms is not None:
            return "latency_ms"
        return "params" if self.macs is None else "macs"

    def price(self, context: Context) -> Price:
        """The cost that is limited."""
        return context.latency if self.kind == "latency_ms" else getattr(context.prices, self.kind)

    def limit(self, context: Context) -> float:
        """The largest allowed cost."""
        value = getattr(self, self.kind)
        fraction = value <= 1 and self.kind != "latency_ms"
        return value * self.price(context)({}) if fraction else value

    def counts(self, context: Context) -> dict[str, float] | None:
        """The same fraction of every group, as far as the limits allow, and all that is allowed."""
        price, limit, low, high = self.price(context), self.limit(context), 0.0, 1.0
        sizes = context.groups.sizes
        fewest = {name: int(context.widths(name)[0]) for name in sizes}
        for _ in range(30):
            middle = (low + high) / 2
            kept = {n: range(max(fewest[n], round(middle * size))) for n, size in sizes.items()}
            low, high = (middle, high) if price(kept) <= limit else (low, middle)
        return {name: max(float(fewest[name]), low * size) for name, size in sizes.items()}

    def check(self, context: Context) -> None:
        price, limit = self.price(context), self.limit(context)
        smallest = {n: list(range(context.widths(n)[0])) for n in context.groups}
        equal = {name: torch.zeros(size) for name, size in context.groups.sizes.items()}
        smallest = settled(smallest, ChannelScores(equal, "none yet"), context)
        least = price.actual(smallest)
        if least > limit:
            raise BudgetError(self._refusal(smallest, least, limit, context))

    def at(self, progress: float, context: Context) -> Rule:
        limit = self.limit(context)
        if progress < 1:
            whole = self.price(context)({})
            limit = whole * (limit / whole) ** progress
        if self.kind != "latency_ms":
            # An absolute number: a fraction would be of the network that is left.
            limit = max(limit, 1.0 + 1e-9)
        return replace(self, **{self.kind: limit})

    def select(self, scores: ChannelScores, context: Context) -> Kept:
        price, limit = self.price(context), self.limit(context)
        allocation = self.allocation(scores, context)
        smallest = allocation.smallest()
        least = price.actual(smallest)
        if least > limit:
            raise BudgetError(self._refusal(smallest, least, limit, context))
        best, spent = smallest, 0.0  # a measurement may find the smallest not the fastest
        # What the model of the cost may come to, and between which values the limit is reached.
        aim, low, high = limit, price(smallest), math.inf
        for _ in range(_TRIES):
            kept = allocation(aim)
            predicted, actual = price(kept), price.actual(kept)
            if actual <= limit:
                used = actual >= (1 - TOLERANCE) * limit
                if used or actual == predicted or allocation.is_whole(kept):
                    return kept
                low = max(low, aim)
                if actual >= spent:
                    best, spent = kept, actual
            else:
                high = min(high, aim)
            # The middle of what is tolerated, with the model's error as it was just now.
            aim = (1 - TOLERANCE / 2) * limit * predicted / actual
            if not low < aim < high:
                aim = (low + min(high, max(limit, price({})))) / 2
        return best

    def note(self, kept: Kept, context: Context) -> str | None:
        price, limit = self.price(context), self.limit(context)
        spent, predicted = price.actual(kept), price(kept)
        if spent >= (1 - TOLERANCE) * limit:
            return None
        steps = []
        for name, units in kept.items():
            width = context.fit(name, len(units) + 1)
            if width > len(units):
                rest = sorted(context.groups.read(name, kept) - set(units))
                if len(rest) < width - len(units):
                    continue  # features of channels that are gone
                more = {**kept, name: units + rest[: width - len(units)]}
                extra = (price(more) - predicted) * spent / predicted
                steps.append((extra, name, width))
        if all(len(units) == context.groups[name].size for name, units in kept.items()):
            return None
        beyond = sorted(step for step in steps if spent + step[0] > limit)
        if len(beyond) < len(steps) and self.kind == "latency_ms":
            # To the model there is room, but what was built with that in mind took longer.
            why = f"of {_TRIES} networks built and timed this came closest without going over"
        elif not beyond:
            why = "no choice that was tried came closer without going over"
        else:
            named = [
                f"{name} {len(kept[name])} to {width} units (+{_number(extra)})"
                for extra, name, width in beyond[:4]
            ]
            why = f"the smallest further steps: {', '.join(named)}"
        return (
            f"{self.kind}: {_number(spent)} of {_number(limit)} used ({spent / limit:.1%}); {why}"
        )

    def _refusal(self, smallest: Kept, spent: float, limit: float, context: Context) -> str:
        """Why there is no plan; names the groups with which the limits cost most."""
        price, wide = self.price(context), []
        for name, units in smallest.items():
            if len(units) > 1:
                wide.append((price({**smallest, name: units[:1]}) - price(smallest), name))
        held = [f"{name} at least {len(smallest[name])}" for _, name in sorted(wide)[:4]]
        return (
            f"budget: {self.kind} of at most {_number(limit)} asked for, but the smallest network "
            f"({', '.join(held) or 'one unit per group'}{', …' if len(wide) > 4 else ''}) "
            f"has {_number(spent)}"
        )


@dataclass(frozen=True)
class Budget(CostLimit):
    """Keep as much as a budget allows, shared out between groups by measured loss.

    Within a group the scores decide which channel goes next. Between groups the next removal is the
    one that raises the held-out loss least per unit of cost saved. Without held-out data the loss
    is minus the log of the share of its scores that a group has left, summed over the layers that
    read the group: to read half as much is as bad for any layer.

    The plan's network costs between 98% and 100% of the budget: if single units leave more than 2%
    of it, two or three groups exchange some. Where the limits, the size of one unit, or units
    within others do not allow that, it costs less and `PruningPlan.note` says why. A latency budget
    is shared out by a `LatencyModel`; the network is then built and measured, and the allocation
    repeated with the model corrected, up to ten times.

    Parameters
    ----------
    macs, params, latency_ms : float, optional
        Exactly one: at most this many multiply-accumulates, parameters, or milliseconds for a call
        on ``example_input``. For macs and params a number of at most 1 is a fraction of the dense
        network's; latency is always in milliseconds.
    step : float
        Fraction of the cost that one step of the allocation removes, in (0, 1).

    Raises
    ------
    ConfigError
        If not exactly one positive budget is given, or the step is out of range.
    BudgetError
        On use, if even the smallest network is above the budget.

    Examples
    --------
    >>> import torch
    >>> import bayesprune as bp
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> groups = bp.trace_groups(network, torch.zeros(1, 4))
    >>> scores = bp.ChannelScores({"0": torch.arange(6.0)}, "example")
    >>> plan = bp.select(scores, bp.Budget(macs=0.5), groups=groups)
    >>> plan.kept
    {'0': [3, 4, 5]}
    >>> plan.cost.macs, bp.cost(network, torch.zeros(1, 4)).macs
    (21, 42)
    """

    step: float = 0.04

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("Budget.step", self.step, above=0, below=1)

    def allocation(self, scores: ChannelScores, context: Context) -> Allocation:
        return ByLoss(scores, context, self.price(context), self.step)


@dataclass(frozen=True)
class GlobalRank(CostLimit):
    """Remove the lowest units of the whole network until a budget is met.

    The scores of all groups are ranked together, as they are or normalised within each group, and
    corrected for what a unit costs. Units that removal brings below the limit with room to spare
    come back if they fit, the highest first.

    Parameters
    ----------
    macs, params, latency_ms : float, optional
        As for `Budget`.
    normalise : {"l2", "none"}
        Whether each group's scores are divided by their Euclidean norm first. Scores that are
        comparable between groups by themselves need none: `Fisher`, `Taylor2019`, `Iterative`.
        Logarithms and logits, the scores of most switch families, are never divided.
    cost_weight : float
        At least 0: how much score it is worth to save the whole cost. A unit's removal from the
        dense network saves a share of that, which is taken from its score.

    Raises
    ------
    ConfigError
        If not exactly one positive budget is given, or another argument is out of range.
    BudgetError
        On use, if even the smallest network is above the budget.

    References
    ----------
    Molchanov et al., ICLR 2017 (scores normalised by layer; regularised by FLOPs); Theis et al.,
    2018 (score minus a multiple of the cost).
    """

    normalise: Normalisation = "l2"
    cost_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("GlobalRank.normalise", self.normalise, Normalisation)
        check_number("GlobalRank.cost_weight", self.cost_weight, low=0)

    def allocation(self, scores: ChannelScores, context: Context) -> Allocation:
        scores, price = scores.normalised(self.normalise), self.price(context)
        if self.cost_weight:
            values = {}
            for name, value in scores.values.items():
                units = set(range(len(value)))
                saved = [1 - price({name: units - {unit}}) / price({}) for unit in units]
                values[name] = value - self.cost_weight * torch.tensor(saved)
            scores = replace(scores, values=values)
        return ByRank(scores, context, price)
