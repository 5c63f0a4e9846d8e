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
from dataclasses import asdict, dataclass
from pathlib import Path

from bayesprune.config import parse_config
from bayesprune.errors import BudgetError
from bayesprune.experiment import run_experiment

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Task:
    """A network and data, budgets, and what is changed of the configuration.

    `dense` is changed for pretraining only; `tune` is for how many epochs the dense network is then
    trained on as `options` say, with distillation from itself. LeNet-300-100 is pretrained with
    images shifted by whole pixels; with few pixels left it is better off with fractions, or none.
    """

    file: str
    budgets: tuple[int, ...]
    options: tuple[str, ...] = ()
    dense: tuple[str, ...] = ()
    tune: int = 0
    cost: str = "macs"
    peers: bool = False
    dense_of: str | None = None


SHIFTED = ("--data.augment", "shift", "--data.max_shift", "2")
TASKS = {
    "lenet5_mnist": Task("lenet5_mnist.yaml", (60_000, 95_000, 150_000), dense=SHIFTED),
    "lenet5_mnist_plain": Task(
        "lenet5_mnist.yaml", (60_000, 95_000, 150_000), ("--data.augment", "none")
    ),
    "lenet5_mnist_weights": Task(
        "lenet5_mnist.yaml", (2_000,), cost="params", dense_of="lenet5_mnist"
    ),
    "lenet5_mnist_inputs_weights": Task(
        "lenet5_mnist.yaml",
        (2_000,),
        (
            *("--model_args", "{select_inputs: true}"),
            *("--finetune.epochs", "100", "--finetune.learning_rate", "5e-3"),
        ),
        dense=SHIFTED,
        cost="params",
    ),
    "lenet5_mnist_short": Task(
        "lenet5_mnist.yaml",
        (60_000, 95_000, 150_000, 250_000, 500_000),
        ("--fit.epochs", "3", "--finetune.epochs", "4"),
        peers=True,
        dense_of="lenet5_mnist",
    ),
    "lenet300_100_mnist": Task(
        "lenet300_100_mnist.yaml",
        (9_000,),
        (
            *("--data.augment", "affine", "--data.max_shift", "0.5"),
            *("--finetune.epochs", "100", "--finetune.distill.remember", "false"),
        ),
        dense=SHIFTED,
    ),
    "lenet300_100_mnist_plain": Task(
        "lenet300_100_mnist.yaml", (9_000,), dense_of="lenet300_100_mnist"
    ),
    "lenet300_100_mnist_short": Task(
        "lenet300_100_mnist.yaml",
        (9_000, 13_000, 20_000, 33_000, 66_000),
        ("--fit.epochs", "5", "--finetune.epochs", "10"),
        peers=True,
        dense_of="lenet300_100_mnist",
    ),
    "lenet300_100_fashion": Task(
        "lenet300_100_fashion.yaml",
        (20_000, 32_600),
        ("--finetune.epochs", "40"),
        dense=("--data.augment", "shift_flip", "--data.max_shift", "1"),
        tune=10,
    ),
    # On a GPU; then a smaller network, with the same recipe in short, for two cores.
    "vgg16_cifar10": Task("vgg16_cifar10.yaml", (67_000_000, 51_000_000)),
    "resnet56_cifar10": Task("resnet56_cifar10.yaml", (49_000_000, 35_000_000)),
    "resnet20_cifar10": Task(
        "resnet56_cifar10.yaml",
        (16_000_000,),
        (
            *("--model", "bayesprune:resnet20", "--limits", "{minimum: 2}"),
            *("--pretrain.epochs", "5", "--fit.epochs", "2", "--finetune.epochs", "3"),
        ),
    ),
}
RECIPES = {
    "spike_and_slab": ["SpikeAndSlab"],
    "hard_concrete": ["HardConcrete", "--method.penalty", "1e-3"],
    "normal_jeffreys": ["NormalJeffreys"],
    "horseshoe": ["Horseshoe"],
    "log_normal": ["LogNormal"],
    "radial": ["Radial"],
    "bernoulli": ["Bernoulli"],
    "dirichlet": ["Dirichlet", "--method.total", "anneal", "--fit.constraint", "null"],
    "dirichlet_rounds": [
        *("Dirichlet", "--method.total", "anneal", "--fit.constraint", "null"),
        *("--rounds", "3", "--fit.epochs", "2", "--finetune.epochs", "3"),
    ],
    "implicit": [
        *("Dirichlet", "--method.total", "anneal", "--fit.constraint", "null"),
        *("--fit.estimator", "Implicit", "--fit.estimator.num_samples", "16"),
        *("--fit.estimator.share", "group"),
    ],
    "logistic_normal": ["LogisticNormal", "--method.total", "anneal", "--fit.constraint", "null"],
    "wide_start": ["InformationBottleneck", "--method.init_sd", "0.1"],
    "frozen": ["InformationBottleneck", "--fit.train_weights", "false"],
    "global_rank": ["InformationBottleneck", "--select", "GlobalRank"],
    "cost_rank": [
        *("InformationBottleneck", "--select", "GlobalRank", "--select.cost_weight", "1000"),
    ],
    "evidence": [
        *("LogNormal", "--fit.constraint", "null", "--select", "rules.EvidenceFirst"),
    ],
    "no_averaging": ["InformationBottleneck", "--finetune.average", "null"],
    "no_distillation": ["InformationBottleneck", "--finetune.distill", "null"],
}
"""What differs from the default recipe in short; experiments/tables/recipes.py builds the page."""
PEERS = {
    "torch_pruning_magnitude": ["peers.TorchPruning", "--method.importance", "magnitude"],
    "torch_pruning_taylor": ["peers.TorchPruning", "--method.importance", "taylor"],
    "torch_pruning_uniform": [
        *("peers.TorchPruning", "--method.importance", "taylor"),
        *("--method.global_pruning", "false"),
    ],
    "ln_structured": ["peers.StructuredL2"],
    "group_norm": ["GroupPruner", "--method.strength", "1e-4"],
}
"""torch-pruning's group-norm pruner trains with a growing penalty: here `GroupPruner`."""


