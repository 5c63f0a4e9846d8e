"""NUTS beside exact posteriors and beside SVI."""

import numpy as np
import pytest
import torch
from scipy import stats

import bayesprune as bp
from bayesprune.diagnostics import NutsReference, nuts
from bayesprune.errors import ConfigError, DataError, PlanError

TRUTH = {"0": torch.tensor([0.5, 0.0, -1.0])}


@pytest.fixture(scope="module")
def loader(gaussian):
    return gaussian.simulate(TRUTH, 3)


@pytest.fixture(scope="module")
def reference(gaussian, loader):
    switched = gaussian.switched()
    return nuts(switched, loader, num_draws=2500, warmup=200, chains=2, progress=False)


def test_nuts_and_svi_agree_where_the_family_is_exact(gaussian, loader, reference):
    mean, sd = gaussian.moments(torch.cat([batch[1] for batch in loader]))
    _, posterior = gaussian.svi(loader, epochs=300)
    compared = reference.compare(posterior, TRUTH).channels
    assert (compared["mean_error"].abs() < 0.05).all()
    assert ((compared["sd_ratio"] - 1).abs() < 0.1).all()
    assert ((compared["coverage"] - 0.95).abs() < 0.03).all()
    assert (compared["wasserstein"] < 0.1).all()
    assert compared["covers_mean"].all()
    # Both are near the exact posterior, not just near each other.
    assert ((reference.mean["0"] - mean).abs() < 0.1 * sd).all()
    assert ((posterior.mean["0"] - mean).abs() < 0.05 * sd).all()


def test_chains_can_be_trusted(reference):
    assert reference.draws["0"].shape == (2, 2500, 3)
    assert reference.is_good
    assert reference.divergences == 0
    assert (reference.ess["0"] > 2000).all()
    inference = reference.to_arviz()
    assert inference["posterior"]["gate"].shape == (2, 2500, 3)
    assert list(inference["posterior"]["layer"].values) == ["0"] * 3
    assert list(inference["posterior"]["switch"].values) == ["0:0", "0:1", "0:2"]
    bad = NutsReference({"0": reference.draws["0"] + torch.tensor([0.0, 3.0])[:, None, None]}, 0)
    assert not bad.is_good
    assert "do not rely" in bad.verdict
    assert not NutsReference(reference.draws, 1).is_good


def test_distances_by_hand(gaussian, loader):
    # Gold N(0, 1); variational N(0.5, 0.5²): intervals and distances are known.
    posterior = gaussian.posterior(loader)
    with torch.no_grad():
        posterior.switches["0"].loc = torch.full((3,), 0.5)
        posterior.switches["0"].scale = torch.full((3,), 0.5)
    gold = NutsReference({"0": torch.randn(2, 10_000, 3)}, 0)
    truth = {"0": torch.tensor([0.0, 1.4, 2.0])}
    compared = gold.compare(posterior, truth)
    table = compared.channels
    low, high = 0.5 - 1.96 * 0.5, 0.5 + 1.96 * 0.5
    levels = (np.arange(2000) + 0.5) / 2000
    distance = np.abs(stats.norm.ppf(levels) - stats.norm(0.5, 0.5).ppf(levels)).mean()
    assert table["mean_error"].to_numpy() == pytest.approx(0.5, abs=0.04)
    assert table["sd_ratio"].to_numpy() == pytest.approx(0.5, abs=0.02)
    assert table["wasserstein"].to_numpy() == pytest.approx(distance, abs=0.04)
    expected = stats.norm.cdf(high) - stats.norm.cdf(low)
    assert table["coverage"].to_numpy() == pytest.approx(expected, abs=0.02)
    assert list(table["covers_truth"]) == [True, True, False]
    assert "too narrow" in compared.verdict


def test_refusals(gaussian, dirichlet, loader, reference):
    with pytest.raises(ConfigError, match="warmup: expected an integer of at least 1, got 0"):
        nuts(gaussian.switched(), loader, warmup=0)
    with pytest.raises(DataError, match="nuts: expected all 7 examples"):
        nuts(gaussian.switched(num_data=7), loader)
    wide = torch.nn.Sequential(torch.nn.Linear(1, 501), torch.nn.ReLU(), torch.nn.Linear(501, 1))
    groups = bp.trace_groups(wide, torch.zeros(1, 1))
    switched = bp.SwitchedNetwork(wide, groups, gaussian.prototype, num_data=200)
    with pytest.raises(ConfigError, match="at most 500 latent variables, got 501"):
        nuts(switched, loader)
    improper = bp.SwitchedNetwork(
        gaussian.network, gaussian.groups, bp.switches.HardConcrete(), num_data=200
    )
    with pytest.raises(ConfigError, match=r"nuts: .*improper.* 0 \(HardConcrete\)"):
        nuts(improper, loader)
    other = bp.SwitchPosterior({"fc": gaussian.prototype.bind(3)}, [])
    with pytest.raises(PlanError, match="expected a posterior of the groups {'0': 3}"):
        reference.compare(other)
    with pytest.raises(PlanError, match="expected a truth of the groups {'0': 3}"):
        reference.compare(gaussian.posterior(loader), {"0": torch.zeros(2)})
