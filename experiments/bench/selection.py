"""Time of selection over 100,000 channels, by rule: medians of interleaved rounds, in seconds.

    python experiments/bench/selection.py

Two networks on the meta device, one deep with narrow layers and one wide, with random scores.
Writes docs/results/selection.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch
from torch import nn

import bayesprune as bp

RULES = {
    "KeepFraction(0.3)": bp.KeepFraction(0.3),
    "Threshold(0.5)": bp.Threshold(0.5),
    "Budget(macs=0.1)": bp.Budget(macs=0.1),
    "Budget(params=0.1)": bp.Budget(params=0.1),
    "Budget(macs=0.5), round_to=8": bp.Budget(macs=0.5),
}
SHAPES = {"100 layers of 1,000": (100, 1000), "20 layers of 5,000": (20, 5000)}


def groups_and_scores(layers: int, width: int) -> tuple[bp.ChannelGroups, bp.ChannelScores]:
    with torch.device("meta"):
        inner = [nn.Linear(width, width, bias=False) for _ in range(layers - 1)]
        network = nn.Sequential(nn.Linear(64, width), *inner, nn.Linear(width, 10))
    groups = bp.trace_groups(network, torch.empty(1, 64, device="meta"))
    values = {name: torch.rand(size) for name, size in groups.sizes.items()}
    return groups, bp.ChannelScores(values, "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", default="docs/results/selection.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases = {name: groups_and_scores(*shape) for name, shape in SHAPES.items()}
    seconds: dict[str, dict[str, list[float]]] = {n: {r: [] for r in RULES} for n in cases}
    for _ in range(options.rounds):
        for name, (groups, scores) in cases.items():
            for label, rule in RULES.items():
                started = time.perf_counter()
                bp.select(scores, rule, groups=groups, round_to=8 if "round_to" in label else 1)
                seconds[name][label].append(time.perf_counter() - started)
    result = {
        "seconds": {
            name: {label: round(statistics.median(values), 4) for label, values in rules.items()}
            for name, rules in seconds.items()
        },
        "channels": {name: sum(groups.sizes.values()) for name, (groups, _) in cases.items()},
        "rounds": options.rounds,
        "load of the machine": round(os.getloadavg()[0], 1),
    }
    Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
