"""What single families promise beyond the contract: priors, rules, evidence."""

import math

import pytest
import torch
from scipy import integrate, stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bayesprune as bp
from bayesprune.errors import ConfigError
from bayesprune.posterior import SwitchPosterior
from bayesprune.svi import negative_elbo
from bayesprune.switches import (
    FAMILIES,
    BayesianGroupLasso,
    Bernoulli,
    Dirichlet,
    HardConcrete,
    Horseshoe,
    InformationBottleneck,
    LogNormal,
    NormalJeffreys,
    Radial,
    SpikeAndSlab,
)
from bayesprune.switches.log_normal import HIGH, LOW

every = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)


def set_(switch, **values):
    with torch.no_grad():
        for name, value in values.items():
            getattr(switch, name).copy_(torch.as_tensor(value))
    return switch.double()


# Every family in a network -----------------------------------------------------------------------


@pytest.fixture
def toy():
    """A layer of which units 0 and 1 make the label and the others nothing."""
    network = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2))
    inputs = torch.randn(512, 2)
    labels = (inputs.abs().sum(1) > 1.5).long()
    with torch.no_grad():
        network[0].weight.copy_(
            torch.tensor([[3.0, 0], [0, 3], [0.1, 0], [0, 0.1], [0.1, 0.1], [0, 0]])
        )
        network[0].bias.zero_()
    bp.train_network(
        network,
        DataLoader(TensorDataset(inputs, labels), batch_size=64),
        bp.TrainConfig(epochs=10, learning_rate=0.02),
        progress=False,
    )
    return network, DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)


@every
@pytest.mark.parametrize("train_weights", [False, True], ids=["frozen", "joint"])
def test_every_family_fits_selects_and_removes(toy, family, train_weights):
    network, loader = toy
    groups = bp.trace_groups(network, torch.zeros(1, 2))
    switched = bp.SwitchedNetwork(
        network, groups, family(), num_data=512, keep=0.5, train_weights=train_weights
    )
    before = {n: p.detach().clone() for n, p in switched.guide.named_parameters()}
    posterior = bp.fit_switches(switched, loader, epochs=3, kl_warmup=0.5, progress=False)
    after = dict(switched.guide.named_parameters())
    assert all(after[n].isfinite().all() and (after[n] != p).any() for n, p in before.items())
    plan = bp.select(posterior, groups=groups)  # the family's own rule
    assert 1 <= len(plan.kept["0"]) <= 6
    small = bp.remove_channels(switched.fold(posterior.mean), plan, torch.zeros(1, 2))
    assert small(torch.zeros(3, 2)).shape == (3, 2)


@every
def test_no_site_falls_back_to_draws(toy, family):
    """A site without a divergence in closed form would be refused."""
    network, loader = toy
    groups = bp.trace_groups(network, torch.zeros(1, 2))
    switched = bp.SwitchedNetwork(network, groups, family(), num_data=512, keep=0.5)
    loss = negative_elbo(switched, bp.AnalyticMean(), *next(iter(loader))).loss
    assert loss.isfinite()
    loss.backward()


@every
def test_posteriors_are_saved_and_read(toy, family, tmp_path):
    switch = family().bind(6, 3.0, fan_in=25.0)
    SwitchPosterior({"0": switch}, []).save(tmp_path / "posterior.safetensors")
    again = SwitchPosterior.load(tmp_path / "posterior.safetensors")
    assert again.switches["0"].fan_in == 25.0
    assert torch.equal(again.mean["0"], switch.mean())
    assert torch.equal(again.scores("margin").values["0"], switch.importance() - switch.threshold())


