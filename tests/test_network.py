"""A network with switches: what it is to PyTorch and to Pyro, and the way back."""

import copy
import pickle
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, TraceMeanField_ELBO
from torch import nn

import bayesprune as bp
from bayesprune.errors import ConfigError, PlanError
from bayesprune.models import DigitsNet
from bayesprune.network import categorical
from bayesprune.svi import negative_elbo
from bayesprune.switches import Dirichlet, LogisticNormal

WIDTHS = (4, 6, 5, 7)


@pytest.fixture
def images():
    return torch.randn(8, 1, 8, 8)


@pytest.fixture
def labels():
    return torch.randint(10, (8,))


@pytest.fixture
def network(images):
    network = DigitsNet(WIDTHS)
    network(images + 1)  # running statistics that are not the initial ones
    return network


@pytest.fixture
def groups(network, images):
    return bp.trace_groups(network, images[:1])


@pytest.fixture
def switched(network, groups):
    return bp.SwitchedNetwork(network, groups, Dirichlet(), num_data=100)


def random_gates(sizes, rows=()):
    return {name: torch.rand(*rows, size) * 2 for name, size in sizes.items()}


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def loss_of(switched, *data):
    return TraceMeanField_ELBO()(switched, switched.guide)(*data)


# The copy and the original -----------------------------------------------------------------------


def test_the_users_network_is_untouched(network, groups, images, labels):
    network.train()
    network.conv2.weight.requires_grad_(False)
    before, flags = state(network), [p.requires_grad for p in network.parameters()]
    switched = bp.SwitchedNetwork(
        network, groups, Dirichlet(), num_data=100, train_weights=True
    ).train()
    optimizer = torch.optim.Adam(switched.parameters(), lr=0.1)
    loss_of(switched, images, labels).backward()
    optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert [p.requires_grad for p in network.parameters()] == flags
    assert all(module.training for module in network.modules())
    assert not torch.equal(switched.network.network.conv1.weight, network.conv1.weight)


def test_frozen_by_default(switched, images, labels):
    switched.train()
    assert switched.guide.training
    assert not any(module.training for module in switched.network.modules())
    before = state(switched.network)
    loss_of(switched, images, labels).backward()
    assert all(torch.equal(before[n], t) for n, t in switched.network.state_dict().items())
    assert not any(p.requires_grad for p in switched.network.parameters())
    assert all(p.grad is not None and p.grad.any() for p in switched.guide.parameters())


def test_trainable_on_request(network, groups, images, labels):
    switched = bp.SwitchedNetwork(network, groups, Dirichlet(), num_data=100, train_weights=True)
    switched.train()
    assert all(module.training for module in switched.network.modules())
    before = switched.network.network.bn1.running_mean.clone()
    loss_of(switched, images, labels).backward()
    assert not torch.equal(before, switched.network.network.bn1.running_mean)
    assert all(p.grad is not None for p in switched.network.parameters())
    assert not any(module.training for module in switched.eval().modules())


# Gates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [(), (8,)], ids=["shared", "per example"])
def test_gates_of_one_are_the_network(switched, network, images, rows):
    gates = {name: torch.ones(*rows, size) for name, size in switched.network.sizes.items()}
    expected = network.eval()(images)
    torch.testing.assert_close(switched.network(images, gates), expected)
    torch.testing.assert_close(switched.network(images), expected)


def test_gates_per_example_are_those_of_each_example(switched, images):
    gates = random_gates(switched.network.sizes, (8,))
    together = switched.network(images, gates)
    for i in range(8):
        alone = switched.network(images[i : i + 1], {n: gate[i] for n, gate in gates.items()})
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gates", ["random", "mask", "posterior mean"])
def test_folded_is_gated(switched, network, images, gates):
    sizes = switched.network.sizes
    gates = {
        "random": random_gates(sizes),
        "mask": {name: (torch.rand(size) > 0.4).float() for name, size in sizes.items()},
        "posterior mean": bp.SwitchPosterior(dict(switched.guide.items()), []).mean,
    }[gates]
    folded = switched.fold(gates)
    torch.testing.assert_close(
        folded.eval()(images), switched.network(images, gates), rtol=1e-4, atol=1e-5
    )
    assert type(folded) is type(network)
    assert list(folded.state_dict()) == list(network.state_dict())
    assert all(p.requires_grad for p in folded.parameters())


def test_fold_leaves_the_switched_network_as_it_was(switched, images):
    before = state(switched)
    folded = switched.fold(random_gates(switched.network.sizes))
    with torch.no_grad():
        folded.conv1.weight.zero_()
    assert all(torch.equal(before[n], t) for n, t in switched.state_dict().items())
    assert not any(p.requires_grad for p in switched.network.parameters())


