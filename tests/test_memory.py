import copy
import gc

import pytest
import torch
from torch import nn

from bayesprune import Distillation, TrainConfig, _memory, train_network
from bayesprune._memory import OutputMemory, memory_of


@pytest.fixture
def asked():
    """A network, and how many rows it was given at each call."""
    network, rows = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), []
    network.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    return network, rows


@pytest.fixture
def single(monkeypatch):
    """A network may be asked for a single row."""
    monkeypatch.setattr(_memory, "FEW", 1)


def test_only_new_rows_are_asked_for(asked, single):
    network, rows = asked
    inputs, memory = torch.randn(8, 2, 3), OutputMemory()
    expected = network(inputs)
    rows.clear()
    for chosen, new in (([0, 1, 2], 3), ([2, 3, 3, 0], 1), ([3, 2, 1, 0], 0), (range(8), 4)):
        found = memory.outputs(network, inputs[list(chosen)])
        torch.testing.assert_close(found, expected[list(chosen)])
        assert not found.requires_grad
        assert rows == ([new] if new else [])
        rows.clear()
    assert len(memory) == 8


@pytest.mark.parametrize(("batch", "expected"), [(40, 16), (10, 10)])
def test_a_network_is_never_asked_for_few_rows(asked, batch, expected):
    network, rows = asked
    inputs, memory = torch.randn(batch, 6), OutputMemory()
    memory.outputs(network, inputs[1:])
    found = memory.outputs(network, inputs)
    torch.testing.assert_close(found, network(inputs).detach())
    assert rows[:2] == [batch - 1, expected]
    assert len(memory) == batch


def test_a_full_memory_takes_in_nothing_new(asked, single, monkeypatch):
    network, rows = asked
    monkeypatch.setattr(_memory, "BYTES", 4 * (150 + 3 * 4))
    inputs, memory = torch.randn(8, 6), OutputMemory()
    for chosen in (range(4), range(2, 6), range(4, 8), range(8), range(4)):
        found = memory.outputs(network, inputs[list(chosen)])
        torch.testing.assert_close(found, network(inputs).detach()[list(chosen)])
        assert len(memory) == 4
    assert [n for n in rows if n != 8] == [4, 2, 4, 4]


def test_inputs_are_told_apart_by_every_bit(asked):
    network, rows = asked
    inputs, memory = torch.zeros(1, 6), OutputMemory()
    memory.outputs(network, inputs)
    inputs[0, 5] = torch.finfo(torch.float32).tiny
    memory.outputs(network, inputs)
    assert rows == [1, 1]


def test_several_inputs_of_any_type():
    def network(inputs):
        numbers, halves = inputs
        return numbers[:, None].float() + halves.float()

    inputs = torch.arange(4), torch.randn(4, 3, dtype=torch.bfloat16)
    memory = OutputMemory()
    for chosen in ([0, 1], [1, 3, 0], [2]):
        part = tuple(tensor[chosen] for tensor in inputs)
        torch.testing.assert_close(memory.outputs(network, part), network(part))
    assert len(memory) == 4


def test_a_memory_belongs_to_a_network_as_it_is():
    network = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
    memory = memory_of(network)
    assert memory_of(network) is memory
    assert memory_of(copy.deepcopy(network)) is not memory  # it may compute something else
    network[1].running_mean += 1
    assert memory_of(network) is not memory
    number = len(_memory._memories)
    del network
    gc.collect()
    assert len(_memory._memories) < number


def test_distillation_is_the_same_with_a_memory(asked):
    teacher, rows = asked
    batches = [(torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])) for _ in range(3)]
    student, histories = nn.Linear(6, 3), []
    for remember in (False, True):
        config = TrainConfig(epochs=4, distill=Distillation(0.5, 2.0, remember))
        found = train_network(copy.deepcopy(student), batches, config, teacher=teacher)
        histories.append([row["loss"] for row in found[1]])
    assert histories[1] == histories[0]
    assert rows == [5] * (12 + 3)


class Interrupted(list):
    """Batches that stop after a number of passes."""

    passes = 2

    def __iter__(self):
        self.passes -= 1
        if self.passes < 0:
            raise KeyboardInterrupt
        return super().__iter__()


def test_training_resumes_with_an_empty_memory(asked, tmp_path):
    teacher, rows = asked
    batches = [(torch.randn(20, 6), torch.arange(20) % 3) for _ in range(3)]
    student = nn.Linear(6, 3)
    config = TrainConfig(epochs=4, distill=Distillation(0.5, 2.0, remember=True))

    def train(loader, **options):
        return train_network(copy.deepcopy(student), loader, config, seed=0, **options)

    whole, history = train(batches, teacher=teacher)
    options = {"checkpoint": tmp_path / "state", "teacher": copy.deepcopy(teacher)}
    with pytest.raises(KeyboardInterrupt):
        train(Interrupted(batches), **options)
    rows.clear()
    options["teacher"] = copy.deepcopy(teacher)
    resumed, again = train(batches, **options)
    assert len(rows) == 3  # each batch once more
    assert [row["loss"] for row in again] == pytest.approx([row["loss"] for row in history])
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict())
