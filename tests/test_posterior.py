"""The posterior object: summaries against draws, hand-over to ArviZ, and the way to disk."""

import contextlib
import copy
import importlib
import math
import warnings

import arviz as az
import numpy as np
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.text import Text
from torch import nn

import bayesprune as bp
from bayesprune.checkpoint import load_state, save_state
from bayesprune.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FitError,
    PlanError,
)
from bayesprune.selection import FamilyRule, Probability
from bayesprune.switches import Dirichlet, InformationBottleneck, LogisticNormal, Switch

HISTORY = [
    {"stage": "fit", "epoch": 1, "loss": 2.1, "elbo": -2.1, "nll": 2.0, "kl": 0.1},
    {"stage": "fit", "epoch": 2, "loss": 1.7, "elbo": -1.7, "nll": 1.5, "kl": 0.2},
]
ORIGINAL = {"conv": torch.tensor([1, 4, 6, 7, 9])}
DRAWS = 20_000
OLD_ARVIZ = az.__version__.startswith("0.")


def bound(prototype, size, keep=None):
    switch = prototype.bind(size, keep)
    with torch.no_grad():
        for parameter in switch.parameters():
            parameter += torch.linspace(-1.5, 1.5, size)[torch.randperm(size)]
    return switch


@pytest.fixture
def posterior():
    switches = {
        "conv": bound(Dirichlet(), 5),
        "block.fc": bound(Dirichlet(0.5, total="keep"), 7, keep=2),
        "last": bound(LogisticNormal(rank="full"), 3),
    }
    return bp.SwitchPosterior(switches, HISTORY, ORIGINAL)


# Summaries ---------------------------------------------------------------------------------------


def test_is_independent_of_the_network_it_came_from():
    switch = bound(Dirichlet(), 5)
    posterior = bp.SwitchPosterior({"conv": switch}, [])
    before = posterior.mean["conv"]
    with torch.no_grad():
        switch.factor_concentration_unconstrained.zero_()
    assert torch.equal(posterior.mean["conv"], before)
    assert not any(p.requires_grad for p in posterior.switches["conv"].parameters())
    assert switch.factor_concentration_unconstrained.requires_grad


def test_summaries_agree_with_draws(posterior):
    draws = posterior.sample(DRAWS)
    assert list(draws) == posterior.names == ["conv", "block.fc", "last"]
    for name, gates in draws.items():
        assert gates.shape == (DRAWS, posterior.switches[name].size)
        # The last group's own summaries are from 4096 draws.
        error = 5 * math.sqrt(1 / DRAWS + (1 / 4096 if name == "last" else 0))
        sd = gates.std(0)
        assert ((gates.mean(0) - posterior.mean[name]).abs() < error * sd).all()
        torch.testing.assert_close(posterior.sd[name], sd, rtol=0.1, atol=0)
        below = (gates <= posterior.quantile(0.8)[name]).float().mean(0)
        assert ((below - 0.8).abs() < error * 0.4).all()
        keep = posterior.keep_probability(0.6)[name]
        assert ((keep - (gates >= 0.6).float().mean(0)).abs() < error * 0.5 + 1e-6).all()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda p: p.rank_probability(2.5),
            "conv: asked for the best 2.5 of 5 channels; .* 1 to 5",
        ),
        (lambda p: p.rank_probability(True), "conv: asked for the best True"),
        (lambda p: p.rank_probability({"conv": 2}), "block.fc: asked for the best None of 7"),
        (lambda p: p.rank_probability({"fc9": 2}), "unknown groups fc9; groups: conv, block.fc"),
        (lambda p: p.quantile(1.5), r"quantile: expected a level in \(0, 1\), got 1.5"),
        (lambda p: p.sample(0), "num_draws: expected an integer of at least 1, got 0"),
        (lambda p: p.sample(True), "num_draws: expected an integer of at least 1, got True"),
        (lambda p: p.prior_sample(2.0), "num_draws: expected an integer of at least 1, got 2.0"),
        (lambda p: p.to_arviz(0), "num_draws"),
        (lambda p: p.scores("above:1.2.3"), "'evidence' or 'draws:N', got 'above:1.2.3'"),
        (lambda p: p.scores(0.5), "'evidence' or 'draws:N', got 0.5"),
    ],
)
def test_questions_without_an_answer(posterior, ask, message):
    with pytest.raises(PlanError, match=message):
        ask(posterior)


