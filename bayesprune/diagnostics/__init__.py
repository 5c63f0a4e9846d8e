"""Whether posteriors and rankings can be trusted, and what they say of losses to come."""

from bayesprune.diagnostics._diagnostic import Diagnostic
from bayesprune.diagnostics.ablation import Ablation, ablation
from bayesprune.diagnostics.agreement import rank_agreement, rank_stability
from bayesprune.diagnostics.bit_precision import bit_precision
from bayesprune.diagnostics.calibration import Calibration, simulation_based_calibration
from bayesprune.diagnostics.nuts import NutsComparison, NutsReference, nuts
from bayesprune.diagnostics.pareto_k import ParetoK, pareto_k
from bayesprune.diagnostics.plan_risk import PlanRisk, plan_risk
from bayesprune.diagnostics.predictive_check import PredictiveCheck, SwitchAverage, predictive_check
from bayesprune.diagnostics.restarts import Restarts, restarts

__all__ = [
    "Ablation",
    "Calibration",
    "Diagnostic",
    "NutsComparison",
    "NutsReference",
    "ParetoK",
    "PlanRisk",
    "PredictiveCheck",
    "Restarts",
    "SwitchAverage",
    "ablation",
    "bit_precision",
    "nuts",
    "pareto_k",
    "plan_risk",
    "predictive_check",
    "rank_agreement",
    "rank_stability",
    "restarts",
    "simulation_based_calibration",
]
