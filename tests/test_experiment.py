import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import bayesprune as bp
from bayesprune import experiment, selection, timing
from bayesprune._arviz import rhat
from bayesprune.cli import main
from bayesprune.errors import (
    BudgetError,
    CheckpointError,
    ConfigError,
    DataError,
    FitError,
    PlanError,
    TraceError,
)

OPTIONS = {
    "model": "bayesprune:digits",
    "model_args.widths": "[8, 8, 8, 12]",
    "data.name": "digits",
    "data.batch_size": "128",
    "pretrain.epochs": "2",
    "pretrain.learning_rate": "0.01",
    "method": "Dirichlet",
    "method.total": "keep",
    "fit.epochs": "2",
    "select": "Budget",
    "select.macs": "0.4",
    "select.step": "0.2",
    "finetune.epochs": "2",
    "finetune.average": "0.9",
    "finetune.distill.weight": "0.5",
}


def options(**changed):
    merged = {**OPTIONS, **{k.replace("__", "."): v for k, v in changed.items()}}
    return [word for key, value in merged.items() for word in (f"--{key}", value)]


def config(**changed):
    return bp.config.parse_config(options(**changed))


def numbers(folder):
    """What must not depend on interruptions."""
    summary = json.loads((folder / "summary.json").read_text())
    for stage in ("dense", "pruned"):
        summary[stage].pop("latency_ms")
    summary.pop("latency")
    summary.pop("seconds")
    rows = (folder / "metrics.csv").read_text().splitlines()
    place = rows[0].split(",").index("seconds")
    cells = [row.split(",") for row in rows]
    return summary, [row[:place] + row[place + 1 :] for row in cells]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return bp.run_experiment(config(), folder)


def test_the_folder_is_complete(finished):
    names = [
        "config.yaml",
        "summary.json",
        "metrics.csv",
        "plan.json",
        "posterior.nc",
        "report.html",
        "README.md",
    ]
    names += ["dense.safetensors", "pruned.safetensors"]
    assert all((finished.folder / name).is_file() for name in names)
    assert list((finished.folder / "figures").glob("*.png"))
    summary = json.loads((finished.folder / "summary.json").read_text())
    assert summary["schema"] == 1
    metrics = {"error", "nll", "ece", "macs", "params", "weights", "latency_ms"}
    assert set(summary["dense"]) == set(summary["pruned"]) == metrics
    assert list(summary["reliability"]) == ["dense", "pruned"]
    for name, bins in summary["reliability"].items():
        assert sum(bins["count"]) == summary["test_size"]
        rows = zip(bins["count"], bins["confidence"], bins["accuracy"], strict=True)
        gap = sum(count * abs(right - sure) for count, sure, right in rows)
        assert gap / summary["test_size"] == pytest.approx(summary[name]["ece"], abs=1e-6)
    assert list(summary["held_out"]) == ["dense", "cut", "pruned"]
    assert all(set(m) == {"error", "nll", "ece"} for m in summary["held_out"].values())
    assert summary["pruned"]["macs"] <= 0.4 * summary["dense"]["macs"]
    low, middle, high = summary["latency"]["ratio"]
    assert low <= middle <= high
    assert {"batch_size": 1, "device": "cpu", "threads": 1}.items() <= summary["latency"].items()
    assert summary["method"] == "Dirichlet"
    assert summary["estimator"] == "AnalyticMean"
    assert {"pretrain", "fit", "select", "finetune"} <= set(summary["seconds"])
    kept = summary["architecture"]["conv1"]
    assert kept == {"kept": len(finished.plan.kept["conv1"]), "of": 8}


def test_the_run_reads_back(finished):
    run = bp.load_run(finished.folder)
    image = torch.randn(3, 1, 8, 8)
    assert torch.equal(run.network(image), finished.network(image))
    assert bp.cost(run.network, image).macs == run.summary["pruned"]["macs"]
    assert run.posterior.names == ["conv1", "conv2", "conv3", "fc1"]
    data = bp.datasets.load(run.config.data, run.config.seed)
    assert bp.evaluate(run.network, data.test)["error"] == run.summary["pruned"]["error"]
    nll = run.summary["pruned"]["nll"]
    assert f"<td>{nll:.5g}</td>" in run._repr_html_().partition("<td>pruned</td>")[2]


class Counted:
    """A loader that knows how often it was read."""

    def __init__(self, loader):
        self.dataset, self.loader, self.reads = loader.dataset, loader, 0

    def __iter__(self):
        self.reads += 1
        return iter(self.loader)


