"""Build docs/results/element_wise.md: weights that element-wise penalties leave, layer by layer.

    python experiments/tables/element_wise.py TASK DENSE_0 DENSE_1 DENSE_2

TASK is lenet5_mnist or lenet300_100_fashion; DENSE_i is the ``dense.safetensors`` of a run with
seed i. Rows are kept in docs/results/element_wise.json as they are finished, and what is there is
not trained again; without arguments the page is rebuilt from there.
"""

from __future__ import annotations

import json
import statistics
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from records import RESULTS
from torch.nn.utils import prune

import bayesprune as bp
from bayesprune import datasets, penalties
from bayesprune.config import parse_config
from bayesprune.penalties import mask_weights, remaining_weights

TASKS = {
    "lenet300_100_fashion": ("lenet300_100_fashion.yaml", "LeNet-300-100 on Fashion-MNIST"),
    "lenet5_mnist": ("lenet5_mnist_penalties.yaml", "LeNet-5 on MNIST"),
}
MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.5)  # of a layer's standard deviation
MARGIN = 0.02  # what the mask may cost before retraining, in held-out error
CHOSEN = ("setting", "multiple", "within")  # with seed 0, and whether it is within the margin
RETRAIN = {"lenet300_100_fashion": 3, "lenet5_mnist": 2}  # epochs
METHODS: dict[str, tuple[str, tuple[float, ...]]] = {
    "Lasso": ("strength", (1e-2, 3e-2, 1e-1)),
    "Hoyer": ("strength", (1e-3, 1e-2, 1e-1)),
    "HoyerSquare": ("strength", (1e-7, 1e-6, 1e-5)),
    "TransformedLasso": ("strength", (1e-5, 1e-4, 1e-3)),
    "ElementSpred": ("strength", (1e-5, 1e-4, 1e-3)),
    "GSS121": ("strength", (1e-2, 3e-2, 1e-1)),
    "ElementSNIP": ("keep", (0.02, 0.05, 0.1)),
}


def train(task: str, name: str, value: float, seed: int, dense: Path) -> tuple[Any, Any, Any]:
    """The sparsely trained network, the data, and the configuration."""
    file = Path(__file__).parents[1] / TASKS[task][0]
    options = ["--config", str(file), "--seed", str(seed), "--method", name]
    config = parse_config([*options, f"--method.{METHODS[name][0]}", str(value)])
    data = datasets.load(config.data, seed)
    network = bp.load_pruned(dense, bp.models.load(config.model))
    network.to(memory_format=torch.channels_last)
    groups = bp.trace_groups(network, data.example_input)
    assert isinstance(config.method, penalties.Penalty)
    fit = config.method.train(network, groups, data.train, config.sparse, seed=seed, progress=False)
    return fit.network, data, config


def masked(network: Any, multiple: float) -> Any:
    """A copy with the mask in place."""
    network = mask_weights(network, multiple)
    for module in network.modules():
        if prune.is_pruned(module) and hasattr(module, "weight_mask"):
            module.weight = module.weight_orig * module.weight_mask
    return network


def choose(task: str, name: str, dense: Path) -> tuple[float, float, bool]:
    """Setting and multiple that leave the fewest weights within the margin, with seed 0.

    The first of both if none is within; the last value tells.
    """
    grid = METHODS[name][1][task == "lenet5_mnist" :]  # fewer steps need stronger penalties
    best = (float("inf"), grid[0], MULTIPLES[0])
    for value in grid:
        network, data, _ = train(task, name, value, 0, dense)
        limit = bp.evaluate(bp.load_pruned(dense, type(network)()), data.validation)["error"]
        for multiple in MULTIPLES:
            small = masked(network, multiple)
            left = remaining_weights(small)["remaining"].iloc[-1]
            error = bp.evaluate(small, data.validation)["error"]
            if error <= limit + MARGIN and left < best[0]:
                best = (float(left), value, multiple)
    return *best[1:], best[0] < float("inf")


