"""Latency of pruned networks against their MACs, beside torch-pruning's for the same plan.

    python experiments/bench/pruned_latency.py [--blocks 15]

Networks with random weights lose the filters of least norm, the same fraction of every group.
torch-pruning's dependency graph is told to remove the same channels; both results must have as many
parameters and the same outputs. (It loses its way in the padded shortcuts of ResNet-56.) Dense,
ours and theirs are timed in blocks that take turns, at batch 1 and 64; every block gives ratios of
its medians, and the result is the median over blocks.
Writes docs/results/pruned_latency.json and .png. Needs torch-pruning.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from matplotlib.figure import Figure
from torch import nn

import bayesprune as bp
from bayesprune import criteria, models
from bayesprune.timing import in_turn

RESULTS = Path(__file__).parents[2] / "docs" / "results"
NETWORKS = {
    "bayesprune:lenet5": (1, 28, 28),
    "bayesprune:vgg16": (3, 32, 32),
    "torchvision:resnet18": (3, 64, 64),
}
KEPT = (0.75, 0.5, 0.25)
BATCHES = (1, 64)


def theirs(network: nn.Module, plan: bp.PruningPlan, image: torch.Tensor) -> nn.Module:
    """The plan carried out by torch-pruning."""
    network = copy.deepcopy(network)
    modules = dict(network.named_modules())
    for name, kept in plan.kept.items():
        graph = tp.DependencyGraph().build_dependency(network, image)
        module = modules[name]
        cut = (
            tp.prune_conv_out_channels
            if isinstance(module, nn.Conv2d)
            else tp.prune_linear_out_channels
        )
        gone = sorted(set(range(plan.sizes[name])) - set(kept))
        graph.get_pruning_group(module, cut, idxs=gone).prune()
    return network


def measured(name: str, kept: float, blocks: int) -> dict[str, Any]:
    torch.manual_seed(0)
    image = torch.randn(1, *NETWORKS[name])
    network = models.load(name).eval()
    groups = bp.trace_groups(network, image)
    scores = criteria.Magnitude().scores(network, groups, [])
    plan = bp.select(scores, bp.KeepFraction(kept), groups=groups)
    ours, other = bp.remove_channels(network, plan, image), theirs(network, plan, image)
    with torch.inference_mode():
        torch.testing.assert_close(ours(image), other(image), rtol=1e-3, atol=1e-4)
    costs = [bp.cost(net, image) for net in (network, ours, other)]
    assert costs[1].params == costs[2].params
    row: dict[str, Any] = {"network": name, "kept": kept, "macs": costs[1].macs / costs[0].macs}
    for batch in BATCHES:
        inputs = image.expand(batch, *image.shape[1:]).contiguous()
        calls = 30 if batch == 1 else 5
        nets = {"dense": network, "ours": ours, "theirs": other}
        block = partial(bp.latency, repeats=calls, warmup=1)
        times = in_turn(nets, inputs, blocks=blocks, measure=block)
        ratios = {
            "ours": times["ours"] / times["dense"],
            "torch-pruning": times["theirs"] / times["dense"],
            "ours / theirs": times["ours"] / times["theirs"],
        }
        row[f"batch {batch}"] = {k: round(float(np.median(v)), 3) for k, v in ratios.items()}
    return row


def figure(rows: list[dict[str, Any]]) -> Figure:
    drawn = Figure(figsize=(8, 3.8), layout="constrained")
    for panel, batch in zip(drawn.subplots(1, len(BATCHES)), BATCHES, strict=True):
        panel.axline((0, 0), slope=1, color="0.8", linewidth=1)
        for number, name in enumerate(NETWORKS):
            same = [row for row in rows if row["network"] == name]
            x = [row["macs"] for row in same]
            for key, style in (("ours", "o-"), ("torch-pruning", "x--")):
                y = [row[f"batch {batch}"][key] for row in same]
                panel.plot(
                    x, y, style, color=f"C{number}", label=f"{name.partition(':')[2]}, {key}"
                )
        panel.set(title=f"batch {batch}", xlabel="MACs / dense", ylabel="time / dense")
        panel.set(xlim=(0, 1), ylim=(0, 1))
        panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in NETWORKS:
        for kept in KEPT:
            rows.append(measured(name, kept, options.blocks))
            print(json.dumps(rows[-1]), flush=True)
    machine = {"processor": platform.processor(), "cores": os.cpu_count(), "threads": 1}
    found = {"machine": machine, "torch": torch.__version__, "blocks": options.blocks}
    text = json.dumps({**found, "rows": rows}, indent=1)
    (RESULTS / "pruned_latency.json").write_text(text + "\n")
    figure(rows).savefig(RESULTS / "pruned_latency.png", dpi=130)


if __name__ == "__main__":
    main()
