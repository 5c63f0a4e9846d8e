"""Normal-Jeffreys switches: Bayesian compression with group noise."""

from __future__ import annotations

import torch

from bayesprune import distributions
from bayesprune.switches._normal import NormalSwitch
from bayesprune.switches._switch import Site


class NormalJeffreys(NormalSwitch):
    r"""Gaussian gates under the improper prior :math:`p(z) \propto 1/|z|`.

    The factor is :math:`N(\mu, \alpha \mu^2)`. The divergence, known up to a constant, is Molchanov
    et al.'s approximation, right within 0.01 nats. The score is :math:`-\log\alpha`, and channels
    with :math:`\log \alpha > 3` go (a dropout rate above 0.95). A gate may be negative.

    Parameters
    ----------
    init_sd : float
        Initial standard deviation above 0; the mean starts from 1.

    Raises
    ------
    ConfigError
        If `init_sd` is not above 0.

    References
    ----------
    Louizos, Ullrich and Welling, "Bayesian Compression for Deep Learning", NeurIPS 2017, section
    4.1 (BC-GNJ); Molchanov, Ashukha and Vetrov, ICML 2017, for the divergence. With
    `GaussianWeights` this is their model.
    """

    reference = "Louizos et al., NeurIPS 2017 (BC-GNJ)"

    def sites(self) -> dict[str, Site]:
        prior = distributions.NormalJeffreys().expand(torch.Size([self.size]))
        return {"gate": Site(prior.to_event(1), self.factor().to_event(1))}

    def threshold(self) -> float:
        return -3.0
