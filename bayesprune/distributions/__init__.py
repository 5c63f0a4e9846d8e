"""Distributions that Pyro lacks, as torch distributions; importing them registers their KLs."""

from bayesprune.distributions import kl as _kl  # noqa: F401  (registers the divergences)
from bayesprune.distributions.log_gamma import LogGamma
from bayesprune.distributions.replicated import Replicated

__all__ = ["LogGamma", "Replicated"]
