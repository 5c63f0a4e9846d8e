"""The model card of a run folder: Markdown with metadata as the Hugging Face hub reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, StrictUndefined

from bayesprune.checkpoint import write_text_atomic
from bayesprune.reporting.report import (
    ReportData,
    about,
    costs,
    headline,
    short_name,
    title,
    verdict,
)


def write_card(folder: Path | str, data: ReportData) -> Path:
    """Write ``README.md``, a model card, into a run folder.

    It says in words and numbers what `write_report` says, without the figures, and how to load the
    network. The metadata carry no license and no author: these are for the owner to add.

    Parameters
    ----------
    folder : Path or str
        The run folder; created if missing.
    data : ReportData
        What to report.

    Returns
    -------
    Path
        The Markdown file, replaced in one step.

    Raises
    ------
    PlanError
        Plan and posterior do not belong together.
    """
    summary = data.summary
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["escape"] = _escape
    source = files(__package__ or "").joinpath("card.md.jinja").read_text(encoding="utf-8")
    page = environment.from_string(source).render(
        metadata=yaml.safe_dump(_metadata(summary), sort_keys=False, allow_unicode=True),
        title=title(summary),
        about=about(summary),
        headline=headline(summary),
        verdict=verdict(data),
        costs=costs(summary),
        architecture=summary["architecture"],
        load=_load(data),
        input_shape=None if data.image is None else np.shape(data.image),
        versions=", ".join(f"{k} {v}" for k, v in summary.get("versions", {}).items()),
    )
    card = Path(folder) / "README.md"
    write_text_atomic(card, page)
    return card


def _metadata(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Front matter: https://huggingface.co/docs/hub/model-cards."""
    metadata: dict[str, Any] = {
        "library_name": "bayesprune",
        "pipeline_tag": "image-classification",
        "tags": ["pytorch", "pruning", "structured-pruning", "bayesian"],
    }
    data, error = summary.get("data"), summary["pruned"].get("error")
    if data is not None and error is not None:
        metadata["datasets"] = [short_name(data)]
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"type": short_name(data), "name": short_name(data), "split": "test"},
            "metrics": [{"type": "accuracy", "value": round(1 - error, 6)}],
        }
        metadata["model-index"] = [{"name": title(summary), "results": [result]}]
    return metadata


def _load(data: ReportData) -> str:
    """The arguments of `models.load` as Python."""
    arguments = (yaml.safe_load(data.config) or {}).get("model_args") or {}
    written = [repr(data.summary["model"]), *(f"{k}={v!r}" for k, v in arguments.items())]
    return ", ".join(written)


def _escape(text: Any) -> str:
    """Text as it is, whatever Markdown or HTML would make of it."""
    return re.sub(r"([\\`*_<>\[\]|])", r"\\\1", str(text))
