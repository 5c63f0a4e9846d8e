"""Build docs/results/lenet5_mnist.md from run folders.

    python experiments/tables/lenet5_mnist.py [RUN_FOLDER ...]

What a table needs of the run folders named (configuration, summary, plan, metrics) is copied to
docs/results/runs/, and the page is built from all that is there: without arguments it is rebuilt
without training anything.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from records import RESULTS, command, record

from bayesprune.reporting import average_over_seeds, collect_runs, pareto_plot, percent

# Kept conv1-conv2-fc1 inputs-fc1 outputs, error %, MACs without biases recounted from the widths.
PUBLISHED = [
    ("Dirichlet (mean), Adamczewski and Park 2021", "5-8-45-15", 1.1, 136_800),
    ("Dirichlet (150 samples), Adamczewski and Park 2021", "6-8-40-20", 1.1, 164_200),
    ("FDOO 100K, Tang et al. 2018", "2-7-112-478", 1.1, 109_516),
    ("RDP, Oh et al. 2020", "4-7-110-66", 1.0, 110_260),
]


def describe(recipe: str) -> str:
    """The method of a recipe in words."""
    config = json.loads(recipe)
    method = config["method"]
    name = method["class_path"].rpartition(".")[2]
    if "total" not in method["init_args"]:
        return name
    estimator = config["fit"]["estimator"]
    drawn = estimator["class_path"].rpartition(".")[2]
    if drawn == "Implicit":
        arguments = estimator["init_args"]
        drawn = f"Implicit({arguments['num_samples']}, {arguments['share']})"
    weights = "joint weights" if config["fit"]["train_weights"] else "frozen weights"
    return f"{name} ({method['init_args']['total']}), {drawn}, {weights}"


def main() -> None:
    for folder in sys.argv[1:]:
        record(Path(folder), "runs")
    folders = sorted((RESULTS / "runs").glob("lenet5_mnist*"))
    runs = collect_runs(folders)
    table = average_over_seeds(runs)
    lines = [
        "# LeNet-5 on MNIST",
        "",
        "Caffe LeNet-5, 20-50-800-500 with valid 5×5 convolutions: 2,293,000 MACs, 430,500",
        "weights. Mean ± sd over seeds of the test error after the last epoch; every choice was",
        "made on 5,000 held-out training images, and the test set was read once for the dense and",
        "once for the pruned network. Training images are shifted by up to 2 pixels. MACs without",
        "biases. Built by `experiments/tables/lenet5_mnist.py` from the folders in",
        "`docs/results/runs/`.",
        "",
        "| method | seeds | error % | dense error % | MACs | weights | kept, by seed | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table:
        lines.append(
            f"| {describe(row['recipe'])} | {row['seeds']} | {percent(row, 'error')} "
            f"| {percent(row, 'dense.error')} | {row['macs']:,.0f} | {row['weights']:,.0f} "
            f"| {row['architecture']} | {row['seconds']:.0f} |"
        )
    lines += [
        "",
        "*Kept* counts conv1-conv2-fc1 outputs; fc1 reads 16 inputs of each conv2 channel.",
        "*Seconds* are wall-clock times of training, fitting and selecting on a shared two-core",
        "machine: orders of magnitude.",
        "",
        "![Error against MACs](lenet5_mnist.png)",
        "",
        "Published rows for comparison, MACs recounted without biases from the widths in print.",
        "Their recipes differ (ours augments and distils), so read them as landmarks:",
        "",
        "| method | kept | error % | MACs | counted as |",
        "|---|---|---|---|---|",
    ]
    for name, kept, error, macs in PUBLISHED:
        lines.append(f"| {name} | {kept} | {error} | {macs:,} | conv1-conv2-fc1 inputs-outputs |")
    lines += ["", "## Commands", ""]
    for row in table:
        same = [run for run in runs if run["recipe"] == row["recipe"]]
        lines += [f"{describe(row['recipe'])}, {row['macs']:,.0f} MACs:", "", "```bash"]
        lines += [command(Path(run["folder"])) for run in same]
        lines += ["```", ""]
    estimators = RESULTS / "estimators.json"
    if estimators.exists():
        lines += estimator_section(json.loads(estimators.read_text()))
    (RESULTS / "lenet5_mnist.md").write_text("\n".join(lines).rstrip() + "\n")

    points = []
    for row in table:
        point = {key: row[key] for key in ("macs", "error", "error_sd") if row[key] is not None}
        points.append({"label": describe(row["recipe"]), **point})
    points += [{"label": n, "macs": m, "error": e / 100} for n, _, e, m in PUBLISHED]
    pareto_plot(points).savefig(RESULTS / "lenet5_mnist.png", dpi=130)


def estimator_section(result: dict) -> list[str]:
    lines = [
        "## Estimators",
        "",
        "`experiments/bench/estimators.py`, frozen weights, "
        f"batches of {result['batch']}, medians of {result['rounds']} interleaved rounds:",
        "",
        "| estimator | time of a step ÷ AnalyticMean |",
        "|---|---|",
    ]
    for name, ratio in result["seconds per step / AnalyticMean"].items():
        lines.append(f"| {name} | {ratio:.2f} |")
    lines += [
        "",
        f"Spearman correlation of the posterior means that AnalyticMean and Implicit(150, batch) "
        f"reach after {result['steps']} steps on the same batches of {result['fit_batch']}:",
        "",
        "| mass | " + " | ".join(result["rank correlation"]["size"]) + " |",
        "|---|" + "---|" * len(result["rank correlation"]["size"]),
    ]
    for total, values in result["rank correlation"].items():
        lines.append(f"| {total} | " + " | ".join(f"{v:.2f}" for v in values.values()) + " |")
    return lines


if __name__ == "__main__":
    main()
