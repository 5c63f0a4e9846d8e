"""Build docs/results/frontier.md: small LeNets beside published rows and other libraries.

    python experiments/tables/frontier.py [RUN_FOLDER ...]

The run folders named (from experiments/frontier.py) are added to docs/results/frontier.json;
without arguments the page is rebuilt from there.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from records import RESULTS, call, recorded

from bayesprune.reporting import average_over_seeds, pareto_plot, percent

NAMES = {
    "Dirichlet": "auto (Dirichlet)",
    "TorchPruning": "torch-pruning",
    "StructuredL2": "ln_structured + removal",
    "GroupPruner": "group norm, growing penalty",
}
GOALS = {  # limit of MACs (weights in the last one) and error in %
    "lenet5_mnist": [(60_000, 0.9), (95_000, 0.75), (150_000, 0.65)],
    "lenet5_mnist_plain": [(60_000, 0.9), (95_000, 0.75), (150_000, 0.65)],
    "lenet5_mnist_weights": [(2_000, 1.0)],
    "lenet300_100_mnist": [(9_000, 1.6)],
    "lenet300_100_fashion": [(20_000, 10.4)],
}
LENET5 = [  # method, kept, MACs without biases, error in %, counted in print as
    ("SSR-L2,1 (2019)", "2-8-77", 65_000, None, "base + 0.18"),
    ("FDOO (2018)", "2-7-112-478", 109_500, 1.1, "with biases"),
    ("RDP (2020)", "4-7-110-66", 110_300, 1.0, "with biases, 117K"),
    ("Dirichlet, mean (2021)", "5-8-45-15", 136_800, 1.1, "with biases"),
    ("GSS (structure)", "4-15-240-58", 168_100, 0.76, "without biases"),
]
TASKS: dict[str, tuple[str, str, list[tuple[str, str, int, float | None, str]]]] = {
    "lenet5_mnist": (
        "LeNet-5, MNIST",
        "lenet5_mnist.yaml",
        LENET5,
    ),
    "lenet5_mnist_plain": ("LeNet-5, MNIST, without augmentation", "lenet5_mnist.yaml", []),
    "lenet5_mnist_weights": ("LeNet-5, MNIST, few weights", "lenet5_mnist.yaml", []),
    "lenet300_100_mnist": (
        "LeNet-300-100, MNIST",
        "lenet300_100_mnist.yaml",
        [
            ("VIBNet (2018)", "97-71-33", 9_560, 1.6, "without biases"),
            ("L0-sep (2018)", "266-88-33", 26_600, 1.8, "without biases"),
        ],
    ),
    "lenet300_100_fashion": (
        "LeNet-300-100, Fashion-MNIST",
        "lenet300_100_fashion.yaml",
        [("GSS (structure)", "760-39-60", 32_580, 10.49, "without biases")],
    ),
}

INTRODUCTION = """
`method: auto` (Dirichlet switches whose mass is annealed from C to k, fitted together with the
weights, then fine-tuning with distillation and averaged weights) beside pruners of other
libraries, from the same dense networks, with the same fine-tuning and as many epochs in all.
*From scratch*: fresh weights in the widths that *auto* left, trained like its fine-tuning. Mean ±
sd over seeds of the test error after the last epoch, read once; all choices were made on 5,000
held-out training images. *Kept* is conv1-conv2-fc1 for LeNet-5 (fc1 reads 16 inputs of each conv2
channel), pixels-fc1-fc2 for LeNet-300-100. Published rows have other recipes; their MACs are
recounted without biases from the widths in print.
"""


def task(row: dict[str, Any]) -> str:
    recipe = json.loads(row["recipe"])
    if row["model"].endswith("lenet300_100"):
        return "lenet300_100_mnist" if row["data"] == "mnist" else "lenet300_100_fashion"
    if recipe["data"]["augment"] == "none":
        return "lenet5_mnist_plain"
    limits = recipe["select"]["init_args"]
    return "lenet5_mnist_weights" if limits.get("params") else "lenet5_mnist"


def budget(row: dict[str, Any]) -> int:
    recipe = json.loads(row["recipe"])
    limits, own = recipe["select"]["init_args"], recipe["method"]["init_args"]
    return int(limits.get("params") or limits.get("macs") or own["macs"])


def name(row: dict[str, Any]) -> str:
    own = json.loads(row["recipe"])["method"]["init_args"]
    return " ".join(filter(None, (NAMES[row["method"]], own.get("importance"))))


def biased(row: dict[str, Any]) -> float:
    """MACs with one more per output, as some tables count; of the first seed's widths."""
    widths = [int(part) for part in row["architecture"].split(", ")[0].split("-")]
    if row["model"].endswith("lenet5"):
        a, b, c = widths
        return row["macs"] + 24**2 * a + 8**2 * b + c + 10
    return row["macs"] + sum(widths[1:]) + 10


