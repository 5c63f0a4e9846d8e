"""Pareto k-hat on posteriors that are known."""

import pytest
import torch

import bayesprune as bp
from bayesprune.diagnostics import ParetoK, pareto_k
from bayesprune.errors import ConfigError, DataError

DRAWS = 200


@pytest.fixture(scope="module")
def loader(toy):
    torch.manual_seed(0)
    truth = toy.switched().guide.switches[0].prior_sample(1)[0]
    (batch,) = toy.simulate({"0": truth}, 0)
    return toy.loader(batch[1], batch_size=120)  # more than one batch


def test_exact_guides_have_constant_weights(toy, loader):
    found = pareto_k(toy.exact(loader), loader, num_draws=DRAWS, progress=False)
    targets = torch.cat([batch[1] for batch in loader])
    # p(data, z) / q(z) is p(data) for every z, which the conjugate model has in closed form.
    assert found.elbo == pytest.approx(toy.log_evidence(targets), abs=1e-3)
    assert found.log_evidence == pytest.approx(found.elbo, abs=1e-3)
    assert found.ess == pytest.approx(DRAWS, rel=1e-3)
    assert found.k < 0.7
    assert found.is_good
    assert found.latents == toy.channels
    assert "close enough" in found.verdict


def test_wrong_guides_are_found_out(toy, loader):
    found = pareto_k(toy.exact(loader, 4.0), loader, num_draws=2000, progress=False)
    assert found.k > 0.7
    assert not found.is_good
    assert found.ess < 400
    assert "misses" in found.verdict


def test_leaves_network_and_random_numbers_alone(gaussian):
    loader = gaussian.simulate({"0": torch.zeros(3)}, 0)
    switched = gaussian.exact(loader).train()
    before, state = torch.get_rng_state(), {n: v.clone() for n, v in switched.state_dict().items()}
    one, other = (pareto_k(switched, loader, num_draws=100, progress=False) for _ in range(2))
    assert one == other
    assert switched.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, state[n]) for n, v in switched.state_dict().items())


def test_thresholds_grow_with_draws_to_seven_tenths():
    levels = [ParetoK(0.5, n, 1, 0.0, 0.0, 1.0).threshold for n in (100, 1000, 3000, 10_000)]
    assert levels == pytest.approx([0.5, 2 / 3, 0.7, 0.7])


def test_refusals(gaussian):
    loader = gaussian.simulate({"0": torch.zeros(3)}, 0)
    switched = gaussian.exact(loader)
    with pytest.raises(ConfigError, match="num_draws: expected an integer of at least 100, got 10"):
        pareto_k(switched, loader, num_draws=10)
    part = gaussian.loader(torch.zeros(7, 3))
    with pytest.raises(DataError, match="pareto_k: expected all 200 examples .* got 7"):
        pareto_k(switched, part, num_draws=100)
    improper = bp.SwitchedNetwork(
        gaussian.network, gaussian.groups, bp.switches.NormalJeffreys(), num_data=200
    )
    with pytest.raises(ConfigError, match=r"pareto_k: .* improper.*: 0 \(NormalJeffreys\)"):
        pareto_k(improper, loader)
    tempered = bp.SwitchedNetwork(
        gaussian.network, gaussian.groups, gaussian.prototype, num_data=200, kl_weight=0.5
    )
    with pytest.raises(ConfigError, match=r"pareto_k: expected kl_weight 1, got {'0': 0.5}"):
        pareto_k(tempered, loader)
    weighted = bp.SwitchedNetwork(
        gaussian.network,
        gaussian.groups,
        gaussian.prototype,
        num_data=200,
        train_weights=True,
        weight_posterior=bp.GaussianWeights(),
    )
    with pytest.raises(ConfigError, match="pareto_k: expected fixed weights"):
        pareto_k(weighted, loader)
