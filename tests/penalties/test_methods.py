"""What single penalties do, step by step."""

import pytest
import torch
from torch.utils.data import DataLoader

from bayesprune import penalties
from bayesprune.errors import ConfigError
from bayesprune.penalties._penalty import total
from bayesprune.penalties._units import Units
from bayesprune.training import Step, TrainConfig


def set_norms(units: Units) -> torch.Tensor:
    """Give the units of `branches` known norms, and return these."""
    wanted = {"left": [0.5, 1.0, 1.5], "right": [0.4, 2.0]}
    with torch.no_grad():
        for name, group in units.items():
            group.scale_(torch.tensor(wanted[name], dtype=torch.double) / group.norms())
    return torch.tensor([*wanted["left"], *wanted["right"]], dtype=torch.double)


def steps(method, units: Units, number: int, rate: float = 0.1, between=lambda index: None):
    """Norms after each step of a training whose loss has no gradient."""
    set_norms(units)
    state, norms = method.start(units), []
    with torch.no_grad():
        for index in range(number):
            between(index)
            method.after_step(units, state, Step(index, number, number, rate))
            norms.append(torch.cat(list(units.norms().values())))
    return torch.stack(norms)


def test_debiasing_drops_the_pull_and_keeps_the_support(branches, branch_groups) -> None:
    method = penalties.DebiasedElasticGroupLasso(
        strength=0.2, ridge=0.3, scale="none", threshold=0.6, retrain=0.5
    )
    units = Units(branches, branch_groups, "none")

    def revive(index: int) -> None:
        branches.out.weight.add_(1e-3)  # what a gradient might do to units that are gone

    norms = steps(method, units, 10, between=lambda index: revive(index) if index > 5 else None)
    shrink = 1 / (1 + 2 * 0.1 * 0.3)
    torch.testing.assert_close(norms[3], (norms[2] - 0.1 * 0.2) * shrink)
    survivors = torch.tensor([False, True, True, False, True])
    assert (norms[:4] > 0).all()
    assert (norms[4:, ~survivors] == 0).all()
    last = (norms[3, survivors] - 0.1 * 0.2) * shrink
    torch.testing.assert_close(norms[4, survivors], last)
    torch.testing.assert_close(norms[5, survivors], last * shrink)
    assert (norms[6:, survivors] > 0).all()


@pytest.mark.parametrize("member", [penalties.GroupLasso, penalties.ElasticGroupLasso])
def test_its_rivals_keep_the_pull_in_retraining(member, branches, branch_groups) -> None:
    method = member(0.2, scale="none", threshold=0.6, retrain=0.5)
    shrink = 1 / (1 + 2 * 0.1 * getattr(method, "ridge", 0.0))
    norms = steps(method, Units(branches, branch_groups, "none"), 10)
    survivors = torch.tensor([False, True, True, False, True])
    assert (norms[4:, ~survivors] == 0).all()
    expected = (norms[4, survivors] - 0.1 * 0.2) * shrink
    torch.testing.assert_close(norms[5, survivors], expected)


def test_without_retraining_the_threshold_comes_last(branches, branch_groups) -> None:
    method = penalties.GroupLasso(0.2, scale="none", threshold=0.6)
    norms = steps(method, Units(branches, branch_groups, "none"), 10)
    survivors = torch.tensor([False, True, True, False, True])
    assert (norms[:-1] > 0).all()
    assert (norms[-1, ~survivors] == 0).all()
    torch.testing.assert_close(norms[-1, survivors], norms[-2, survivors] - 0.1 * 0.2)


def test_trimming_frees_the_largest(branches, branch_groups) -> None:
    method = penalties.BayesL1Trim(strength=0.2, keep=0.5)
    units = Units(branches, branch_groups)
    set_norms(units)
    before = units.norms()
    with torch.no_grad():
        method.prox(units, 0.1)
    for name, kept in (("left", 2), ("right", 1)):
        free = before[name].argsort(descending=True)
        torch.testing.assert_close(units.norms()[name][free[:kept]], before[name][free[:kept]])
        torch.testing.assert_close(
            units.norms()[name][free[kept:]], before[name][free[kept:]] - 0.02
        )


def test_slimming_soft_thresholds_scales_and_nothing_else(network, groups) -> None:
    method, units = penalties.NetworkSlimming(strength=2.0), Units(network, groups)
    scale = network.norm.weight.detach().clone()
    others = {n: v.clone() for n, v in network.state_dict().items() if n != "norm.weight"}
    with torch.no_grad():
        method.prox(units, 0.1)
    expected = scale.sign() * (scale.abs() - 0.2).clamp_min(0)
    torch.testing.assert_close(network.norm.weight.detach(), expected)
    assert all(torch.equal(network.state_dict()[name], v) for name, v in others.items())
    scores = method.scores(units, {})
    torch.testing.assert_close(scores["conv1"], expected.abs())
    torch.testing.assert_close(scores["fc1"], units["fc1"].norms())
    assert set(method.shrunk(units)) == {network.norm.weight}


