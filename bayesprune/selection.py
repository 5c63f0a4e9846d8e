"""From channel scores to a pruning plan: rules, budgets, and the plan itself."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from heapq import heappop, heappush
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from bayesprune.checkpoint import write_text_atomic
from bayesprune.cost import Cost, CostModel
from bayesprune.errors import BudgetError, CheckpointError, ConfigError, DataError, PlanError
from bayesprune.gating import GatedNetwork
from bayesprune.groups import ChannelGroups

Kept = dict[str, list[int]]


@dataclass(frozen=True)
class ChannelScores:
    """One number per unit, higher = keep.

    Attributes
    ----------
    values : dict of str to Tensor
        Shape ``(C,)`` per group. Scores of different groups are not comparable by themselves.
    measure : str
        What was measured.

    Raises
    ------
    PlanError
        If a group's scores are not a vector of finite numbers.
    """

    values: dict[str, Tensor]
    measure: str

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if value.ndim != 1 or not torch.isfinite(value).all():
                raise PlanError(
                    f"{name}: expected a vector of finite scores ({self.measure}), "
                    f"got shape {tuple(value.shape)}{' with NaN or inf' if value.ndim == 1 else ''}"
                )

    def order(self, name: str) -> list[int]:
        """Units of a group from the lowest score to the highest; ties by index."""
        return torch.argsort(self.values[name].cpu(), stable=True).tolist()

    def best(self, name: str, count: int) -> list[int]:
        """The `count` units with the highest scores, ascending."""
        order = self.order(name)
        return sorted(order[len(order) - count :])


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

    Raises
    ------
    PlanError
        If indices are empty, repeated, unsorted or out of range.
    """

    kept: Kept
    sizes: dict[str, int]
    method: str = ""
    cost: Cost | None = None

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
        return PruningPlan(kept, self.sizes, later.method, later.cost)

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
            return cls(data["kept"], data["sizes"], data["method"], cost)
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(f"plan: expected the JSON of a PruningPlan: {error!r}") from error

    def save(self, path: str | Path) -> None:
        """Write the JSON atomically."""
        write_text_atomic(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan; raises CheckpointError if the file is missing or something else."""
        try:
            return cls.from_json(Path(path).read_text())
        except (OSError, UnicodeDecodeError, CheckpointError) as error:
            raise CheckpointError(f"{path}: expected a plan: {error}") from error

    def __repr__(self) -> str:
        widths = ", ".join(f"{n} {len(k)}/{self.sizes[n]}" for n, k in self.kept.items())
        return f"PruningPlan({widths}; {self.method}; predicted {self.cost})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{name}</td><td>{len(kept)}</td><td>{self.sizes[name]}</td></tr>"
            for name, kept in self.kept.items()
        )
        head = "<tr><th>group</th><th>kept</th><th>of</th></tr>"
        return f"<table>{head}{rows}</table><p>{self.method}; predicted {self.cost}</p>"


def _short(values: Sequence[int]) -> str:
    return str(list(values[:8]))[:-1] + (", …]" if len(values) > 8 else "]")


@dataclass(frozen=True)
class Context:
    """What a rule may look at besides the scores.

    Attributes
    ----------
    groups : ChannelGroups
    minimum : int
        Fewest channels of a group.
    measure : callable, optional
        Held-out loss of the network with these units alone.
    """

    groups: ChannelGroups
    minimum: int
    measure: Callable[[Kept], float] | None = None


class Rule(ABC):
    """Abstract: decides which units stay."""

    measure: str = "importance"
    """Which of a posterior's scores the rule reads."""

    @abstractmethod
    def select(self, scores: ChannelScores, context: Context) -> Kept:
        """Kept units by group, ascending; `select` enforces the minimum afterwards."""

    def counts(self, groups: ChannelGroups) -> dict[str, float] | None:
        """How many units of each group will stay, if the rule knows before there are scores."""
        return None

    def at(self, progress: float, groups: ChannelGroups) -> Rule:
        """The rule for an intermediate round.

        Parameters
        ----------
        progress : float
            Number of the round over the number of rounds, in (0, 1].
        groups : ChannelGroups
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
        If a number is below 1; on use, PlanError if it exceeds a group, or a group is missing or
        unknown.
    """

    def __init__(self, count: int | dict[str, int]) -> None:
        counts = count.values() if isinstance(count, dict) else [count]
        if any(c < 1 for c in counts):
            raise ConfigError(f"TopK: expected numbers of channels of at least 1, got {count}")
        self.count = count

    def select(self, scores: ChannelScores, context: Context) -> Kept:
        self._check(scores.values)
        kept = {}
        for name, values in scores.values.items():
            count = self.count.get(name) if isinstance(self.count, dict) else self.count
            if count is None or count > len(values):
                raise PlanError(f"{name}: asked to keep {count} of {len(values)} channels")
            kept[name] = scores.best(name, count)
        return kept

    def _check(self, names: Iterable[str]) -> None:
        unknown = set(self.count) - set(names) if isinstance(self.count, dict) else ()
        if unknown:
            raise PlanError(f"TopK: numbers for unknown groups: {', '.join(sorted(unknown))}")

    def counts(self, groups: ChannelGroups) -> dict[str, float] | None:
        self._check(groups)
        if isinstance(self.count, dict):
            return {name: float(count) for name, count in self.count.items()}
        return {name: float(min(self.count, size)) for name, size in groups.sizes.items()}

    def at(self, progress: float, groups: ChannelGroups) -> Rule:
        counts = self.counts(groups) or {}
        return _interpolated(groups.sizes, counts, progress) if progress < 1 else self


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

    def counts(self, groups: ChannelGroups) -> dict[str, float] | None:
        return {name: float(self._count(size)) for name, size in groups.sizes.items()}

    def at(self, progress: float, groups: ChannelGroups) -> Rule:
        # Fractions are of the network before the first round.
        return _interpolated(groups.sizes, self.counts(groups) or {}, progress)


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
        if scores.measure != self.measure:
            raise PlanError(
                f"Probability: expected scores measuring {self.measure!r}, got {scores.measure!r}; "
                "give select the posterior itself"
            )
        least = 1 - self.probability
        return {n: (v >= least).nonzero()[:, 0].tolist() for n, v in scores.values.items()}


@dataclass(frozen=True)
class Budget(Rule):
    """Keep as much as a budget allows, shared out between groups by measured loss.

    Within a group the scores decide which channel goes next. Between groups the next removal is the
    one that raises the held-out loss least per unit of cost saved. Without held-out data the loss
    is minus the log of the share of its scores that a group has left, summed over the layers that
    read the group: to read half as much is as bad for any layer.

    Parameters
    ----------
    macs, params : float, optional
        Exactly one: at most this many multiply-accumulates or parameters of the pruned network; a
        number of at most 1 is a fraction of the dense network's.
    step : float
        Fraction of the cost that one step of the allocation removes, in (0, 1).

    Raises
    ------
    ConfigError
        If not exactly one positive budget is given, or the step is out of range.
    BudgetError
        On use, if even the smallest network is above the budget.
    """

    macs: float | None = None
    params: float | None = None
    step: float = 0.04

    def __post_init__(self) -> None:
        given = [v for v in (self.macs, self.params) if v is not None]
        if len(given) != 1 or not given[0] > 0:
            raise ConfigError(
                f"Budget: expected one positive number, macs or params, got {self.macs}, "
                f"{self.params}"
            )
        if not 0 < self.step < 1:
            raise ConfigError(f"Budget: expected a step in (0, 1), got {self.step}")

    @property
    def kind(self) -> Literal["macs", "params"]:
        """Which cost is limited: "macs" or "params"."""
        return "params" if self.macs is None else "macs"

    def limit(self, dense: Cost) -> float:
        """The largest allowed cost."""
        value = self.params if self.macs is None else self.macs
        assert value is not None
        return value * getattr(dense, self.kind) if value <= 1 else value

    def counts(self, groups: ChannelGroups) -> dict[str, float] | None:
        """The same fraction of every group, as large as the budget allows."""
        model, low, high = CostModel(groups), 0.0, 1.0
        limit = self.limit(model({}))
        sizes = groups.sizes
        for _ in range(30):
            middle = (low + high) / 2
            kept = {n: range(max(1, round(middle * size))) for n, size in sizes.items()}
            fits = getattr(model(kept), self.kind) <= limit
            low, high = (middle, high) if fits else (low, middle)
        return {name: max(1.0, low * size) for name, size in sizes.items()}

    def at(self, progress: float, groups: ChannelGroups) -> Rule:
        dense = CostModel(groups)({})
        whole = getattr(dense, self.kind)
        limit = whole * (self.limit(dense) / whole) ** progress
        # An absolute number: a fraction would be of the network that is left.
        return replace(self, **{self.kind: max(limit, 1.0 + 1e-9)})

    def select(self, scores: ChannelScores, context: Context) -> Kept:
        order = {name: scores.order(name) for name in scores.values}
        most = {name: max(0, len(o) - context.minimum) for name, o in order.items()}

        def kept(removed: Mapping[str, int]) -> Kept:
            return {name: sorted(order[name][count:]) for name, count in removed.items()}

        model = CostModel(context.groups)
        limit, spent = self.limit(model({})), float(getattr(model({}), self.kind))
        smallest = getattr(model(kept(most)), self.kind)
        if smallest > limit:
            raise BudgetError(
                f"budget: {self.kind} of at most {limit:,.0f} asked for, but the smallest network "
                f"(at least {context.minimum} channel(s) per group) has {smallest:,.0f}"
            )
        curves = model.curves(self.kind, order)
        measure = context.measure
        loss = (
            (lambda r: measure(kept(r))) if measure else _score_loss(scores, order, context.groups)
        )
        removed = curves.removed
        now = loss(removed)

        # Rates of one moment serve later ones as estimates, renewed only for the group whose turn
        # it seems to be: as good as measuring all groups at each step, and far fewer losses.
        queue = [(-math.inf, name) for name in order]
        while spent > limit:
            aim = max(limit, spent * (1 - self.step))
            _, name = heappop(queue)
            curve = spent + curves(name)
            left = len(order[name]) - removed[name]
            # The fewest removals that bring the cost to `aim`, but at most a quarter of the group:
            # one group in a deep network may not have that much, and none should go all at once.
            largest = min(most[name], removed[name] + max(1, left // 4))
            count = min(int((curve > aim).sum()), largest)
            if curve[count] == spent:
                continue  # nothing left to remove
            after = loss({**removed, name: count})
            rate = (after - now) / (spent - curve[count])
            heappush(queue, (rate, name))
            if rate <= queue[0][0]:
                now, spent = after, curve[count]
                curves.set(name, count)

        # The last step may have gone too far: give back what fits, the most useful group first.
        def fewest(name: str) -> int:
            return int((spent + curves(name) > limit).sum())

        room = {name: fewest(name) for name in order}
        useful = [name for name, count in room.items() if count < removed[name]]
        for name in sorted(useful, key=lambda name: loss({**removed, name: room[name]})):
            count = fewest(name)
            spent += curves(name)[count]
            curves.set(name, count)
        return kept(removed)


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


class _HeldOut:
    """Cross-entropy of the masked network on held-out examples."""

    def __init__(
        self, network: nn.Module, groups: ChannelGroups, loader: Iterable[Any], examples: int
    ) -> None:
        self.sizes = groups.sizes
        self.network = GatedNetwork(network, groups).eval()
        self.device = next(network.parameters()).device
        self.batches, seen = [], 0
        for inputs, targets in loader:
            self.batches.append((inputs.to(self.device), targets.to(self.device)))
            seen += len(targets)
            if seen >= examples:
                break
        if not seen:
            raise DataError("select: the held-out loader is empty")
        self.seen = seen

    def __call__(self, kept: Kept) -> float:
        masks = PruningPlan(kept, {name: self.sizes[name] for name in kept}).masks()
        masks = {name: mask.to(self.device) for name, mask in masks.items()}
        total = 0.0
        with torch.inference_mode():
            for inputs, targets in self.batches:
                output = self.network(inputs, masks)
                total += nn.functional.cross_entropy(output, targets, reduction="sum").item()
        if not math.isfinite(total):
            raise DataError("select: the loss on the held-out data is not finite")
        return total / self.seen


def select(
    evidence: Any,
    rule: Rule,
    *,
    groups: ChannelGroups,
    network: nn.Module | None = None,
    loader: Iterable[Any] | None = None,
    examples: int = 2048,
    minimum: int = 1,
) -> PruningPlan:
    """Choose which channels stay.

    Parameters
    ----------
    evidence : ChannelScores or SwitchPosterior
        From any method; of a posterior the rule takes the scores it needs.
    rule : Rule
        `TopK`, `KeepFraction`, `Threshold`, `Probability` or `Budget`.
    groups : ChannelGroups
    network, loader : optional
        The network that the channels are cut from, and held-out batches ``(inputs, targets)``: with
        both, `Budget` is shared out by measured loss.
    examples : int
        How many held-out examples to measure on.
    minimum : int
        Fewest channels of a group, >= 1: the best stay even if the rule would remove them.

    Returns
    -------
    PruningPlan
        With its predicted cost.

    Raises
    ------
    PlanError
        If the scores do not fit the groups, or only one of `network` and `loader` is given.
    BudgetError
        If a budget cannot be met.
    ConfigError
        If `minimum` is below 1.
    DataError
        If the held-out data is empty or gives a loss that is not finite.
    """
    if minimum < 1:
        raise ConfigError(f"minimum: expected at least 1 channel per group, got {minimum}")
    if (network is None) != (loader is None):
        raise PlanError("select: give both network and loader, or neither")
    scores = evidence if isinstance(evidence, ChannelScores) else evidence.scores(rule.measure)
    for name, values in scores.values.items():
        if name not in groups or groups[name].size != len(values):
            have = groups[name].size if name in groups else "no such group"
            raise PlanError(f"{name}: scores for {len(values)} channels, network has {have}")
    held_out = None
    if network is not None and loader is not None and isinstance(rule, Budget):
        held_out = _HeldOut(network, groups, loader, examples)
    kept = rule.select(scores, Context(groups, minimum, held_out))
    for name in kept:
        if len(kept[name]) < minimum:
            kept[name] = scores.best(name, min(minimum, groups[name].size))
    sizes = {name: groups[name].size for name in kept}
    return PruningPlan(kept, sizes, scores.measure, CostModel(groups)(kept))
