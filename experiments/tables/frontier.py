"""Build docs/results/frontier.md: small LeNets beside published rows and other libraries.

    python experiments/tables/frontier.py [RUN_FOLDER ...]

The run folders named (from experiments/frontier.py) are added to docs/results/frontier.json;
without arguments the page is rebuilt from there.
"""

from __future__ import annotations

import math
import re
import statistics
import sys
import textwrap
from operator import mul
from pathlib import Path
from typing import Any

from records import RESULTS, held_out, recorded

from bayesprune.reporting import average_over_seeds, pareto_plot, percent

PEERS = (
    "The other pruners start from the same dense networks, with the same fine-tuning and as many "
    "epochs in all. Theirs may have fewer MACs than allowed: one share of every layer, or one "
    "ranking of all units, does not lead to every size. Where a row has fewer seeds, no "
    "network was found with the others."
)
NAMES = {
    "auto": "auto",
    "torch_pruning_magnitude": "torch-pruning, magnitude, global",
    "torch_pruning_taylor": "torch-pruning, Taylor, global",
    "torch_pruning_uniform": "torch-pruning, Taylor, same share of every layer",
    "ln_structured": "ln_structured + removal",
    "group_norm": "group norm, growing penalty",
}
GOALS = {  # limit of MACs (weights in one) and error in %
    "lenet5_mnist": [(60_000, 0.9), (95_000, 0.75), (150_000, 0.65)],
    "lenet5_mnist_plain": [(60_000, 0.9), (95_000, 0.75), (150_000, 0.65)],
    "lenet5_mnist_weights": [(2_000, 1.0)],
    "lenet5_mnist_inputs_weights": [(2_000, 1.0)],
    "lenet300_100_mnist": [(9_000, 1.6)],
    "lenet300_100_mnist_plain": [(9_000, 1.6)],
    "lenet300_100_fashion": [(20_000, 10.4)],
    "vgg16_cifar10": [(67_000_000, 6.1), (51_000_000, 7.0)],
    "resnet56_cifar10": [(49_000_000, 6.3), (35_000_000, 7.1)],
}
LENET5 = [  # method, kept, MACs without biases, error in %, counted in print as
    ("SSR-L2,1 (2019)", "2-8-77", 65_000, None, "without biases; error: base + 0.18"),
    ("FDOO (2018)", "2-7-112-478", 109_500, 1.1, "with biases"),
    ("RDP (2020)", "4-7-110-66", 110_300, 1.0, "with biases, 117K"),
    ("Dirichlet, mean (2021)", "5-8-45-15", 136_800, 1.1, "with biases"),
    ("GSS (structure)", "4-15-240-58", 168_100, 0.76, "without biases"),
]
FEW_WEIGHTS = [
    ("Dirichlet, mean (2021)", "5-8-45-15", 136_800, 1.1, "2.0K weights"),
    ("Dirichlet, 150 samples (2021)", "6-8-40-20", 164_200, 1.1, "2.4K weights"),
]
LENET300_100 = [
    ("VIBNet (2018)", "97-71-33", 9_560, 1.6, "without biases"),
    ("L0-sep (2018)", "266-88-33", 26_600, 1.8, "without biases"),
]
Published = tuple[str, str, int, float | None, str]
TASKS: dict[str, tuple[str, str, list[Published]]] = {  # title, text, published rows
    "lenet5_mnist": (
        "LeNet-5, MNIST",
        "Training images are shifted by up to one pixel. *Kept* is conv1-conv2-fc1; fc1 reads 16 "
        "inputs of each conv2 channel.",
        LENET5,
    ),
    "lenet5_mnist_plain": (
        "LeNet-5, MNIST, without augmentation",
        "",
        LENET5,
    ),
    "lenet5_mnist_weights": (
        "LeNet-5, MNIST, few parameters",
        "The budget is of parameters, biases included. The published rows cut single inputs of fc1 "
        "as well (the third width), ours here whole channels of conv2, with 16 inputs each.",
        FEW_WEIGHTS,
    ),
    "lenet5_mnist_inputs_weights": (
        "LeNet-5, MNIST, few parameters, single inputs",
        "The same with single inputs of fc1 among the units (`select_inputs`) and a hundred epochs "
        "of fine-tuning from a learning rate of 5e-3. *Kept* is conv1-conv2-inputs-fc1.",
        FEW_WEIGHTS,
    ),
    "lenet5_mnist_short": (
        "LeNet-5, MNIST: beside other libraries",
        f"A short recipe, seven epochs in all, with shifts by up to one pixel. {PEERS}",
        [],
    ),
    "lenet300_100_mnist": (
        "LeNet-300-100, MNIST",
        "The dense network was trained with shifted images. Pruning and a hundred epochs of "
        "fine-tuning see them moved, turned, zoomed and sheared by up to half a pixel each. *Kept* "
        "is pixels-fc1-fc2.",
        LENET300_100,
    ),
    "lenet300_100_mnist_plain": (
        "LeNet-300-100, MNIST, without augmentation",
        "The dense networks are the same; pruning and fine-tuning, for forty epochs, see the "
        "images as they are.",
        LENET300_100,
    ),
    "lenet300_100_mnist_short": (
        "LeNet-300-100, MNIST: beside other libraries",
        f"A short recipe, fifteen epochs in all. {PEERS} torch-pruning's tracer does not follow "
        "the selection of pixels, so that it cuts hidden units only.",
        [],
    ),
    "lenet300_100_fashion": (
        "LeNet-300-100, Fashion-MNIST",
        "The dense network was trained with shifted and mirrored images, then for ten epochs, with "
        "distillation from itself, on the images as they are. That is what pruning and fine-tuning "
        "see.",
        [("GSS (structure)", "760-39-60", 32_580, 10.49, "without biases")],
    ),
    "vgg16_cifar10": (
        "VGG-16, CIFAR-10",
        "",
        [
            ("CORING-C-10", "–", 66_950_000, 6.17, "as printed"),
            ("DECORE-100", "–", 51_200_000, 7.56, "as printed"),
        ],
    ),
    "resnet56_cifar10": (
        "ResNet-56, CIFAR-10",
        "",
        [
            ("Group pruner (DepGraph)", "–", 49_000_000, 6.36, "2.57 times fewer"),
            ("CORING-E", "–", 34_800_000, 7.16, "as printed"),
        ],
    ),
    "resnet20_cifar10": (
        "ResNet-20, CIFAR-10: a short recipe for two cores",
        "A network of 40.6M MACs with five epochs of pretraining, two of fitting and three of "
        "fine-tuning, far fewer than published recipes have; the other pruner needs no fit and is "
        "fine-tuned for five.",
        [],
    ),
}

