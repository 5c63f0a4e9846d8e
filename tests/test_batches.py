"""Batches of one and of several inputs."""

import pytest
import torch

from bayesprune.batches import Batch, as_arguments, joined, of_each, split


@pytest.fixture(params=[False, True], ids=["one input", "several inputs"])
def batch(request) -> Batch:
    x, mask, y = torch.randn(7, 2), torch.randn(7), torch.arange(7)
    return ((x, mask), y) if request.param else (x, y)


def assert_equal(one: Batch, other: Batch) -> None:
    assert type(one[0]) is type(other[0])
    assert torch.equal(one[1], other[1])
    for a, b in zip(as_arguments(one[0]), as_arguments(other[0]), strict=True):
        assert torch.equal(a, b)


def test_parts_are_joined_to_the_whole(batch: Batch) -> None:
    parts = split(batch, 3)
    assert [len(targets) for _, targets in parts] == [3, 3, 1]
    assert all(type(inputs) is type(batch[0]) for inputs, _ in parts)
    assert_equal(joined(parts), batch)


def test_all_tensors_change_alike(batch: Batch) -> None:
    assert_equal(of_each(batch, lambda tensor: tensor[3:6]), split(batch, 3)[1])


def test_arguments_are_a_tuple_or_one_alone() -> None:
    x = torch.zeros(2, 3)
    assert as_arguments((x, None)) == (x, None)
    (alone,) = as_arguments(x)
    assert alone is x
    assert as_arguments([x]) == ([x],)  # a list is one argument
