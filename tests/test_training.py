import csv
import math
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics import CalibrationError

from bayesprune import training
from bayesprune.checkpoint import load_state, save_state
from bayesprune.errors import CheckpointError, ConfigError, DataError, FitError
from bayesprune.training import (
    Distillation,
    FabricConfig,
    MetricsWriter,
    TrainConfig,
    averaged_copy,
    distillation_loss,
    evaluate,
    make_fabric,
    num_steps,
    parameter_groups,
    quality,
    reliability,
    run_epochs,
    train_network,
)

STEPS = 5  # per epoch of the toy data
CONFIGS = [
    TrainConfig(epochs=3, learning_rate=0.02, schedule="onecycle", average=0.9, weight_decay=0.01),
    TrainConfig(epochs=3, learning_rate=0.05, optimizer="sgd", warmup=0.2, label_smoothing=0.1),
    TrainConfig(
        epochs=3, optimizer="adamw", schedule="constant", average=0.5, distill=Distillation()
    ),
]


class Stop(BaseException):
    """Stands for whatever ends a process."""


class NoisyData(TensorDataset):
    """Three classes; augmented with each of the generators that have to be seeded."""

    def __init__(self):
        draw = torch.Generator().manual_seed(1)
        labels = torch.randint(3, (38,), generator=draw)
        super().__init__(torch.randn(38, 4, generator=draw) + labels[:, None], labels)

    def __getitem__(self, index):
        inputs, label = super().__getitem__(index)
        noise = torch.randn(4) + np.random.rand() + random.random()
        return inputs + 0.1 * noise, label


def toy_network(seed=0, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, classes)
    )


def toy_loader(**options):
    return DataLoader(NoisyData(), batch_size=8, shuffle=True, **options)


def toy_batches():
    return [tuple(NoisyData().tensors)]


@pytest.fixture(scope="module")
def fabric():
    return make_fabric(FabricConfig(accelerator="cpu"))


def train(fabric, config, checkpoint=None, stop_at=None, stop=None, **options):
    """Train the toy network; at its forward pass number ``stop_at``, call ``stop``."""
    network = toy_network()
    calls = iter(range(10**6))

    def count(layer, _):
        if layer.training and next(calls) == stop_at:
            stop()

    network[0].register_forward_pre_hook(count)
    return train_network(
        network,
        toy_loader(**options),
        config,
        fabric=fabric,
        seed=7,
        stage="toy",
        teacher=toy_network(1),
        validation=toy_batches(),
        checkpoint=checkpoint,
        progress=False,
    )


