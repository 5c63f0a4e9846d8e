"""Elastic group lasso with and without debiasing on LeNet-5, over strengths and seeds.

    python experiments/lenet5_mnist_debias.py DENSE_0 DENSE_1 DENSE_2

Each run trains sparsely for 2 epochs, then retrains the units that are left for 2 more: the elastic
group lasso with its penalties, the debiased one with the ridge alone. Units of score 0 are removed,
which changes nothing, and nothing is fine-tuned. What is done already is left alone.
experiments/tables/debias.py builds the page.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bayesprune.config import parse_config
from bayesprune.experiment import run_experiment

HERE = Path(__file__).parent
METHODS = {"egl": "ElasticGroupLasso", "degl": "DebiasedElasticGroupLasso"}
STRENGTHS = (0.025, 0.05, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dense", nargs="+", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    for seed, dense in enumerate(options.dense):
        for strength in STRENGTHS:
            for name, method in METHODS.items():
                config = parse_config(
                    [
                        *("--config", str(HERE / "lenet5_mnist_penalties.yaml")),
                        *("--seed", str(seed), "--dense", str(dense), "--method", method),
                        *("--method.strength", str(strength), "--method.retrain", "0.5"),
                        *("--sparse.epochs", "4", "--select", "Threshold"),
                        *("--select.value", "1e-9", "--finetune", "{epochs: 0}"),
                    ]
                )
                out = options.runs / f"lenet5_mnist_{name}_{strength}-{seed}"
                run_experiment(config, out, resume=out.exists())
                print(f"{name}, strength {strength}, seed {seed}: done", flush=True)


if __name__ == "__main__":
    main()