def test_the_test_set_is_read_once_for_each_network(finished, tmp_path, monkeypatch):
    loaded = bp.datasets.load(finished.config.data, finished.config.seed)
    test = Counted(loaded.test)
    data = dataclasses.replace(loaded, test=test)
    monkeypatch.setattr(experiment.datasets, "load", lambda *arguments: data)
    args = {"dense": str(finished.folder / "dense.safetensors"), "finetune__epochs": "0"}
    bp.run_experiment(config(**args), tmp_path / "run")
    assert test.reads == 2


def test_a_finished_folder_is_not_overwritten(finished):
    with pytest.raises(ConfigError, match="--resume"):
        bp.run_experiment(config(), finished.folder)
    with pytest.raises(ConfigError, match=r"select\.init_args\.macs: 0\.4 there, 0\.5"):
        bp.run_experiment(config(select__macs="0.5"), finished.folder, resume=True)
    again = bp.run_experiment(config(), finished.folder, resume=True)
    assert again.summary == finished.summary


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="not a run folder"):
        bp.run_experiment(config(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(CheckpointError, match="finished run"):
        bp.load_run(tmp_path)


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "where",
    [
        "save_state",
        "choose",
        "remove_channels",
        "evaluate",
        "save_pruned",
        "write_card",
        "write_report",
    ],
)
def test_resume_after_a_kill_at_any_stage(finished, tmp_path, monkeypatch, where):
    """Die at several calls of `where`; what is resumed ends in the same numbers."""
    calls = 0
    original = getattr(experiment, where)

    def dying(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls in (1, 2, 4, 7, 11):
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(experiment, where, dying)
    for _ in range(10):
        try:
            bp.run_experiment(config(), tmp_path / "run", resume=True)
            break
        except Killed:
            pass
    assert calls > 1
    assert numbers(tmp_path / "run") == numbers(finished.folder)


def test_all_networks_are_timed_in_turn_and_only_once(finished, tmp_path, monkeypatch):
    calls, in_turn, save_pruned = [], experiment.in_turn, experiment.save_pruned

    def counted(networks, example):
        calls.append(list(networks))
        return in_turn(networks, example)

    def dying(file, *args):
        if file.name == "pruned.safetensors":
            raise Killed
        save_pruned(file, *args)

    monkeypatch.setattr(experiment, "in_turn", counted)
    args = {"dense": str(finished.folder / "dense.safetensors"), "scratch__epochs": "1"}
    args |= {"finetune__epochs": "0", "fit__epochs": "1"}
    with monkeypatch.context() as patched:
        patched.setattr(experiment, "save_pruned", dying)
        with pytest.raises(Killed):
            bp.run_experiment(config(**args), tmp_path / "run")
    run = bp.run_experiment(config(**args), tmp_path / "run", resume=True)
    assert calls == [["dense", "pruned", "scratch"]]
    noted = json.loads((run.folder / "state" / "notes.json").read_text())["latency"]
    for name, milliseconds in noted["ms"].items():
        assert run.summary[name]["latency_ms"] == milliseconds
    assert run.summary["latency"]["ratio"] == noted["ratio"]


def test_resume_after_sigkill(finished, tmp_path):
    """A real kill in the middle of training, by the command line."""
    file = tmp_path / "c.yaml"
    file.write_text(config().to_yaml())
    command = [sys.executable, "-m", "bayesprune", "run", str(file), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "state" / "fit-epochs.safetensors").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "summary.json").exists()
    assert main(["run", str(file), "--out", str(tmp_path / "run"), "--resume"]) == 0
    assert numbers(tmp_path / "run") == numbers(finished.folder)


def test_rounds_and_joint_training(tmp_path):
    run = bp.run_experiment(
        config(rounds="2", fit__train_weights="true", method__total="anneal", fit__epochs="1"),
        tmp_path / "run",
    )
    assert run.summary["pruned"]["macs"] <= 0.4 * run.summary["dense"]["macs"]
    first = bp.PruningPlan.load(tmp_path / "run" / "state" / "plan-1.json")
    for name, kept in run.plan.kept.items():
        assert set(kept) <= set(first.kept[name])
        assert run.posterior.channels[name].tolist() == first.kept[name]


def test_a_penalty_trains_sparsely_and_is_resumed(tmp_path, monkeypatch):
    changed = {"method": "GroupLasso", "method__strength": "0.01", "sparse__epochs": "2"}
    args = [w for w in options(**changed) if w not in ("--method.total", "keep")]
    penalised = bp.config.parse_config(args)
    run = bp.run_experiment(penalised, tmp_path / "whole")
    assert run.posterior is None
    assert run.summary["method"] == "GroupLasso"
    assert run.summary["pruned"]["macs"] <= 0.4 * run.summary["dense"]["macs"]
    rows = (run.folder / "metrics.csv").read_text().splitlines()
    assert {"penalty", "units"} <= set(rows[0].split(","))
    stages = [row.split(",")[0] for row in rows[1:]]
    assert stages == ["pretrain", "pretrain", "fit", "fit", "finetune", "finetune"]

    def dying(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(experiment, "choose", dying)
        with pytest.raises(Killed):
            bp.run_experiment(penalised, tmp_path / "run")
    bp.run_experiment(penalised, tmp_path / "run", resume=True)
    assert numbers(tmp_path / "run") == numbers(run.folder)


def test_a_criterion_leaves_no_posterior(tmp_path):
    args = [w for w in options(method="Fisher") if w not in ("--method.total", "keep")]
    run = bp.run_experiment(bp.config.parse_config(args), tmp_path / "run")
    assert run.posterior is None
    assert "estimator" not in run.summary
    assert (tmp_path / "run" / "report.html").exists()


def test_the_same_widths_from_scratch(finished, tmp_path) -> None:
    args = {"dense": str(finished.folder / "dense.safetensors"), "scratch__epochs": "30"}
    args |= {"scratch__learning_rate": "0.01", "finetune__epochs": "0"}
    run = bp.run_experiment(config(**args), tmp_path / "run")
    summary = run.summary
    assert summary["scratch"]["macs"] == summary["pruned"]["macs"]
    assert summary["scratch"]["error"] < 0.2  # trained for long
    assert summary["pruned"]["error"] > 0.2  # two epochs, cut, not fine-tuned
    assert "scratch" in summary["seconds"]
    assert "trained from scratch has" in (run.folder / "report.html").read_text()
    assert "scratch" not in finished.summary


def test_checks_of_the_posterior_are_reported(finished, tmp_path, monkeypatch) -> None:
    restarts, made = bp.diagnostics.restarts, []

    def noted(*arguments: object, **options: object) -> bp.diagnostics.Restarts:
        made.append(restarts(*arguments, **options))
        return made[0]

    monkeypatch.setattr(experiment.diagnostics, "restarts", noted)
    checks = {"checks__pareto_k": "100", "checks__restarts": "1", "checks__averaged": "3"}
    args = {"dense": str(finished.folder / "dense.safetensors"), "fit__epochs": "1"}
    run = bp.run_experiment(config(**checks, **args, finetune__epochs="0"), tmp_path / "run")
    found = run.summary["diagnostics"]
    assert list(found) == [
        "Pareto k-hat",
        "largest R-hat of restarts",
        "NLL of averaged predictions",
    ]
    assert found["Pareto k-hat"]["threshold"] == pytest.approx(0.5)
    fits = made[0].posteriors
    draws = [fit.sample(1000, run.config.seed + number) for number, fit in enumerate(fits)]
    chains = torch.stack([torch.cat(list(gates.values()), 1) for gates in draws]).numpy()
    largest = found["largest R-hat of restarts"]
    assert largest["value"] == pytest.approx(np.nanmax(rhat(chains)))
    assert largest["value"] > largest["threshold"] == 1.01
    assert found["NLL of averaged predictions"]["threshold"] is None
    page = (run.folder / "report.html").read_text()
    assert "Vehtari et al." in page
    assert "Not measured in this run" not in page
    assert "diagnostics" not in finished.summary


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"checks__pareto_k": "99"}, "checks.pareto_k: expected 0 or at least 100, got 99"),
        ({"checks__restarts": "-1"}, "checks.restarts: expected 0 or at least 1, got -1"),
        (
            {"checks__pareto_k": "100", "fit__kl_weight": "0.5"},
            "checks.pareto_k: .* Dirichlet is fitted with weight_posterior, constraint or",
        ),
        ({"checks__averaged": "3", "fitted": "runs/a"}, "checks: expected switches that this run"),
    ],
)
def test_checks_that_cannot_be_made_are_refused(changed, said) -> None:
    with pytest.raises(ConfigError, match=said):
        config(**changed)


