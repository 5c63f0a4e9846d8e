"""Prune LeNet-5 on MNIST with every switch family: by its own rule, and at 5% of the MACs.

    python experiments/lenet5_mnist_families.py DENSE_0 DENSE_1 DENSE_2 [--only NAME …]

DENSE_i is the ``dense.safetensors`` of a run with seed i (experiments/lenet5_mnist_dirichlet.yaml).
A run is what `bayesprune run experiments/lenet5_mnist_families.yaml` with the options listed in
`FAMILIES` does; the run at the budget takes over the fit of the run by the family's own rule, which
is the same. What is done already is left alone, so the script can be interrupted.
experiments/tables/families.py builds the page.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bayesprune.config import parse_config
from bayesprune.experiment import run_experiment

HERE = Path(__file__).parent
GAUSSIAN = ["--fit.weight_posterior", "GaussianWeights"]
FREE = ["--fit.constraint", "null"]
FAMILIES = {
    "dirichlet": ["--method", "Dirichlet", "--method.total", "anneal", *FREE],
    "logistic_normal": ["--method", "LogisticNormal", "--method.total", "anneal", *FREE],
    "log_normal": ["--method", "LogNormal", "--method.init_sd", "0.3", "--select", "FamilyRule"],
    "horseshoe": ["--method", "Horseshoe", *GAUSSIAN],
    "normal_jeffreys": ["--method", "NormalJeffreys"],
    "hard_concrete": ["--method", "HardConcrete", "--method.penalty", "1e-3"],
    "bernoulli": [
        "--method",
        "Bernoulli",
        "--method.penalty",
        "1e-3",
        "--fit.learning_rate",
        "0.02",
    ],
    "radial": ["--method", "Radial", *GAUSSIAN],
    "information_bottleneck": ["--method", "InformationBottleneck"],
    "bayesian_group_lasso": ["--method", "BayesianGroupLasso", *GAUSSIAN],
    "spike_and_slab": ["--method", "SpikeAndSlab"],
}
"""Options of each family beside experiments/lenet5_mnist_families.yaml."""

BUDGET = ["--select", "Budget", "--select.macs", "0.05"]


def run(name: str, seed: int, dense: Path, runs: Path) -> None:
    """The two runs of a family with one seed."""
    options = ["--config", str(HERE / "lenet5_mnist_families.yaml"), "--seed", str(seed)]
    options += ["--dense", str(dense), *FAMILIES[name]]
    needs_budget = name in ("dirichlet", "logistic_normal")  # its gate mass
    own, budget = (runs / f"lenet5_mnist_{name}_{rule}-{seed}" for rule in ("own", "5pct"))
    if not needs_budget:
        run_experiment(parse_config(options), own, resume=own.exists())
        options += ["--fitted", str(own)]
    run_experiment(parse_config([*options, *BUDGET]), budget, resume=budget.exists())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dense", nargs="+", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    for seed in options.seeds or range(len(options.dense)):
        for name in options.only:
            run(name, seed, options.dense[seed], options.runs)
            print(f"{name}, seed {seed}: done", flush=True)


if __name__ == "__main__":
    main()
