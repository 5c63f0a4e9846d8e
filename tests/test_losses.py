from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F

from bayesprune.errors import DataError
from bayesprune.losses import batch_loss, example_losses, shown


def test_cross_entropy_is_the_default() -> None:
    output, targets = torch.randn(5, 3), torch.randint(3, (5,))
    each = torch.stack(
        [F.cross_entropy(o[None], t[None]) for o, t in zip(output, targets, strict=True)]
    )
    torch.testing.assert_close(example_losses(None, output, targets), each)
    torch.testing.assert_close(batch_loss(None, output, targets), each.mean())


def test_an_example_with_positions_has_their_mean_loss() -> None:
    output, targets = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    each = torch.stack(
        [F.cross_entropy(o[None], t[None]) for o, t in zip(output, targets, strict=True)]
    )
    torch.testing.assert_close(example_losses(None, output, targets), each)
    torch.testing.assert_close(batch_loss(None, output, targets), each.mean())


Heads = namedtuple("Heads", "logits aux")


LABELS = torch.zeros(4, dtype=torch.long)
PAIR = torch.zeros(4, 2)
FLOATS = r"float32 of shape \(4, 2\)"


@pytest.mark.parametrize(
    ("output", "targets", "got"),
    [
        (PAIR, torch.randn(4), FLOATS + r" and float32 of shape \(4,\)"),
        ((PAIR, None), LABELS, rf"tuple \({FLOATS}, NoneType\) and int64"),
        (Heads(PAIR, 1), LABELS, rf"Heads \({FLOATS}, int\)"),
        ({"a": PAIR}, LABELS, rf"dict \({FLOATS}\)"),
        (PAIR, LABELS + 7, FLOATS + r" and int64 of shape \(4,\) \(Target 7 is out of bounds"),
        (PAIR, LABELS[:3], FLOATS + r" and int64 of shape \(3,\)"),
    ],
)
@pytest.mark.parametrize("losses", [batch_loss, example_losses])
def test_what_cross_entropy_cannot_take_is_named(losses, output, targets, got) -> None:
    said = rf"^loss: cross-entropy expects .*; got {got}.* Pass loss="
    with pytest.raises(DataError, match=said):
        losses(None, output, targets)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.bool])
def test_labels_of_any_integer_type(kind) -> None:
    assert batch_loss(None, PAIR, LABELS.to(kind)) == batch_loss(None, PAIR, LABELS)


def squares(output, targets):
    return (output[0].squeeze(1) - targets).square()


def test_any_loss_of_the_right_shape() -> None:
    output, targets = (torch.randn(4, 1), None), torch.randn(4)
    expected = squares(output, targets)
    assert torch.equal(example_losses(squares, output, targets), expected)
    mean = batch_loss(lambda o, t: squares(o, t).mean(), output, targets)
    assert torch.equal(mean, expected.mean())
    with pytest.raises(DataError, match=r"a scalar tensor; got float32 of shape \(4,\)"):
        batch_loss(squares, output, targets)
    with pytest.raises(DataError, match=r"shape \(4,\); got float32 of shape \(\) .*reduction"):
        example_losses(lambda o, t: squares(o, t).mean(), output, targets)
    with pytest.raises(DataError, match="a scalar tensor; got float"):
        batch_loss(lambda o, t: 0.5, output, targets)


def test_shows_what_values_are() -> None:
    assert shown([torch.zeros(2, 3), "a"]) == "list (float32 of shape (2, 3), str)"
