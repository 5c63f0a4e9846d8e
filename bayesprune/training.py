"""The one training loop: progress, metrics, exact resumption and data-parallel ranks.

`run_epochs` drives every gradient-based stage (pretraining, fitting switches, sparse training,
fine-tuning); `train_network` and `evaluate` are classification on top of it.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import math
import os
import random
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, cast

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data.distributed import DistributedSampler

from bayesprune._checks import check_choice, check_integer, check_number
from bayesprune._memory import memory_of
from bayesprune._modes import in_mode
from bayesprune.batches import (
    Batch,
    Inputs,
    Loader,
    as_arguments,
    check_finite,
    checked_batch,
    on_device,
)
from bayesprune.checkpoint import load_state, save_state, write_text_atomic
from bayesprune.errors import BayespruneError, CheckpointError, ConfigError, DataError, FitError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Row = dict[str, Any]
"""One epoch: ``stage``, ``epoch`` (from 1), ``loss`` and whatever else was measured."""


# ---------------------------------------------------------------------------------- devices


@dataclass(frozen=True)
class FabricConfig:
    """Where to compute.

    Parameters
    ----------
    accelerator : {"auto", "cpu", "cuda", "mps"}
        Kind of device; ``"auto"`` is the best there is.
    devices : int or "auto"
        Devices per node; more than one is data-parallel.
    num_nodes : int
        Number of machines.
    strategy : str
        A Lightning Fabric strategy that needs no spawning from inside the program:
        ``"auto"`` or ``"ddp"``.
    threads
        CPU threads of this process, or None for torch's choice. Small networks are fastest with
        one, and steady on a machine that does other work.
    channels_last
        Keep the weights of 2-d convolutions in channels-last order, in which pooling on a CPU and
        convolution in half precision on a GPU are faster. Results differ by rounding.
    """

    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: str = "auto"
    threads: int | None = None
    channels_last: bool = False


def make_fabric(config: FabricConfig | None = None) -> Fabric:
    """Return a launched `lightning_fabric.Fabric`.

    Parameters
    ----------
    config : FabricConfig, optional
        Where to compute; by default one process on the best device there is. With several
        devices, start the program under ``torchrun``; started plainly, Fabric runs the same command
        line once more for every further device.

    Returns
    -------
    lightning_fabric.Fabric
        Ready for use.

    Raises
    ------
    ConfigError
        If this machine cannot provide what is asked for.
    """
    from lightning_fabric import Fabric  # here, as it takes seconds to import

    config = config or FabricConfig()
    if config.threads is not None:
        check_integer("fabric.threads", config.threads)
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=config.strategy,
        )
        fabric.launch()
        if config.threads is not None:
            torch.set_num_threads(config.threads)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"fabric: expected a usable set-up, got {config}: {error}") from error
    return fabric


def num_steps(fabric: Fabric, loader: Loader) -> int:
    """Return the number of optimizer steps in an epoch of `run_epochs`.

    Parameters
    ----------
    fabric : Fabric
        From `make_fabric`.
    loader : DataLoader
        The training data. A loader without a ``DistributedSampler`` is shared by the ranks:
        batch ``i`` goes to rank ``i mod ranks``, and a last incomplete round is left out.

    Returns
    -------
    int
        Steps per epoch, at least 1.

    Raises
    ------
    DataError
        If the loader has no length or too few batches.
    """
    try:
        batches = len(loader)
    except TypeError as error:
        raise DataError(
            f"loader: expected a length in batches, got a {type(loader).__name__} without one"
        ) from error
    ranks = _sharing_ranks(fabric, loader)
    if batches < ranks:
        raise DataError(f"loader: expected at least {ranks} batch(es), got {batches}")
    return batches // ranks


def _sharing_ranks(fabric: Fabric, loader: Loader) -> int:
    split_already = isinstance(getattr(loader, "sampler", None), DistributedSampler)
    return 1 if split_already else fabric.world_size


@torch.no_grad()
def _average_over_ranks(fabric: Fabric, tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their means over the ranks, with one message.

    Done here and not by wrapping the network, so that a step may call its modules in any way (a
    Pyro model and guide do not run through one ``forward``).
    """
    if fabric.world_size == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors]).to(fabric.device)
    flat = cast(Tensor, fabric.all_reduce(flat, reduce_op="mean"))
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


# --------------------------------------------------------------------------------- reporting


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Read the file of a `MetricsWriter`.

    Parameters
    ----------
    path : path
        The CSV file.

    Returns
    -------
    list of dict
        One row per epoch, stage after stage: ``stage``, ``epoch``, ``loss``, ``seconds`` and the
        other cells that are not empty, as text.

    Raises
    ------
    CheckpointError
        If the file is missing or not such a table.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            columns, *lines = csv.reader(file)
        if columns[:2] != ["stage", "epoch"]:
            raise ValueError(f"expected columns stage, epoch, …, got {columns}")
        rows = [{k: v for k, v in zip(columns, cells, strict=True) if v} for cells in lines]
        for row in rows:
            _ = row["stage"], *(float(row[name]) for name in ("epoch", "loss", "seconds"))
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise CheckpointError(f"{path}: expected the metrics of a run: {error!r}") from error
    return rows


