import math
import os
import random

import pytest
import torch
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bayesprune.checkpoint import load_state, save_state, write_text_atomic
from bayesprune.errors import CheckpointError

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def random_tree(rng, depth):
    if depth == 0 or rng.random() < 0.2:
        shape = [rng.choice([0, 1, 2, 3]) for _ in range(rng.choice([0, 1, 2, 3]))]
        return rng.choice(
            [
                None,
                True,
                rng.randrange(-(10**20), 10**20),
                rng.uniform(-1, 1),
                rng.choice([math.inf, -math.inf, -0.0, 5e-324]),
                rng.choice(["", "naïve", '"{', "1"]),
                (torch.randn(shape) * 3).to(rng.choice(DTYPES)),
            ]
        )
    children = [random_tree(rng, depth - 1) for _ in range(rng.randrange(4))]
    keys = rng.sample(["a", "b", "tensor", "dict", "1", 0, 1, -2], len(children))
    return rng.choice([children, tuple(children), dict(zip(keys, children, strict=True))])


def assert_same(got, expected):
    assert type(got) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        assert torch.equal(got, expected)
    elif isinstance(expected, dict):
        assert list(got) == list(expected)
        for key in expected:
            assert_same(got[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other)
    else:
        assert repr(got) == repr(expected)  # tells -0.0 from 0.0


@pytest.mark.parametrize("seed", range(40))
def test_random_trees_come_back(tmp_path, seed):
    torch.manual_seed(seed)
    tree = {"top": random_tree(random.Random(seed), 5)}
    save_state(tmp_path / "state", tree)
    assert_same(load_state(tmp_path / "state"), tree)


def test_nan_comes_back(tmp_path):
    save_state(tmp_path / "state", {"a": math.nan, "b": torch.tensor(math.nan)})
    tree = load_state(tmp_path / "state")
    assert math.isnan(tree["a"])
    assert tree["b"].isnan()


def test_shared_and_strided_tensors_come_back(tmp_path):
    base = torch.arange(24.0).reshape(2, 3, 4)
    tree = {
        "same": [base, base],
        "part": base[:, 1],
        "transposed": base.permute(2, 0, 1),
        "expanded": torch.ones(1).expand(5),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "gradient": torch.ones(2, requires_grad=True) * 2,
    }
    save_state(tmp_path / "state", tree)
    got = load_state(tmp_path / "state")
    assert_same(got, {**tree, "gradient": tree["gradient"].detach()})
    got["same"][0].zero_()
    assert torch.equal(got["same"][1], base)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adam([{"params": [x], "lr": 0.1 * i} for i, x in enumerate(p, 1)]),
    ],
)
@pytest.mark.parametrize(
    "make_scheduler",
    [
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [
                torch.optim.lr_scheduler.LinearLR(o),
                torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
            ],
            milestones=[2],
        ),
    ],
)
def test_training_state_comes_back(tmp_path, make_optimizer, make_scheduler):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    averager = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = make_optimizer(list(network.parameters()))
    scheduler = make_scheduler(optimizer)
    for _ in range(3):
        network(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        scheduler.step()
        averager.update_parameters(network)
    parts = [network, averager, optimizer, scheduler]
    tree = [part.state_dict() for part in parts]
    save_state(tmp_path / "state", tree)
    loaded = load_state(tmp_path / "state")
    assert_same(loaded, [dict(state) for state in tree])
    for part, state in zip(parts, loaded, strict=True):
        part.load_state_dict(state)


@pytest.mark.parametrize(
    ("tree", "place"),
    [
        ({"scheduler": {"anneal": math.cos}}, r"tree\['scheduler'\]\['anneal'\].*builtin_function"),
        ([1, {2.5: 0}], r"tree\[1\]: expected str or int keys, got 2.5"),
        ({True: 0}, "got True"),
        ({"a": (torch.eye(2).to_sparse(),)}, r"tree\['a'\]\[0\].*sparse"),
        ({"a": torch.zeros(2, device="meta")}, "meta"),
        ({"a": torch.zeros(2, dtype=torch.complex128)}, "complex128"),
        ({1, 2}, "got set"),
    ],
)
def test_what_cannot_be_stored_is_named_and_nothing_is_written(tmp_path, tree, place):
    save_state(tmp_path / "state", "old")
    with pytest.raises(CheckpointError, match=place):
        save_state(tmp_path / "state", tree)
    assert load_state(tmp_path / "state") == "old"


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.999])
def test_truncated_file(tmp_path, share):
    path = tmp_path / "state"
    save_state(path, {"a": torch.randn(300), "b": [1.5]})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="state: expected a complete state file.*truncated"):
        load_state(path)


def test_foreign_and_missing_files(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: expected a state file.*no such file"):
        load_state(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="not a file"):
        load_state(tmp_path)
    text = tmp_path / "text"
    text.write_text("hello " * 100)
    with pytest.raises(CheckpointError, match="text: .*foreign one of 600 bytes"):
        load_state(text)
    weights = tmp_path / "weights"
    save_file({"a": torch.zeros(2)}, weights)
    with pytest.raises(CheckpointError, match="weights: expected .*bayesprune-state-1.*got .*None"):
        load_state(weights)
    for tree in ["{", '{"tensor": "7"}', '{"odd": 1}', '{"dict": 3}']:
        save_file({}, weights, {"format": "bayesprune-state-1", "tree": tree})
        with pytest.raises(CheckpointError, match="weights: expected a description"):
            load_state(weights)
    save_file({}, weights, {"format": "bayesprune-state-1"})
    with pytest.raises(CheckpointError, match="weights: expected a description"):
        load_state(weights)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "state"
    save_state(path, [1])

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_state(path, [2])
    assert load_state(path) == [1]
    assert [file.name for file in path.parent.iterdir()] == ["state"]


def test_text(tmp_path):
    path = tmp_path / "folder" / "a.json"
    write_text_atomic(path, "naïve\n")
    write_text_atomic(path, "naïve\r\n∞")
    assert path.read_bytes() == "naïve\r\n∞".encode()
    assert os.listdir(path.parent) == ["a.json"]
