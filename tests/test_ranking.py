"""The cheapest guard against a ranking that is wrong: does it beat chance without fine-tuning?"""

import pytest
import torch
from scipy import stats

import bayesprune as bp
from bayesprune import datasets, models
from bayesprune.training import make_fabric

FRACTIONS = (0.8, 0.65, 0.5)
SEEDS = (0, 1, 2)
RANDOM_CUTS = 10


def accuracy_after(scores, fraction, network, groups, data):
    plan = bp.select(scores, bp.KeepFraction(fraction), groups=groups)
    small = bp.remove_channels(network, plan, data.example_input)
    return 1 - bp.evaluate(small, data.validation)["error"]


@pytest.fixture(scope="module")
def accuracies():
    """Held-out accuracy after cuts of the same shape: one row per trained network and width."""
    fabric = make_fabric()
    rows = {"dirichlet": [], "fisher": [], "random": []}
    for seed in SEEDS:
        config = datasets.DataConfig(name="digits", batch_size=64, validation=500)
        data = datasets.load(config, seed)
        torch.manual_seed(seed)
        network = models.create("digits", widths=(24, 32, 32, 32))
        settings = bp.TrainConfig(epochs=10, learning_rate=3e-3)
        quiet = {"fabric": fabric, "seed": seed, "progress": False}
        bp.train_network(network, data.train, settings, stage="train", **quiet)
        groups = bp.trace_groups(network, data.example_input)
        fisher = bp.criteria.Fisher().scores(network, groups, data.train_plain)
        for fraction in FRACTIONS:
            # Frozen weights; the rule only cuts, the weights are not folded: rankings alone count.
            switched = bp.SwitchedNetwork(
                network,
                groups,
                bp.switches.Dirichlet(concentration=0.1, total="keep"),
                num_data=data.num_train,
                keep=fraction,
            )
            posterior = bp.fit_switches(switched, data.train, epochs=10, **quiet)
            cut = (fraction, network, groups, data)
            rows["dirichlet"].append(accuracy_after(posterior.scores(), *cut))
            rows["fisher"].append(accuracy_after(fisher, *cut))
            chance = [
                accuracy_after(bp.criteria.Random(seed=i).scores(network, groups, []), *cut)
                for i in range(RANDOM_CUTS)
            ]
            rows["random"].append(sum(chance) / len(chance))
    return {name: torch.tensor(values) for name, values in rows.items()}


def test_the_posterior_beats_random_cuts(accuracies):
    test = stats.ttest_rel(accuracies["dirichlet"], accuracies["random"], alternative="greater")
    assert test.pvalue < 0.01, accuracies


def test_the_posterior_is_not_worse_than_fisher(accuracies):
    test = stats.ttest_rel(accuracies["dirichlet"], accuracies["fisher"], alternative="less")
    assert test.pvalue > 0.05, accuracies