def assert_same(one, other):
    for (name, a), b in zip(
        one[0].state_dict().items(), other[0].state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert one[1] == other[1]


def raise_stop():
    raise Stop


# ---------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.schedule)
@pytest.mark.parametrize("stop_at", [0, 2, STEPS, STEPS + 3, 3 * STEPS - 1])
def test_resumed_training_is_bit_identical(fabric, tmp_path, config, stop_at):
    path = tmp_path / "state"
    with pytest.raises(Stop):
        train(fabric, config, path, stop_at, raise_stop)
    assert path.exists() == (stop_at >= STEPS)
    torch.manual_seed(99)
    random.seed(99)
    assert_same(train(fabric, config, path), train(fabric, config))
    # Once more: it is finished, and gives the same without a step.
    assert_same(train(fabric, config, path, 0, raise_stop), train(fabric, config))


def test_resume_with_a_generator_of_the_loaders_own(fabric, tmp_path):
    def options():
        return {"generator": torch.Generator().manual_seed(3)}

    with pytest.raises(Stop):
        train(fabric, CONFIGS[0], tmp_path / "state", STEPS + 1, raise_stop, **options())
    resumed = train(fabric, CONFIGS[0], tmp_path / "state", **options())
    assert_same(resumed, train(fabric, CONFIGS[0], **options()))


def test_stopped_between_the_epoch_and_its_checkpoint(fabric, tmp_path, monkeypatch):
    saves = iter(range(100))

    def save(*args):
        if next(saves) == 1:
            raise Stop
        save_state(*args)

    monkeypatch.setattr(training, "save_state", save)
    with pytest.raises(Stop):
        train(fabric, CONFIGS[0], tmp_path / "state")
    assert len(load_state(tmp_path / "state")["history"]) == 1
    assert_same(train(fabric, CONFIGS[0], tmp_path / "state"), train(fabric, CONFIGS[0]))


def test_resume_after_sigkill(fabric, two_ranks):
    assert two_ranks.codes == [-signal.SIGKILL, 0]
    assert len(load_state(two_ranks.folder / "killed")["history"]) == 1
    resumed = train(fabric, CONFIGS[0], two_ranks.folder / "killed")
    assert_same(resumed, train(fabric, CONFIGS[0]))


def test_checkpoints_of_other_runs_are_refused(fabric, tmp_path):
    path = tmp_path / "state"

    def fit(network=None, loader=None, make=torch.optim.SGD, groups=False, **options):
        network = network or nn.Linear(4, 3)
        parameters = list(network.parameters())
        return run_epochs(
            fabric,
            network,
            loader or toy_loader(),
            lambda batch: {"loss": network(batch[0]).square().mean()},
            make([{"params": [p]} for p in parameters] if groups else parameters, lr=0.1),
            checkpoint=path,
            progress=False,
            **{"epochs": 2, "seed": 0, "stage": "fit", **options},
        )

    fit()
    before = path.read_bytes()
    for options, message in [
        ({"epochs": 3}, "epochs = 3, got 2"),
        ({"seed": 1}, "seed = 1, got 0"),
        ({"stage": "tune"}, "stage = 'tune', got 'fit'"),
        ({"settings": {"strength": 0.1}}, "strength = 0.1, got None"),
        ({"loader": toy_batches()}, "steps per epoch = 1, got 5"),
        ({"make": torch.optim.Adam}, "optimizer = 'Adam', got 'SGD'"),
        ({"groups": True}, "state of this run's optimizer"),
        ({"network": nn.Linear(4, 5)}, r"expected torch.float32 of shape \(5, 4\) for 'weight'"),
        ({"network": nn.Linear(4, 3, bias=False)}, "expected nothing for 'bias'"),
        ({"network": nn.Sequential(nn.Linear(4, 3))}, "for '0.weight', got nothing"),
    ]:
        with pytest.raises(CheckpointError, match=message) as caught:
            fit(**options)
        assert str(path) in str(caught.value)
    save_state(path, {"something": "else"})
    with pytest.raises(CheckpointError, match="expected a training checkpoint"):
        fit()
    path.write_bytes(before[:-10])
    with pytest.raises(CheckpointError, match="truncated"):
        fit()


def test_nothing_is_written_without_a_checkpoint(fabric, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(fabric, CONFIGS[0])
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------- the loop


def fit_linear(fabric, loader, step=None, **options):
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    step = step or (lambda batch: {"loss": network(batch[0]).square().mean()})
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    options = {"epochs": 2, "seed": 0, "stage": "fit", "progress": False, **options}
    return network, run_epochs(fabric, network, loader, step, optimizer, **options)


def test_rows_are_means_over_examples(fabric):
    def step(batch):
        size = torch.tensor(float(len(batch[0])), requires_grad=True)
        return {"loss": size, "sum": batch[0].sum(dtype=torch.float64) / size.detach()}

    inputs = torch.arange(20.0).reshape(5, 4)
    loader = DataLoader(TensorDataset(inputs, torch.zeros(5)), batch_size=3)
    _, history = fit_linear(fabric, loader, step, on_epoch=lambda epoch, row: {"double": 2 * epoch})
    assert history == [
        {"stage": "fit", "epoch": e, "loss": (3 * 3 + 2 * 2) / 5, "sum": 38.0, "double": 2 * e}
        for e in (1, 2)
    ]


def test_batches_of_several_inputs_count_their_examples(fabric):
    def step(batch):
        return {"loss": torch.tensor(float(len(batch[1])), requires_grad=True)}

    x = torch.zeros(3, 4)
    loader = [((x, x), torch.zeros(3)), ((x[:2], x[:2]), torch.zeros(2))]
    _, history = fit_linear(fabric, loader, step)
    assert [row["loss"] for row in history] == [(3 * 3 + 2 * 2) / 5] * 2


def test_callbacks_and_annealing(fabric):
    seen = []
    fit_linear(fabric, toy_loader(), before_step=lambda step, total: seen.append((step, total)))
    assert seen == [(step, 2 * STEPS) for step in range(2 * STEPS)]


def test_epochs_differ_and_stages_and_seeds_too(fabric):
    def draws(**options):
        found = []
        fit_linear(
            fabric,
            toy_loader(),
            before_step=lambda *_: found.append(torch.rand(()).item()),
            **options,
        )
        return found

    first = draws()
    assert first == draws()
    assert len({*first, *draws(seed=1), *draws(stage="other")}) == 3 * len(first)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], r"at least 1 batch\(es\), got 0"),
        (iter([1]), "a length in batches, got a list_iterator"),
        ([torch.zeros(3, 4)], r"got Tensor of shape \(3, 4\) in batch 0"),
        ([{"x": torch.zeros(3, 4)}], "got dict in batch 0"),
        ([(torch.zeros(3, 4), [0, 1, 2])], r"got tuple \(Tensor of shape \(3, 4\), list\)"),
        ([(torch.zeros(3, 4), torch.zeros(2))], r"Tensor of shape \(2,\)\) in batch 0"),
        ([(torch.zeros(0, 4), torch.zeros(0))], "at least 1; got"),
        ([(torch.zeros(3, 4),) * 3], "got tuple"),
    ],
)
def test_bad_loaders(fabric, loader, message):
    with pytest.raises(DataError, match=message):
        fit_linear(fabric, loader)
    with pytest.raises(DataError):
        evaluate(nn.Linear(4, 3), loader)


