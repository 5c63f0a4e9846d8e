"""What holds for the result of every diagnostic."""

import inspect
import re

import numpy as np
import pandas as pd
import pytest
import torch

from bayesprune import diagnostics
from bayesprune.diagnostics import Diagnostic

RANKS = {"a": np.arange(100).reshape(50, 2) % 10, "b": np.arange(50).reshape(50, 1) % 10}
QUALITY = {"error": 0.1, "nll": 0.5, "ece": 0.02, "brier": 0.2}
COMPARISON = {
    "layer": "a",
    "channel": [0, 1],
    "mean_error": [0.1, -0.3],
    "sd_ratio": [0.5, 0.7],
    "wasserstein": [0.2, 0.3],
    "coverage": [0.8, 0.7],
}
RESULTS = {
    "Ablation": lambda: diagnostics.Ablation({"a": torch.eye(3)[:2].double()}),
    "Calibration": lambda: diagnostics.Calibration(RANKS, num_draws=9, bins=5),
    "NutsComparison": lambda: diagnostics.NutsComparison(pd.DataFrame(COMPARISON)),
    "NutsReference": lambda: diagnostics.NutsReference({"a": torch.randn(2, 50, 3)}, 4),
    "ParetoK": lambda: diagnostics.ParetoK(0.4, 1000, 12, -3.0, -2.5, 500.0),
    "PlanRisk": lambda: diagnostics.PlanRisk(torch.rand(9), torch.rand(9), torch.rand(9)),
    "PredictiveCheck": lambda: diagnostics.PredictiveCheck(
        pd.DataFrame([QUALITY, QUALITY], index=["switch-averaged", "mean gates"])
    ),
    "Restarts": lambda: diagnostics.Restarts(
        [], {"a": np.array([1.0, 1.3, np.nan])}, {"a": 0.5}, {"a": 0.9}
    ),
}
SOURCED = {"Calibration": "0.01", "NutsReference": "1.01", "ParetoK": "0.67", "Restarts": "1.01"}

THRESHOLDS = {"NutsReference": 1.01, "ParetoK": pytest.approx(2 / 3), "Restarts": 1.01}


def test_all_results_are_here():
    members = [getattr(diagnostics, name) for name in diagnostics.__all__]
    found = {m.__name__ for m in members if inspect.isclass(m) and issubclass(m, Diagnostic)}
    assert set(RESULTS) == found - {"Diagnostic"}


@pytest.mark.parametrize("name", RESULTS)
def test_results_read_well(name):
    result = RESULTS[name]()
    assert str(result) == repr(result) == f"{name}: {result.verdict}"
    assert len(result.verdict) > 40
    assert result.threshold == THRESHOLDS.get(name)
    if name in SOURCED:
        assert SOURCED[name] in result.verdict
        assert re.search(r"(Vehtari|Talts) et al\., .*20\d\d", result.verdict)
    else:
        assert re.search("threshold", result.verdict)
    assert len(result.to_frame()) >= 1
    page = result._repr_html_()
    assert page.startswith("<table")
    assert page.endswith("</p>")
    with pytest.raises(AttributeError):
        result.verdict = "fine"
