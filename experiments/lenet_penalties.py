"""Prune a LeNet with every penalty, beside criteria and switches, at two budgets.

    python experiments/lenet_penalties.py TASK DENSE_0 DENSE_1 DENSE_2 [--only NAME …]

TASK is lenet300_100_fashion or lenet5_mnist; DENSE_i is the ``dense.safetensors`` of a run with
seed i. For each penalty the setting that its grid varies is chosen on Fashion-MNIST with seed 0:
the network is trained sparsely, cut to either budget and fine-tuned for 2 epochs, and the sum of
the held-out losses decides; LeNet-5 takes the same settings, so run that task second. The runs are
then what `bayesprune run experiments/TASK….yaml` does; the run at the second budget takes over the
fit of the first. What is done already is left alone, so the script can be interrupted.
experiments/tables/penalties.py builds the page.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import bayesprune as bp
from bayesprune import datasets, penalties
from bayesprune.config import RunConfig, parse_config
from bayesprune.errors import BayespruneError
from bayesprune.experiment import run_experiment

HERE = Path(__file__).parent
TASKS = {
    "lenet5_mnist": ("lenet5_mnist_penalties.yaml", (168_100, 100_000)),
    "lenet300_100_fashion": ("lenet300_100_fashion.yaml", (32_600, 20_000)),
}
SEARCHED = "lenet300_100_fashion"
WHOLE = {"lenet5_mnist": 2_293_000, "lenet300_100_fashion": 266_200}
"""A budget that leaves all there is: the dense network, fine-tuned like the others."""
EPOCHS = {"lenet5_mnist": 2, "lenet300_100_fashion": 5}  # of sparse training, as in the files
KEEP = (0.05, 0.1, 0.2, 0.4, 0.6)
STRENGTHS = (0.01, 0.03, 0.06, 0.12)
METHODS: dict[str, tuple[str, tuple[float, ...]]] = {
    "GroupLasso": ("strength", STRENGTHS),
    "SparseGroupLasso": ("strength", STRENGTHS),
    "ElasticGroupLasso": ("strength", STRENGTHS),
    "DebiasedElasticGroupLasso": ("strength", STRENGTHS),
    "ExclusiveLasso": ("strength", (0.003, 0.01, 0.1, 0.3, 1.0)),
    "GSS212": ("strength", (0.1, 0.3, 1.0, 2.0, 4.0)),
    "GSS121": ("strength", (0.01, 0.03, 0.1, 0.3)),
    "GSSAuxiliary": ("strength", (0.1, 0.3, 1.0, 2.0, 4.0)),
    "GroupHoyerSquare": ("strength", (0.003, 0.01, 0.03, 0.1)),
    "SmoothedHoyerGroupHalf": ("strength", (0.003, 0.01, 0.03, 0.1)),
    "Spred": ("strength", (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
    "BayesL1Trim": ("strength", (0.1, 0.3, 1.0, 3.0)),
    "SparseStructureSelection": ("strength", (0.001, 0.003, 0.01, 0.03, 0.06)),
    "ADMM": ("keep", KEEP),
    "GReg1": ("keep", KEEP),
    "GReg2": ("keep", KEEP),
    "GroupGReg": ("growth", (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)),
    "GroupPruner": ("strength", (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)),
    "SoftFilterPruning": ("keep", KEEP),
    "Lasso": ("strength", (1e-4, 3e-4, 1e-3, 3e-3)),
    "Hoyer": ("strength", (1e-3, 3e-3, 1e-2, 3e-2)),
    "HoyerSquare": ("strength", (1e-5, 1e-4, 1e-3, 1e-2)),
    "TransformedLasso": ("strength", (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)),
    "ElementSpred": ("strength", (1e-4, 3e-4, 1e-3, 3e-3)),
    "ElementSNIP": ("keep", (0.02, 0.05, 0.1, 0.2)),
}
"""The setting that is chosen on held-out data, and its grid; other settings are the defaults."""
BY_WEIGHT = ("Lasso", "Hoyer", "HoyerSquare", "TransformedLasso", "ElementSpred", "ElementSNIP")
BY_WEIGHT += ("GSSAuxiliary",)
"""Left out unless asked for: penalties of single weights, see tables/element_wise.py, and
GSS212 in another form."""
FIXED = {"GSS121": ["--method.every", "10"]}  # its operator costs more than a step
CRITERIA = ("Fisher", "Magnitude", "Random")
SWITCHES: dict[str, list[str]] = {
    "Dirichlet": ["--method.total", "anneal"],
    "NormalJeffreys": [],
    "InformationBottleneck": [],
    "HardConcrete": ["--method.penalty", "1e-3"],
    "SpikeAndSlab": [],
}
"""Fitted anew for each budget, weights trained along, for as many epochs as penalties train."""


def configuration(task: str, name: str, seed: int, dense: Path, *options: str) -> RunConfig:
    given = ["--config", str(HERE / TASKS[task][0]), "--seed", str(seed), "--dense", str(dense)]
    return parse_config([*given, "--method", name, *FIXED.get(name, []), *options])


def choose(name: str, dense: Path | None, runs: Path) -> tuple[str, float]:
    """The setting whose cut networks have the least held-out loss, with seed 0."""
    task = SEARCHED
    setting, grid = METHODS[name]
    file = runs / f"{task}_settings" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    tried = json.loads(file.read_text()) if file.exists() else {}
    for value in grid:
        if str(value) in tried:
            continue
        if dense is None:
            raise SystemExit(f"{name}: no {setting} was chosen yet; first run {SEARCHED}")
        started = time.perf_counter()
        given = [f"--method.{setting}", str(value), "--data.augment", "shift_flip"]
        config = configuration(task, name, 0, dense, *given)
        data = datasets.load(config.data, 0)
        network = bp.load_pruned(dense, bp.models.load(config.model))
        groups = bp.trace_groups(network, data.example_input)
        assert isinstance(config.method, penalties.Penalty)
        short = replace(config.finetune, epochs=2, average=None)
        found: dict[str, object] = {}
        try:
            fit = config.method.train(network, groups, data.train, config.sparse, progress=False)
            found["units"] = {n: int((v > 0).sum()) for n, v in fit.scores.values.items()}
            for macs in TASKS[task][1]:
                plan = bp.select(
                    fit.scores,
                    bp.Budget(macs=macs),
                    groups=groups,
                    network=fit.network,
                    loader=data.validation,
                )
                small = bp.remove_channels(fit.network, plan, data.example_input)
                bp.train_network(small, data.train, short, teacher=network, seed=0, progress=False)
                found[str(macs)] = {
                    **bp.evaluate(small, data.validation),
                    "widths": list(plan.widths.values()),
                }
        except BayespruneError as error:
            found["failed"] = str(error)
        found["seconds"] = round(time.perf_counter() - started, 1)
        tried[str(value)] = found
        file.write_text(json.dumps(tried, indent=1))
        print(f"{name} {setting} {value}: {found}", flush=True)

    def loss(value: float) -> float:
        found = tried[str(value)]
        if "failed" in found:
            return float("inf")
        return sum(found[str(macs)]["nll"] for macs in TASKS[task][1])

    return setting, min(grid, key=loss)


def prune(task: str, name: str, seed: int, dense: list[Path], runs: Path) -> None:
    """The runs of a method with one seed at both budgets."""
    options = []
    if name in METHODS:
        setting, value = choose(name, dense[0] if task == SEARCHED else None, runs)
        options = [f"--method.{setting}", str(value)]
    first = None
    whole = (WHOLE[task],) if name == "Magnitude" else ()
    for macs in TASKS[task][1] + whole:
        out = runs / f"{task}_{name.lower()}_{macs // 1000}k-{seed}"
        changed = ["--select.macs", str(macs)]
        if name in SWITCHES:
            changed += [*SWITCHES[name], "--fit.epochs", str(EPOCHS[task])]
            changed += ["--fit.train_weights", "true"]
            if name != "Dirichlet":  # its gate mass holds the budget
                changed += ["--fit.constraint", "CostConstraint"]
                changed += ["--fit.constraint.macs", str(macs)]
        if first is not None and name in METHODS:
            changed += ["--fitted", str(first)]
        config = configuration(task, name, seed, dense[seed], *options, *changed)
        run_experiment(config, out, resume=out.exists())
        first = out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("dense", nargs="+", type=Path)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--choose", action="store_true", help="choose settings, run nothing")
    options = parser.parse_args()
    if options.choose:
        for name in options.only or METHODS:
            choose(name, options.dense[0], options.runs)
        return
    usual = [name for name in (*METHODS, *SWITCHES, *CRITERIA) if name not in BY_WEIGHT]
    for seed in options.seeds or range(len(options.dense)):
        for name in options.only or usual:
            prune(options.task, name, seed, options.dense, options.runs)
            print(f"{name}, seed {seed}: done", flush=True)


if __name__ == "__main__":
    main()
