import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import bayesprune as bp
from bayesprune import experiment, timing
from bayesprune.cli import main
from bayesprune.errors import CheckpointError, ConfigError, PlanError

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
    assert summary["pruned"]["macs"] <= 0.4 * summary["dense"]["macs"]
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
    assert "<table>" in run._repr_html_()


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
        "select",
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
        patched.setattr(experiment, "select", dying)
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


def test_a_dense_network_from_another_run(finished, tmp_path):
    dense = str(finished.folder / "dense.safetensors")
    run = bp.run_experiment(config(dense=dense), tmp_path / "run")
    for key in ("error", "nll", "macs"):
        assert run.summary["dense"][key] == finished.summary["dense"][key]
    assert "pretrain" not in run.summary["seconds"]


def test_model_and_data_that_do_not_fit(tmp_path):
    from bayesprune.errors import DataError

    args = [
        w for w in options(model="bayesprune:vgg16") if "widths" not in w and w != "[8, 8, 8, 12]"
    ]
    with pytest.raises(DataError, match="vgg16 does not take images of digits"):
        bp.run_experiment(bp.config.parse_config(args), tmp_path / "run")


def test_a_latency_budget_in_rounds_and_limits(tmp_path, monkeypatch):
    """On a made-up device: 1 ms, and 1 ms for every thousand weights."""

    def device(network, example, **repeats):
        return 1 + 1e-3 * sum(p.numel() for p in network.parameters() if p.ndim > 1)

    monkeypatch.setattr(timing, "latency", device)
    args = options(rounds="2", limits__round_to="2", limits__protect="[conv1]", fit__epochs="1")
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


def test_limits_for_unknown_groups_stop_a_run_before_the_fit(tmp_path):
    with pytest.raises(PlanError, match="protect: expected names of groups .*, got conv9"):
        bp.run_experiment(config(limits__protect="[conv9]"), tmp_path / "run")
    assert not (tmp_path / "run" / "state" / "posterior.safetensors").exists()
