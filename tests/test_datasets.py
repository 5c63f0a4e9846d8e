import math
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader

from bayesprune import datasets
from bayesprune.datasets import DataConfig, load
from bayesprune.errors import ConfigError, DataError

TRAIN, TEST = 40, 10


def fake_images(count: int) -> np.ndarray:
    """28x28 images of noise below 100, each with its own number, 101, 102, ..., in the middle."""
    images = np.random.default_rng(count).integers(1, 100, (count, 28, 28), dtype=np.uint8)
    images[:, 14, 14] = 101 + np.arange(count)
    return images


@pytest.fixture
def mnist_root(tmp_path: Path) -> Path:
    """A folder in torchvision's layout with 40 training and 10 test images."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        header = struct.pack(">4i", 0x803, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + fake_images(count).tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = struct.pack(">2i", 0x801, count)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return tmp_path


def mnist(root: Path, **kwargs: Any) -> DataConfig:
    return DataConfig(**{"name": "mnist", "root": str(root), "validation": 8} | kwargs)


def served(loader: DataLoader[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All images of one epoch, back in bytes, and their labels."""
    images, labels = zip(*loader, strict=True)
    mean, sd = fake_images(TRAIN).mean(), fake_images(TRAIN).std()
    return (torch.cat(images) * sd + mean).round().byte(), torch.cat(labels)


def numbers(images: Tensor) -> list[int]:
    """Which of the fake images these are, shifted and mirrored or not."""
    return (images.flatten(1).amax(1) - 101).tolist()


def test_digits_are_split_in_three_standardized_parts() -> None:
    data = load(DataConfig("digits", batch_size=100), seed=0)
    assert (data.num_train, data.num_classes) == (1257, 10)
    assert data.example_input.shape == (1, 1, 8, 8)
    sizes = [
        [len(labels) for _, labels in part] for part in (data.train, data.validation, data.test)
    ]
    assert sizes == [12 * [100] + [57], [180], [360]]
    images, labels = next(iter(data.train))
    assert (images.shape, images.dtype) == ((100, 1, 8, 8), torch.float32)
    assert (labels.shape, labels.dtype) == ((100,), torch.int64)
    everything = torch.cat([images for part in (data.train, data.validation) for images, _ in part])
    assert everything.mean().item() == pytest.approx(0, abs=1e-4)
    assert everything.std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_the_seed_decides_the_validation_images_and_not_the_test_images() -> None:
    first, again, other = (load(DataConfig("digits"), seed) for seed in (0, 0, 1))
    (images, labels), (same_images, _), (other_images, _) = (
        next(iter(data.validation)) for data in (first, again, other)
    )
    assert torch.equal(images, same_images)
    assert not torch.equal(images, other_images)
    assert len(labels.unique()) == 10
    assert torch.equal(next(iter(first.test))[0], next(iter(other.test))[0])
    assert next(iter(first.test))[1].bincount().tolist() == pytest.approx([36] * 10, abs=1)


def test_training_and_validation_images_share_nothing_and_miss_nothing(mnist_root: Path) -> None:
    data = load(mnist(mnist_root), seed=3)
    parts = [served(part) for part in (data.train_plain, data.validation)]
    kept, held_out = (numbers(images) for images, _ in parts)
    assert (len(kept), len(held_out)) == (32, 8)
    assert sorted(kept + held_out) == list(range(TRAIN))
    for images, labels in parts:
        originals = torch.from_numpy(fake_images(TRAIN))[numbers(images)]
        assert torch.equal(images[:, 0], originals)
        assert labels.tolist() == [number % 10 for number in numbers(images)]
    images, _ = served(data.test)
    assert torch.equal(images[:, 0], torch.from_numpy(fake_images(TEST)))


def test_an_epoch_repeats_under_the_same_global_seed_only(mnist_root: Path) -> None:
    data = load(mnist(mnist_root, augment="shift_flip", batch_size=5), seed=0)
    torch.manual_seed(7)
    first, second = served(data.train)[0], served(data.train)[0]
    torch.manual_seed(7)
    again = served(data.train)[0]
    assert torch.equal(first, again)
    assert numbers(first) != numbers(second)
    assert (
        sorted(numbers(first))
        == sorted(numbers(second))
        == sorted(numbers(served(data.train_plain)[0]))
    )


