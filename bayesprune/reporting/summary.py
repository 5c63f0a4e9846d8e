"""What ``summary.json`` of a run folder holds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from bayesprune.errors import CheckpointError

METRICS = {
    "error": "Test error",
    "nll": "NLL (nats)",
    "ece": "ECE",
    "macs": "MACs",
    "params": "Parameters",
    "weights": "Weights",
    "latency_ms": "Latency",
}
"""What a run measures of a network, with its title."""


def read_summary(folder: Path) -> dict[str, Any]:
    """``summary.json`` of a finished run.

    Raises
    ------
    CheckpointError
        If the file is missing or something else.
    """
    file = folder / "summary.json"
    try:
        summary = json.loads(file.read_text())
        for name in ("dense", "pruned"):
            metrics = {key: float(summary[name][key]) for key in METRICS}
            if not all(map(math.isfinite, metrics.values())):
                raise ValueError(f"{name}: expected finite metrics, got {metrics}")
        for name in ("model", "data", "method", "seed"):
            summary[name]
        sum(summary["seconds"].values())
        [(group["kept"], group["of"]) for group in summary["architecture"].values()]
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: expected a finished run folder: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: expected the summary of a run: {error!r}") from error
    return summary
