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
from bayesprune.reporting.run_plots import pareto_plot
from bayesprune.reporting.summary import METRICS, read_summary

Row = dict[str, Any]


def collect_runs(folders: Sequence[Path]) -> list[Row]:
    """One row per run folder, from its ``summary.json`` and ``config.yaml``.

    Keys: ``folder``, ``model``, ``data``, ``method``, ``estimator``, ``recipe`` (the configuration
    apart from the seed and the paths, as JSON; equal for runs that differ in the seed only),
    ``seed``, ``repeat`` (1, or more where runs before it have the same recipe and seed),
    ``architecture``, ``seconds``, each metric as ``dense.NAME`` and ``NAME``, and
    ``scratch.error``, of the same widths trained from scratch, or None.

    Raises
    ------
    CheckpointError
        If a folder holds no finished run.
    """
    rows = []
    for folder in {folder.resolve(): folder for folder in folders}.values():  # each run once
        summary = read_summary(folder)
        file = folder / "config.yaml"
        try:
            config = yaml.safe_load(file.read_text())
            for key in ("seed", "dense", "fitted", "fabric"):
                config.pop(key, None)
            config["data"].pop("root", None)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            raise CheckpointError(f"{file}: expected a configuration: {error!r}") from error
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
        row |= {f"dense.{name}": summary["dense"][name] for name in METRICS}
        row |= {name: summary["pruned"][name] for name in METRICS}
        row["scratch.error"] = summary.get("scratch", {}).get("error")
        row["repeat"] = 1 + sum(_same_run(row, other) for other in rows)
        rows.append(row)
    return rows


_RECIPE = ("model", "data", "method", "estimator", "recipe")


def _same_run(one: Row, other: Row) -> bool:
    return all(one[key] == other[key] for key in (*_RECIPE, "seed"))


def average_over_seeds(runs: Sequence[Row]) -> list[Row]:
    """One row per recipe, cheapest network first; runs with a seed that is there make further rows.

    The ``folders``, which ``repeat`` of its seeds it is, the number of ``seeds``, the
    ``architecture`` of each, and mean and standard deviation of each metric and of the seconds
    (``NAME`` and ``NAME_sd``; the latter None for a single seed, both of ``scratch.error`` where no
    run has it).
    """
    recipes: dict[tuple[Any, ...], list[Row]] = {}
    keys = (*_RECIPE, "repeat")
    for run in runs:
        recipes.setdefault(tuple(run[key] for key in keys), []).append(run)
    rows = []
    for values, same in recipes.items():
        row: Row = dict(zip(keys, values, strict=True))
        row["folders"] = ", ".join(r["folder"] for r in same)
        row |= {"seeds": len(same), "architecture": ", ".join(r["architecture"] for r in same)}
        for name in ("seconds", *METRICS, *(f"dense.{name}" for name in METRICS)):
            numbers = [run[name] for run in same]
            row[name] = statistics.mean(numbers)
            row[f"{name}_sd"] = statistics.stdev(numbers) if len(numbers) > 1 else None
        found = [run["scratch.error"] for run in same if run["scratch.error"] is not None]
        row["scratch.error"] = statistics.mean(found) if found else None
        row["scratch.error_sd"] = statistics.stdev(found) if len(found) > 1 else None
        rows.append(row)
    return sorted(rows, key=lambda row: row["macs"])


def percent(row: Row, name: str) -> str:
    """A metric of an averaged row in percent, with plus or minus one sd if there are seeds."""
    if row[name] is None:
        return "–"
    sd = row[f"{name}_sd"]
    text = f"{100 * row[name]:.2f}"
    return text if sd is None else f"{text} ± {100 * sd:.2f}"


def _label(row: Row) -> str:
    repeat = f"(run {row['repeat']} of the same seed)" if row["repeat"] > 1 else ""
    return " ".join(filter(None, (row["method"], row["estimator"], repeat)))


def _panel(row: Row) -> str:
    """What can be compared: networks of one model, on one data set."""
    return f"{row['model']} on {row['data']}"


def compare_runs(folders: Sequence[Path], out: Path) -> pd.DataFrame:
    """Write ``compare.csv`` (a row per recipe) and ``compare.png`` to `out`; return a short table.

    The figure has a panel, with a frontier, for each pair of a model and a data set.

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
        points.append({"label": _label(row), "panel": _panel(row), **point})
    for panel, row in {_panel(row): row for row in rows}.items():
        point = {"macs": row["dense.macs"], "error": row["dense.error"], "dense": True}
        points.append({"label": "dense", "panel": panel, **point})
    pareto_plot(points).savefig(out / "compare.png", dpi=170)
    return pd.DataFrame(
        {
            "model": row["model"],
            "data": row["data"],
            "method": _label(row),
            "seeds": row["seeds"],
            "error %": percent(row, "error"),
            "dense error %": percent(row, "dense.error"),
            "from scratch %": percent(row, "scratch.error"),
            "MACs": round(row["macs"]),
            "params": round(row["params"]),
            "kept": row["architecture"],
            "seconds": round(row["seconds"]),
        }
        for row in rows
    )
