"""Figures of diagnostics hold what they are of."""

import numpy as np
import pytest

from bayesprune.diagnostics import Calibration
from bayesprune.errors import PlanError
from bayesprune.reporting import calibration_plot


def test_calibration_plot():
    ranks = np.random.default_rng(0).integers(0, 100, (200, 3))
    calibration = Calibration({"block.conv1": ranks}, num_draws=99, bins=10)
    figure = calibration_plot(calibration, "block.conv1")
    histogram, ecdf = figure.axes
    assert "block.conv1" in histogram.get_title("left")
    steps = [patch.get_data().values for patch in histogram.patches if hasattr(patch, "get_data")]
    np.testing.assert_array_equal(steps, calibration.counts["block.conv1"])
    lines = [line.get_ydata() for line in ecdf.lines if len(line.get_ydata()) == 100]
    assert len(lines) == 3
    assert all(line[-1] == 0 for line in lines)
    assert lines[0][49] == pytest.approx((ranks[:, 0] <= 49).mean() - 0.5)
    assert figure._repr_png_()[:4] == b"\x89PNG"
    with pytest.raises(PlanError, match=r"conv9: no such group; groups: block.conv1"):
        calibration_plot(calibration, "conv9")