@every
def test_only_proper_priors_are_handed_to_arviz(family):
    posterior = SwitchPosterior({"0": family().bind(6, 3.0, fan_in=25.0)}, [])
    data = posterior.to_arviz(num_draws=20)
    groups = [str(g).strip("/") for g in (data.groups() if callable(data.groups) else data.groups)]
    assert ("prior" in groups) == posterior.has_prior
    # The spike is a probability of points, which the factor relaxes: no densities to compare.
    comparable = posterior.has_prior and family is not SpikeAndSlab
    assert ("lp_prior" in data["sample_stats"]) == comparable
    assert posterior.has_prior == (
        family not in (HardConcrete, Bernoulli, NormalJeffreys, InformationBottleneck)
    )
    if not posterior.has_prior:
        with pytest.raises(ConfigError, match="improper"):
            posterior.prior_sample(1)


# Priors ------------------------------------------------------------------------------------------


def test_horseshoe_prior_is_a_product_of_half_cauchy_scales():
    """Given the group's scale, gates are half-Cauchy; across groups so is the scale."""
    switch = Horseshoe(global_scale=0.3).bind(1).double()
    draws = {n: s.prior.sample((200_000,))[:, 0] for n, s in switch.sites().items()}
    for name, scale in (("global", 0.3), ("local", 1.0)):
        root = (draws[f"{name}_a"] * draws[f"{name}_b"]).sqrt()
        assert stats.kstest(root.numpy(), stats.halfcauchy(scale=scale).cdf).pvalue > 1e-3
        for q in (0.1, 0.5, 0.9):
            expected = stats.halfcauchy(scale=scale).ppf(q)
            assert root.quantile(q).item() == pytest.approx(expected, rel=0.03)


def test_horseshoe_starts_from_open_gates_at_the_least_cost():
    switch = Horseshoe().bind(5)
    torch.testing.assert_close(switch.mean(), torch.ones(5), rtol=1e-3, atol=0)
    for name in ("local_a", "local_b"):  # to shift a local scale costs
        site = switch.sites()[name]
        kl = torch.distributions.kl_divergence(site.factor, site.prior)
        (slope,) = torch.autograd.grad(kl, getattr(switch, f"{name}_loc"))
        assert slope.abs().max() < 1e-3


def test_radial_prior_of_the_radius_is_half_cauchy():
    switch = Radial(radius_scale=0.2).bind(1, fan_in=9.0).double()
    draws = {n: s.prior.sample((100_000,))[:, 0] for n, s in switch.sites().items()}
    root = (draws["radius_a"] * draws["radius_b"]).sqrt()
    assert stats.kstest(root.numpy(), stats.halfcauchy(scale=0.2).cdf).pvalue > 1e-3


def test_weights_under_a_bayesian_group_lasso_have_norms_of_the_group_lasso():
    """With w ~ N(0, τ²), p(w) ∝ exp(-λ|w|): the norm is Gamma(d, λ) distributed."""
    dim, strength = 7, 1.5
    switch = BayesianGroupLasso(strength=strength).bind(1, fan_in=float(dim)).double()
    scales = switch.prior_sample(100_000)
    norms = (scales * torch.randn(100_000, dim, dtype=torch.double)).norm(dim=1)
    rate = strength * dim**0.5
    assert stats.kstest(norms.numpy(), stats.gamma(dim, scale=1 / rate).cdf).pvalue > 1e-3


def test_penalties_count_weights():
    for family in (HardConcrete, Bernoulli):
        switch = family(penalty=0.2).bind(4, fan_in=25.0)
        site = switch.sites()["gate"]
        kl = torch.distributions.kl_divergence(site.factor, site.prior)
        torch.testing.assert_close(kl, 0.2 * 25 * switch.active_probability().sum())


@pytest.mark.parametrize(
    ("network", "example", "expected"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 5), nn.Conv2d(4, 2, 1)), (1, 3, 8, 8), 75),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1)),
         (1, 3, 8, 8), 3),
        (nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)), (1, 6), 6),
    ],
    ids=["convolution", "depthwise", "linear"],
)  # fmt: skip
def test_fan_in_is_read_off_the_network(network, example, expected):
    groups = bp.trace_groups(network, torch.zeros(example))
    switched = bp.SwitchedNetwork(network, groups, HardConcrete(), num_data=1)
    assert dict(switched.guide.items())["0"].fan_in == expected


