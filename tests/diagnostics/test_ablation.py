"""Exact ablation, against networks whose channels are zeroed by hand."""

import pytest
import torch
from torch.nn import functional

import bayesprune as bp
from bayesprune.diagnostics import ablation
from bayesprune.errors import ConfigError, DataError

DRAWS = 3


@torch.no_grad()
def test_rises_are_those_of_zeroed_columns(classifier):
    found = ablation(
        classifier.posterior,
        classifier.network,
        classifier.groups,
        classifier.loader,
        num_draws=DRAWS,
        seed=2,
        progress=False,
    )
    gates = classifier.posterior.sample(DRAWS, seed=2)
    switched = bp.SwitchedNetwork(
        classifier.network, classifier.groups, bp.switches.Dirichlet(), num_data=1
    )

    def loss(one):
        return functional.cross_entropy(switched.fold(one)(classifier.inputs), classifier.labels)

    for draw in range(DRAWS):
        one = {name: g[draw] for name, g in gates.items()}
        for name, gate in one.items():
            for channel in range(len(gate)):
                without = gate * (torch.arange(len(gate)) != channel)
                rise = loss({**one, name: without}) - loss(one)
                assert found.rises[name][draw, channel].item() == pytest.approx(
                    rise.item(), abs=1e-5
                )
    expected = {name: rises.mean(0) for name, rises in found.rises.items()}
    scores = found.scores
    assert all(torch.equal(scores.values[n], v.float()) for n, v in expected.items())
    free = sum(int((v <= 0).sum()) for v in expected.values())
    assert found.verdict.startswith(f"{free} of 7 channels")
    assert list(found.to_frame()["expected_rise"]) == torch.cat(list(expected.values())).tolist()


def test_a_channel_that_nothing_reads_costs_nothing(classifier):
    with torch.no_grad():
        classifier.network[2].weight[:, 1] = 0.0
    found = ablation(
        classifier.posterior,
        classifier.network,
        classifier.groups,
        classifier.loader,
        num_draws=2,
        progress=False,
    )
    assert (found.rises["0"][:, 1] == 0).all()
    assert (found.rises["0"][:, 0] != 0).all()


def test_refusals(classifier):
    network, groups = classifier.network, classifier.groups
    with pytest.raises(ConfigError, match="num_draws"):
        ablation(classifier.posterior, network, groups, classifier.loader, num_draws=0)
    with pytest.raises(DataError, match="ablation: the loader is empty"):
        ablation(classifier.posterior, network, groups, [], progress=False)
    broken = [(torch.full((2, 3), float("nan")), torch.zeros(2, dtype=torch.long))]
    with pytest.raises(DataError, match="is not finite"):
        ablation(classifier.posterior, network, groups, broken, progress=False)
