"""What a fit of switches minimises besides the evidence lower bound: a constraint on the cost."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from bayesprune.cost import CostModel
from bayesprune.errors import ConfigError
from bayesprune.network import SwitchedNetwork


class Gradient(ABC):
    """Abstract: how the slope of an expected cost in the active probabilities is taken."""

    @abstractmethod
    def expect(
        self, value: Callable[[Mapping[str, Tensor]], Tensor], active: Mapping[str, Tensor]
    ) -> Tensor:
        """The expectation of `value` over gates at work or not, differentiable in `active`.

        Parameters
        ----------
        value : callable
            From gates by group, 0 to 1, shape ``(..., C)``, to costs, shape ``(...)``.
        active : mapping of str to Tensor
            Probability of each gate to be at work, by group, shape ``(C,)``.
        """


class Pathwise(Gradient):
    """`value` at the probabilities themselves: no draws. A cost is linear in each group's gates."""

    def expect(
        self, value: Callable[[Mapping[str, Tensor]], Tensor], active: Mapping[str, Tensor]
    ) -> Tensor:
        return value(active)


class ScoreFunction(Gradient):
    """REINFORCE: `value` at Bernoulli draws, with a leave-one-out baseline. Unbiased.

    Parameters
    ----------
    draws : int
        At least 2.
    """

    def __init__(self, draws: int = 1000) -> None:
        if draws < 2:
            raise ConfigError(f"ScoreFunction: draws must be at least 2, got {draws}")
        self.draws = draws

    def expect(
        self, value: Callable[[Mapping[str, Tensor]], Tensor], active: Mapping[str, Tensor]
    ) -> Tensor:
        log_density: Tensor | float = 0.0
        gates = {}
        for name, probability in active.items():
            limits = torch.finfo(probability.dtype)
            probability = probability.clamp(limits.eps, 1 - limits.eps)
            gate = torch.rand(self.draws, len(probability)).to(probability) < probability
            gates[name] = gate.to(probability.dtype)
            chosen = torch.where(gate, probability, 1 - probability)
            log_density = log_density + chosen.log().sum(-1)
        with torch.no_grad():
            values = value(gates)
            advantage = (values - values.mean()) / (self.draws - 1)
        assert isinstance(log_density, Tensor)
        slope = (log_density * advantage).sum()
        return values.mean() + slope - slope.detach()


class Multiplier(ABC):
    """Abstract: what a cost above its target adds to the loss."""

    @abstractmethod
    def excess(self, cost: Tensor, target: float) -> Tensor:
        """By how much a cost is above the target; shape of `cost`."""

    @abstractmethod
    def penalty(self, excess: Tensor, weight: Tensor, elapsed: float) -> Tensor:
        """The penalty in nats per example; changes the state `weight` in place.

        Parameters
        ----------
        excess : Tensor
            Scalar.
        weight : Tensor
            Scalar, 0 at the start of a fit.
        elapsed : float
            Which fraction of the fit one step is.
        """


class DualAscent(Multiplier):
    r"""Augmented Lagrangian of :math:`\log(\mathrm{cost} / \mathrm{target}) \le 0`.

    A proportional-integral controller: the penalty answers an excess at once through `gain`, and
    the weight rises through `rate` for as long as there is one.

    Parameters
    ----------
    rate : float
        By how much an excess of 1, a cost e times the target, raises the weight if it lasts for the
        whole fit, however many steps that has; above 0.
    gain : float
        By how much it adds to the weight at once; above 0. Both in nats per example and unit of log
        cost.

    References
    ----------
    Nocedal and Wright, "Numerical Optimization", 2006, section 17.4.
    """

    def __init__(self, rate: float = 15.0, gain: float = 1.0) -> None:
        if not (0 < rate < math.inf and 0 < gain < math.inf):
            raise ConfigError(f"DualAscent: rate and gain must be above 0, got {rate}, {gain}")
        self.rate = rate
        self.gain = gain

    def excess(self, cost: Tensor, target: float) -> Tensor:
        return (cost / target).log()

    def penalty(self, excess: Tensor, weight: Tensor, elapsed: float) -> Tensor:
        force = (weight + self.gain * excess).clamp_min(0)
        value = (force.square() - weight.square()) / (2 * self.gain)
        with torch.no_grad():
            weight.add_(self.rate * elapsed * excess).clamp_(min=0)
        return value


class FixedWeight(Multiplier):
    """A hinge: `weight` nats per example for each unit of cost above the target.

    Parameters
    ----------
    weight : float
        Above 0.

    References
    ----------
    Tang, Adhikari and Lin, "FLOPs as a Direct Optimization Objective", 2018, equation 5.
    """

    def __init__(self, weight: float = 1e-6) -> None:
        if not 0 < weight < math.inf:
            raise ConfigError(f"FixedWeight: weight must be above 0, got {weight}")
        self.weight = weight

    def excess(self, cost: Tensor, target: float) -> Tensor:
        return (cost - target).clamp_min(0)

    def penalty(self, excess: Tensor, weight: Tensor, elapsed: float) -> Tensor:
        return self.weight * excess


