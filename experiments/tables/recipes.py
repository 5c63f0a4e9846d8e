"""Build docs/results/recipes.md: ideas for the default recipe, each beside it.

    python experiments/tables/recipes.py

From docs/results/frontier.json, to which experiments/tables/frontier.py adds run folders.
"""

from __future__ import annotations

import statistics
import textwrap
from typing import Any

from frontier import NAMES, TASKS, asked
from records import RESULTS, recorded

IDEAS = {
    "auto": "the default recipe: `InformationBottleneck`, cost held at the budget",
    "spike_and_slab": "`SpikeAndSlab` in its place",
    "hard_concrete": "`HardConcrete` in its place, penalty 1e-3",
    "normal_jeffreys": "`NormalJeffreys` in its place",
    "horseshoe": "`Horseshoe` in its place",
    "log_normal": "`LogNormal` in its place",
    "evidence": "`LogNormal` without constraint; what the evidence lets go goes first",
    "radial": "`Radial` in its place",
    "bernoulli": "`Bernoulli` in its place",
    "dirichlet": "`Dirichlet`, mass annealed from C to k, no constraint",
    "implicit": "the same with 16 draws shared by groups of examples",
    "logistic_normal": "`LogisticNormal`, mass annealed from C to k, no constraint",
    "dirichlet_rounds": "`Dirichlet` in three rounds of 2 + 3 epochs",
    "wide_start": "gates start with a standard deviation of 0.1 in place of 0.011",
    "frozen": "weights frozen while the switches are fitted",
    "global_rank": "one ranking of all units (`GlobalRank`) in place of held-out sensitivity",
    "cost_rank": "one ranking, corrected for MACs (`GlobalRank`, `cost_weight` 1000)",
    "no_averaging": "fine-tuning without averaging of weights",
    "no_distillation": "fine-tuning without distillation",
}
EPOCHS = {"lenet5_mnist_short": "3 + 4 epochs", "lenet300_100_mnist_short": "5 + 10 epochs"}
INTRODUCTION = """
What was tried for `method: auto`, with few epochs of fitting and fine-tuning. Each row differs
from the first in what it says and in nothing else. The held-out columns decide, errors in % and
negative log likelihoods in nats on 5,000 training images; the test error is there for the record
and chose nothing. *Cut*: before fine-tuning. Mean ± sd over seeds. A recipe replaces the default if
it is ahead on both networks with three seeds.
"""
RELATIONS = {
    "lower with every seed": lambda gaps: max(gaps) < 0,
    "higher with every seed": lambda gaps: min(gaps) > 0,
    "the same": lambda gaps: not any(gaps),
    "lower with some seeds and not with others": lambda gaps: True,
}
"""Of gaps in held-out loss, the first that holds."""


def shown(rows: list[dict[str, Any]], name: str, factor: float, digits: int) -> str:
    values = [factor * row[name] for row in rows]
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def verdicts(methods: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Which ideas are ahead of the default, or behind it, with every seed they were tried with."""
    default = {row["seed"]: row["held_out.pruned.nll"] for row in methods["auto"]}
    found: dict[str, list[str]] = {kind: [] for kind in RELATIONS}
    for method in IDEAS:
        if method == "auto" or len(rows := methods.get(method, [])) < 2:
            continue
        gaps = [row["held_out.pruned.nll"] - default[row["seed"]] for row in rows]
        kind = next(kind for kind, holds in RELATIONS.items() if holds(gaps))
        found[kind].append(f"`{method}` ({statistics.mean(gaps):+.4f})")
    if not any(found.values()):
        return []
    kinds = [f"{kind} for {', '.join(names)}" for kind, names in found.items() if names]
    told = (
        "Seeds share the dense network and the held-out images, so that recipes compare seed by "
        "seed. NLL against the first row's, mean gap in parentheses: "
        f"{'; '.join(kinds)}. Rows with one seed are a first look."
    )
    return [*textwrap.wrap(told, 100), ""]


def main() -> None:
    tried: dict[tuple[str, int], dict[str, list[dict[str, Any]]]] = {}
    for row in recorded("frontier", []):
        task, method, budget = asked(row | {"folders": row["folder"]})
        tried.setdefault((task, budget), {}).setdefault(method, []).append(row)
    lines = ["# Which recipe", "", *INTRODUCTION.strip().splitlines(), ""]
    commands = []
    for (task, budget), methods in sorted(tried.items()):
        if not methods.keys() - NAMES.keys():
            continue
        lines += [
            f"## {TASKS[task][0].partition(':')[0]}, {budget:,} MACs, {EPOCHS[task]}",
            "",
            "| `--only` | recipe | seeds | cut: error | tuned: error | NLL | test error | kept |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for method, told in IDEAS.items():
            if rows := methods.get(method):
                kept = ", ".join(row["architecture"] for row in rows)
                lines.append(
                    f"| `{method}` | {told} | {len(rows)} "
                    f"| {shown(rows, 'held_out.cut.error', 100, 2)} "
                    f"| {shown(rows, 'held_out.pruned.error', 100, 2)} "
                    f"| {shown(rows, 'held_out.pruned.nll', 1, 4)} "
                    f"| {shown(rows, 'error', 100, 2)} | {kept} |"
                )
                commands.append(
                    f"PYTHONPATH=experiments python experiments/frontier.py {task} "
                    f"--only {method} --budgets {budget}"
                )
        lines += ["", *verdicts(methods)]
    lines += ["## Commands", "", "```bash", *commands, "```"]
    (RESULTS / "recipes.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
