"""The abstract switch: a distribution over the gates of one channel group."""

from __future__ import annotations

import copy
from abc import ABCMeta, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn.module import PyroModule
from torch import Tensor
from torch.distributions import Independent

from bayesprune._describe import init_args
from bayesprune._modes import seeded
from bayesprune.distributions import Improper
from bayesprune.errors import ConfigError
from bayesprune.estimators import Estimator, Implicit

# Pyro's global parameter store outlives models and mixes them up: parameters stay in modules.
pyro.settings.set(module_local_params=True)

MONTE_CARLO_DRAWS = 4096
"""Draws behind a summary that has no closed form."""

SCORE_DRAWS = 64
"""Draws behind the slope of an active probability that has no closed form."""


def at_least(low: float, value: Tensor) -> Tensor:
    """`value`, or `low` where it is below, with the gradient of `value` everywhere.

    A clamp has no gradient below: a parameter that one step of the optimizer took there would stay.
    """
    return value + (low - value.detach()).clamp_min(0)


def within(low: float, high: float, value: Tensor) -> Tensor:
    """`value`, or the nearer bound where it is outside, with the gradient of `value` everywhere."""
    fixed = value.detach()
    return value + (fixed.clamp(low, high) - fixed)


class Site(NamedTuple):
    """One latent variable of a switch: its prior and its variational factor."""

    prior: TorchDistributionMixin
    factor: TorchDistributionMixin

    @property
    def is_proper(self) -> bool:
        """Whether the prior is a probability distribution, with draws and a density."""
        prior: Any = self.prior
        while isinstance(prior, Independent):
            prior = prior.base_dist
        return not isinstance(prior, Improper)

    @property
    def is_relaxed(self) -> bool:
        """Whether the factor is a density over what the prior gives to single points."""
        prior, factor = self.prior.support, self.factor.support
        return bool(prior.is_discrete and not factor.is_discrete)  # type: ignore[union-attr]


class _AbstractModuleMeta(type(PyroModule), ABCMeta):
    """Lets a Pyro module have abstract methods."""