INTRODUCTION = """
`method: auto` is one recipe: information bottleneck switches and weights are fitted together for
ten epochs while a constraint takes the expected cost to the budget; then the network is cut and
fine-tuned for forty epochs with distillation and averaged weights, unless a table says otherwise.
*From scratch*: fresh weights in the widths that it left, trained like its fine-tuning. Mean ± sd
over seeds of the test error after the last epoch, read once; all choices were made on 5,000
held-out training images. Published rows have other recipes; their MACs are recounted without biases
from the widths in print.
"""


def asked(row: dict[str, Any]) -> tuple[str, str, int]:
    """Task, method and budget of a row, as its folders' names tell."""
    found = re.fullmatch(r"frontier_(.+)_([\d.]+)k-\d+", Path(row["folders"].split(", ")[0]).name)
    assert found is not None, row["folders"]
    task = max((key for key in TASKS if found[1].startswith(f"{key}_")), key=len)
    return task, found[1].removeprefix(f"{task}_"), round(1000 * float(found[2]))


def biased(row: dict[str, Any]) -> str:
    """MACs with one more per output, as some tables of LeNets count."""
    if "lenet" not in row["model"]:
        return "–"
    networks = [[*map(int, widths.split("-"))] for widths in row["architecture"].split(", ")]
    outputs: tuple[int, ...] = (0, 1, 1)  # of a unit
    if row["model"].endswith("lenet5"):
        outputs = (24**2, 8**2, 1) if len(networks[0]) == 3 else (24**2, 8**2, 0, 1)
    more = [10 + sum(map(mul, outputs, widths)) for widths in networks]
    return f"{row['macs'] + statistics.mean(more):,.0f}"


def kept(row: dict[str, Any]) -> str:
    """The widths, where there are few."""
    return row["architecture"] if "lenet" in row["model"] else "–"


def verdicts(task: str, rows: list[dict[str, Any]]) -> list[str]:
    """Whether the goals are reached."""
    cost, unit = ("weights", "weights") if task.endswith("weights") else ("macs", "MACs")
    lines = []
    for limit, error in GOALS.get(task, ()):
        for row in (row for row in rows if asked(row)[1:] == ("auto", limit)):
            word = "reached" if 100 * row["error"] <= error else "missed"
            lines.append(
                f"- Goal: at most {error} % at {limit:,} {unit}: {word}, "
                f"{percent(row, 'error')} % at {row[cost]:,.0f} (seeds: {row['seeds']})."
            )
    return lines


