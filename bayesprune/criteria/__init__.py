"""One-shot saliency criteria: one file each."""

from bayesprune.criteria._criterion import Criterion
from bayesprune.criteria.fisher import Fisher
from bayesprune.criteria.magnitude import Magnitude
from bayesprune.criteria.random import Random

CRITERIA: tuple[type[Criterion], ...] = (Fisher, Magnitude, Random)
"""Every criterion; the contract tests run over this list."""

__all__ = ["CRITERIA", "Criterion", "Fisher", "Magnitude", "Random"]
