"""What the documentation says of the package is true."""

import os
import re
from pathlib import Path

import methods
import torch

from bayesprune.criteria import CRITERIA
from bayesprune.switches import FAMILIES, Switch

ROOT = Path(__file__).parents[1]


def run(page, names):
    """Run the Python code of a page, briefly; returns the names that it defines."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    for code in blocks:
        exec(re.sub(r"epochs=\d+", "epochs=1", code), names)
    return names


def test_the_page_of_methods_is_up_to_date():
    assert methods.PAGE.read_text() == methods.page()


def test_a_name_is_one_method():
    members = [member.__name__ for kind, _ in methods.KINDS.values() for member in kind]
    assert sorted(members) == sorted(set(members))


def test_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run("README.md", {})
    dense = names["bp"].cost(names["network"], names["example_input"])
    assert names["plan"].cost.macs <= 0.1 * dense.macs
    assert os.listdir() == ["small.safetensors"]


def test_the_readme_names_every_switch_and_criterion():
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"`(\w+)`", readme)) >= {m.__name__ for m in (*FAMILIES, *CRITERIA)}
    assert f"{['eleven', 'twelve', 'thirteen'][len(FAMILIES) - 11]} families" in readme


def test_the_switch_of_the_contributing_page():
    names = run("CONTRIBUTING.md", {})
    switch = names["Positive"](scale=2.0).bind(5)
    assert isinstance(switch, Switch)
    torch.testing.assert_close(switch.mean(), torch.full((5,), 1.005), atol=0.02, rtol=0)