def test_rank_probability(posterior):
    counts = {"conv": 2, "block.fc": 3, "last": 1}
    found = posterior.rank_probability(counts)
    for name, gates in posterior.sample(DRAWS, seed=7).items():
        k = counts[name]
        assert found[name].sum().item() == pytest.approx(k, rel=1e-4)
        threshold = gates.sort(1, descending=True).values[:, k - 1 : k]
        expected = (gates >= threshold).float().mean(0)
        torch.testing.assert_close(found[name], expected, rtol=0, atol=5 * 0.5 / math.sqrt(4000))
    assert all(
        (p == 1).all()
        for p in bp.SwitchPosterior({"conv": bound(Dirichlet(), 5)}, [])
        .rank_probability(5)
        .values()
    )
    for wrong in (0, 4, {"conv": 1}):
        with pytest.raises(PlanError, match="of 3 channels|of 7 channels|of 5 channels"):
            posterior.rank_probability(wrong)


def test_draws_are_reproducible_and_leave_the_generator_alone(posterior):
    state = torch.get_rng_state()
    first, again, other = (posterior.sample(3, seed) for seed in (0, 0, 1))
    prior = posterior.prior_sample(3)
    posterior.summary()
    posterior.to_arviz(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first["conv"], again["conv"])
    assert not torch.equal(first["conv"], other["conv"])
    assert prior["conv"].shape == (3, 5)


@pytest.mark.parametrize("measure", ["importance", "mean", "snr", "above:0.5", "above:1e-3"])
def test_scores(posterior, measure):
    scores = posterior.scores(measure)
    assert scores.measure == measure
    for name in posterior.names:
        value, mean = scores.values[name], posterior.mean[name]
        if measure == "importance":
            mass = {"conv": 5, "block.fc": 2, "last": 3}[name]
            torch.testing.assert_close(value, mean * len(mean) / mass)
        elif measure == "mean":
            assert torch.equal(value, mean)
        elif measure == "snr":
            torch.testing.assert_close(value, mean / posterior.sd[name])
        else:
            threshold = float(measure.removeprefix("above:"))
            assert torch.equal(value, posterior.keep_probability(threshold)[name])


@pytest.mark.parametrize("measure", ["", "median", "above:", "above:x", "above:0.5:1"])
def test_unknown_scores(posterior, measure):
    with pytest.raises(PlanError, match="expected 'importance'"):
        posterior.scores(measure)


def test_what_scores_rank_by_in_words() -> None:
    switches = {"a": InformationBottleneck().bind(2), "b": Dirichlet().bind(2)}
    posterior = bp.SwitchPosterior(switches, [])
    own = "the log of squared mean over variance of the gate"
    size = "the probability that the size of the gate is at least 0.3"
    assert [posterior.ranks_by(m) for m in ("importance", "margin", "draws:8")] == 3 * [own]
    assert posterior.ranks_by("snr") == "the signal to noise ratio of the gate"
    assert posterior.ranks_by("above:0.3") == size
    assert posterior.ranks_by("mean") is None
    assert bp.SwitchPosterior({"b": switches["b"]}, []).ranks_by() is None


def test_signal_to_noise_of_certain_gates_is_finite():
    sure = Dirichlet().bind(20)
    with torch.no_grad():
        sure.factor_concentration_unconstrained[0] = 1e9
    posterior = bp.SwitchPosterior({"one": Dirichlet().bind(1), "sure": sure}, [])
    values = posterior.scores("snr").values
    assert values["sure"].argmax() == 0
    assert values["one"] > 1e6


def test_summary(posterior):
    table = posterior.summary()
    assert list(table.columns) == [
        "layer", "channel", "mean", "sd", "eti_3%", "eti_97%", "importance"
    ]  # fmt: skip
    assert table["layer"].tolist() == 5 * ["conv"] + 7 * ["block.fc"] + 3 * ["last"]
    assert table["channel"].tolist() == [1, 4, 6, 7, 9, *range(7), *range(3)]
    assert (table["eti_3%"] <= table["eti_97%"]).all()
    assert np.isfinite(table.drop(columns="layer")).all(axis=None)
    assert "<table" in posterior._repr_html_()
    assert repr(posterior) == "SwitchPosterior of conv (5), block.fc (7), last (3)"