def row(task: str, name: str, value: float, multiple: float, seed: int, dense: Path) -> dict:
    """One network: trained sparsely, masked, retrained with the mask, tested once."""
    network, data, config = train(task, name, value, seed, dense)
    network = masked(network, multiple)
    bp.train_network(
        network,
        data.train,
        replace(config.finetune, epochs=RETRAIN[task], average=None, distill=None),
        seed=seed,
        progress=False,
    )
    error = bp.evaluate(network, data.test)["error"]
    for module in network.modules():
        if hasattr(module, "weight_mask"):
            prune.remove(module, "weight")
    left = remaining_weights(network)
    last = network.get_submodule(left["layer"].iloc[-2])  # above the total
    return {
        "task": task,
        "method": name,
        "seed": seed,
        "error": error,
        "left": dict(zip(left["layer"], map(int, left["remaining"]), strict=True)),
        "of": dict(zip(left["layer"], map(int, left["of"]), strict=True)),
        "units": int(sum(_alive(network))),
        "outputs": last.weight.count_nonzero(1).tolist(),
    }


def _alive(network: Any) -> list[int]:
    """How many rows of weights of each layer are not all 0."""
    weights = (p for n, p in network.named_parameters() if n.endswith("weight"))
    return [int(weight.flatten(1).any(1).sum()) for weight in weights]


def page(rows: list[dict]) -> str:
    lines = [
        "# Element-wise penalties",
        "",
        "Weights left per layer after sparse training from a pretrained network, a mask of all",
        "weights below a multiple c of their layer's standard deviation, and retraining of the",
        "rest. Setting and c are those that leave the fewest weights while",
        f"the masked network stays within {100 * MARGIN:.0f} points of the dense held-out error,",
        "before retraining, with seed 0. Mean ± sd over seeds; the test error, in %, is read once.",
        "Masked networks are as large and as slow as before: only whole units make them smaller.",
        "Built by `experiments/tables/element_wise.py` from `element_wise.json`.",
    ]
    for task, (_, title) in TASKS.items():
        of_task = [found for found in rows if found["task"] == task]
        if not of_task:
            continue
        layers = list(of_task[0]["of"])
        head = " | ".join(f"{name} ({of_task[0]['of'][name]:,})" for name in layers)
        lines += ["", f"## {title}", "", f"Retrained for {RETRAIN[task]} epochs.", ""]
        lines += [f"| method | setting | c | seeds | error % | {head} |"]
        lines += ["|---|" + "---|" * (4 + len(layers))]
        for name, (setting, _) in METHODS.items():
            same = [found for found in of_task if found["method"] == name]
            if not same:
                continue
            cells = []
            for layer in layers:
                left = [found["left"][layer] for found in same]
                share = statistics.mean(left) / same[0]["of"][layer]
                cells.append(f"{statistics.mean(left):,.0f} ({share:.1%})")
            errors = [100 * found["error"] for found in same]
            spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
            lines.append(
                f"| {name} | {setting} {same[0]['setting']:g} | {same[0]['multiple']:g} "
                f"| {len(same)} | {statistics.mean(errors):.2f}{spread} | "
                + " | ".join(cells)
                + " |"
            )
        for name in METHODS:
            same = [found for found in of_task if found["method"] == name]
            if all(found["within"] for found in same):
                continue
            dead = ", ".join(str(found["outputs"].count(0)) for found in same)
            told = (
                f"{name}: no setting came within the margin; the row has the first. Of the "
                f"{len(same[0]['outputs'])} outputs {dead} have no weights left, by seed."
            )
            lines += ["", *textwrap.wrap(told, 90)]
    return "\n".join(lines) + "\n"


def main() -> None:
    torch.set_num_threads(1)
    file = RESULTS / "element_wise.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    task, *dense = sys.argv[1:] or ("",)
    for name in METHODS if dense else ():
        done = {f["seed"]: f for f in rows if f["task"] == task and f["method"] == name}
        if len(done) == len(dense):
            continue
        known = next(iter(done.values()), None)
        chosen = {name: known[name] for name in CHOSEN} if known else None
        chosen = chosen or dict(zip(CHOSEN, choose(task, name, Path(dense[0])), strict=True))
        for seed, path in enumerate(dense):
            if seed not in done:
                made = row(task, name, chosen["setting"], chosen["multiple"], seed, Path(path))
                rows.append(made | chosen)
                file.write_text(json.dumps(rows, indent=1))
                print(time.strftime("%H:%M:%S"), rows[-1], flush=True)
    (RESULTS / "element_wise.md").write_text(page(rows))


if __name__ == "__main__":
    main()
