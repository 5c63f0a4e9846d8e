"""Time of a fitting step, with Pyro and without, and how noisy its gradient is.

    python experiments/bench/steps.py [--dense FILE] [--rounds 30] [--draws 60]

On dense LeNet-5, ResNet-56 and VGG-16 with frozen weights, a step of every estimator is timed in
turn with a plain step: the same network and gates (the posterior means, as a softmax of as many
parameters), cross-entropy, backward pass and Adam, without Pyro. Each ratio is the median over
rounds of the ratio of CPU times within a round; weights and inputs are random.

With a trained LeNet-5, such as dense.safetensors of a run, the noise of the gradient is measured on
a batch of MNIST, 50 steps at the analytic mean into a fit: the variance over draws, summed over the
switches' parameters, relative to one draw that the batch shares, and times the time of a step: what
a second buys. Writes docs/results/steps.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

import bayesprune as bp
from bayesprune import datasets, models
from bayesprune.svi import negative_elbo

ESTIMATORS = {
    "AnalyticMean": bp.AnalyticMean(),
    "Implicit(1, batch)": bp.Implicit(1),
    "Implicit(16, group)": bp.Implicit(16, "group"),
    "Implicit(32, group)": bp.Implicit(32, "group"),
    "Implicit(1, example)": bp.Implicit(1, "example"),
    "Implicit(5, batch)": bp.Implicit(5),
    "Implicit(150, batch)": bp.Implicit(150),
}
NETWORKS = {"lenet5": (128, list(ESTIMATORS)), "resnet56": (32, None), "vgg16": (32, None)}
FEW = ["AnalyticMean", "Implicit(16, group)", "Implicit(32, group)"]
Batch = tuple[Tensor, Tensor]


def fitting_step(switched: bp.SwitchedNetwork, estimator: bp.Estimator) -> Callable[[Batch], None]:
    """What `fit_switches` does with a batch."""
    optimizer = torch.optim.Adam(switched.guide.parameters(), lr=1e-6)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        negative_elbo(switched, estimator, *batch).loss.backward()
        optimizer.step()

    return step


def plain_step(switched: bp.SwitchedNetwork) -> Callable[[Batch], None]:
    """The same gates without a posterior."""
    network, sizes = switched.network, switched.groups.sizes
    logits = {name: nn.Parameter(torch.zeros(size)) for name, size in sizes.items()}
    optimizer = torch.optim.Adam(logits.values(), lr=1e-6)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        gates = {name: sizes[name] / 4 * value.softmax(0) for name, value in logits.items()}
        functional.cross_entropy(network(batch[0], gates), batch[1]).backward()
        optimizer.step()

    return step


def seconds(step: Callable[[Batch], None], batch: Batch) -> float:
    started = time.process_time()
    step(batch)
    return time.process_time() - started


def variance(switched: bp.SwitchedNetwork, estimator: bp.Estimator, batch: Batch, n: int) -> float:
    """Summed variance of the gradient over draws."""
    gradients = []
    for _ in range(n):
        switched.guide.zero_grad()
        negative_elbo(switched, estimator, *batch).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in switched.guide.parameters()]))
    return float(torch.stack(gradients).var(0).sum())


def noise(dense: str, times: dict[str, float], draws: int) -> dict[str, object]:
    """Variance of gradients, and variance times time, of a LeNet-5 early in a fit."""
    config = datasets.DataConfig(name="mnist", batch_size=NETWORKS["lenet5"][0])
    data = datasets.load(config, seed=0)
    network = bp.load_pruned(dense, models.create("lenet5"))
    groups = bp.trace_groups(network, data.example_input)
    switch = bp.switches.Dirichlet(concentration=0.1, total="keep")
    switched = bp.SwitchedNetwork(network, groups, switch, num_data=data.num_train, keep=0.25)
    batch, *first = itertools.islice(data.train, 51)
    bp.fit_switches(switched, first, epochs=1, estimator=bp.AnalyticMean(), progress=False)
    switched.train()
    torch.manual_seed(0)
    found = {
        name: variance(switched, estimator, batch, draws if "150" not in name else 8)
        for name, estimator in ESTIMATORS.items()
        if name != "AnalyticMean"
    }
    base = found["Implicit(1, batch)"]
    cost = {name: times[name] / times["Implicit(1, batch)"] for name in found}
    return {
        "variance": {name: round(v / base, 5) for name, v in found.items()},
        "variance x time": {name: round(v / base * cost[name], 5) for name, v in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dense", help="weights of a trained LeNet-5 (safetensors)")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--draws", type=int, default=60)
    parser.add_argument("--out", default="docs/results/steps.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, object] = {"rounds": options.rounds, "draws": options.draws}
    for name, (size, names) in NETWORKS.items():
        torch.manual_seed(0)
        shape = models.input_shape(name)
        batch = (torch.randn(size, *shape), torch.randint(10, (size,)))
        network = models.create(name)
        groups = bp.trace_groups(network, batch[0][:1])
        switch = bp.switches.Dirichlet(concentration=0.1, total="keep")
        switched = bp.SwitchedNetwork(network, groups, switch, num_data=50_000, keep=0.25)
        steps = {e: fitting_step(switched, ESTIMATORS[e]) for e in names or FEW}
        plain = plain_step(switched)
        ratios: dict[str, list[float]] = {e: [] for e in steps}
        for round_ in range(options.rounds + 1):  # the first warms up
            for estimator, step in steps.items():
                slow = estimator == "Implicit(150, batch)"
                if slow and round_ > 2:
                    continue
                # The plain step before and after, so that a change of the clock cancels.
                before, own, after = (seconds(s, batch) for s in (plain, step, plain))
                if round_:
                    ratios[estimator].append(2 * own / (before + after))
        times = {e: round(statistics.median(r), 3) for e, r in ratios.items()}
        entry: dict[str, object] = {"batch": size, "step / plain step": times}
        if name == "lenet5" and options.dense:
            entry |= noise(options.dense, times, options.draws)
        found[name] = entry
        print(name, json.dumps(entry, indent=1), flush=True)
    with open(options.out, "w") as file:
        file.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
