"""How well latency budgets are met: what was predicted, what was measured, what was asked for.

    python experiments/bench/latency.py

LeNet-5 and ResNet-20 with random weights, at 50% and 70% of the dense network's time. The scores
are the norms of filters, shared out without data; latency does not depend on weights. After the
selection the dense and the chosen network are timed anew with `in_turn`: every block gives one
ratio of its medians, and the result is the median over the blocks, with the quartiles as spread.
"spread of dense" is that of the dense network's own blocks: how steady the
machine was. Writes docs/results/latency.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bayesprune as bp
from bayesprune.selection import Context, choose
from bayesprune.timing import in_turn


def measure(name: str, share: float, options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    network = bp.models.create(name).eval()
    image = torch.randn(options.batch, *bp.models.input_shape(name))
    groups = bp.trace_groups(network, image)
    started = time.perf_counter()
    context = Context(groups, network=network, example_input=image)
    model = context.latency
    limit = share * model.dense_ms
    rule = bp.Budget(latency_ms=limit)
    plan = choose(bp.criteria.Magnitude().scores(network, groups, []), rule, context)
    seconds = time.perf_counter() - started
    small = bp.remove_channels(network, plan, image)
    block = partial(bp.latency, repeats=options.calls, warmup=1)
    times = in_turn({"dense": network, "small": small}, image, blocks=options.blocks, measure=block)
    dense = times["dense"]
    low, middle, high = np.quantile(times["small"] / dense, [0.25, 0.5, 0.75]) / share
    quartiles = np.quantile(dense, [0.25, 0.5, 0.75])
    return {
        "asked for": share,
        "predicted / limit": round(model(plan.kept) / limit, 4),
        "measured in selection / limit": round(model.actual(plan.kept) / limit, 4),
        "measured anew / limit": round(middle, 4),
        "quartiles of that": [round(low, 4), round(high, 4)],
        "dense ms": round(float(quartiles[1]), 4),
        "spread of dense": round(float((quartiles[2] - quartiles[0]) / quartiles[1]), 4),
        "blocks": len(dense),
        "MACs": round(plan.cost.macs / bp.cost(network, image).macs, 4) if plan.cost else None,
        "seconds of selection": round(seconds, 1),
        "note": plan.note,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=100)
    parser.add_argument("--calls", type=int, default=10, help="in a block")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="docs/results/latency.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    before = os.getloadavg()[0]
    result: dict[str, Any] = {
        name: [measure(name, share, options) for share in (0.5, 0.7)]
        for name in ("lenet5", "resnet20")
    }
    result |= {
        "batch": options.batch,
        "threads": options.threads,
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "load before and after": [round(before, 2), round(os.getloadavg()[0], 2)],
    }
    Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
