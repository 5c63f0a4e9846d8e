"""What results pages need of run folders: light copies, and how to repeat a run."""

from __future__ import annotations

import shutil
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "docs" / "results"
FILES = ("config.yaml", "summary.json", "plan.json", "metrics.csv")


def record(folder: Path, kind: str) -> None:
    """Copy configuration, summary, plan and metrics to docs/results/`kind`/."""
    target = RESULTS / kind / folder.name
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(folder / name, target / name)


def command(folder: Path) -> str:
    """How to repeat a recorded run."""
    config = folder.relative_to(RESULTS.parents[1]) / "config.yaml"
    return f"bayesprune run {config} --out runs/{folder.name}"