class Switch(PyroModule, metaclass=_AbstractModuleMeta):
    """Abstract: importance gates of one channel group, with prior and variational posterior.

    The constructor takes hyper-parameters only and makes a prototype. `bind` returns a copy with
    variational parameters for a group; every other method needs a bound switch. A subclass sets
    `reference`, and its constructor stores each argument under the argument's name.

    Gates have shape ``(..., C)`` with C the number of units of the group.

    Attributes
    ----------
    reference : str
        The paper.
    ranks_by : str, optional
        What `importance` is, in words for a report; None where it ranks channels as the mean gate
        does.
    interval_scale : bool
        Whether only differences of `importance` mean something, as of logarithms; else it is at
        least 0.
    size : int
        Number of units C; 0 for a prototype.
    fan_in : float
        Number of weights that produce a unit, for families that make use of it.
    """

    reference: str
    ranks_by: str | None = None
    interval_scale: bool = False
    size: int = 0
    fan_in: float = 1.0

    def __init__(self) -> None:
        super().__init__()  # without the name that a Pyro module takes

    def bind(self, size: int, keep: float | None = None, fan_in: float = 1.0) -> Self:
        """A copy with variational parameters for `size` units.

        Parameters
        ----------
        size : int
            Number of units, at least 1.
        keep : float, optional
            How many of them a budget leaves, for families that make use of it.
        fan_in : float
            Number of weights that produce a unit, at least 1.
        """
        bound = copy.deepcopy(self)
        bound.size = size
        bound.fan_in = fan_in
        bound.initialise(keep)
        return bound

    @abstractmethod
    def initialise(self, keep: float | None) -> None:
        """Create the variational parameters for `self.size` units."""

    @abstractmethod
    def sites(self) -> dict[str, Site]:
        """The latent variables by name, in the order of sampling; batch shape ``()``."""

    @abstractmethod
    def gate(self, values: Mapping[str, Tensor]) -> Tensor:
        """Gates from values of the sites; leading dimensions are kept."""

    def anneal(self, progress: float) -> None:
        """Take note that a fraction `progress` in [0, 1] of the fit is done."""

    def estimator(self) -> Estimator:
        """The estimator that the family is fitted with unless another is asked for."""
        return Implicit(16, "group")

    def sample(self, num_draws: int) -> Tensor:
        """Gates drawn from the variational posterior, shape ``(num_draws, C)``; no gradient."""
        with torch.no_grad():
            sites = self.sites().items()
            return self.gate({name: site.factor.sample((num_draws,)) for name, site in sites})

    @property
    def needs_keep(self) -> bool:
        """Whether the fit depends on the number of channels to keep."""
        return False

    @property
    def has_prior(self) -> bool:
        """Whether the prior of the gates is a probability distribution."""
        return all(site.is_proper for site in self.sites().values())

    @property
    def has_density(self) -> bool:
        """Whether prior and factor of all sites have densities that can be compared."""
        sites = self.sites().values()
        return self.has_prior and not any(site.is_relaxed for site in sites)

    def prior_sample(self, num_draws: int) -> Tensor:
        """Gates drawn from the prior, shape ``(num_draws, C)``.

        Raises
        ------
        ConfigError
            If the prior is improper.
        """
        if not self.has_prior:
            raise ConfigError(f"{type(self).__name__}: the prior is improper and has no draws")
        with torch.no_grad():
            sites = self.sites().items()
            return self.gate({name: site.prior.sample((num_draws,)) for name, site in sites})

    # Summaries; a family with a closed form overrides the ones that have it. --------------------

    def _draws(self) -> Tensor:
        with seeded(0, next(self.parameters()).device):
            return self.sample(MONTE_CARLO_DRAWS)

    def mean(self) -> Tensor:
        """Posterior mean of each gate, shape ``(C,)``."""
        return self._draws().mean(0)

    def sd(self) -> Tensor:
        """Posterior standard deviation of each gate, shape ``(C,)``."""
        return self._draws().std(0)

    def quantile(self, q: float) -> Tensor:
        """Posterior quantile of each gate at level `q` in (0, 1), shape ``(C,)``."""
        return self._draws().quantile(q, dim=0)

    def probability_below(self, threshold: float) -> Tensor:
        """Posterior probability that each gate is below `threshold`, shape ``(C,)``."""
        draws = self._draws()
        return (draws < threshold).to(draws.dtype).mean(0)

    def importance(self) -> Tensor:
        """The family's own score, higher = keep, shape ``(C,)``."""
        return self.mean()

    def threshold(self) -> float:
        """The importance from which on the family's own rule keeps a channel."""
        return 0.5

    @property
    def has_evidence(self) -> bool:
        """Whether the family has `evidence`."""
        return type(self).evidence is not Switch.evidence

    def evidence(self, bits: int | None = None) -> Tensor:
        """Gain in log evidence if a gate's prior is replaced by one that shuts it, ``(C,)``.

        Bayesian model reduction: a channel with a gain of at least 0 can go.

        Parameters
        ----------
        bits : int, optional
            None for a prior with all mass at the lower end; otherwise a prior that is uniform in
            the logarithm on gates from ``2 ** -23``, a number's last bit, to ``2 ** -bits``.

        Raises
        ------
        ConfigError
            If the family has no such gain in closed form.
        """
        raise ConfigError(
            f"EvidenceStop: {type(self).__name__} has no change of evidence in closed form; "
            "use FamilyRule or a budget"
        )

    # For objectives. -----------------------------------------------------------------------------

    def active_probability(self) -> Tensor:
        """Probability that each gate is at work, shape ``(C,)``, with its gradient.

        That the gate is not 0, for families that have such a probability; for multiplicative noise,
        the keep rate of the dropout with the same ratio of mean to standard deviation,
        ``mean² / (mean² + variance)``; otherwise that the gate is above 0.1, with the gradient of
        the score function, leave-one-out baselines included.
        """
        factors = {name: site.factor for name, site in self.sites().items()}
        with torch.no_grad():
            values = {name: factor.sample((SCORE_DRAWS,)) for name, factor in factors.items()}
            active = (self.gate(values) > 0.1).to(torch.get_default_dtype())
            advantage = (active - active.mean(0)) / (SCORE_DRAWS - 1)
        density = torch.stack([f.log_prob(values[name]) for name, f in factors.items()]).sum(0)
        if not density.isfinite().all():  # a degenerate factor has no score
            return active.mean(0)
        slope = (density[:, None] * advantage).sum(0)
        return active.mean(0) + slope - slope.detach()

    @property
    def init_args(self) -> dict[str, Any]:
        """The hyper-parameters, by the names of the constructor's arguments."""
        return init_args(self)

    def __repr__(self) -> str:
        shown = {**self.init_args, **({"size": self.size} if self.size else {})}
        arguments = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"{type(self).__name__}({arguments})"
