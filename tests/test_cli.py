import shutil

import pytest

import bayesprune as bp
from bayesprune.cli import main


def run(capsys, *arguments):
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_methods_lists_everything(capsys):
    code, out, _ = run(capsys, "methods")
    assert code == 0
    assert all(name in out for name in ("Dirichlet", "GroupLasso", "Fisher", "Random"))


def test_groups_of_a_model(capsys):
    code, out, _ = run(capsys, "groups", "bayesprune:lenet5")
    assert code == 0
    assert all(text in out for text in ("2,293,000", "conv1", "94,400", "fc2"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run folder, made quickly."""
    out = tmp_path_factory.mktemp("runs") / "quick"
    arguments = {
        "model": "bayesprune:digits",
        "model_args.widths": "[4, 4, 4, 8]",
        "data.name": "digits",
        "pretrain.epochs": "1",
        "finetune.epochs": "0",
        "method": "Magnitude",
        "select": "KeepFraction",
        "select.fraction": "0.5",
    }
    words = [word for key, value in arguments.items() for word in (f"--{key}", value)]
    bp.run_experiment(bp.config.parse_config(words), out)
    return out


@pytest.mark.parametrize(
    ("format", "file"), [("onnx", "pruned.onnx"), ("exported-program", "pruned.pt2")]
)
def test_export(capsys, folder, tmp_path, format, file):
    code, out, _ = run(capsys, "export", str(folder), "--format", format)
    assert code == 0
    assert str(folder / file) in out
    assert (folder / file).stat().st_size
    elsewhere = tmp_path / "deep" / "file"
    assert run(capsys, "export", str(folder), "--format", format, "--out", str(elsewhere))[0] == 0
    assert elsewhere.stat().st_size


def test_export_to_a_folder_is_refused(capsys, folder, tmp_path):
    arguments = ("export", str(folder), "--format", "onnx", "--out", str(tmp_path))
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert str(tmp_path) in err
    assert err.count("\n") == 1


def test_compare_says_where_its_files_are(capsys, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "again")
    out = tmp_path / "out"
    code, text, _ = run(capsys, "compare", str(folder), str(tmp_path / "again"), "--out", str(out))
    assert code == 0
    assert f"{out / 'compare.csv'}, {out / 'compare.png'}" in text
    assert "runs of one recipe and seed are listed apart" in text
    code, text, _ = run(capsys, "compare", str(folder), str(folder), "--out", str(out))
    assert code == 0
    assert "listed apart" not in text


def test_groups_without_ignored_modules(capsys):
    code, out, _ = run(capsys, "groups", "bayesprune:lenet5", "--ignore", "conv1,fc1")
    assert code == 0
    assert "not prunable: conv1: named in ignore" in out


def test_a_budget_of_another_kind_says_how(capsys, folder, tmp_path):
    (tmp_path / "c.yaml").write_text(
        (folder / "config.yaml")
        .read_text()
        .replace("rules.KeepFraction", "budget.Budget")
        .replace("fraction: 0.5", "macs: 0.5")
    )
    words = ["run", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")]
    code, _, err = run(capsys, *words, "--select.latency_ms", "5")
    assert code == 2
    assert "got macs=0.5, latency_ms=5.0; set the others to None (on the command line: null)" in err
    code, _, err = run(capsys, *words, "--select.params", "0.5", "--select.macs", "null")
    assert code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("groups", "bayesprune:lenet6"), "lenet6"),
        (("groups", "nonsense"), "nonsense"),
        (("groups", "bayesprune:lenet5", "--input", "a,b"), "a,b"),
        (("groups", "bayesprune:lenet5", "--input", "3,5,5"), "conv1"),
        (("run",), "configuration file"),
        (("run", "no/such.yaml"), "no file 'no/such.yaml'"),
        (("run", "--model", "a:b"), "expected a configuration file first, then options"),
        (("report", "no/such/folder"), "no/such/folder"),
        (("compare", "no/such/folder"), "no/such/folder"),
        (("export", "no/such/folder", "--format", "onnx"), "no/such/folder"),
    ],
)
def test_bad_input_is_one_clear_line_and_code_2(capsys, arguments, said):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_unknown_options_of_other_commands(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["methods", "--nonsense"])
    assert caught.value.code == 2


def test_interruption(monkeypatch, capsys, tmp_path):
    from bayesprune import experiment, reporting

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(reporting, "compare_runs", interrupted)
    code, _, err = run(capsys, "compare", str(tmp_path))
    assert (code, err) == (130, "bayesprune: interrupted\n")
    monkeypatch.setattr(experiment, "run_experiment", lambda *_, **__: interrupted())
    (tmp_path / "c.yaml").write_text(
        "{model: bayesprune:digits, data: {name: digits}, method: Random, "
        "select: {class_path: TopK, init_args: {count: 2}}}"
    )
    code, _, err = run(capsys, "run", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run"))
    assert (code, err) == (130, "bayesprune: interrupted; continue with --resume\n")


def test_help_lists_the_fields(capsys):
    code, out, _ = run(capsys, "run", "--help")
    assert code == 0
    assert "--finetune" in out
