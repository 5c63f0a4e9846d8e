"""Networks as files that run without this package: ONNX and `torch.export` programs."""

from __future__ import annotations

import copy
import io
import json
import os
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from bayesprune._modes import evaluating
from bayesprune.batches import as_arguments
from bayesprune.checkpoint import write_bytes_atomic
from bayesprune.errors import ConfigError, ExportError
from bayesprune.groups import tensors_in

_TOLERANCE = 1e-4
_BATCH = Dim("batch")


def export_onnx(
    network: nn.Module, example_input: Tensor | tuple[Any, ...], path: str | os.PathLike[str]
) -> float | None:
    """Write a network in evaluation mode as ONNX, for any batch size, atomically.

    Where onnxruntime is installed, the file's content is run on batches of one and of three
    examples before it is written, and compared with the network.

    Parameters
    ----------
    network : nn.Module
        Left untouched. Up to 2 GB of tensors, the limit of an ONNX file.
    example_input : Tensor or tuple
        What the network is called with; the first axis of each tensor is the batch.
    path : path
        The file, for example ``pruned.onnx``; its folder is created when missing.

    Returns
    -------
    float, optional
        The largest difference from the network's output, as a fraction of the largest output;
        None without onnxruntime.

    Raises
    ------
    ConfigError
        If onnx or onnxscript is not installed, or the path cannot be written.
    ExportError
        If the network cannot be exported for any batch size, or the result computes something
        else: more than 1e-4 away from it.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"ONNX: expected {' and '.join(missing)} to be installed: "
            "pip install 'bayesprune[export]'"
        )
    network, inputs = _portable(network, example_input)
    program = _program(network, inputs)
    try:
        tensors = sum(map(_has_batch, inputs))
        named = ({0: _BATCH}, *[None] * (tensors - 1))  # once: the other inputs' axes follow
        onnx = torch.onnx.export(program, dynamo=True, verbose=False, dynamic_shapes=named)
        assert onnx is not None  # only with the exporter before dynamo
        content = onnx.model_proto.SerializeToString()
    except Exception as error:  # of many classes, without a base of their own
        raise ExportError(f"{type(network).__name__}: no ONNX: {_first_line(error)}") from error

    difference = None
    if find_spec("onnxruntime") is not None:
        from onnxruntime import InferenceSession

        try:
            session = InferenceSession(content, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own, for example no float64 convolution
            raise ExportError(
                f"{type(network).__name__}: onnxruntime does not take it: {_first_line(error)}"
            ) from error
        names = [entry.name for entry in session.get_inputs()]

        def run(*inputs: Any) -> list[Tensor]:
            arrays = [x.numpy() for x in inputs if _has_batch(x)]
            outputs = session.run(None, dict(zip(names, arrays, strict=True)))
            return [torch.as_tensor(output) for output in outputs]

        difference = _compare(network, run, inputs)
    _write(path, content)
    return difference


def export_program(
    network: nn.Module, example_input: Tensor | tuple[Any, ...], path: str | os.PathLike[str]
) -> float:
    """Write a network in evaluation mode as a `torch.export` program, for any batch size.

    The content is loaded again in memory and run on batches of one and of three examples before it
    is written, atomically. The file holds no pickle: the example inputs, which `torch.export.save`
    would pickle and `torch.export.load` unpickle, are left out. Loading a file from somewhere else
    with `torch.export.load` may unpickle what it holds; load only files that you trust.

    Parameters
    ----------
    network : nn.Module
        Left untouched.
    example_input : Tensor or tuple
        What the network is called with; the first axis of each tensor is the batch.
    path : path
        The file, for example ``pruned.pt2``; its folder is created when missing. Read it with
        ``torch.export.load(path).module()``.

    Returns
    -------
    float
        The largest difference from the network's output, as a fraction of the largest output.

    Raises
    ------
    ConfigError
        If the path cannot be written.
    ExportError
        If the network cannot be exported for any batch size, only with the help of pickle (an old
        torch, a tensor of a class of its own), or the result computes something else: more than
        1e-4 away from it.
    """
    network, inputs = _portable(network, example_input)
    program = _program(network, inputs)
    program.example_inputs = None  # type: ignore[assignment]
    file = io.BytesIO()
    try:
        torch.export.save(program, file)
    except Exception as error:  # of many classes, without a base of their own
        raise ExportError(
            f"{type(network).__name__}: not stored as a program: {_first_line(error)}"
        ) from error
    pickled = _pickled(file)
    if pickled:
        raise ExportError(
            f"{type(network).__name__}: expected a program without pickle, but torch "
            f"{torch.__version__} pickles {pickled[0]}"
        )
    file.seek(0)
    difference = _compare(network, torch.export.load(file).module(), inputs)
    _write(path, file.getvalue())
    return difference


def _portable(
    network: nn.Module, example_input: Tensor | tuple[Any, ...]
) -> tuple[nn.Module, tuple[Any, ...]]:
    """A copy on the CPU in evaluation mode, and its inputs: no device ends up in the file."""
    inputs = as_arguments(example_input)
    on_cpu = tuple(x.detach().cpu() if isinstance(x, Tensor) else x for x in inputs)
    return copy.deepcopy(network).cpu().eval(), on_cpu


def _has_batch(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _batch_axes(inputs: Sequence[Any]) -> tuple[dict[int, Any] | None, ...]:
    return tuple({0: _BATCH} if _has_batch(x) else None for x in inputs)


def _batch_of(size: int, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The first example and shifted copies of it, which are inputs of the same kind."""
    return tuple(
        torch.cat([x[:1].roll(shift, -1) for shift in range(size)]) if _has_batch(x) else x
        for x in inputs
    )


