"""Distributions that Pyro lacks, as torch distributions; importing them registers their KLs."""

from bayesprune.distributions import kl as _kl  # noqa: F401  (registers the divergences)
from bayesprune.distributions.bessel import log_bessel_i
from bayesprune.distributions.concrete import Concrete
from bayesprune.distributions.hard_concrete import HardConcrete
from bayesprune.distributions.improper import (
    Improper,
    InformationBottleneckPrior,
    NonzeroPenalty,
    NormalJeffreys,
)
from bayesprune.distributions.log_gamma import LogGamma
from bayesprune.distributions.truncated_log_normal import LogUniform, TruncatedLogNormal
from bayesprune.distributions.truncated_normal import TruncatedNormal
from bayesprune.distributions.von_mises_fisher import UniformCosine, VonMisesFisherCosine

__all__ = [
    "Concrete",
    "HardConcrete",
    "Improper",
    "InformationBottleneckPrior",
    "LogGamma",
    "LogUniform",
    "NonzeroPenalty",
    "NormalJeffreys",
    "TruncatedLogNormal",
    "TruncatedNormal",
    "UniformCosine",
    "VonMisesFisherCosine",
    "log_bessel_i",
]
