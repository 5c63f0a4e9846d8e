"""Hard concrete switches: L0 regularisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.nn.module import PyroParam
from torch import Tensor

from bayesprune import distributions
from bayesprune.errors import ConfigError
from bayesprune.switches._switch import Site, Switch, within

LOW, HIGH = -0.1, 1.1
"""What the concrete variate is stretched to before it is clipped to [0, 1], as in the paper."""


class HardConcrete(Switch):
    r"""Gates in [0, 1] that are exactly 0 or 1 with positive probability.

    A concrete variate with location :math:`\log\alpha`, stretched and clipped. The penalty is
    :math:`\lambda |g| P(z \ne 0)` with :math:`|g|` the number of weights that produce the unit: it
    stands for an :math:`L_0` norm and has no prior distribution behind it. The score is
    :math:`\log\alpha`; channels whose gate without noise is 0 go.

    Parameters
    ----------
    penalty : float
        :math:`\lambda > 0`, in nats of the data set per weight.
    temperature : float
        Of the concrete variate, above 0.
    init_probability : float
        Initial probability in (0, 1) of the binary variate that is relaxed.

    Raises
    ------
    ConfigError
        If a value is out of range.

    References
    ----------
    Louizos, Welling and Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR
    2018.
    """

    reference = "Louizos et al., ICLR 2018"
    interval_scale = True

    def __init__(
        self, penalty: float = 0.1, temperature: float = 2 / 3, init_probability: float = 0.9
    ) -> None:
        super().__init__()
        if not (0 < penalty < math.inf and 0 < temperature < math.inf):
            raise ConfigError(
                "HardConcrete: penalty and temperature must be above 0, "
                f"got {penalty}, {temperature}"
            )
        if not 0 < init_probability < 1:
            raise ConfigError(
                f"HardConcrete: init_probability must be in (0, 1), got {init_probability!r}"
            )
        self.penalty = penalty
        self.temperature = temperature
        self.init_probability = init_probability

    def initialise(self, keep: float | None) -> None:
        logit = math.log(self.init_probability / (1 - self.init_probability))
        self.log_alpha: Any = PyroParam(torch.full((self.size,), logit))

    def _factor(self) -> distributions.HardConcrete:
        log_alpha = within(-math.log(100), math.log(100), self.log_alpha)  # as in the authors' code
        return distributions.HardConcrete(log_alpha, self.temperature, LOW, HIGH)

    def sites(self) -> dict[str, Site]:
        rate = torch.full_like(self.log_alpha, self.penalty * self.fan_in)
        prior = distributions.NonzeroPenalty(rate)
        return {"gate": Site(prior.to_event(1), self._factor().to_event(1))}

    def gate(self, values: Mapping[str, Tensor]) -> Tensor:
        return values["gate"]

    def mean(self) -> Tensor:
        return self._factor().mean.detach()

    def sd(self) -> Tensor:
        return self._factor().variance.detach().sqrt()

    def quantile(self, q: float) -> Tensor:
        return self._factor().icdf(torch.full_like(self.log_alpha, q)).detach()

    def probability_below(self, threshold: float) -> Tensor:
        if threshold <= 0 or threshold > 1:
            return torch.full_like(self.log_alpha, float(threshold > 1)).detach()
        # Strictly below: without the atom at 1.
        largest = torch.tensor(1 - 1e-6).to(self.log_alpha)
        point = torch.full_like(self.log_alpha, threshold).minimum(largest)
        return self._factor().cdf(point).detach()

    def importance(self) -> Tensor:
        """The location of the concrete variate."""
        return self._factor().log_alpha.detach()

    def threshold(self) -> float:
        share = -LOW / (HIGH - LOW)
        return math.log(share / (1 - share)) + 1e-6

    def active_probability(self) -> Tensor:
        return self._factor().probability_nonzero
