"""Make every run and page of results that needs no GPU, one after the other.

    python experiments/run_all.py [--list] [--only STEP …] [--tables]

A step is skipped as far as its runs are finished: stopped anywhere, the script goes on where it
was. ``--tables`` builds the pages alone, from the records in docs/results/: no training.
Configurations for a GPU (experiments/*_cifar10*.yaml) are run by `bayesprune run`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from glob import glob
from pathlib import Path

from frontier import RECIPES

HERE = Path(__file__).parent
LENET5 = [f"runs/lenet5_mnist_dirichlet-{seed}/dense.safetensors" for seed in range(3)]
"""The dense networks of the page of LeNet-5, and of all below it."""
RECORDED = sorted((HERE.parent / "docs" / "results" / "runs").glob("lenet5_mnist_*"))
FASHION = [f"runs/lenet300_100_fashion_dense-{seed}/dense.safetensors" for seed in range(3)]
STEPS: dict[str, list[list[str]]] = {
    "frontier": [
        *(["frontier.py", f"lenet300_100_mnist{kind}"] for kind in ("", "_plain", "_short")),
        *(["frontier.py", f"lenet5_mnist{kind}"] for kind in ("", "_plain", "_short")),
        *(["frontier.py", f"lenet5_mnist{kind}_weights"] for kind in ("", "_inputs")),
        ["frontier.py", "lenet300_100_fashion"],
        ["frontier.py", "resnet20_cifar10", "--only", "auto", "torch_pruning_uniform"],
        ["tables/frontier.py", "runs/frontier_*"],
    ],
    "recipes": [
        ["frontier.py", "lenet300_100_mnist_short", "--only", *RECIPES, "--budgets", "9000"],
        ["frontier.py", "lenet5_mnist_short", "--only", *RECIPES, "--budgets", "60000"],
        ["tables/frontier.py", "runs/frontier_*"],
        ["tables/recipes.py"],
    ],
    "lenet5_mnist": [
        *(
            ["bayesprune", "run", str(p / "config.yaml"), "--out", f"runs/{p.name}", "--resume"]
            for p in RECORDED
        ),
        ["tables/lenet5_mnist.py", *(f"runs/{path.name}" for path in RECORDED)],
    ],
    "penalties": [
        ["lenet_penalties.py", "lenet300_100_fashion", *FASHION],
        ["lenet_penalties.py", "lenet5_mnist", *LENET5],
        ["tables/penalties.py", "runs/lenet*_*k-?"],
    ],
    "element_wise": [
        ["tables/element_wise.py", "lenet300_100_fashion", *FASHION],
        ["tables/element_wise.py", "lenet5_mnist", *LENET5],
    ],
    "debias": [
        ["lenet5_mnist_debias.py", *LENET5],
        ["tables/debias.py", "runs/lenet5_mnist_*egl_*"],
    ],
    "families": [
        ["lenet5_mnist_families.py", *LENET5],
        ["tables/families.py", "runs/lenet5_mnist_*_own-?", "runs/lenet5_mnist_*_5pct-?"],
    ],
    "criteria": [["tables/criteria_lenet5.py", *(str(Path(file).parent) for file in LENET5)]],
    "agreement": [
        ["tables/agreement.py", *LENET5, "--posteriors", "runs/lenet5_mnist_*_own-?"],
    ],
    "recovery": [["tables/recovery.py"]],
    "dirichlet_toy": [["tables/dirichlet_toy.py", "100x20", "500x200", "1000x500"]],
    "layers": [["tables/layers.py", "train", "latencies", "rankings"]],
    "support": [["tables/support.py"]],
    "speed": [
        ["bench/steps.py", "--dense", LENET5[0]],
        ["bench/estimators.py", LENET5[0]],
        *([f"bench/{name}.py"] for name in ("latency", "pruned_latency", "selection", "tracing")),
        ["bench/structured_sparse_conv.py"],
        ["tables/speed.py"],
    ],
}
"""Scripts, or the command line, with arguments; a pattern stands for the paths that match it."""
PAGES = {
    **{name: [f"tables/{name}.py"] for name in ("frontier", "recipes", "penalties", "families")},
    **{name: [f"tables/{name}.py"] for name in ("debias", "element_wise", "agreement", "layers")},
    "dirichlet_toy": ["tables/dirichlet_toy.py"],
    "criteria": ["tables/criteria_lenet5.py"],
    "recovery": ["tables/recovery.py", "--rebuild"],
    "lenet5_mnist": ["tables/lenet5_mnist.py"],
    "speed": ["tables/speed.py"],
}


def run(script: str, *arguments: str) -> None:
    """One script, with its output as it comes; stops everything if it fails."""
    words: list[str] = []
    for argument in arguments:
        words += (sorted(glob(argument)) or [argument]) if "*" in argument else [argument]
    shown = " ".join([script, *arguments])
    print(f"{time.strftime('%H:%M:%S')} {shown}", flush=True)
    program = ["-m", script] if script == "bayesprune" else [str(HERE / script)]
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, *program, *words], env={**os.environ, "PYTHONPATH": path}
    )
    if done.returncode:
        raise SystemExit(f"{shown} ended with {done.returncode}; run again to go on from there")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="show the steps, run nothing")
    parser.add_argument("--only", nargs="+", choices=sorted(STEPS | PAGES), help="these steps")
    parser.add_argument("--tables", action="store_true", help="build the pages from the records")
    options = parser.parse_args()
    steps = {name: [page] for name, page in PAGES.items()} if options.tables else STEPS
    for name, scripts in steps.items():
        if options.only and name not in options.only:
            continue
        for script, *arguments in scripts:
            if options.list:
                print(f"{name}: {script} {' '.join(arguments)}")
            else:
                run(script, *arguments)


if __name__ == "__main__":
    main()
