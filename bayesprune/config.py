"""The configuration of a run, and how YAML and command-line options become one."""

from __future__ import annotations

import inspect
import os
import re
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from bayesprune._describe import describe
from bayesprune.criteria import Criterion
from bayesprune.datasets import DataConfig
from bayesprune.errors import ConfigError
from bayesprune.estimators import Estimator
from bayesprune.objectives import CostConstraint
from bayesprune.penalties import Penalty
from bayesprune.plan import Limits
from bayesprune.posterior import SwitchPosterior, default_rule
from bayesprune.selection import CostLimit, RiskBudget, Rule
from bayesprune.switches import Switch
from bayesprune.training import FabricConfig, TrainConfig
from bayesprune.weights import GaussianWeights


@dataclass(frozen=True)
class FitConfig:
    """How switches are fitted.

    Attributes
    ----------
    epochs, learning_rate, weight_learning_rate, joint, kl_warmup, estimator, constraint
        See `fit_switches`. A constraint without a target holds the cost at the run's budget.
    train_weights, weight_posterior, kl_weight
        See `SwitchedNetwork`.
    fold : bool
        Whether the posterior mean gates go into the weights of the network that is cut.
    """

    epochs: int = 3
    estimator: Estimator | None = None
    constraint: CostConstraint | None = None
    learning_rate: float = 0.1
    weight_learning_rate: float = 1e-3
    train_weights: bool = False
    weight_posterior: GaussianWeights | None = None
    joint: bool = True
    kl_warmup: float = 0.0
    kl_weight: float | dict[str, float] = 1.0
    fold: bool = True

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigError(f"fit.epochs: expected at least 1, got {self.epochs}")


@dataclass(frozen=True)
class ChecksConfig:
    """Which checks of the fitted posterior go into the report; 0 leaves one out.

    Attributes
    ----------
    pareto_k : int
        Draws of `bayesprune.diagnostics.pareto_k`, at least 100: so often the network runs over all
        training images.
    restarts : int
        Further fits with other seeds, for `bayesprune.diagnostics.restarts`.
    averaged : int
        Draws whose predictions `bayesprune.diagnostics.predictive_check` averages over, on the
        held-out images.
    """

    pareto_k: int = 0
    restarts: int = 0
    averaged: int = 0

    def __post_init__(self) -> None:
        for name, least in (("pareto_k", 100), ("restarts", 1), ("averaged", 1)):
            value = getattr(self, name)
            if value and value < least:
                raise ConfigError(f"checks.{name}: expected 0 or at least {least}, got {value}")

    @property
    def any(self) -> bool:
        """Whether there is something to check."""
        return bool(self.pareto_k or self.restarts or self.averaged)


