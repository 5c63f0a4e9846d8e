"""Build docs/results/layers.md: layer pruning beside filter pruning, one-shot beside iterative.

    python experiments/tables/layers.py [train] [latencies] [rankings]

``train`` makes a ResNet-56 for CIFAR-10 by a short recipe for a CPU, runs/resnet56_cifar10_short;
``rankings`` order its blocks, and ``latencies`` are those of what is left of it. Results are kept
in docs/results/layers.json; without arguments the page is rebuilt from there.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bayesprune as bp
from bayesprune import criteria, datasets
from bayesprune.layer_pruning import average_ranks, imprinting, layer_scores, leaving_order

RESULTS = Path(__file__).parents[2] / "docs" / "results"
REMOVED = (5, 10, 15)  # of 25 blocks
BATCHES = (1, 64)
ROUNDS = 4  # after one to warm up; interleaved, so that a busy moment is shared
CALLS = {1: 10, 64: 1}  # of each network in a round
NETWORK = Path("runs/resnet56_cifar10_short.safetensors")
TRAIN, EPOCHS = 6000, 10  # images; the others of the training set are held out
HELD_OUT = 1000  # images that errors and imprinting are measured on
IMAGES = 250  # training images that importance is taken from
CRITERIA = {
    "l2 norm": criteria.Magnitude(),
    "Taylor 2016": criteria.Taylor2016(),
    "Fisher": criteria.Fisher(),
}


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def loaders() -> tuple[DataLoader, DataLoader, DataLoader]:
    """Augmented training images, the first of them as they are, and held-out images."""
    config = datasets.DataConfig(
        "cifar10", augment="shift_flip", batch_size=64, validation=50_000 - TRAIN
    )
    data = datasets.load(config, 0)
    parts = [data.train]
    for loader, count in ((data.train_plain, IMAGES), (data.validation, HELD_OUT)):
        images, labels = loader.dataset[list(range(count))]
        parts.append(DataLoader(TensorDataset(images, labels), count))
    return tuple(parts)


def trained() -> nn.Module:
    return bp.load_pruned(NETWORK, bp.models.create("resnet56")).eval()


def train() -> dict[str, Any]:
    """A ResNet-56 after a short recipe."""
    torch.manual_seed(0)
    images, _, held_out = loaders()
    network = bp.models.create("resnet56")
    settings = bp.TrainConfig(
        epochs=EPOCHS, learning_rate=0.1, optimizer="sgd", weight_decay=5e-4, schedule="onecycle"
    )
    NETWORK.parent.mkdir(exist_ok=True)
    checkpoint = NETWORK.with_name("resnet56_cifar10_short-epochs.safetensors")
    bp.train_network(network, images, settings, seed=0, checkpoint=checkpoint)
    sizes = bp.trace_groups(network, torch.randn(1, 3, 32, 32)).sizes
    whole = bp.PruningPlan({name: list(range(size)) for name, size in sizes.items()}, sizes)
    bp.save_pruned(NETWORK, network, whole)
    return {"images": TRAIN, "epochs": EPOCHS, "error": bp.evaluate(network, held_out)["error"]}


def rankings() -> dict[str, Any]:
    """One-shot and iterative orders of the blocks of a trained network."""
    network, example = trained(), torch.randn(1, 3, 32, 32)
    _, images, held_out = loaders()
    train = list(images)

    def by_criterion(name: str):
        def importance(network, layers):
            groups = bp.trace_groups(network, example)
            found = CRITERIA[name].scores(network, groups, train)
            return layer_scores(found, groups, layers)

        return importance

    def by_imprinting(network, layers):
        return imprinting(network, layers, train, held_out)

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
            rows[-1][kind] = bp.evaluate(small, held_out)["error"]
        log(f"{name}: {rows[-1]}, {time.perf_counter() - started:.0f} s")
        rows[-1]["order"] = order
    return {"layers": len(layers), "rows": rows}


def cpu_ms(network: nn.Module, images: torch.Tensor) -> float:
    """CPU time of a call by one thread: what its latency is where nothing else runs."""
    with torch.inference_mode():
        started = time.process_time()
        network(images)
    return 1000 * (time.process_time() - started)


def latencies() -> dict[str, Any]:
    """CPU milliseconds of networks of equal MACs with fewer layers or with fewer filters."""
    network, example = trained(), torch.randn(1, 3, 32, 32)
    groups = bp.trace_groups(network, example)
    _, images, held_out = loaders()
    scores = criteria.Fisher().scores(network, groups, list(images))
    importance = layer_scores(scores, groups, bp.removable_layers(network, example))
    lowest = sorted(importance, key=importance.get)
    networks = {"dense": network}
    for count in REMOVED:
        shallow = bp.remove_layers(network, lowest[:count], example)
        macs = bp.cost(shallow, example).macs
        plan = bp.select(
            scores, bp.Budget(macs=macs), groups=groups, network=network, loader=list(images)
        )
        networks[f"{count} layers"] = shallow
        networks[f"{count} filters"] = bp.remove_channels(network, plan, example)
    found: dict[str, Any] = {
        name: {"macs": bp.cost(net, example).macs, "ms": {}} for name, net in networks.items()
    }
    for name, net in networks.items():
        found[name]["error"] = bp.evaluate(net, held_out)["error"]
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
    ranks, times, recipe = result["rankings"], result["latencies"], result["train"]
    lines = [
        "# Whole layers",
        "",
        f"ResNet-56 on CIFAR-10 after a short recipe for a CPU: {recipe['epochs']} epochs over",
        f"{recipe['images']:,} images, error {recipe['error']:.1%} on {HELD_OUT:,} held-out ones.",
        "That is far from the full training of the paper; nothing below is fine-tuned. One",
        f"network, one seed. Importance is taken from {IMAGES} training images.",
        "",
        "## Latency at equal MACs",
        "",
        "The residual blocks of least Fisher importance are removed, beside `Budget(macs=…)` over",
        "Fisher scores of filters that reaches the same MACs. Reduction of the CPU time of a call,",
        f"1 − t / t of the dense network ({times['device']}, medians of {ROUNDS} interleaved",
        "rounds); CPU time stands for latency, since other work ran on the machine.",
        "",
        "| blocks removed | MACs, layers | MACs, filters | "
        + " | ".join(f"batch {b}: layers | batch {b}: filters" for b in BATCHES)
        + " | error %, layers | error %, filters |",
        "|---|---|---|" + "---|---|" * len(BATCHES) + "---|---|",
    ]
    networks = times["networks"]
    for count in REMOVED:
        pair = [networks[f"{count} {kind}"] for kind in ("layers", "filters")]
        cells = [f"{net['macs'] / 1e6:.1f}M" for net in pair]
        for batch in map(str, BATCHES):
            cells += [
                f"{1 - net['ms'][batch] / networks['dense']['ms'][batch]:.0%}" for net in pair
            ]
        cells += [f"{100 * net['error']:.1f}" for net in pair]
        lines.append(f"| {count} of {ranks['layers']} | " + " | ".join(cells) + " |")
    dense = networks["dense"]["ms"]
    wins = sum(
        networks[f"{count} layers"]["ms"][batch] < networks[f"{count} filters"]["ms"][batch]
        for count in REMOVED
        for batch in dense
    )
    dearer = sum(
        networks[f"{count} layers"]["error"] > networks[f"{count} filters"]["error"]
        for count in REMOVED
    )
    lines += [
        "",
        f"Removing layers saves more time than removing filters in {wins} of "
        f"{len(REMOVED) * len(dense)} cases; before fine-tuning its error is higher in {dearer} of "
        f"{len(REMOVED)}.",
    ]
    lines += [
        "",
        "## One-shot and iterative",
        "",
        f"Importance of the {ranks['layers']} blocks with identity shortcut (imprinting takes",
        f"accuracies on the {HELD_OUT:,} held-out images): the Spearman correlation between the",
        "importance in one pass and the order in which blocks leave when the rest are scored",
        f"again after each, and the held-out error without the first {REMOVED[0]}. Taylor 2016 is",
        "normalised by group, so that its mean over a block tells how evenly the units of the",
        "block matter.",
        "",
        "| importance | Spearman | error %, one-shot | error %, iterative |",
        "|---|---|---|---|",
    ]
    for row in ranks["rows"]:
        lines.append(
            f"| {row['method']} | {row['spearman']:.2f} | {100 * row['one_shot']:.1f} "
            f"| {100 * row['iterative']:.1f} |"
        )
    high = [row["method"] for row in ranks["rows"] if row["spearman"] >= 0.9]
    low = [row["method"] for row in ranks["rows"] if row["spearman"] < 0.9]
    lines += [
        "",
        f"The paper reports correlations of 0.91 and more: so here for {', '.join(high)}"
        + (f", not for {', '.join(low)}." if low else "."),
    ]
    lines += ["", "Built by `experiments/tables/layers.py` from `layers.json`."]
    return "\n".join(lines) + "\n"


def main() -> None:
    torch.set_num_threads(1)
    file = RESULTS / "layers.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    for part in (train, latencies, rankings):
        if part.__name__ in sys.argv[1:]:
            result[part.__name__] = part()
            file.write_text(json.dumps(result, indent=1))
    (RESULTS / "layers.md").write_text(page(result))


if __name__ == "__main__":
    main()