def test_a_loader_that_stops_early(fabric):
    class Short(IterableDataset):
        def __len__(self):
            return 32

        def __iter__(self):
            yield from NoisyData()

    class Shorter(list):
        def __len__(self):
            return 3

    fit_linear(fabric, DataLoader(Short(), batch_size=8))  # longer than it says: cut there
    with pytest.raises(DataError, match=r"expected len\(loader\) = 3 batches, got 1"):
        fit_linear(fabric, Shorter(toy_batches()))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite(fabric, tmp_path, value):
    network = nn.Linear(4, 3)
    kept = {}

    def step(batch):
        loss = network(batch[0]).square().mean()
        calls = len(kept)
        kept[calls] = network.weight.detach().clone()
        return {"loss": loss * value if calls == STEPS + 2 else loss}

    with pytest.raises(FitError, match="fit, epoch 2, step 3 of 5: .*lower learning rate"):
        run_epochs(
            fabric,
            network,
            toy_loader(),
            step,
            torch.optim.SGD(network.parameters(), lr=0.1),
            epochs=3,
            seed=0,
            stage="fit",
            checkpoint=tmp_path / "state",
            progress=False,
        )
    assert torch.equal(network.weight, kept[STEPS + 2])
    assert len(load_state(tmp_path / "state")["history"]) == 1


def test_data_that_are_not_finite(fabric):
    batches = [(torch.zeros(3, 4), torch.zeros(3, dtype=torch.long)) for _ in range(3)]
    batches[2][0][1, 2] = math.nan
    with pytest.raises(DataError, match=r"got NaN or inf in batch 2 \(fit, epoch 1, step 3 of 3\)"):
        fit_linear(fabric, batches)
    with pytest.raises(DataError, match="got NaN or inf in batch 2"):
        evaluate(nn.Linear(4, 3), batches)


def test_data_that_are_not_finite_leave_no_trace_in_running_statistics():
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    batches = [(torch.rand(3, 4), torch.zeros(3, dtype=torch.long)) for _ in range(2)]
    batches[1][0][1, 2] = math.nan
    with pytest.raises(DataError, match="batch 1"):
        train_network(network, batches, TrainConfig(epochs=1), progress=False)
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())


