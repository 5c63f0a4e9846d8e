"""From channel scores to a pruning plan: rules and budgets."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heappop, heappush
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bayesprune._describe import html_table
from bayesprune.cost import CostCurves, CostModel, Price
from bayesprune.errors import BudgetError, ConfigError, DataError, PlanError
from bayesprune.gating import GatedNetwork
from bayesprune.groups import ChannelGroups
from bayesprune.losses import Loss, batch_loss
from bayesprune.plan import Kept, Limits, PruningPlan
from bayesprune.timing import LatencyModel
from bayesprune.training import checked_batch, on_device

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
        if how not in get_args(Normalisation):
            raise ConfigError(f"normalise: expected 'l2' or 'none', got {how!r}")
        if how == "none":
            return self
        values = {name: nn.functional.normalize(v, dim=0) for name, v in self.values.items()}
        return ChannelScores(values, self.measure)


class Context:
    """What a rule may look at besides the scores; what is slow is found out on first use.

    Parameters
    ----------
    groups : ChannelGroups
    limits : Limits, optional
        How many units each group may keep; any number by default.
    network : nn.Module, optional
        The network that the units are cut from.
    example_input : Tensor or tuple, optional
        What latency is measured on.
    loader : iterable, optional
        Held-out batches ``(inputs, targets)``.
    examples : int
        How many held-out examples to measure the loss on.
    loss_function : callable, optional
        ``(output, targets)`` to the mean loss of a batch; cross-entropy by default.
    measure : callable, optional
        ``(network, example_input)`` to milliseconds, for `LatencyModel`.
    """

    def __init__(
        self,
        groups: ChannelGroups,
        limits: Limits | None = None,
        *,
        network: nn.Module | None = None,
        example_input: Tensor | tuple[Any, ...] | None = None,
        loader: Iterable[Any] | None = None,
        examples: int = 2048,
        loss_function: Loss | None = None,
        measure: Callable[[nn.Module, Any], float] | None = None,
    ) -> None:
        self.groups = groups
        self.limits = limits or Limits()
        self.network = network
        self.example_input = example_input
        self.loader = loader
        self.examples = examples
        self.loss_function = loss_function
        self.measure = measure

    def changed(self, **changes: Any) -> Context:
        """A copy with other limits, weights or data; what latency was measured stays."""
        other = copy.copy(self)
        other.__dict__.pop("loss", None)
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    def widths(self, name: str) -> np.ndarray:
        """The numbers of units that a group may keep, ascending."""
        return self.limits.widths(name, self.groups[name].size)

    def fit(self, name: str, count: float) -> int:
        """The smallest of these numbers that is at least `count`, or the whole group."""
        return self.limits.fit(name, self.groups[name].size, count)

    @cached_property
    def prices(self) -> CostModel:
        """MACs, parameters and weights by what is kept."""
        return CostModel(self.groups)

    @cached_property
    def latency(self) -> LatencyModel:
        """Milliseconds by what is kept; raises PlanError without network or example."""
        if self.network is None or self.example_input is None:
            raise PlanError("Budget: latency_ms is measured; expected network and example_input")
        return LatencyModel(
            self.network, self.groups, self.example_input, self.limits, self.measure
        )

    @cached_property
    def loss(self) -> HeldOut | None:
        """Held-out loss of the network with these units alone, if there is data for it."""
        if self.network is None or self.loader is None:
            return None
        return HeldOut(self.network, self.groups, self.loader, self.examples, self.loss_function)


class Rule(ABC):
    """Abstract: decides which units stay."""

    measure: str = "importance"
    """Which of a posterior's scores the rule reads."""

    @abstractmethod
    def select(self, scores: ChannelScores, context: Context) -> Kept:
        """Kept units by group, ascending; `select` rounds up to what the limits allow."""

    def note(self, kept: Kept, context: Context) -> str | None:
        """What to know about the choice, for `PruningPlan.note`."""
        return None

    def counts(self, context: Context) -> dict[str, float] | None:
        """How many units of each group will stay, if the rule knows before there are scores."""
        return None

    def check(self, context: Context) -> None:
        """Raise a BayespruneError if the rule cannot be followed, whatever the scores."""
        self.counts(context)

    def at(self, progress: float, context: Context) -> Rule:
        """The rule for an intermediate round.

        Parameters
        ----------
        progress : float
            Number of the round over the number of rounds, in (0, 1].
        context : Context
            Of the network before the first round.
        """
        return self


