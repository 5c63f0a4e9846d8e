"""Build docs/results/agreement.md: do criteria and posteriors rank the channels of LeNet-5 alike?

    python experiments/tables/agreement.py DENSE_0 DENSE_1 DENSE_2 --posteriors RUN_FOLDER …

DENSE_i is the ``dense.safetensors`` of a run with seed i; a run folder is one of
experiments/lenet5_mnist_families.py, fitted from the dense network of its seed. Results are kept in
docs/results/agreement.json; without arguments the page is rebuilt from there.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path

import pandas as pd
import torch
from criteria_lenet5 import CRITERIA
from records import RESULTS

import bayesprune as bp
from bayesprune import datasets
from bayesprune.diagnostics import rank_agreement
from bayesprune.reporting import agreement_plot

TEXT = """\
# Agreement of rankings

LeNet-5 on MNIST: Spearman correlation between what methods say of the channels of a group, mean
over {networks} trained networks. Criteria rank the dense network, from 5,000 training images.
Posteriors are those of [eight switch families](families.md), weights and switches trained together
from that network while the expected MACs are held at 5%; each by its family's own score. Built by
`experiments/tables/agreement.py`. How far criteria agree with themselves on other data is on the
page of [criteria](criteria.md).
"""


def agreement(dense: Path, seed: int, folders: list[Path]) -> pd.DataFrame:
    data = datasets.load(datasets.DataConfig("mnist"), seed)
    network = bp.load_pruned(dense, bp.models.create("lenet5")).eval()
    groups = bp.trace_groups(network, data.example_input)
    batches = list(islice(data.train_plain, 5))
    scores = {
        name: criterion.scores(network, groups, batches)
        for name, criterion in CRITERIA.items()
        if not name.startswith("iterative")
    }
    for folder in folders:
        posterior = bp.SwitchPosterior.load(folder / "state" / "posterior.safetensors")
        family = type(next(iter(posterior.switches.values()))).__name__
        scores[family] = posterior.scores()
    return rank_agreement(scores)


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dense", nargs="*", type=Path)
    parser.add_argument("--posteriors", nargs="*", type=Path, default=[])
    options = parser.parse_args()
    file = RESULTS / "agreement.json"
    for seed, dense in enumerate(options.dense):
        folders = [f for f in options.posteriors if f.name.endswith(f"-{seed}")]
        found = agreement(dense, seed, folders).round(4).to_dict("records")
        runs = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**runs, str(seed): found}, indent=1))
    runs = json.loads(file.read_text())
    every = pd.concat([pd.DataFrame(rows) for rows in runs.values()])
    keys = ["group", "first", "second"]
    mean = every.groupby(keys, sort=False, as_index=False)[["kendall", "spearman"]].mean()
    posteriors = [name for name in mean["second"].unique() if name not in CRITERIA]
    lines = TEXT.format(networks=len(runs)).splitlines()
    lines += ["", "| group | criteria among themselves | posteriors among themselves | between |"]
    lines += ["|---|---|---|---|"]
    for group in dict.fromkeys(mean["group"]):
        rows = mean[mean["group"] == group]
        one, other = rows["first"].isin(posteriors), rows["second"].isin(posteriors)
        cells = [
            f"{rows[kind]['spearman'].mean():.2f}"
            for kind in (~one & ~other, one & other, one ^ other)
        ]
        lines.append(f"| {group} | " + " | ".join(cells) + " |")
        figure = f"agreement_{group}.png"
        agreement_plot(mean, group).savefig(RESULTS / figure, dpi=150)
    for group in dict.fromkeys(mean["group"]):
        lines += ["", f"![Agreement of rankings in {group}](agreement_{group}.png)"]
    (RESULTS / "agreement.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
