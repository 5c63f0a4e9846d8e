import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import bayesprune as bp
from bayesprune.diagnostics import rank_agreement, rank_stability
from bayesprune.errors import ConfigError, PlanError
from bayesprune.selection import ChannelScores


def scores(**values: list[float]) -> ChannelScores:
    return ChannelScores({name: torch.tensor(numbers) for name, numbers in values.items()}, "x")


@pytest.fixture
def three() -> dict[str, ChannelScores]:
    return {
        "up": scores(a=[1.0, 2, 3, 4], b=[1.0, 2, 3]),
        "down": scores(a=[4.0, 3, 2, 1], b=[3.0, 1, 2]),
        "some": scores(a=[1.0, 3, 2, 4]),
    }


def test_correlations_by_hand(three) -> None:
    table = rank_agreement(three)
    found = {(r.group, r.first, r.second): (r.kendall, r.spearman) for r in table.itertuples()}
    # Pairs in order minus pairs out of order over all pairs; 1 - 6 Σ d² / (n (n² - 1)).
    assert found == {
        ("a", "up", "down"): pytest.approx((-1, -1)),
        ("b", "up", "down"): pytest.approx((-1 / 3, -0.5)),
        ("a", "up", "some"): pytest.approx((4 / 6, 0.8)),
        ("a", "down", "some"): pytest.approx((-4 / 6, -0.8)),
    }
    assert table["units"].tolist() == [4, 3, 4, 4]


def test_a_posterior_and_a_criterion_on_a_network() -> None:
    network, x = bp.models.create("digits"), torch.randn(1, 1, 8, 8)
    groups = bp.trace_groups(network, x)
    switches = {
        name: bp.switches.Dirichlet().bind(size, size) for name, size in groups.sizes.items()
    }
    channels = {name: torch.arange(size) for name, size in groups.sizes.items()}
    for switch in switches.values():
        for parameter in switch.parameters():
            nn.init.normal_(parameter)
    posterior = bp.SwitchPosterior(switches, [], channels)
    methods = {
        "posterior": posterior.scores(),
        "norm": bp.criteria.Magnitude().scores(network, groups, []),
    }
    table = rank_agreement(methods)
    assert table["group"].tolist() == list(groups)
    for row in table.itertuples():
        pair = (methods[name].values[row.group].numpy() for name in ("posterior", "norm"))
        assert row.spearman == pytest.approx(stats.spearmanr(*pair).statistic)


def test_equal_scores_agree_with_nothing() -> None:
    table = rank_agreement({"flat": scores(a=[1.0, 1, 1]), "steep": scores(a=[1.0, 2, 3])})
    assert table[["kendall", "spearman"]].isna().all(axis=None)


def test_refuses_what_cannot_be_compared(three) -> None:
    with pytest.raises(PlanError, match="at least 2 methods, got 1"):
        rank_agreement({"up": three["up"]})
    with pytest.raises(PlanError, match="a: up scores 4 units, short 2"):
        rank_agreement({"up": three["up"], "short": scores(a=[1.0, 2])})


# stability ----------------------------------------------------------------------------------------


class Spy(bp.criteria.Criterion):
    """Scores units by what it is told, and counts examples."""

    reference = "none"

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def scores(self, network, groups, loader) -> ChannelScores:
        counts = np.zeros(40, dtype=int)
        for inputs, targets in loader:
            assert len(inputs) == len(targets) > 0
            assert torch.equal(inputs[:, 0].long(), targets)
            counts += np.bincount(targets, minlength=40)
        self.seen.append(counts.tolist())
        values = torch.tensor(counts[:4]) + torch.tensor([0.1, 0.2, 0.3, 0.4])
        return ChannelScores({"a": values}, "spy")


def test_resamples_take_examples_as_often_as_a_bootstrap() -> None:
    numbers = torch.arange(40)
    loader = [(part[:, None].float(), part) for part in numbers.split(16)]
    spy = Spy()
    table = rank_stability(spy, nn.Identity(), None, loader, bootstraps=40, seed=3)
    counts = np.array(spy.seen)
    # Poisson(1): mean and variance 1, independent of one another.
    assert counts.mean() == pytest.approx(1, abs=5 / math.sqrt(counts.size))
    assert counts.var() == pytest.approx(1, abs=5 * math.sqrt(3 / counts.size))
    across = np.corrcoef(counts.T)[np.triu_indices(40, 1)]
    assert np.abs(across).mean() < 1 / math.sqrt(40)  # 0.8 / sqrt(n) if independent
    assert len({tuple(row) for row in counts.tolist()}) == 40
    pairs = [
        stats.spearmanr(a[:4] + np.arange(4) / 10, b[:4] + np.arange(4) / 10).statistic
        for i, a in enumerate(counts)
        for b in counts[:i]
    ]
    assert table["spearman"].item() == pytest.approx(np.mean(pairs))
    assert table["spearman_sd"].item() == pytest.approx(np.std(pairs, ddof=1))
    again = Spy()
    rank_stability(again, nn.Identity(), None, loader, bootstraps=3, seed=3)
    assert again.seen == spy.seen[:3]
    other = Spy()
    rank_stability(other, nn.Identity(), None, loader, bootstraps=3, seed=4)
    assert not any(row in spy.seen for row in other.seen)


def test_weights_alone_are_perfectly_stable_and_few_data_are_not() -> None:
    network, x = bp.models.create("digits"), torch.randn(64, 1, 8, 8)
    groups, loader = bp.trace_groups(network, x), [(x, torch.randint(10, (64,)))]
    norm = rank_stability(bp.criteria.Magnitude(), network, groups, loader, 3)
    assert norm["group"].tolist() == list(groups)
    assert norm[["kendall", "spearman"]].to_numpy() == pytest.approx(1)
    fisher = rank_stability(bp.criteria.Fisher(), network, groups, loader, 3)
    assert (fisher["spearman"] < 0.99).all()
    assert (fisher["spearman"] > 0.3).all()


def test_too_few_resamples() -> None:
    with pytest.raises(ConfigError, match="bootstraps: expected an integer of at least 3, got 2"):
        rank_stability(bp.criteria.Fisher(), nn.Identity(), None, [], 2)
