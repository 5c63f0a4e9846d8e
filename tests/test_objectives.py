"""The cost constraint: expected costs against enumeration, slopes, and what it does to a fit."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bayesprune as bp
from bayesprune.cost import CostModel
from bayesprune.errors import ConfigError
from bayesprune.svi import negative_elbo
from bayesprune.switches import Dirichlet, HardConcrete, LogisticNormal


@pytest.fixture
def network():
    return nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.fixture
def groups(network):
    return bp.trace_groups(network, torch.zeros(1, 5))


def probabilities(groups):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(size, generator=generator, dtype=torch.double).requires_grad_()
        for name, size in groups.sizes.items()
    }


def choices(active):
    """Every choice of gates, with its probability."""
    sizes = [len(p) for p in active.values()]
    for bits in itertools.product((0.0, 1.0), repeat=sum(sizes)):
        gates = torch.tensor(bits, dtype=torch.double).split(sizes)
        gates = dict(zip(active, gates, strict=True))
        mass = torch.stack(
            [(g * active[n] + (1 - g) * (1 - active[n])).prod() for n, g in gates.items()]
        )
        yield gates, mass.prod()


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_expected_cost_is_that_of_all_choices(groups, kind):
    price, active = getattr(CostModel(groups), kind), probabilities(groups)
    total = 0.0
    for gates, mass in choices(active):
        kept = {n: g.nonzero()[:, 0].tolist() for n, g in gates.items()}
        total = total + mass * price(kept)
        assert price.expected(gates).item() == price(kept)
    torch.testing.assert_close(price.expected(active), total)
    slopes = torch.autograd.grad(total, list(active.values()), retain_graph=True)
    given = torch.autograd.grad(price.expected(active), list(active.values()))
    torch.testing.assert_close(given, slopes)


def test_score_function_is_unbiased(groups):
    """The slope of E[hinge of the cost], by enumeration."""
    price, active = CostModel(groups).macs, probabilities(groups)

    def hinge(gates):
        return (price.expected(gates) - 12.0).clamp_min(0)

    exact = sum(mass * hinge(gates) for gates, mass in choices(active))
    expected = torch.cat(torch.autograd.grad(exact, list(active.values())))
    values, slopes = [], []
    for _ in range(400):
        value = bp.ScoreFunction(50).expect(hinge, active)
        values.append(value.detach())
        slopes.append(torch.cat(torch.autograd.grad(value, list(active.values()))))
    for drawn, truth in ((torch.stack(values), exact), (torch.stack(slopes), expected)):
        error = drawn.std(0) / len(drawn) ** 0.5
        assert ((drawn.mean(0) - truth).abs() <= 5 * error).all()


def test_dual_ascent_is_an_augmented_lagrangian():
    ascent, weight = bp.DualAscent(rate=0.5, gain=2.0), torch.tensor(0.3)
    excess = torch.tensor(0.1, requires_grad=True)
    ascent.penalty(excess, weight, 0.5).backward()
    assert excess.grad.item() == pytest.approx(0.3 + 2.0 * 0.1)
    assert weight.item() == pytest.approx(0.3 + 0.25 * 0.1)
    slack = torch.tensor(-1.0, requires_grad=True)
    ascent.penalty(slack, weight, 1.0).backward()
    assert slack.grad == 0
    assert weight == 0


def test_a_fixed_weight_is_a_hinge():
    multiplier, weight = bp.FixedWeight(0.01), torch.tensor(0.0)
    costs = torch.tensor([90.0, 100.0, 130.0])
    penalty = multiplier.penalty(multiplier.excess(costs, 100.0), weight, 0.1)
    assert penalty.tolist() == pytest.approx([0.0, 0.0, 0.3])


def test_target_falls_geometrically(network, groups):
    switched = bp.SwitchedNetwork(network, groups, HardConcrete(), num_data=10)
    penalty = bp.CostConstraint(macs=0.25, anneal=0.5, multiplier=bp.FixedWeight(1.0)).bind(
        switched
    )
    active = {name: torch.ones(size) for name, size in groups.sizes.items()}
    dense = penalty.dense
    for progress, fraction in ((0.0, 1.0), (0.25, 0.5), (0.5, 0.25), (1.0, 0.25)):
        value, cost = penalty(active, progress, 0.1)
        assert cost == dense
        assert value.item() == pytest.approx(dense * (1 - fraction))


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(256, 5, generator=generator)
    return DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=32, shuffle=True)


FDOO = {"anneal": 0.0, "multiplier": bp.FixedWeight(0.1), "gradient": bp.ScoreFunction(100)}


@pytest.mark.parametrize(
    ("family", "arguments"),
    [
        (HardConcrete(), {}),
        (Dirichlet(total=1), {}),
        (LogisticNormal(total=1), {}),
        (HardConcrete(), FDOO),
    ],
    ids=["hard concrete", "dirichlet", "score function of a density", "FDOO"],
)
def test_a_fit_ends_near_the_target(network, groups, data, family, arguments):
    switched = bp.SwitchedNetwork(network, groups, family, num_data=256, keep=0.5)
    constraint = bp.CostConstraint(macs=0.5, **arguments)
    posterior = bp.fit_switches(
        switched, data, epochs=30, constraint=constraint, learning_rate=0.1, progress=False
    )
    dense = CostModel(groups).macs({})
    assert posterior.history[0]["cost"] > posterior.history[-1]["cost"]
    assert posterior.history[-1]["cost"] <= 0.6 * dense
    assert "penalty.weight" not in switched.state_dict()


def test_the_multiplier_is_resumed(network, groups, data, tmp_path):
    def fit(epochs_first):
        switched = bp.SwitchedNetwork(network, groups, HardConcrete(), num_data=256)
        path = tmp_path / f"{epochs_first}.safetensors"

        class Interrupted(Exception):
            pass

        loader = data
        if epochs_first:
            calls = iter(range(epochs_first * len(data)))

            class Breaking:
                def __len__(self):
                    return len(data)

                def __iter__(self):
                    for batch in data:
                        if next(calls, None) is None:
                            raise Interrupted
                        yield batch

            with pytest.raises(Interrupted):
                bp.fit_switches(
                    switched,
                    Breaking(),
                    epochs=4,
                    constraint=bp.CostConstraint(macs=0.5),
                    checkpoint=path,
                    progress=False,
                )
            switched = bp.SwitchedNetwork(network, groups, HardConcrete(), num_data=256)
        return bp.fit_switches(
            switched,
            loader,
            epochs=4,
            constraint=bp.CostConstraint(macs=0.5),
            checkpoint=path,
            progress=False,
        )

    whole, resumed = fit(0), fit(2)
    assert [row["weight"] for row in whole.history] == [row["weight"] for row in resumed.history]


@pytest.mark.parametrize(
    "arguments", [{"params": 0}, {"macs": 1, "params": 1}, {"macs": -1}, {"anneal": 2}]
)
def test_bad_constraints(arguments):
    with pytest.raises(ConfigError, match="CostConstraint"):
        bp.CostConstraint(**arguments)


def test_a_target_is_given_at_once_or_later(network, groups):
    switched = bp.SwitchedNetwork(network, groups, HardConcrete(), num_data=10)
    constraint = bp.CostConstraint(anneal=0.25, multiplier=bp.FixedWeight(2.0))
    with pytest.raises(ConfigError, match="expected a target, macs or params, got neither"):
        constraint.bind(switched)
    later = constraint.towards(params=0.5)
    assert (later.macs, later.params, later.anneal) == (None, 0.5, 0.25)
    assert later.multiplier is constraint.multiplier
    assert not constraint.has_target
    assert later.bind(switched).target == 0.5 * later.bind(switched).dense


@pytest.mark.parametrize("macs", [2, 1e9])
def test_targets_that_cannot_be_met(network, groups, macs):
    switched = bp.SwitchedNetwork(network, groups, HardConcrete(), num_data=10)
    with pytest.raises(ConfigError, match="between"):
        bp.CostConstraint(macs=macs).bind(switched)


def test_a_constraint_needs_all_groups(network, groups, data):
    switched = bp.SwitchedNetwork(network, groups, HardConcrete(), num_data=10)
    with pytest.raises(ConfigError, match="joint"):
        bp.fit_switches(switched, data, joint=False, constraint=bp.CostConstraint(macs=0.5))


def test_divergence_weights_by_group(network, groups):
    inputs, targets = torch.randn(4, 5), torch.zeros(4, dtype=torch.long)
    losses = {}
    for weight in (1.0, 2.0):
        switched = bp.SwitchedNetwork(
            network, groups, Dirichlet(), num_data=4, kl_weight={"0": weight}
        )
        losses[weight] = 4 * negative_elbo(switched, bp.AnalyticMean(), inputs, targets).loss
    site = Dirichlet().bind(3).sites()["share"]
    kl = torch.distributions.kl_divergence(site.factor, site.prior)
    torch.testing.assert_close(losses[2.0] - losses[1.0], kl)