def test_a_network_that_is_not_finite_is_named_without_advice():
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    batches = [(torch.rand(3, 4), torch.zeros(3, dtype=torch.long))]
    network[1].running_mean[1] = math.nan
    with pytest.raises(FitError, match=r"finite parameters, got NaN or inf in 1\.running_mean$"):
        evaluate(network, batches)
    with torch.no_grad():
        network[0].weight[0, 0] = math.nan
    with pytest.raises(FitError, match=r"step 1 of 1: .* in 0\.weight$"):
        train_network(network, batches, TrainConfig(epochs=1), progress=False)
    with torch.no_grad():
        network[0].weight.fill_(3e38)
        network[1].running_mean.zero_()
    with pytest.raises(FitError, match="it overflows"):
        evaluate(network, batches)


def test_parameters_that_are_not_finite_are_not_saved(fabric, tmp_path):
    def step(batch):
        return {"loss": network.weight.square().sum().sqrt()}  # its gradient at 0 is NaN

    network = nn.Linear(4, 3)
    nn.init.zeros_(network.weight)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with pytest.raises(FitError, match=r"fit, epoch 1: expected finite parameters, .* in weight"):
        run_epochs(
            fabric,
            network,
            toy_batches(),
            step,
            optimizer,
            epochs=1,
            seed=0,
            stage="fit",
            checkpoint=tmp_path / "state",
        )
    assert not (tmp_path / "state").exists()


def test_moving_average(fabric):
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    averager = averaged_copy(network, 0.6)
    expected, seen = None, []

    def step(batch):
        if seen or network[1].num_batches_tracked:
            seen.append(network[0].weight.detach().clone())
        return {"loss": network(batch[0]).square().mean() + network[0].weight.sum()}

    run_epochs(
        fabric,
        network,
        toy_loader(),
        step,
        torch.optim.SGD(network.parameters(), lr=0.1),
        epochs=2,
        seed=0,
        stage="fit",
        averager=averager,
        progress=False,
    )
    for t, weight in enumerate([*seen, network[0].weight.detach()]):
        decay = min(0.6, (1 + t) / (10 + t))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    assert torch.allclose(averager.module[0].weight, expected, atol=1e-6)
    assert averager.module[1].num_batches_tracked == 2 * STEPS
    assert not torch.equal(averager.module[1].running_mean, network[1].running_mean)


def test_averaged_weights_and_buffers_are_the_result(fabric, monkeypatch):
    made = []

    def keep(*args):
        made.append(averaged_copy(*args))
        return made[-1]

    monkeypatch.setattr(training, "averaged_copy", keep)
    network, history = train(fabric, CONFIGS[0])
    for name, value in made[0].module.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    measured = evaluate(network, toy_batches())
    assert {name: history[-1][name] for name in ("error", "nll")} == {
        name: measured[name] for name in ("error", "nll")
    }


# ------------------------------------------------------------------------------- many ranks


