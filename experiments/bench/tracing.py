"""Time and peak memory of tracing networks of torchvision.

    python experiments/bench/tracing.py [resnet50 vit_b_16 …]

Each network is built in a process of its own; the seconds are the median of rounds, in which the
networks take turns. Memory is how much the largest resident set of a process grew while it traced,
activations of the one example included. Writes docs/results/tracing.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torchvision.models import get_model

import bayesprune as bp


def peak_mib() -> float:
    """Largest resident set so far; Linux counts it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def trace(name: str) -> dict[str, float]:
    network, image = get_model(name).eval(), torch.randn(1, 3, 224, 224)
    before = peak_mib()
    started = time.perf_counter()
    groups = bp.trace_groups(network, image)
    seconds = time.perf_counter() - started
    units = sum(groups.sizes.values())
    grown = peak_mib() - before
    return {"seconds": seconds, "MiB": grown, "groups": len(groups), "units": units}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["resnet50", "vit_b_16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--once", action="store_true", help="trace the first name in this process")
    parser.add_argument("--out", default="docs/results/tracing.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.once:
        print(json.dumps(trace(options.names[0])))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in options.names}
    for _ in range(options.rounds):
        for name in options.names:
            command = [sys.executable, __file__, name, "--once", "--threads", str(options.threads)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[name].append(json.loads(output))
    result: dict[str, object] = {
        name: {key: round(statistics.median(r[key] for r in rows), 3) for key in rows[0]}
        for name, rows in found.items()
    }
    result |= {"rounds": options.rounds, "threads": options.threads}
    result["load of the machine"] = round(os.getloadavg()[0], 1)
    Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
