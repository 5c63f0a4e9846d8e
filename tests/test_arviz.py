"""The adapter to either ArviZ: Pareto smoothing, R-hat and effective sizes."""

import numpy as np
import pytest
from scipy import stats

from bayesprune import _arviz

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [0.2, 0.9])
def test_k_hat_is_the_shape_of_a_pareto_tail(shape):
    samples = stats.genpareto(shape).rvs((20, 4000), random_state=1)
    found = [_arviz.pareto_smooth(np.log(weights)) for weights in samples]
    # One estimate, from 190 draws in the tail, has a standard error of (1 + k) / sqrt(190).
    assert np.mean([k for _, k in found]) == pytest.approx(shape, abs=0.15)
    (smoothed, _), weights = found[0], samples[0]
    assert np.exp(smoothed).sum() == pytest.approx(1)
    # The order stays, and so do the small weights, up to normalisation.
    assert stats.spearmanr(smoothed, weights).statistic == pytest.approx(1)
    small = np.argsort(weights)[:2000]
    ratio = smoothed[small] - np.log(weights[small])
    np.testing.assert_allclose(ratio, ratio[0], atol=1e-8)


def test_k_hat_does_not_depend_on_the_scale_of_weights():
    log_weights = RNG.standard_t(4, 1000)
    smoothed, k = _arviz.pareto_smooth(log_weights)
    shifted, same = _arviz.pareto_smooth(log_weights - 1e4)
    assert same == pytest.approx(k, abs=1e-6)
    np.testing.assert_allclose(shifted, smoothed, atol=1e-6)


def test_r_hat_and_effective_size():
    draws = RNG.normal(size=(4, 500, 3))
    draws[0, :, 1] += 2  # one chain elsewhere
    draws[..., 2] = 1.0
    r_hat, size = _arviz.rhat(draws), _arviz.ess(draws)
    assert r_hat[0] < 1.01 < 1.2 < r_hat[1]
    assert np.isnan(r_hat[2])
    assert 1500 < size[0] < 2600
    assert size[1] < 50


def test_equal_weights_have_no_tail():
    smoothed, k = _arviz.pareto_smooth(np.full(100, -3.0))
    assert k == -np.inf
    np.testing.assert_allclose(np.exp(smoothed), 0.01)