class TwoRanks(NamedTuple):
    folder: Path
    codes: list[int]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Run `be_a_rank` in two processes, as torchrun would start them."""
    folder = tmp_path_factory.mktemp("ranks")
    script = folder / "script.py"
    paths = [str(Path(__file__).parent), *sys.path]
    script.write_text(
        f"import sys\nsys.path[:0] = {paths!r}\n"
        f"import test_training\ntest_training.be_a_rank({str(folder)!r})\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    sizes = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    processes = [
        subprocess.Popen(
            [sys.executable, script],
            env={**os.environ, **shared, **sizes, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    return TwoRanks(folder, [process.wait(timeout=300) for process in processes])


def be_a_rank(folder):
    """Train on two ranks; then rank 0 trains on its own and is killed in its second epoch."""

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    fabric = make_fabric(FabricConfig(accelerator="cpu", devices=2, strategy="ddp"))
    network, history = train_wide(fabric, batch_size=4, checkpoint=f"{folder}/state")
    own = {"weights": dict(network.state_dict()), "noise": torch.rand(3), "history": history}
    save_state(f"{folder}/rank{fabric.global_rank}", own)
    if fabric.global_rank == 0:
        alone = make_fabric(FabricConfig(accelerator="cpu"))
        train(alone, CONFIGS[0], f"{folder}/killed", STEPS + 2, kill)


def train_wide(fabric, batch_size, checkpoint=None):
    data = TensorDataset(*NoisyData().tensors)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    generator = torch.Generator().manual_seed(fabric.global_rank)  # the ranks start differently
    for parameter in network.parameters():
        nn.init.normal_(parameter, generator=generator)
    return train_network(
        network,
        DataLoader(data, batch_size=batch_size, shuffle=True, drop_last=True),
        TrainConfig(epochs=2, learning_rate=0.1, optimizer="sgd"),
        fabric=fabric,
        seed=0,
        stage="wide",
        checkpoint=checkpoint,
        progress=False,
    )


def test_two_ranks_equal_one_with_twice_the_batch(fabric, two_ranks):
    first, second = (load_state(two_ranks.folder / f"rank{rank}") for rank in (0, 1))
    network, history = train_wide(fabric, batch_size=8)
    assert not torch.equal(first["noise"], second["noise"])
    assert first["history"] == second["history"]
    for name, value in network.state_dict().items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        assert torch.allclose(first["weights"][name], value, atol=1e-5), name
    losses = [row["loss"] for row in history]
    assert [row["loss"] for row in first["history"]] == pytest.approx(losses, rel=1e-4)
    assert len(load_state(two_ranks.folder / "state")["history"]) == 2


def test_fabric_that_cannot_be_had():
    for config in [
        FabricConfig(accelerator="abacus"),
        FabricConfig(devices=0),
        FabricConfig(strategy="none"),
        FabricConfig(accelerator="cpu", devices=2, strategy="ddp_spawn"),
    ]:
        with pytest.raises(ConfigError, match="fabric: expected a usable set-up, got FabricConfig"):
            make_fabric(config)


# -------------------------------------------------------------------------------- reporting


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_of_all_stages_in_one_file(fabric, tmp_path):
    path = tmp_path / "metrics.csv"
    row = {"stage": "before", "epoch": 1, "loss": 0.1, "seconds": 1.0, "elbo": 2.5}
    MetricsWriter(path).write("before", [row])
    options = {"checkpoint": tmp_path / "state", "epochs": 3}

    def stop(epoch, row):
        if epoch == 3 and not stopped:
            stopped.append(True)
            raise Stop
        return {"error": 1 / epoch}

    stopped = []
    with pytest.raises(Stop):
        fit_linear(fabric, toy_loader(), metrics=MetricsWriter(path), on_epoch=stop, **options)
    assert [row["epoch"] for row in read(path)] == ["1", "1", "2"]
    # As if killed between the CSV file and the checkpoint: the row of epoch 3 is there already.
    writer = MetricsWriter(path)
    lost = {"stage": "fit", "loss": -1.0, "seconds": 1.0}
    writer.write("fit", [{**lost, "epoch": epoch} for epoch in (1, 2, 3)])
    _, history = fit_linear(
        fabric, toy_loader(), metrics=MetricsWriter(path), on_epoch=stop, **options
    )
    before, *rows = read(path)
    assert list(before) == ["stage", "epoch", "loss", "seconds", "elbo", "error"]
    assert (before["stage"], before["elbo"], before["error"]) == ("before", "2.5", "")
    assert [float(row.pop("seconds")) > 0 for row in rows] == [True] * 3
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in history]
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    # A finished stage restores its rows when they were lost.
    path.unlink()
    fit_linear(fabric, toy_loader(), metrics=MetricsWriter(path), on_epoch=stop, **options)
    assert len(read(path)) == 3


def test_foreign_metrics_are_not_written_over(tmp_path):
    path = tmp_path / "metrics.csv"
    header = b"stage,epoch,loss,seconds\n"
    for content in [
        b"a,b\n1,2\n",
        b"",
        b"\xff\xfe",
        header + b"fit,1,x,2\n",
        header + b"fit,1",
        header + b",1,2,3\n",
    ]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="metrics.csv: expected the metrics of a run"):
            MetricsWriter(path)
        assert path.read_bytes() == content


def test_progress_lines(fabric, tmp_path, capsys):
    options = {"epochs": 2, "checkpoint": tmp_path / "state", "progress": True}
    fit_linear(fabric, toy_loader(), **options)
    output = capsys.readouterr()
    assert output.out == ""
    first, second = output.err.splitlines()
    assert first.startswith("fit 1/2: loss ")
    assert second.startswith("fit 2/2: loss ")
    fit_linear(fabric, toy_loader(), **options)
    assert capsys.readouterr().err == "fit: 2 of 2 epochs were done before\n"
    fit_linear(fabric, toy_loader(), progress=False)
    assert capsys.readouterr().err == ""


def test_progress_bar(fabric, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    fit_linear(fabric, toy_loader(), progress=True)
    text = capsys.readouterr().err
    assert "fit" in text
    assert f"{2 * STEPS}/{2 * STEPS}" in text


# --------------------------------------------------------------------------- classification


def test_training_learns(fabric):
    config = TrainConfig(epochs=15, learning_rate=0.05)
    network, history = train(fabric, config)
    assert network.training
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert history[-1]["error"] < 0.3
    assert list(history[0]) == ["stage", "epoch", "loss", "error", "nll"]


def test_zero_epochs_leave_the_network_alone(fabric):
    network, history = train(fabric, TrainConfig(epochs=0))
    assert history == []
    assert all(map(torch.equal, network.state_dict().values(), toy_network().state_dict().values()))


def test_modes_are_restored(fabric):
    network, teacher = toy_network(), toy_network(1)
    network[1].eval()
    config = TrainConfig(epochs=1, distill=Distillation())
    train_network(
        network, toy_loader(), config, fabric=fabric, seed=0, stage="toy", teacher=teacher
    )
    evaluate(network, toy_batches())
    assert [network.training, network[1].training, network[3].training] == [True, False, True]
    assert teacher[3].training
    assert teacher[1].num_batches_tracked == 0


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("constant", 0.4, [0.5, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", 0.0, [(1 + math.cos(math.pi * i / 5)) / 2 for i in range(5)]),
        ("cosine", 0.4, [0.5, 1.0, 1.0, 0.75, 0.25]),
        ("onecycle", 0.0, [0.04, 0.5968, 0.9665, 0.5, 0.0]),
    ],
)
def test_schedules(fabric, monkeypatch, optimizer, schedule, warmup, expected):
    rates = []

    def spy(*args, **options):
        def note(*_):
            rates.append(args[4].param_groups[0]["lr"])

        return run_epochs(*args, **options, before_step=note)

    monkeypatch.setattr(training, "run_epochs", spy)
    config = TrainConfig(1, 0.1, optimizer, schedule=schedule, warmup=warmup)
    train(fabric, config)
    if schedule == "onecycle":
        assert rates[0] < max(rates) == pytest.approx(0.1, rel=0.05)
        assert rates[-1] < 1e-4
    else:
        assert rates == pytest.approx([0.1 * factor for factor in expected])


def test_weight_decay_spares_biases_and_norms():
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.LayerNorm((2, 4, 4)),
        nn.Flatten(),
        nn.Linear(32, 3),
    )
    network[4].bias.requires_grad_(False)
    decayed, others = parameter_groups(network, 0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert list(map(id, decayed["params"])) == [id(network[0].weight), id(network[4].weight)]
    assert len(others["params"]) == 5
    with pytest.raises(ConfigError, match="expected parameters that require gradients"):
        parameter_groups(network.requires_grad_(False), 0.1)


def test_distillation_loss_by_hand():
    student, teacher, temperature = torch.randn(5, 3), torch.randn(5, 3), 3.0
    expected = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(v / temperature) for v in t]
        q = [math.exp(v / temperature) for v in s]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 5
    got = distillation_loss(student, teacher, temperature)
    assert got.item() == pytest.approx(temperature**2 * expected, rel=1e-5)
    with pytest.raises(ConfigError, match=r"teacher: expected logits of shape \(5, 3\)"):
        distillation_loss(student, torch.randn(5, 4), 1.0)


def test_distillation_in_training(fabric):
    inputs, labels = toy_batches()[0]
    student, teacher = nn.Linear(4, 3), toy_network(1)
    with torch.no_grad():
        cross_entropy = nn.functional.cross_entropy(student(inputs), labels)
        imitation = distillation_loss(student(inputs), toy_network(1).eval()(inputs), 2.0)
    config = TrainConfig(epochs=1, distill=Distillation(weight=0.3, temperature=2.0))
    options = {"fabric": fabric, "seed": 0, "stage": "toy", "progress": False}
    _, history = train_network(student, toy_batches(), config, teacher=teacher, **options)
    expected = 0.7 * cross_entropy + 0.3 * imitation
    assert history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    with pytest.raises(ConfigError, match="teacher: expected a network"):
        train_network(student, toy_batches(), config, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs: expected an integer of at least 0, got -1"),
        ({"epochs": 1.5}, "epochs: .*got 1.5"),
        ({"learning_rate": 0}, "learning_rate: expected a finite number above 0, got 0"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"learning_rate": math.inf}, "learning_rate"),
        ({"learning_rate": "0.1"}, "learning_rate: .*got '0.1'"),
        ({"optimizer": "lion"}, "optimizer: expected one of adam, adamw, sgd, got 'lion'"),
        ({"schedule": "step"}, "schedule: expected one of cosine, constant, onecycle"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"warmup": 1.0}, r"warmup: expected a number in \[0, 1\)"),
        ({"schedule": "onecycle", "warmup": 0.1}, "warmup: expected 0 with schedule onecycle"),
        ({"average": 1.0}, "average"),
        ({"label_smoothing": 1}, "label_smoothing"),
        ({"distill": {"weight": 0.5}}, "distill: expected None or a Distillation"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options)


def test_bad_distillation():
    with pytest.raises(ConfigError, match=r"distill.weight: expected a number in \[0, 1\], got 2"):
        Distillation(weight=2)
    with pytest.raises(ConfigError, match="distill.temperature: expected a finite number above 0"):
        Distillation(temperature=0)


def test_evaluate_by_hand():
    # Two classes with confidences 0.9, 0.81, 0.81, 0.63 and 0.55; of the 15 bins, one has both 0.81
    # (one right, one wrong) and the others are alone.
    first = torch.tensor([0.9, 0.81, 0.19, 0.63, 0.45], dtype=torch.double)
    labels = torch.tensor([0, 1, 1, 1, 1])
    logits = torch.stack([first, 1 - first], dim=1).log()
    got = evaluate(nn.Identity(), [(logits[:2], labels[:2]), (logits[2:], labels[2:])])
    likelihoods = [0.9, 0.19, 0.81, 0.37, 0.55]
    assert got["error"] == 2 / 5
    assert got["nll"] == pytest.approx(-sum(map(math.log, likelihoods)) / 5)
    gaps = [1 - 0.9, 2 * 0.81 - 1, 0.63, 1 - 0.55]
    assert got["ece"] == pytest.approx(sum(gaps) / 5)
    assert got["brier"] == pytest.approx(sum(2 * (1 - p) ** 2 for p in likelihoods) / 5)


def test_calibration_error_agrees_with_torchmetrics():
    torch.manual_seed(0)
    logits, labels = 2 * torch.randn(500, 10), torch.randint(10, (500,))
    measure = CalibrationError(task="multiclass", num_classes=10, n_bins=15)
    reference = measure(logits.softmax(1), labels)
    batches = list(zip(logits.split(64), labels.split(64), strict=True))
    assert evaluate(nn.Identity(), batches)["ece"] == pytest.approx(reference.item(), abs=1e-6)
    bins = {name: np.array(values) for name, values in reliability(nn.Identity(), batches).items()}
    gaps = bins["count"] * np.abs(bins["accuracy"] - bins["confidence"])
    assert gaps.sum() / bins["count"].sum() == pytest.approx(reference.item(), abs=1e-6)


def test_metrics_and_bins_come_from_one_pass():
    torch.manual_seed(0)
    batches = [(torch.randn(8, 3), torch.randint(3, (8,))) for _ in range(2)]
    expected = evaluate(nn.Identity(), batches), reliability(nn.Identity(), batches)
    assert quality(nn.Identity(), iter(batches)) == expected


INPUTS, LABELS = torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    ("network", "batch", "error", "message"),
    [
        (nn.Linear(5, 3), (INPUTS, LABELS), DataError, r"Linear can be applied .* \(2, 4\)"),
        (nn.Linear(4, 3), (INPUTS, LABELS.float()), DataError, "integer labels .*float32"),
        (nn.Linear(4, 3), (INPUTS, LABELS[:, None]), DataError, r"shape \(2, 1\)"),
        (nn.Linear(4, 3), (INPUTS, LABELS + 3), DataError, "labels from 0 to 2, .* 3 to 3"),
        (nn.Unflatten(1, (2, 2)), (INPUTS, LABELS), FitError, r"classes\), got \(2, 2, 2\)"),
        (nn.LSTM(4, 3), (INPUTS, LABELS), FitError, "LSTM: .* got tuple"),
    ],
)
def test_batches_that_do_not_fit_the_network(fabric, network, batch, error, message):
    with pytest.raises(error, match=message):
        evaluate(network, [batch])
    if any(True for _ in network.parameters()):
        with pytest.raises(error, match=message):
            train_network(
                network, [batch], TrainConfig(epochs=1), fabric=fabric, seed=0, stage="toy"
            )


def test_outputs_that_are_not_finite():
    network = nn.Linear(4, 3)
    nn.init.constant_(network.weight, math.nan)
    with pytest.raises(FitError, match="evaluation: expected finite parameters, .* in weight"):
        evaluate(network, toy_batches())


def test_number_of_steps(fabric):
    assert num_steps(fabric, toy_loader()) == STEPS


def test_threads_are_set_and_checked(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    make_fabric(FabricConfig(accelerator="cpu"))
    make_fabric(FabricConfig(accelerator="cpu", threads=1))
    assert asked == [1]
    with pytest.raises(ConfigError, match=r"fabric\.threads: expected an integer .* got 0"):
        make_fabric(FabricConfig(threads=0))


class Auxiliary(nn.Module):
    """Puts out auxiliary logits in training mode, as torchvision's GoogLeNet does."""

    class Output(NamedTuple):
        logits: torch.Tensor
        aux_logits2: torch.Tensor | None
        aux_logits1: torch.Tensor | None

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.one, self.two = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        x = self.body(x).relu()
        if not self.training:
            return self.head(x)
        return self.Output(self.head(x), self.two(x), self.one(x))