class MetricsWriter:
    """The rows of all stages of a run in one CSV file.

    The file is small and is rewritten atomically at every change; its columns are the union of
    the rows' keys. What an existing file holds of other stages is kept.

    Parameters
    ----------
    path : path
        The CSV file.

    Raises
    ------
    CheckpointError
        If the file exists and is not such a table.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._stages: dict[str, list[Mapping[str, Any]]] = {}
        for row in read_metrics(self.path) if self.path.exists() else ():
            self._stages.setdefault(row["stage"], []).append(row)

    def write(self, stage: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Make ``rows`` the rows of a stage, in place of those it had.

        Parameters
        ----------
        stage : str
            Name of the stage.
        rows : sequence of dict
            Its rows, each with keys ``stage``, ``epoch``, ``loss`` and ``seconds``.
        """
        self._stages[stage] = list(rows)
        every = [row for rows in self._stages.values() for row in rows]
        columns = dict.fromkeys(["stage", "epoch", *(key for row in every for key in row)])
        text = io.StringIO()
        table = csv.DictWriter(text, list(columns), lineterminator="\n")
        table.writeheader()
        table.writerows(every)
        write_text_atomic(self.path, text.getvalue())


class _Display:
    """A bar on a terminal or in a notebook; elsewhere a plain line per epoch; or nothing."""

    def __init__(self, stage: str, epochs: int, steps: int, done: int, *, shown: bool) -> None:
        self._stage, self._epochs = stage, epochs
        self._console = Console(stderr=True)
        live = shown and (self._console.is_interactive or self._console.is_jupyter)
        self._lines = shown and not live
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4g}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not live,
        )
        self._task = self._bar.add_task(
            stage, total=epochs * steps, completed=done * steps, loss=math.nan
        )
        self._shown_at = 0.0
        if self._lines and done:
            print(f"{stage}: {done} of {epochs} epochs were done before", file=sys.stderr)

    def __enter__(self) -> _Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, done: int, epoch: int, loss: float) -> None:
        now = time.monotonic()
        if now - self._shown_at < 0.2:  # a bar's update costs more than a small network's step
            return
        self._shown_at = now
        name = f"{self._stage} {epoch}/{self._epochs}"
        self._bar.update(self._task, completed=done, description=name, loss=loss)

    def epoch(self, done: int, row: Row) -> None:
        self._bar.update(self._task, completed=done, loss=row["loss"])
        if self._lines:
            values = {k: v for k, v in row.items() if k not in ("stage", "epoch", "seconds")}
            text = ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()
            )
            print(
                f"{self._stage} {row['epoch']}/{self._epochs}: {text} ({row['seconds']:.1f} s)",
                file=sys.stderr,
                flush=True,
            )


# ---------------------------------------------------------------------------------- the loop


