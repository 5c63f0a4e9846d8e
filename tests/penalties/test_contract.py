"""What every penalty promises."""

import copy
import inspect
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bayesprune as bp
from bayesprune import penalties
from bayesprune._describe import describe
from bayesprune.errors import ConfigError, PlanError
from bayesprune.groups import trace_groups
from bayesprune.layers import SelectFeatures
from bayesprune.penalties import PENALTIES, Penalty
from bayesprune.penalties._penalty import ProximalPenalty, UnitPenalty
from bayesprune.penalties._weights import WeightPenalty
from bayesprune.selection import KeepFraction, select
from bayesprune.surgery import remove_channels
from bayesprune.training import Step, TrainConfig, train_network

DEGL = penalties.DebiasedElasticGroupLasso
STRONG = {
    member: member(strength=2.0 if member in (penalties.GSS212, DEGL) else 0.5)
    for member in PENALTIES
    if "strength" in inspect.signature(member).parameters
}
STRONG[penalties.GroupGReg] = penalties.GroupGReg(growth=0.1)
PROXIMAL = [member for member in STRONG if issubclass(member, ProximalPenalty)]
ADDED = [member for member in STRONG if issubclass(member, UnitPenalty | WeightPenalty)]
NEED_NORMS = [penalties.NetworkSlimming]
BY_WEIGHT = [m for m in PENALTIES if issubclass(m, WeightPenalty)] + [penalties.ElementSpred]


def trained(method: Penalty, network, groups, data, fabric, epochs: int = 2, **options):
    config = TrainConfig(epochs=epochs, learning_rate=0.05, optimizer="sgd", schedule="constant")
    loader = DataLoader(data, 6, shuffle=True)
    return method.train(network, groups, loader, config, fabric=fabric, progress=False, **options)


def test_the_list_holds_every_class_of_the_package() -> None:
    classes = {
        member
        for member in vars(penalties).values()
        if inspect.isclass(member)
        and issubclass(member, Penalty)
        and not inspect.isabstract(member)
    }
    assert set(PENALTIES) == classes
    assert len(set(PENALTIES)) == len(PENALTIES)


@pytest.mark.parametrize("member", PENALTIES)
def test_scores_every_unit_and_leaves_the_network_alone(
    member, network, groups, data, fabric
) -> None:
    network.norm.eval()
    before = copy.deepcopy(network.state_dict())
    fit = trained(member(), network, groups, data, fabric)
    assert list(fit.scores.values) == ["conv1", "conv3", "fc1"]
    for name, values in fit.scores.values.items():
        assert values.shape == (groups[name].size,)
        assert not values.requires_grad
        assert (values >= 0).all()
    assert fit.scores.measure == member.__name__
    assert member.reference
    assert [row["epoch"] for row in fit.history] == [1, 2]
    left = "weights" if member in BY_WEIGHT else "units"
    assert all(row.keys() >= {"loss", "penalty", left} for row in fit.history)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    # The result is a plain network of the same kind, trained, in the modes of the first.
    assert type(fit.network) is type(network)
    assert fit.network.state_dict().keys() == before.keys()
    assert fit.network.training
    assert not fit.network.norm.training
    assert not torch.equal(fit.network.fc2.weight, network.fc2.weight)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in fit.network.modules())
    plan = select(fit.scores, KeepFraction(0.5), groups=groups)
    assert plan.widths == {"conv1": 2, "conv3": 1, "fc1": 3}
    remove_channels(fit.network, plan, data[:1][0])


@pytest.mark.parametrize("member", PENALTIES)
def test_fit_gives_the_scores_of_train(member, network, groups, data, fabric) -> None:
    config = TrainConfig(epochs=1, schedule="constant")
    expected = member().train(
        network, groups, DataLoader(data, 6), config, fabric=fabric, progress=False
    )
    scores = member().fit(
        network, groups, DataLoader(data, 6), epochs=1, fabric=fabric, progress=False
    )
    for name, values in scores.values.items():
        assert torch.equal(values, expected.scores.values[name])


# They cut or choose by themselves, and add nothing to the loss.
WITHOUT_LOSS = (penalties.SoftFilterPruning, penalties.ElementSNIP)


