"""A whole run: train, fit, select, remove, fine-tune, evaluate, in a resumable folder."""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bayesprune import datasets, diagnostics, models
from bayesprune._describe import build, describe, html_table
from bayesprune._modes import evaluating
from bayesprune._version import __version__
from bayesprune.checkpoint import load_state, save_state, write_text_atomic
from bayesprune.config import RunConfig, load_config
from bayesprune.cost import cost
from bayesprune.criteria import Criterion
from bayesprune.datasets import Data
from bayesprune.errors import (
    BayespruneError,
    CheckpointError,
    ConfigError,
    DataError,
    PlanError,
)
from bayesprune.estimators import Estimator
from bayesprune.groups import ChannelGroups, trace_groups
from bayesprune.network import SwitchedNetwork
from bayesprune.objectives import CostConstraint
from bayesprune.penalties import Penalty
from bayesprune.plan import Limits, PruningPlan
from bayesprune.posterior import SwitchPosterior
from bayesprune.reporting import METRICS, ReportData, read_summary, write_card, write_report
from bayesprune.selection import ChannelScores, Context, CostLimit, Rule, choose
from bayesprune.storage import load_pruned, save_pruned
from bayesprune.surgery import remove_channels
from bayesprune.svi import fit_switches
from bayesprune.switches import Switch
from bayesprune.timing import in_turn
from bayesprune.training import (
    MetricsWriter,
    evaluate,
    make_fabric,
    quality,
    read_metrics,
    train_network,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # slow to import


@dataclass(frozen=True)
class Run:
    """A finished run, read from its folder.

    Attributes
    ----------
    folder : Path
    config : RunConfig
    summary : dict
        ``summary.json``.
    plan : PruningPlan
    network : nn.Module
        The pruned network.
    posterior : SwitchPosterior, optional
        Of the last round; None for penalties and criteria.
    """

    folder: Path
    config: RunConfig
    summary: dict[str, Any]
    plan: PruningPlan
    network: nn.Module
    posterior: SwitchPosterior | None

    def __repr__(self) -> str:
        dense, pruned = self.summary["dense"], self.summary["pruned"]
        return (
            f"Run({self.folder}: {self.summary['method']}, error {dense['error']:.2%} -> "
            f"{pruned['error']:.2%}, MACs {dense['macs']:,} -> {pruned['macs']:,})"
        )

    def _repr_html_(self) -> str:
        rows = [
            [stage, *(f"{self.summary[stage][name]:.5g}" for name in METRICS)]
            for stage in ("dense", "pruned")
        ]
        return html_table(["", *METRICS], rows)


class _Folder:
    """What a run has done so far, on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def claim(self, config: RunConfig, resume: bool) -> None:
        """Make sure that the folder is free for a run, or holds it; nothing is written yet."""
        self._config = config.to_yaml()
        if (self / "config.yaml").exists():
            if not resume:
                raise ConfigError(
                    f"{self.path}: holds a run already; continue with --resume or choose another "
                    "--out"
                )
            if changed := self.difference(config):
                raise ConfigError(
                    f"{self.path}: holds a run with another configuration ({changed})"
                )
        elif self.path.exists() and any(self.path.iterdir()):
            raise ConfigError(f"{self.path}: not empty and not a run folder; choose another --out")

    def difference(self, config: RunConfig, names: Collection[str] | None = None) -> str:
        """The first field (of those that count) in which another run differs, in words; or ""."""
        file = self / "config.yaml"
        try:
            theirs = describe(load_config(file))
        except (ConfigError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file}: expected a configuration: {error}") from error
        ours = describe(config)
        fields = [*theirs, *ours] if names is None else names
        for field in fields:
            if theirs.get(field) != ours.get(field):
                return _difference(theirs.get(field), ours.get(field), field)
        return ""

    def begin(self) -> None:
        """Take the folder; before that nothing is written to it."""
        if not (self / "config.yaml").exists():
            write_text_atomic(self / "config.yaml", self._config)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def state(self, name: str) -> Path:
        """A file that only resumption needs."""
        return self.path / "state" / f"{name}.safetensors"

    def tensors(
        self, name: str, network: nn.Module, make: Callable[[], nn.Module], *others: Path
    ) -> nn.Module:
        """`network` with the tensors of a stage: read if the stage is done, else made and kept.

        It is done if all that it leaves, the `others` included, is there.
        """
        file = self.state(name)
        if all(left.exists() for left in (file, *others)):
            network.load_state_dict(load_state(file))
            return network
        made = make()
        save_state(file, dict(made.state_dict()))
        return made

    def note(self, name: str, make: Callable[[], Any]) -> Any:
        """JSON-like values of a stage, made once."""
        notes = self.read_notes()
        if name not in notes:
            notes[name] = make()
            self.begin()
            write_text_atomic(self._notes, json.dumps(notes, indent=1))
        return notes[name]

    def notes(self, kind: str) -> dict[str, Any]:
        """All notes whose name starts with ``kind/``."""
        notes = self.read_notes().items()
        return {k.partition("/")[2]: v for k, v in notes if k.startswith(f"{kind}/")}

    @property
    def _notes(self) -> Path:
        return self.path / "state" / "notes.json"

    def read_notes(self) -> dict[str, Any]:
        """All notes."""
        try:
            notes = json.loads(self._notes.read_text()) if self._notes.exists() else {}
            if not isinstance(notes, dict):
                raise ValueError(f"expected an object, got {type(notes).__name__}")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self._notes}: expected the notes of a run: {error}") from error
        return notes


def _difference(old: Any, new: Any, place: str) -> str:
    """The first field in which two configurations differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *new]:
            if old.get(key) != new.get(key):
                return _difference(old.get(key), new.get(key), f"{place}.{key}")
    return f"{place}: {old!r} there, {new!r} asked for"