# Rules -------------------------------------------------------------------------------------------


def kept(switch):
    """What the family's own rule keeps."""
    return (switch.importance() >= switch.threshold()).tolist()


def test_log_normal_keeps_a_signal_above_the_noise():
    switch = set_(LogNormal().bind(3), loc=[0.0, -5.0, -10.0], log_scale=[-5.0, 0.0, 2.0])
    torch.testing.assert_close(switch.importance(), switch.mean() / switch.sd())
    assert kept(switch) == [True, False, False]


def test_normal_jeffreys_keeps_dropout_rates_below_095():
    sd = torch.tensor([0.1, 4.0, 5.0])  # alpha 0.01, 16, 25; log alpha 3 is 20.1
    assert kept(set_(NormalJeffreys().bind(3), log_scale=sd.log())) == [True, True, False]


def test_information_bottleneck_keeps_means_above_the_spread():
    switch = set_(InformationBottleneck().bind(2), log_scale=torch.tensor([0.9, 1.1]).log())
    assert kept(switch) == [True, False]


def test_hard_concrete_removes_gates_that_are_zero_without_noise():
    values = torch.tensor([-4.0, -2.5, -2.3, 0.0, 4.0])
    switch = set_(HardConcrete().bind(5), log_alpha=values)
    without_noise = (values.sigmoid() * 1.2 - 0.1).clamp(0, 1)
    assert kept(switch) == (without_noise > 0).tolist()


def test_bernoulli_keeps_likely_gates():
    assert kept(set_(Bernoulli().bind(2), phi=[-0.01, 0.01])) == [False, True]


def test_spike_and_slab_keeps_likely_channels_whatever_the_slab():
    switch = set_(SpikeAndSlab(Horseshoe()).bind(2), logit=[-0.1, 0.1])
    assert kept(switch) == [False, True]
    assert switch.active_probability().tolist() == pytest.approx([0.475, 0.525], abs=1e-3)


@pytest.mark.parametrize("family", [Horseshoe, BayesianGroupLasso, Radial])
def test_scales_are_split_midway(family):
    switch = family().bind(3).double()
    loc = {Horseshoe: "local_a_loc", BayesianGroupLasso: "variance_loc", Radial: "radius_a_loc"}
    with torch.no_grad():
        getattr(switch, loc[family]).sub_(torch.tensor([0.0, 1.0, 9.0]))
    assert kept(switch) == [True, True, False]


def test_dirichlet_keeps_half_open_gates():
    switch = Dirichlet(total=2).bind(4)
    with torch.no_grad():
        switch.factor_concentration_unconstrained.copy_(torch.tensor([9.0, 9.0, 1.0, -5.0]))
    assert kept(switch) == (switch.mean() >= 0.5).tolist()


# Evidence ----------------------------------------------------------------------------------------


@pytest.fixture
def log_normal():
    loc, log_scale = [0.0, -1.0, -6.0, -15.0, -19.0], [-5.0, -1.0, 1.0, 2.0, 0.5]
    return set_(LogNormal().bind(5), loc=loc, log_scale=log_scale)


def density(switch, i):
    """The factor's density of the log gate."""
    loc, scale = switch.loc[i].item(), switch.log_scale[i].exp().item()
    return stats.truncnorm((LOW - loc) / scale, (HIGH - loc) / scale, loc, scale).pdf


def test_evidence_is_the_mean_ratio_under_the_reduced_prior(log_normal):
    """ΔF = ln E[q / p] with the reduced prior, a half normal of width 1e-6 at the lower end."""
    gain = log_normal.evidence()
    for i in range(5):
        # So narrow a prior sees the density at the end.
        expected = density(log_normal, i)(LOW + 1e-6) * (HIGH - LOW)
        if expected > 1e-290:
            assert gain[i].item() == pytest.approx(math.log(expected), rel=1e-4)
        else:
            assert gain[i] < -600
    assert gain[0] < 0 < gain[4]


