"""Build docs/results/debias.md: elastic group lasso with and without debiasing on LeNet-5.

    python experiments/tables/debias.py [RUN_FOLDER ...]

The run folders named (from experiments/lenet5_mnist_debias.py) are added to
docs/results/debias.json; without arguments the page is rebuilt from there.
"""

from __future__ import annotations

import itertools
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from records import RESULTS, call, recorded

from bayesprune.reporting import average_over_seeds, percent

TITLES = {"ElasticGroupLasso": "EGL", "DebiasedElasticGroupLasso": "DEGL"}


def strength(row: dict[str, Any]) -> float:
    return json.loads(row["recipe"])["method"]["init_args"]["strength"]


def last_loss(folder: Path) -> dict[str, float]:
    """The training loss of the last sparse epoch."""
    rows = pd.read_csv(folder / "metrics.csv")
    return {"last loss": float(rows[rows["stage"] == "fit"].iloc[-1]["loss"])}


def figure(table: list[dict[str, Any]], losses: dict[tuple[str, float], list[float]]) -> Figure:
    drawn = Figure(figsize=(9, 3.6), layout="constrained")
    panels = drawn.subplots(1, 3)
    for method, title in TITLES.items():
        rows = sorted((row for row in table if row["method"] == method), key=strength)
        x = [strength(row) for row in rows]
        values = (
            ([100 * r["error"] for r in rows], [100 * (r["error_sd"] or 0) for r in rows]),
            (
                [pd.Series(losses[method, v]).mean() for v in x],
                [pd.Series(losses[method, v]).std() for v in x],
            ),
            ([r["macs"] / 1e3 for r in rows], [(r["macs_sd"] or 0) / 1e3 for r in rows]),
        )
        for panel, (mean, sd) in zip(panels, values, strict=True):
            panel.errorbar(x, mean, sd, marker="o", capsize=3, label=title)
    labels = ("test error %", "training loss, last epoch", "MACs left, thousands")
    for panel, label in zip(panels, labels, strict=True):
        panel.set(xscale="log", xlabel="strength γ", ylabel=label)
        panel.set_xticks(x, [f"{value:g}" for value in x])
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_ylim(bottom=0)
    panels[0].legend(frameon=False)
    return drawn


def main() -> None:
    runs = recorded("debias", sys.argv[1:], last_loss)
    table = average_over_seeds(runs)
    losses: dict[tuple[str, float], list[float]] = {}
    for run in runs:
        losses.setdefault((run["method"], strength(run)), []).append(run["last loss"])
    figure(table, losses).savefig(RESULTS / "debias.png", dpi=130)
    by_key = {(row["method"], strength(row)): row for row in table}
    grid = sorted({strength(row) for row in table})
    egl, degl = ([by_key[m, v]["error"] for v in grid] for m in TITLES)
    wins = sum(d < e for d, e in zip(degl, egl, strict=True))
    gap = [100 * (e - d) for d, e in zip(degl, egl, strict=True)]
    grows = all(a <= b for a, b in itertools.pairwise(gap))
    dense = percent(table[0], "dense.error")
    # What is smaller and better at once does not owe it to its size.
    ahead = [
        f"DEGL at γ = {strength(one):g} ({percent(one, 'error')} % at {one['macs']:,.0f} MACs) is "
        f"smaller and better than EGL at γ = {strength(other):g}"
        for one, other in itertools.product(table, table)
        if one["method"] == "DebiasedElasticGroupLasso"
        and other["method"] == "ElasticGroupLasso"
        and one["macs"] < other["macs"]
        and one["error"] < other["error"]
    ]
    gaps = ", ".join(f"{g:+.2f} at γ = {v:g}" for g, v in zip(gap, grid, strict=True))
    found = (
        f"DEGL has the lower error at {wins} of {len(grid)} strengths. The gap (EGL minus DEGL) is "
        f"{gaps}: it {'grows' if grows else 'does not grow steadily'} with γ. At the same γ EGL "
        "ends smaller, because it goes on removing units while it retrains; "
        f"{'; '.join(ahead) or 'no DEGL row is smaller and better than an EGL row'}."
    )
    lines = [
        "# Debiasing the elastic group lasso",
        "",
        "LeNet-5 on MNIST from pretrained networks. Two epochs of sparse training select units",
        "(the proximal operator makes exact zeros), two more retrain those that are left: with all",
        "penalties (EGL), or with the ridge alone (DEGL, debiasing). Units of score 0 are removed,",
        "nothing else is, and nothing is fine-tuned. Test error in %, mean ± sd over seeds;",
        f"dense: {dense}. Built by `experiments/tables/debias.py`.",
        "",
        *textwrap.wrap(found, 100),
        "",
        "![Error, training loss and MACs over the strength](debias.png)",
        "",
        "| γ | method | seeds | error % | training loss | MACs | kept, by seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for value in grid:
        for method, title in TITLES.items():
            row = by_key[method, value]
            loss = pd.Series(losses[method, value])
            lines.append(
                f"| {value:g} | {title} | {row['seeds']} | {percent(row, 'error')} "
                f"| {loss.mean():.4f} | {row['macs']:,.0f} | {row['architecture']} |"
            )
    lines += ["", "## Commands", "", "Each with `--seed S --dense FILE`:", "", "```bash"]
    lines += [call(row, "lenet5_mnist_penalties.yaml") for row in table]
    lines += ["```"]
    (RESULTS / "debias.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