def run_experiment(config: RunConfig, out: str | os.PathLike[str], *, resume: bool = False) -> Run:
    """Carry out a run, or what is left of it.

    Every choice is made on held-out training data; the test set is read once for the dense and once
    for the finished network.

    Parameters
    ----------
    config : RunConfig
    out : path
        The run folder. It must be new, or hold the same run if `resume`.
    resume : bool
        Continue an interrupted run; the result is that of an uninterrupted one.

    Returns
    -------
    Run

    Raises
    ------
    ConfigError
        If the folder holds something else.
    BayespruneError
        Whatever a stage raises.
    """
    folder = _Folder(Path(out))
    folder.claim(config, resume)
    if not (folder / "summary.json").exists():
        try:
            _carry_out(config, folder)
        except CheckpointError as error:
            if error.path is None or error.path.parent != folder.path / "state":
                raise
            message = f"{error}; delete the file, and --resume repeats its stage"
            raise CheckpointError(message, error.path) from error
    run = load_run(folder.path)
    if not (folder / "report.html").exists():
        rebuild_report(run)
    return run


def _carry_out(config: RunConfig, folder: _Folder) -> None:
    """All stages up to the summary."""
    fabric = make_fabric(config.fabric)
    data = datasets.load(config.data, config.seed)
    network = _network(config, data, fabric)
    example = fabric.to_device(data.example_input)
    groups = trace_groups(network, example, config.ignore)
    context = Context(groups, config.limits, network=network, example_input=example)
    fitted = _fitted(config, folder)
    rules = _rules(config, folder, context)
    _take_fit(config, folder, fitted, context, rules)
    metrics = MetricsWriter(folder / "metrics.csv")
    dense = _pretrain(config, folder, data, fabric, metrics, context)
    folder.note("test/dense", partial(_test, dense, data, fabric))
    folder.note("held_out/dense", partial(_held_out, dense, data))
    network, plan, posterior = _rounds(config, rules, folder, data, fabric, metrics, context)
    folder.note("test/pruned", partial(_test, network, data, fabric))
    folder.note("held_out/pruned", partial(_held_out, network, data))
    networks = {"dense": dense, "pruned": network}
    networks |= _scratch(config, folder, data, fabric, metrics, dense, plan)
    tested = folder.notes("test")
    timed = folder.note("latency", partial(_time, networks, example))

    if not metrics.path.exists():
        metrics.write("pretrain", [])  # nothing was trained
    save_pruned(folder / "pruned.safetensors", network, plan)
    plan.save(folder / "plan.json")
    if posterior is not None:
        posterior.save(folder.state("posterior"))
        posterior.to_arviz(plan=plan).to_netcdf(folder / "posterior.nc")
    summary = {
        "schema": 1,
        "method": type(config.method).__name__,
        "model": config.model,
        "data": config.data.name,
        "seed": config.seed,
        **({"estimator": type(_estimator(config)).__name__} if posterior else {}),
        **{n: {**found["metrics"], "latency_ms": timed["ms"][n]} for n, found in tested.items()},
        "latency": {name: value for name, value in timed.items() if name != "ms"},
        "test_size": len(data.test.dataset),  # type: ignore[arg-type]
        "held_out": folder.notes("held_out"),
        "reliability": {name: tested[name]["reliability"] for name in ("dense", "pruned")},
        **({"diagnostics": checked} if (checked := folder.notes("diagnostics")) else {}),
        "architecture": plan.architecture,
        "seconds": {**_seconds(metrics.path), **folder.notes("seconds")},
        "versions": _versions(),
    }
    write_text_atomic(folder / "summary.json", json.dumps(summary, indent=1))


