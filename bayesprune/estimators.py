"""Estimators of the expected log likelihood: at which values of the sites the network is run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Independent

from bayesprune._describe import init_args
from bayesprune.errors import ConfigError

Values = Mapping[str, Tensor]
"""A value of every site, by its name in the guide, ``group.site``."""


class Estimator(ABC):
    """Abstract: how the expected log likelihood is taken over the factors of the sites."""

    @abstractmethod
    def expect(
        self,
        log_likelihood: Callable[[Values], Tensor],
        factors: Mapping[str, Any],
        batch_size: int,
    ) -> Tensor:
        """The expected log likelihood of a batch, in nats: a scalar with its gradient.

        Parameters
        ----------
        log_likelihood : callable
            Runs the network: from a value of every site to the log likelihood of each example,
            shape ``(N,)``. A value has the event shape E of its factor, or shape ``(N, *E)`` if
            every example has a value of its own.
        factors : mapping of str to Distribution
            The variational factor of every site.
        batch_size : int
            The number of examples N.

        Raises
        ------
        ConfigError
            If the estimator cannot be used with a factor.
        """

    def __repr__(self) -> str:
        args = ", ".join(f"{name}={value!r}" for name, value in init_args(self).items())
        return f"{type(self).__name__}({args})"


class AnalyticMean(Estimator):
    r"""Put the mean of each factor in place of a draw: no sampling, no noise.

    Takes :math:`E_q \log p(D|s) \approx \log p(D|E_q s)`. The gradient is exact only where the log
    likelihood is linear in the gates over the spread of the posterior; at wide posteriors it is
    biased, and the posterior's spread is then set by the prior alone. Where a gate is not linear in
    its latent variables (`Horseshoe`, `Radial`, `BayesianGroupLasso`, `LogisticNormal`), the gate
    at their means is not the mean gate.

    References
    ----------
    Adamczewski and Park, AISTATS 2021, section 3.
    """

    def expect(
        self,
        log_likelihood: Callable[[Values], Tensor],
        factors: Mapping[str, Any],
        batch_size: int,
    ) -> Tensor:
        return log_likelihood({name: factor.mean for name, factor in factors.items()}).sum()


class Implicit(Estimator):
    """Reparameterised draws; Gamma variates by implicit differentiation. Unbiased.

    Parameters
    ----------
    num_samples : int
        Number of draws per step, at least 1.
    share : {"batch", "group", "example"}
        Who shares a draw: the whole batch (the network runs once per draw); a random group of
        examples, as many groups as draws (one run); or nobody (`num_samples` runs, each with a draw
        per example). All are unbiased; groups and examples have far lower variance per second.

    Raises
    ------
    ConfigError
        If an argument is out of range.

    References
    ----------
    Figurnov, Mohamed and Mnih, "Implicit Reparameterization Gradients", NeurIPS 2018. Draws per
    example as in Kingma, Salimans and Welling, "Variational Dropout", NeurIPS 2015.
    """

    def __init__(
        self, num_samples: int = 1, share: Literal["batch", "group", "example"] = "batch"
    ) -> None:
        if num_samples < 1:
            raise ConfigError(f"Implicit: num_samples must be at least 1, got {num_samples}")
        if share not in ("batch", "group", "example"):
            raise ConfigError(
                f"Implicit: share must be 'batch', 'group' or 'example', got {share!r}"
            )
        self.num_samples = num_samples
        self.share = share

    def expect(
        self,
        log_likelihood: Callable[[Values], Tensor],
        factors: Mapping[str, Any],
        batch_size: int,
    ) -> Tensor:
        runs = 1 if self.share == "group" else self.num_samples
        values = (self._draw(factors, batch_size) for _ in range(runs))
        return torch.stack([log_likelihood(drawn).sum() for drawn in values]).mean()

    def _draw(self, factors: Mapping[str, Any], batch_size: int) -> Values:
        if self.share == "batch":
            return {name: _pathwise(name, factor).rsample() for name, factor in factors.items()}
        draws = batch_size if self.share == "example" else min(self.num_samples, batch_size)
        values = {name: _pathwise(name, f).rsample((draws,)) for name, f in factors.items()}
        if draws == batch_size:
            return values
        # Groups of equal size, shuffled. Examples that share the value of one site share them all.
        device = next(iter(values.values())).device
        group = torch.randperm(batch_size, device=device) % draws
        return {name: value.index_select(0, group) for name, value in values.items()}


def _pathwise(name: str, factor: Any) -> Any:
    """A factor whose draws have a gradient; raises ConfigError for any other."""
    if not factor.has_rsample:
        raise ConfigError(
            f"{name}: expected a factor with reparameterised draws, which {kind(factor)} does not "
            "have; use AnalyticMean, or ARM or AR if it is Bernoulli"
        )
    return factor


def kind(distribution: Any) -> str:
    """The name of a distribution under its wrappers."""
    return type(_base(distribution)).__name__


def _base(distribution: Any) -> Any:
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


class _AugmentReinforce(Estimator):
    r"""Abstract: gradients for Bernoulli gates from the likelihood of drawn gates.

    Every example n draws uniforms :math:`u_n` of its own, and from them gates
    :math:`1[u_n < \sigma(\varphi)]`. The slope of its log likelihood in the logits
    :math:`\varphi` is :math:`w_n (u_n - \frac12)` with a weight that the subclass gives. Sites of
    other kinds are drawn along, reparameterised.
    """

    def expect(
        self,
        log_likelihood: Callable[[Values], Tensor],
        factors: Mapping[str, Any],
        batch_size: int,
    ) -> Tensor:
        coins: dict[str, tuple[Tensor, Tensor]] = {}  # logits and uniforms
        values: dict[str, Tensor] = {}
        for name, factor in factors.items():
            base = _base(factor)
            if isinstance(base, Bernoulli):
                logits: Any = base.logits
                uniform = logits.new_empty((batch_size, *logits.shape)).uniform_()
                coins[name] = logits, uniform
                values[name] = (uniform < logits.sigmoid()).to(logits.dtype)
            else:
                values[name] = _pathwise(name, factor).rsample((batch_size,))
        found = log_likelihood(values)

        def antithetic() -> Tensor:
            flipped = {n: (u > (-phi).sigmoid()).to(phi.dtype) for n, (phi, u) in coins.items()}
            return log_likelihood({**values, **flipped})

        with torch.no_grad():
            weight = self.weight(found, antithetic)[:, None]
        expected = found.sum()
        for logits, uniform in coins.values():
            slope = (weight * (uniform - 0.5)).sum(0)
            expected = expected + ((logits - logits.detach()) * slope).sum()
        return expected

    @abstractmethod
    def weight(self, found: Tensor, antithetic: Callable[[], Tensor]) -> Tensor:
        r"""The weight of each example, shape ``(N,)``.

        Parameters
        ----------
        found : Tensor
            Log likelihood of each example with its gates, shape ``(N,)``.
        antithetic : callable
            That with the gates :math:`1[u > \sigma(-\varphi)]`; runs the network.
        """


class ARM(_AugmentReinforce):
    r"""Augment-REINFORCE-merge: two runs with antithetic draws. Unbiased, for Bernoulli gates.

    The slope in the logits is :math:`(f(1[u > \sigma(-\varphi)]) - f(1[u < \sigma(\varphi)]))
    (u - \frac12)`, with draws per example.

    References
    ----------
    Yin and Zhou, "ARM: Augment-REINFORCE-Merge Gradient", ICLR 2019; Li and Ji, "L0-ARM", ECML
    2019.
    """

    def weight(self, found: Tensor, antithetic: Callable[[], Tensor]) -> Tensor:
        return antithetic() - found


class AR(_AugmentReinforce):
    r"""Augment-REINFORCE: one run, more variance than `ARM`. Unbiased, for Bernoulli gates.

    The slope in the logits is :math:`f(1[u < \sigma(\varphi)]) (1 - 2u)`.

    References
    ----------
    Yin and Zhou, ICLR 2019, equation 6; Li and Ji, "L0-ARM", ECML 2019.
    """

    def weight(self, found: Tensor, antithetic: Callable[[], Tensor]) -> Tensor:
        return -2 * found
