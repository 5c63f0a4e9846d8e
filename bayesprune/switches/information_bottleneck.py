"""Switches of the variational information bottleneck."""

from __future__ import annotations

import math

import torch

from bayesprune.distributions import InformationBottleneckPrior
from bayesprune.errors import ConfigError
from bayesprune.switches._normal import NormalSwitch
from bayesprune.switches._switch import Site


class InformationBottleneck(NormalSwitch):
    r"""Gaussian gates that pay for the information they let through.

    The factor is :math:`N(\mu, \sigma^2)`, the penalty per channel :math:`\frac\gamma2 \log(1 +
    \mu^2/\sigma^2)` nats. The score is :math:`-\log\alpha = \log\mu^2 - \log\sigma^2`, and channels
    below 0 go. A gate may be negative.

    Parameters
    ----------
    strength : float
        :math:`\gamma > 0` in nats of the data set: the paper's weight times the number of examples.
        The paper counts each position of a map; give `kl_weight` for that.
    init_sd : float
        Initial standard deviation above 0; the mean starts from 1.

    Raises
    ------
    ConfigError
        If a value is out of range.

    References
    ----------
    Dai, Zhu, Guo and Wipf, "Compressing Neural Networks using the Variational Information
    Bottleneck", ICML 2018.
    """

    reference = "Dai et al., ICML 2018"

    def __init__(self, strength: float = 1.0, init_sd: float = 0.011) -> None:
        super().__init__(init_sd)
        if not 0 < strength < math.inf:
            raise ConfigError(f"InformationBottleneck: strength must be above 0, got {strength!r}")
        self.strength = strength

    def sites(self) -> dict[str, Site]:
        prior = InformationBottleneckPrior(torch.full_like(self.loc, self.strength))
        return {"gate": Site(prior.to_event(1), self.factor().to_event(1))}

    def threshold(self) -> float:
        return 0.0
