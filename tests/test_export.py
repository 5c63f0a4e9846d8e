"""Exported networks: right for any batch size, without pickle, and refused with a clear line."""

import subprocess
import sys
import zipfile

import pytest
import torch
from torch import nn

import bayesprune as bp
from bayesprune import export
from bayesprune.errors import ConfigError, ExportError

FORMATS = {"onnx": bp.export_onnx, "exported-program": bp.export_program}


def pruned(model, shape):
    network = bp.models.load(model).eval()
    image = torch.randn(1, *shape)
    groups = bp.trace_groups(network, image)
    scores = bp.criteria.Random().scores(network, groups, [])
    plan = bp.select(scores, bp.KeepFraction(0.5), groups=groups)
    return bp.remove_channels(network, plan, image), image


def run_onnx(path, x):
    from onnxruntime import InferenceSession

    session = InferenceSession(path)
    (name,) = [entry.name for entry in session.get_inputs()]
    return [torch.as_tensor(output) for output in session.run(None, {name: x.numpy()})]


@pytest.fixture(scope="module")
def lenet():
    return pruned("bayesprune:lenet5", (1, 28, 28))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("bayesprune:digits", (1, 8, 8)),
        ("bayesprune:lenet5", (1, 28, 28)),
        ("bayesprune:lenet300_100", (1, 28, 28)),
        ("bayesprune:resnet20", (3, 32, 32)),
        ("bayesprune:vgg16", (3, 32, 32)),
        ("torchvision:resnet18", (3, 32, 32)),
        ("torchvision:mobilenet_v3_small", (3, 32, 32)),
    ],
)
def test_pruned_networks_export(tmp_path, model, shape):
    small, image = pruned(model, shape)
    assert bp.export_onnx(small, image, tmp_path / "s.onnx") <= 1e-4
    assert bp.export_program(small, image, tmp_path / "s.pt2") <= 1e-4
    batch = torch.randn(4, *shape)
    with torch.no_grad():
        expected = small(batch)
        program = torch.export.load(tmp_path / "s.pt2").module()
        tight = {"rtol": 1e-4, "atol": 1e-4 * expected.abs().max().item()}
        torch.testing.assert_close(program(batch), expected, **tight)
    torch.testing.assert_close(run_onnx(tmp_path / "s.onnx", batch)[0], expected, **tight)


def test_a_program_holds_no_pickle(tmp_path, lenet):
    small, image = lenet
    bp.export_program(small, image, tmp_path / "s.pt2")
    code = (
        "import pickle, sys, torch\n"
        "def refuse(*args, **kwargs): raise SystemExit('unpickled')\n"
        "torch.load = pickle.load = pickle.loads = refuse\n"
        "print(torch.export.load(sys.argv[1]).module()(torch.ones(5, 1, 28, 28)).sum().item())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "s.pt2")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    with torch.no_grad():
        expected = small(torch.ones(5, 1, 28, 28)).sum().item()
    assert float(result.stdout) == pytest.approx(expected, rel=1e-4)
    with zipfile.ZipFile(tmp_path / "s.pt2") as archive:
        assert not any(archive.read(name).startswith(b"PK") for name in archive.namelist())


def test_what_torch_would_pickle_is_refused(tmp_path, lenet, monkeypatch):
    import torch.export.pt2_archive._package as package

    monkeypatch.setattr(package, "_should_use_pickle", lambda tensor: True)
    with pytest.raises(ExportError, match=r"LeNet5: .* pickles .*conv1\.weight"):
        bp.export_program(*lenet, tmp_path / "s.pt2")
    assert not list(tmp_path.iterdir())


class TwoInputs(nn.Module):
    """Whole numbers and floats in, several outputs, a fixed argument."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, 6)
        self.linear = nn.Linear(6, 3)

    def forward(self, tokens, weights, scale):
        hidden = self.words(tokens).mean(1) * weights * scale
        return {"logits": self.linear(hidden), "best": self.linear(hidden).argmax(1)}


@pytest.mark.parametrize("format", FORMATS)
def test_several_inputs_and_outputs(tmp_path, format):
    inputs = (torch.randint(5, (4, 7)), torch.randn(4, 6), 2.0)
    assert FORMATS[format](TwoInputs(), inputs, tmp_path / "s") <= 1e-4
    assert (tmp_path / "s").stat().st_size


def test_the_batch_axis_has_a_name(tmp_path):
    from onnxruntime import InferenceSession

    inputs = (torch.randint(5, (4, 7)), torch.randn(4, 6), 2.0)
    bp.export_onnx(TwoInputs(), inputs, tmp_path / "s.onnx")
    session = InferenceSession(tmp_path / "s.onnx")
    shapes = {entry.name: entry.shape for entry in session.get_inputs()}
    assert shapes == {"tokens": ["batch", 7], "weights": ["batch", 6]}
    assert [entry.shape for entry in session.get_outputs()] == [["batch", 3], ["batch"]]


@pytest.mark.parametrize("format", FORMATS)
def test_the_network_is_left_alone(tmp_path, format):
    network = bp.models.create("digits").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    FORMATS[format](network, torch.randn(2, 1, 8, 8), tmp_path / "s")
    assert all(module.training for module in network.modules())
    assert all(torch.equal(before[n], v) for n, v in network.state_dict().items())


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1)


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("network", [FixedBatch(), Branches()])
def test_what_cannot_be_exported(tmp_path, format, network):
    with pytest.raises(ExportError, match=f"{type(network).__name__}: [^\n]*$"):
        FORMATS[format](network, torch.ones(2, 4), tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_what_onnxruntime_does_not_run(tmp_path):
    network = bp.models.create("digits").double()
    with pytest.raises(ExportError, match="DigitsNet: onnxruntime does not take it: .*Conv"):
        bp.export_onnx(network, torch.randn(2, 1, 8, 8).double(), tmp_path / "s.onnx")


@pytest.mark.parametrize("format", FORMATS)
def test_a_wrong_result_is_refused(tmp_path, format, monkeypatch):
    class Doubled(nn.Module):
        def forward(self, x):
            return 2 * x

    original = export._program
    monkeypatch.setattr(export, "_program", lambda network, inputs: original(Doubled(), inputs))
    with pytest.raises(ExportError, match="Identity: .* away"):
        FORMATS[format](nn.Identity(), torch.ones(2, 4), tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_without_onnx(tmp_path, lenet, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"onnx and onnxscript .*bayesprune\[export\]"):
        bp.export_onnx(*lenet, tmp_path / "s.onnx")


def test_without_onnxruntime(tmp_path, lenet, monkeypatch):
    found = export.find_spec
    monkeypatch.setattr(export, "find_spec", lambda n: None if n == "onnxruntime" else found(n))
    assert bp.export_onnx(*lenet, tmp_path / "s.onnx") is None
    assert (tmp_path / "s.onnx").stat().st_size


def test_a_path_that_cannot_be_written(tmp_path, lenet):
    (tmp_path / "s.pt2").mkdir()
    with pytest.raises(ConfigError, match=r"s\.pt2: expected a file"):
        bp.export_program(*lenet, tmp_path / "s.pt2")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="expected a file"):
        bp.export_program(*lenet, tmp_path / "file" / "s.pt2")