def _placed(network: nn.Module, config: RunConfig, fabric: Fabric) -> nn.Module:
    """The network where and how it is computed."""
    fabric.to_device(network)
    return network.to(memory_format=torch.channels_last) if config.fabric.channels_last else network


def _network(config: RunConfig, data: Data, fabric: Fabric) -> nn.Module:
    """The network before the first stage, tried on an image."""
    torch.manual_seed(config.seed)
    network = fabric.to_device(models.load(config.model, **config.model_args))
    try:
        with evaluating(network):
            network(fabric.to_device(data.example_input))
    except Exception as error:
        raise DataError(
            f"{config.model} does not take images of {config.data.name} "
            f"{tuple(data.example_input.shape[1:])}: {type(error).__name__}: {error}"
        ) from error
    if config.dense is not None:
        network = load_pruned(config.dense, network)
    return _placed(network, config, fabric)


def _rules(config: RunConfig, folder: _Folder, context: Context) -> list[Rule]:
    """What decides in each round, once it is clear that it can be done.

    Noted, because latency is never measured the same twice.
    """

    def make() -> list[Any]:
        config.limits.check(context.groups)
        config.rule.check(context)
        rules = []
        for number in range(1, config.rounds + 1):
            rule = config.rule.at(number / config.rounds, context)
            if number < config.rounds:
                rule.check(context.changed(limits=_between_rounds(config.limits, context)))
            rules.append(describe(rule))
        return rules

    noted = folder.note("rules", make)
    try:
        return [build(rule, Rule) for rule in noted]
    except (TypeError, ValueError, AttributeError, ImportError) as error:
        file = folder / "state/notes.json"
        raise CheckpointError(f"{file}: expected the rules of a run: {error}") from error


_FITTED = ("model", "model_args", "data", "seed", "method", "fit", "sparse", "ignore")
"""The fields in which runs that share a fit agree."""


def _stages(config: RunConfig) -> tuple[str, ...]:
    """What a fit leaves; the last of them tells that it is all there."""
    return ("pretrain", "posterior" if isinstance(config.method, Switch) else "scores", "fit")


def _fitted(config: RunConfig, folder: _Folder) -> _Folder | None:
    """The folder whose fit is to be taken over, once it is clear that it has one like it."""
    if config.fitted is None or folder.state("fit").exists():
        return None
    other = _Folder(Path(config.fitted))
    if changed := other.difference(config, _FITTED):
        raise ConfigError(f"fitted: {other.path} was fitted otherwise ({changed})")
    missing = [str(other.state(n)) for n in _stages(config) if not other.state(n).exists()]
    if missing:
        raise CheckpointError(f"fitted: {other.path} has not finished its fit: no {missing[0]}")
    return other


def _take_fit(
    config: RunConfig,
    folder: _Folder,
    other: _Folder | None,
    context: Context,
    rules: Sequence[Rule],
) -> None:
    """Copy what another run has pretrained and fitted."""
    if other is None:
        return
    notes = other.read_notes()
    if folder.read_notes()["rules"] == notes.get("rules"):
        for name in {"keep", "target"} & notes.keys():  # latency is never measured the same twice
            folder.note(name, lambda value=notes[name]: value)
    if isinstance(config.method, Switch) and config.method.needs_keep:
        keep = folder.note("keep", partial(rules[0].counts, context))
        if keep != notes.get("keep"):
            raise ConfigError(
                f"fitted: the switches of {other.path} were fitted to keep {notes.get('keep')} "
                f"channels, here they are to keep {keep}; fit anew"
            )
    if config.follows_budget:
        target = folder.note("target", partial(_target, rules[0], context))
        if target != notes.get("target"):
            raise ConfigError(
                f"fitted: the cost of {other.path} was held at {notes.get('target')} in the fit, "
                f"here it is to be {target}; fit anew"
            )
    for name in notes:
        if name in ("test/dense", "held_out/dense") or name.startswith("diagnostics/"):
            folder.note(name, lambda value=notes[name]: value)
    metrics = MetricsWriter(folder / "metrics.csv")
    rows = read_metrics(other / "metrics.csv")
    for stage in ("pretrain", "fit"):
        found = [row for row in rows if row["stage"] == stage]
        if found:
            metrics.write(stage, found)
    for name in _stages(config):
        save_state(folder.state(name), load_state(other.state(name)))