def test_shift_moves_each_image_by_its_own_offset_and_fills_with_zeros(mnist_root: Path) -> None:
    data = load(mnist(mnist_root, augment="shift"), seed=0)
    offsets = set()
    for _ in range(8):
        images, _ = served(data.train)
        for image, number in zip(images[:, 0], numbers(images), strict=True):
            row, column = (int(i) - 14 for i in (image == 101 + number).nonzero()[0])
            padded = F.pad(torch.from_numpy(fake_images(TRAIN)[number]), (2, 2, 2, 2))
            assert torch.equal(image, padded.roll((row, column), (0, 1))[2:-2, 2:-2])
            offsets.add((row, column))
    assert offsets == {(row, column) for row in range(-2, 3) for column in range(-2, 3)}


def test_shift_flip_mirrors_about_half_of_the_images(mnist_root: Path) -> None:
    data = load(mnist(mnist_root, augment="shift_flip", max_shift=0), seed=0)
    torch.manual_seed(0)
    images, _ = served(data.train)
    originals = torch.from_numpy(fake_images(TRAIN))[numbers(images)]
    plain = (images[:, 0] == originals).all((1, 2))
    mirrored = (images[:, 0] == originals.flip(-1)).all((1, 2))
    assert (plain ^ mirrored).all()
    assert 6 <= mirrored.sum() <= 26  # of 32; the seed is fixed


def test_affine_moves_pixels_as_far_as_its_coefficients_say() -> None:
    """A bright pixel is found again by its centre of mass, in the middle and halfway out."""
    places = torch.tensor([[14.0, 14.0], [7.0, 20.0]]).repeat_interleave(1000, 0)
    images = torch.zeros(2000, 1, 28, 28, dtype=torch.uint8)
    rows, columns = places.long().unbind(1)
    images[torch.arange(2000), 0, rows, columns] = 200
    torch.manual_seed(0)
    mapped = datasets._AUGMENTATIONS["affine"](images, max_shift=1.5)[:, 0]
    centres = [(mapped.sum(dim) @ torch.arange(28.0)) / mapped.sum((1, 2)) for dim in (2, 1)]
    middle, halfway = (torch.stack(centres, 1) - places).split(1000)
    # In the middle only the shift counts, halfway out half of the other coefficients as well.
    sd = 1.5 / 3**0.5
    assert middle.std(0).tolist() == pytest.approx([sd, sd], rel=0.1)
    assert 1.3 < middle.abs().max() < 1.9  # the inverse map moves a little further
    further = sd * (1 + 2 * (6.5 / 14) ** 2) ** 0.5
    assert halfway.std(0).tolist() == pytest.approx([further, further], rel=0.1)
    assert 1.7 < halfway.abs().max() < 3.2


def test_affine_by_nothing_leaves_the_images(mnist_root: Path) -> None:
    data = load(mnist(mnist_root, augment="affine", max_shift=0.0), seed=0)
    images, _ = served(data.train)
    assert torch.equal(images[:, 0], torch.from_numpy(fake_images(TRAIN))[numbers(images)])
    data = load(mnist(mnist_root, augment="affine", max_shift=0.5), seed=0)
    torch.manual_seed(7)
    first, second = (torch.cat([x for x, _ in data.train]) for _ in range(2))
    torch.manual_seed(7)
    again = torch.cat([x for x, _ in data.train])
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_colour_images_have_three_channels_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)

    def fake_cifar(root: Path, train: bool, download: bool) -> SimpleNamespace:
        return SimpleNamespace(data=pixels, targets=[*range(10), 0, 1])

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake_cifar)
    data = load(DataConfig("cifar10", validation=4), seed=0)
    images, labels = next(iter(data.test))
    expected = (pixels - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))
    np.testing.assert_allclose(images.permute(0, 2, 3, 1), expected, atol=1e-5)
    assert labels.tolist() == [*range(10), 0, 1]