def test_a_check_that_fails_does_not_lose_the_fit(finished, tmp_path, monkeypatch) -> None:
    def failing(*arguments: object, **options: object) -> None:
        raise FitError("pareto_k: expected finite log weights")

    monkeypatch.setattr(experiment.diagnostics, "pareto_k", failing)
    args = {"dense": str(finished.folder / "dense.safetensors"), "finetune__epochs": "0"}
    run = bp.run_experiment(config(checks__pareto_k="100", **args), tmp_path / "run")
    noted = run.summary["diagnostics"]["Pareto k-hat"]
    assert noted["verdict"] == "could not be made: pareto_k: expected finite log weights"


def test_an_infinite_check_is_written_as_strict_json(finished, tmp_path, monkeypatch) -> None:
    found = bp.diagnostics.ParetoK(math.inf, 100, 3, elbo=-9.0, log_evidence=-8.0, ess=1.0)
    monkeypatch.setattr(experiment.diagnostics, "pareto_k", lambda *args, **options: found)
    args = {"dense": str(finished.folder / "dense.safetensors"), "finetune__epochs": "0"}
    run = bp.run_experiment(config(checks__pareto_k="100", **args), tmp_path / "run")
    text = (run.folder / "summary.json").read_text()
    assert "Infinity" not in text
    noted = json.loads(text)["diagnostics"]["Pareto k-hat"]
    assert noted["value"] is None
    assert noted["verdict"].startswith("k-hat inf")
    assert "Pareto k-hat: k-hat inf over" in (run.folder / "report.html").read_text()