@pytest.mark.parametrize("member", [m for m in PENALTIES if m not in WITHOUT_LOSS])
def test_the_gradient_is_that_of_finite_differences(member, network, groups, data, fabric) -> None:
    method = STRONG.get(member) or member()
    task = method.task(network.double(), groups, DataLoader(data, 6))
    task.after_step(Step(0, 20, 5, 1e-3))  # what grows with the steps is not 0 any more
    parameters = [p for p in task.parameters() if p.requires_grad]
    value = task.value()
    assert value.ndim == 0
    assert value.isfinite()
    grads = torch.autograd.grad(value, parameters, allow_unused=True)
    grads = [
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)
    ]
    for _ in range(5):
        directions = [torch.randn_like(p) for p in parameters]
        step, sides = 1e-6, []
        for sign in (1, -1):
            with torch.no_grad():
                for p, d in zip(parameters, directions, strict=True):
                    p += sign * step * d
                sides.append(task.value().item())
                for p, d in zip(parameters, directions, strict=True):
                    p -= sign * step * d
        slope = sum((g * d).sum().item() for g, d in zip(grads, directions, strict=True))
        assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(slope, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("member", ADDED)
def test_strength_zero_leaves_training_alone(member, network, groups, data, fabric) -> None:
    pulls = ("strength", "ridge", "growth")
    names = [name for name in inspect.signature(member).parameters if name.endswith(pulls)]
    silent = dict.fromkeys(names, 0.0)
    fit = trained(member(**silent), network, groups, data, fabric)
    config = TrainConfig(epochs=2, learning_rate=0.05, optimizer="sgd", schedule="constant")
    train_network(
        network, DataLoader(data, 6, shuffle=True), config, fabric=fabric, stage="fit",
        progress=False,
    )  # fmt: skip
    for name, value in fit.network.state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("member", [m for m in PROXIMAL if m is not penalties.ExclusiveLasso])
def test_proximal_steps_give_exact_zeros_that_can_be_removed(
    member, network, groups, data, fabric
) -> None:
    """The exclusive lasso alone leaves no unit 0 as a whole: the weights of a unit compete."""
    method = STRONG[member]
    if member is penalties.NetworkSlimming:
        method = member(strength=5.0)
    fit = trained(method, network, groups, data, fabric, epochs=24)
    assert fit.history[-1]["units"] < sum(groups.sizes.values())
    dead = {name: values == 0 for name, values in fit.scores.values.items()}
    assert any(mask.any() for mask in dead.values())
    kept = {n: (~mask).nonzero()[:, 0].tolist() or [0] for n, mask in dead.items()}
    small = remove_channels(fit.network, bp.PruningPlan(kept, groups.sizes), data[:1][0])
    x = data[:7][0]
    torch.testing.assert_close(small.eval()(x), fit.network.eval()(x))


@pytest.mark.parametrize("member", PENALTIES)
def test_an_interrupted_run_goes_on_bit_by_bit(
    member, network, groups, data, fabric, tmp_path
) -> None:
    method = STRONG.get(member) or member()
    whole = trained(method, network, groups, data, fabric, epochs=4)

    class Interrupted(Exception):
        pass

    class Failing(DataLoader):
        epochs = itertools.count()

        def __iter__(self):
            if next(self.epochs) == 2:
                raise Interrupted
            return super().__iter__()

    file = tmp_path / "epochs.safetensors"
    config = TrainConfig(epochs=4, learning_rate=0.05, optimizer="sgd", schedule="constant")
    options = {"fabric": fabric, "progress": False, "checkpoint": file}
    Failing.epochs = itertools.count(-1 if member in _LOOKS_AT_DATA else 0)
    with pytest.raises(Interrupted):
        method.train(network, groups, Failing(data, 6, shuffle=True), config, **options)
    loader = DataLoader(data, 6, shuffle=True)
    again = method.train(network, groups, loader, config, **options)
    assert again.history == whole.history
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name])
    for name, values in whole.scores.values.items():
        assert torch.equal(values, again.scores.values[name])


_LOOKS_AT_DATA = (penalties.ElementSNIP,)
"""Those that read the loader before training."""


@pytest.mark.parametrize("member", PENALTIES)
def test_a_checkpoint_of_another_penalty_is_refused(
    member, network, groups, data, fabric, tmp_path
) -> None:
    file = tmp_path / "epochs.safetensors"
    trained(member(), network, groups, data, fabric, epochs=1, checkpoint=file)
    name = next(iter(inspect.signature(member).parameters))
    other = member(**{name: getattr(member(), name) * 0.5})
    with pytest.raises(bp.BayespruneError, match="penalty"):
        trained(other, network, groups, data, fabric, epochs=1, checkpoint=file)


