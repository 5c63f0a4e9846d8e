"""The model card: metadata that parse, the report's words, and a snippet that loads the network."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

import bayesprune as bp
from bayesprune.reporting import ReportData, write_card

SUMMARY = {
    "method": "Dirichlet",
    "model": "bayesprune:lenet5",
    "data": "mnist",
    "seed": 0,
    "dense": {"error": 0.0051, "macs": 2_293_000},
    "pruned": {"error": 0.0099, "macs": 158_700},
    "architecture": {"conv1": {"kept": 2, "of": 4}, "fc|_1_": {"kept": 3, "of": 80}},
    "versions": {"torch": "2.15.0"},
}
PLAN = SimpleNamespace(
    kept={"conv1": [1, 3], "fc|_1_": [0, 1, 2]}, sizes={"conv1": 4, "fc|_1_": 80}
)


def parts(folder: Path, **changed) -> tuple[dict, str]:
    data = {"config": "model_args:\n  widths: [4, 80]\n", "summary": SUMMARY, "plan": PLAN}
    path = write_card(folder, ReportData(**data | changed))
    assert path == folder / "README.md"
    empty, front, body = path.read_text(encoding="utf-8").split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front), body


def test_metadata(tmp_path):
    metadata, _ = parts(tmp_path)
    assert metadata["library_name"] == "bayesprune"
    assert metadata["datasets"] == ["mnist"]
    (entry,) = metadata["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "bayesprune:lenet5 pruned by Dirichlet"
    assert result["metrics"] == [{"type": "accuracy", "value": 0.9901}]


def test_words_and_tables(tmp_path):
    _, body = parts(tmp_path, image=np.zeros((1, 28, 28)))
    for said in (
        "# bayesprune:lenet5 pruned by Dirichlet\n",
        "**14.4× fewer multiply-accumulates, +0.48 points of test error**",
        "79 of 84 channels are gone, 5 stay",
        "|  | Dense | Pruned | Change |\n|---|---:|---:|---:|\n| Test error | 0.51% | 0.99% |",
        "| MACs | 2,293,000 | 158,700 | 14.4× fewer |\n",
        "| Of |\n|---|---:|---:|\n| conv1 | 2 | 4 |\n| fc\\|\\_1\\_ | 3 | 80 |\n",
        "network = bp.models.load('bayesprune:lenet5', widths=[4, 80])",
        "shape (1, 28, 28)",
        "torch 2.15.0",
    ):
        assert said in body
    assert "\n\n\n" not in body


def test_what_was_not_measured_is_not_claimed(tmp_path):
    bare = {k: SUMMARY[k] for k in ("method", "model", "architecture")}
    metadata, body = parts(tmp_path, summary={**bare, "dense": {}, "pruned": {}}, config="")
    assert not {"datasets", "model-index"} & set(metadata)
    assert "the cost is unknown" in body
    assert "bp.models.load('bayesprune:lenet5')" in body
    assert "\n\n\n" not in body


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    options = {
        "model": "bayesprune:digits",
        "model_args.widths": "[4, 4, 4, 8]",
        "data.name": "digits",
        "pretrain.epochs": "1",
        "fit.epochs": "1",
        "finetune.epochs": "0",
        "method": "Dirichlet",
        "select": "KeepFraction",
        "select.fraction": "0.5",
    }
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    folder = tmp_path_factory.mktemp("runs") / "run"
    return bp.run_experiment(bp.config.parse_config(words), folder)


def test_a_run_has_a_card_whose_snippet_loads_the_network(finished, monkeypatch):
    card = (finished.folder / "README.md").read_text(encoding="utf-8")
    assert "10 of 20 channels are gone, 10 stay" in card
    assert "clear-cut" not in card  # the default estimator leaves the widths to the prior
    assert "so the prior alone decides how wide the posterior is" in card
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(finished.folder)
    names: dict = {}
    exec(snippet, names)
    image = torch.randn(3, 1, 8, 8)
    assert torch.equal(names["network"](image), finished.network(image))
