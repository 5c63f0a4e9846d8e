"""Importance switches: one file per family, with prior, factor, gate, KL and reference."""

from bayesprune.switches._switch import Site, Switch
from bayesprune.switches.dirichlet import Dirichlet
from bayesprune.switches.logistic_normal import LogisticNormal

FAMILIES: tuple[type[Switch], ...] = (Dirichlet, LogisticNormal)
"""Every family; the contract tests run over this list."""

__all__ = ["FAMILIES", "Dirichlet", "LogisticNormal", "Site", "Switch"]
