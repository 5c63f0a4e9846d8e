"""Several runs in one table and one plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from bayesprune.errors import CheckpointError
from bayesprune.reporting.plots import pareto_plot

_METRICS = ("error", "nll", "ece", "macs", "params", "weights", "latency_ms")


def collect_runs(folders: Sequence[Path]) -> pd.DataFrame:
    """One row per run folder, from its ``summary.json`` and ``config.yaml``.

    Columns: ``folder``, ``model``, ``data``, ``method``, ``estimator``, ``recipe`` (the
    configuration apart from the seed and the paths; equal for runs that differ in the seed only),
    ``seed``, ``architecture``, ``seconds``, and each metric as ``dense.NAME`` and ``NAME``.

    Raises
    ------
    CheckpointError
        If a folder holds no finished run.
    """
    rows = []
    for folder in folders:
        try:
            summary = json.loads((folder / "summary.json").read_text())
            config = yaml.safe_load((folder / "config.yaml").read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder}: expected a finished run folder: {error}") from error
        for key in ("seed", "dense", "fabric"):
            config.pop(key, None)
        config["data"].pop("root", None)
        row: dict[str, Any] = {
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
    return pd.DataFrame(rows)


def average_over_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per recipe: number of seeds, and the mean and sd of each metric (``NAME_sd``)."""
    keys = ["model", "data", "method", "estimator", "recipe"]
    metrics = [f"dense.{name}" for name in _METRICS] + [*_METRICS, "seconds"]
    grouped = runs.groupby(keys, sort=False)
    mean = grouped[metrics].mean()
    sd = grouped[metrics].std().add_suffix("_sd")
    listed = grouped["architecture"].agg(", ".join)
    table = pd.concat([grouped.size().rename("seeds"), listed, mean, sd], axis=1).reset_index()
    return table.sort_values("macs", ignore_index=True)


def compare_runs(folders: Sequence[Path], out: Path) -> pd.DataFrame:
    """Write ``compare.csv`` (a row per recipe) and ``compare.png`` to `out`; return a short table.

    Raises
    ------
    CheckpointError
        If a folder holds no finished run.
    """
    table = average_over_seeds(collect_runs(folders))
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "compare.csv", index=False)
    rows: list[dict[str, Any]] = []
    for _, row in table.iterrows():
        label = f"{row['method']} {row['estimator']}".strip()
        rows.append(
            {
                "label": label,
                "macs": row["macs"],
                "error": row["error"],
                "error_sd": row["error_sd"],
            }
        )
    for (model, data), part in table.groupby(["model", "data"]):
        rows.append(
            {
                "label": f"dense {model} {data}",
                "macs": part["dense.macs"].mean(),
                "error": part["dense.error"].mean(),
                "dense": True,
            }
        )
    pareto_plot(rows).savefig(out / "compare.png", dpi=170)
    return pd.DataFrame(
        {
            "model": table["model"],
            "method": (table["method"] + " " + table["estimator"]).str.strip(),
            "seeds": table["seeds"],
            "error %": [_spread(r["error"], r["error_sd"], 100, 2) for _, r in table.iterrows()],
            "dense error %": [
                _spread(r["dense.error"], r["dense.error_sd"], 100, 2) for _, r in table.iterrows()
            ],
            "MACs": table["macs"].round().astype(int),
            "params": table["params"].round().astype(int),
            "kept": table["architecture"],
            "seconds": table["seconds"].round().astype(int),
        }
    )


def _spread(mean: float, sd: float, scale: float, digits: int) -> str:
    """The mean, with plus or minus one sd where there are several seeds."""
    text = f"{scale * mean:.{digits}f}"
    return text if pd.isna(sd) else f"{text} ± {scale * sd:.{digits}f}"