def wins(rows: list[dict[str, Any]]) -> list[str]:
    """At how many budgets the default recipe is ahead of all peers."""
    won, clear, lost = 0, 0, []
    every = {asked(row)[1] for row in rows} - {"auto"}
    absent = []
    for limit in sorted({asked(row)[2] for row in rows}):
        same = {asked(row)[1]: row for row in rows if asked(row)[2] == limit}
        ours = same.pop("auto", None)
        if ours is None or not same:
            continue
        absent += [f"{NAMES[method]} at {limit:,}" for method in sorted(every - same.keys())]
        best = min(same, key=lambda method: same[method]["error"])
        lead = same[best]["error"] - ours["error"]
        if lead > 0:
            won += 1
            spreads = [row["error_sd"] for row in (ours, same[best])]
            clear += None not in spreads and lead > math.hypot(*spreads)
        else:
            lost.append(f"{limit:,} ({NAMES[best]}: {percent(same[best], 'error')} %)")
    if not won and not lost:
        return []
    rest = f"; behind at {', '.join(lost)}" if lost else ""
    lines = [
        f"- `auto` has the lowest mean error at {won} of {won + len(lost)} budgets, at {clear} of "
        f"them by more than the standard deviation of the difference over seeds{rest}."
    ]
    return lines + [f"- No network was found by {', '.join(absent)}."] * bool(absent)


def controls(rows: list[dict[str, Any]]) -> list[str]:
    """At how many budgets fresh weights in the same widths are no worse."""
    pairs = [(r["scratch.error"], r["error"]) for r in rows if r["scratch.error"] is not None]
    if not pairs:
        return []
    as_good = sum(scratch <= error for scratch, error in pairs)
    return [
        "- From scratch, in the widths that `auto` found, the mean error is as low or lower at "
        f"{as_good} of {len(pairs)}."
    ]


def section(task: str, rows: list[dict[str, Any]]) -> list[str]:
    title, text, published = TASKS[task]
    whole = max(rows, key=lambda row: row["seeds"])
    told = " ".join(filter(None, (text, f"Dense: {percent(whole, 'dense.error')} %.")))
    lines = [f"## {title}", "", *textwrap.wrap(told, 100, break_on_hyphens=False), ""]
    if said := [*verdicts(task, rows), *wins(rows), *controls(rows)]:
        lines += [*said, ""]
    lines += [
        "| budget | method | seeds | error % | from scratch % | MACs | with biases | weights "
        "| kept, by seed | counted as |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: (asked(r)[2], r["error"])):
        _, method, budget = asked(row)
        lines.append(
            f"| {budget:,} | {NAMES[method]} | {row['seeds']} | {percent(row, 'error')} "
            f"| {percent(row, 'scratch.error')} | {row['macs']:,.0f} | {biased(row)} "
            f"| {row['weights']:,.0f} | {kept(row)} | without biases |"
        )
    lines += [
        f"| – | {method} | – | {'–' if error is None else error} | – | {macs:,} | – | – | {widths} "
        f"| {counted} |"
        for method, widths, macs, error, counted in published
    ]
    points = [
        {"label": NAMES[asked(r)[1]], **{k: r[k] for k in ("macs", "error", "error_sd") if r[k]}}
        for r in rows
    ]
    points += [
        {"label": method, "macs": macs, "error": error / 100}
        for method, _, macs, error, _ in published
        if error is not None
    ]
    points.sort(key=lambda point: point["label"] != NAMES["auto"])  # gets the first colour
    if len(points) > 1 and not task.endswith("weights"):
        pareto_plot(points).savefig(RESULTS / f"frontier_{task}.png", dpi=130)
        lines += ["", f"![Error against MACs](frontier_{task}.png)"]
    return [*lines, ""]


def main() -> None:
    table = average_over_seeds(recorded("frontier", sys.argv[1:], held_out))
    table = [row for row in table if asked(row)[1] in NAMES]
    raced = {asked(row)[0] for row in table if asked(row)[1] != "auto"}
    # Without peers a short recipe is shown beside ideas only, on the page of recipes.
    table = [row for row in table if asked(row)[0] in raced or not asked(row)[0].endswith("_short")]
    lines = ["# Small networks", "", *INTRODUCTION.strip().splitlines(), ""]
    for task in TASKS:
        rows = [row for row in table if asked(row)[0] == task]
        lines += section(task, rows) if rows else []
    lines += [
        "## Commands",
        "",
        "Each makes the runs of a row, dense networks included; without `--only` and `--budgets`",
        "it makes those of a table. Then `python experiments/tables/frontier.py runs/frontier_*`",
        "builds this page.",
        "",
        "```bash",
        *(
            f"PYTHONPATH=experiments python experiments/frontier.py {task} --only {method} "
            f"--budgets {budget}"
            for task, method, budget in sorted(map(asked, table))
        ),
        "```",
    ]
    (RESULTS / "frontier.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
