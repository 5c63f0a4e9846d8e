"""Independent fits as chains: whether another seed tells the same story."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import torch

from bayesprune._arviz import rhat
from bayesprune._checks import check_integer
from bayesprune.diagnostics._diagnostic import LARGEST_RHAT, Diagnostic, shown
from bayesprune.diagnostics.agreement import rank_agreement
from bayesprune.errors import PlanError
from bayesprune.posterior import SwitchPosterior


@dataclass(frozen=True, repr=False, eq=False)
class Restarts(Diagnostic):
    """Posteriors of the same switches from several seeds.

    Attributes
    ----------
    posteriors : list of SwitchPosterior
        One per seed.
    rhat : dict of str to ndarray
        Rank-normalised split R-hat of each gate with the posteriors as chains, shape ``(C,)``; NaN
        where no gate varies.
    spearman : dict of str to float
        By group, the mean rank correlation of the importance over pairs of restarts; NaN where all
        channels are equal.
    overlap : dict of str to float
        By group, the mean share of one restart's best channels that is among another's best.
    """

    posteriors: list[SwitchPosterior]
    rhat: dict[str, np.ndarray]
    spearman: dict[str, float]
    overlap: dict[str, float]

    @property
    def threshold(self) -> float:
        """The largest good R-hat, 1.01."""
        return LARGEST_RHAT

    @property
    def is_good(self) -> bool:
        """Whether the largest R-hat is at most the threshold."""
        return self.largest <= self.threshold

    @property
    def largest(self) -> float:
        """The largest R-hat of all gates."""
        values = np.concatenate(list(self.rhat.values()))
        return values[~np.isnan(values)].max(initial=1.0)

    @property
    def verdict(self) -> str:
        values = np.concatenate(list(self.rhat.values()))
        over = int((values > self.threshold).sum())
        means = (
            "restarts agree"
            if self.is_good
            else "restarts end in different posteriors; rely on the ranks as far as these agree"
        )
        worst = min(self.overlap, key=lambda name: self.overlap[name])
        return (
            f"largest R-hat between {len(self.posteriors)} restarts {self.largest:.3f}, {over} "
            f"of {len(values)} channels above {self.threshold} (Vehtari et al., Bayesian Analysis "
            f"2021): {means}; best channels shared by two restarts, least in {worst}: "
            f"{self.overlap[worst]:.0%}"
        )

    def to_frame(self) -> pd.DataFrame:
        rows = []
        for name, values in self.rhat.items():
            finite = values[~np.isnan(values)]
            rows.append(
                {
                    "layer": name,
                    "units": len(values),
                    "r_hat_median": np.median(finite) if len(finite) else np.nan,
                    "r_hat_max": finite.max(initial=1.0),
                    "spearman": self.spearman[name],
                    "overlap": self.overlap[name],
                }
            )
        return pd.DataFrame(rows)


def restarts(
    fit: Callable[[int], SwitchPosterior],
    best: int | float | Mapping[str, int] = 0.5,
    *,
    count: int = 4,
    num_draws: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Restarts:
    """Fit several times with other seeds, and compare.

    Parameters
    ----------
    fit : callable
        ``fit(seed)`` gives the posterior of a fresh `SwitchedNetwork`.
    best : int, float or mapping of str to int
        How many channels of a group count as its best: a number, a fraction in (0, 1), or a number
        per group.
    count : int
        Number of fits, at least 2.
    num_draws : int
        Of each posterior, at least 4.
    seed : int
        Of the first fit; the others count on.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    Restarts

    Raises
    ------
    ConfigError
        If a number is too small.
    PlanError
        If posteriors are of different groups, or `best` does not fit a group.

    References
    ----------
    Vehtari, Gelman, Simpson, Carpenter and Bürkner, "Rank-normalization, folding, and localization:
    an improved R-hat", Bayesian Analysis 2021.
    """
    check_integer("count", count, least=2)
    check_integer("num_draws", num_draws, least=4)
    posteriors = []
    for number in shown(range(count), "restarts", progress):
        posteriors.append(fit(seed + number))
    sizes = [{name: s.size for name, s in posterior.switches.items()} for posterior in posteriors]
    if any(size != sizes[0] for size in sizes):
        raise PlanError(f"restarts: expected posteriors of the same groups, got {sizes}")
    counts = _counts(best, sizes[0])
    draws = [p.sample(num_draws, seed + number) for number, p in enumerate(posteriors)]
    rhats = {name: rhat(torch.stack([gates[name] for gates in draws]).numpy()) for name in counts}
    scores = {str(number): posterior.scores() for number, posterior in enumerate(posteriors)}
    pairs = rank_agreement(scores).groupby("group")["spearman"]
    spearman = {str(name): float(np.asarray(values).mean()) for name, values in pairs}
    overlap = {}
    for name, k in counts.items():
        best_of = [set(one.best(name, k)) for one in scores.values()]
        overlap[name] = float(np.mean([len(a & b) / k for a, b in combinations(best_of, 2)]))
    return Restarts(posteriors, rhats, spearman, overlap)


def _counts(best: int | float | Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, int]:
    if isinstance(best, Mapping):
        counts = dict(best)
    elif isinstance(best, float):
        counts = {name: max(1, round(best * size)) for name, size in sizes.items()}
    else:
        counts = dict.fromkeys(sizes, best)
    if set(counts) != set(sizes) or any(not 1 <= counts[n] <= size for n, size in sizes.items()):
        raise PlanError(f"best: expected numbers of channels within {dict(sizes)}, got {best!r}")
    return counts
