import json

import pandas as pd
import pytest

from bayesprune.errors import CheckpointError
from bayesprune.reporting import average_over_seeds, collect_runs, compare, compare_runs


def write(folder, seed, error, method="Dirichlet", macs=1000, scratch=None, data="d"):
    metrics = {"error": error, "nll": 0.1, "ece": 0.01, "macs": macs, "params": 10, "weights": 9}
    metrics["latency_ms"] = 1.0
    summary = {
        "method": method,
        "model": "m",
        "data": data,
        "seed": seed,
        "dense": {**metrics, "macs": 9000, "error": 0.01},
        "pruned": metrics,
        "architecture": {"a": {"kept": 2, "of": 4}, "b": {"kept": 3, "of": 4}},
        "seconds": {"fit": 1.0, "finetune": 2.0},
    }
    if scratch is not None:
        summary["scratch"] = {**metrics, "error": scratch}
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text(
        f"seed: {seed}\nmodel: m\ndata: {{name: d, root: /{seed}}}\nmethod: {method}\n"
        f"fitted: /runs/{seed}\n"
    )
    return folder


def test_seeds_of_one_recipe_become_one_row(tmp_path):
    folders = [write(tmp_path / str(i), i, e) for i, e in enumerate((0.01, 0.02, 0.03))]
    folders.append(write(tmp_path / "other", 0, 0.05, method="Fisher", macs=500))
    table = average_over_seeds(collect_runs(folders))
    assert [row["seeds"] for row in table] == [1, 3]
    row = table[1]
    assert row["error"] == pytest.approx(0.02)
    assert row["error_sd"] == pytest.approx(0.01)
    assert row["architecture"] == "2-3, 2-3, 2-3"
    assert row["seconds"] == 3.0


def test_files_and_the_short_table(tmp_path):
    folders = [write(tmp_path / str(i), i, 0.01 + i / 100) for i in range(2)]
    short = compare_runs(folders, tmp_path / "out")
    assert short["error %"].tolist() == ["1.50 ± 0.71"]
    assert pd.read_csv(tmp_path / "out" / "compare.csv")["macs"].tolist() == [1000.0]
    assert (tmp_path / "out" / "compare.png").stat().st_size > 1000


def test_the_control_from_scratch_stands_beside(tmp_path):
    folders = [write(tmp_path / str(i), i, 0.01, scratch=0.02 + i / 100) for i in range(2)]
    folders += [write(tmp_path / "none", 0, 0.05, method="Fisher")]
    assert compare_runs(folders, tmp_path)["from scratch %"].tolist() == ["2.50 ± 0.71", "–"]


def test_runs_on_other_data_are_told_apart_and_drawn_in_a_panel_of_their_own(tmp_path, monkeypatch):
    drawn, draw = [], compare.pareto_plot

    def kept(rows):
        drawn.append(draw(rows))
        return drawn[0]

    monkeypatch.setattr(compare, "pareto_plot", kept)
    folders = [write(tmp_path / "a", 0, 0.01, macs=900), write(tmp_path / "b", 0, 0.3, data="e")]
    short = compare_runs(folders, tmp_path)
    assert short[["model", "data"]].to_numpy().tolist() == [["m", "d"], ["m", "e"]]
    one, two = drawn[0].axes
    assert [axes.get_title(loc="left") for axes in (one, two)] == ["m on d", "m on e"]
    assert list(one.lines[0].get_ydata()) == [0.01, 0.01]  # pruned and dense: the frontier
    assert list(two.lines[0].get_xdata()) == [1000, 9000]
    (legend,) = (axes.get_legend() for axes in (one, two) if axes.get_legend())
    assert [text.get_text() for text in legend.get_texts()] == ["Dirichlet", "dense"]


def test_a_folder_named_twice_counts_once(tmp_path):
    folder = write(tmp_path / "a", 0, 0.012)
    assert len(collect_runs([folder, tmp_path / "." / "a"])) == 1


def test_a_single_seed_has_no_spread(tmp_path):
    assert compare_runs([write(tmp_path / "a", 0, 0.012)], tmp_path)["error %"].tolist() == ["1.20"]


def test_an_unfinished_run_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nothing"):
        collect_runs([tmp_path / "nothing"])


def test_runs_of_one_recipe_and_seed_are_not_pooled(tmp_path):
    folders = [write(tmp_path / n, s, e) for n, s, e in (("a", 0, 0.01), ("b", 1, 0.02))]
    folders += [write(tmp_path / "c", 0, 0.05)]
    rows = average_over_seeds(collect_runs(folders))
    assert [(row["repeat"], row["seeds"]) for row in rows] == [(1, 2), (2, 1)]
    assert rows[0]["error"] == pytest.approx(0.015)
    assert rows[1]["folders"] == str(tmp_path / "c")
    short = compare_runs(folders, tmp_path)
    assert short["method"].tolist() == ["Dirichlet", "Dirichlet (run 2 of the same seed)"]
