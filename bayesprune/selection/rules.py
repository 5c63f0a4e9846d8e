"""Rules that say how many channels stay."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import final

from bayesprune._checks import check_integer, check_number
from bayesprune.errors import PlanError
from bayesprune.plan import Kept
from bayesprune.selection.context import Context
from bayesprune.selection.scores import ChannelScores


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


@final
class _Numbers(Rule):
    """Keep so many of each group, or all where earlier rounds have left fewer."""

    def __init__(self, numbers: Mapping[str, int]) -> None:
        self.numbers = numbers

    def select(self, scores: ChannelScores, context: Context) -> Kept:
        return {n: scores.best(n, min(self.numbers[n], len(v))) for n, v in scores.values.items()}

    def counts(self, context: Context) -> dict[str, float]:
        left = {n: min(self.numbers[n], size) for n, size in context.groups.sizes.items()}
        return {name: float(context.fit(name, count)) for name, count in left.items()}


def _interpolated(sizes: Mapping[str, int], counts: Mapping[str, float], progress: float) -> Rule:
    """Numbers of channels on the geometric way from `sizes` to `counts`."""
    return _Numbers(
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
        for name, number in count.items() if isinstance(count, dict) else [("each group", count)]:
            check_integer(f"TopK.count of {name}", number)
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
        return _interpolated(context.groups.sizes, counts, progress)


class KeepFraction(Rule):
    """Keep the best `fraction` of every group, rounded up."""

    def __init__(self, fraction: float) -> None:
        check_number("KeepFraction.fraction", fraction, above=0, high=1)
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
    """Remove channels whose gate is smaller than `gate`, with probability above `probability`.

    Smaller in absolute value: some families have gates that may be negative.

    Needs a posterior, or scores ``posterior.scores("above:GATE")``.
    """

    def __init__(self, gate: float, probability: float = 0.95) -> None:
        check_number("Probability.gate", gate, above=0)
        check_number("Probability.probability", probability, above=0, below=1)
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
        None compares with a prior that shuts the gate (BMRS_N); a number p with one that is uniform
        in the logarithm on gates from ``2 ** -23`` to ``2 ** -p`` (BMRS_U).

    Raises
    ------
    ConfigError
        If `bits` is no integer from 1 to 22; on use, if the family has no such evidence.

    References
    ----------
    Wright, Igel and Selvan, "BMRS: Bayesian Model Reduction for Structured Pruning", NeurIPS 2024.
    """

    def __init__(self, bits: int | None = None) -> None:
        if bits is not None:
            check_integer("EvidenceStop.bits", bits, most=22)
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