def test_slimming_needs_normalisation(branches, branch_groups, fabric) -> None:
    with pytest.raises(ConfigError, match="expected a network with batch normalisation"):
        penalties.NetworkSlimming().fit(branches, branch_groups, [], fabric=fabric)


def test_hoyer_square_counts_units_whatever_their_scale(branches, branch_groups) -> None:
    method, units = penalties.GroupHoyerSquare(strength=1.0), Units(branches, branch_groups)
    with torch.no_grad():
        for name, group in units.items():
            group.scale_(1 / group.norms() * (3.0 if name == "left" else 0.2))
        assert method.value(units, {}).item() == pytest.approx(3 + 2)
        units["left"].scale_(torch.tensor([1.0, 0.0, 0.0], dtype=torch.double))
        assert method.value(units, {}).item() == pytest.approx(1 + 2)
    # The gradient has no component along the weights themselves.
    value = method.value(units, {})
    weights = units.parameters
    grads = torch.autograd.grad(value, weights)
    along = total(g * w for g, w in zip(grads, weights, strict=True))
    assert along.abs() < 1e-12


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_balanced_factors_stand_for_a_power_of_the_norm(depth, branches, branch_groups) -> None:
    """Ridge on the factors is the penalty that it replaces, and no other factors make it less."""
    x = torch.randn(4, 3).double()
    expected = branches(x)
    norms = torch.cat(
        [branches.out.weight[:, :3].norm(dim=0), branches.out.weight[:, 3:].norm(dim=0)]
    )
    method = penalties.Spred(strength=0.7, depth=depth)
    task = method.task(branches, branch_groups, [])
    torch.testing.assert_close(task(x), expected)
    least = 0.7 * (norms ** (2 / depth)).sum()
    torch.testing.assert_close(task.value(), least)
    for _ in range(20):
        with torch.no_grad():
            for name, factor in task.factor.items():
                change = (0.1 * torch.randn_like(factor)).exp()
                factor.mul_(change)
                task.divide_(name, change.prod(0))
        torch.testing.assert_close(task(x), expected)
        assert task.value() >= least
    folded, _ = task.result()
    torch.testing.assert_close(folded(x), expected)


def test_accelerated_proximal_gradient_on_scales(branches, branch_groups) -> None:
    """Two steps by hand, with the momentum that the authors' code has."""
    method = penalties.SparseStructureSelection(strength=0.5, momentum=0.9)
    task = method.task(branches, branch_groups, [])
    scale, velocity, rate = torch.ones(3).double(), torch.zeros(3).double(), 0.2
    for index in range(2):
        gradient = torch.tensor([0.3, -1.0, 6.0]).double()
        task.factor["left"].grad = gradient[None].clone()
        with torch.no_grad():
            task.factor["left"] += 1  # the optimizer's own step does not count
        task.after_step(Step(index, 2, 2, rate))
        moved = scale - rate * gradient
        z = moved.sign() * (moved.abs() - rate * 0.5).clamp_min(0)
        velocity = 0.9 * velocity + z - scale
        scale = (z + 0.9 * velocity).clamp_min(0)
        torch.testing.assert_close(task.gates()["left"], scale)
    assert scale[2] == 0


def test_a_scale_of_zero_takes_its_unit_out(network, groups, data, fabric) -> None:
    method = penalties.SparseStructureSelection(strength=20.0)
    config = TrainConfig(epochs=2, optimizer="sgd", learning_rate=0.05)
    loader = DataLoader(data, 6)
    fit = method.train(network, groups, loader, config, fabric=fabric, progress=False)
    dead = {name: values == 0 for name, values in fit.scores.values.items()}
    assert all(mask.any() for mask in dead.values())
    units = Units(fit.network, groups)
    for name, norms in units.norms().items():
        assert (norms[dead[name]] == 0).all()


def test_121_every_few_steps_goes_as_far(branches, branch_groups) -> None:
    method = penalties.GSS121(strength=0.2, every=5)
    units = Units(branches, branch_groups)
    norms = steps(method, units, 10)
    assert torch.equal(norms[3], norms[0])
    assert (norms[4] < norms[3]).all()
    assert (norms[9] < norms[8]).all()


def test_the_pull_is_the_multiplier_times_the_strength(branches, branch_groups) -> None:
    units = Units(branches, branch_groups, "size")
    before = set_norms(units)
    with torch.no_grad():
        penalties.GroupLasso(0.5, scale="size").prox(units, 0.1)
    after = torch.cat(list(units.norms().values()))
    torch.testing.assert_close(after, (before - 0.1 * 0.5 * 5**0.5).clamp_min(0))


