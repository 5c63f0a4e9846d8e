"""The devices here are made up: what they take follows from the sizes of the network's layers."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesprune import models
from bayesprune.errors import ConfigError, PlanError
from bayesprune.groups import ChannelGroups, trace_groups
from bayesprune.plan import Kept, Limits
from bayesprune.timing import LatencyModel, in_turn


def linear_device(network: nn.Module, example: Tensor) -> float:
    """0.3 ms, and for every layer a rate of its own per weight and one for all per output."""
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    rates = itertools.cycle([1.0, 3.0, 0.5, 2.0])
    return 0.3 + sum(
        1e-5 * rate * layer.weight.numel() + 1e-3 * len(layer.weight)
        for rate, layer in zip(rates, layers, strict=False)
    )


def lenet() -> tuple[nn.Module, Tensor, ChannelGroups]:
    torch.manual_seed(0)
    network, x = models.create("lenet5"), torch.randn(1, 1, 28, 28)
    return network, x, trace_groups(network, x)


def random_kept(groups: ChannelGroups, seed: int) -> Kept:
    generator = np.random.default_rng(seed)
    return {
        name: list(range(int(generator.integers(max(1, size // 5), size + 1))))
        for name, size in groups.sizes.items()
    }


def errors(model: LatencyModel, groups: ChannelGroups) -> np.ndarray:
    plans = [random_kept(groups, seed) for seed in range(20)]
    return np.abs([model(kept) / model.actual(kept) - 1 for kept in plans])


def test_networks_take_turns_in_blocks_so_that_a_slow_spell_hits_all_of_them() -> None:
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    seen: list[str] = []

    def slowing(network: nn.Module, example: Tensor) -> float:
        seen.append("one" if network is one else "two")
        slow = 1 + len(seen) // 8  # ever more
        return (1.0 if network is one else 3.0) * slow

    networks = {"one": one, "two": two}
    times = in_turn(networks, torch.zeros(1, 2), blocks=12, measure=slowing)
    assert seen == ["one", "two"] + ["one", "two", "two", "one"] * 6  # the first two warm up
    assert times["one"].max() > 3 * times["one"].min()
    assert np.median(times["two"] / times["one"]) == 3


def test_how_often_networks_take_turns() -> None:
    network, x = nn.Linear(2, 2), torch.zeros(1, 2)
    assert len(in_turn({"a": network}, x)["a"]) == 60  # a quick one
    with pytest.raises(ConfigError, match="in_turn: blocks: expected .* got 0"):
        in_turn({"a": network}, x, blocks=0)


def test_finds_what_a_linear_device_takes_for_networks_it_has_not_measured() -> None:
    network, x, groups = lenet()
    model = LatencyModel(network, groups, x, measure=linear_device)
    assert model.dense_ms == pytest.approx(linear_device(network, x))
    assert model({}) == pytest.approx(model.dense_ms, rel=0.04)
    assert errors(model, groups).max() < 0.05
    assert model.constant >= 0
    assert all(term.price >= 0 for term in model.terms)


def test_noise_does_not_make_the_rates_absurd() -> None:
    network, x, groups = lenet()
    generator = np.random.default_rng(0)

    def noisy(network: nn.Module, example: Tensor) -> float:
        return linear_device(network, example) * generator.lognormal(0, 0.1)

    model = LatencyModel(network, groups, x, measure=noisy)
    assert errors(model, groups).max() < 0.15


def test_a_machine_that_slows_down_on_the_way_slows_every_network() -> None:
    network, x, groups = lenet()
    calls = itertools.count()

    def drifting(network: nn.Module, example: Tensor) -> float:
        return linear_device(network, example) * (1 + (next(calls) // 150) % 3)

    steady = LatencyModel(network, groups, x, measure=linear_device)
    model = LatencyModel(network, groups, x, measure=drifting)
    for seed in range(5):
        kept = random_kept(groups, seed)
        assert model(kept) / model.dense_ms == pytest.approx(
            steady(kept) / steady.dense_ms, rel=0.02
        )


def counting(measure: Callable[[nn.Module, Tensor], float], seen: list[tuple[int, ...]]):
    def wrapped(network: nn.Module, example: Tensor) -> float:
        widths = tuple(len(m.weight) for m in network.modules() if hasattr(m, "weight"))
        seen.append(widths)
        return measure(network, example)

    return wrapped


def test_measures_few_networks_each_once_and_leaves_the_network_alone() -> None:
    network, x, groups = lenet()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    seen: list[tuple[int, ...]] = []
    model = LatencyModel(network, groups, x, measure=counting(linear_device, seen))
    assert 10 < len(set(seen)) < 20
    kept = random_kept(groups, 0)
    before = len(seen)
    first = model.actual(kept)
    measured = len(seen)
    assert measured > before
    assert model.actual(kept) == first
    assert len(seen) == measured
    assert model.actual({}) == model.dense_ms
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_only_widths_within_the_limits_are_measured() -> None:
    network, x, groups = lenet()
    seen: list[tuple[int, ...]] = []
    limits = Limits(minimum={"fc1": 100}, round_to=8, protect=["conv1"])
    LatencyModel(network, groups, x, limits, counting(linear_device, seen))
    conv1, conv2, fc1 = (sorted({widths[i] for widths in seen}) for i in range(3))
    assert conv1 == [20]
    assert len(conv2) > 3
    assert all(width % 8 == 0 for width in conv2[:-1])
    assert fc1[0] == 104


def test_the_batch_is_part_of_what_is_timed() -> None:
    network, _, groups = lenet()

    def per_example(network: nn.Module, example: Tensor) -> float:
        return len(example) * linear_device(network, example)

    one, four = (
        LatencyModel(network, groups, torch.randn(batch, 1, 28, 28), measure=per_example)
        for batch in (1, 4)
    )
    assert four({}) == pytest.approx(4 * one({}), rel=1e-3)


class Counts(nn.Module):
    """Its forward function knows how many channels there are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        assert y.shape[1] == 8
        return self.b(y)


def test_a_network_that_cannot_be_cut_is_refused() -> None:
    network, x = Counts(), torch.randn(1, 4)
    with pytest.raises(PlanError, match="Keep all channels of a"):
        LatencyModel(network, trace_groups(network, x), x, measure=linear_device)


def test_times_on_a_real_clock() -> None:
    network, x, groups = lenet()
    model = LatencyModel(network, groups, x)
    assert model.dense_ms > 0
    assert model({}) > 0
    curve = model.curves({name: range(size) for name, size in groups.sizes.items()})("conv2")
    assert curve[0] == 0
    assert (np.diff(curve) <= 0).all()