@pytest.mark.parametrize(
    "channels", [{"conv": torch.arange(4)}, {"other": torch.arange(5)}], ids=["short", "unknown"]
)
def test_channels_that_do_not_fit(channels):
    with pytest.raises(PlanError, match="channels"):
        bp.SwitchPosterior({"conv": bound(Dirichlet(), 5)}, [], channels)


# ArviZ -------------------------------------------------------------------------------------------

PLAN = bp.PruningPlan(
    kept={"conv": [4, 9], "block.fc": [0, 1, 2]}, sizes={"conv": 12, "block.fc": 7}
)


def test_to_arviz(posterior):
    data = posterior.to_arviz(200, PLAN)
    assert isinstance(data, az.InferenceData if az.__version__.startswith("0.") else xr.DataTree)
    gates = data["posterior"]["gate"]
    assert gates.dims == ("chain", "draw", "switch")
    assert gates.shape == (1, 200, 15)
    assert data["prior"]["gate"].shape == (1, 200, 15)
    assert gates.coords["layer"].values.tolist() == posterior.summary()["layer"].tolist()
    assert gates.coords["channel"].values.tolist() == posterior.summary()["channel"].tolist()
    means = gates.groupby("layer").mean().mean(("chain", "draw"))
    assert set(means["layer"].values) == set(posterior.names)
    conv = gates.values[0, :, gates.coords["layer"].values == "conv"].T
    np.testing.assert_allclose(conv.mean(0), posterior.mean["conv"], atol=0.4)
    np.testing.assert_allclose(conv.sum(1), 5, rtol=1e-5)
    constant = data["constant_data"]
    np.testing.assert_allclose(constant["mean"][:5], posterior.mean["conv"])
    np.testing.assert_allclose(constant["sd"][:5], posterior.sd["conv"])
    assert constant["kept"].values.tolist() == [0, 1, 0, 0, 1] + [1, 1, 1, 0, 0, 0, 0] + 3 * [1]
    assert data["fit_history"]["elbo"].values.tolist() == [-2.1, -1.7]
    assert data["fit_history"]["epoch"].values.tolist() == [1, 2]


def test_log_densities(posterior):
    """Their mean difference is the divergence, as the draws are from the guide."""
    stats = posterior.to_arviz(4000)["sample_stats"]
    ratio = (stats["lp_guide"] - stats["lp_prior"]).values
    assert np.isfinite(ratio).all()
    kl = sum(
        torch.distributions.kl_divergence(site.factor, site.prior).item()
        for switch in posterior.switches.values()
        for site in switch.sites().values()
    )
    assert abs(ratio.mean() - kl) < 5 * ratio.std() / math.sqrt(ratio.size)


