"""Penalties: sparse training that finds channels to remove, one file each."""

from bayesprune.penalties._footprint import Footprint, footprint
from bayesprune.penalties._path import regularisation_path, sensitivity
from bayesprune.penalties._penalty import Penalty, SparseFit
from bayesprune.penalties._weights import mask_weights, remaining_weights
from bayesprune.penalties.admm import ADMM
from bayesprune.penalties.bayes_l1_trim import BayesL1Trim
from bayesprune.penalties.debiased_elastic_group_lasso import DebiasedElasticGroupLasso
from bayesprune.penalties.elastic_group_lasso import ElasticGroupLasso
from bayesprune.penalties.element_snip import ElementSNIP
from bayesprune.penalties.element_spred import ElementSpred
from bayesprune.penalties.exclusive_lasso import ExclusiveLasso
from bayesprune.penalties.greg1 import GReg1
from bayesprune.penalties.greg2 import GReg2
from bayesprune.penalties.group_greg import GroupGReg
from bayesprune.penalties.group_hoyer_square import GroupHoyerSquare
from bayesprune.penalties.group_lasso import GroupLasso
from bayesprune.penalties.group_pruner import GroupPruner
from bayesprune.penalties.gss_121 import GSS121
from bayesprune.penalties.gss_212 import GSS212
from bayesprune.penalties.gss_auxiliary import GSSAuxiliary
from bayesprune.penalties.hoyer import Hoyer
from bayesprune.penalties.hoyer_square import HoyerSquare
from bayesprune.penalties.lasso import Lasso
from bayesprune.penalties.network_slimming import NetworkSlimming
from bayesprune.penalties.smoothed_hoyer_group_half import SmoothedHoyerGroupHalf
from bayesprune.penalties.soft_filter_pruning import SoftFilterPruning
from bayesprune.penalties.sparse_group_lasso import SparseGroupLasso
from bayesprune.penalties.sparse_structure_selection import SparseStructureSelection
from bayesprune.penalties.spred import Spred
from bayesprune.penalties.transformed_lasso import TransformedLasso

PENALTIES: tuple[type[Penalty], ...] = (
    GroupLasso,
    SparseGroupLasso,
    ElasticGroupLasso,
    DebiasedElasticGroupLasso,
    ExclusiveLasso,
    GSS212,
    GSS121,
    GSSAuxiliary,
    GroupHoyerSquare,
    SmoothedHoyerGroupHalf,
    Spred,
    BayesL1Trim,
    NetworkSlimming,
    SparseStructureSelection,
    ADMM,
    GReg1,
    GReg2,
    GroupGReg,
    GroupPruner,
    SoftFilterPruning,
    Lasso,
    Hoyer,
    HoyerSquare,
    TransformedLasso,
    ElementSpred,
    ElementSNIP,
)
"""Every penalty; the contract tests run over this list."""

__all__ = [
    "ADMM",
    "GSS121",
    "GSS212",
    "PENALTIES",
    "BayesL1Trim",
    "DebiasedElasticGroupLasso",
    "ElasticGroupLasso",
    "ElementSNIP",
    "ElementSpred",
    "ExclusiveLasso",
    "Footprint",
    "GReg1",
    "GReg2",
    "GSSAuxiliary",
    "GroupGReg",
    "GroupHoyerSquare",
    "GroupLasso",
    "GroupPruner",
    "Hoyer",
    "HoyerSquare",
    "Lasso",
    "NetworkSlimming",
    "Penalty",
    "SmoothedHoyerGroupHalf",
    "SoftFilterPruning",
    "SparseFit",
    "SparseGroupLasso",
    "SparseStructureSelection",
    "Spred",
    "TransformedLasso",
    "footprint",
    "mask_weights",
    "regularisation_path",
    "remaining_weights",
    "sensitivity",
]
