"""Build docs/results/recovery.md: do posteriors find the channels that are at work?

    python experiments/tables/recovery.py [--replications 5]

A network with one hidden layer, 28 of its 40 units switched off, makes the data; every method gets
the whole network and the data, and ranks the channels. By construction the weights say nothing
about which channels are on. Reported is the area under the ROC curve of "channel is on", mean ±
standard error over replications, for little data and for more. Takes a few minutes; without
training anything, ``--rebuild`` writes the page from docs/results/recovery.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import pyro.distributions as dist
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bayesprune as bp
from bayesprune import switches
from bayesprune.training import make_fabric

RESULTS = Path(__file__).parents[2] / "docs" / "results"
INPUTS, UNITS, ACTIVE = 10, 40, 12
EXAMPLES = (100, 400)
NOISE = 1.0
METHODS = {
    "Dirichlet (mass k)": switches.Dirichlet(total="keep"),
    "Dirichlet (mass C)": switches.Dirichlet(total="size"),
    "LogisticNormal (mass k)": switches.LogisticNormal(total="keep"),
    "LogNormal": switches.LogNormal(),
    "Horseshoe": switches.Horseshoe(global_scale=0.1),
    "NormalJeffreys": switches.NormalJeffreys(),
    "HardConcrete": switches.HardConcrete(penalty=0.1),
    "Bernoulli (ARM)": switches.Bernoulli(penalty=0.1),
    "Radial": switches.Radial(),
    "InformationBottleneck": switches.InformationBottleneck(),
    "BayesianGroupLasso": switches.BayesianGroupLasso(),
    "SpikeAndSlab": switches.SpikeAndSlab(prior_probability=0.1),
}


def simulate(seed: int, examples: int) -> tuple[nn.Module, torch.Tensor, DataLoader]:
    """A network, which of its channels are on, and data that they made."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(INPUTS, UNITS), nn.ReLU(), nn.Linear(UNITS, 1))
    with torch.no_grad():
        for layer in (network[0], network[2]):
            layer.weight.normal_()
            layer.bias.zero_()
    active = torch.zeros(UNITS)
    active[torch.randperm(UNITS)[:ACTIVE]] = 1.0
    inputs = torch.randn(examples, INPUTS)
    with torch.no_grad():
        truth = network[2](network[1](network[0](inputs)) * active)
    targets = truth.squeeze(-1) + NOISE * torch.randn(examples)
    return network, active, DataLoader(TensorDataset(inputs, targets), batch_size=50, shuffle=True)


def likelihood(output: torch.Tensor) -> dist.Normal:
    return dist.Normal(output.squeeze(-1), NOISE)


def areas(seed: int, examples: int) -> dict[str, float]:
    """Area under the ROC curve of every method on one simulated data set."""
    network, active, loader = simulate(seed, examples)
    groups = bp.trace_groups(network, torch.zeros(1, INPUTS))
    (name,) = groups
    found = {}
    fabric = make_fabric()
    epochs = 30_000 // examples
    for method, switch in METHODS.items():
        switched = bp.SwitchedNetwork(
            network,
            groups,
            switch,
            num_data=examples,
            keep={name: ACTIVE},
            likelihood=likelihood,
        )
        posterior = bp.fit_switches(
            switched, loader, epochs=epochs, learning_rate=0.05, fabric=fabric, progress=False
        )
        found[method] = roc_auc_score(active, posterior.scores().values[name])
    weights = bp.criteria.Magnitude().scores(network, groups, loader).values[name]
    found["weight magnitude"] = roc_auc_score(active, weights)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replications", type=int, default=5)
    parser.add_argument("--rebuild", action="store_true")
    options = parser.parse_args()
    file = RESULTS / "recovery.json"
    if not options.rebuild:
        torch.set_num_threads(1)
        results: dict[str, dict[str, list[float]]] = {str(n): {} for n in EXAMPLES}
        for seed in range(options.replications):
            for examples in EXAMPLES:
                for method, area in areas(seed, examples).items():
                    results[str(examples)].setdefault(method, []).append(round(area, 4))
            print(f"replication {seed + 1} of {options.replications}", flush=True)
        file.write_text(json.dumps(results, indent=1) + "\n")
    write(json.loads(file.read_text()))


def write(results: dict[str, dict[str, list[float]]]) -> None:
    replications = len(next(iter(results[str(EXAMPLES[0])].values())))
    lines = [
        "# Finding the channels that are at work",
        "",
        f"A hidden layer of {UNITS} ReLU units, {ACTIVE} of them on, makes regression data with "
        "noise of",
        f"standard deviation {NOISE:g}. Every method gets the network with all units and ranks "
        "them; the weights",
        "of units that are on and off have the same distribution. Area under the ROC curve of "
        '"the unit is',
        f'on", mean ± standard error over {replications} simulated data sets; each family with its '
        "own estimator and",
        "score. Built by `experiments/tables/recovery.py`.",
        "",
        "| method | " + " | ".join(f"{n} examples" for n in results) + " |",
        "|---|" + "---|" * len(results),
    ]
    for method in next(iter(results.values())):
        cells = []
        for areas in results.values():
            values = areas[method]
            error = statistics.stdev(values) / len(values) ** 0.5
            cells.append(f"{statistics.mean(values):.3f} ± {error:.3f}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    (RESULTS / "recovery.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
