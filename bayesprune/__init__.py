"""Smaller PyTorch networks, and how sure one can be of each channel that is removed."""

from bayesprune import (
    criteria,
    datasets,
    diagnostics,
    layer_pruning,
    models,
    penalties,
    reporting,
    switches,
)
from bayesprune._version import __version__
from bayesprune.config import RunConfig
from bayesprune.cost import Cost, cost, latency
from bayesprune.datasets import DataConfig
from bayesprune.errors import BayespruneError
from bayesprune.estimators import AR, ARM, AnalyticMean, Implicit
from bayesprune.experiment import Run, load_run, run_experiment
from bayesprune.export import export_onnx, export_program
from bayesprune.groups import ChannelGroup, ChannelGroups, trace_groups
from bayesprune.layer_pruning import removable_layers, remove_layers
from bayesprune.network import SwitchedNetwork
from bayesprune.objectives import CostConstraint, DualAscent, FixedWeight, Pathwise, ScoreFunction
from bayesprune.plan import Limits, PruningPlan
from bayesprune.posterior import SwitchPosterior
from bayesprune.selection import (
    Budget,
    ChannelScores,
    EvidenceStop,
    FamilyRule,
    GlobalRank,
    KeepFraction,
    Probability,
    RiskBudget,
    Threshold,
    TopK,
    select,
)
from bayesprune.storage import load_pruned, save_pruned
from bayesprune.surgery import remove_channels
from bayesprune.svi import fit_switches
from bayesprune.timing import LatencyModel
from bayesprune.training import Distillation, TrainConfig, evaluate, train_network
from bayesprune.weights import GaussianWeights

__all__ = [
    "AR",
    "ARM",
    "AnalyticMean",
    "BayespruneError",
    "Budget",
    "ChannelGroup",
    "ChannelGroups",
    "ChannelScores",
    "Cost",
    "CostConstraint",
    "DataConfig",
    "Distillation",
    "DualAscent",
    "EvidenceStop",
    "FamilyRule",
    "FixedWeight",
    "GaussianWeights",
    "GlobalRank",
    "Implicit",
    "KeepFraction",
    "LatencyModel",
    "Limits",
    "Pathwise",
    "Probability",
    "PruningPlan",
    "RiskBudget",
    "Run",
    "RunConfig",
    "ScoreFunction",
    "SwitchPosterior",
    "SwitchedNetwork",
    "Threshold",
    "TopK",
    "TrainConfig",
    "__version__",
    "cost",
    "criteria",
    "datasets",
    "diagnostics",
    "evaluate",
    "export_onnx",
    "export_program",
    "fit_switches",
    "latency",
    "layer_pruning",
    "load_pruned",
    "load_run",
    "models",
    "penalties",
    "removable_layers",
    "remove_channels",
    "remove_layers",
    "reporting",
    "run_experiment",
    "save_pruned",
    "select",
    "switches",
    "trace_groups",
    "train_network",
]
