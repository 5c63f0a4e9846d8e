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

from matplotlib.figure import Figure
from records import RESULTS, call, recorded

from bayesprune.reporting import average_over_seeds, percent

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
fine-tuned for {tune} epochs{how}. Criteria rank the dense network as it is; switches are fitted for
as long, together with the weights, to each budget. Mean ± sd over seeds of the test error after the
last epoch, which is read once. {chosen} Methods differ in their other settings, which are the
defaults.
"""


COLOURS = {"switches": "#0072b2", "penalties": "#d55e00", "criteria": "0.4"}
CHOSEN = {
    "bayesprune:lenet300_100": "The setting that a penalty varies was chosen from a grid of four "
    "to six on the held-out images with seed 0, for both budgets together, after 2 epochs of "
    "fine-tuning with shifted and mirrored images.",
    "bayesprune:lenet5": "A short recipe, to compare methods by; longer fine-tuning is on the page "
    "of [LeNet-5](lenet5_mnist.md). Penalties have the settings chosen above, on Fashion-MNIST.",
}


def setting(row: dict[str, Any]) -> str:
    """The setting that was chosen, for the table."""
    method = json.loads(row["recipe"])["method"]
    arguments = method["init_args"]
    for name in ("strength", "keep", "growth"):
        if name in arguments and ".penalties." in method["class_path"]:
            return f"{name} {arguments[name]:g}"
    return "–"


def budget(row: dict[str, Any]) -> int:
    return int(json.loads(row["recipe"])["select"]["init_args"]["macs"])


def epochs(row: dict[str, Any]) -> int:
    return json.loads(row["recipe"])["finetune"]["epochs"]


def figure(table: list[dict[str, Any]], goal: tuple[str, str, int, float | None]) -> Figure:
    """Errors at either budget, the methods in the order of the smaller one."""
    budgets = sorted({budget(row) for row in table}, reverse=True)
    errors = {(row["method"], budget(row)): row for row in table}
    names = [r["method"] for r in table if budget(r) == budgets[0]]
    names.sort(key=lambda name: -errors[name, budgets[0]]["error"])
    kinds = {r["method"]: json.loads(r["recipe"])["method"]["class_path"] for r in table}
    drawn = Figure(figsize=(9, 0.22 * len(names) + 1.2), layout="constrained")
    panels = drawn.subplots(1, len(budgets), sharey=True, squeeze=False)[0]
    for panel, macs in zip(panels, budgets, strict=True):
        for place, name in enumerate(names):
            row = errors.get((name, macs))
            if row is None:
                continue
            kind = next(k for k in COLOURS if f".{k}." in kinds[name])
            sd = 100 * (row["error_sd"] or 0)
            panel.errorbar(100 * row["error"], place, xerr=sd, fmt="o", color=COLOURS[kind])
        if goal[3] is not None and macs <= goal[2] * 1.01 and macs == budgets[0]:
            panel.axvline(goal[3], color="0.5", linestyle=":", label=goal[0])
            panel.legend(frameon=False)
        panel.set(title=f"{macs:,} MACs", xlabel="test error %")
        panel.set_yticks(range(len(names)), names)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="0.93")
    for place, (kind, colour) in enumerate(COLOURS.items()):
        drawn.text(0.02 + 0.1 * place, 0.005, kind, color=colour)
    return drawn


def section(model: str, table: list[dict[str, Any]]) -> list[str]:
    title, text, task, published = TASKS[model]
    recipe = json.loads(table[0]["recipe"])
    distilled = recipe["finetune"]["distill"] is not None
    told = INTRODUCTION.strip().format(
        sparse=recipe["sparse"]["epochs"],
        tune=recipe["finetune"]["epochs"],
        how=" with distillation from the dense one" if distilled else "",
        chosen=CHOSEN[model],
    )
    lines = [f"## {title}", "", text, "", *textwrap.wrap(told, 100), ""]
    usual = min(epochs(row) for row in table)
    longer = [row for row in table if epochs(row) > usual]
    every, table = table, [row for row in table if row not in longer]
    dense = f"Dense: {percent(table[0], 'dense.error')} %"
    whole = [row for row in table if row["macs"] == row["dense.macs"]]
    table = [row for row in table if row not in whole]
    dense += "".join(f", fine-tuned alike {percent(row, 'error')} %" for row in whole)
    lines += [f"{dense}.", ""]
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
    if longer:
        lines += [
            "### Longer fine-tuning",
            "",
            "Dirichlet as above. The second dense network is the first after 10 more epochs on",
            "images as they are, without shifts and mirroring.",
            "",
            "| dense error % | epochs | seeds | error % | from scratch % | MACs | kept, by seed |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {percent(row, 'dense.error')} | {epochs(row)} | {row['seeds']} "
            f"| {percent(row, 'error')} | {percent(row, 'scratch.error')} | {row['macs']:,.0f} "
            f"| {row['architecture']} |"
            for row in sorted(longer, key=lambda row: -row["dense.error"])
        ]
        lines.append("")
    goal = published[0]
    best = min((r for r in every if r["macs"] <= goal[2]), key=lambda r: r["error"], default=None)
    if best is not None:
        met = "reached" if 100 * best["error"] <= goal[3] else "missed"
        lines += [
            f"{goal[0]} has {goal[3]} % error at {goal[2]:,} MACs ({goal[1]}): {met} by "
            f"{best['method']} with {percent(best, 'error')} % at {best['macs']:,.0f} MACs, "
            f"{epochs(best)} epochs of fine-tuning and {best['seeds']} seeds.",
            "",
        ]
    lines += [f"![Error of every method](penalties_{task}.png)", ""]
    figure(table, published[0]).savefig(RESULTS / f"penalties_{task}.png", dpi=130)
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
