"""Build docs/results/criteria.md: criteria against chance on LeNet-5, without fine-tuning.

    python experiments/tables/criteria_lenet5.py [RUN_FOLDER ...]

Each run folder gives a trained network, its ``dense.safetensors``. Results are kept in
docs/results/criteria.json; without arguments the page is rebuilt from there.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Subset

import bayesprune as bp
from bayesprune import criteria, datasets
from bayesprune.config import load_config
from bayesprune.diagnostics import rank_agreement, rank_stability
from bayesprune.reporting import agreement_plot

RESULTS = Path(__file__).parents[2] / "docs" / "results"
BUDGETS = (0.3, 0.15, 0.08)
EXAMPLES = 5000  # training images that criteria look at
FIT = 12800  # training images that switches are fitted to
HELD_OUT = 256  # held-out images that measure an allocation
RANDOM_DRAWS = 3
CRITERIA: dict[str, criteria.Criterion] = {
    "l1 norm": criteria.Magnitude(1),
    "l2 norm": criteria.Magnitude(2),
    "geometric median": criteria.GeometricMedian(),
    "data-free": criteria.DataFree(),
    "HRank": criteria.HRank(),
    "PFP": criteria.PFP(),
    "SNIP": criteria.SNIP(),
    "Taylor 2016": criteria.Taylor2016(),
    "Taylor 2019": criteria.Taylor2019(),
    "Fisher": criteria.Fisher(),
    "iterative Taylor 2019": criteria.Iterative(criteria.Taylor2019()),
    "iterative Fisher": criteria.Iterative(criteria.Fisher()),
}
COMPARABLE = ("Taylor 2019", "Fisher", "SNIP", "iterative Taylor 2019", "iterative Fisher")
POSTERIOR = "Dirichlet posterior"
RULES = {
    "held-out loss": lambda share: bp.Budget(macs=share, step=0.15),
    "scores alone": lambda share: bp.Budget(macs=share, step=0.15),
    "global rank": lambda share: bp.GlobalRank(macs=share),
}


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def posterior_scores(network, groups, data, share: float, seed: int) -> bp.ChannelScores:
    """Dirichlet switches, fitted for one budget with the weights frozen."""
    context = bp.selection.Context(groups)
    switched = bp.SwitchedNetwork(
        network,
        groups,
        bp.switches.Dirichlet(concentration=0.1, total="keep"),
        num_data=FIT,
        keep=bp.Budget(macs=share).counts(context),
    )
    loader = DataLoader(Subset(data.train_plain.dataset, range(FIT)), 128, shuffle=True)
    posterior = bp.fit_switches(switched, loader, epochs=2, seed=seed, progress=False)
    return posterior.scores()


def measure(folder: Path) -> dict[str, Any]:
    """All cuts of one trained network; the test set is read once per cut."""
    config = load_config(folder / "config.yaml")
    data = datasets.load(config.data, config.seed)
    network = bp.load_pruned(folder / "dense.safetensors", bp.models.create("lenet5")).eval()
    groups = bp.trace_groups(network, data.example_input)
    sizes = groups.sizes
    batches = list(islice(data.train_plain, EXAMPLES // 1000))
    scores, seconds = {}, {}
    for name, criterion in CRITERIA.items():
        started = time.perf_counter()
        scores[name] = criterion.scores(network, groups, batches)
        seconds[name] = round(time.perf_counter() - started, 2)
        log(f"{folder.name}: {name} {seconds[name]} s")
    rows = []
    for share in BUDGETS:
        started = time.perf_counter()
        fitted = posterior_scores(network, groups, data, share, config.seed)
        seconds[POSTERIOR] = round(time.perf_counter() - started, 2)
        if share == BUDGETS[0]:
            scores[POSTERIOR] = fitted
        evidence = [(n, s, 0) for n, s in ({**scores, POSTERIOR: fitted}).items()]
        for draw in range(RANDOM_DRAWS):
            chance = criteria.Random(seed=100 * config.seed + draw)
            evidence.append(("random", chance.scores(network, groups, []), draw))
        for rule, make in RULES.items():
            held_out = {"network": network, "loader": data.validation, "examples": HELD_OUT}
            for name, found, draw in evidence:
                if rule == "global rank" and name in COMPARABLE:
                    budget = bp.GlobalRank(macs=share, normalise="none")
                else:
                    budget = make(share)
                known = held_out if rule == "held-out loss" else {}
                plan = bp.select(found, budget, groups=groups, **known)
                small = bp.remove_channels(network, plan, data.example_input)
                rows.append(
                    {
                        "criterion": name,
                        "rule": rule,
                        "share": share,
                        "draw": draw,
                        "error": bp.evaluate(small, data.test)["error"],
                        "macs": plan.cost.macs,
                        "widths": "-".join(str(width) for width in plan.widths.values()),
                    }
                )
            log(f"{folder.name}: {share} {rule} done")
    stability = {
        name: rank_stability(CRITERIA[name], network, groups, batches[:2], 5).to_dict("records")
        for name in ("Taylor 2016", "Taylor 2019", "Fisher", "SNIP")
    }
    return {
        "seed": config.seed,
        "dense_error": bp.evaluate(network, data.test)["error"],
        "sizes": sizes,
        "rows": rows,
        "seconds": seconds,
        "agreement": rank_agreement(scores).round(4).to_dict("records"),
        "stability": stability,
    }


def percent(values: list[float]) -> str:
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"


def table(runs: list[dict[str, Any]], rule: str) -> tuple[list[str], list[str]]:
    """The rows of one rule, and what does not beat chance."""
    errors: dict[tuple[str, float, int], list[float]] = defaultdict(list)
    for run in runs:
        for row in run["rows"]:
            if row["rule"] == rule:
                errors[row["criterion"], row["share"], run["seed"]].append(row["error"])
    seeds = [run["seed"] for run in runs]
    lines, losers = [], []
    for name in [*CRITERIA, POSTERIOR, "random"]:
        cells = []
        for share in BUDGETS:
            per_seed = [float(np.mean(errors[name, share, seed])) for seed in seeds]
            chance = [float(np.mean(errors["random", share, seed])) for seed in seeds]
            wins = sum(a < b for a, b in zip(per_seed, chance, strict=True))
            cells.append(
                percent(per_seed) + ("" if name == "random" else f" ({wins}/{len(seeds)})")
            )
            if name != "random" and wins < len(seeds):
                losers.append(f"{name} at {share:.0%} ({wins} of {len(seeds)})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines, losers


def verdict(runs: list[dict[str, Any]]) -> list[str]:
    """What the tables say about chance, and about iteration."""
    mean: dict[tuple[str, str, float], list[float]] = defaultdict(list)
    for run in runs:
        for row in run["rows"]:
            mean[row["criterion"], row["rule"], row["share"]].append(row["error"])
    error = {key: float(np.mean(values)) for key, values in mean.items()}
    cells = [(rule, share) for rule in RULES for share in BUDGETS]
    names = [*CRITERIA, POSTERIOR]
    beaten = {n: sum(error[(n, *c)] < error[("random", *c)] for c in cells) for n in names}
    pairs = ("Taylor 2019", "Fisher")
    won = sum(error[(f"iterative {n}", *c)] <= error[(n, *c)] for n in pairs for c in cells)
    best = [min(names, key=lambda n, c=c: error[(n, *c)]) for c in cells]
    first = best.count(POSTERIOR)
    always = [name for name in names if beaten[name] == len(cells)]
    others = [f"{name} in {beaten[name]}" for name in names if beaten[name] < len(cells)]
    return [
        f"In the mean over the networks, of {len(cells)} pairs of a rule and a budget, chance is",
        f"beaten in all by {', '.join(always)}" + (f"; by {', '.join(others)}." if others else "."),
        f"Iterating is at least as good as one shot in {won} of {len(pairs) * len(cells)} cases",
        f"({' and '.join(pairs)}). The Dirichlet posterior is the best in {first} of {len(cells)}.",
    ]


def page(runs: list[dict[str, Any]]) -> str:
    """The page in Markdown."""
    dense = percent([run["dense_error"] for run in runs])
    lines = [
        "# Criteria against chance",
        "",
        "LeNet-5 on MNIST, trained networks of the runs in `docs/results/runs/`, channels removed",
        "at equal MACs and **nothing fine-tuned**. Test error in %, mean ± sd over",
        f"{len(runs)} trained networks (dense: {dense}); in brackets, for how many of them the",
        f"criterion beats the mean of {RANDOM_DRAWS} random rankings under the same rule. Each cut",
        "reads the test set once; nothing is chosen by it. Criteria look at",
        f"{EXAMPLES:,} training images; the Dirichlet switches are fitted anew for each budget,",
        f"weights frozen, in 2 epochs over {FIT:,} training images. LeNet-5 has no batch",
        "normalisation, so `BatchNormScale` does not apply. Columns are shares of the MACs of the",
        "dense network. Built by `experiments/tables/criteria_lenet5.py` from `criteria.json`.",
        "",
    ]
    titles = {
        "held-out loss": (
            "`Budget` with held-out data",
            f"What each group gives is decided by the loss on {HELD_OUT} held-out images, so that "
            "criteria differ in the order within groups only, and random rankings are helped too.",
        ),
        "scores alone": (
            "`Budget` without data",
            "What each group gives is decided by the share of its scores that it keeps.",
        ),
        "global rank": (
            "`GlobalRank`",
            "One ranking for all groups, each group's scores divided by their Euclidean norm; "
            f"as they are for {', '.join(COMPARABLE)}.",
        ),
    }
    lines += [*verdict(runs), ""]
    head = "| criterion | " + " | ".join(f"{share:.0%}" for share in BUDGETS) + " |"
    for rule, (title, text) in titles.items():
        rows, losers = table(runs, rule)
        lines += [f"## {title}", "", text, "", head, "|---|" + "---|" * len(BUDGETS), *rows, ""]
        named = "; ".join(losers) if losers else "none"
        lines += [f"Not better than chance on every network: {named}.", ""]
    lines += [
        "## Do rankings agree?",
        "",
        "Spearman correlation between methods, mean over the trained networks; the Dirichlet",
        f"posterior is that of the budget {BUDGETS[0]:.0%}.",
        "",
    ]
    frames = pd.concat([pd.DataFrame(run["agreement"]) for run in runs])
    keys = ["group", "first", "second"]
    mean = frames.groupby(keys, sort=False, as_index=False)[["kendall", "spearman"]].mean()
    for group in dict.fromkeys(mean["group"]):
        file = f"criteria_agreement_{group}.png"
        agreement_plot(mean, group).savefig(RESULTS / file, dpi=130)
        lines += [f"![Agreement of rankings in {group}]({file})", ""]
    lines += [
        "Stability: Spearman correlation between scores on bootstrap resamples of 2,000 training",
        "images (5 resamples; mean over pairs and networks).",
        "",
        "| criterion | " + " | ".join(runs[0]["sizes"]) + " |",
        "|---|" + "---|" * len(runs[0]["sizes"]),
    ]
    for name in runs[0]["stability"]:
        cells = [
            np.mean([run["stability"][name][place]["spearman"] for run in runs])
            for place in range(len(runs[0]["sizes"]))
        ]
        lines.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in cells) + " |")
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    torch.set_num_threads(1)
    file = RESULTS / "criteria.json"
    runs = json.loads(file.read_text()) if file.exists() else []
    for folder in sys.argv[1:]:
        found = measure(Path(folder))
        runs = [run for run in runs if run["seed"] != found["seed"]] + [found]
        file.write_text(json.dumps(sorted(runs, key=lambda run: run["seed"]), indent=1))
    (RESULTS / "criteria.md").write_text(page(runs))


if __name__ == "__main__":
    main()