@contextlib.contextmanager
def quiet_arviz():
    """Warnings are errors, apart from those that ArviZ 0.x has of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning, module="arviz")
        yield


def test_arviz_summarises_what_it_is_given(posterior):
    data = posterior.to_arviz(100)
    with quiet_arviz():
        summary = az.summary(data, var_names=["gate"], kind="stats")
    assert list(summary.index[:2]) == ["gate[conv:1]", "gate[conv:4]"]
    assert len(summary) == 15
    np.testing.assert_allclose(
        summary["mean"].astype(float), data["posterior"]["gate"].mean(("chain", "draw")), atol=0.01
    )


def _ecdf(data, coords):
    if not OLD_ARVIZ:
        return az.plot_dist(data, var_names=["gate"], coords=coords, kind="ecdf")
    axes = plt.figure().subplots()
    for name in coords["switch"]:
        values = data["posterior"]["gate"].sel(switch=name).values.ravel()
        az.plot_ecdf(values, eval_points=np.sort(values), ax=axes)
    return axes


def _ridge(data, **choice):
    return (
        az.plot_forest(data, kind="ridgeplot", **choice)
        if OLD_ARVIZ
        else az.plot_ridge(data, **choice)
    )


@pytest.mark.parametrize("kind", ["forest", "ridge", "ecdf", "pair"])
def test_arviz_draws_what_it_is_given(posterior, kind):
    data = posterior.to_arviz(100, PLAN)
    choice = {"var_names": ["gate"], "coords": {"switch": ["conv:1", "conv:4", "last:0"]}}
    draw = {
        "forest": lambda: az.plot_forest(data, **choice),
        "ridge": lambda: _ridge(data, **choice),
        "ecdf": lambda: _ecdf(data, choice["coords"]),
        "pair": lambda: az.plot_pair(data, **choice),
    }
    with quiet_arviz():
        draw[kind]()
    figure = plt.gcf()
    drawn = [item for axes in figure.axes for item in (*axes.lines, *axes.collections)]
    shown = " ".join(text.get_text() for text in figure.findobj(Text))
    plt.close("all")
    assert len(drawn) >= 3  # one of each channel, or of each pair
    assert kind == "ecdf" or all(name in shown for name in choice["coords"]["switch"])


def test_netcdf(fitted, tmp_path):
    posterior, switched, loader = fitted
    plan = bp.PruningPlan(kept={"0": [1, 2]}, sizes={"0": 4})
    data = posterior.to_arviz(50, plan, switched=switched, loader=loader)
    path = tmp_path / "posterior.nc"
    data.to_netcdf(path, engine="h5netcdf")
    again = az.from_netcdf(path, engine="h5netcdf")
    for group in (
        "posterior", "prior", "sample_stats", "log_likelihood", "observed_data", "constant_data",
        "fit_history",
    ):  # fmt: skip
        one, other = (xr.Dataset(tree[group].data_vars) for tree in (data, again))
        xr.testing.assert_equal(one, other)
    coords = again["posterior"].coords
    assert coords["layer"].values.tolist() == 4 * ["0"]
    assert coords["switch"].values.tolist() == [f"0:{channel}" for channel in range(4)]


# The likelihood of each example -------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    """A posterior, its network and the data, whose labels go by the first two of four channels."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3)).eval()
    inputs = torch.randn(90, 3)
    with torch.no_grad():
        logits = network[3](4 * network[1](network[0](inputs)) * torch.tensor([1.0, 1, 0, 0]))
    labels = torch.distributions.Categorical(logits=logits).sample()
    loader = [(inputs[:60], labels[:60]), (inputs[60:], labels[60:])]
    return *_fit(network, loader, Dirichlet()), loader


def _fit(network, loader, family):
    groups = bp.trace_groups(network, loader[0][0])
    switched = bp.SwitchedNetwork(network, groups, family, num_data=90)
    posterior = bp.fit_switches(
        switched, loader, epochs=60, estimator=bp.Implicit(4, "group"), progress=False
    )
    return posterior, switched


def test_likelihood_of_each_example_under_each_draw(fitted):
    posterior, switched, loader = fitted
    state = torch.get_rng_state()
    switched.train()
    data = posterior.to_arviz(7, switched=switched, loader=loader)
    assert switched.training
    switched.eval()
    assert torch.equal(torch.get_rng_state(), state)
    inputs, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    found = data["log_likelihood"]["targets"]
    assert found.dims == ("chain", "draw", "example")
    for draw, gates in enumerate(data["posterior"]["gate"].values[0]):
        plain = switched.fold({"0": torch.tensor(gates)}).eval()
        with torch.no_grad():
            expected = -nn.functional.cross_entropy(plain(inputs), labels, reduction="none")
        np.testing.assert_allclose(found.values[0, draw], expected, atol=1e-5)
    assert data["observed_data"]["targets"].dims == ("example",)
    assert data["observed_data"]["targets"].values.tolist() == labels.tolist()