def test_risk_is_of_the_network_without_folded_gates(finished, tmp_path) -> None:
    args = options(dense=str(finished.folder / "dense.safetensors"), finetune__epochs="0")
    for name in ("--select.macs", "--select.step", "--method.total"):
        del args[args.index(name) : args.index(name) + 2]
    args[args.index("--select") + 1] = "RiskBudget"
    args += ["--select.delta", "0.5", "--select.num_draws", "5"]
    with pytest.raises(ConfigError, match="set fit.fold to false"):
        bp.config.parse_config(args)
    run = bp.run_experiment(
        bp.config.parse_config([*args, "--fit.fold", "false"]), tmp_path / "run"
    )
    assert run.summary["pruned"]["macs"] < run.summary["dense"]["macs"]
    dense = bp.models.load(run.config.model, **run.config.model_args)
    network = bp.load_pruned(finished.folder / "dense.safetensors", dense)
    data = bp.datasets.load(run.config.data, run.config.seed)
    groups = bp.trace_groups(network, data.example_input)
    risk = bp.diagnostics.plan_risk(
        run.plan, run.posterior, network, groups, data.validation, num_draws=5
    )
    assert risk.probability(0.5) >= 0.95


def test_an_improper_prior_has_no_k_hat() -> None:
    with pytest.raises(ConfigError, match="NormalJeffreys has an improper prior"):
        bp.config.parse_config(fitted_options("NormalJeffreys", "0.5", checks__pareto_k="100"))
    with pytest.raises(ConfigError, match="SpikeAndSlab relaxes its prior"):
        bp.config.parse_config(fitted_options("SpikeAndSlab", "0.5", checks__pareto_k="100"))


def fitted_options(method: str, macs: str, **changed) -> list[str]:
    args = options(method=method, select__macs=macs, sparse__epochs="1", **changed)
    place = args.index("--method.total")
    return args[:place] + args[place + 2 :]


@pytest.mark.parametrize("method", ["LogNormal", "GroupLasso"])
def test_the_fit_of_another_run(method, tmp_path, monkeypatch) -> None:
    def run(name: str, args: list[str]) -> bp.experiment.Run:
        return bp.run_experiment(bp.config.parse_config(args), tmp_path / name)

    first = run("first", fitted_options(method, "0.6"))
    anew = run("anew", fitted_options(method, "0.3"))
    folder = str(first.folder)
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "fit_switches", lambda *args, **kwargs: 1 / 0)
        patch.setattr(bp.penalties.GroupLasso, "train", None)
        again = run("again", fitted_options(method, "0.3", fitted=folder))
    assert numbers(again.folder) == numbers(anew.folder)
    assert again.summary["pruned"]["macs"] < first.summary["pruned"]["macs"]
    (again.folder / "summary.json").unlink()
    first.folder.rename(tmp_path / "moved")  # what was taken over is no longer needed
    args = fitted_options(method, "0.3", fitted=folder)
    resumed = bp.run_experiment(bp.config.parse_config(args), again.folder, resume=True)
    assert numbers(resumed.folder) == numbers(anew.folder)
    (tmp_path / "moved").rename(first.folder)
    with pytest.raises(ConfigError, match=r"was fitted otherwise \(seed: 0 there, 1 asked for\)"):
        run("other", fitted_options(method, "0.3", fitted=folder, seed="1"))