def test_gates_of_groups_without_a_switch_are_one(network, groups, images):
    switched = bp.SwitchedNetwork(network, groups, {"conv2": Dirichlet()}, num_data=10)
    assert set(switched.guide()) == {"conv2"}
    one = {"conv2": torch.ones(WIDTHS[1])}
    torch.testing.assert_close(switched.network(images, one), network.eval()(images))


class Folding(nn.Module):
    """Looks at two halves of an example as at two examples."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(self.first(x.reshape(-1, 4))).reshape(len(x), -1)


def test_gates_per_example_where_rows_are_not_examples():
    network, inputs = Folding(), torch.randn(5, 8)
    switched = bp.SwitchedNetwork(
        network, bp.trace_groups(network, inputs), Dirichlet(), num_data=10
    )
    with pytest.raises(ConfigError, match="10 rows for 5 examples"):
        negative_elbo(switched, bp.Implicit(1, "example"), inputs, torch.zeros(5))
    loss_of(switched, inputs, torch.zeros(5)).backward()


def test_an_unbatched_input_of_a_convolution():
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 3, 1))
    gated = bp.SwitchedNetwork(
        network, bp.trace_groups(network, torch.zeros(1, 1, 3, 3)), Dirichlet(), num_data=10
    ).network
    image, gates = torch.randn(1, 3, 3), {"0": torch.rand(3)}
    torch.testing.assert_close(gated(image, gates), gated(image[None], gates)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_precision(network, groups, images, dtype):
    switched = bp.SwitchedNetwork(network.to(dtype), groups, Dirichlet(), num_data=100)
    gates = switched.guide()
    assert gates["conv1"].dtype == torch.float32
    assert switched.network(images.to(dtype), gates).dtype == dtype


# As a module -------------------------------------------------------------------------------------


def copies():
    def stored(switched):
        return pickle.loads(pickle.dumps(switched))

    return pytest.mark.parametrize("duplicate", [copy.deepcopy, stored], ids=["copied", "pickled"])


@copies()
def test_a_copy_responds_to_its_own_switches(switched, images, labels, duplicate):
    twin = duplicate(switched)

    def value(network):
        return negative_elbo(network, bp.AnalyticMean(), images, labels).loss.item()

    before = value(switched)
    assert value(twin) == pytest.approx(before)
    with torch.no_grad():
        for parameter in twin.guide.parameters():
            parameter += torch.linspace(-2, 2, len(parameter))
    assert value(twin) != pytest.approx(before)
    assert value(switched) == pytest.approx(before)
    loss_of(twin, images, labels).backward()
    assert all(p.grad is None for p in switched.guide.parameters())


def test_state_dict_is_complete(network, groups, images, labels, switched):
    with torch.no_grad():
        for parameter in switched.guide.parameters():
            parameter.normal_()
        switched.network.network.conv1.weight.normal_()
    fresh = bp.SwitchedNetwork(network, groups, Dirichlet(), num_data=100)
    fresh.load_state_dict(switched.state_dict())
    gates = switched.guide()
    assert torch.equal(fresh.network(images, gates), switched.network(images, gates))
    for (_, one), (_, other) in zip(fresh.guide.items(), switched.guide.items(), strict=True):
        assert torch.equal(one.mean(), other.mean())
    assert {n for n, _ in switched.named_parameters()} <= set(switched.state_dict())


def test_moves(switched, images, labels):
    double = copy.deepcopy(switched).double()
    assert all(gate.dtype == torch.float64 for gate in double.guide().values())
    assert loss_of(double, images.double(), labels).dtype == torch.float64
    meta = copy.deepcopy(switched).to("meta")
    assert {t.device.type for t in [*meta.parameters(), *meta.buffers()]} == {"meta"}


# As a Pyro program -------------------------------------------------------------------------------


def test_nothing_is_in_the_global_parameter_store(switched, images, labels):
    elbo = TraceMeanField_ELBO()(switched, switched.guide)
    optimizer = torch.optim.Adam(elbo.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        elbo(images, labels).backward()
        optimizer.step()
    assert not list(pyro.get_param_store().keys())
    assert set(elbo.state_dict()) >= {f"model.{name}" for name in switched.state_dict()}


def test_an_elbo_module_learns(switched, images, labels):
    elbo = TraceMeanField_ELBO()(switched, switched.guide)
    optimizer = torch.optim.Adam(switched.guide.parameters(), lr=0.05)
    before = negative_elbo(switched, bp.AnalyticMean(), images, labels).loss
    for _ in range(30):
        optimizer.zero_grad()
        elbo(images, labels).backward()
        optimizer.step()
    assert negative_elbo(switched, bp.AnalyticMean(), images, labels).loss < before


@pytest.mark.parametrize("switch", [Dirichlet(), LogisticNormal(), LogisticNormal(rank="full")])
def test_model_and_guide_have_the_same_sites(network, groups, images, labels, switch):
    switched = bp.SwitchedNetwork(network, groups, switch, num_data=100)
    guide = poutine.trace(switched.guide).get_trace(images, labels)
    model = poutine.trace(poutine.replay(switched, trace=guide)).get_trace(images, labels)
    assert model.stochastic_nodes == [*guide.stochastic_nodes, "data"]
    assert model.observation_nodes == ["targets"]
    sites = {name.rpartition(".")[0] for name in guide.stochastic_nodes}
    assert sites == set(groups)
    with warnings.catch_warnings(), pyro.validation_enabled():
        warnings.simplefilter("error")
        loss_of(switched, images, labels).backward()


def test_handlers_act_on_gates(switched, images, labels):
    share = torch.zeros(WIDTHS[0])
    share[1] = 1.0
    gates = poutine.condition(switched.guide, {"conv1.share": share})()
    torch.testing.assert_close(gates["conv1"], WIDTHS[0] * share)
    drawn = Predictive(switched.guide, num_samples=5)()
    assert drawn["conv1.share"].shape == (5, WIDTHS[0])


def test_likelihood_of_the_user(network, groups, images):
    switched = bp.SwitchedNetwork(
        network,
        groups,
        Dirichlet(),
        num_data=100,
        likelihood=lambda output: dist.Normal(output, 1.0).to_event(1),
    )
    assert loss_of(switched, images, torch.zeros(8, 10)).isfinite()
    switched.likelihood = lambda output: dist.Normal(output, 1.0)
    with pytest.raises(ConfigError, match=r"batch shape \(8, 10\)"):
        loss_of(switched, images, torch.zeros(8, 10))


def test_a_prior_draw_of_targets(switched, images):
    trace = poutine.trace(switched).get_trace(images)
    assert trace.nodes["targets"]["value"].shape == (8,)


# Wrong arguments ---------------------------------------------------------------------------------


def test_keep(network, groups):
    def masses(keep):
        switch = Dirichlet(total="keep")
        switched = bp.SwitchedNetwork(network, groups, switch, num_data=10, keep=keep)
        return [bound.mass.item() for _, bound in switched.guide.items()]

    assert masses(0.5) == [2, 3, 2.5, 3.5]
    assert masses(dict(zip(groups, (1, 2, 3, 4), strict=True))) == [1, 2, 3, 4]
    for keep in (0.0, 1.5, -1.0, {**groups.sizes, "conv1": 5}, {**groups.sizes, "fc1": 0}):
        with pytest.raises(ConfigError, match="asked to keep"):
            masses(keep)
    with pytest.raises(ConfigError, match="conv2"):
        masses({"conv1": 2})
    with pytest.raises(ConfigError, match="needs the number"):
        masses(None)


def test_unknown_groups(network, groups, switched):
    with pytest.raises(PlanError, match="conv9"):
        bp.SwitchedNetwork(network, groups, {"conv9": Dirichlet()}, num_data=10)
    with pytest.raises(PlanError, match="conv9"):
        switched.fold({"conv9": torch.ones(3)})
    with pytest.raises(PlanError, match="conv9"):
        switched.network(torch.zeros(1, 1, 8, 8), {"conv9": torch.ones(3)})
    with pytest.raises(PlanError, match=r"conv1.*4.*\(5,\)"):
        switched.fold({"conv1": torch.ones(5)})


def test_groups_of_another_network(groups):
    with pytest.raises(PlanError, match="conv1.weight: the groups are of another network"):
        bp.SwitchedNetwork(DigitsNet((9, 6, 5, 7)), groups, Dirichlet(), num_data=10)


def test_no_data(network, groups):
    with pytest.raises(ConfigError, match="num_data"):
        bp.SwitchedNetwork(network, groups, Dirichlet(), num_data=0)


def test_global_parameters_are_refused(network, groups):
    with (
        pyro.settings.context(module_local_params=False),
        pytest.raises(ConfigError, match="module_local_params"),
    ):
        bp.SwitchedNetwork(network, groups, Dirichlet(), num_data=10)


def test_a_network_may_put_out_several_things_given_a_likelihood(images, labels):
    class Both(DigitsNet):
        def forward(self, x):
            logits = super().forward(x)
            return {"logits": logits, "largest": logits.max(-1).values}

    network = Both(WIDTHS)
    switched = bp.SwitchedNetwork(
        network,
        bp.trace_groups(network, images),
        Dirichlet(),
        num_data=100,
        likelihood=lambda out: dist.Categorical(logits=out["logits"]),
    )
    assert loss_of(switched, images, labels) > 0


def test_a_network_with_several_outputs_needs_a_likelihood():
    with pytest.raises(ConfigError, match="likelihood: expected logits.*got a tuple"):
        categorical((torch.zeros(2, 3), torch.zeros(2, 3)))
