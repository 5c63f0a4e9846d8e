from pathlib import Path

import pytest
import yaml

import bayesprune as bp
from bayesprune.config import RunConfig, load_config, parse_config
from bayesprune.errors import ConfigError
from bayesprune.training import TrainConfig

BASE = ["--model", "bayesprune:digits", "--data.name", "digits", "--method", "Dirichlet"]
BASE += ["--select", "Budget", "--select.macs", "0.3"]


def test_names_are_enough_and_defaults_fill_in():
    config = parse_config(BASE)
    assert isinstance(config.method, bp.switches.Dirichlet)
    assert config.select == bp.Budget(macs=0.3)
    assert config.fit.estimator is None
    assert config.rule == config.select
    assert config.rounds == 1


def test_yaml_round_trip(tmp_path):
    options = ["--method.total", "keep", "--fit.estimator", "Implicit"]
    options += ["--fit.estimator.num_samples", "16", "--fit.estimator.share", "group"]
    options += ["--finetune.distill.weight", "0.3", "--model_args.widths", "[8, 8, 8, 8]"]
    config = parse_config([*BASE, *options])
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    again = load_config(tmp_path / "config.yaml")
    assert again.to_yaml() == config.to_yaml()
    assert again.fit.estimator.share == "group"
    assert again.finetune.distill.weight == 0.3
    assert again.model_args == {"widths": [8, 8, 8, 8]}


def test_functions_are_written_by_their_path(tmp_path):
    loss = "torch.nn.functional.binary_cross_entropy_with_logits"
    config = parse_config([*BASE, "--method", "Fisher", "--method.loss", loss])
    assert config.method.loss.__name__ == "binary_cross_entropy_with_logits"
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert f"loss: {loss}" in config.to_yaml()
    assert load_config(tmp_path / "config.yaml").method.loss is config.method.loss