def run_epochs(
    fabric: Fabric,
    module: nn.Module,
    loader: Loader,
    step: Callable[[Batch], Mapping[str, Tensor]],
    optimizer: Optimizer,
    *,
    epochs: int,
    seed: int,
    stage: str,
    scheduler: LRScheduler | None = None,
    averager: AveragedModel | None = None,
    before_step: Callable[[int, int], object] | None = None,
    after_step: Callable[[int, int], object] | None = None,
    on_epoch: Callable[[int, Row], Mapping[str, Any] | None] | None = None,
    settings: Mapping[str, Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    metrics: MetricsWriter | None = None,
    progress: bool = True,
) -> list[Row]:
    """Minimise a loss by stochastic gradients, resumably.

    Parameters
    ----------
    fabric : Fabric
        From `make_fabric`.
    module : nn.Module
        What is trained, and what the checkpoint holds. Moved to the device; its train or eval
        mode is left alone.
    loader : DataLoader
        Batches ``(inputs, targets)``; several inputs, for a network of as many arguments, come as
        a tuple. `num_steps` tells how ranks share them.
    step : callable
        Maps a batch on the device to scalars with the same keys at every step. ``loss`` is
        differentiated; the mean of each over the epoch's examples goes into the row.
    optimizer : Optimizer
        Over parameters of ``module``.
    epochs : int
        Total number of epochs, those of earlier, interrupted calls included.
    seed, stage
        With the epoch and the rank, they seed torch, numpy, `random` and the loader's generator
        at the start of every epoch; the ranks shuffle alike and draw their own noise.
    scheduler : LRScheduler, optional
        Stepped once per batch.
    averager : AveragedModel, optional
        Updated with ``module`` after every step, see `averaged_copy`.
    before_step : callable, optional
        Called with the step's index (from 0, over all epochs) and the total number of steps.
    after_step : callable, optional
        Called like ``before_step``, between the steps of the optimizer and of the scheduler: the
        optimizer still has the learning rate of the step.
    on_epoch : callable, optional
        Called on every rank with the epoch (from 1) and its row; what it returns is merged into
        the row.
    settings : mapping, optional
        JSON-like values that a checkpoint must agree with to be continued, besides the stage,
        seed, number of epochs and steps, and the kinds of optimizer and scheduler.
    checkpoint : path, optional
        Where to keep the complete state after each epoch, and to continue from when it is there.
        Several nodes must see the same file. Nothing is written without it.
    metrics : MetricsWriter, optional
        Where rows are written, with one more column: the wall-clock ``seconds`` of the epoch.
    progress : bool
        Whether to show a bar (or, without a terminal, a line per epoch on stderr).

    Returns
    -------
    list of dict
        One row per epoch, earlier calls included: ``stage``, ``epoch`` (from 1), the mean of every
        entry of ``step``, and what ``on_epoch`` added.

    Raises
    ------
    DataError
        If the loader is empty or a batch is not a pair of tensors, or is not finite.
    FitError
        If the loss is not finite. It is read between the backward pass and the optimizer's step,
        so parameters are never updated with it (and the GPU works meanwhile). Also if a parameter
        is not finite after an epoch; the checkpoint then stays at the epoch before.
    CheckpointError
        If the checkpoint is unreadable or belongs to another run.

    Notes
    -----
    A run that was interrupted anywhere and started again has on the CPU, with as many threads,
    bit-identical weights and rows. Workers of a loader with ``persistent_workers=True`` keep random
    states of their own over epochs; for exact resumption leave that off.
    """
    steps = num_steps(fabric, loader)
    fabric.to_device(module)
    if averager is not None:
        fabric.to_device(averager.module)  # without its counter: reading that would wait for a GPU
    run = {
        "stage": stage,
        "seed": seed,
        "epochs": epochs,
        "steps per epoch": steps,
        "optimizer": type(optimizer).__name__,
        "scheduler": scheduler and type(scheduler).__name__,
        "averaging": averager is not None,
        **(settings or {}),
    }
    parts = {"module": module, "optimizer": optimizer, "scheduler": scheduler, "averager": averager}
    history: list[Row] = []
    if checkpoint is not None and Path(checkpoint).exists():
        history = _restore(checkpoint, run, parts)
    elif fabric.world_size > 1:
        module.load_state_dict(fabric.broadcast(module.state_dict()))
    if history and metrics is not None and fabric.is_global_zero:
        metrics.write(stage, history)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    display = _Display(stage, epochs, steps, len(history), shown=progress and fabric.is_global_zero)
    with display:
        for epoch in range(len(history) + 1, epochs + 1):
            started = time.perf_counter()
            sizes: list[int] = []
            terms: dict[str, list[Tensor]] = {}
            before = [buffer.clone() for buffer in module.buffers()]
            for index, batch in _batches(fabric, loader, steps, seed, stage, epoch):
                done = (epoch - 1) * steps + len(sizes)
                if before_step is not None:
                    before_step(done, epochs * steps)
                optimizer.zero_grad()
                values = step(batch)
                fabric.backward(values["loss"])
                loss = values["loss"].item()
                if not math.isfinite(loss):
                    optimizer.zero_grad()
                    where = f"{stage}, epoch {epoch}, step {len(sizes) + 1} of {steps}"
                    try:
                        _refuse_loss(module, loss, batch, index, where, trained=done > 0)
                    finally:  # running statistics that have seen it would spoil the network
                        for buffer, value in zip(module.buffers(), before, strict=True):
                            buffer.copy_(value)
                _average_over_ranks(fabric, [p.grad for p in trained if p.grad is not None])
                optimizer.step()
                if after_step is not None:
                    after_step(done, epochs * steps)
                if scheduler is not None:
                    scheduler.step()
                if averager is not None:
                    averager.update_parameters(module)
                # Kept apart until the epoch ends: cheaper than to add them up.
                for name, value in values.items():
                    terms.setdefault(name, []).append(value.detach())
                sizes.append(len(batch[1]))
                display.step(done + 1, epoch, loss)

            _check_parameters(module, f"{stage}, epoch {epoch}", trained=True)
            trees = [module] if averager is None else [module, averager]
            buffers = [b for tree in trees for b in tree.buffers() if b.is_floating_point()]
            _average_over_ranks(fabric, buffers)
            row: Row = {"stage": stage, "epoch": epoch, **_means(fabric, terms, sizes)}
            if on_epoch is not None:
                row.update(on_epoch(epoch, row) or {})
            row["seconds"] = time.perf_counter() - started
            history.append(row)
            if fabric.is_global_zero:
                if metrics is not None:
                    metrics.write(stage, history)
                if checkpoint is not None:
                    _save(checkpoint, run, parts, history)
            fabric.barrier()
            display.epoch(epoch * steps, row)
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def averaged_copy(module: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of a module's parameters and buffers.

    Parameters
    ----------
    module : nn.Module
        The module, already on its device.
    decay : float
        Weight of the past in ``[0, 1)``: the average looks back over ``1 / (1 - decay)`` steps.
        In step ``t`` it is at most ``(1 + t) / (10 + t)``, so that the first weights are soon
        forgotten.

    Returns
    -------
    torch.optim.swa_utils.AveragedModel
        To be updated after every step; integer buffers are copied.
    """

    @torch.no_grad()
    def update(averages: Sequence[Tensor], values: Sequence[Tensor], steps: Tensor | int) -> None:
        share = 1 - torch.clamp((1 + torch.as_tensor(steps)) / (10 + steps), max=decay)
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, share.to(average.dtype))
            else:
                average.copy_(value)

    return AveragedModel(module, multi_avg_fn=update, use_buffers=True)


def _batches(
    fabric: Fabric, loader: Loader, steps: int, seed: int, stage: str, epoch: int
) -> Iterator[tuple[int, Batch]]:
    """Yield an epoch's batches for this rank, on its device, with their index in the loader."""
    ranks = _sharing_ranks(fabric, loader)
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, DistributedSampler):
        sampler.set_epoch(epoch)
    key = _seed_everything(seed, stage, epoch, "order")  # for all ranks, whose shuffles must agree
    for owner in (loader, sampler):
        if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
            generator.manual_seed(key)
    index = -1
    for index, batch in enumerate(loader):
        if index == 0:
            _seed_everything(seed, stage, epoch, fabric.global_rank)
        if index == steps * ranks:
            return
        if index % ranks == fabric.global_rank % ranks:
            yield index, fabric.to_device(checked_batch(batch, index))
    if index + 1 < steps * ranks:
        raise DataError(f"loader: expected len(loader) = {len(loader)} batches, got {index + 1}")


def _seed_everything(*key: object) -> int:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "little")
    torch.manual_seed(value)
    np.random.seed(value % 2**32)
    random.seed(value)
    return value