def _between_rounds(limits: Limits, context: Context) -> Limits:
    """Two blocks at least where layers mix channels in blocks.

    With one block such a layer is an ordinary one, whose channels the next trace takes one by one.
    """
    assert context.network is not None
    modules = dict(context.network.named_modules())
    minimum = limits.minimum
    if isinstance(minimum, int):
        minimum = dict.fromkeys(context.groups, minimum)
    for name, group in context.groups.items():
        layers = [modules[path] for path in group.modules("passthrough")]
        # Blocks of convolutions and of group normalizations.
        blocks = [getattr(m, "groups", getattr(m, "num_groups", 1)) for m in layers]
        if any(number > 1 for number in blocks):
            minimum = {**minimum, name: max(2, minimum.get(name, 1))}
    return replace(limits, minimum=minimum)


def _pretrain(
    config: RunConfig,
    folder: _Folder,
    data: Data,
    fabric: Fabric,
    metrics: MetricsWriter,
    context: Context,
) -> nn.Module:
    assert context.network is not None
    network = context.network

    def train() -> nn.Module:
        if config.dense is not None:
            return network
        train_network(
            network,
            data.train,
            config.pretrain,
            fabric=fabric,
            seed=config.seed,
            stage="pretrain",
            validation=data.validation,
            checkpoint=folder.state("pretrain-epochs"),
            metrics=metrics,
        )
        return network

    folder.tensors("pretrain", network, train)
    sizes = context.groups.sizes
    whole = PruningPlan({n: list(range(s)) for n, s in sizes.items()}, sizes, "dense")
    save_pruned(folder / "dense.safetensors", network, whole)
    return network


def _rounds(
    config: RunConfig,
    rules: Sequence[Rule],
    folder: _Folder,
    data: Data,
    fabric: Fabric,
    metrics: MetricsWriter,
    context: Context,
) -> tuple[nn.Module, PruningPlan, SwitchPosterior | None]:
    dense, example = context.network, context.example_input
    assert dense is not None
    assert example is not None
    network, posterior, sizes = dense, None, context.groups.sizes
    plan = PruningPlan({n: list(range(s)) for n, s in sizes.items()}, sizes)
    for number, rule in enumerate(rules, start=1):
        suffix = "" if config.rounds == 1 else f"-{number}"
        if number > 1:
            groups = trace_groups(network, example, config.ignore)
            _check_mapping(groups, plan, number)
            context = Context(groups, config.limits, network=network, example_input=example)
        if number < config.rounds:
            context = context.changed(limits=_between_rounds(config.limits, context))
        else:
            context = context.changed(limits=config.limits)
        file = folder / f"state/plan{suffix}.json"
        channels = {name: torch.tensor(kept) for name, kept in plan.kept.items()}
        evidence: Any = config.method
        if isinstance(config.method, Switch):
            network, posterior = _fit(
                config, rule, folder, data, fabric, metrics, context, channels, suffix
            )
            evidence = posterior
        elif isinstance(config.method, Penalty):
            network, evidence = _sparsify(
                config, folder, data, fabric, metrics, network, context.groups, suffix
            )
        if not file.exists():
            started = time.perf_counter()
            if isinstance(config.method, Criterion):
                evidence = config.method.scores(network, context.groups, data.train_plain)
            context = context.changed(network=network, loader=data.validation)
            choose(evidence, rule, context).save(file)
            seconds = round(time.perf_counter() - started, 2)
            folder.note(f"seconds/select{suffix}", lambda value=seconds: value)
        step = PruningPlan.load(file)
        cut = remove_channels(network, step, example, groups=context.groups)
        network = _placed(cut, config, fabric)
        plan = plan.then(step)
        folder.note(f"held_out/cut{suffix}", partial(_held_out, network, data))
        network = _finetune(config, folder, data, fabric, metrics, network, dense, suffix)
    return network, plan, posterior