def test_the_folder_comes_from_the_environment_or_is_called_data(
    mnist_root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig("mnist", validation=8)
    monkeypatch.setenv("BAYESPRUNE_DATA", str(mnist_root))
    assert load(config, seed=0).num_train == 32
    monkeypatch.delenv("BAYESPRUNE_DATA")
    here = tmp_path_factory.mktemp("here")
    (here / "data").symlink_to(mnist_root)
    monkeypatch.chdir(here)
    assert load(config, seed=0).num_train == 32


def test_missing_files_say_where_they_were_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(self: Any) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", offline)
    with pytest.raises(DataError, match=f"{tmp_path}.*no network.*data.root.*BAYESPRUNE_DATA"):
        load(mnist(tmp_path), seed=0)


def test_truncated_files_are_refused(mnist_root: Path) -> None:
    file = mnist_root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match="MNIST can neither be read"):
        load(mnist(mnist_root), seed=0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "imagenet", "data.name: expected one of digits, .* got 'imagenet'"),
        ("augment", "cutout", "data.augment: .* got 'cutout'"),
        ("validation", 0, "data.validation: expected 1 to 39, got 0"),
        ("validation", TRAIN, "data.validation: expected 1 to 39, got 40"),
        ("batch_size", 0, "data.batch_size: expected at least 1, got 0"),
        ("eval_batch_size", -1, "data.eval_batch_size: expected at least 1, got -1"),
        ("max_shift", -1, "data.max_shift: expected at least 0, got -1"),
        ("max_shift", math.nan, "data.max_shift: expected at least 0, got nan"),
        ("max_shift", math.inf, "data.max_shift: expected at least 0, got inf"),
        ("max_shift", 0.5, "data.max_shift: shift moves by whole pixels, got 0.5"),
    ],
)
def test_unusable_fields(mnist_root: Path, field: str, value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(mnist(mnist_root, **{"augment": "shift", field: value}), seed=0)


def test_each_process_trains_on_its_share_of_an_order_drawn_by_rank_0(
    mnist_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []

    def epochs(rank: int) -> list[list[int]]:
        """Play one of two processes: rank 0 runs first and leaves what it sends for rank 1."""

        def broadcast(objects: list[Any]) -> None:
            if rank == 0:
                sent.append(objects[0])
            else:
                objects[0] = sent.pop(0)

        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
        monkeypatch.setattr(dist, "broadcast_object_list", broadcast)
        torch.manual_seed(rank)
        data = load(mnist(mnist_root, batch_size=6), seed=0)
        assert [len(labels) for _, labels in data.train] == [6, 6, 4]
        assert [len(labels) for _, labels in data.validation] == [8]
        return [numbers(served(data.train)[0]) for _ in range(2)]

    first, second = epochs(rank=0), epochs(rank=1)
    for share, other in zip(first, second, strict=True):
        assert len(set(share + other)) == 32
    assert first[0] != first[1]


def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> DataConfig:
    name = f"own_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"import numpy, torch\ndef read(root):\n    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return DataConfig(f"{name}:read", root=str(tmp_path))


def test_own_data_come_from_a_function(tmp_path, monkeypatch) -> None:
    np.savez(
        tmp_path / "data.npz",
        a=np.random.default_rng(0).normal(3.0, 2.0, (50, 2, 4, 6)),
        b=np.arange(50) % 3,
    )
    body = "d = numpy.load(root / 'data.npz'); return d['a'], d['b'], d['a'][:20], d['b'][:20]"
    data = load(own(tmp_path, monkeypatch, body), seed=0)
    assert (data.num_train, data.num_classes) == (45, 3)
    assert data.example_input.shape == (1, 2, 4, 6)
    images, labels = next(iter(data.test))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    everything = torch.cat([images for images, _ in (*data.train_plain, *data.validation)])
    torch.testing.assert_close(everything.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(everything.std((0, 2, 3)), torch.ones(2), atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", "data 'own_.*:read': ZeroDivisionError"),
        ("return torch.zeros(9, 4, 4), torch.zeros(9).long()", r"got shapes \(9, 4, 4\), \(9,\)"),
        ("x = torch.zeros(9, 1, 4, 4); return x, torch.zeros(9), x, torch.zeros(9)", "float32, fl"),
        (
            "x, y = torch.zeros(9, 1, 4, 4), torch.arange(9); return x, y, x, y + 1",
            "for testing, with no other label",
        ),
        ("x, y = torch.zeros(9, 1, 4, 4), torch.zeros(8).long(); return x, y, x, y", r"\(8,\)"),
    ],
)
def test_own_data_that_are_unusable(tmp_path, monkeypatch, body, message) -> None:
    with pytest.raises(DataError, match=message):
        load(own(tmp_path, monkeypatch, body), seed=0)


@pytest.mark.parametrize("name", ["no_such_module:read", "math:no_such_function"])
def test_functions_that_are_not_there(name) -> None:
    with pytest.raises(ConfigError, match=r"^data\.name: .*no_such"):
        load(DataConfig(name), seed=0)


def test_data_reads_well():
    data = load(DataConfig(name="digits", batch_size=100), seed=0)
    html = data._repr_html_()
    assert html.startswith("<table><caption>digits: 10 classes, images 1 × 8 × 8</caption>")
    assert "<tr><td>train</td><td>1,257</td><td>13</td></tr>" in html
    assert "<tr><td>test</td><td>360</td><td>1</td></tr>" in html
