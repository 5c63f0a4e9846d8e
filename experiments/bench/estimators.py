"""Time and agreement of the estimators on a dense LeNet-5: analytic mean against implicit draws.

    python experiments/bench/estimators.py runs/lenet5_mnist_dirichlet/dense.safetensors

Steps of all estimators are timed in turn, and each ratio is the median over rounds. The posterior
means that `AnalyticMean` and `Implicit(150)` reach after the same number of steps on the same
batches are compared by Spearman's rank correlation. Writes docs/results/estimators.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import islice
from pathlib import Path

import torch
from scipy.stats import spearmanr

import bayesprune as bp
from bayesprune import datasets, models
from bayesprune.svi import negative_elbo

ESTIMATORS = {
    "AnalyticMean": bp.AnalyticMean(),
    "Implicit(1, batch)": bp.Implicit(1),
    "Implicit(16, group)": bp.Implicit(16, "group"),
    "Implicit(1, example)": bp.Implicit(1, "example"),
    "Implicit(5, batch)": bp.Implicit(5),
    "Implicit(150, batch)": bp.Implicit(150),
}


def switched_lenet(dense: str, data: datasets.Data, total: str | float) -> bp.SwitchedNetwork:
    network = bp.load_pruned(dense, models.create("lenet5"))
    groups = bp.trace_groups(network, data.example_input)
    switch = bp.switches.Dirichlet(concentration=0.1, total=total)
    return bp.SwitchedNetwork(network, groups, switch, num_data=data.num_train, keep=0.25)


def seconds_per_step(switched: bp.SwitchedNetwork, batch, estimator) -> float:
    started = time.perf_counter()
    negative_elbo(switched, estimator, *batch).loss.backward()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dense")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64, help="batch of the timed steps")
    parser.add_argument("--fit-batch", type=int, default=32, help="batch of the compared fits")
    parser.add_argument("--out", default="docs/results/estimators.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = datasets.load(datasets.DataConfig(name="mnist", batch_size=options.batch), seed=0)
    batch = next(iter(data.train))

    switched = switched_lenet(options.dense, data, "keep")
    times: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    for round_ in range(options.rounds + 1):  # the first warms up
        for name, estimator in ESTIMATORS.items():
            seconds = seconds_per_step(switched, batch, estimator)
            if round_:
                times[name].append(seconds)
    base = times["AnalyticMean"]
    ratios = {
        name: statistics.median(t / b for t, b in zip(values, base, strict=True))
        for name, values in times.items()
    }

    torch.manual_seed(0)
    data = datasets.load(datasets.DataConfig(name="mnist", batch_size=options.fit_batch), seed=0)
    batches = list(islice(data.train, options.steps))
    correlations = {}
    for total in ("size", "keep"):
        means = {}
        for name in ("AnalyticMean", "Implicit(150, batch)"):
            posterior = bp.fit_switches(
                switched_lenet(options.dense, data, total),
                batches,
                epochs=1,
                estimator=ESTIMATORS[name],
            )
            means[name] = posterior.mean
        correlations[total] = {
            group: float(spearmanr(*(mean[group].numpy() for mean in means.values())).statistic)
            for group in means["AnalyticMean"]
        }
    result = {"seconds per step / AnalyticMean": ratios, "rank correlation": correlations}
    result |= {name: getattr(options, name) for name in ("steps", "batch", "fit_batch", "rounds")}
    Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
