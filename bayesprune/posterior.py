"""What a fit of switches leaves: moments, probabilities and draws per channel."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from rich.console import Console
from rich.progress import track
from torch import Tensor

from bayesprune._arviz import container, switch_coords
from bayesprune._checks import check_integer
from bayesprune._describe import build, describe
from bayesprune._modes import evaluating, seeded
from bayesprune.batches import Loader, checked_batch, on_device
from bayesprune.checkpoint import load_state, save_state
from bayesprune.errors import (
    BayespruneError,
    CheckpointError,
    ConfigError,
    DataError,
    FitError,
    PlanError,
)
from bayesprune.plan import PruningPlan
from bayesprune.selection import ChannelScores, EvidenceStop, FamilyRule, Rule
from bayesprune.switches import Switch

if TYPE_CHECKING:
    from bayesprune.network import SwitchedNetwork

CPU = torch.device("cpu")
RANK_DRAWS = 4000
"""Draws behind rank probabilities."""


def _ratio(mean: Tensor, sd: Tensor) -> Tensor:
    """Absolute mean over standard deviation, finite also where the latter is 0 to rounding."""
    limits, size = torch.finfo(mean.dtype), mean.abs()
    return size / (sd + limits.eps * size).clamp_min(limits.tiny)


def default_rule(switches: Iterable[Switch]) -> Rule:
    """What decides without a budget: the evidence if all families have it, else their own rules."""
    return EvidenceStop() if all(switch.has_evidence for switch in switches) else FamilyRule()


class SwitchPosterior:
    """The variational posterior of the gates of a network, apart from the network.

    Parameters
    ----------
    switches : mapping of str to Switch
        Bound and fitted, by group; copied to the CPU.
    history : list of dict
        One row per epoch of the fit, with "elbo", "nll" and "kl" per example.
    channels : mapping of str to Tensor, optional
        Original index of each unit, shape ``(C,)``; counts from 0 unless channels were removed
        before the fit.

    Raises
    ------
    PlanError
        If `channels` names an unknown group or another number of channels.
    """

    def __init__(
        self,
        switches: Mapping[str, Switch],
        history: list[dict[str, Any]],
        channels: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.switches = {name: copy.deepcopy(s).cpu() for name, s in switches.items()}
        for switch in self.switches.values():
            switch.requires_grad_(False)
        self.history = history
        self.channels = {n: torch.arange(switch.size) for n, switch in self.switches.items()}
        for name, index in (channels or {}).items():
            if name not in self.switches or len(index) != self.switches[name].size:
                sizes = {n: len(units) for n, units in self.channels.items()}
                raise PlanError(f"channels: {len(index)} indices for {name}; groups: {sizes}")
            self.channels[name] = torch.as_tensor(index).cpu()

    @property
    def names(self) -> list[str]:
        """The groups, in network order."""
        return list(self.switches)

    def _each(self, summary: Any) -> dict[str, Tensor]:
        return {name: summary(switch).detach() for name, switch in self.switches.items()}

    @property
    def mean(self) -> dict[str, Tensor]:
        """Posterior mean of each gate, shape ``(C,)``."""
        return self._each(lambda switch: switch.mean())

    @property
    def sd(self) -> dict[str, Tensor]:
        """Posterior standard deviation of each gate, shape ``(C,)``."""
        return self._each(lambda switch: switch.sd())

    def quantile(self, q: float) -> dict[str, Tensor]:
        """Quantile of each gate at level `q` in (0, 1), shape ``(C,)``; else PlanError."""
        if not 0 < q < 1:
            raise PlanError(f"quantile: expected a level in (0, 1), got {q}")
        return self._each(lambda switch: switch.quantile(q))

    def keep_probability(self, threshold: float) -> dict[str, Tensor]:
        """``P(|gate| >= threshold)`` of each channel, shape ``(C,)``; gates may be negative."""
        size = max(threshold, 0.0)
        return self._each(
            lambda switch: 1 - switch.probability_below(size) + switch.probability_below(-size)
        )

    def sample(self, num_draws: int, seed: int = 0) -> dict[str, Tensor]:
        """Gates from the posterior, shape ``(num_draws, C)``; the global generator is untouched."""
        check_integer("num_draws", num_draws, error=PlanError)
        with seeded(seed, CPU):
            return self._each(lambda switch: switch.sample(num_draws))

    @property
    def has_prior(self) -> bool:
        """Whether the priors of all groups are probability distributions."""
        return all(switch.has_prior for switch in self.switches.values())

    def prior_sample(self, num_draws: int, seed: int = 0) -> dict[str, Tensor]:
        """Gates from the prior, shape ``(num_draws, C)``; the global generator is untouched."""
        check_integer("num_draws", num_draws, error=PlanError)
        with seeded(seed, CPU):
            return self._each(lambda switch: switch.prior_sample(num_draws))

    def rank_probability(self, count: int | Mapping[str, int]) -> dict[str, Tensor]:
        """P(channel is among the `count` largest of its group), shape ``(C,)``, from draws.

        What counts is the size of a gate, not its sign.

        Parameters
        ----------
        count : int or mapping of str to int
            For all groups, or for each.

        Raises
        ------
        PlanError
            If a number is not between 1 and the group's size, or a group is missing or unknown.

        Examples
        --------
        >>> import bayesprune as bp
        >>> switch = bp.switches.Dirichlet(concentration=0.1).bind(4)
        >>> posterior = bp.SwitchPosterior({"conv": switch}, history=[])
        >>> best = posterior.rank_probability(2)["conv"]
        >>> bool((best.sum() - 2).abs() < 1e-5)  # two places
        True
        """
        counts = count if isinstance(count, Mapping) else dict.fromkeys(self.names, count)
        unknown = [name for name in counts if name not in self.switches]
        if unknown:
            raise PlanError(
                f"rank_probability: unknown groups {', '.join(map(str, unknown))}; groups: "
                f"{', '.join(self.names)}"
            )
        for name, switch in self.switches.items():
            k = counts.get(name)
            if not isinstance(k, int) or isinstance(k, bool) or not 0 < k <= switch.size:
                raise PlanError(
                    f"{name}: asked for the best {k} of {switch.size} channels; expected an "
                    f"integer from 1 to {switch.size}"
                )
        probability, generator = {}, torch.Generator().manual_seed(0)
        for name, draws in self.sample(RANK_DRAWS).items():
            k = counts[name]
            # In an order of its own for each draw, so that chance decides between equal gates.
            order = torch.rand(draws.shape, generator=generator).argsort(1)
            places = draws.abs().gather(1, order).topk(k, dim=1).indices
            best = torch.zeros_like(draws).scatter_(1, order.gather(1, places), 1.0)
            probability[name] = best.mean(0)
        return probability

    def default_rule(self) -> Rule:
        """What `select` goes by if it is given no rule."""
        return default_rule(self.switches.values())

    def scores(self, measure: str = "importance") -> ChannelScores:
        """Scores for selection.

        Parameters
        ----------
        measure : str
            "importance": the family's own score, for simplex switches the mean share relative to an
            equal share; "margin": the same minus what the family's own rule asks for; "mean": its
            absolute value; "snr": that over the standard deviation; "above:T": ``P(|gate| >= T)``;
            "evidence" or "evidence:BITS": loss of log evidence by removal, see `Switch.evidence`;
            "draws:N": the importance together with N draws of the gates.

        Raises
        ------
        PlanError
            If the measure is unknown.
        ConfigError
            If the family does not have it.
        """
        own_scale = any(switch.interval_scale for switch in self.switches.values())
        interval_scale = False
        number = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
        if measure == "importance":
            values = self._each(lambda switch: switch.importance())
            interval_scale = own_scale
        elif measure == "margin":
            values = self._each(lambda switch: switch.importance() - switch.threshold())
            interval_scale = True
        elif measure == "mean":
            values = {name: mean.abs() for name, mean in self.mean.items()}
        elif measure == "snr":
            values = {name: _ratio(mean, self.sd[name]) for name, mean in self.mean.items()}
        elif threshold := re.fullmatch(f"above:({number})", str(measure)):
            values = self.keep_probability(float(threshold[1]))
        elif evidence := re.fullmatch(r"evidence(?::([0-9]+))?", str(measure)):
            bits = int(evidence[1]) if evidence[1] else None
            values = self._each(lambda switch: -switch.evidence(bits))
            interval_scale = True
        elif draws := re.fullmatch(r"draws:([0-9]+)", str(measure)):
            values = self._each(lambda switch: switch.importance())
            return ChannelScores(values, measure, self.sample(int(draws[1])), own_scale)
        else:
            raise PlanError(
                "scores: expected 'importance', 'margin', 'mean', 'snr', 'above:T', 'evidence' or "
                f"'draws:N', got {measure!r}"
            )
        return ChannelScores(values, measure, interval_scale=interval_scale)

    def ranks_by(self, measure: str = "importance") -> str | None:
        """What `scores` of a measure rank channels by, in words; None if by the mean gate."""
        kind, _, number = measure.partition(":")
        match kind:
            case "mean":
                return None
            case "snr":
                return "the signal to noise ratio of the gate"
            case "above":
                return f"the probability that the size of the gate is at least {number}"
            case "evidence":
                return "the evidence that would be lost with the channel"
        own = {switch.ranks_by: None for switch in self.switches.values() if switch.ranks_by}
        return " or ".join(own) or None

    def summary(self) -> pd.DataFrame:
        """One row per channel: group, original index, mean, sd, 94% interval, importance."""
        mean, sd, scores = self.mean, self.sd, self.scores().values
        low, high = self.quantile(0.03), self.quantile(0.97)
        parts = [
            pd.DataFrame(
                {
                    "layer": name,
                    "channel": self.channels[name].numpy(),
                    "mean": mean[name].numpy(),
                    "sd": sd[name].numpy(),
                    "eti_3%": low[name].numpy(),
                    "eti_97%": high[name].numpy(),
                    "importance": scores[name].numpy(),
                }
            )
            for name in self.names
        ]
        return pd.concat(parts, ignore_index=True)

    def _repr_html_(self) -> str:
        return self.summary().to_html(max_rows=20, float_format=lambda value: f"{value:.3g}")

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} ({switch.size})" for name, switch in self.switches.items())
        return f"SwitchPosterior of {sizes}"

    # hand-over --------------------------------------------------------------------------------

    def to_arviz(
        self,
        num_draws: int = 1000,
        plan: PruningPlan | None = None,
        *,
        switched: SwitchedNetwork | None = None,
        loader: Loader | None = None,
        progress: bool = True,
    ) -> Any:
        """Draws for ArviZ.

        Parameters
        ----------
        num_draws : int
            Independent draws, in one pseudo-chain: R-hat means nothing for them.
        plan : PruningPlan, optional
            Adds which channels it keeps.
        switched : SwitchedNetwork, optional
            The network that the switches were fitted in. Together with `loader`, adds the log
            likelihood of each target under each draw.
        loader : DataLoader, optional
            Batches ``(inputs, targets)``. For `arviz.loo`, the data of the fit as they are: without
            augmentation, and in one order for all that is to be compared.
        progress : bool
            Whether to show how far the log likelihood is, on a terminal.

        Returns
        -------
        arviz.InferenceData or xarray.DataTree
            Whichever the installed ArviZ uses. Groups ``posterior`` and ``prior`` with `gate`
            (chain, draw, switch), ``sample_stats`` with the log density of each draw under the
            guide and under the prior (neither draws nor density of an improper prior, no density
            of a prior on points that the factor relaxes),
            ``constant_data`` with the moments and `kept`, and ``fit_history``. A `switch` is named
            ``layer:channel``, with the original index; `layer` and `channel` are coordinates of it
            as well. With `switched` and `loader` also ``log_likelihood`` (chain, draw, example)
            and ``observed_data`` (example), with the variable `targets`, in the loader's order.

        Raises
        ------
        PlanError
            If `num_draws` is no positive integer, or `switched` has other groups.
        ConfigError
            If there is one of `switched` and `loader` without the other.
        DataError
            If the loader is empty or a batch is not (inputs, targets).
        FitError
            If the network's outputs or a log likelihood are not finite, or a target is impossible.

        Notes
        -----
        `arviz.loo` takes the draws for those of the exact posterior: its Pareto k say whether
        leaving out an example goes well, not whether the guide is good, and can be small where it
        is not. `arviz.loo_approximate_posterior` (ArviZ 1.x) corrects for the guide, given
        ``lp_prior`` and the summed log likelihood, added, as `log_p` and ``lp_guide`` as `log_q`.
        Where its Pareto k exceed 0.7, compare priors by held-out likelihood instead.
        `arviz.compare` takes the results of either.

        The log likelihood takes ``num_draws`` passes over the loader's data, one batch at a time,
        and ``4 * num_draws`` bytes per example.
        """
        check_integer("num_draws", num_draws, error=PlanError)
        if (switched is None) != (loader is None):
            missing = "switched" if switched is None else "loader"
            raise ConfigError(f"to_arviz: switched and loader go together, got no {missing}")
        coords = switch_coords({name: units.numpy() for name, units in self.channels.items()})
        with seeded(0, CPU), torch.no_grad():
            gates, guide, prior = {}, torch.zeros(num_draws), torch.zeros(num_draws)
            for group, switch in self.switches.items():
                values = {}
                for name, site in switch.sites().items():
                    values[name] = site.factor.sample((num_draws,))
                    guide += site.factor.log_prob(values[name])
                    prior += site.prior.log_prob(values[name])
                gates[group] = switch.gate(values)

        def draws(parts: dict[str, Tensor]) -> xr.Dataset:
            gate = torch.cat(list(parts.values()), 1).numpy()[None]
            return xr.Dataset({"gate": (("chain", "draw", "switch"), gate)}, coords=draw_coords)

        draw_coords = {"chain": [0], "draw": np.arange(num_draws), **coords}
        constant = {
            "mean": ("switch", torch.cat(list(self.mean.values())).numpy()),
            "sd": ("switch", torch.cat(list(self.sd.values())).numpy()),
        }
        if plan is not None:
            kept = [
                np.isin(units := self.channels[name].numpy(), plan.kept.get(name, units))
                for name in self.names
            ]
            constant["kept"] = ("switch", np.concatenate(kept).astype(np.int8))
        comparable = all(switch.has_density for switch in self.switches.values())
        densities = {"lp_guide": guide, **({"lp_prior": prior} if comparable else {})}
        datasets = {
            "posterior": draws(gates),
            "sample_stats": xr.Dataset(
                {name: (("chain", "draw"), lp.numpy()[None]) for name, lp in densities.items()},
                coords={"chain": [0], "draw": np.arange(num_draws)},
            ),
            "constant_data": xr.Dataset(constant, coords=coords),
            "fit_history": self._history_dataset(),
        }
        if self.has_prior:
            datasets["prior"] = draws(self.prior_sample(num_draws, seed=1))
        if switched is not None and loader is not None:
            datasets |= self._likelihood_datasets(gates, switched, loader, progress)
        return container(datasets)

    def _likelihood_datasets(
        self,
        gates: Mapping[str, Tensor],
        switched: SwitchedNetwork,
        loader: Loader,
        progress: bool,
    ) -> dict[str, xr.Dataset]:
        """The groups ``log_likelihood`` and ``observed_data`` of `to_arviz`."""
        likelihood, targets = self._log_likelihood(gates, switched, loader, progress)
        examples = ("example", *(f"target_dim_{axis}" for axis in range(1, targets.ndim)))
        index = {"example": np.arange(len(targets))}
        return {
            "log_likelihood": xr.Dataset(
                {"targets": (("chain", "draw", "example"), likelihood.numpy()[None])},
                coords={"chain": [0], "draw": np.arange(len(likelihood)), **index},
            ),
            "observed_data": xr.Dataset({"targets": (examples, targets.numpy())}, coords=index),
        }

    def _log_likelihood(
        self,
        gates: Mapping[str, Tensor],
        switched: SwitchedNetwork,
        loader: Loader,
        progress: bool,
    ) -> tuple[Tensor, Tensor]:
        """Log likelihood of each target under each draw, (draws, examples), and the targets."""
        if set(switched.guide.names) != set(self.names):
            raise PlanError(
                f"switched: expected the groups {', '.join(self.names)}, got "
                f"{', '.join(switched.guide.names)}"
            )
        device = next(switched.parameters()).device
        gates = {name: gate.to(device) for name, gate in gates.items()}
        columns, targets = [], []
        batches = track(
            loader,
            "log likelihood",
            total=len(loader),
            console=Console(stderr=True),
            transient=True,
            disable=not progress,
        )
        with evaluating(switched):
            for index, loaded in enumerate(batches):
                inputs, target = on_device(checked_batch(loaded, index), device)
                rows = []
                for values in zip(*gates.values(), strict=True):
                    draw = dict(zip(gates, values, strict=True))
                    try:
                        rows.append(switched.log_likelihood(inputs, target, draw).cpu())
                    except BayespruneError:
                        raise
                    except ValueError as error:  # outputs that are not finite, impossible targets
                        raise FitError(f"log likelihood of batch {index}: {error}") from error
                columns.append(torch.stack(rows))
                if not columns[-1].isfinite().all():
                    raise FitError(f"log likelihood of batch {index}: not finite")
                targets.append(target.cpu())
        if not columns:
            raise DataError("loader: expected at least 1 batch, got 0")
        return torch.cat(columns, 1), torch.cat(targets)

    def _history_dataset(self) -> xr.Dataset:
        keys = [k for k in ("elbo", "nll", "kl") if all(k in row for row in self.history)]
        step = np.arange(1, len(self.history) + 1)
        return xr.Dataset(
            {key: ("epoch", np.array([float(row[key]) for row in self.history])) for key in keys},
            coords={"epoch": step},
        )

    # on disk --------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the variational parameters (safetensors), for `load` to give the posterior back."""
        switches = {}
        for name, switch in self.switches.items():
            switches[name] = {
                "prototype": describe(switch),
                "size": switch.size,
                "fan_in": switch.fan_in,
                "state": dict(switch.state_dict()),
            }
        tree = {"switches": switches, "history": self.history, "channels": self.channels}
        save_state(Path(path), tree)

    @classmethod
    def load(cls, path: str | Path) -> SwitchPosterior:
        """Read a posterior; raises CheckpointError if the file is missing or something else."""
        tree = load_state(Path(path))
        switches: dict[str, Switch] = {}
        try:
            for name, entry in tree["switches"].items():
                size = entry["size"]
                bound = build(entry["prototype"], Switch).bind(size, size, entry["fan_in"])
                switches[name] = bound
                bound.load_state_dict(entry["state"])
            return cls(switches, tree["history"], tree["channels"])
        except (
            KeyError,
            TypeError,
            AttributeError,
            ValueError,
            RuntimeError,
            ImportError,
        ) as error:
            message = f"{path}: expected a switch posterior: {error}"
            raise CheckpointError(message, Path(path)) from error
