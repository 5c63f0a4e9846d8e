"""Stochastic variational inference over the switches of a network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sized
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from bayesprune._describe import describe
from bayesprune.batches import Batch, Loader, tensors_of
from bayesprune.errors import BayespruneError, ConfigError, DataError, FitError
from bayesprune.estimators import Estimator, Values, kind
from bayesprune.network import SwitchedNetwork, SwitchGuide
from bayesprune.objectives import CostConstraint, CostPenalty
from bayesprune.posterior import SwitchPosterior
from bayesprune.switches import Site
from bayesprune.training import MetricsWriter, Row, make_fabric, num_steps, run_epochs

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def fit_switches(
    switched: SwitchedNetwork,
    loader: Loader,
    *,
    epochs: int = 3,
    estimator: Estimator | None = None,
    learning_rate: float = 0.1,
    weight_learning_rate: float = 1e-3,
    joint: bool = True,
    kl_warmup: float = 0.0,
    constraint: CostConstraint | None = None,
    seed: int = 0,
    channels: Mapping[str, Tensor] | None = None,
    fabric: Fabric | None = None,
    stage: str = "fit",
    checkpoint: str | Path | None = None,
    metrics: MetricsWriter | None = None,
    progress: bool = True,
) -> SwitchPosterior:
    """Fit the switches of a network by maximising the evidence lower bound.

    Minimises ``cross-entropy per example + KL / num_data`` with Adam, at a learning rate that falls
    to zero as a cosine.

    Parameters
    ----------
    switched : SwitchedNetwork
        Its switches, and its weights if they are trained, are changed in place.
    loader : DataLoader
        Batches ``(inputs, targets)``; several inputs come as a tuple.
    epochs : int
        At least 1.
    estimator : Estimator, optional
        `AnalyticMean`, `Implicit`, `ARM` or `AR`; the family's own by default.
    learning_rate : float
        For the variational parameters.
    weight_learning_rate : float
        For the weights, where they are trained.
    joint : bool
        Fit all groups together; otherwise one after the other, each with the other gates at 1. Each
        group has then a stage and a checkpoint of its own, with its name after a hyphen.
    kl_warmup : float
        Fraction of the fit in [0, 1] over which the weight of the KL rises from 0 to 1.
    constraint : CostConstraint, optional
        Holds the expected cost of the gated network at a target; adds ``cost`` and ``weight``, its
        multiplier, to the history.
    seed : int
    channels : mapping of str to Tensor, optional
        Original index of each unit if channels were removed before.
    fabric, stage, checkpoint, metrics, progress
        See `bayesprune.training.run_epochs`.

    Returns
    -------
    SwitchPosterior

    Raises
    ------
    ConfigError
        If an argument is out of range.
    DataError, FitError, CheckpointError
        See `bayesprune.training.run_epochs`.

    Examples
    --------
    >>> import torch
    >>> import bayesprune as bp
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> groups = bp.trace_groups(network, torch.zeros(1, 4))
    >>> switched = bp.SwitchedNetwork(network, groups, bp.switches.Dirichlet(), num_data=32)
    >>> loader = [(torch.randn(32, 4), torch.arange(32) % 3)]
    >>> posterior = bp.fit_switches(switched, loader, epochs=2, progress=False)
    >>> posterior.mean["0"].shape
    torch.Size([6])
    >>> sorted(posterior.history[-1])
    ['elbo', 'epoch', 'kl', 'loss', 'nll', 'stage']
    """
    if epochs < 1 or not 0 <= kl_warmup <= 1 or learning_rate <= 0 or weight_learning_rate <= 0:
        raise ConfigError(
            "fit_switches: expected epochs >= 1, kl_warmup in [0, 1] and positive learning rates, "
            f"got {epochs}, {kl_warmup}, {learning_rate} and {weight_learning_rate}"
        )
    if not joint and switched.train_weights:
        raise ConfigError("fit_switches: joint=False needs frozen weights (train_weights=False)")
    if constraint is not None and not joint:
        raise ConfigError("fit_switches: a cost constraint needs all groups at once (joint=True)")
    _compare_sizes(switched.num_data, loader)
    estimator = estimator or _own_estimator(switched)
    fabric = fabric or make_fabric()
    guide = switched.guide
    passes = [guide.names] if joint else [[name] for name in guide.names]
    history: list[Row] = []
    switched.train()
    # A module of the network, so that checkpoints hold the state of its multiplier.
    switched.penalty = constraint and constraint.bind(switched)
    try:
        for names in passes:
            guide.active = set(names)
            groups = [{"params": list(guide.parameters()), "lr": learning_rate}]
            if switched.train_weights:
                weights = list(switched.network.parameters())
                groups += [{"params": weights, "lr": weight_learning_rate}]
            optimizer = torch.optim.Adam(groups)
            clock = _Clock()
            steps = epochs * num_steps(fabric, loader)
            path = checkpoint and Path(checkpoint)
            if path and not joint:
                path = path.with_stem(f"{path.stem}-{names[0]}")
            history += run_epochs(
                fabric,
                switched,
                loader,
                _step(switched, estimator, clock),
                optimizer,
                epochs=epochs,
                seed=seed,
                stage=stage if joint else f"{stage}-{names[0]}",
                scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
                before_step=partial(_anneal, switched, clock, kl_warmup),
                settings={
                    "estimator": describe(estimator),
                    "switches": {name: describe(switch) for name, switch in guide.items()},
                    "examples": switched.num_data,
                    "learning rates": [learning_rate, weight_learning_rate],
                    "KL warm-up": kl_warmup,
                    "KL weights": guide.kl_weights,
                    "constraint": describe(constraint),
                },
                checkpoint=path,
                metrics=metrics,
                progress=progress,
            )
    finally:
        guide.active, guide.kl_weight = set(guide.names), 1.0
        switched.penalty = None
        switched.eval()
    return SwitchPosterior(dict(guide.items()), history, channels)


class _Clock:
    """How far a fit is, and which fraction of it a step is."""

    progress = 0.0
    elapsed = 0.0


def _compare_sizes(num_data: int, loader: Loader) -> None:
    """Warn of a divergence that is weighed for another number of examples, if that is clear."""
    dataset = getattr(loader, "dataset", None)
    size = len(dataset) if isinstance(dataset, Sized) else num_data
    if not size / 2 <= num_data <= 2 * size:
        warnings.warn(
            f"num_data: the training set has {size} examples, the switched network was made for "
            f"{num_data}; the divergence from the prior counts {size / num_data:.3g} times as much",
            stacklevel=3,
        )


def _own_estimator(switched: SwitchedNetwork) -> Estimator:
    """The one estimator that all switches are made for."""
    made = [switch.estimator() for _, switch in switched.guide.items()]
    kinds = {repr(estimator) for estimator in made}
    if len(kinds) > 1:
        raise ConfigError(
            "fit_switches: the switches ask for different estimators, "
            f"{', '.join(sorted(kinds))}; give estimator=..."
        )
    return made[0]


def _anneal(
    switched: SwitchedNetwork, clock: _Clock, kl_warmup: float, step: int, total: int
) -> None:
    clock.progress, clock.elapsed = (step + 1) / total, 1 / total
    switched.guide.kl_weight = min(1.0, clock.progress / kl_warmup) if kl_warmup else 1.0
    for _, switch in switched.guide.items():
        switch.anneal(clock.progress)


def _step(switched: SwitchedNetwork, estimator: Estimator, clock: _Clock) -> Any:
    guide: SwitchGuide = switched.guide
    penalty: CostPenalty | None = switched.penalty
    _check_sites(guide)

    def step(batch: Batch) -> dict[str, Tensor]:
        try:
            loss, nll, kl = negative_elbo(switched, estimator, *batch)
        except BayespruneError:
            raise
        except ValueError as error:  # from the likelihood
            raise _explained(error, batch) from error
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_of(batch)[:-1])
            raise FitError(f"the network fails on a batch of inputs {shapes}: {first}") from error
        nll, kl = nll.detach(), kl.detach()
        terms = {"loss": loss, "elbo": -(nll + kl), "nll": nll, "kl": kl}
        if penalty is not None:
            active = {name: switch.active_probability() for name, switch in guide.items()}
            added, cost = penalty(active, clock.progress, clock.elapsed)
            terms |= {"loss": loss + added, "cost": cost, "weight": penalty.weight.clone()}
        return terms

    return step


def _check_sites(guide: SwitchGuide) -> None:
    """Let the distributions of all sites check their parameters, which no step repeats."""
    for name, switch in guide.items():
        if not all(parameter.isfinite().all() for parameter in switch.parameters()):
            raise FitError(f"{name}: expected finite parameters of the switch, got NaN or inf")
        try:
            switch.sites()
        except ValueError as error:
            raise FitError(f"{name}: a site of {switch} refuses its parameters: {error}") from error


def _explained(error: ValueError, batch: Batch) -> Exception:
    """What to raise where the likelihood refuses the targets or the network's output."""
    *inputs, targets = tensors_of(batch)
    for name, parts in (("inputs", inputs), ("targets", [targets])):
        if not all(part.isfinite().all() for part in parts):
            return DataError(f"loader: expected finite {name}, got NaN or inf")
    return FitError(
        "the likelihood does not accept the network's output or the targets (shape "
        f"{tuple(targets.shape)}, from {targets.min().item():.4g} to {targets.max().item():.4g}): "
        f"{error}"
    )