def test_a_constraint_without_a_target_follows_the_budget(tmp_path, monkeypatch) -> None:
    def run(name: str, macs: str, **changed) -> bp.experiment.Run:
        changed = {"fit__constraint": "CostConstraint", "fit__epochs": "1", **changed}
        args = fitted_options("HardConcrete", macs, finetune__epochs="0", **changed)
        return bp.run_experiment(bp.config.parse_config(args), tmp_path / name)

    towards = bp.CostConstraint.towards
    targets = []

    def spy(self, **target):
        targets.append(target)
        return towards(self, **target)

    monkeypatch.setattr(bp.CostConstraint, "towards", spy)
    rounds = run("rounds", "0.25", rounds="2")
    dense = rounds.summary["dense"]["macs"]
    assert [target["macs"] for target in targets] == pytest.approx([0.5 * dense, 0.25 * dense])
    one = run("one", "0.5")
    assert targets[-1] == {"macs": 0.5 * dense}
    again = run("again", "0.5", fitted=str(one.folder))
    assert numbers(again.folder) == numbers(one.folder)
    run("all", str(dense + 1))
    assert targets[-1] == {"macs": dense}
    with pytest.raises(ConfigError, match="fitted: the cost of .* was held at .* fit anew"):
        run("other", "0.25", fitted=str(one.folder))
    args = fitted_options("HardConcrete", "0.5", fit__constraint="CostConstraint")
    with pytest.raises(ConfigError, match=r"fit\.constraint: without macs or params"):
        bp.config.parse_config([*args, "--select", "{class_path: TopK, init_args: {count: 2}}"])
    for_criteria = "{class_path: Threshold, init_args: {value: 0.5}}"  # they fit nothing
    bp.config.parse_config([*args, "--method", "Fisher", "--select", for_criteria])