def dense(name: str, seed: int, runs: Path) -> Path:
    """The dense network of a seed, trained if it is not there."""
    name = TASKS[name].dense_of or name
    task = TASKS[name]
    whole = ["--config", str(HERE / task.file), "--seed", str(seed), *task.options]
    whole += ["--method", "Magnitude", "--select.macs", "1.0", "--finetune"]
    trained, tuned = (runs / f"{name}_{stage}-{seed}" for stage in ("dense", "tuned"))
    if not (trained / "summary.json").exists():
        config = parse_config([*whole, "{epochs: 0}", *task.dense])
        run_experiment(config, trained, resume=trained.exists())
    if not task.tune:
        return trained / "dense.safetensors"
    if not (tuned / "summary.json").exists():
        given = ["--dense", str(trained / "dense.safetensors")]
        again = f"{{epochs: {task.tune}, learning_rate: 2e-3, average: 0.999}}"
        run_experiment(parse_config([*whole, again, *given]), tuned, resume=tuned.exists())
    return tuned / "pruned.safetensors"


def prune(name: str, method: str, budget: int, seed: int, runs: Path) -> None:
    """One run."""
    task = TASKS[name]
    given = ["--config", str(HERE / task.file), *task.options, "--seed", str(seed)]
    given += ["--dense", str(dense(name, seed, runs))]
    recipe = parse_config([*given, "--method", "auto"])
    tuning, epochs = asdict(recipe.finetune), recipe.finetune.epochs
    if method == "auto":
        given += ["--method", "auto", f"--select.{task.cost}", str(budget)]
        if task.cost != "macs":
            given += ["--select.macs", "null"]
        given += ["--scratch", str(tuning)]
    elif method in RECIPES:
        same = {"epochs": recipe.fit.epochs, "train_weights": True, "constraint": "CostConstraint"}
        given += ["--fit", str(same), "--finetune", str(tuning)]
        given += ["--method", *RECIPES[method], "--select.macs", str(budget)]
    else:
        given += ["--method", *PEERS[method]]
        if method == "group_norm":
            sparse = {"epochs": recipe.fit.epochs, "learning_rate": 1e-3, "schedule": "constant"}
            given += ["--select.macs", str(budget), "--sparse", str(sparse)]
            if budget != (first := task.budgets[0]):
                prune(name, method, first, seed, runs)
                given += ["--fitted", str(runs / folder(name, method, first, seed))]
        else:
            given += ["--method.macs", str(budget), "--select", "Threshold"]
            given += ["--select.value", "0.5"]
            epochs += recipe.fit.epochs
        given += ["--finetune", str(tuning | {"epochs": epochs})]
    out = runs / folder(name, method, budget, seed)
    run_experiment(parse_config(given), out, resume=out.exists())


def folder(name: str, method: str, budget: int, seed: int) -> str:
    return f"frontier_{name}_{method}_{budget / 1000:g}k-{seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--only", nargs="+", choices=["auto", *PEERS, *RECIPES])
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
