"""Build docs/results/penalties.md: every penalty on the two LeNets.

    python experiments/tables/penalties.py [RUN_FOLDER ...]

The run folders named (from experiments/lenet_penalties.py) are added to
docs/results/penalties.json; without arguments the page is rebuilt from there.
"""

from __future__ import annotations

import json
import sys
import textwrap
from typing import Any

from records import RESULTS, call, recorded

from bayesprune.reporting import average_over_seeds, pareto_plot, percent

# Title, text, and published rows: method, kept, MACs recounted without biases, error in %.
TASKS = {
    "bayesprune:lenet300_100": (
        "LeNet-300-100 on Fashion-MNIST",
        "266,200 MACs. Pixels are units like any other: *kept* is pixels-fc1-fc2.",
        "lenet300_100_fashion",
        [
            ("GSS-structure (supplement)", "760-39-60", 32_580, 10.49),
            ("Group HS (supplement)", "400-92-24", 39_248, 10.57),
        ],
    ),
    "bayesprune:lenet5": (
        "LeNet-5 on MNIST",
        "2,293,000 MACs. *Kept* is conv1-conv2-fc1 outputs; fc1 reads 16 inputs of each conv2 "
        "channel.",
        "lenet5_mnist",
        [
            ("GSS-structure (supplement)", "4-15-240-58", 168_100, 0.76),
            ("Group-GReg (supplement)", "4-20-320-107", 220_900, None),
        ],
    ),
}
FILES = {
    "bayesprune:lenet300_100": "lenet300_100_fashion",
    "bayesprune:lenet5": "lenet5_mnist_penalties",
}
INTRODUCTION = """
From the same pretrained networks, each method trains sparsely for {sparse} epochs (Adam, constant
rate 1e-3), is cut to a budget of MACs (`Budget`, with held-out data), and the network is
fine-tuned for {tune} epochs with distillation from the dense one. Criteria rank the dense network
as it is; switches are fitted for as long, together with the weights, to each budget. Mean ± sd over
seeds of the test error after the last epoch, which is read once; the setting that a penalty varies
was chosen among four values on the held-out images with seed 0, after 2 epochs of fine-tuning.
Methods differ in their other settings, which are the defaults.
"""


def setting(row: dict[str, Any]) -> str:
    """The setting that was chosen, for the table."""
    arguments = json.loads(row["recipe"])["method"]["init_args"]
    for name in ("strength", "growth", "keep"):
        if name in arguments:
            return f"{name} {arguments[name]:g}"
    return "–"


def budget(row: dict[str, Any]) -> int:
    return json.loads(row["recipe"])["select"]["init_args"]["macs"]


def section(model: str, table: list[dict[str, Any]]) -> list[str]:
    title, text, task, published = TASKS[model]
    recipe = json.loads(table[0]["recipe"])
    told = INTRODUCTION.strip().format(
        sparse=recipe["sparse"]["epochs"], tune=recipe["finetune"]["epochs"]
    )
    lines = [f"## {title}", "", text, "", *textwrap.wrap(told, 100), ""]
    lines += [f"Dense: {percent(table[0], 'dense.error')} %.", ""]
    for macs in sorted({budget(row) for row in table}, reverse=True):
        rows = sorted((r for r in table if budget(r) == macs), key=lambda r: r["error"])
        lines += [
            f"### {macs:,} MACs",
            "",
            "| method | setting | seeds | error % | MACs | weights | kept, by seed |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['method']} | {setting(row)} | {row['seeds']} | {percent(row, 'error')} "
            f"| {row['macs']:,.0f} | {row['weights']:,.0f} | {row['architecture']} |"
            for row in rows
        ]
        lines.append("")
    goal = published[0]
    best = min((r for r in table if r["macs"] <= goal[2]), key=lambda r: r["error"], default=None)
    if best is not None:
        met = "reached" if 100 * best["error"] <= goal[3] else "missed"
        lines += [
            f"{goal[0]} has {goal[3]} % error at {goal[2]:,} MACs ({goal[1]}): {met} by "
            f"{best['method']} with {percent(best, 'error')} % at {best['macs']:,.0f} MACs.",
            "",
        ]
    lines += [f"![Error against MACs](penalties_{task}.png)", ""]
    points = []
    for row in table:
        point = {k: row[k] for k in ("macs", "error", "error_sd") if row[k] is not None}
        points.append({"label": row["method"], **point})
    points += [
        {"label": name, "macs": macs, "error": error / 100}
        for name, _, macs, error in published
        if error is not None
    ]
    pareto_plot(points).savefig(RESULTS / f"penalties_{task}.png", dpi=130)
    return lines


def main() -> None:
    table = average_over_seeds(recorded("penalties", sys.argv[1:]))
    lines = ["# Penalties beside criteria", ""]
    for model in TASKS:
        rows = [row for row in table if row["model"] == model]
        lines += section(model, rows) if rows else []
    lines += [
        "## Commands",
        "",
        "`bayesprune compare runs/lenet300_100_fashion_*k-*` gives the same numbers as one table,",
        "switches beside penalties. `experiments/lenet_penalties.py` makes all runs and",
        "`experiments/tables/penalties.py` the page. One run, each with `--seed S --dense FILE`:",
        "",
        "```bash",
        *(call(row, f"{FILES[row['model']]}.yaml") for row in table),
        "```",
    ]
    (RESULTS / "penalties.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
