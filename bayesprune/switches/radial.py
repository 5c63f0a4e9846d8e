"""Radial and directional switches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.nn.module import PyroParam
from torch import Tensor

from bayesprune.distributions import UniformCosine, VonMisesFisherCosine
from bayesprune.errors import ConfigError
from bayesprune.switches._scale import ScaleSwitch, half_cauchy
from bayesprune.switches._switch import Site, Switch, within


class Radial(ScaleSwitch):
    r"""Gates :math:`z = r t`: a radius, and the cosine between a drawn and the mean direction.

    The weights that produce a unit are a radius times a direction. The radius, relative to the
    trained one, has the prior :math:`C^+(0, k)` in Gamma and inverse Gamma scales with log-normal
    factors. The direction is uniform on the sphere a priori and von Mises-Fisher around the trained
    one a posteriori. The gate is the part of the drawn weights along the trained ones; what a drawn
    direction adds across them is left out, and does not enter the divergence, which is exactly that
    of the directions. The score is the log of the radius' mode.

    Parameters
    ----------
    radius_scale : float
        :math:`k > 0`.
    init_sd : float
        Initial standard deviation of every log scale, above 0.
    init_concentration : float
        Initial concentration of the direction per dimension, above 0.

    Raises
    ------
    ConfigError
        If a value is out of range.

    References
    ----------
    Oh, Adamczewski and Park, "Radial and Directional Posteriors for Bayesian Deep Learning", AAAI
    2020. The family of their radius is not in print; ours is the log-normal one.
    """

    reference = "Oh et al., AAAI 2020"
    ranks_by = "the log of the mode of the gate's radius"

    def __init__(
        self, radius_scale: float = 0.1, init_sd: float = 0.011, init_concentration: float = 100.0
    ) -> None:
        super().__init__(init_sd)
        if not (0 < radius_scale < math.inf and 0 < init_concentration < math.inf):
            raise ConfigError(
                "Radial: radius_scale and init_concentration must be above 0, "
                f"got {radius_scale}, {init_concentration}"
            )
        self.radius_scale = radius_scale
        self.init_concentration = init_concentration

    @property
    def dim(self) -> float:
        """Dimension of the sphere's space; on a line there would be two directions only.

        A whole number, also for units whose producers have filters of several sizes.
        """
        return max(2.0, round(self.fan_in))

    def initialise(self, keep: float | None) -> None:
        # The inverse Gamma scale has the heavier tail: it brings the radius to 1.
        small = 2 * math.log(self.radius_scale) - math.log(2)
        self.create("radius_a", self.size, small)
        self.create("radius_b", self.size, -small)
        concentration = math.log(self.init_concentration * self.dim)
        self.log_concentration: Any = PyroParam(torch.full((self.size,), concentration))

    def _direction(self) -> VonMisesFisherCosine:
        log_concentration = within(-10, 15, self.log_concentration)
        dim = torch.full_like(log_concentration, self.dim)
        return VonMisesFisherCosine(dim, log_concentration.exp())

    def sites(self) -> dict[str, Site]:
        direction = self._direction()
        uniform = UniformCosine(direction.dim)
        return {
            **half_cauchy(self, "radius", self.radius_scale),
            "cosine": Site(uniform.to_event(1), direction.to_event(1)),
        }

    def gate(self, values: Mapping[str, Tensor]) -> Tensor:
        radii = {name: value for name, value in values.items() if name != "cosine"}
        return super().gate(radii) * values["cosine"]

    def mean(self) -> Tensor:
        return (self.root().mean * self._direction().mean).detach()

    def sd(self) -> Tensor:
        radius, cosine = self.root(), self._direction()
        spread = radius.variance * (cosine.mean.square() + cosine.variance)
        return (spread + radius.mean.square() * cosine.variance).sqrt().detach()

    # Of a product of a log-normal variate and a cosine there is no closed form.
    quantile = Switch.quantile
    probability_below = Switch.probability_below

    def active_probability(self) -> Tensor:
        cosine = self._direction()
        first = cosine.mean.square()
        return super().active_probability() * first / (first + cosine.variance)
