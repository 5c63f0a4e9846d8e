"""What results pages need of run folders: light copies, and how to repeat a run."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bayesprune._describe import describe
from bayesprune.config import parse_config
from bayesprune.reporting import collect_runs

RESULTS = Path(__file__).parents[2] / "docs" / "results"
FILES = ("config.yaml", "summary.json", "plan.json", "metrics.csv")
Row = dict[str, Any]


def record(folder: Path, kind: str) -> None:
    """Copy configuration, summary, plan and metrics to docs/results/`kind`/."""
    target = RESULTS / kind / folder.name
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(folder / name, target / name)


def recorded(
    name: str, folders: Sequence[str], more: Callable[[Path], Row] = lambda folder: {}
) -> list[Row]:
    """The runs of a page, one line each in docs/results/`name`.json, after adding `folders`.

    Folders of runs that are not finished are passed over.
    """
    file = RESULTS / f"{name}.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    known = {row["folder"]: row for row in rows}
    paths = [path for path in map(Path, folders) if (path / "summary.json").exists()]
    for path, row in zip(paths, collect_runs(paths), strict=True):
        known[path.name] = row | more(path) | {"folder": path.name}
    rows = [known[key] for key in sorted(known)]
    file.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    return rows


def held_out(folder: Path) -> Row:
    """What a run's choices were made on: held-out error and NLL, cut and fine-tuned."""
    found = json.loads((folder / "summary.json").read_text())["held_out"]
    cut = [name for name in found if name.startswith("cut")][-1]  # of the last round
    return {
        f"held_out.{stage}.{name}": found[key][name]
        for stage, key in (("cut", cut), ("pruned", "pruned"))
        for name in ("error", "nll")
    }


def command(folder: Path) -> str:
    """How to repeat a recorded run."""
    config = folder.relative_to(RESULTS.parents[1]) / "config.yaml"
    return f"bayesprune run {config} --out runs/{folder.name}"


def call(row: Row, file: str) -> str:
    """How to repeat the runs of an averaged row, as changes of a configuration in experiments/.

    Options are added until the configuration is that of the row.
    """
    recipe = json.loads(row["recipe"])
    options: list[str] = []
    path = RESULTS.parents[1] / "experiments" / file
    while True:
        config = describe(parse_config(["--config", str(path), *options]))
        found = list(_differences(config, recipe))
        if not found:
            return shlex.join(["bayesprune", "run", f"experiments/{file}", *options])
        for option in found:
            if option[0] in options:
                raise ValueError(f"{row['folders']}: cannot say {shlex.join(option)} in a command")
            options += option


def _differences(config: Any, recipe: Any, place: str = "-") -> Iterator[list[str]]:
    """Options that make one field of a configuration that of the recipe."""
    if not isinstance(recipe, dict):
        if config != recipe:
            yield [f"-{place}", "null" if recipe is None else str(recipe)]
        return
    if "class_path" in recipe:
        given = config or {}
        if given.get("class_path") != recipe["class_path"]:
            path = recipe["class_path"]
            name = path.rpartition(".")[2] if path.startswith("bayesprune.") else path
            options = [f"-{place}", name]
            for name, value in recipe["init_args"].items():
                if isinstance(value, int | float | str):
                    options += [f"-{place}.{name}", str(value)]
            yield options
            return
        config, recipe = given.get("init_args", {}), recipe["init_args"]
    elif config is None:
        yield [f"-{place}", json.dumps(recipe)]
        return
    for name, value in recipe.items():
        yield from _differences(
            config.get(name), value, f"{place}{'.' if place != '-' else ''}{name}"
        )