@dataclass(frozen=True)
class RunConfig:
    """A run.

    Attributes
    ----------
    model : str
        ``bayesprune:NAME``, ``torchvision:NAME`` or ``python.path:factory``.
    data : DataConfig
    method : Switch, Penalty or Criterion
        What scores the channels; in YAML and on the command line also ``auto``, see `AUTO`.
    select : Rule, optional
        What decides how many stay. By default what the switch family brings: `EvidenceStop` where
        the evidence is in closed form, else its own rule.
    seed : int
    model_args : dict
        Keyword arguments of the model.
    dense : str, optional
        ``dense.safetensors`` of another run of the same model: takes the place of pretraining.
    fitted : str, optional
        Folder of another run with the same method, fitted alike: its dense network and its fit
        take the place of pretraining and fitting, so that another budget costs fine-tuning only.
        Not for fits that aim at the budget: a constraint without a target, or gates whose mass is
        what the budget keeps.
    pretrain, finetune : TrainConfig
        `finetune.distill` learns from the dense network.
    fit : FitConfig
        For switches.
    checks : ChecksConfig
        Of the posterior of the switches, in the last round.
    sparse : TrainConfig
        Sparse training, for penalties.
    scratch : TrainConfig, optional
        Train fresh weights in the widths that are left as well: the control that tells what
        pruning was worth.
    rounds : int
        How often to fit, select, remove and fine-tune; budgets and counts are approached
        geometrically.
    limits : Limits
        `minimum`, `round_to` and `protect`: how many channels each group may keep.
    ignore : list of str
        Modules whose channels all stay, see `trace_groups`.
    fabric : FabricConfig
    """

    model: str
    data: DataConfig
    method: Switch | Penalty | Criterion
    select: Rule | None = None
    seed: int = 0
    model_args: dict[str, Any] = field(default_factory=dict)
    dense: str | None = None
    fitted: str | None = None
    pretrain: TrainConfig = field(default_factory=TrainConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    checks: ChecksConfig = field(default_factory=ChecksConfig)
    sparse: TrainConfig = field(default_factory=TrainConfig)
    finetune: TrainConfig = field(default_factory=TrainConfig)
    scratch: TrainConfig | None = None
    rounds: int = 1
    limits: Limits = field(default_factory=Limits)
    ignore: list[str] = field(default_factory=list)
    fabric: FabricConfig = field(default_factory=FabricConfig)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"rounds: expected at least 1, got {self.rounds}")
        if self.fitted is not None and (self.rounds > 1 or isinstance(self.method, Criterion)):
            raise ConfigError("fitted: expected a method that is fitted, in one round")
        self._check_constraint()
        self._check_checks()
        if self.select is None and not isinstance(self.method, Switch):
            raise ConfigError(
                f"select: {type(self.method).__name__} ranks channels and does not say how many "
                "stay; give a rule or a budget"
            )
        self._check_measure()
        if isinstance(self.select, RiskBudget) and self.fit.fold:
            raise ConfigError(
                "select: RiskBudget draws the gates of switches anew; set fit.fold to false, so "
                "that their means are not in the weights as well"
            )

    def _check_measure(self) -> None:
        """Whether the method has what the rule goes by."""
        measure, method = self.rule.measure, type(self.method).__name__
        if isinstance(self.method, Switch):
            SwitchPosterior({"": self.method.bind(2, 1.0)}, history=[]).scores(measure)
        elif measure != Rule.measure:
            raise ConfigError(
                f"select: {type(self.rule).__name__} goes by a posterior ({measure}), and {method} "
                "has none; give a number, a threshold or a budget"
            )

    def _check_constraint(self) -> None:
        if self.follows_budget and not isinstance(self.select, CostLimit):
            raise ConfigError(
                "fit.constraint: without macs or params of its own, CostConstraint takes those of "
                "the budget; give one of them, or select: Budget"
            )

    def _check_checks(self) -> None:
        """What would be found out after the fit only."""
        if not self.checks.any:
            return
        if not isinstance(self.method, Switch) or self.fitted is not None:
            raise ConfigError("checks: expected switches that this run fits")
        if self.checks.pareto_k:
            bound, fit = self.method.bind(2, 1.0), self.fit
            plain = fit.weight_posterior is None and fit.constraint is None and fit.kl_weight == 1
            why = "" if plain else " is fitted with weight_posterior, constraint or kl_weight"
            why += "" if bound.has_prior else " has an improper prior"
            why += " relaxes its prior" if bound.has_prior and not bound.has_density else ""
            if why:
                raise ConfigError(
                    "checks.pareto_k: expected a posterior to compare with; "
                    f"{type(bound).__name__}{why}"
                )

    @property
    def follows_budget(self) -> bool:
        """Whether switches are fitted with the cost held at the budget."""
        constraint = self.fit.constraint
        return (
            isinstance(self.method, Switch) and constraint is not None and not constraint.has_target
        )

    @property
    def rule(self) -> Rule:
        """The rule asked for, or the family's own."""
        if self.select is not None:
            return self.select
        assert isinstance(self.method, Switch)
        return default_rule([self.method])

    def to_yaml(self) -> str:
        """The configuration as YAML that `bayesprune run` accepts."""
        return yaml.safe_dump(describe(self), sort_keys=False, allow_unicode=True)


