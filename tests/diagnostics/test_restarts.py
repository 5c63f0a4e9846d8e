"""Restarts that agree, and restarts that do not."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import bayesprune as bp
from bayesprune.diagnostics import restarts
from bayesprune.errors import ConfigError, PlanError


def fitted(gaussian, *locs):
    """Posteriors with these means, in turn."""
    queue = iter(locs)

    def fit(seed):
        switch = gaussian.prototype.bind(len(locs[0]))
        with torch.no_grad():
            switch.loc = torch.tensor(next(queue))
        return bp.SwitchPosterior({"a": switch}, [])

    return fit


def test_restarts_that_agree(gaussian):
    same = [0.1, 0.5, 2.0, 1.0]
    found = restarts(fitted(gaussian, same, same, same), count=3, progress=False)
    assert found.is_good
    assert found.spearman == {"a": 1.0}
    assert found.overlap == {"a": 1.0}
    assert "restarts agree" in found.verdict


def test_restarts_that_do_not(gaussian):
    locs = [[0.1, 0.5, 2.0, 1.0], [0.1, 1.5, 0.2, 1.0]]
    found = restarts(fitted(gaussian, *locs), 2, count=2, progress=False)
    assert not found.is_good
    assert found.spearman["a"] == pytest.approx(spearmanr(*locs).statistic)
    assert found.largest == found.rhat["a"].max() > 1.05
    assert found.overlap["a"] == 0.5  # 2 and 3 against 1 and 3
    np.testing.assert_array_equal(found.rhat["a"] > 1.05, [False, True, True, False])
    assert "2 of 4 channels above 1.01" in found.verdict
    assert len(found.posteriors) == 2


def test_equal_channels_have_no_ranks_to_agree(gaussian):
    locs = [[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]]
    found = restarts(fitted(gaussian, *locs), count=3, progress=False)
    assert np.isnan(found.spearman["a"])  # not the mean over the pairs that have some


def test_seeds_count_on_and_fits_are_real(gaussian):
    loader = gaussian.simulate({"0": torch.zeros(3)}, 0)
    seeds = []

    def fit(seed):
        seeds.append(seed)
        return gaussian.svi(loader, seed, epochs=2)[1]

    found = restarts(fit, {"0": 1}, count=2, seed=5, progress=False)
    assert seeds == [5, 6]
    one, other = found.posteriors
    assert not torch.equal(one.mean["0"], other.mean["0"])


def test_refusals(gaussian):
    with pytest.raises(ConfigError, match="count: expected an integer of at least 2, got 1"):
        restarts(fitted(gaussian, [1.0]), count=1)
    each = iter([bp.SwitchPosterior({"a": gaussian.prototype.bind(size)}, []) for size in (1, 2)])
    with pytest.raises(PlanError, match="same groups, got"):
        restarts(lambda seed: next(each), count=2, progress=False)
    for best in (3, {"a": 3}, {"b": 1}, 0):
        with pytest.raises(PlanError, match=r"best: expected numbers .* within {'a': 2}"):
            restarts(fitted(gaussian, [1.0, 2.0], [1.0, 2.0]), best, count=2, progress=False)