def test_auxiliary_heads_are_trained_with_a_weight_of_three_tenths():
    network = Auxiliary()
    inputs, labels = torch.randn(9, 4), torch.randint(3, (9,))
    loss = sum(
        weight * nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        for weight, logits in zip((1, 0.3, 0.3), network(inputs), strict=True)
    )
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    config = TrainConfig(
        epochs=1, optimizer="sgd", learning_rate=1e-3, schedule="constant", label_smoothing=0.1
    )
    loader = DataLoader(TensorDataset(inputs, labels), 9)
    _, rows = train_network(network, loader, config, progress=False)
    assert rows[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for old, new, gradient in zip(before, network.parameters(), gradients, strict=True):
        # The first step with Nesterov momentum 0.9 goes 1.9 times the gradient.
        torch.testing.assert_close(new.detach(), old - 1.9e-3 * gradient, rtol=1e-4, atol=1e-7)
    assert set(evaluate(network, loader)) == {"error", "nll", "ece", "brier"}


def test_other_tuples_are_no_logits():
    class Pair(Auxiliary):
        def forward(self, x):
            return tuple(super().forward(x))

    loader = DataLoader(TensorDataset(torch.randn(9, 4), torch.randint(3, (9,))), 9)
    with pytest.raises(FitError, match=r"Pair: expected logits of shape \(9, classes\), got tuple"):
        train_network(Pair(), loader, TrainConfig(epochs=1), progress=False)