class NegativeElbo(NamedTuple):
    """Terms of a negative evidence lower bound: scalars, in nats per example."""

    loss: Tensor
    """What a step minimises: `nll` plus `kl`, as far as it is warmed up."""
    nll: Tensor
    """The expected negative log likelihood."""
    kl: Tensor
    """Divergence of the guide from the prior, weighted by group, over the number of examples."""


@pyro.validation_enabled(False)
def negative_elbo(
    switched: SwitchedNetwork, estimator: Estimator, inputs: Any, targets: Tensor
) -> NegativeElbo:
    """The loss of a batch, with its gradient.

    Times ``num_data`` it is the loss of Pyro's ``TraceMeanField_ELBO``, at the cost of the network:
    no traces, sites built once, no densities where divergences are in closed form, and of all that
    Pyro validates only the targets.

    Parameters
    ----------
    switched : SwitchedNetwork
    estimator : Estimator
        How the expected log likelihood is taken.
    inputs : Tensor or tuple
        A tuple for networks of several arguments.
    targets : Tensor
        Shape ``(N, ...)``.

    Raises
    ------
    ConfigError
        If the estimator does not go with the switches, or the likelihood is not one distribution
        per example.
    FitError
        If there is no closed-form divergence between the factor and the prior of a site.
    ValueError
        If the likelihood has no such targets.
    """
    guide = switched.guide
    sites = {name: switch.sites() for name, switch in guide.items()}
    factors, kls, weights = {}, [], []
    for name, own in sites.items():
        for site_name, site in own.items():
            full_name = f"{name}.{site_name}"
            factors[full_name] = site.factor
            kls.append(_divergence(full_name, site))
            weights.append(guide.kl_weights[name] / switched.num_data)
    for name, site in guide.weight_sites():
        kls.append(_divergence(name, site))
        weights.append(1 / switched.num_data)
    parts = torch.stack(kls)
    kl = parts @ parts.new_tensor(weights)

    def log_likelihood(values: Values) -> Tensor:
        gates = {
            name: switch.gate({site: values[f"{name}.{site}"] for site in sites[name]})
            for name, switch in guide.items()
        }
        return switched.log_likelihood(inputs, targets, gates)

    nll = estimator.expect(log_likelihood, factors, len(targets)) / -len(targets)
    return NegativeElbo(torch.add(nll, kl, alpha=guide.kl_weight), nll, kl)


def _divergence(name: str, site: Site) -> Tensor:
    """KL of a site's factor from its prior, in nats: a scalar."""
    try:
        kl = kl_divergence(site.factor, site.prior)
    except NotImplementedError:
        raise FitError(
            f"{name}: torch.distributions.kl_divergence knows no divergence of a "
            f"{kind(site.factor)} factor from a {kind(site.prior)} prior; register one "
            "(torch.distributions.register_kl)"
        ) from None
    if kl.shape:
        raise ConfigError(
            f"{name}: expected a divergence without dimensions, got shape {tuple(kl.shape)}; "
            ".to_event(...) joins dimensions of prior and factor"
        )
    return kl
