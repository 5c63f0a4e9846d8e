"""Build docs/results/layers.md: layer pruning beside filter pruning, one-shot beside iterative.

    python experiments/tables/layers.py [latencies] [rankings]

``latencies`` are measured here; for ``rankings`` a ResNet-56 is trained on scikit-learn's digits (a
minute or two). Both are kept in docs/results/layers.json; without arguments the page is rebuilt
from there.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import nn

import bayesprune as bp
from bayesprune import criteria, datasets
from bayesprune.layer_pruning import average_ranks, imprinting, layer_scores, leaving_order

RESULTS = Path(__file__).parents[2] / "docs" / "results"
REMOVED = (5, 10, 15)  # of 25 blocks
BATCHES = (1, 64)
ROUNDS = 4  # after one to warm up; interleaved, so that a busy moment is shared
CALLS = {1: 10, 64: 1}  # of each network in a round
CRITERIA = {
    "l2 norm": criteria.Magnitude(),
    "Taylor 2016": criteria.Taylor2016(),
    "Fisher": criteria.Fisher(),
}


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def rankings() -> dict[str, Any]:
    """One-shot and iterative orders of the blocks of a trained network."""
    torch.manual_seed(0)
    data = datasets.load(datasets.DataConfig("digits", batch_size=64), 0)
    network = bp.models.create("resnet56")
    network.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)  # digits are grey
    settings = bp.TrainConfig(epochs=12, learning_rate=3e-3)
    bp.train_network(network, data.train, settings, seed=0, progress=False)
    error = bp.evaluate(network, data.validation)["error"]
    log(f"trained: held-out error {error:.3f}")
    example = data.example_input
    train = list(islice(data.train_plain, 1))

    def by_criterion(name: str):
        def importance(network, layers):
            groups = bp.trace_groups(network, example)
            found = CRITERIA[name].scores(network, groups, train)
            return layer_scores(found, groups, layers)

        return importance

    def by_imprinting(network, layers):
        return imprinting(network, layers, train, data.validation)

    def by_ensemble(network, layers):
        methods = [*map(by_criterion, CRITERIA), by_imprinting]
        return average_ranks([method(network, layers) for method in methods])

    methods = {name: by_criterion(name) for name in CRITERIA}
    methods |= {"imprinting": by_imprinting, "ensemble of ranks": by_ensemble}
    rows = []
    layers = bp.removable_layers(network, example)
    for name, importance in methods.items():
        started = time.perf_counter()
        one_shot = importance(network, layers)
        order = leaving_order(network, importance, example)
        rho = stats.spearmanr([one_shot[n] for n in layers], [order.index(n) for n in layers])
        rows.append({"method": name, "spearman": float(rho.statistic)})
        for kind, lowest in (("one_shot", sorted(layers, key=one_shot.get)), ("iterative", order)):
            small = bp.remove_layers(network, lowest[: REMOVED[0]], example)
            rows[-1][kind] = bp.evaluate(small, data.validation)["error"]
        log(f"{name}: {rows[-1]}, {time.perf_counter() - started:.0f} s")
    return {"error": error, "layers": len(layers), "images": len(train[0][1]), "rows": rows}


def cpu_ms(network: nn.Module, images: torch.Tensor) -> float:
    """CPU time of a call by one thread: what its latency is where nothing else runs."""
    with torch.inference_mode():
        started = time.process_time()
        network(images)
    return 1000 * (time.process_time() - started)


def latencies() -> dict[str, Any]:
    """CPU milliseconds of networks of equal MACs with fewer layers or with fewer filters."""
    network, example = bp.models.create("resnet56").eval(), torch.randn(1, 3, 32, 32)
    groups = bp.trace_groups(network, example)
    scores = criteria.Magnitude().scores(network, groups, [])
    layers = list(bp.removable_layers(network, example))
    networks = {"dense": network}
    for count in REMOVED:
        gone = [layers[int((i + 0.5) * len(layers) / count)] for i in range(count)]
        shallow = bp.remove_layers(network, gone, example)
        macs = bp.cost(shallow, example).macs
        plan = bp.select(scores, bp.Budget(macs=macs), groups=groups)
        networks[f"{count} layers"] = shallow
        networks[f"{count} filters"] = bp.remove_channels(network, plan, example)
    found: dict[str, Any] = {
        name: {"macs": bp.cost(net, example).macs, "ms": {}} for name, net in networks.items()
    }
    for batch in BATCHES:
        images = torch.randn(batch, 3, 32, 32)
        samples: dict[str, list[float]] = {name: [] for name in networks}
        for _ in range(ROUNDS + 1):
            for name, net in networks.items():
                samples[name] += [cpu_ms(net, images) for _ in range(CALLS[batch])]
        for name, values in samples.items():
            found[name]["ms"][str(batch)] = statistics.median(values[CALLS[batch] :])
        log(f"latency at batch {batch} done")
    return {"device": f"{platform.machine()} CPU, 1 thread", "networks": found}


def page(result: dict[str, Any]) -> str:
    """The page in Markdown."""
    ranks, times = result["rankings"], result["latencies"]
    lines = [
        "# Whole layers",
        "",
        "## Latency at equal MACs",
        "",
        "ResNet-56 for 32×32 images, untrained, since weights play no part in it: residual blocks",
        "removed evenly over the depth, beside `Budget(macs=…)` without data over l2 norms that",
        "reaches the same MACs by removing filters. Reduction of the CPU time of a call, 1 − t / t",
        f"of the dense network ({times['device']}, medians of {ROUNDS} interleaved rounds); CPU",
        "time stands for latency, since other work ran on the machine.",
        "",
        "| blocks removed | MACs, layers | MACs, filters | "
        + " | ".join(f"batch {b}: layers | batch {b}: filters" for b in BATCHES)
        + " |",
        "|---|---|---|" + "---|---|" * len(BATCHES),
    ]
    networks = times["networks"]
    for count in REMOVED:
        pair = [networks[f"{count} {kind}"] for kind in ("layers", "filters")]
        cells = [f"{net['macs'] / 1e6:.1f}M" for net in pair]
        for batch in map(str, BATCHES):
            cells += [
                f"{1 - net['ms'][batch] / networks['dense']['ms'][batch]:.0%}" for net in pair
            ]
        lines.append(f"| {count} of {ranks['layers']} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "## One-shot and iterative",
        "",
        "ResNet-56 trained on scikit-learn's digits, which is far from the CIFAR-10 of the paper:",
        f"held-out error {ranks['error']:.1%}. Importance of its {ranks['layers']} blocks with",
        f"identity shortcut, from {ranks['images']} training images (imprinting takes accuracies",
        "on the held-out images): the Spearman correlation between the importance in one pass and",
        "the order in which blocks leave when the rest are scored again after each, and the",
        f"held-out error without the first {REMOVED[0]}, nothing fine-tuned. One network, one",
        "seed. Taylor 2016 is normalised by group, so that its mean over a block tells how evenly",
        "the units of the block matter.",
        "",
        "| importance | Spearman | error %, one-shot | error %, iterative |",
        "|---|---|---|---|",
    ]
    for row in ranks["rows"]:
        lines.append(
            f"| {row['method']} | {row['spearman']:.2f} | {100 * row['one_shot']:.1f} "
            f"| {100 * row['iterative']:.1f} |"
        )
    lines += ["", "Built by `experiments/tables/layers.py` from `layers.json`."]
    return "\n".join(lines) + "\n"


def main() -> None:
    torch.set_num_threads(1)
    file = RESULTS / "layers.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    for part in (latencies, rankings):
        if part.__name__ in sys.argv[1:]:
            result[part.__name__] = part()
            file.write_text(json.dumps(result, indent=1))
    (RESULTS / "layers.md").write_text(page(result))


if __name__ == "__main__":
    main()
