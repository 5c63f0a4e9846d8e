"""Importance switches: one file per family, with prior, factor, gate, KL and reference."""

from bayesprune.switches._switch import Site, Switch
from bayesprune.switches.bayesian_group_lasso import BayesianGroupLasso
from bayesprune.switches.bernoulli import Bernoulli
from bayesprune.switches.dirichlet import Dirichlet
from bayesprune.switches.hard_concrete import HardConcrete
from bayesprune.switches.horseshoe import Horseshoe
from bayesprune.switches.information_bottleneck import InformationBottleneck
from bayesprune.switches.log_normal import LogNormal
from bayesprune.switches.logistic_normal import LogisticNormal
from bayesprune.switches.normal_jeffreys import NormalJeffreys
from bayesprune.switches.radial import Radial
from bayesprune.switches.spike_and_slab import SpikeAndSlab

FAMILIES: tuple[type[Switch], ...] = (
    Dirichlet,
    LogisticNormal,
    LogNormal,
    Horseshoe,
    NormalJeffreys,
    HardConcrete,
    Bernoulli,
    Radial,
    InformationBottleneck,
    BayesianGroupLasso,
    SpikeAndSlab,
)
"""Every family; the contract tests run over this list."""

__all__ = [
    "FAMILIES",
    "BayesianGroupLasso",
    "Bernoulli",
    "Dirichlet",
    "HardConcrete",
    "Horseshoe",
    "InformationBottleneck",
    "LogNormal",
    "LogisticNormal",
    "NormalJeffreys",
    "Radial",
    "Site",
    "SpikeAndSlab",
    "Switch",
]