def _interpolated(sizes: Mapping[str, int], counts: Mapping[str, float], progress: float) -> TopK:
    """Numbers of channels on the geometric way from `sizes` to `counts`."""
    return TopK(
        {n: max(1, round(sizes[n] * (c / sizes[n]) ** progress)) for n, c in counts.items()}
    )


class TopK(Rule):
    """Keep the `count` best channels of every group, or a number per group.

    Raises
    ------
    ConfigError
        If a number is no integer or below 1; on use, PlanError if it exceeds a group, or a group is
        missing or unknown.

    Examples
    --------
    >>> import torch
    >>> import bayesprune as bp
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> groups = bp.trace_groups(network, torch.zeros(1, 4))
    >>> scores = bp.ChannelScores({"0": torch.arange(6.0)}, "example")
    >>> bp.select(scores, bp.TopK({"0": 2}), groups=groups).kept
    {'0': [4, 5]}
    """

    def __init__(self, count: int | dict[str, int]) -> None:
        counts = count.values() if isinstance(count, dict) else [count]
        if not all(isinstance(c, int) and not isinstance(c, bool) and c >= 1 for c in counts):
            raise ConfigError(
                f"TopK: expected integer numbers of channels of at least 1, got {count!r}"
            )
        self.count = count

    def select(self, scores: ChannelScores, context: Context) -> Kept:
        counts = self._numbers({name: len(values) for name, values in scores.values.items()})
        return {name: scores.best(name, count) for name, count in counts.items()}

    def _numbers(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """How many of each group stay."""
        given = self.count if isinstance(self.count, dict) else dict.fromkeys(sizes, self.count)
        unknown = [name for name in given if name not in sizes]
        if unknown:
            raise PlanError(
                f"TopK: numbers for unknown groups: {', '.join(unknown)}; groups: "
                f"{', '.join(sizes)}"
            )
        for name, size in sizes.items():
            count = given.get(name)
            if count is None or count > size:
                raise PlanError(f"{name}: asked to keep {count} of {size} channels")
        return {name: given[name] for name in sizes}

    def counts(self, context: Context) -> dict[str, float] | None:
        counts = self._numbers(context.groups.sizes)
        return {name: float(context.fit(name, count)) for name, count in counts.items()}

    def at(self, progress: float, context: Context) -> Rule:
        counts = self.counts(context) or {}
        return _interpolated(context.groups.sizes, counts, progress) if progress < 1 else self


class KeepFraction(Rule):
    """Keep the best `fraction` of every group, rounded up."""

    def __init__(self, fraction: float) -> None:
        if not 0 < fraction <= 1:
            raise ConfigError(f"KeepFraction: expected a fraction in (0, 1], got {fraction}")
        self.fraction = fraction

    def select(self, scores: ChannelScores, context: Context) -> Kept:
        return {n: scores.best(n, self._count(len(v))) for n, v in scores.values.items()}

    def _count(self, size: int) -> int:
        return math.ceil(self.fraction * size - 1e-9)  # 0.55 * 100 is a little more than 55

    def counts(self, context: Context) -> dict[str, float] | None:
        sizes = context.groups.sizes
        return {name: float(context.fit(name, self._count(size))) for name, size in sizes.items()}

    def at(self, progress: float, context: Context) -> Rule:
        # Fractions are of the network before the first round.
        return _interpolated(context.groups.sizes, self.counts(context) or {}, progress)


class Threshold(Rule):
    """Keep channels whose score is at least `value`.

    A simplex switch scores the share relative to an equal share: 1 is average.
    """

    def __init__(self, value: float) -> None:
        self.value = value

    def select(self, scores: ChannelScores, context: Context) -> Kept:
        return {n: (v >= self.value).nonzero()[:, 0].tolist() for n, v in scores.values.items()}


class Probability(Rule):
    """Remove channels whose gate is below `gate` with posterior probability above `probability`.

    Needs a posterior, or scores ``posterior.scores("above:GATE")``.
    """

    def __init__(self, gate: float, probability: float = 0.95) -> None:
        if gate <= 0 or not 0 < probability < 1:
            raise ConfigError(
                "Probability: expected gate > 0 and probability in (0, 1), "
                f"got {gate} and {probability}"
            )
        self.gate = gate
        self.probability = probability
        self.measure = f"above:{gate}"

    def select(self, scores: ChannelScores, context: Context) -> Kept:
        _expect(self, scores)
        least = 1 - self.probability
        return {n: (v >= least).nonzero()[:, 0].tolist() for n, v in scores.values.items()}


class FamilyRule(Rule):
    """Keep the channels that the switch family's own rule keeps, see `Switch.threshold`."""

    measure = "margin"

    def select(self, scores: ChannelScores, context: Context) -> Kept:
        _expect(self, scores)
        return {n: (v >= 0).nonzero()[:, 0].tolist() for n, v in scores.values.items()}


class EvidenceStop(Rule):
    """Remove channels whose removal does not lower the evidence (BMRS).

    Needs the posterior of a family with `Switch.evidence`, such as `LogNormal`.

    Parameters
    ----------
    bits : int, optional
        None compares with a prior that shuts the gate (BMRS_N); a number p with a uniform prior on
        gates that do not exceed ``2 ** -p`` (BMRS_U).

    Raises
    ------
    ConfigError
        If `bits` is below 1; on use, if the family has no such evidence.

    References
    ----------
    Wright, Igel and Selvan, "BMRS: Bayesian Model Reduction for Structured Pruning", NeurIPS 2024.
    """

    def __init__(self, bits: int | None = None) -> None:
        if bits is not None and not 1 <= bits < 23:
            raise ConfigError(f"EvidenceStop: bits must be None or in [1, 22], got {bits!r}")
        self.bits = bits
        self.measure = "evidence" if bits is None else f"evidence:{bits}"

    def select(self, scores: ChannelScores, context: Context) -> Kept:
        _expect(self, scores)
        return {n: (v > 0).nonzero()[:, 0].tolist() for n, v in scores.values.items()}


def _expect(rule: Rule, scores: ChannelScores) -> None:
    if scores.measure != rule.measure:
        raise PlanError(
            f"{type(rule).__name__}: expected scores measuring {rule.measure!r}, got "
            f"{scores.measure!r}; give select the posterior itself"
        )


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
                used = actual >= (1 - _TOLERANCE) * limit
                if used or actual == predicted or allocation.is_whole(kept):
                    return kept
                low = max(low, aim)
                if actual >= spent:
                    best, spent = kept, actual
            else:
                high = min(high, aim)
            # The middle of what is tolerated, with the model's error as it was just now.
            aim = (1 - _TOLERANCE / 2) * limit * predicted / actual
            if not low < aim < high:
                aim = (low + min(high, max(limit, price({})))) / 2
        return best

    def note(self, kept: Kept, context: Context) -> str | None:
        price, limit = self.price(context), self.limit(context)
        spent, predicted = price.actual(kept), price(kept)
        if spent >= (1 - _TOLERANCE) * limit:
            return None
        steps = []
        for name, units in kept.items():
            width = context.fit(name, len(units) + 1)
            if width > len(units):
                rest = sorted(set(range(context.groups[name].size)) - set(units))
                more = {**kept, name: units + rest[: width - len(units)]}
                extra = (price(more) - predicted) * spent / predicted
                steps.append((extra, name, width))
        if not steps:
            return None
        beyond = sorted(step for step in steps if spent + step[0] > limit)
        if len(beyond) < len(steps) and self.kind == "latency_ms":
            # To the model there is room, but what was built with that in mind took longer.
            why = f"of {_TRIES} networks built and timed this came closest without going over"
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
    of it, two or three groups exchange some. Where the limits, or the size of one unit, do not
    allow that, it costs less and `PruningPlan.note` says why. A latency budget is shared out by a
    `LatencyModel`; the network is then built and measured, and the allocation repeated with the
    model corrected, up to ten times.

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
        if not 0 < self.step < 1:
            raise ConfigError(f"Budget: expected a step in (0, 1), got {self.step}")

    def allocation(self, scores: ChannelScores, context: Context) -> Allocation:
        return _ByLoss(scores, context, self.price(context), self.step)


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
        if self.normalise not in get_args(Normalisation):
            raise ConfigError(
                f"GlobalRank.normalise: expected 'l2' or 'none', got {self.normalise!r}"
            )
        if not self.cost_weight >= 0:
            raise ConfigError(
                f"GlobalRank.cost_weight: expected at least 0, got {self.cost_weight}"
            )

    def allocation(self, scores: ChannelScores, context: Context) -> Allocation:
        scores, price = scores.normalised(self.normalise), self.price(context)
        if self.cost_weight:
            values = {}
            for name, value in scores.values.items():
                units = set(range(len(value)))
                saved = [1 - price({name: units - {unit}}) / price({}) for unit in units]
                values[name] = value - self.cost_weight * torch.tensor(saved)
            scores = ChannelScores(values, scores.measure)
        return _ByRank(scores, context, price)


_TOLERANCE = 0.02  # how much of a budget may be left
_EXCHANGES = 8000  # how many are looked at, about, before one is made, …
_LOSSES = 16  # … and for how many of these the loss is measured
_TRIES = 10  # how often an allocation is corrected by what its network is found to cost


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


class Allocation(Protocol):
    """Shares a cost out between groups."""

    def __call__(self, limit: float) -> Kept:
        """Units that can be had for a predicted cost, not below that of the smallest network."""
        ...

    def smallest(self) -> Kept:
        """The fewest units that are allowed."""
        ...

    def is_whole(self, kept: Kept) -> bool:
        """Whether nothing is removed."""
        ...


class _ByLoss:
    """Removes units until a predicted cost is reached; remembers every loss it has evaluated."""

    def __init__(self, scores: ChannelScores, context: Context, price: Price, step: float) -> None:
        self.price = price
        self.step = step
        self.order = {name: scores.order(name) for name in scores.values}
        # For each group, the numbers of removals that are allowed, ascending from 0.
        self.allowed = {n: len(o) - context.widths(n)[::-1] for n, o in self.order.items()}
        measure = context.loss
        self._loss = (
            (lambda removed: measure(self.kept(removed)))
            if measure
            else _score_loss(scores, self.order, context.groups)
        )
        self._known: dict[tuple[int, ...], float] = {}

    def kept(self, removed: Mapping[str, int]) -> Kept:
        return {name: sorted(self.order[name][count:]) for name, count in removed.items()}

    def smallest(self) -> Kept:
        return self.kept({name: int(counts[-1]) for name, counts in self.allowed.items()})

    def is_whole(self, kept: Kept) -> bool:
        return all(len(units) == len(self.order[name]) for name, units in kept.items())

    def loss(self, removed: Mapping[str, int]) -> float:
        key = tuple(removed.values())
        if key not in self._known:
            self._known[key] = self._loss(removed)
        return self._known[key]

    def __call__(self, limit: float) -> Kept:
        """Units that can be had for `limit`, which must not be below the smallest network."""
        curves = self.price.curves(self.order)
        removed = curves.removed
        now, spent = self.loss(removed), self.price({})
        if spent <= limit:
            return self.kept(removed)

        # Rates of one moment serve later ones as estimates, renewed only for the group whose turn
        # it seems to be: as good as measuring all groups at each step, and far fewer losses.
        queue = [(-math.inf, name) for name in self.order]
        while spent > limit and queue:
            aim = max(limit, spent * (1 - self.step))
            _, name = heappop(queue)
            curve = spent + curves(name)
            allowed = self.allowed[name]
            ahead = allowed[allowed > removed[name]]
            if not len(ahead) or curve[ahead[-1]] >= spent:
                continue  # nothing left to remove
            # The fewest removals that bring the cost to `aim`, but at most a quarter of the group:
            # one group in a deep network may not have that much, and none should go all at once.
            left = len(self.order[name]) - removed[name]
            quarter = int((ahead <= removed[name] + left // 4).sum()) - 1
            count = int(ahead[min(int((curve[ahead[:-1]] > aim).sum()), max(0, quarter))])
            after = self.loss({**removed, name: count})
            rate = (after - now) / (spent - curve[count])
            heappush(queue, (rate, name))
            if rate <= queue[0][0]:
                now, spent = after, float(curve[count])
                curves.set(name, count)

        spent = self._fill(curves, spent, limit)
        while spent < (1 - _TOLERANCE) * limit:
            exchange = self._exchange(curves, spent, limit, 2)
            exchange = exchange or self._exchange(curves, spent, limit, 3)
            if not exchange:
                break
            for name, count in exchange.items():
                spent += float(curves(name, np.array([count]))[0])
                curves.set(name, count)
            spent = self._fill(curves, spent, limit)
        return self.kept(removed)

    def _fill(self, curves: CostCurves, spent: float, limit: float) -> float:
        """Give back what fits, the most useful group first; returns what is spent then."""
        removed = curves.removed

        def fewest(name: str) -> int:
            allowed = self.allowed[name]
            allowed = allowed[allowed <= removed[name]]
            over = int((spent + curves(name, allowed[:-1]) > limit).sum())
            return int(allowed[over])

        room = {name: fewest(name) for name in self.order}
        useful = [name for name, count in room.items() if count < removed[name]]
        for name in sorted(useful, key=lambda name: self.loss({**removed, name: room[name]})):
            count = fewest(name)
            spent += float(curves(name, np.array([count]))[0])
            curves.set(name, count)
        return spent

    def _exchange(
        self, curves: CostCurves, spent: float, limit: float, groups: int
    ) -> dict[str, int]:
        """Removals of so many groups, near the present ones, with which more is spent; or nothing.

        Of the exchanges that use the budget, else of those that use most, the one with the least
        loss among those that change the smallest parts of the groups.
        """
        removed = curves.removed
        start = dict(removed)
        reach = int((_EXCHANGES / len(start)) ** (1 / (groups - 1)) / (2 * len(start)))
        near = {}
        for name, counts in self.allowed.items():
            place = int(np.searchsorted(counts, start[name]))
            near[name] = np.delete(counts, place)[max(0, place - reach) : place + reach]
        most, found = spent, []

        def search(cost: float, left: list[str], changed: dict[str, int]) -> None:
            nonlocal most, found
            if len(changed) < groups - 1:
                for i, name in enumerate(left):
                    counts = near[name]
                    for count, extra in zip(counts.tolist(), curves(name, counts), strict=True):
                        curves.set(name, count)
                        search(cost + float(extra), left[i + 1 :], {**changed, name: count})
                        curves.set(name, start[name])
                return
            for name in start.keys() - changed.keys():
                # All that this group can have.
                costs = cost + curves(name, self.allowed[name])
                place = int((costs > limit).sum())
                if place == len(costs) or costs[place] <= spent:
                    continue
                used = min(float(costs[place]), (1 - _TOLERANCE) * limit)
                if used < most:
                    continue
                if used > most:
                    most, found = used, []
                every = {**changed, name: int(self.allowed[name][place])}
                part = sum(abs(c - start[n]) / len(self.order[n]) for n, c in every.items())
                found.append((part, every))

        search(spent, list(start), {})
        small = [every for _, every in sorted(found, key=lambda item: item[0])[:_LOSSES]]
        return min(small, key=lambda every: self.loss({**start, **every}), default={})


class _ByRank:
    """Removes units in one order for all groups."""

    def __init__(self, scores: ChannelScores, context: Context, price: Price) -> None:
        self.scores = scores
        self.price = price
        self.widths = {name: context.widths(name) for name in scores.values}
        ranked = sorted(
            (value, place, name)
            for name, values in scores.values.items()
            for place, value in enumerate(values.sort().values.tolist())
        )
        self.order = [name for _, _, name in ranked]  # whose lowest unit goes next

    def kept(self, removed: Mapping[str, int]) -> Kept:
        """The best units, as many of each group as allowed when so many should be gone."""
        kept = {}
        for name, widths in self.widths.items():
            allowed = widths[widths <= widths[-1] - removed.get(name, 0)]
            kept[name] = self.scores.best(name, int(allowed[-1] if len(allowed) else widths[0]))
        return kept

    def smallest(self) -> Kept:
        return self.kept({name: int(widths[-1]) for name, widths in self.widths.items()})

    def is_whole(self, kept: Kept) -> bool:
        return all(len(units) == self.widths[name][-1] for name, units in kept.items())

    def __call__(self, limit: float) -> Kept:
        def cost(count: int) -> float:
            return self.price(self.kept(Counter(self.order[:count])))

        few = range(len(self.order) + 1)
        count = bisect_left(few, True, key=lambda count: cost(count) <= limit)
        removed, full = Counter(self.order[:count]), set()
        for name in reversed(self.order[:count]):
            back = removed - Counter([name])
            if name not in full and self.price(self.kept(back)) <= limit:
                removed = back
            else:
                full.add(name)
        return self.kept(removed)


def _score_loss(
    scores: ChannelScores, order: Mapping[str, Sequence[int]], groups: ChannelGroups
) -> Callable[[Mapping[str, int]], float]:
    """Loss without held-out data: -log of the share of score that each layer can still read."""
    losses = {}
    for name, units in order.items():
        values = scores.values[name].double().cpu()
        values = values - values.min().clamp_max(0)  # only differences matter below zero
        left = values[units].flip(0).cumsum(0).flip(0)  # after 0, 1, … removals
        readers = len(groups[name].modules("consumer"))
        shares = (left / left[0]).nan_to_num(1.0).clamp_min(1e-12)
        losses[name] = (-readers * shares.log()).tolist()
    return lambda removed: sum(losses[name][count] for name, count in removed.items())


class HeldOut:
    """Loss of the masked network on held-out examples, which stay in memory."""

    def __init__(
        self,
        network: nn.Module,
        groups: ChannelGroups,
        loader: Iterable[Any],
        examples: int,
        loss: Loss | None,
    ) -> None:
        self.loss = loss
        self.sizes = groups.sizes
        self.network = GatedNetwork(network, groups).eval()
        self.device = next(network.parameters()).device
        self.batches, seen = [], 0
        for index, batch in enumerate(loader):
            self.batches.append(on_device(checked_batch(batch, index), self.device))
            seen += len(batch[1])
            if seen >= examples:
                break
        if not seen:
            raise DataError("select: the held-out loader is empty")
        self.seen = seen

    def __call__(self, kept: Kept, gates: Mapping[str, Tensor] | None = None) -> float:
        """Mean loss per example with the units `kept`, at `gates` of shape ``(C,)`` or at 1."""
        masks = PruningPlan(kept, {name: self.sizes[name] for name in kept}).masks()
        masks = {name: mask.to(self.device) for name, mask in masks.items()}
        for name, gate in (gates or {}).items():
            masks[name] = masks.get(name, 1.0) * gate.to(self.device)
        total = 0.0
        with torch.inference_mode():
            for inputs, targets in self.batches:
                output = self.network(inputs, masks)
                total += batch_loss(self.loss, output, targets).item() * len(targets)
        if not math.isfinite(total):
            raise DataError("select: the loss on the held-out data is not finite")
        return total / self.seen


def select(
    evidence: Any,
    rule: Rule | None = None,
    *,
    groups: ChannelGroups,
    network: nn.Module | None = None,
    loader: Iterable[Any] | None = None,
    example_input: Tensor | tuple[Any, ...] | None = None,
    examples: int = 2048,
    loss: Loss | None = None,
    minimum: int | dict[str, int] = 1,
    round_to: int = 1,
    protect: Iterable[str] = (),
) -> PruningPlan:
    """Choose which channels stay.

    Parameters
    ----------
    evidence : ChannelScores or SwitchPosterior
        From any method; of a posterior the rule takes the scores it needs.
    rule : Rule, optional
        `TopK`, `KeepFraction`, `Threshold`, `Probability`, `FamilyRule`, `EvidenceStop`,
        `RiskBudget`, `Budget` or `GlobalRank`. A posterior's own by default: `EvidenceStop` where
        it is in closed form, else `FamilyRule`.
    groups : ChannelGroups
    network, loader : optional
        The network that the channels are cut from, and held-out batches ``(inputs, targets)``: with
        both, `Budget` is shared out by measured loss.
    example_input : Tensor or tuple, optional
        With `network`: what ``Budget(latency_ms=…)`` times it on, on the network's device. The
        whole batch is timed.
    examples : int
        How many held-out examples to measure on.
    loss : callable, optional
        What is measured: ``(output, targets)`` to the mean loss of a batch, a scalar tensor;
        cross-entropy by default.
    minimum : int or dict of str to int
        Fewest channels, >= 1, of every group or of the groups named: the best stay even if the rule
        would remove them.
    round_to : int
        Groups that lose channels keep a multiple of this, >= 1, where they have as many. No budget
        is exceeded for it; the numbers of other rules are rounded up.
    protect : iterable of str
        Groups that stay whole.

    Returns
    -------
    PruningPlan
        With its predicted cost, and a note if a budget is not used up.

    Raises
    ------
    PlanError
        If the evidence is something else or does not fit the groups, `minimum` or `protect` names
        an unknown group, only one of `network` and what it is measured on is given, or a network
        for latency does not run.
    BudgetError
        If a budget cannot be met.
    ConfigError
        If `minimum` or `round_to` is below 1.
    DataError
        If the held-out data is empty or gives a loss that is not finite or cannot be computed.

    Examples
    --------
    >>> import torch
    >>> import bayesprune as bp
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> groups = bp.trace_groups(network, torch.zeros(1, 4))
    >>> scores = bp.ChannelScores({"0": torch.tensor([5.0, 0.0, 4.0, 1.0, 3.0, 2.0])}, "example")
    >>> bp.select(scores, bp.KeepFraction(0.5), groups=groups).kept
    {'0': [0, 2, 4]}
    >>> bp.select(scores, bp.Threshold(2.0), groups=groups).kept
    {'0': [0, 2, 4, 5]}
    """
    limits = Limits(minimum, round_to, list(protect))
    limits.check(groups)
    if (network is None) != (loader is None and example_input is None):
        raise PlanError(
            "select: give network together with loader (for held-out loss), example_input (for "
            "latency) or both"
        )
    context = Context(
        groups,
        limits,
        network=network,
        example_input=example_input,
        loader=loader,
        examples=examples,
        loss_function=loss,
    )
    return choose(evidence, rule, context)


def choose(evidence: Any, rule: Rule | None, context: Context) -> PruningPlan:
    """`select` within a context that outlives one choice, so that latency is measured once."""
    groups = context.groups
    _check_evidence(evidence)
    if rule is None:
        if isinstance(evidence, ChannelScores):
            raise ConfigError("select: scores alone do not say how many channels stay; give a rule")
        rule = evidence.default_rule()
    if not isinstance(rule, Rule):
        raise PlanError(f"select: expected a rule like Budget(macs=0.5), got {rule!r}")
    scores = evidence if isinstance(evidence, ChannelScores) else evidence.scores(rule.measure)
    for name, values in scores.values.items():
        if name not in groups or groups[name].size != len(values):
            have = groups[name].size if name in groups else "no such group"
            raise PlanError(f"{name}: scores for {len(values)} channels, network has {have}")
    kept = rule.select(scores, context)
    for name, units in kept.items():
        width = context.fit(name, len(units))
        if width != len(units):
            kept[name] = scores.best(name, width)
    sizes = {name: groups[name].size for name in kept}
    note = rule.note(kept, context)
    return PruningPlan(kept, sizes, scores.measure, context.prices(kept), note)


def _check_evidence(evidence: Any) -> None:
    if isinstance(evidence, ChannelScores) or callable(getattr(evidence, "scores", None)):
        return
    raise PlanError(
        "select: expected ChannelScores or a SwitchPosterior, got "
        f"{type(evidence).__name__}; ChannelScores(values, measure) holds your own scores"
    )
