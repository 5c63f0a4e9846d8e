"""Switches of the Bayesian group lasso."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch

from bayesprune.errors import ConfigError
from bayesprune.switches._scale import ScaleSwitch
from bayesprune.switches._switch import Site


class BayesianGroupLasso(ScaleSwitch):
    r"""Gates that are the scales of a Bayesian group lasso.

    :math:`z_i = \tau_i` with :math:`\tau_i^2 \sim \mathrm{Gamma}(\frac{d+1}2, \frac{\lambda^2}2)`.
    With weights :math:`w_i \mid \tau_i \sim N(0, \tau_i^2 I_d)`, d of them per unit, a priori
    :math:`p(w_i) \propto e^{-\lambda \lVert w_i \rVert}`: the group lasso. The factor of each
    :math:`\tau_i^2` is log-normal, its divergence in closed form. The score is the log of the mode
    of z.

    Parameters
    ----------
    strength : float
        :math:`\lambda / \sqrt d > 0`; at 1 the mean of :math:`\tau^2` is near 1.
    init_sd : float
        Initial standard deviation of every log scale, above 0. Gates start from 1.

    Raises
    ------
    ConfigError
        If a value is out of range.

    References
    ----------
    Park and Casella, "The Bayesian Lasso", JASA 2008; Jantre, Bhattacharya and Maiti, IEEE TNNLS
    2024, as a slab.
    """

    reference = "Park and Casella, JASA 2008"

    def __init__(self, strength: float = 1.0, init_sd: float = 0.011) -> None:
        super().__init__(init_sd)
        if not 0 < strength < math.inf:
            raise ConfigError(f"BayesianGroupLasso: strength must be above 0, got {strength!r}")
        self.strength = strength

    def initialise(self, keep: float | None) -> None:
        self.create("variance", self.size, 0.0)

    def sites(self) -> dict[str, Site]:
        shape = torch.full_like(self.variance_loc, (self.fan_in + 1) / 2)
        rate = torch.full_like(shape, self.strength**2 * self.fan_in / 2)
        prior = dist.Gamma(shape, rate, validate_args=False)
        return {"variance": Site(prior.to_event(1), self.factor("variance").to_event(1))}