def _refuse_loss(
    network: nn.Module, loss: float, batch: Batch, index: int, where: str, *, trained: bool
) -> NoReturn:
    """Blame a loss that is not finite on the data, the network, or its training."""
    check_finite(batch, index, where)
    _check_parameters(network, where, trained=trained)
    advice = "so try a lower learning rate" if trained else "and so is the network: it overflows"
    raise FitError(
        f"{where}: expected a finite loss, got {loss}; the data of this batch (index {index}) are "
        f"finite, {advice}"
    )


def _check_parameters(module: nn.Module, where: str, *, trained: bool) -> None:
    """Raise FitError for a parameter with NaN or inf, or a buffer with NaN: masks have inf."""
    broken = [
        name for name, parameter in module.named_parameters() if not parameter.isfinite().all()
    ]
    broken += [name for name, buffer in module.named_buffers() if buffer.isnan().any()]
    if broken:
        advice = "; try a lower learning rate" if trained else ""
        raise FitError(
            f"{where}: expected finite parameters, got NaN or inf in {broken[0]}{advice}"
        )


def _means(
    fabric: Fabric, terms: Mapping[str, Sequence[Tensor]], sizes: Sequence[int]
) -> dict[str, float]:
    """Means over all examples of all ranks of values that are means over batches."""
    values = torch.stack([torch.stack(list(steps)) for steps in terms.values()]).cpu().double()
    weights = torch.tensor(sizes, dtype=torch.double)
    sums = torch.cat([values @ weights, weights.sum()[None]])
    _average_over_ranks(fabric, [sums])
    return dict(zip(terms, (sums[:-1] / sums[-1]).tolist(), strict=True))


def _save(
    path: str | os.PathLike[str],
    run: Mapping[str, Any],
    parts: Mapping[str, Any],
    history: Sequence[Row],
) -> None:
    states = {name: part.state_dict() for name, part in parts.items() if part is not None}
    finished = len(history) == run["epochs"]
    save_state(path, {"run": run, "history": history, "finished": finished, **states})


