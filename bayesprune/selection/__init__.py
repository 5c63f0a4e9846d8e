"""From channel scores to a pruning plan: rules and budgets."""

from bayesprune.selection.budget import Budget, CostLimit, GlobalRank
from bayesprune.selection.choice import choose, select
from bayesprune.selection.context import Context, HeldOut
from bayesprune.selection.risk import RiskBudget, loss_draws
from bayesprune.selection.rules import (
    EvidenceStop,
    FamilyRule,
    KeepFraction,
    Probability,
    Rule,
    Threshold,
    TopK,
)
from bayesprune.selection.scores import ChannelScores, Normalisation

__all__ = [
    "Budget",
    "ChannelScores",
    "Context",
    "CostLimit",
    "EvidenceStop",
    "FamilyRule",
    "GlobalRank",
    "HeldOut",
    "KeepFraction",
    "Normalisation",
    "Probability",
    "RiskBudget",
    "Rule",
    "Threshold",
    "TopK",
    "choose",
    "loss_draws",
    "select",
]