def test_options_after_the_file_win(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(parse_config(BASE).to_yaml())
    config = parse_config(["--config", str(file), "--seed", "7", "--select.macs", "0.1"])
    assert (config.seed, config.select.macs) == (7, 0.1)


def test_auto_is_a_recipe_that_given_fields_win_over(tmp_path):
    file = tmp_path / "c.yaml"
    plain = "model: bayesprune:digits\ndata: {name: digits}\n"
    plain += "select: {class_path: Budget, init_args: {macs: 0.1}}\n"
    file.write_text(plain + "method: auto\nfinetune: {epochs: 7}\n")
    config = load_config(file)
    assert isinstance(config.method, bp.switches.InformationBottleneck)
    assert isinstance(config.fit.constraint, bp.CostConstraint)
    assert not config.fit.constraint.has_target
    assert config.fit.train_weights
    assert (config.finetune.epochs, config.finetune.average) == (7, 0.999)
    (tmp_path / "again.yaml").write_text(config.to_yaml())  # says what it stands for
    assert load_config(tmp_path / "again.yaml").to_yaml() == config.to_yaml()
    # The last method wins, wherever it is named.
    file.write_text(plain + "method: {class_path: Dirichlet, init_args: {total: keep}}\n")
    for options in (["--method", "auto"], ["--method=auto"]):
        config = parse_config(["--config", str(file), *options, "--fit.epochs", "2"])
        assert isinstance(config.method, bp.switches.InformationBottleneck)
        assert (config.fit.epochs, config.finetune.epochs) == (2, 40)
    file.write_text(plain + "method: auto\n")
    config = parse_config(["--config", str(file), "--method", "Fisher"])
    assert isinstance(config.method, bp.criteria.Fisher)
    assert config.finetune.epochs == TrainConfig().epochs
    config = parse_config(["--config", str(file), "--method.strength", "2"])
    assert config.method.strength == 2
    with pytest.raises(
        ConfigError, match=r"fit\.constraint: .* give one of them, or select: Budget"
    ):
        parse_config(["--config", str(file), "--select", "FamilyRule"])


@pytest.mark.parametrize(
    ("method", "rule", "named"),
    [
        ("InformationBottleneck", ["EvidenceStop"], "no change of evidence"),
        ("Magnitude", ["EvidenceStop"], "EvidenceStop goes by a posterior .* Magnitude has none"),
        ("Magnitude", ["FamilyRule"], "FamilyRule goes by a posterior"),
        ("Magnitude", ["RiskBudget", "--select.delta", "1"], "RiskBudget goes by a posterior"),
        ("GroupLasso", ["Probability", "--select.gate", "0.1"], "Probability goes by a posterior"),
    ],
)
def test_a_rule_without_what_it_goes_by(method, rule, named):
    with pytest.raises(ConfigError, match=named):
        parse_config([*BASE, "--method", method, "--select", *rule])


EXPERIMENTS = sorted((Path(__file__).parents[1] / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_experiments_can_be_read(file):
    config = load_config(file)
    assert config.rule is not None
    assert parse_config(["--config", str(file), "--seed", "3"]).seed == 3


def test_a_method_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from bayesprune.criteria import Random\nclass Mine(Random):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = parse_config([*BASE, "--method", "mine.Mine", "--method.seed", "3"])
    assert type(config.method).__name__ == "Mine"
    assert config.method.seed == 3


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--nonsense", "1"], "nonsense"),
        (["--method.alpha", "1"], "alpha"),
        (["--finetune.epochs", "many"], "finetune.epochs"),
        (["--method", "Nothing"], "Nothing"),
        (["--rounds", "0"], "rounds"),
        (["--select.macs", "-1"], "Budget"),
        (["--data.augment", "twist"], "data.augment"),
        (["--config", "no/such/file.yaml"], "no/such/file.yaml"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(options, named):
    with pytest.raises(ConfigError, match=named) as caught:
        parse_config([*BASE, *options])
    assert "\n" not in str(caught.value)


def test_an_unknown_field_in_a_file(tmp_path):
    config = yaml.safe_load(parse_config(BASE).to_yaml())
    config["pretrain"]["speed"] = 9
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match="speed"):
        load_config(tmp_path / "c.yaml")


def test_required_fields():
    with pytest.raises(ConfigError, match="method"):
        parse_config(["--model", "bayesprune:digits", "--data.name", "digits"])


def test_from_python():
    config = RunConfig(
        model="bayesprune:digits",
        data=bp.DataConfig(name="digits"),
        method=bp.criteria.Fisher(),
        select=bp.KeepFraction(0.5),
    )
    assert yaml.safe_load(config.to_yaml())["select"]["init_args"] == {"fraction": 0.5}


def test_a_latency_budget_and_limits(tmp_path):
    options = ["--limits.round_to", "4", "--limits.protect", "[conv1]"]
    options += ["--limits.minimum", "{conv2: 3}"]
    base = [word for word in BASE if word not in ("--select.macs", "0.3")]
    config = parse_config([*base, "--select.latency_ms", "0.7", *options])
    assert config.select == bp.Budget(latency_ms=0.7)
    assert config.limits == bp.Limits({"conv2": 3}, 4, ["conv1"])
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    again = load_config(tmp_path / "config.yaml")
    assert (again.select, again.limits) == (config.select, config.limits)
    assert parse_config(BASE).limits == bp.Limits()
    assert parse_config([*BASE, "--limits.minimum", "3"]).limits.minimum == 3
    with pytest.raises(ConfigError, match="round_to"):
        parse_config([*BASE, "--limits.round_to", "0"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--method", "Magnitud"],
            r"^method: no class is called Magnitud \(`bayesprune methods` lists them\); "
            r"did you mean Magnitude\?$",
        ),
        (["--select", "Budgett"], r"^select: no class is called Budgett; did you mean Budget\?$"),
        (
            ["--method", "Dirichlet", "--fit.estimator", "Implict"],
            r"^fit\.estimator: no class is called Implict; did you mean Implicit\?$",
        ),
        (
            ["--method", "Xyz"],
            r"^method: no class is called Xyz \(`bayesprune methods` lists them\)$",
        ),
        (["--method", "nope.Name"], "^method: nope.Name: No module named 'nope'$"),
        (
            ["--method", "Dirichlet", "--method.concentratio", "3"],
            "^method: bayesprune.switches.Dirichlet: Option 'concentratio' is not accepted$",
        ),
    ],
)
def test_classes_that_are_not_there(options, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(["--model", "bayesprune:digits", "--data.name", "digits", *options])