def test_likelihood_of_several_targets(fitted):
    """A network with a two-dimensional target per example, and two inputs."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    switched = bp.SwitchedNetwork(
        network,
        bp.trace_groups(network, torch.zeros(1, 3)),
        Dirichlet(),
        num_data=5,
        likelihood=lambda output: dist.Normal(output, 2.0).to_event(1),
    )
    loader = [(torch.randn(5, 3), torch.randn(5, 2))]
    data = fitted[0].to_arviz(2, switched=switched, loader=loader)
    assert data["log_likelihood"]["targets"].shape == (1, 2, 5)
    assert data["observed_data"]["targets"].dims == ("example", "target_dim_1")


def test_leaving_one_out(fitted):
    """Priors side by side."""
    posterior, switched, loader = fitted
    network = switched.fold({})
    other = _fit(network, loader, Dirichlet(0.1))
    results = {}
    for name, (gates, net) in {"1": (posterior, switched), "0.1": other}.items():
        data = gates.to_arviz(500, switched=net, loader=loader)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = results[name] = az.loo(data, pointwise=True)
        shown = any("shape parameter of Pareto" in str(warning.message) for warning in caught)
        assert shown == bool(result.warning) == bool((result.pareto_k > result.good_k).any())
    with quiet_arviz():
        assert set(az.compare(results).index) == {"1", "0.1"}


@pytest.mark.skipif(OLD_ARVIZ, reason="ArviZ 1.x has loo_approximate_posterior")
def test_leaving_one_out_of_an_approximation(fitted):
    """A guide that is sure of the wrong channels: plain leave-one-out does not see it."""
    _, first, loader = fitted
    posterior, switched = _fit(first.fold({}), loader, Dirichlet(2.0))

    def plain_and_corrected(gates):
        data = gates.to_arviz(500, switched=switched, loader=loader)
        stats = data["sample_stats"]
        joint = stats["lp_prior"] + data["log_likelihood"]["targets"].sum("example")
        corrected = az.loo_approximate_posterior(data, joint, stats["lp_guide"], pointwise=True)
        return az.loo(data, pointwise=True), corrected

    for good in plain_and_corrected(posterior):
        assert good.pareto_k.max() < 0.7
    wrong = copy.deepcopy(posterior)
    with torch.no_grad():
        for parameter in wrong.switches["0"].parameters():
            parameter.copy_(parameter.flip(0) + 3)
    with pytest.warns(UserWarning, match="shape parameter of Pareto"):
        plain, corrected = plain_and_corrected(wrong)
    assert plain.pareto_k.max() < 0.7
    assert corrected.pareto_k.max() > 0.7
    assert corrected.warning


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loader": None}, ConfigError, "switched and loader go together, got no loader"),
        ({"switched": None}, ConfigError, "go together, got no switched"),
        ({"loader": []}, DataError, "loader: expected at least 1 batch, got 0"),
        ({"loader": [torch.zeros(2)]}, DataError, "loader: expected batches"),
        (
            {"loader": [(torch.full((2, 3), math.nan), torch.zeros(2).long())]},
            FitError,
            "log likelihood of batch 0: Expected parameter logits",
        ),
        (
            {"loader": [(torch.zeros(2, 3), torch.full((2,), 3))]},
            FitError,
            "log likelihood of batch 0: Expected value",
        ),
    ],
)
def test_likelihoods_without_an_answer(fitted, change, error, message):
    posterior, switched, loader = fitted
    with pytest.raises(error, match=message):
        posterior.to_arviz(2, **{"switched": switched, "loader": loader, **change})


def test_likelihood_of_another_network(posterior, fitted):
    with pytest.raises(
        PlanError, match="switched: expected the groups conv, block.fc, last, got 0"
    ):
        posterior.to_arviz(2, switched=fitted[1], loader=fitted[2])


# On disk -----------------------------------------------------------------------------------------


def test_save_and_load(posterior, tmp_path):
    posterior.save(tmp_path / "posterior.safetensors")
    again = bp.SwitchPosterior.load(tmp_path / "posterior.safetensors")
    assert again.names == posterior.names
    assert again.history == HISTORY
    assert again.summary().equals(posterior.summary())
    one, other = posterior.sample(5), again.sample(5)
    for name in posterior.names:
        assert repr(again.switches[name]) == repr(posterior.switches[name])
        assert torch.equal(one[name], other[name])
        assert torch.equal(again.channels[name], posterior.channels[name])
        assert torch.equal(again.scores().values[name], posterior.scores().values[name])


def replaced(tree, *path, value):
    *inner, last = path
    node = tree
    for key in inner:
        node = node[key]
    node[last] = value
    return tree


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tree: [],
        lambda tree: {"weights": torch.zeros(2)},
        lambda tree: replaced(
            tree, "switches", "conv", "prototype", "class_path", value="os.path.join"
        ),
        lambda tree: replaced(
            tree, "switches", "conv", "prototype", "class_path", value="no.such.module.Family"
        ),
        lambda tree: replaced(tree, "switches", "conv", "prototype", "class_path", value="Family"),
        lambda tree: replaced(
            tree, "switches", "conv", "prototype", "init_args", value={"alpha": 1}
        ),
        lambda tree: replaced(
            tree, "switches", "conv", "prototype", "init_args", value={"concentration": -1.0}
        ),
        lambda tree: replaced(tree, "switches", "conv", "size", value=4),
        lambda tree: replaced(tree, "switches", "conv", "state", value={}),
        lambda tree: replaced(tree, "channels", "conv", value=torch.arange(3)),
    ],
)
def test_foreign_files(posterior, tmp_path, spoil):
    path = tmp_path / "posterior.safetensors"
    posterior.save(path)
    save_state(path, spoil(load_state(path)))
    with pytest.raises(CheckpointError, match="posterior.safetensors"):
        bp.SwitchPosterior.load(path)


def test_missing_and_truncated_files(posterior, tmp_path):
    path = tmp_path / "posterior.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        bp.SwitchPosterior.load(path)
    posterior.save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="truncated"):
        bp.SwitchPosterior.load(path)


def test_a_switch_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "my_family.py").write_text(
        "from bayesprune.switches import Dirichlet\n"
        "class Mine(Dirichlet):\n"
        "    def __init__(self, half: float = 0.5):\n"
        "        super().__init__(concentration=2 * half)\n"
        "        self.half = half\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    prototype = importlib.import_module("my_family").Mine(0.2)
    posterior = bp.SwitchPosterior({"conv": bound(prototype, 4)}, [])
    posterior.save(tmp_path / "posterior.safetensors")
    again = bp.SwitchPosterior.load(tmp_path / "posterior.safetensors")
    assert isinstance(again.switches["conv"], Switch)
    assert repr(again.switches["conv"]) == "Mine(half=0.2, size=4)"
    assert torch.equal(again.mean["conv"], posterior.mean["conv"])


@pytest.mark.parametrize("family", ["Bernoulli", "HardConcrete"])
def test_chance_decides_between_equal_gates(family):
    switch = getattr(bp.switches, family)(init_probability=0.5).bind(8)
    posterior = bp.SwitchPosterior({"conv": switch}, history=[])
    found = posterior.rank_probability(4)["conv"]
    # Standard error 0.008 from 4000 draws.
    torch.testing.assert_close(found, torch.full((8,), 0.5), atol=0.04, rtol=0)


def test_groups_that_a_plan_leaves_out_stay_whole():
    switches = {name: bp.switches.Dirichlet().bind(3) for name in ("a", "b")}
    posterior = bp.SwitchPosterior(switches, history=[])
    draws = posterior.to_arviz(10, plan=bp.PruningPlan({"a": [1]}, {"a": 3}))
    assert draws["constant_data"]["kept"].values.tolist() == [0, 1, 0, 1, 1, 1]


def test_a_relaxed_prior_has_no_density_to_compare():
    posterior = bp.SwitchPosterior({"a": bp.switches.SpikeAndSlab().bind(3)}, history=[])
    assert set(posterior.to_arviz(10)["sample_stats"].data_vars) == {"lp_guide"}


def test_the_size_of_a_gate_counts_and_not_its_sign():
    switch = bound(InformationBottleneck(), 4)
    with torch.no_grad():
        switch.loc.copy_(torch.tensor([1.0, -2.0, 0.01, 0.3]))
        switch.log_scale.copy_(torch.tensor([0.1, 0.1, 0.02, 0.1]).log())
    posterior = bp.SwitchPosterior({"conv": switch}, [])
    size = posterior.sample(DRAWS)["conv"].abs()
    error = 5 * math.sqrt(0.25 / DRAWS)
    for threshold in (-1.0, 0.0, 0.1, 1.0):
        keep = posterior.keep_probability(threshold)["conv"]
        assert ((keep - (size >= threshold).float().mean(0)).abs() < error).all()
    for measure, expected in (("snr", [10.0, 20, 0.5, 3]), ("mean", [1.0, 2, 0.01, 0.3])):
        found = posterior.scores(measure).values["conv"]
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=0)
    assert posterior.rank_probability(2)["conv"].tolist() == [1, 1, 0, 0]
    for rule in (Probability(0.1), FamilyRule()):
        scores = posterior.scores(rule.measure)
        assert rule.select(scores, None) == {"conv": [0, 1, 3]}