def _restore(
    path: str | os.PathLike[str], run: Mapping[str, Any], parts: Mapping[str, Any]
) -> list[Row]:
    """Load a checkpoint into the parts, none of which is touched when it does not fit."""
    saved = load_state(path)
    if not isinstance(saved, dict) or not saved.keys() >= {"run", "history", "module"}:
        message = f"{path}: expected a training checkpoint, got another kind of state"
        raise CheckpointError(message, Path(path))
    for name in dict.fromkeys([*run, *saved["run"]]):
        expected, got = run.get(name), saved["run"].get(name)
        if expected != got:
            raise CheckpointError(
                f"{path}: expected a checkpoint of a run with {name} = {expected!r}, got "
                f"{got!r}; remove the file to start that run over"
            )
    # The optimizer goes first: it checks its state itself, before it changes anything.
    for name in ("module", "averager"):
        if parts[name] is not None:
            _check_tensors(f"{path}, {name}", parts[name].state_dict(), saved[name])
    try:
        parts["optimizer"].load_state_dict(saved["optimizer"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: expected the state of this run's optimizer, got another ({error})"
        ) from error
    for name in ("scheduler", "module", "averager"):
        if parts[name] is not None:
            parts[name].load_state_dict(saved[name])
    return saved["history"]


def _check_tensors(where: str, expected: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    def shown(state: Mapping[str, Any], name: str) -> str:
        if name not in state:
            return "nothing"
        value = state[name]
        if not isinstance(value, Tensor):
            return type(value).__name__
        return f"{value.dtype} of shape {tuple(value.shape)}"

    for name in [*expected, *(name for name in got if name not in expected)]:
        want, have = shown(expected, name), shown(got, name)
        if want != have:
            raise CheckpointError(f"{where}: expected {want} for {name!r}, got {have}")


# ---------------------------------------------------------------------------- classification


@dataclass(frozen=True)
class Distillation:
    """Learning from a teacher's logits (Hinton, Vinyals and Dean, 2015).

    Parameters
    ----------
    weight : float
        Share of the teacher in the loss, in ``[0, 1]``; the labels have the rest.
    temperature : float
        Divides both networks' logits, above 0.
    remember : bool
        Ask the teacher only about inputs that differ from all before, and keep its logits in
        memory, up to 1 GiB, for all trainings with that teacher object: worth it on a CPU, where a
        dense teacher costs more than a small student, if images come again, as they are or with a
        few augmentations. Each row of the teacher's batch has to be computed independently of the
        others; logits may differ by rounding, as it sees other batches.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    weight: float = 0.5
    temperature: float = 4.0
    remember: bool = False

    def __post_init__(self) -> None:
        check_number("distill.weight", self.weight, low=0, high=1)
        check_number("distill.temperature", self.temperature, above=0)


AUXILIARY_WEIGHT = 0.3
"""What the loss of an auxiliary head counts in `train_network`."""

OptimizerName = Literal["adam", "adamw", "sgd"]
ScheduleName = Literal["cosine", "constant", "onecycle"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train a classifier.

    Parameters
    ----------
    epochs : int
        Number of passes over the data; 0 leaves the network as it is.
    learning_rate : float
        Peak learning rate, above 0.
    optimizer : {"adam", "adamw", "sgd"}
        SGD has Nesterov momentum 0.9.
    weight_decay : float
        At least 0; not applied to biases and norm layers, see `parameter_groups`.
    schedule : {"cosine", "constant", "onecycle"}
        ``"cosine"`` falls to 0, ``"constant"`` does not fall, ``"onecycle"`` rises over the first
        30% of the steps from 1/25 of the peak, then falls (`torch.optim.lr_scheduler.OneCycleLR`).
    warmup : float
        Share of the steps over which the rate first rises linearly, in ``[0, 1)``. Has to be 0
        with ``"onecycle"``, which has a rise of its own.
    average : float, optional
        Decay, in ``[0, 1)``, of an exponential moving average of the weights, which then is the
        result, or None.
    label_smoothing : float
        Probability mass spread over all classes, in ``[0, 1)``.
    distill : Distillation, optional
        How to learn from a teacher, or None.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    epochs: int = 10
    learning_rate: float = 1e-3
    optimizer: OptimizerName = "adam"
    weight_decay: float = 0.0
    schedule: ScheduleName = "cosine"
    warmup: float = 0.0
    average: float | None = None
    label_smoothing: float = 0.0
    distill: Distillation | None = None

    def __post_init__(self) -> None:
        check_integer("epochs", self.epochs, least=0)
        check_number("learning_rate", self.learning_rate, above=0)
        check_number("weight_decay", self.weight_decay, low=0)
        check_number("warmup", self.warmup, low=0, below=1)
        check_number("label_smoothing", self.label_smoothing, low=0, below=1)
        if self.average is not None:
            check_number("average", self.average, low=0, below=1)
        check_choice("optimizer", self.optimizer, OptimizerName)
        check_choice("schedule", self.schedule, ScheduleName)
        if self.schedule == "onecycle" and self.warmup:
            raise ConfigError(f"warmup: expected 0 with schedule onecycle, got {self.warmup}")
        if not isinstance(self.distill, Distillation | None):
            raise ConfigError(f"distill: expected None or a Distillation, got {self.distill!r}")


@dataclass(frozen=True)
class Step:
    """Where training is, after an optimizer's step.

    Attributes
    ----------
    index : int
        From 0, over all epochs.
    total : int
        Number of steps of the whole training.
    per_epoch : int
        Number of steps of an epoch.
    rate : float
        The learning rate that the step was taken with.
    """

    index: int
    total: int
    per_epoch: int
    rate: float

    @property
    def progress(self) -> float:
        """Share of the steps that are done, in (0, 1]."""
        return (self.index + 1) / self.total

    @property
    def ends_epoch(self) -> bool:
        """Whether it is the last of an epoch."""
        return (self.index + 1) % self.per_epoch == 0


class Regulariser(Protocol):
    """What a method adds to the training of a classifier."""

    def penalty(self) -> Tensor | None:
        """A scalar that is added to the loss of each batch; None for nothing."""
        ...

    def after_step(self, step: Step) -> None:
        """Change parameters after each step of the optimizer."""
        ...

    def measure(self) -> dict[str, Any]:
        """What goes into the row of an epoch."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """JSON-like values that a checkpoint must agree with to be continued."""
        ...

    @property
    def undecayed(self) -> Collection[nn.Parameter]:
        """Parameters that weight decay leaves to the method."""
        ...


def train_network(
    network: nn.Module,
    loader: Loader,
    config: TrainConfig,
    *,
    regulariser: Regulariser | None = None,
    fabric: Fabric | None = None,
    seed: int = 0,
    stage: str = "train",
    teacher: nn.Module | None = None,
    validation: Loader | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    metrics: MetricsWriter | None = None,
    progress: bool = True,
) -> tuple[nn.Module, list[Row]]:
    """Train a classifier in place by cross-entropy, on `run_epochs`.

    Parameters
    ----------
    network : nn.Module
        Maps inputs ``(N, …)`` to logits ``(N, classes)``. It is trained in train mode; each
        module's own mode is restored at the end. In that mode it may put out a named tuple of
        logits and auxiliary logits, as torchvision's GoogLeNet and Inception do: the cross-entropy
        of each auxiliary head counts `AUXILIARY_WEIGHT` = 0.3 times (Szegedy et al., 2015,
        section 5).
    loader : DataLoader
        Batches of inputs and integer labels ``(N,)``.
    config : TrainConfig
        How to train.
    regulariser : Regulariser, optional
        What to add to the loss and to do after each step; made by `bayesprune.penalties`.
    fabric, seed, stage, checkpoint, metrics, progress
        As in `run_epochs`.
    teacher : nn.Module, optional
        The network to learn from when ``config.distill`` is set; used in eval mode.
    validation : DataLoader, optional
        If given, ``error`` and ``nll`` of `evaluate` on it go into the row of every epoch (those of
        the averaged weights, when averaging).

    Returns
    -------
    nn.Module
        ``network`` itself, with the averaged weights and buffers when averaging.
    list of dict
        The rows, see `run_epochs`.

    Raises
    ------
    ConfigError
        If there is nothing to train, or the teacher is missing or has other classes.
    DataError, FitError, CheckpointError
        As in `run_epochs`.
    """
    distill = config.distill
    if distill is not None and teacher is None:
        raise ConfigError("teacher: expected a network, as distill is set, got None")
    if config.epochs == 0:
        return network, []
    launched = fabric or make_fabric()
    launched.to_device(network)
    per_epoch = num_steps(launched, loader)
    undecayed = () if regulariser is None else regulariser.undecayed
    optimizer = _make_optimizer(network, config, undecayed)
    scheduler = _make_scheduler(optimizer, config, config.epochs * per_epoch)
    averager = None if config.average is None else averaged_copy(network, config.average)
    measured = network if averager is None else averager.module

    ask = None
    if distill is not None:
        assert teacher is not None
        ask = partial(_logits, teacher)
        if distill.remember:
            ask = partial(memory_of(teacher).outputs, ask)

    def step(batch: Batch) -> dict[str, Tensor]:
        inputs, targets = batch
        logits, *auxiliary = _heads(network, inputs)
        loss = _cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
        if distill is not None and ask is not None:
            with torch.no_grad():
                guide = ask(inputs)
            imitation = distillation_loss(logits, guide, distill.temperature)
            loss = (1 - distill.weight) * loss + distill.weight * imitation
        for head in auxiliary:
            value = _cross_entropy(head, targets, label_smoothing=config.label_smoothing)
            loss = loss + AUXILIARY_WEIGHT * value
        penalty = None if regulariser is None else regulariser.penalty()
        return {"loss": loss if penalty is None else loss + penalty}

    def after_step(index: int, total: int) -> None:
        if regulariser is not None:
            rate = optimizer.param_groups[0]["lr"]
            regulariser.after_step(Step(index, total, per_epoch, rate))

    def measure(epoch: int, row: Row) -> dict[str, Any]:
        values = {} if regulariser is None else regulariser.measure()
        if validation is not None:
            quality = evaluate(measured, validation)
            values |= {"error": quality["error"], "nll": quality["nll"]}
        return values

    if teacher is not None:
        launched.to_device(teacher)
    teaching = nullcontext() if teacher is None else in_mode(teacher, training=False)
    with in_mode(network, training=True), teaching:
        history = run_epochs(
            launched,
            network,
            loader,
            step,
            optimizer,
            epochs=config.epochs,
            seed=seed,
            stage=stage,
            scheduler=scheduler,
            averager=averager,
            after_step=after_step,
            on_epoch=measure,
            settings={
                **dataclasses.asdict(config),
                **(regulariser.settings if regulariser else {}),
            },
            checkpoint=checkpoint,
            metrics=metrics,
            progress=progress,
        )
    if averager is not None:
        network.load_state_dict(averager.module.state_dict())
    return network, history


def evaluate(
    network: nn.Module, loader: Loader, device: torch.device | str | None = None
) -> dict[str, float]:
    """Measure a classifier, in eval mode and without changing it.

    Parameters
    ----------
    network : nn.Module
        Maps inputs ``(N, …)`` to logits ``(N, classes)``.
    loader : DataLoader
        Batches of inputs and integer labels ``(N,)``.
    device : torch.device or str, optional
        Where the batches go; by default to the network.

    Returns
    -------
    dict
        ``error``, the fraction that is classified wrongly; ``nll``, the mean of -log p(label) in
        nats; ``ece``, the expected calibration error of the top class over 15 equal bins of
        confidence, in ``[0, 1]`` (Guo et al., 2017); ``brier``, the mean over examples of the
        squared differences of the class probabilities from the label's 0s and 1s, summed over
        classes, in ``[0, 2]`` (Brier, 1950).

    Raises
    ------
    DataError
        If the loader is empty, or a batch is not (inputs, labels) for this network, or not finite.
    FitError
        If the network's outputs are not finite logits.
    """
    return quality(network, loader, device)[0]


def reliability(
    network: nn.Module, loader: Loader, device: torch.device | str | None = None
) -> dict[str, list[float]]:
    """Confidence and accuracy of a classifier, bin by bin: what the ``ece`` of `evaluate` sums up.

    Parameters
    ----------
    network, loader, device
        See `evaluate`.

    Returns
    -------
    dict
        ``count``, ``confidence`` (mean probability of the top class) and ``accuracy`` in each of 15
        equal bins of confidence; 0 in bins without an example.

    Raises
    ------
    DataError, FitError
        See `evaluate`.
    """
    return quality(network, loader, device)[1]


def quality(
    network: nn.Module, loader: Loader, device: torch.device | str | None = None
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """What `evaluate` and `reliability` give, from one pass over the data.

    Parameters
    ----------
    network, loader, device
        See `evaluate`.

    Returns
    -------
    metrics, bins : dict
        See `evaluate` and `reliability`.

    Raises
    ------
    DataError, FitError
        See `evaluate`.
    """
    bins, nll, brier = _Bins(), 0.0, 0.0
    with in_mode(network, training=False), torch.inference_mode():
        for index, loaded in enumerate(loader):
            inputs, targets = on_device(checked_batch(loaded, index), _device(network, device))
            logits = _logits(network, inputs)
            loss = _cross_entropy(logits, targets, reduction="sum").item()
            if not math.isfinite(loss):
                batch = inputs, targets
                _refuse_loss(network, loss, batch, index, "evaluation", trained=False)
            probabilities = logits.softmax(dim=1)
            bins.add(probabilities, targets)
            nll += loss
            of_label = probabilities.gather(1, targets.long()[:, None])
            brier += (probabilities.square().sum() + (1 - 2 * of_label).sum()).item()
    count, confidence, correct = bins.sums()
    number = count.sum().item()
    metrics = {
        "error": (number - correct.sum().item()) / number,
        "nll": nll / number,
        # A bin's share of the examples times |accuracy - confidence| is |sum of differences| / N.
        "ece": (correct - confidence).abs().sum().item() / number,
        "brier": brier / number,
    }
    return metrics, {
        "count": count.tolist(),
        "confidence": (confidence / count.clamp_min(1)).tolist(),
        "accuracy": (correct / count.clamp_min(1)).tolist(),
    }


class _Bins:
    """Examples by the confidence of their top class, in 15 equal bins."""

    def __init__(self) -> None:
        self._sums = torch.zeros(3, 15, dtype=torch.double)

    def add(self, probabilities: Tensor, targets: Tensor) -> None:
        confidence, predicted = probabilities.max(dim=1)
        confidence, correct = confidence.cpu().double(), (predicted == targets).cpu().double()
        number = self._sums.shape[1]
        bins = (confidence * number).ceil().long().clamp(1, number) - 1
        parts = torch.stack([torch.ones_like(correct), confidence, correct])
        self._sums.index_add_(1, bins, parts)

    def sums(self) -> tuple[Tensor, ...]:
        """Number, summed confidence and number of correct ones, each of shape ``(15,)``."""
        if not self._sums.any():
            raise DataError("loader: expected at least 1 batch, got 0")
        return tuple(self._sums)


def _device(network: nn.Module, device: torch.device | str | None) -> torch.device | str:
    if device is not None:
        return device
    return next((t.device for t in (*network.parameters(), *network.buffers())), "cpu")


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return the mean KL divergence of softened predictions from the teacher's, times T².

    Parameters
    ----------
    logits, teacher_logits : Tensor
        Shape ``(N, classes)``.
    temperature : float
        T, divides both logits. The factor T² keeps the gradient's size independent of it (Hinton,
        Vinyals and Dean, 2015).

    Returns
    -------
    Tensor
        A scalar, in nats.

    Raises
    ------
    ConfigError
        If the shapes differ.
    """
    if logits.shape != teacher_logits.shape:
        raise ConfigError(
            f"teacher: expected logits of shape {tuple(logits.shape)}, "
            f"got {tuple(teacher_logits.shape)}"
        )
    student = functional.log_softmax(logits / temperature, dim=1)
    teacher = functional.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * functional.kl_div(
        student, teacher, reduction="batchmean", log_target=True
    )


def parameter_groups(
    network: nn.Module, weight_decay: float, undecayed: Collection[nn.Parameter] = ()
) -> list[dict[str, Any]]:
    """Split trainable parameters by whether weight decay applies.

    Parameters
    ----------
    network : nn.Module
        Its parameters with ``requires_grad`` are taken.
    weight_decay : float
        For weights of layers; biases, norm layers and everything else of fewer than two
        dimensions get 0.
    undecayed : collection of Parameter
        More parameters that get 0.

    Returns
    -------
    list of dict
        Up to two parameter groups for a torch optimizer.

    Raises
    ------
    ConfigError
        If no parameter is trainable.
    """
    norms = {
        parameter
        for module in network.modules()
        if isinstance(module, nn.LayerNorm | nn.RMSNorm)  # theirs can have more dimensions
        for parameter in module.parameters(recurse=False)
    }
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError("network: expected parameters that require gradients, got none")
    norms |= set(undecayed)
    decayed = [p for p in trained if p.ndim > 1 and p not in norms]
    others = [p for p in trained if p.ndim <= 1 or p in norms]
    groups = [(decayed, weight_decay), (others, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def _make_optimizer(
    network: nn.Module, config: TrainConfig, undecayed: Collection[nn.Parameter]
) -> Optimizer:
    groups = parameter_groups(network, config.weight_decay, undecayed)
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(groups, lr=config.learning_rate)
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.learning_rate)
        case "sgd":
            return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, nesterov=True)


def _make_scheduler(optimizer: Optimizer, config: TrainConfig, steps: int) -> LRScheduler:
    if config.schedule == "onecycle":
        return OneCycleLR(optimizer, max_lr=config.learning_rate, total_steps=steps)
    rise = round(config.warmup * steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        if config.schedule == "constant":
            return 1.0
        return (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1))) / 2

    return LambdaLR(optimizer, factor)


def _logits(network: nn.Module, inputs: Inputs) -> Tensor:
    return _checked_logits(network, inputs, _output(network, inputs))


def _heads(network: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The logits, and those of auxiliary heads in a named tuple of ``logits`` and ``aux…``."""
    output = _output(network, inputs)
    first, *others = getattr(output, "_fields", ("",))
    if first != "logits" or not all(name.startswith("aux") for name in others):
        return [_checked_logits(network, inputs, output)]
    return [_checked_logits(network, inputs, logits) for logits in output if logits is not None]


def _output(network: nn.Module, inputs: Inputs) -> Any:
    arguments = as_arguments(inputs)
    try:
        return network(*arguments)
    except (torch.OutOfMemoryError, BayespruneError):
        raise
    except Exception as error:
        got = ", ".join(f"{given.dtype} of shape {tuple(given.shape)}" for given in arguments)
        raise DataError(
            f"loader: expected inputs that {type(network).__name__} can be applied to, got "
            f"{got}: {type(error).__name__}: {error}"
        ) from error


def _checked_logits(network: nn.Module, inputs: Inputs, logits: Any) -> Tensor:
    rows = len(as_arguments(inputs)[0])
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != rows:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise FitError(
            f"{type(network).__name__}: expected logits of shape ({rows}, classes), got {got}"
        )
    return logits


def _cross_entropy(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    if targets.ndim != 1 or targets.is_floating_point() or targets.is_complex():
        raise DataError(
            "loader: expected targets of integer labels of shape (N,), "
            f"got {targets.dtype} of shape {tuple(targets.shape)}"
        )
    try:
        return functional.cross_entropy(logits, targets.long(), **options)
    except IndexError as error:
        raise DataError(
            f"loader: expected labels from 0 to {logits.shape[1] - 1}, the network's classes, "
            f"got labels from {targets.min()} to {targets.max()}"
        ) from error