def test_greg_1_grows_on_what_it_chose_and_removes_it(branches, branch_groups) -> None:
    method = penalties.GReg1(keep=0.5, ceiling=2.0, growth=0.5)
    units = Units(branches, branch_groups, extent="filter")
    state = method.start(units)
    weights = {"left": branches.left.weight, "right": branches.right.weight}
    means = {name: weight.abs().mean(1) for name, weight in weights.items()}
    going = {name: mean == mean.min() for name, mean in means.items()}
    assert all(torch.equal(state[name] == 1, mask) for name, mask in going.items())
    ridges = []
    with torch.no_grad():
        for index in range(8):
            assert all((norms > 0).all() for norms in units.norms().values())
            method.after_step(units, state, Step(index, 8, 4, 0.1))
            ridges.append(state["ridge"].item())
    assert ridges == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0]
    for name, norms in units.norms().items():
        assert torch.equal(norms == 0, going[name])
    assert method.value(units, state) == 0


def test_greg_2_chooses_after_all_have_been_pulled(branches, branch_groups) -> None:
    method = penalties.GReg2(keep=0.5, start_ceiling=0.1, pick=0.5, ceiling=1.0, growth=0.5)
    units = Units(branches, branch_groups, extent="filter")
    state = method.start(units)
    ridges = []
    with torch.no_grad():
        for index in range(8):
            if index == 3:  # what the loss has done to the weights meanwhile
                units["left"].scale_(torch.tensor([9.0, 9.0, 0.01], dtype=torch.double))
            method.after_step(units, state, Step(index, 8, 4, 0.1))
            ridges.append(state["left"].tolist())
    assert ridges[0] == pytest.approx([0.025] * 3)
    assert ridges[2] == pytest.approx([0.075] * 3)
    assert ridges[3] == pytest.approx([0, 0, 0.1])
    assert ridges[4] == pytest.approx([0, 0, 0.1 + 0.9 * 0.25 / 0.5])
    assert ridges[5:] == [pytest.approx([0, 0, 1.0])] * 3
    assert (units.norms()["left"] == 0).tolist() == [False, False, True]


def test_group_greg_and_group_pruner_weigh_units_by_their_size(branches, branch_groups) -> None:
    units = Units(branches, branch_groups)
    set_norms(units)
    greg, pruner = penalties.GroupGReg(growth=0.3), penalties.GroupPruner(strength=0.5)
    states = [method.start(units) for method in (greg, pruner)]
    with torch.no_grad():
        for method, state in zip((greg, pruner), states, strict=True):
            for index in range(2):
                method.after_step(units, state, Step(index, 9, 9, 0.1))
    slow = 0.3 * (1.5**2 - 1.0) / (1.5**2 - 0.5**2)
    assert states[0]["left"].tolist() == pytest.approx([0.6, 2 * slow, 0.0])
    assert states[1]["left"].tolist() == pytest.approx([16.0, 4.0, 1.0])
    assert states[1]["right"].tolist() == pytest.approx([16.0, 1.0])
    expected = 0.25 * (16 * 0.25 + 4 * 1 + 2.25 + 16 * 0.16 + 4)
    assert pruner.value(units, states[1]).item() == pytest.approx(expected)


def test_units_of_one_size_are_pulled_alike(branches, branch_groups) -> None:
    units = Units(branches, branch_groups)
    with torch.no_grad():
        for group in units.values():
            group.write_(group.matrix().sign())  # exactly alike
    state = penalties.GroupPruner().start(units)
    assert all(weights.isfinite().all() for weights in state.values())


def test_admm_reaches_the_best_sparse_solution_of_a_quadratic(branches, branch_groups) -> None:
    """Minimise |w - a|² over weights with 2 of 3 and 1 of 2 units: the largest of a stay as is."""
    method = penalties.ADMM(keep=0.5, low=0.1, high=1.0, retrain=0.5)
    units = Units(branches, branch_groups)
    set_norms(units)
    with torch.no_grad():
        state = method.start(units)
    optimizer = torch.optim.SGD(units.parameters, lr=0.2)
    aim = {p: p.detach().clone() for p in units.parameters}
    for index in range(400):
        optimizer.zero_grad()
        loss = total((p - goal).square() for p, goal in aim.items()) / 2
        (loss + method.value(units, state)).backward()
        optimizer.step()
        with torch.no_grad():
            method.after_step(units, state, Step(index, 400, 10, 0.2))
    expected = torch.tensor([0.0, 1.0, 1.5, 0.0, 2.0]).double()
    got = torch.cat([norms.detach() for norms in units.norms().values()])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-8)


def test_soft_pruning_zeroes_filters_after_an_epoch_only(branches, branch_groups) -> None:
    method = penalties.SoftFilterPruning(keep=0.5)
    units = Units(branches, branch_groups, extent="filter")
    smallest = branches.left.weight.norm(dim=1).argmin()
    zeros = []
    with torch.no_grad():
        for index in range(6):
            if index == 4:
                branches.left.weight[smallest] = 5.0  # it may grow again
            method.after_step(units, {}, Step(index, 6, 3, 0.1))
            zeros.append((units.norms()["left"] == 0).nonzero()[:, 0].tolist())
    assert zeros[:4] == [[], [], [smallest], [smallest]]
    assert zeros[4] == []
    assert len(zeros[5]) == 1
    assert zeros[5] != [smallest]
