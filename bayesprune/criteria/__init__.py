"""One-shot saliency criteria: one file each."""

from bayesprune.criteria._criterion import Criterion
from bayesprune.criteria.batch_norm_scale import BatchNormScale
from bayesprune.criteria.data_free import DataFree
from bayesprune.criteria.fisher import Fisher
from bayesprune.criteria.geometric_median import GeometricMedian
from bayesprune.criteria.hrank import HRank
from bayesprune.criteria.iterative import Iterative
from bayesprune.criteria.magnitude import Magnitude
from bayesprune.criteria.pfp import PFP
from bayesprune.criteria.random import Random
from bayesprune.criteria.snip import SNIP
from bayesprune.criteria.taylor import Taylor2016, Taylor2019

CRITERIA: tuple[type[Criterion], ...] = (
    BatchNormScale,
    DataFree,
    Fisher,
    GeometricMedian,
    HRank,
    Iterative,
    Magnitude,
    PFP,
    Random,
    SNIP,
    Taylor2016,
    Taylor2019,
)
"""Every criterion; the contract tests run over this list."""

__all__ = [
    "CRITERIA",
    "PFP",
    "SNIP",
    "BatchNormScale",
    "Criterion",
    "DataFree",
    "Fisher",
    "GeometricMedian",
    "HRank",
    "Iterative",
    "Magnitude",
    "Random",
    "Taylor2016",
    "Taylor2019",
]