def _check_mapping(groups: ChannelGroups, plan: PruningPlan, number: int) -> None:
    """Channels are known by their place in the dense network, whatever the round."""
    if groups.sizes != plan.widths:
        names = [*plan.widths, *groups]
        wrong = [n for n in dict.fromkeys(names) if groups.sizes.get(n) != plan.widths.get(n)]
        raise PlanError(
            f"rounds: before round {number} the network has other channel groups than the last "
            f"round left ({', '.join(wrong)}); keep more of them with limits.minimum, or set "
            "rounds to 1"
        )


def _fit(
    config: RunConfig,
    rule: Rule,
    folder: _Folder,
    data: Data,
    fabric: Fabric,
    metrics: MetricsWriter,
    context: Context,
    channels: dict[str, Tensor],
    suffix: str,
) -> tuple[nn.Module, SwitchPosterior]:
    """The network to cut and the posterior that decides where."""
    assert isinstance(config.method, Switch)
    settings = config.fit
    file = folder.state(f"posterior{suffix}")
    assert context.network is not None
    make = partial(
        SwitchedNetwork,
        context.network,
        context.groups,
        config.method,
        num_data=data.num_train,
        # Noted, because latency is never measured the same twice.
        keep=folder.note(f"keep{suffix}", partial(rule.counts, context)),
        train_weights=settings.train_weights,
        weight_posterior=settings.weight_posterior,
        kl_weight=settings.kl_weight,
    )
    posterior_of = partial(
        fit_switches,
        loader=data.train,
        epochs=settings.epochs,
        estimator=_estimator(config),
        constraint=_constraint(config, folder, suffix, rule, context),
        learning_rate=settings.learning_rate,
        weight_learning_rate=settings.weight_learning_rate,
        joint=settings.joint,
        kl_warmup=settings.kl_warmup,
        channels=channels,
        fabric=fabric,
    )
    switched = make()

    def fit() -> nn.Module:
        posterior = posterior_of(
            switched,
            seed=config.seed,
            stage=f"fit{suffix}",
            checkpoint=folder.state(f"fit{suffix}-epochs"),
            metrics=metrics,
        )
        if suffix in ("", f"-{config.rounds}"):

            def again(seed: int) -> SwitchPosterior:
                if seed == config.seed:
                    return posterior
                stage = f"restart {seed - config.seed}"
                return posterior_of(make(), seed=seed, stage=stage)

            _check_posterior(config, folder, data, switched, posterior, context, again)
        posterior.save(file)
        gates = {n: gate.to(fabric.device) for n, gate in posterior.mean.items()}
        return switched.fold(gates if settings.fold else {})

    plain = folder.tensors(f"fit{suffix}", switched.fold({}), fit, file)
    return plain, SwitchPosterior.load(file)