class CostConstraint:
    """Hold the expected cost of the gated network at a target while switches are fitted.

    A channel costs what its group's layers compute for it, given how many channels of the groups
    before and after are at work (`Switch.active_probability`). The target falls geometrically from
    the dense network's cost. FDOO (Tang et al. 2018) is ``multiplier=FixedWeight(1e-6)``,
    ``gradient=ScoreFunction(1000)`` and ``anneal=0``.

    Parameters
    ----------
    macs, params : float, optional
        One at most: the target, as in `Budget`; at most 1 is a fraction of the dense network's.
        With neither, a run takes the limit of its budget, in each round that of the round.
    anneal : float
        Fraction of the fit in [0, 1] over which the target falls.
    multiplier : Multiplier
        `DualAscent` or `FixedWeight`.
    gradient : Gradient
        `Pathwise` or `ScoreFunction`.

    Raises
    ------
    ConfigError
        If more than one target or one that is not positive is given, or `anneal` is out of range.

    References
    ----------
    Tang, Adhikari and Lin, "FLOPs as a Direct Optimization Objective for Learning Sparse Neural
    Networks", NeurIPS workshop 2018; the constraint by dual ascent is ours.
    """

    def __init__(
        self,
        macs: float | None = None,
        params: float | None = None,
        anneal: float = 0.5,
        multiplier: Multiplier | None = None,
        gradient: Gradient | None = None,
    ) -> None:
        given = [value for value in (macs, params) if value is not None]
        if len(given) > 1 or not all(0 < value < math.inf for value in given):
            raise ConfigError(
                "CostConstraint: expected one positive number, macs or params, or neither, got "
                f"{macs} and {params}"
            )
        if not 0 <= anneal <= 1:
            raise ConfigError(f"CostConstraint: anneal must be in [0, 1], got {anneal}")
        self.macs = macs
        self.params = params
        self.anneal = anneal
        self.multiplier = multiplier or DualAscent()
        self.gradient = gradient or Pathwise()

    @property
    def has_target(self) -> bool:
        """Whether the target is given here, not left to the budget of a run."""
        return self.macs is not None or self.params is not None

    def towards(self, **target: float) -> CostConstraint:
        """The same constraint with this target, ``macs=`` or ``params=``."""
        return CostConstraint(
            **target, anneal=self.anneal, multiplier=self.multiplier, gradient=self.gradient
        )

    def bind(self, switched: SwitchedNetwork) -> CostPenalty:
        """The penalty for one network, with the state of its multiplier; ConfigError: no target."""
        if not self.has_target:
            raise ConfigError("CostConstraint: expected a target, macs or params, got neither")
        return CostPenalty(self, switched)


class CostPenalty(nn.Module):
    """The penalty of a `CostConstraint` for one network."""

    weight: Tensor

    def __init__(self, constraint: CostConstraint, switched: SwitchedNetwork) -> None:
        super().__init__()
        model = CostModel(switched.groups)
        self.constraint = constraint
        self.price = model.params if constraint.macs is None else model.macs
        self.dense = self.price({})
        target = constraint.params if constraint.macs is None else constraint.macs
        assert target is not None
        self.target = target * self.dense if target <= 1 else target
        least = self.price({name: [0] for name in switched.guide.names})
        if not least <= self.target <= self.dense:
            raise ConfigError(
                f"CostConstraint: expected a target between {least:,.0f}, the cost with one unit "
                f"per group, and {self.dense:,.0f}, the dense network's, got {self.target:,.0f}"
            )
        self.register_buffer("weight", torch.zeros(()))

    def forward(
        self, active: Mapping[str, Tensor], progress: float, elapsed: float
    ) -> tuple[Tensor, Tensor]:
        """The penalty in nats per example, and the expected cost.

        Parameters
        ----------
        active : mapping of str to Tensor
            Active probabilities, shape ``(C,)`` by group.
        progress : float
            Fraction of the fit that is done, in [0, 1].
        elapsed : float
            Which fraction of the fit one step is.
        """
        anneal, multiplier = self.constraint.anneal, self.constraint.multiplier
        done = min(1.0, progress / anneal) if anneal else 1.0
        target = self.dense * (self.target / self.dense) ** done

        def excess(gates: Mapping[str, Tensor]) -> Tensor:
            return multiplier.excess(self.price.expected(gates), target)

        expected_excess = self.constraint.gradient.expect(excess, active)
        penalty = multiplier.penalty(expected_excess, self.weight, elapsed)
        with torch.no_grad():
            expected = self.price.expected(active)
        return penalty, expected