def _program(network: nn.Module, inputs: Sequence[Any]) -> ExportedProgram:
    example = _batch_of(2, inputs)  # a batch of one would be taken for a constant
    try:
        with evaluating(network):
            return torch.export.export(network, example, dynamic_shapes=_batch_axes(inputs))
    except Exception as error:  # of many classes, without a base of their own
        raise ExportError(
            f"{type(network).__name__}: torch.export cannot follow it for any batch size: "
            f"{_first_line(error)}"
        ) from error


def _compare(network: nn.Module, exported: Any, inputs: Sequence[Any]) -> float:
    """The largest difference as a fraction of the largest output; an error if it is too large."""
    worst = 0.0
    for size in (1, 3):
        batch = _batch_of(size, inputs)
        with evaluating(network):
            expected = tensors_in(network(*batch))
            try:
                found = tensors_in(exported(*batch))
            except Exception as error:  # whatever the runtime raises
                raise ExportError(
                    f"{type(network).__name__}: the exported network does not run on a batch of "
                    f"{size}: {_first_line(error)}"
                ) from error
        shapes, wanted = ([tuple(t.shape) for t in out] for out in (found, expected))
        if shapes != wanted:
            raise ExportError(
                f"{type(network).__name__}: expected outputs {wanted}, got {shapes} from the "
                "exported network"
            )
        for a, b in zip(found, expected, strict=True):
            if b.numel() == 0:
                continue
            eps = torch.finfo(b.dtype if b.is_floating_point() else torch.float32).eps
            scale = b.abs().max().item()
            difference = (a.double() - b.double()).abs().max().item() / max(scale, eps**2)
            if not difference <= max(_TOLERANCE, 10 * eps):  # nor NaN
                raise ExportError(
                    f"{type(network).__name__}: the exported network is {difference:.1e} of its "
                    f"largest output away, expected at most {_TOLERANCE:.0e}"
                )
            worst = max(worst, difference)
    return worst


def _pickled(file: io.BytesIO) -> list[str]:
    """What is pickled in a stored program."""
    found = []
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith(".pt") and entry.file_size:
                found.append(entry.filename)
            elif entry.filename.endswith("_config.json"):
                config = json.loads(archive.read(entry))["config"]
                found += [name for name, tensor in config.items() if tensor["use_pickle"]]
    return found


def _write(path: str | os.PathLike[str], content: bytes) -> None:
    try:
        write_bytes_atomic(Path(path), content)
    except OSError as error:
        raise ConfigError(f"{path}: expected a file to write to: {error.strerror}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
