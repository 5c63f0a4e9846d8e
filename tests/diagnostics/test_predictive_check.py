"""Predictions averaged over switches."""

import pytest
import torch
from torch import nn

import bayesprune as bp
from bayesprune.diagnostics import SwitchAverage, predictive_check
from bayesprune.errors import ConfigError

DRAWS = 5


def by_hand(toy, gates):
    """Class probabilities with these gates, written out."""
    first, _, second, _, third = toy.network
    hidden = second((first(toy.inputs).relu()) * gates["0"]).relu()
    return third(hidden * gates["2"]).softmax(1)


@torch.no_grad()
def test_probabilities_are_averaged_and_measured(classifier):
    gates = classifier.posterior.sample(DRAWS, seed=3)
    each = [by_hand(classifier, {n: g[i] for n, g in gates.items()}) for i in range(DRAWS)]
    averaged = torch.stack(each).mean(0)
    predictor = SwitchAverage(classifier.network, classifier.groups, gates)
    torch.testing.assert_close(predictor(classifier.inputs).exp(), averaged)
    pruned = nn.Sequential(nn.Linear(3, 2))
    quality = predictive_check(
        classifier.posterior,
        classifier.network,
        classifier.groups,
        classifier.loader,
        pruned=pruned,
        num_draws=DRAWS,
        seed=3,
    ).quality
    assert list(quality.index) == ["switch-averaged", "mean gates", "network", "pruned"]
    ones = {name: torch.ones(size) for name, size in classifier.groups.sizes.items()}
    mean = by_hand(classifier, classifier.posterior.mean)
    rows = (averaged, mean, by_hand(classifier, ones), pruned(classifier.inputs).softmax(1))
    onehot = nn.functional.one_hot(classifier.labels, 2)
    for (_, row), probabilities in zip(quality.iterrows(), rows, strict=True):
        nll = -(probabilities * onehot).sum(1).log().mean().item()
        brier = (probabilities - onehot).square().sum(1).mean().item()
        assert row["nll"] == pytest.approx(nll, rel=1e-4)
        assert row["brier"] == pytest.approx(brier, rel=1e-4)
        wrong = probabilities.argmax(1) != classifier.labels
        assert row["error"] == pytest.approx(wrong.float().mean().item())


def test_refusals(classifier):
    arguments = (classifier.network, classifier.groups, classifier.loader)
    with pytest.raises(ConfigError, match="num_draws: expected an integer of at least 1, got 0"):
        predictive_check(classifier.posterior, *arguments, num_draws=0)
    with pytest.raises(ConfigError, match="at least one group"):
        predictive_check(bp.SwitchPosterior({}, []), *arguments)
