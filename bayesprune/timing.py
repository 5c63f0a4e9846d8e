"""Networks timed in turn, and a model of latency fitted to such measurements."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import nnls
from torch import Tensor, nn

from bayesprune._checks import check_integer
from bayesprune.cost import CostModel, Price, Term, latency
from bayesprune.groups import ChannelGroups
from bayesprune.plan import Kept, Limits, PruningPlan
from bayesprune.surgery import remove_channels

FRACTIONS = (1.0, 0.75, 0.5, 0.25, 0.0)  # of every group; the last is the smallest network
MIXTURES = 12  # networks in which each group has a width of its own
NOISE = 0.01  # standard deviation of a measurement, as a fraction of it
SECONDS = 1.0  # for how long each of several networks is timed, in turn with the others, …
BLOCKS = (15, 60)  # … but in at least and at most so many blocks
CALLS = 5  # in a block
SPREAD = 1.0  # standard deviation of a layer's rate around the network's rate, as a fraction of it


def in_turn(
    networks: Mapping[str, nn.Module],
    example_input: Tensor | tuple[Any, ...],
    *,
    blocks: int | None = None,
    measure: Callable[[nn.Module, Any], float] | None = None,
) -> dict[str, np.ndarray]:
    """Time networks in short blocks that take turns.

    What slows the machine for a while slows all of them: compare the networks block by block.

    Parameters
    ----------
    networks : mapping of str to nn.Module
        At least one, by name; left as they are.
    example_input : Tensor or tuple
        What each call gets, on the networks' device.
    blocks : int, optional
        Number of blocks B, at least 1; by default as many as take a second per network, 15 to 60.
    measure : callable, optional
        ``(network, example_input)`` to milliseconds, for a block; by default the median of 5 calls
        after one to warm up.

    Returns
    -------
    dict of str to array of shape (B,)
        Milliseconds by block.

    Raises
    ------
    ConfigError
        If `blocks` is no integer or below 1.
    """
    measure = measure or partial(latency, repeats=CALLS, warmup=1)
    if blocks is not None:
        check_integer("in_turn: blocks", blocks)
    least, most = BLOCKS if blocks is None else (blocks, blocks)
    for network in networks.values():
        measure(network, example_input)
    rows: list[dict[str, float]] = []
    end = time.perf_counter() + SECONDS * len(networks)
    while len(rows) < least or (len(rows) < most and time.perf_counter() < end):
        # Every other block in reverse, so that none always follows the same one.
        names = list(networks)[:: -1 if len(rows) % 2 else 1]
        rows.append({name: measure(networks[name], example_input) for name in names})
    return {name: np.array([row[name] for row in rows]) for name in networks}


class LatencyModel(Price):
    r"""Milliseconds of one call, linear in what each layer computes and puts out.

    .. math:: t = c + \sum_l \alpha_l \, \mathrm{MACs}_l + \beta_l \, \mathrm{outputs}_l

    A few networks are built and timed: all groups cut to the same fraction, and mixtures in
    which every group keeps a random number of units, so that each measurement says something about
    every layer. First the rates that all layers share are fitted by non-negative least squares:
    time per call, per multiply-accumulate, per output and per weight. Then each layer gets rates of
    its own, again non-negative, that are pulled towards the shared ones as a Gaussian prior would
    (standard deviation 100%, of a measurement 1%): a layer that the measurements say nothing about
    keeps the shared rates.

    With MACs the product of the widths on either side of a layer, this is the bilinear regression
    by which ECC predicts the energy of a network (Yang, Zhu & Liu, CVPR 2019), with a term for what
    is written; give a `measure` of millijoules, and it predicts energy.

    Every network is timed in turn with the dense one, and its time is the median ratio times what
    the dense network takes: other work on the machine, or its clock, slows both.

    Parameters
    ----------
    network : nn.Module
        Left as it is; copies of it are pruned.
    groups : ChannelGroups
        Of the network.
    example_input : Tensor or tuple
        What is timed, on the network's device.
    limits : Limits, optional
        Only widths that they allow are measured.
    measure : callable, optional
        ``(network, example_input)`` to milliseconds; by default of one call.

    Attributes
    ----------
    dense_ms : float
        Time of the dense network: the median over all measurements of the fit.

    Raises
    ------
    PlanError
        If a pruned network does not run.
    """

    def __init__(
        self,
        network: nn.Module,
        groups: ChannelGroups,
        example_input: Tensor | tuple[Any, ...],
        limits: Limits | None = None,
        measure: Callable[[nn.Module, Any], float] | None = None,
    ) -> None:
        self._network, self._groups, self._example = network, groups, example_input
        self._measure = measure or partial(latency, repeats=1, warmup=0)
        self._ratios: dict[tuple[tuple[str, int | tuple[int, ...]], ...], float] = {}
        self._measure(network, example_input)  # the first call warms up
        self._dense = [self._measure(network, example_input)]
        products = [
            Term(use.tensor, tuple(range(len(groups.shapes[use.tensor]))), use.positions)
            for use in groups.uses
        ]
        outputs = [Term(use.tensor, (0,), use.positions) for use in groups.uses]
        super().__init__(groups, products + outputs)
        plans = _plans(groups, limits or Limits())
        ratios = [self._ratio(kept) for kept in plans]
        self.dense_ms = float(np.median(self._dense))
        times = self.dense_ms * np.array(ratios)
        work = np.array([self.parts(kept) for kept in plans])  # a column for each term
        weights = np.array([CostModel(groups).weights(kept) for kept in plans])

        # Rates that all layers share.
        layers = len(products)
        shared = [work[:, :layers].sum(1), work[:, layers:].sum(1), weights, np.ones(len(plans))]
        columns = np.stack(shared, 1)
        scale = columns.max(0)
        rates = nnls(columns / scale / times[:, None], np.ones(len(plans)))[0] / scale
        prior = [
            rates[0] + rates[2] / term.price  # time per product, and per weight that it reads
            for term in products
        ] + [rates[1]] * len(outputs)

        # Rates of each layer, as multiples of the shared ones: the minimum of the squared errors in
        # standard deviations, of the measurements (the first rows) and of the multiples.
        expected = np.hstack([work * prior, np.full((len(plans), 1), times.min())])
        pull = np.eye(len(prior), len(prior) + 1)
        rows = np.vstack([expected / (NOISE * times[:, None]), pull / SPREAD])
        wanted = np.concatenate([np.full(len(plans), 1 / NOISE), np.full(len(prior), 1 / SPREAD)])
        multiples = nnls(rows, wanted, maxiter=30 * len(rows))[0]
        self.constant = float(multiples[-1] * times.min())
        self.terms = tuple(
            Term(term.tensor, term.axes, term.price * rate * multiple)
            for term, rate, multiple in zip(self.terms, prior, multiples[:-1], strict=True)
        )

    def actual(self, kept: Mapping[str, Sequence[int]]) -> float:
        """Measured milliseconds of the network with these units; each network is measured once."""
        return self.dense_ms * self._ratio(kept)

    def _ratio(self, kept: Mapping[str, Sequence[int]]) -> float:
        """Time of the network with these units over that of the dense network."""
        cut = sorted((n, k) for n, k in kept.items() if len(k) < self._groups[n].size)
        if not cut:
            return 1.0
        # How many units stay tells the sizes, except where it matters whether they overlap.
        nested = self._groups.nested
        key = tuple((n, tuple(k) if n in nested else len(k)) for n, k in cut)
        if key not in self._ratios:
            units = {name: list(units) for name, units in cut}
            plan = PruningPlan(units, {name: self._groups[name].size for name in units})
            small = remove_channels(self._network, plan, self._example, groups=self._groups)
            networks = {"dense": self._network, "small": small}
            times = in_turn(networks, self._example, measure=self._measure)
            self._dense.extend(times["dense"])
            self._ratios[key] = float(np.median(times["small"] / times["dense"]))
        return self._ratios[key]


def _plans(groups: ChannelGroups, limits: Limits) -> list[Kept]:
    """What to measure."""
    generator = np.random.default_rng(0)
    shares = [np.full(len(groups), fraction) for fraction in FRACTIONS]
    shares += [generator.uniform(0.05, 1, len(groups)) for _ in range(MIXTURES)]
    return [
        {
            name: list(range(limits.fit(name, size, share * size)))
            for (name, size), share in zip(groups.sizes.items(), row, strict=True)
        }
        for row in shares
    ]
