"""Build docs/results/speed.md from what experiments/bench/ has measured.

python experiments/tables/speed.py
"""

from __future__ import annotations

import json
from typing import Any

from records import RESULTS

HEAD = """
# Speed

Ratios of times measured in turn in one run, medians over rounds, one CPU thread. Absolute times are
those of a shared machine and are not given.

## A fitting step beside a plain one

Both run the same network with frozen weights and the same gates. The plain step has no posterior:
gates are a softmax of as many parameters, the loss is the cross-entropy. A fitting step adds the
draws, the divergences and the likelihood as a distribution. `experiments/bench/steps.py` measures.

"""
NOISE = """
Gradient noise on the trained LeNet-5, batch {batch}, after a short fit: the variance of the
gradient of the switches' parameters over draws, and that times the time of a step, both relative to
one draw that the batch shares. Less is better; the second column is what a second buys.

| draws | variance | variance x time |
|---|---|---|
"""
TOY = """
On the simulated networks of the [supplement's toy](dirichlet_toy.md), where a step is all switches
and hardly any network, a step with 32 draws shared by groups takes {times} times that of the
analytic mean at {sizes} inputs x hidden units. The paper has 25.

## Pruned networks

Every group loses the same fraction of its filters, those of least norm. torch-pruning removes the
same channels of the same network: as it must be, the results are equally fast. Time falls like the
MACs where the network is large enough to be bound by them. `experiments/bench/pruned_latency.py`
measures.

![Time against MACs](pruned_latency.png)

| network | kept | MACs | time, batch 1 | over theirs | time, batch 64 | over theirs |
|---|---|---|---|---|---|---|
"""
SPARSE = """
## Structured sparse convolutions

`StructuredSparseConv2d` beside the dense convolutions it replaces: whole networks, batch {batch}.
For a share of the parameters the pattern (p, g), what it leaves of parameters and of
multiply-accumulates (half-filled kernels run as dense ones of fewer channels, with zeros on the
other half), and its time over that of the dense network.
`experiments/bench/structured_sparse_conv.py` measures.

| network | p | g | parameters | MACs | time |
|---|---|---|---|---|---|
"""

BUDGETS = """
## Latency budgets

`Budget(latency_ms=…)` at a share of the dense network's time, batch {batch}: the time of the
network that was chosen over the limit, as the model predicted it, as it was measured in the
selection, and anew afterwards, beside the dense network (quartiles over blocks). A budget is met at
1 or below; far below, more was removed than had to be.
`experiments/bench/latency.py` measures.

| network | asked for | predicted | measured | anew | MACs left |
|---|---|---|---|---|---|
"""
LARGE = """
## Large networks

Seconds, in orders of magnitude, of tracing (`experiments/bench/tracing.py`) and of selection over
100,000 channels without data (`experiments/bench/selection.py`).

| what | seconds |
|---|---|
"""


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def main() -> None:
    steps, latency, toy = read("steps"), read("pruned_latency"), read("dirichlet_toy")
    networks = ("lenet5", "resnet56", "vgg16")
    times = {name: steps[name]["step / plain step"] for name in networks}
    text = HEAD.lstrip()
    text += "| estimator | " + " | ".join(f"{n}, batch {steps[n]['batch']}" for n in networks)
    text += " |\n|---|" + "---|" * len(networks) + "\n"
    for estimator in times["lenet5"]:
        cells = (times[name].get(estimator) for name in networks)
        text += f"| {estimator} | " + " | ".join("–" if c is None else f"{c:.3g}" for c in cells)
        text += " |\n"
    text += NOISE.format(batch=steps["lenet5"]["batch"])
    for estimator, value in steps["lenet5"]["variance"].items():
        product = steps["lenet5"]["variance x time"][estimator]
        text += f"| {estimator} | {value:.2g} | {product:.2g} |\n"
    ratios = []
    for found in toy.values():
        seconds = {} if not isinstance(found, dict) else found.get("seconds", {})
        groups = [v for k, v in seconds.items() if k.startswith("32 draws")]
        ratios += [f"{groups[0] / seconds['analytic mean']:.2g}"] if groups else []
    sizes = [size for size, found in toy.items() if isinstance(found, dict) and "seconds" in found]
    text += TOY.format(times=", ".join(ratios), sizes=", ".join(sizes))
    for row in latency["rows"]:
        cells = [f"{row[f'batch {b}'][k]:.2f}" for b in (1, 64) for k in ("ours", "ours / theirs")]
        name = row["network"].partition(":")[2]
        text += f"| {name} | {row['kept']:.0%} | {row['macs']:.1%} | {' | '.join(cells)} |\n"
    sparse = read("structured_sparse_conv")
    text += SPARSE.format(batch=sparse["batch"])
    for row in sparse["rows"]:
        shares = f"{row['parameters left']:.1%} | {row['MACs left']:.1%}"
        text += f"| {row['network']} | {row['p']} | {row['g']} | {shares} "
        text += f"| {row['sparse over dense']:.2f} |\n"
    budgets = read("latency")
    text += BUDGETS.format(batch=budgets["batch"])
    for network in ("lenet5", "resnet20"):
        for row in budgets[network]:
            times = [row[f"{key} / limit"] for key in ("predicted", "measured in selection")]
            low, high = row["quartiles of that"]
            text += f"| {network} | {row['asked for']:.0%} | {times[0]:.2f} | {times[1]:.2f} "
            text += f"| {row['measured anew / limit']:.2f} ({low:.2f} to {high:.2f}) "
            text += f"| {row['MACs']:.0%} |\n"
    tracing = {k: v for k, v in read("tracing").items() if isinstance(v, dict)}
    selection = read("selection")["seconds"].values()
    rules = {rule: max(times[rule] for times in selection) for rule in next(iter(selection))}
    text += LARGE
    for name, found in tracing.items():
        text += f"| tracing {name}, {found['units']:,} units | {found['seconds']:.0f} |\n"
    for rule, seconds in rules.items():
        text += f"| `{rule}` | {seconds:.1g} |\n"
    (RESULTS / "speed.md").write_text(text)


if __name__ == "__main__":
    main()
