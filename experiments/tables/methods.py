"""The page of all methods, from the package's own lists."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from bayesprune.criteria import CRITERIA
from bayesprune.penalties import PENALTIES
from bayesprune.switches import FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
KINDS = {
    "Switches": (
        FAMILIES,
        "A random gate for every channel, with a prior; variational inference fits a posterior. "
        "[Switch families](switches.md) compares priors, factors and rules.",
    ),
    "Penalties": (
        PENALTIES,
        "Sparse training of a copy of the network. In a config, `sparse` says how to train.",
    ),
    "Criteria": (CRITERIA, "Scores of a trained network, without training."),
}


def page() -> str:
    """The page as Markdown."""
    lines = [
        "# Methods",
        "",
        "Every method ends in one score per channel, higher = keep, and meets the same selection",
        "and the same surgery. `bayesprune methods` prints this list, and a config names a method",
        "by its class. Parameters are in the [API](api.md). Built by",
        "`python experiments/tables/methods.py` from the classes themselves.",
    ]
    for kind, (classes, text) in KINDS.items():
        lines += ["", f"## {kind}", "", text, ""]
        lines += ["| name | what it is | reference |", "|---|---|---|"]
        lines += [f"| `{c.__name__}` | {_title(c)} | {c.reference} |" for c in classes]
    return "\n".join(lines) + "\n"


def _title(method: type) -> str:
    """The first sentence of the documentation, as Markdown."""
    paragraph = (inspect.getdoc(method) or "").split("\n\n")[0].replace("\n", " ")
    paragraph = re.sub(r":math:`([^`]*)`", r"$\1$", paragraph).replace("``", "`")
    # A bar would end the cell.
    return paragraph.replace(r"\|", r"\Vert{}").replace("|", r"\vert{}").removesuffix(".")


if __name__ == "__main__":
    PAGE.write_text(page())