@pytest.mark.parametrize("member", PENALTIES)
def test_arguments_are_stored_and_checked(member) -> None:
    described = describe(member())["init_args"]
    assert described.keys() == inspect.signature(member).parameters.keys()
    assert describe(member(**described))["init_args"] == described
    for name, value in described.items():
        wrong = [-1.0, "much"] if isinstance(value, int | float) else ["unknown"]
        for bad in wrong:
            with pytest.raises(ConfigError, match=rf"{member.__name__}\.{name}: expected"):
                member(**{name: bad})


@pytest.mark.parametrize("member", [penalties.GroupLasso, penalties.Spred])
def test_what_is_penalised_leaves_weight_decay(member, network, groups, data) -> None:
    task = member().task(copy.deepcopy(network), groups, DataLoader(data, 6))
    free = set(task.undecayed)
    weights = {n.removeprefix("gated."): p for n, p in task.named_parameters() if "weight" in n}
    spared = {name.split(".")[1] for name, p in weights.items() if p in free}
    read = {"conv2", "conv3", "fc1", "fc2"}
    everything = read | {"conv1", "norm", "grouped"}
    assert spared == (read if member is penalties.Spred else everything)


def test_averages_and_teachers_are_refused(network, groups, data, fabric) -> None:
    for config in (TrainConfig(average=0.9), TrainConfig(distill=bp.Distillation())):
        with pytest.raises(ConfigError, match="expected None in sparse training"):
            penalties.GroupLasso().train(network, groups, DataLoader(data), config, fabric=fabric)


def test_groups_of_another_network_are_refused(groups, data, fabric) -> None:
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    with pytest.raises(PlanError, match="conv1.weight: the groups are of another network"):
        penalties.GroupLasso().fit(other, groups, DataLoader(data), fabric=fabric)


@pytest.mark.parametrize("member", [m for m in PENALTIES if m not in NEED_NORMS])
def test_scores_selected_features(member, data, fabric) -> None:
    """Nothing produces them: their vectors are what reads them."""
    network = nn.Sequential(SelectFeatures(4), nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 3))
    flat = TensorDataset(data.tensors[0].flatten(1), data.tensors[1])
    groups = trace_groups(network, flat.tensors[0])
    fit = trained(member(), network, groups, flat, fabric)
    assert {name: tuple(v.shape) for name, v in fit.scores.values.items()} == {"0": (4,), "1": (5,)}
    # ElementSNIP keeps a twentieth of all weights: here one of 35.
    assert (fit.scores.values["0"] > 0).any() or member is penalties.ElementSNIP
    assert torch.equal(fit.network[0].index, torch.arange(4))


class TwoInputs(nn.Module):
    """Each input has a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 5)
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(9, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out(torch.cat([torch.tanh(self.norm(self.left(x))), self.right(y)], 1))


@pytest.mark.parametrize("member", PENALTIES)
def test_trains_a_network_of_two_inputs(member, fabric) -> None:
    network, inputs = TwoInputs(), (torch.randn(12, 3), torch.randn(12, 2))
    rows = [((x, y), target) for x, y, target in zip(*inputs, torch.arange(12) % 3, strict=True)]
    fit = trained(member(), network, trace_groups(network, inputs), rows, fabric)
    shapes = {name: tuple(values.shape) for name, values in fit.scores.values.items()}
    assert shapes == {"left": (4,), "right": (5,)}
    assert fit.network(*inputs).shape == (12, 3)
    assert not torch.equal(fit.network.out.weight, network.out.weight)


@pytest.mark.parametrize("member", [m for m in PENALTIES if m not in NEED_NORMS])
def test_trains_with_features_of_channels(member, data, fabric) -> None:
    network = nn.Sequential(
        *(nn.Conv2d(1, 3, 1), nn.Sigmoid(), nn.Flatten(), SelectFeatures(12)),
        *(nn.Linear(12, 5), nn.Sigmoid(), nn.Linear(5, 3)),
    )
    groups = trace_groups(network, data.tensors[0])
    fit = trained(member(), network, groups, data, fabric)
    shapes = {name: tuple(values.shape) for name, values in fit.scores.values.items()}
    assert shapes == {"0": (3,), "3": (12,), "4": (5,)}