def verdicts(key: str, rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for limit, error in GOALS[key]:
        cost = "weights" if key.endswith("weights") else "macs"
        ours = [r for r in rows if r["method"] == "Dirichlet" and r[cost] <= limit]
        if not ours:
            continue
        best = min(ours, key=lambda r: r["error"])
        word = "reached" if 100 * best["error"] <= error else "missed"
        unit = "weights" if cost == "weights" else "MACs"
        lines.append(
            f"- Goal: at most {error} % at {limit:,} {unit}: {word}, {percent(best, 'error')} % at "
            f"{best[cost]:,.0f} ({best['seeds']} seeds)."
        )
    return lines


def wins(rows: list[dict[str, Any]]) -> list[str]:
    """At how many budgets the default recipe is ahead of all peers."""
    lines, won, lost = [], 0, []
    for limit in sorted({budget(row) for row in rows}):
        same = [row for row in rows if budget(row) == limit]
        peers = [row for row in same if row["method"] != "Dirichlet"]
        ours = [row for row in same if row["method"] == "Dirichlet"]
        if not peers or not ours:
            continue
        best = min(peers, key=lambda row: row["error"])
        if ours[0]["error"] < best["error"]:
            won += 1
        else:
            lost.append(f"{limit:,} ({name(best)} {percent(best, 'error')} %)")
    if won or lost:
        rest = f"; behind at {', '.join(lost)}" if lost else ""
        lines = [f"- The default recipe has the lowest error at {won} of {won + len(lost)} budgets"]
        lines[0] += f"{rest}."
    return lines


def section(key: str, rows: list[dict[str, Any]]) -> list[str]:
    title, _, published = TASKS[key]
    lines = [f"## {title}", "", f"Dense: {percent(rows[0], 'dense.error')} %.", ""]
    lines += [*verdicts(key, rows), *wins(rows), ""]
    lines += [
        "| budget | method | seeds | error % | from scratch % | MACs | with biases | weights "
        "| kept | counted as |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: (budget(r), r["error"])):
        lines.append(
            f"| {budget(row):,} | {name(row)} | {row['seeds']} | {percent(row, 'error')} "
            f"| {percent(row, 'scratch.error')} | {row['macs']:,.0f} | {biased(row):,.0f} "
            f"| {row['weights']:,.0f} | {row['architecture']} | without biases |"
        )
    lines += [
        f"| – | {method} | – | {'–' if error is None else error} | – | {macs:,} | – | – | {kept} "
        f"| {counted} |"
        for method, kept, macs, error, counted in published
    ]
    points = [
        {"label": name(r), **{k: r[k] for k in ("macs", "error", "error_sd") if r[k] is not None}}
        for r in rows
    ]
    points += [
        {"label": method, "macs": macs, "error": error / 100}
        for method, _, macs, error, _ in published
        if error is not None
    ]
    if len(points) > 1:
        pareto_plot(points).savefig(RESULTS / f"frontier_{key}.png", dpi=130)
        lines += ["", f"![Error against MACs](frontier_{key}.png)"]
    return [*lines, ""]


def main() -> None:
    table = average_over_seeds(recorded("frontier", sys.argv[1:]))
    lines = [
        "# Small LeNets",
        "",
        *INTRODUCTION.strip().splitlines(),
        "",
    ]
    for key in TASKS:
        rows = [row for row in table if task(row) == key]
        lines += section(key, rows) if rows else []
    lines += [
        "## Commands",
        "",
        "`PYTHONPATH=experiments python experiments/frontier.py TASK` makes the runs of a task,",
        "`python experiments/tables/frontier.py runs/frontier_*` this page. One row, with",
        "`--seed S --dense FILE`, and `PYTHONPATH=experiments` for the peers:",
        "",
        "```bash",
        *(call(row, TASKS[task(row)][1]) for row in table),
        "```",
    ]
    (RESULTS / "frontier.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
