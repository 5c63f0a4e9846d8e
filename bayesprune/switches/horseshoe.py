"""Horseshoe switches: Bayesian compression with group sparsity."""

from __future__ import annotations

import math

from bayesprune.errors import ConfigError
from bayesprune.switches._scale import ScaleSwitch, half_cauchy
from bayesprune.switches._switch import Site


class Horseshoe(ScaleSwitch):
    r"""Gates that are products of a global and a local half-Cauchy scale.

    :math:`z_i = s \tilde z_i` with :math:`s \sim C^+(0, \tau_0)` for the group and
    :math:`\tilde z_i \sim C^+(0, 1)` per channel, each squared scale a Gamma times an inverse Gamma
    variate with log-normal factors. All divergences are in closed form; z is log-normal under the
    factor. The score is the log of its mode.

    The prior is one of scales: with frozen weights it ranks; with weights trained along, use
    `GaussianWeights`, or the weights make up for whatever the prior takes away.

    Parameters
    ----------
    global_scale : float
        :math:`\tau_0 > 0`; small values favour groups with few channels.
    init_sd : float
        Initial standard deviation of every log scale, above 0. Gates start from 1.

    Raises
    ------
    ConfigError
        If a value is out of range.

    References
    ----------
    Louizos, Ullrich and Welling, "Bayesian Compression for Deep Learning", NeurIPS 2017, section
    4.2 (BC-GHS).
    """

    reference = "Louizos et al., NeurIPS 2017 (BC-GHS)"

    def __init__(self, global_scale: float = 1e-5, init_sd: float = 0.011) -> None:
        super().__init__(init_sd)
        if not 0 < global_scale < math.inf:
            raise ConfigError(f"Horseshoe: global_scale must be above 0, got {global_scale!r}")
        self.global_scale = global_scale

    def initialise(self, keep: float | None) -> None:
        # Where the divergences are least, except for the inverse Gamma scale of the group, which
        # brings the gates to 1 at the least cost: its tail is the heaviest, and it counts once.
        small = 2 * math.log(self.global_scale) - math.log(2)
        local = -math.log(2)
        self.create("global_a", 1, small)
        self.create("global_b", 1, -small)
        self.create("local_a", self.size, local)
        self.create("local_b", self.size, -local)

    def sites(self) -> dict[str, Site]:
        return {
            **half_cauchy(self, "global", self.global_scale),
            **half_cauchy(self, "local", 1.0),
        }
