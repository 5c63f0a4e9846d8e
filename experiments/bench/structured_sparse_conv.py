"""Latency of structured sparse convolutions beside dense ones.

    python experiments/bench/structured_sparse_conv.py [vgg19 resnet32 …]

For each network and share of its parameters, the pattern among the closest ones whose g and p
divide most widths; dense and sparse take turns. Writes docs/results/structured_sparse_conv.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch

import bayesprune as bp
from bayesprune.layers import SparsePattern, sparse_patterns, to_structured_sparse


def aligned(pattern: SparsePattern) -> int:
    """How many of the powers of two up to 512 p and g divide."""
    return sum(512 % number == 0 for number in (pattern.p, pattern.g))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["vgg19", "resnet32"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="docs/results/structured_sparse_conv.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.names:
        dense = bp.models.create(name)
        image = torch.randn(options.batch, *bp.models.input_shape(name))
        for fraction in (0.10, 0.05, 0.025):
            pattern = max(sparse_patterns(dense, fraction, tolerance=0.15), key=aligned)
            sparse = to_structured_sparse(dense, pattern.p, pattern.g)
            times = [
                (bp.latency(dense, image, repeats=5), bp.latency(sparse, image, repeats=5))
                for _ in range(options.rounds)
            ]
            row = {
                "network": name,
                "p": pattern.p,
                "g": pattern.g,
                "parameters left": pattern.fraction,
                "MACs left": bp.cost(sparse, image).macs / bp.cost(dense, image).macs,
                "dense ms": statistics.median(pair[0] for pair in times),
                "sparse over dense": statistics.median(b / a for a, b in times),
            }
            rows.append(row)
            print(row)
    Path(options.out).write_text(json.dumps({"batch": options.batch, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
