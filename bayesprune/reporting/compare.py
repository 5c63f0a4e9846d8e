"""Several runs in one table and one plot."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from bayesprune.errors import CheckpointError
from bayesprune.reporting.plots import pareto_plot

Row = dict[str, Any]

_METRICS = ("error", "nll", "ece", "macs", "params", "weights", "latency_ms")


def collect_runs(folders: Sequence[Path]) -> list[Row]:
    """One row per run folder, from its ``summary.json`` and ``config.yaml``.

    Keys: ``folder``, ``model``, ``data``, ``method``, ``estimator``, ``recipe`` (the configuration
    apart from the seed and the paths, as JSON; equal for runs that differ in the seed only),
    ``seed``, ``architecture``, ``seconds``, and each metric as ``dense.NAME`` and ``NAME``.

    Raises
    ------
    CheckpointError
        If a folder holds no finished run.
    """
    rows = []
    for folder in {folder.resolve(): folder for folder in folders}.values():  # each run once
        try:
            summary = json.loads((folder / "summary.json").read_text())
            config = yaml.safe_load((folder / "config.yaml").read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder}: expected a finished run folder: {error}") from error
        for key in ("seed", "dense", "fabric"):
            config.pop(key, None)
        config["data"].pop("root", None)
        row: Row = {
            "folder": str(folder),
            "model": summary["model"],
            "data": summary["data"],
            "method": summary["method"],
            "estimator": summary.get("estimator", ""),
            "recipe": json.dumps(config, sort_keys=True),
            "seed": summary["seed"],
            "architecture": "-".join(str(g["kept"]) for g in summary["architecture"].values()),
            "seconds": sum(summary["seconds"].values()),
        }
        row |= {f"dense.{name}": summary["dense"][name] for name in _METRICS}
        row |= {name: summary["pruned"][name] for name in _METRICS}
        rows.append(row)
    return rows


def average_over_seeds(runs: Sequence[Row]) -> list[Row]:
    """One row per recipe, cheapest network first.

    The number of ``seeds``, the ``architecture`` of each, and mean and standard deviation of each
    metric and of the seconds (``NAME`` and ``NAME_sd``; the latter None for a single seed).
    """
    recipes: dict[tuple[Any, ...], list[Row]] = {}
    keys = ("model", "data", "method", "estimator", "recipe")
    for run in runs:
        recipes.setdefault(tuple(run[key] for key in keys), []).append(run)
    rows = []
    for values, same in recipes.items():
        row: Row = dict(zip(keys, values, strict=True))
        row |= {"seeds": len(same), "architecture": ", ".join(r["architecture"] for r in same)}
        for name in ("seconds", *_METRICS, *(f"dense.{name}" for name in _METRICS)):
            numbers = [run[name] for run in same]
            row[name] = statistics.mean(numbers)
            row[f"{name}_sd"] = statistics.stdev(numbers) if len(numbers) > 1 else None
        rows.append(row)
    return sorted(rows, key=lambda row: row["macs"])


def percent(row: Row, name: str) -> str:
    """A metric of an averaged row in percent, with plus or minus one sd if there are seeds."""
    sd = row[f"{name}_sd"]
    text = f"{100 * row[name]:.2f}"
    return text if sd is None else f"{text} ± {100 * sd:.2f}"


def compare_runs(folders: Sequence[Path], out: Path) -> pd.DataFrame:
    """Write ``compare.csv`` (a row per recipe) and ``compare.png`` to `out`; return a short table.

    Raises
    ------
    CheckpointError
        If a folder holds no finished run.
    """
    rows = average_over_seeds(collect_runs(folders))
    out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(out / "compare.csv", index=False)
    points: list[Row] = []
    for row in rows:
        point = {key: row[key] for key in ("macs", "error", "error_sd") if row[key] is not None}
        points.append({"label": f"{row['method']} {row['estimator']}".strip(), **point})
    dense = {(row["model"], row["data"]): row for row in rows}
    for (model, data), row in dense.items():
        point = {"macs": row["dense.macs"], "error": row["dense.error"], "dense": True}
        points.append({"label": f"dense {model} {data}", **point})
    pareto_plot(points).savefig(out / "compare.png", dpi=170)
    return pd.DataFrame(
        {
            "model": row["model"],
            "method": f"{row['method']} {row['estimator']}".strip(),
            "seeds": row["seeds"],
            "error %": percent(row, "error"),
            "dense error %": percent(row, "dense.error"),
            "MACs": round(row["macs"]),
            "params": round(row["params"]),
            "kept": row["architecture"],
            "seconds": round(row["seconds"]),
        }
        for row in rows
    )
