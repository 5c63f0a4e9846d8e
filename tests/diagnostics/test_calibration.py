"""Simulation-based calibration: uniform where the posterior is exact, and not where it is not."""

import numpy as np
import pytest
import torch
from scipy import stats

import bayesprune as bp
from bayesprune.diagnostics import Calibration, simulation_based_calibration
from bayesprune.errors import ConfigError, PlanError


def calibrate(toy, factor=1.0, **options):
    return simulation_based_calibration(
        toy.switched(),
        toy.simulate,
        lambda loader, seed: toy.posterior(loader, factor),
        num_simulations=100,
        progress=False,
        **options,
    )


def test_exact_posteriors_are_calibrated(toy):
    found = calibrate(toy)
    assert found.ranks["0"].shape == (100, toy.channels)
    assert found.p > 0.01
    assert found.is_good
    assert "no miscalibration" in found.verdict


def test_fits_of_an_exact_family_are_calibrated(gaussian):
    found = simulation_based_calibration(
        gaussian.switched(),
        gaussian.simulate,
        lambda loader, seed: gaussian.svi(loader, seed)[1],
        num_simulations=50,
        progress=False,
    )
    assert found.p > 0.01


def test_truths_have_the_mass_that_a_fit_ends_with(dirichlet):
    switched = bp.SwitchedNetwork(
        dirichlet.network,
        dirichlet.groups,
        bp.switches.Dirichlet(concentration=1.0, total="anneal"),
        num_data=dirichlet.examples,
        keep=2 / dirichlet.channels,
    )
    masses = []

    def simulate(gates, seed):
        masses.append(gates["0"].sum().item())
        return dirichlet.simulate({"0": gates["0"] / gates["0"].sum()}, seed)

    simulation_based_calibration(
        switched,
        simulate,
        lambda loader, seed: dirichlet.posterior(loader),
        num_simulations=50,
        progress=False,
    )
    assert masses == pytest.approx([2.0] * 50)
    assert switched.guide.switches[0].mass.item() == dirichlet.channels  # untouched


def test_overconfident_posteriors_are_found_out(toy):
    found = calibrate(toy, factor=2.5)
    assert found.p < 1e-6
    assert not found.is_good
    assert "too narrow" in found.verdict


def test_wide_and_shifted_posteriors_are_named():
    wide = np.random.default_rng(0).integers(40, 60, (100, 2))
    assert "too wide" in Calibration({"a": wide}, 99, 10).verdict
    high = np.random.default_rng(0).integers(0, 30, (100, 2))
    assert "too high" in Calibration({"a": high}, 99, 10).verdict


def test_p_values_by_hand():
    ranks = np.array([[0, 0], [1, 1], [2, 1], [3, 1], [0, 1], [1, 1], [2, 1], [3, 1]])
    found = Calibration({"a": ranks}, num_draws=3, bins=2)
    np.testing.assert_array_equal(found.counts["a"], [[4, 4], [8, 0]])
    # Of two bins, the statistic is (8 - 4)² / 4 + (0 - 4)² / 4 = 8, with one degree of freedom.
    assert found.p_values["a"] == pytest.approx([1.0, stats.chi2.sf(8, 1)])
    assert found.p == pytest.approx(2 * stats.chi2.sf(8, 1))


def test_ties_get_any_place():
    """A single share is 1 before and after: its ranks must be uniform all the same."""
    switched = bp.SwitchedNetwork(
        network := torch.nn.Sequential(
            torch.nn.Linear(1, 1), torch.nn.ReLU(), torch.nn.Linear(1, 1)
        ),
        bp.trace_groups(network, torch.zeros(1, 1)),
        bp.switches.Dirichlet(1.0),
        num_data=1,
    )
    posterior = bp.SwitchPosterior(dict(switched.guide.items()), [])
    found = simulation_based_calibration(
        switched,
        lambda gates, seed: [],
        lambda loader, seed: posterior,
        num_draws=9,
        progress=False,
    )
    assert found.p > 0.01
    assert set(found.ranks["0"].ravel()) == set(range(10))


def test_refusals(gaussian):
    with pytest.raises(ConfigError, match="divisor of num_draws \\+ 1 = 100, got 7"):
        calibrate(gaussian, bins=7)
    with pytest.raises(ConfigError, match="num_simulations: expected an integer of at least 125"):
        calibrate(gaussian, bins=25)
    other = bp.SwitchPosterior({"0": gaussian.prototype.bind(2)}, [])
    with pytest.raises(PlanError, match="posterior of 3 channels of 0, got {'0': 2}"):
        simulation_based_calibration(
            gaussian.switched(), gaussian.simulate, lambda loader, seed: other, progress=False
        )


def test_data_fits_and_draws_have_seeds_of_their_own(toy, monkeypatch):
    seeds = []
    posterior = toy.posterior(toy.simulate({"0": torch.ones(toy.channels)}, 0), 1.0)
    monkeypatch.setattr(posterior, "sample", lambda count, seed: seeds.append(seed) or draws)
    draws = {"0": torch.rand(99, toy.channels)}
    simulation_based_calibration(
        toy.switched(),
        lambda gates, seed: seeds.append(seed) or [],
        lambda loader, seed: seeds.append(seed) or posterior,
        num_simulations=50,
        progress=False,
    )
    assert len(seeds) == len(set(seeds)) == 150