def _check_posterior(
    config: RunConfig,
    folder: _Folder,
    data: Data,
    switched: SwitchedNetwork,
    posterior: SwitchPosterior,
    context: Context,
    again: Callable[[int], SwitchPosterior],
) -> None:
    """Note the checks that the configuration asks for."""
    checks = config.checks

    def entry(found: diagnostics.Diagnostic, value: float) -> dict[str, Any]:
        number = value if math.isfinite(value) else None  # JSON knows no infinity; the verdict does
        return {"value": number, "threshold": found.threshold, "verdict": found.verdict}

    def pareto_k() -> dict[str, Any]:
        found = diagnostics.pareto_k(switched, data.train_plain, num_draws=checks.pareto_k)
        noted = entry(found, found.k)
        if config.data.augment != "none":
            noted["verdict"] += "; measured on the training images as they are, not augmented"
        return noted

    def restarts() -> dict[str, Any]:
        found = diagnostics.restarts(again, count=checks.restarts + 1, seed=config.seed)
        return entry(found, found.largest)

    def averaged() -> dict[str, Any]:
        found = diagnostics.predictive_check(
            posterior,
            switched.fold({}),
            context.groups,
            data.validation,
            num_draws=checks.averaged,
        )
        return entry(found, found.quality.loc["switch-averaged", "nll"])

    named = {
        "Pareto k-hat": (checks.pareto_k, pareto_k),
        "largest R-hat of restarts": (checks.restarts, restarts),
        "NLL of averaged predictions": (checks.averaged, averaged),
    }

    def tried(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return check()
        except BayespruneError as error:  # the fit is not lost for a check
            return {"value": None, "threshold": None, "verdict": f"could not be made: {error}"}

    for name, (wanted, check) in named.items():
        if wanted:
            folder.note(f"diagnostics/{name}", partial(tried, check))


def _estimator(config: RunConfig) -> Estimator:
    """What a run's switches are fitted with."""
    assert isinstance(config.method, Switch)
    return config.fit.estimator or config.method.estimator()


def _target(rule: Rule, context: Context) -> dict[str, float]:
    """The budget of a round, as a target of `CostConstraint`.

    A latency becomes the MACs of a network that keeps the same fraction of every group within it.
    """
    assert isinstance(rule, CostLimit)
    if rule.kind == "latency_ms":
        counts = rule.counts(context)
        assert counts is not None
        return {"macs": context.prices.macs({n: range(round(c)) for n, c in counts.items()})}
    # A round may leave a network that costs less than the next one is allowed to.
    return {rule.kind: min(rule.limit(context), rule.price(context)({}))}


def _constraint(
    config: RunConfig, folder: _Folder, suffix: str, rule: Rule, context: Context
) -> CostConstraint | None:
    """What holds the cost in a fit; without a target of its own, at the budget of the round."""
    constraint = config.fit.constraint
    if constraint is None or not config.follows_budget:
        return constraint
    return constraint.towards(**folder.note(f"target{suffix}", partial(_target, rule, context)))


def _sparsify(
    config: RunConfig,
    folder: _Folder,
    data: Data,
    fabric: Fabric,
    metrics: MetricsWriter,
    network: nn.Module,
    groups: ChannelGroups,
    suffix: str,
) -> tuple[nn.Module, ChannelScores]:
    """The sparsely trained network and the scores of its channels."""
    assert isinstance(config.method, Penalty)
    method, file = config.method, folder.state(f"scores{suffix}")

    def train() -> nn.Module:
        fit = method.train(
            network,
            groups,
            data.train,
            config.sparse,
            fabric=fabric,
            seed=config.seed,
            stage=f"fit{suffix}",
            validation=data.validation,
            checkpoint=folder.state(f"fit{suffix}-epochs"),
            metrics=metrics,
        )
        save_state(file, fit.scores.values)
        return fit.network

    trained = folder.tensors(f"fit{suffix}", copy.deepcopy(network), train, file)
    return trained, ChannelScores(load_state(file), type(method).__name__)


def _finetune(
    config: RunConfig,
    folder: _Folder,
    data: Data,
    fabric: Fabric,
    metrics: MetricsWriter,
    network: nn.Module,
    dense: nn.Module,
    suffix: str,
) -> nn.Module:
    def train() -> nn.Module:
        train_network(
            network,
            data.train,
            config.finetune,
            fabric=fabric,
            seed=config.seed,
            stage=f"finetune{suffix}",
            teacher=dense if config.finetune.distill else None,
            validation=data.validation,
            checkpoint=folder.state(f"finetune{suffix}-epochs"),
            metrics=metrics,
        )
        return network

    return folder.tensors(f"finetune{suffix}", network, train)


def _scratch(
    config: RunConfig,
    folder: _Folder,
    data: Data,
    fabric: Fabric,
    metrics: MetricsWriter,
    dense: nn.Module,
    plan: PruningPlan,
) -> dict[str, nn.Module]:
    """Test what a network of the same widths reaches without the weights of the dense one.

    The network by its name, if the configuration asks for it.
    """
    settings = config.scratch
    if settings is None:
        return {}
    torch.manual_seed(config.seed)
    fresh = fabric.to_device(models.load(config.model, **config.model_args))
    cut = remove_channels(fresh, plan, fabric.to_device(data.example_input))
    network = _placed(cut, config, fabric)
    for module in network.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()

    def train() -> nn.Module:
        train_network(
            network,
            data.train,
            settings,
            fabric=fabric,
            seed=config.seed,
            stage="scratch",
            teacher=dense if settings.distill else None,
            validation=data.validation,
            checkpoint=folder.state("scratch-epochs"),
            metrics=metrics,
        )
        return network

    trained = folder.tensors("scratch", network, train)
    folder.note("test/scratch", partial(_test, trained, data, fabric))
    return {"scratch": trained}


def _test(network: nn.Module, data: Data, fabric: Fabric) -> dict[str, dict[str, Any]]:
    """Metrics and reliability, from one pass over the test set."""
    example = fabric.to_device(data.example_input)
    found, reliability = quality(network, data.test)
    costs = asdict(cost(network, example))
    return {"metrics": _of_runs({**found, **costs}), "reliability": reliability}


def _time(networks: dict[str, nn.Module], example: Tensor) -> dict[str, Any]:
    """Latency of the networks, the ratio of pruned over dense, and what it was measured with."""
    times = in_turn(networks, example)
    ratio = np.quantile(times["pruned"] / times["dense"], (0.25, 0.5, 0.75))
    device = example.device
    return {
        "ms": {name: float(np.median(blocks)) for name, blocks in times.items()},
        "ratio": ratio.tolist(),
        "blocks": len(times["dense"]),
        "batch_size": len(example),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


def _held_out(network: nn.Module, data: Data) -> dict[str, float]:
    """Metrics on held-out training data."""
    return _of_runs(evaluate(network, data.validation))


def _of_runs(found: dict[str, float]) -> dict[str, float]:
    """Those that run folders hold, in their order."""
    return {name: found[name] for name in METRICS if name in found}


def _seconds(metrics: Path) -> dict[str, float]:
    """Seconds of training by stage, those before an interruption included."""
    seconds: dict[str, float] = {}
    for row in read_metrics(metrics):
        seconds[row["stage"]] = seconds.get(row["stage"], 0.0) + float(row["seconds"])
    return {stage: round(value, 2) for stage, value in seconds.items()}


def _versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "pyro-ppl", "arviz")
    installed = {name: version(name) for name in packages}
    return {"bayesprune": __version__, "python": platform.python_version(), **installed}


def load_run(folder: str | os.PathLike[str]) -> Run:
    """Read a finished run.

    Raises
    ------
    CheckpointError
        If the folder holds no finished run, or a file of it is damaged.
    """
    folder = Path(folder)
    summary = read_summary(folder)
    try:
        config = load_config(folder / "config.yaml")
    except ConfigError as error:
        raise CheckpointError(f"{folder / 'config.yaml'}: {error}") from error
    plan = PruningPlan.load(folder / "plan.json")
    network = load_pruned(
        folder / "pruned.safetensors", models.load(config.model, **config.model_args)
    )
    file = folder / "state" / "posterior.safetensors"
    posterior = SwitchPosterior.load(file) if file.exists() else None
    return Run(folder, config, summary, plan, network.eval(), posterior)


def rebuild_report(run: Run) -> Path:
    """Write ``report.html``, figures and model card of a run folder anew; returns the page."""
    rows = read_metrics(run.folder / "metrics.csv")
    dense = load_pruned(
        run.folder / "dense.safetensors", models.load(run.config.model, **run.config.model_args)
    )
    image = example_image(run)
    data = ReportData(
        config=(run.folder / "config.yaml").read_text(),
        summary=run.summary,
        plan=run.plan,
        posterior=run.posterior,
        metrics=rows,
        image=image[0].numpy(),
        feature_maps=_feature_maps(dense, image, run),
    )
    write_card(run.folder, data)
    return write_report(run.folder, data)  # last: a run that has it is done


def example_image(run: Run) -> Tensor:
    """A held-out image, (1, channels, height, width); kept in the run folder for the next time."""
    file = run.folder / "state" / "image.safetensors"
    if not file.exists():
        image = datasets.load(run.config.data, run.config.seed).validation.dataset[[0]][0]
        save_state(file, {"image": image})
    return load_state(file)["image"]


def _feature_maps(dense: nn.Module, image: Tensor, run: Run) -> Any:
    """What the first group's producer makes of an image, (channels, height, width) or None."""
    seen: list[Any] = []
    group = next(iter(run.plan.kept))
    producer = dense.get_submodule(group)
    handle = producer.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        with evaluating(dense):
            dense(image)
    finally:
        handle.remove()
    output = seen[0] if seen else None
    # Drawn where each unit makes one map: neither attention heads nor linear layers do.
    if not isinstance(output, Tensor) or output.ndim != 4:
        return None
    return output[0].numpy() if output.shape[1] == run.plan.sizes[group] else None