def test_the_fit_of_another_run_must_be_there_and_fit(finished, tmp_path) -> None:
    with pytest.raises(ConfigError, match="were fitted to keep .* channels, here they are to keep"):
        bp.run_experiment(
            config(fitted=str(finished.folder), select__macs="0.7"), tmp_path / "other"
        )
    with pytest.raises(CheckpointError, match=r"config\.yaml: expected a configuration"):
        bp.run_experiment(config(fitted=str(tmp_path / "none")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    shutil.copytree(finished.folder, tmp_path / "copy")
    (tmp_path / "copy/state/posterior.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"copy has not finished its fit: no .*posterior"):
        bp.run_experiment(config(fitted=str(tmp_path / "copy")), tmp_path / "run2")
    with pytest.raises(ConfigError, match="fitted: expected a method that is fitted, in one round"):
        config(fitted=str(finished.folder), rounds="2")


def test_a_dense_network_from_another_run(finished, tmp_path):
    dense = str(finished.folder / "dense.safetensors")
    run = bp.run_experiment(config(dense=dense), tmp_path / "run")
    for key in ("error", "nll", "macs"):
        assert run.summary["dense"][key] == finished.summary["dense"][key]
    assert "pretrain" not in run.summary["seconds"]


def test_the_fit_of_another_run_with_a_latency_budget(tmp_path, monkeypatch):
    """A budget is the same where the device has become slower since."""
    slow = 1.0

    def device(network, example, **repeats):
        return slow * (1 + 1e-3 * sum(p.numel() for p in network.parameters()))

    monkeypatch.setattr(timing, "latency", device)
    args = fitted_options("Dirichlet", "0.5", fit__epochs="1", fit__constraint="CostConstraint")
    args += ["--method.total", "keep", "--select.macs", "null", "--select.latency_ms", "2.4"]
    first = bp.run_experiment(bp.config.parse_config(args), tmp_path / "first")
    slow = 1.1
    args += ["--fitted", str(first.folder)]
    again = bp.run_experiment(bp.config.parse_config(args), tmp_path / "again")
    folders = (first.folder, again.folder)
    notes = [json.loads((folder / "state" / "notes.json").read_text()) for folder in folders]
    for name in ("keep", "target"):
        assert notes[0][name] == notes[1][name]


def test_a_latency_budget_in_rounds_and_limits(tmp_path, monkeypatch):
    """On a made-up device: 1 ms, and 1 ms for every thousand weights."""

    def device(network, example, **repeats):
        return 1 + 1e-3 * sum(p.numel() for p in network.parameters() if p.ndim > 1)

    monkeypatch.setattr(timing, "latency", device)
    args = options(rounds="2", limits__round_to="2", limits__protect="[conv1]", fit__epochs="1")
    args += ["--fit.constraint", "CostConstraint"]
    args[args.index("--select.macs")] = "--select.latency_ms"
    dense = bp.models.create("digits", widths=[8, 8, 8, 12])
    limit = 1 + 0.5 * (device(dense, None) - 1)
    args[args.index("--select.latency_ms") + 1] = str(limit)
    run = bp.run_experiment(bp.config.parse_config(args), tmp_path / "run")
    assert run.plan.widths["conv1"] == 8
    assert all(width % 2 == 0 for width in run.plan.widths.values())
    found = device(run.network, None)
    assert found <= limit
    assert (found >= 0.98 * limit) == (run.plan.note is None)
    first = bp.PruningPlan.load(tmp_path / "run" / "state" / "plan-1.json")
    assert first.cost.macs > run.plan.cost.macs
    notes = json.loads((tmp_path / "run" / "state" / "notes.json").read_text())
    assert notes["keep-1"]["conv1"] == 8
    # The constraint's target: the MACs of what keeps the same fraction of every group.
    targets = [notes[f"target-{number}"]["macs"] for number in (1, 2)]
    assert run.summary["dense"]["macs"] > targets[0] > targets[1] > 0
    assert targets[1] == pytest.approx(run.summary["pruned"]["macs"], rel=0.4)


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"limits__protect": "[conv9]"}, PlanError, "protect: expected .*, got conv9"),
        ({"limits__minimum": '{"conv9": 2}'}, PlanError, "minimum: expected .*, got conv9"),
        ({"select__macs": "0.001"}, BudgetError, "macs of at most .* the smallest network"),
        ({"limits__minimum": "8"}, BudgetError, r"conv2 at least 8"),
        ({"select": "TopK", "select__count": "9"}, PlanError, "conv1: asked to keep 9 of 8"),
        ({"select": "TopK", "select__count": '{"conv7": 3}'}, PlanError, "groups: conv7"),
        ({"dense": "no/such.safetensors"}, CheckpointError, "no/such.safetensors"),
        ({"ignore": "[conv9]"}, TraceError, "ignore names unknown modules: conv9"),
        ({"ignore": "[conv1, conv2, conv3, fc1]"}, TraceError, "conv1: named in ignore"),
        ({"data__validation": "9999"}, DataError, "data.validation"),
        (
            {"model": "bayesprune:vgg16", "model_args.widths": None},
            DataError,
            "vgg16 does not take",
        ),
        ({"fabric__threads": "0"}, ConfigError, "fabric.threads"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is(tmp_path, changed, error, said):
    args = options(**changed)
    if "select" in changed:
        for name in ("--select.macs", "--select.step"):
            del args[args.index(name) : args.index(name) + 2]
    while None in args:
        del args[args.index(None) - 1 : args.index(None) + 1]
    configuration = bp.config.parse_config(args)
    with pytest.raises(error, match=said):
        bp.run_experiment(configuration, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", ["fit.epochs", "rounds"])
def test_nothing_to_do_is_refused_by_the_configuration(field):
    with pytest.raises(ConfigError, match=f"{field}: expected at least 1, got 0"):
        config(**{field.replace(".", "__"): "0"})


def quick(**changed):
    """A run without training, by a criterion."""
    values = {
        "model": "bayesprune:digits",
        "model_args.widths": "[8, 8, 8, 12]",
        "data.name": "digits",
        "pretrain.epochs": "0",
        "finetune.epochs": "0",
        "method": "Magnitude",
        "select": "TopK",
        "select.count": "4",
        **{name.replace("__", "."): value for name, value in changed.items()},
    }
    return bp.config.parse_config([w for k, v in values.items() for w in (f"--{k}", v)])


def test_a_run_that_trains_nothing(tmp_path):
    run = bp.run_experiment(quick(), tmp_path / "run")
    assert set(run.plan.widths.values()) == {4}
    assert set(run.summary["seconds"]) == {"select"}
    assert bp.load_run(tmp_path / "run").plan == run.plan


def test_weights_in_channels_last_order(tmp_path, monkeypatch):
    trained = {}

    def noted(network, *args, stage, **options):
        weights = [p for p in network.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
        last = [p.is_contiguous(memory_format=torch.channels_last) for p in weights]
        trained[stage] = weights != [] and all(last)
        return train_network(network, *args, stage=stage, **options)

    train_network = bp.experiment.train_network
    monkeypatch.setattr(bp.experiment, "train_network", noted)
    epochs = {f"{stage}__epochs": "1" for stage in ("pretrain", "finetune", "scratch")}
    run = bp.run_experiment(quick(fabric__channels_last="true", **epochs), tmp_path / "last")
    assert trained == dict.fromkeys(("pretrain", "finetune", "scratch"), True)
    other = bp.run_experiment(quick(**epochs), tmp_path / "first")
    assert not any(trained.values())
    for stage in ("dense", "pruned", "scratch"):
        assert run.summary[stage]["nll"] == pytest.approx(other.summary[stage]["nll"], rel=1e-3)


def test_ignored_modules_stay_whole(tmp_path):
    run = bp.run_experiment(quick(ignore="[conv2]", select__count="4"), tmp_path / "run")
    assert "conv2" not in run.plan.kept
    assert run.network.conv2.out_channels == 8


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Networks of a user's own, by name."""
    (tmp_path / "theirs.py").write_text(
        """
import torch
from torch import nn

class Blocks(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 8, 3),
            nn.GroupNorm(4, 8), nn.Flatten(), nn.Linear(32, 10),
        )

class Fails(Blocks):
    def forward(self, x):
        return {}[len(x)]

class FailsLater(Blocks):
    def forward(self, x):
        if self.training:
            raise LookupError("only\\nlater")
        return super().forward(x)

class Decides(Blocks):
    def forward(self, x):
        return super().forward(x) if x.mean() > 9 else super().forward(-x)

def broken():
    raise ArithmeticError("no network today")
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("theirs", None)


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("Fails", {}, "theirs:Fails does not take images of digits .*: KeyError: 1"),
        ("FailsLater", {"pretrain__epochs": "1"}, "FailsLater .*: LookupError: only later"),
        ("Decides", {}, r"Decides: calls bool\(\) on a tensor that depends on the input"),
        ("broken", {}, "model 'theirs:broken': ArithmeticError: no network today"),
        ("absent", {}, "'absent' in 'theirs'"),
    ],
)
def test_networks_that_fail_are_named_in_one_line(mine, tmp_path, capsys, name, changed, said):
    configuration = quick(model=f"theirs:{name}", model_args="{}", **changed)
    (tmp_path / "c.yaml").write_text(configuration.to_yaml())
    assert main(["run", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert re.search(said, errors[-1])
    assert not any("Traceback" in line for line in errors)
    assert (tmp_path / "run").exists() == (name == "FailsLater")


def test_layers_in_blocks_keep_two_of_them_until_the_last_round(mine, tmp_path):
    """A layer cut to one block is another kind of layer to the next trace."""
    run = bp.run_experiment(
        quick(model="theirs:Blocks", model_args="{}", rounds="3", select__count="1"),
        tmp_path / "run",
    )
    assert run.plan.kept.keys() == {"0", "3"}
    assert run.plan.sizes == {"0": 6, "3": 4}
    assert run.plan.widths == {"0": 1, "3": 1}
    for number in (1, 2):
        step = bp.PruningPlan.load(tmp_path / "run" / "state" / f"plan-{number}.json")
        assert min(step.widths.values()) >= 2
    assert run.network[1].groups == 1


def test_groups_that_a_round_changes_are_named(tmp_path, monkeypatch):
    trace = experiment.trace_groups

    def tracing(network, example, ignore=()):
        small = network.conv1.out_channels < 8
        return trace(network, example, ["conv2"] if small else ignore)

    monkeypatch.setattr(experiment, "trace_groups", tracing)
    with pytest.raises(PlanError, match=r"rounds: before round 2 .*\(conv2\); .*limits\.minimum"):
        bp.run_experiment(quick(rounds="2", select__count="3"), tmp_path / "run")


PLAN = '{"schema": 1, "kept": {"a": [99]}, "sizes": {"a": 12}, "method": "", "cost": null}'
RULES = '{"rules": [{"class_path": "%s", "init_args": {}}]}'


@pytest.mark.parametrize(
    ("file", "text", "command"),
    [
        ("summary.json", "{}", "report"),
        ("summary.json", '{"schema": 1, "dense": {"err', "compare"),
        ("summary.json", "[]", "compare"),
        ("summary.json", '{"dense": 3}', "--resume"),
        ("metrics.csv", None, "report"),
        ("metrics.csv", "stage,epoch,loss,seconds\nfit,1,x,2\n", "report"),
        ("metrics.csv", "a,b\n", "report"),
        ("metrics.csv", "stage,epoch,loss,seconds\nfit,1", "report"),
        ("config.yaml", "model: [", "compare"),
        ("config.yaml", "model: [", "report"),
        ("config.yaml", "model: [", "--resume"),
        ("config.yaml", "just text", "compare"),
        ("plan.json", "{}", "report"),
        ("plan.json", PLAN, "report"),
        ("pruned.safetensors", "", "report"),
        ("state/notes.json", '{"dense":', "unfinished"),
        ("state/notes.json", "[]", "unfinished"),
        ("state/notes.json", '{"rules": 3}', "unfinished"),
        (
            "state/notes.json",
            '{"rules": [{"class_path": "no.Such", "init_args": {}}]}',
            "unfinished",
        ),
        (
            "state/notes.json",
            '{"rules": [{"class_path": "os.abort", "init_args": {}}]}',
            "unfinished",
        ),
        ("metrics.csv", "a,b\n", "unfinished"),
    ],
)
def test_damaged_files_are_named_in_one_line(finished, tmp_path, capsys, file, text, command):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    (tmp_path / "c.yaml").write_text((folder / "config.yaml").read_text())
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    if command == "unfinished":
        (folder / "summary.json").unlink()
    if command in ("unfinished", "--resume"):
        arguments = ["run", str(tmp_path / "c.yaml"), "--out", str(folder), "--resume"]
    else:
        arguments = [command, str(folder)]
    if command == "compare":
        arguments += ["--out", str(tmp_path)]
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert str(folder / file) in errors


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """Folders of a fit of switches and of a penalty, and what runs from them end in."""
    folders = {}
    for method in ("Dirichlet", "GroupLasso"):
        changed = {"method": method, "pretrain__epochs": "1", "finetune__epochs": "1"}
        epochs = "fit" if method == "Dirichlet" else "sparse"
        run = bp.run_experiment(
            quick(**changed, **{f"{epochs}__epochs": "1"}), tmp_path_factory.mktemp("runs") / method
        )
        folders[method] = (run.config, run.folder, numbers(run.folder))
        (run.folder / "summary.json").unlink()
    return folders


@pytest.mark.parametrize(
    ("method", "file", "undone"),
    [
        ("Dirichlet", "pretrain", ()),
        ("Dirichlet", "pretrain-epochs", ("pretrain",)),  # killed in the middle of the stage
        ("Dirichlet", "fit", ()),
        ("Dirichlet", "fit-epochs", ("fit", "posterior")),
        ("Dirichlet", "posterior", ()),
        ("Dirichlet", "finetune", ()),
        ("Dirichlet", "finetune-epochs", ("finetune",)),
        ("GroupLasso", "fit", ()),
        ("GroupLasso", "fit-epochs", ("fit", "scores")),
        ("GroupLasso", "scores", ()),
    ],
)
def test_a_truncated_file_of_a_stage_can_be_deleted(unfinished, tmp_path, method, file, undone):
    configuration, source, expected = unfinished[method]
    folder = tmp_path / "run"
    shutil.copytree(source, folder)
    for name in undone:
        (folder / "state" / f"{name}.safetensors").unlink()
    damaged = folder / "state" / f"{file}.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    said = f"{re.escape(str(damaged))}: .*; delete the file, and --resume repeats its stage"
    with pytest.raises(CheckpointError, match=said):
        bp.run_experiment(configuration, folder, resume=True)
    damaged.unlink()
    bp.run_experiment(configuration, folder, resume=True)
    assert numbers(folder) == expected


def test_latency_is_modelled_once_a_round_and_never_again_after_a_kill(tmp_path, monkeypatch):
    fits, calls = [], []

    class Counted(timing.LatencyModel):
        def __init__(self, network, *args):
            fits.append(sum(p.numel() for p in network.parameters()))
            super().__init__(network, *args)

    def device(network, example, **repeats):
        return 1 + 1e-3 * sum(p.numel() for p in network.parameters() if p.ndim > 1)

    monkeypatch.setattr(timing, "latency", device)
    monkeypatch.setattr(selection.context, "LatencyModel", Counted)
    args = options(rounds="2", fit__epochs="1", pretrain__epochs="0", finetune__epochs="0")
    del args[args.index("--finetune.distill.weight") :][:2]
    args[args.index("--select.macs")] = "--select.latency_ms"
    args[args.index("--select.latency_ms") + 1] = "1.7"
    configuration = bp.config.parse_config(args)
    choose = experiment.choose

    def dying(*args):
        calls.append(args)
        if len(calls) == 2:
            raise Killed
        return choose(*args)

    monkeypatch.setattr(experiment, "choose", dying)
    with pytest.raises(Killed):
        bp.run_experiment(configuration, tmp_path / "run")
    assert len(fits) == 2  # one for the dense network, one for what the first round left
    assert fits[0] > fits[1]
    rules = json.loads((tmp_path / "run" / "state" / "notes.json").read_text())["rules"]
    run = bp.run_experiment(configuration, tmp_path / "run", resume=True)
    assert fits[2:] == fits[1:2]  # for the choice that was not made
    assert json.loads((tmp_path / "run" / "state" / "notes.json").read_text())["rules"] == rules
    assert device(run.network, None) <= 1.7


def test_an_impossible_latency_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "latency", lambda network, example, **repeats: 1.0)
    args = options()
    args[args.index("--select.macs")] = "--select.latency_ms"
    with pytest.raises(BudgetError, match="latency_ms of at most 0.4 .* has 1"):
        bp.run_experiment(bp.config.parse_config(args), tmp_path / "run")
    assert not (tmp_path / "run").exists()
