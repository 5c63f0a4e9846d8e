"""The default recipe beside pruners of other libraries, over budgets and seeds.

    PYTHONPATH=experiments python experiments/frontier.py TASK [--only NAME …] [--seeds S …]

For every seed a dense network is trained once (runs/TASK_dense-SEED; with `tune`, then trained on
without augmentation, runs/TASK_tuned-SEED); all methods start from it and are fine-tuned alike, for
as many epochs in all: what does not fit is fine-tuned for the epochs of the fit as well. *auto*
brings the control from fresh weights in the same widths. What is done already is left alone, so the
script can be interrupted. experiments/tables/frontier.py builds the page. The peers need
torch-pruning.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from bayesprune.config import parse_config
from bayesprune.errors import BudgetError
from bayesprune.experiment import run_experiment

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Task:
    """A network and data, budgets, and what is changed of the configuration.

    `dense` is changed for pretraining only; `tune` is for how many epochs the dense network is then
    trained on as `options` say. LeNet-300-100 is pretrained with augmented images, and tuned, pruned
    and fine-tuned without.
    """

    file: str
    budgets: tuple[int, ...]
    options: tuple[str, ...] = ()
    dense: tuple[str, ...] = ()
    tune: int = 0
    cost: str = "macs"
    peers: bool = True


TASKS = {
    "lenet300_100_mnist": Task(
        "lenet300_100_mnist.yaml",
        (9_000, 13_000, 20_000, 33_000, 66_000),
        dense=("--data.augment", "shift"),
    ),
    "lenet300_100_fashion": Task(
        "lenet300_100_fashion.yaml",
        (20_000, 32_600),
        ("--finetune.epochs", "40", "--fit.epochs", "6", "--fit.train_weights", "true"),
        dense=("--data.augment", "shift_flip", "--data.max_shift", "1"),
        peers=False,
    ),
    "lenet5_mnist": Task("lenet5_mnist.yaml", (60_000, 95_000, 150_000, 250_000, 500_000)),
    "lenet5_mnist_plain": Task(
        "lenet5_mnist.yaml",
        (60_000, 95_000, 150_000),
        ("--data.augment", "none"),
        ("--data.augment", "none"),
        peers=False,
    ),
    "lenet5_mnist_weights": Task("lenet5_mnist.yaml", (2_000,), cost="params", peers=False),
}
PEERS = {
    "torch_pruning_magnitude": ["peers.TorchPruning", "--method.importance", "magnitude"],
    "torch_pruning_taylor": ["peers.TorchPruning", "--method.importance", "taylor"],
    "ln_structured": ["peers.StructuredL2"],
    "group_norm": ["GroupPruner", "--method.strength", "1e-4"],
}
"""torch-pruning's group-norm pruner trains with a growing penalty: here `GroupPruner`."""


def dense(name: str, task: Task, seed: int, runs: Path) -> Path:
    """The dense network of a seed, trained if it is not there."""
    name = name.removesuffix("_weights")
    whole = ["--config", str(HERE / task.file), "--seed", str(seed)]
    whole += ["--method", "Magnitude", "--select.macs", "1.0", "--finetune"]
    trained, tuned = (runs / f"{name}_{stage}-{seed}" for stage in ("dense", "tuned"))
    if not (trained / "summary.json").exists():
        config = parse_config([*whole, "{epochs: 0}", *task.dense])
        run_experiment(config, trained, resume=trained.exists())
    if not task.tune:
        return trained / "dense.safetensors"
    if not (tuned / "summary.json").exists():
        given = ["--dense", str(trained / "dense.safetensors")]
        again = f"{{epochs: {task.tune}, learning_rate: 1e-3, average: 0.999}}"
        run_experiment(parse_config([*whole, again, *given]), tuned, resume=tuned.exists())
    return tuned / "pruned.safetensors"


def prune(name: str, method: str, budget: int, seed: int, runs: Path) -> None:
    """One run."""
    task = TASKS[name]
    given = ["--config", str(HERE / task.file), *task.options, "--seed", str(seed)]
    given += ["--dense", str(dense(name, task, seed, runs))]
    if method == "auto":
        given += ["--method", "auto", f"--select.{task.cost}", str(budget)]
        if task.cost != "macs":
            given += ["--select.macs", "null"]
        recipe = parse_config(given).finetune
        same = {"epochs": recipe.epochs, "learning_rate": recipe.learning_rate, "average": 0.999}
        given += ["--scratch", str(same | {"distill": {"weight": 0.7, "temperature": 4.0}})]
    else:
        recipe = parse_config([*given, "--method", "auto"])
        given += ["--method", *PEERS[method]]
        if method == "group_norm":
            given += [f"--select.{task.cost}", str(budget)]
            given += ["--sparse.epochs", str(recipe.fit.epochs), "--sparse.schedule", "constant"]
            epochs = recipe.finetune.epochs
        else:
            given += ["--method.macs", str(budget), "--select", "Threshold"]
            given += ["--select.value", "0.5"]
            epochs = recipe.finetune.epochs + recipe.fit.epochs
        given += ["--finetune", str({"epochs": epochs, "learning_rate": 2e-3, "average": 0.999})]
        given += ["--finetune.distill", "{weight: 0.7, temperature: 4.0}"]
    out = runs / f"frontier_{name}_{method}_{budget / 1000:g}k-{seed}"
    run_experiment(parse_config(given), out, resume=out.exists())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--only", nargs="+", choices=["auto", *PEERS])
    parser.add_argument("--budgets", nargs="+", type=int)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    task = TASKS[options.task]
    methods = options.only or ["auto", *(PEERS if task.peers else ())]
    for seed in options.seeds:
        for budget in options.budgets or task.budgets:
            for method in methods:
                try:
                    prune(options.task, method, budget, seed, options.runs)
                    print(f"{method}, {budget:,}, seed {seed}: done", flush=True)
                except BudgetError as error:  # torch-pruning cannot make every network so small
                    print(f"{method}, {budget:,}, seed {seed}: {error}", flush=True)


if __name__ == "__main__":
    main()
