"""Build docs/results/families.md: LeNet-5 on MNIST by switch family.

    python experiments/tables/families.py [RUN_FOLDER ...]

What the page needs of the run folders named (from experiments/lenet5_mnist_families.py) is copied
to docs/results/families/, and the page is built from all that is there: without arguments it is
rebuilt without training anything.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

from records import RESULTS, command, record

from bayesprune.reporting import average_over_seeds, collect_runs, pareto_plot, percent

# Kept conv1-conv2-fc1 inputs-fc1 outputs, and error in %.
# Errors of SBP, Bayesian compression and L0 as listed by Tang et al. 2018, table 1.
PUBLISHED = {
    "LogNormal": ("3-18-284-283", 0.9, "Neklyudov et al. 2017"),
    "Horseshoe": ("5-10-76-16", 1.0, "Louizos et al. 2017"),
    "NormalJeffreys": ("8-13-88-13", 1.0, "Louizos et al. 2017"),
    "HardConcrete": ("9-18-65-25", 1.0, "Louizos et al. 2018"),
    "Radial": ("4-7-110-66", 1.0, "Oh et al. 2020"),
}
INTRODUCTION = """
Caffe LeNet-5, 2,293,000 MACs, 430,500 weights. From the same pretrained networks, weights and
switches are trained together for {fit} epochs while `CostConstraint` holds the expected MACs at 5%;
channels are removed once, and the network is fine-tuned for {tune} epochs with distillation. *Own*:
the family's own rule says how many channels stay. *5%*: `Budget(macs=0.05)`, 114,650 MACs, within
groups by the family's score. Mean ± sd over seeds of the test error after the last epoch; every
choice was made on 5,000 held-out training images. Training images are shifted by up to 2 pixels.
Built by `experiments/tables/families.py`.
"""
COLUMNS = """
*Kept* counts conv1-conv2-fc1 outputs; fc1 reads 16 inputs of each conv2 channel. *Seconds* are
wall-clock times of fitting, selecting and fine-tuning on a shared two-core machine: orders of
magnitude.
"""
LANDMARKS = """
Their recipes differ (200 epochs and more; ours augments, distils and holds a cost), so read them as
landmarks. MACs are recounted without biases from the widths in print; errors of SBP, Bayesian
compression and L0 are as Tang et al. 2018 list them. No row with widths was found for
InformationBottleneck, SpikeAndSlab and Bernoulli. Families of shares are on the page of
[LeNet-5](lenet5_mnist.md); BayesianGroupLasso stands in the slab of SpikeAndSlab.
"""


def macs(kept: str) -> int:
    """Multiply-accumulates of the caffe LeNet-5 with these widths."""
    a, b, c, d = map(int, kept.split("-"))
    return 24**2 * 25 * a + 8**2 * 25 * a * b + c * d + 10 * d


def rule(recipe: dict) -> str:
    if recipe["select"] is None:
        return "own"
    name = recipe["select"]["class_path"].rpartition(".")[2]
    return {"FamilyRule": "own", "EvidenceStop": "evidence"}.get(name, "5% of MACs")


def family(recipe: dict) -> str:
    name = recipe["method"]["class_path"].rpartition(".")[2]
    return name + (" + GaussianWeights" if recipe["fit"]["weight_posterior"] else "")


def main() -> None:
    for folder in sys.argv[1:]:
        record(Path(folder), "families")
    runs = collect_runs(sorted((RESULTS / "families").glob("*")))
    table = average_over_seeds(runs)
    for row in table:
        row["recipe_"] = json.loads(row["recipe"])
    table.sort(key=lambda row: (rule(row["recipe_"]), row["error"]))
    fit, tune = table[0]["recipe_"]["fit"], table[0]["recipe_"]["finetune"]
    lines = [
        "# LeNet-5 on MNIST by switch family",
        "",
        *textwrap.wrap(INTRODUCTION.strip().format(fit=fit["epochs"], tune=tune["epochs"]), 100),
        "",
        "| family | rule | seeds | error % | dense error % | MACs | weights | kept, by seed "
        "| seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table:
        lines.append(
            f"| {family(row['recipe_'])} | {rule(row['recipe_'])} | {row['seeds']} "
            f"| {percent(row, 'error')} | {percent(row, 'dense.error')} | {row['macs']:,.0f} "
            f"| {row['weights']:,.0f} | {row['architecture']} | {row['seconds']:.0f} |"
        )
    lines += [
        "",
        *textwrap.wrap(COLUMNS.strip(), 100),
        "",
        "![Error against MACs](families.png)",
        "",
        "## Beside the published rows",
        "",
        *textwrap.wrap(LANDMARKS.strip(), 100),
        "",
        "| family | published kept | error % | MACs | ours at 5% | ours, own rule | |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (kept, error, source) in PUBLISHED.items():
        ours = {
            rule(row["recipe_"]): row
            for row in table
            if family(row["recipe_"]).partition(" ")[0] == name
        }
        cells = [
            f"{percent(ours[key], 'error')} at {ours[key]['macs']:,.0f}" if key in ours else "-"
            for key in ("5% of MACs", "own")
        ]
        missed = [r for r in ours.values() if not (100 * r["error"] <= error + 1e-9)]
        note = "misses the published error" if len(missed) == len(ours) else ""
        note = note or ("one rule misses the published error" if missed else "")
        lines.append(
            f"| {name}, {source} | {kept} | {error} | {macs(kept):,} | {cells[0]} | {cells[1]} "
            f"| {note} |"
        )
    lines += [
        "",
        "## Commands",
        "",
        "The dense networks come from the runs of [LeNet-5 on MNIST](lenet5_mnist.md).",
        "",
        "```bash",
    ]
    lines += [command(Path(run["folder"])) for run in runs]
    lines += ["```"]
    (RESULTS / "families.md").write_text("\n".join(lines) + "\n")

    points = []
    for row in table:
        point = {key: row[key] for key in ("macs", "error", "error_sd") if row[key] is not None}
        points.append({"label": f"{family(row['recipe_'])}, {rule(row['recipe_'])}", **point})
    pareto_plot(points).savefig(RESULTS / "families.png", dpi=130)


if __name__ == "__main__":
    main()