@pytest.mark.parametrize("bits", [4, 8])
def test_evidence_of_small_gates_is_the_ratio_of_masses(log_normal, bits):
    gain = log_normal.evidence(bits)
    low, high = -23 * math.log(2), -bits * math.log(2)
    for i in (1, 2, 3, 4):
        mass = integrate.quad(density(log_normal, i), low, high)[0]
        prior = (high - low) / (HIGH - LOW)
        if mass > 1e-12:
            assert gain[i].item() == pytest.approx(math.log(mass / prior), rel=1e-6)


def test_evidence_decides_unless_a_rule_is_given(log_normal):
    posterior = SwitchPosterior({"a": log_normal.float()}, [])
    assert isinstance(posterior.default_rule(), bp.EvidenceStop)
    assert isinstance(SwitchPosterior({"a": Dirichlet().bind(2)}, []).default_rule(), bp.FamilyRule)
    network = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    groups = bp.trace_groups(network, torch.zeros(1, 3))
    posterior = SwitchPosterior({"0": log_normal}, [])
    plan = bp.select(posterior, groups=groups)
    gain = log_normal.evidence()
    assert plan.kept["0"] == (gain < 0).nonzero()[:, 0].tolist()
    assert bp.select(posterior, bp.EvidenceStop(4), groups=groups).kept["0"]
    assert bp.select(posterior, bp.FamilyRule(), groups=groups).kept["0"] == [0, 1]


def test_scores_alone_need_a_rule():
    network = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    groups = bp.trace_groups(network, torch.zeros(1, 3))
    scores = bp.ChannelScores({"0": torch.arange(5.0)}, "order")
    with pytest.raises(ConfigError, match="rule"):
        bp.select(scores, groups=groups)


def test_families_without_evidence_say_so():
    with pytest.raises(ConfigError, match="Horseshoe"):
        SwitchPosterior({"a": Horseshoe().bind(2)}, []).scores("evidence")


@pytest.mark.parametrize("bits", [0, 23, -1])
def test_bits_out_of_range(bits):
    with pytest.raises(ConfigError, match="bits"):
        bp.EvidenceStop(bits)


@pytest.mark.parametrize("level", [1e-4, 1e-2, 0.05])
def test_small_shares_are_drawn_with_gradients_as_they_are(level):
    size = 8
    switch = Dirichlet(init=level).bind(size)
    factor = switch.sites()["share"].factor
    torch.manual_seed(0)
    shares = factor.rsample((100_000,))
    square = (level + 1) / (size * level + 1)  # E sum of squared shares
    found = shares.detach().square().sum(-1)
    assert (found.mean() - square).abs() < 5 * found.std() / math.sqrt(len(found)) + 1e-5


def test_the_gradient_of_small_shares_is_that_of_their_mean():
    size, level = 8, 0.05
    weights = torch.arange(float(size))
    slopes = []
    for seed in range(400):
        torch.manual_seed(seed)
        concentration = torch.full((size,), level, requires_grad=True)
        shares = type(Dirichlet().bind(size).sites()["share"].factor)(concentration)
        (shares.rsample((64,)) @ weights).mean().backward()
        slopes.append(concentration.grad)
    slopes = torch.stack(slopes)
    exact = (weights - weights.mean()) / (size * level)
    assert ((slopes.mean(0) - exact).abs() < 5 * slopes.std(0) / math.sqrt(len(slopes))).all()


def test_a_direction_in_a_space_of_a_whole_dimension():
    switch = Radial().bind(3, fan_in=44.25)  # filters of several sizes behind each other
    assert switch.dim == 44
    assert switch.sample(10).isfinite().all()