AUTO: dict[str, Any] = {
    "method": "InformationBottleneck",
    "fit": {"epochs": 10, "train_weights": True, "constraint": "CostConstraint"},
    "finetune": {
        "epochs": 40,
        "learning_rate": 2e-3,
        "average": 0.999,
        "distill": {"weight": 0.7, "temperature": 4.0},
    },
}
"""What ``method: auto`` stands for, unless fields are given; docs/results/frontier.md shows what it
reaches, docs/results/recipes.md beside what else."""


def config_parser() -> ArgumentParser:
    """The parser of all fields of a `RunConfig`, and of ``--config FILE``."""
    parser = ArgumentParser(prog="bayesprune run CONFIG", exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(RunConfig)
    return parser


def parse_config(arguments: Sequence[str]) -> RunConfig:
    """A configuration from options: ``--config FILE`` and ``--field.name value``, later ones win.

    The method ``auto``, in a file or as an option, is replaced by the recipe `AUTO`.

    Raises
    ------
    ConfigError
        Naming the field that is unknown, missing or has an unusable value.
    """
    parser = config_parser()
    try:
        built = parser.instantiate(parser.parse_args(_with_recipe(list(arguments))))
    except (ArgumentError, ValueError, TypeError, OSError) as error:
        raise ConfigError(_in_short(" ".join(str(error).split()))) from error
    return RunConfig(**{f.name: built[f.name] for f in fields(RunConfig)})


_NAMED = {"method": (Switch, Penalty, Criterion), "select": (Rule,), "fit.estimator": (Estimator,)}
"""Fields whose values are named by class."""


def _in_short(error: str) -> str:
    """What the parser says of a class that it does not find or cannot build, without its types."""
    field, _, rest = error.removeprefix('Parser key "').partition('": ')
    if unknown := re.search(r"Expected a dot import path string: (\S+)", rest):
        known = [c.__name__ for kind in _NAMED.get(field, ()) for c in _concrete(kind)]
        close = get_close_matches(unknown[1], known, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        where = " (`bayesprune methods` lists them)" if field == "method" else ""
        return f"{field}: no class is called {unknown[1]}{where}{hint}"
    problems = re.findall(r"Problem with given class_path '(\S+)': (.+?)(?= - | Given |$)", rest)
    return f"{field}: {': '.join(problems[0])}" if problems else error


def _concrete(kind: type) -> Iterator[type]:
    """The classes of a kind that can be built, built in or imported."""
    if not inspect.isabstract(kind) and not kind.__name__.startswith("_"):
        yield kind
    for child in kind.__subclasses__():
        yield from _concrete(child)


def _with_recipe(arguments: list[str]) -> list[str]:
    """The options after those of `AUTO`, without other methods, if the last one named is that."""
    # Options, the method they name if any, and what is left of them without it.
    parts: list[tuple[list[str], Any, list[str]]] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in ("--config", "--method"):
            parts.append(([word], None, []))
            continue
        option = [name, value if equals else next(words, "")]
        if name == "--method":
            parts.append((option, option[1], []))
        else:
            content = _mapping(option[1])
            method = content.pop("method", None)
            parts.append((option, method, [name, yaml.safe_dump(content, sort_keys=False)]))
    named = [method for _, method, _ in parts if method is not None]
    auto = named[-1:] == ["auto"]
    result = ["--config", yaml.safe_dump(AUTO)] if auto else []
    for option, method, rest in parts:
        gone = method is not None and (auto or method == "auto")
        result += rest if gone else option
    return result


def _mapping(config: str) -> dict[str, Any]:
    """What a YAML file holds, as far as it is a mapping; the parser complains about the rest."""
    try:
        with open(config, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def load_config(path: str | os.PathLike[str]) -> RunConfig:
    """A configuration from a YAML file; raises ConfigError as `parse_config` does."""
    return parse_config(["--config", os.fspath(path)])
