"""State on disk: nested trees of tensors and plain values, written atomically, never pickled."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bayesprune.errors import CheckpointError

_FORMAT = "bayesprune-state-1"


def save_state(path: str | os.PathLike[str], tree: Any) -> None:
    """Write a nested tree to one safetensors file, atomically.

    The tensors are the file's tensors; everything else is JSON in the file's metadata. Tensors
    that share memory are stored apart and come back separate, contiguous and on the CPU.

    Parameters
    ----------
    path : path
        The file to write; its folder is created when missing. Either the whole new content is
        there afterwards or the old one, also after a crash.
    tree : tree
        Dicts (with ``str`` or ``int`` keys), lists, tuples, ``None``, ``bool``, ``int``,
        ``float``, ``str`` and dense tensors, nested in any way.

    Raises
    ------
    CheckpointError
        If the tree holds anything else; the message names the place, and nothing is written.
    """
    tensors: dict[str, Tensor] = {}
    structure = _encode(tree, "tree", tensors)
    metadata = {"format": _FORMAT, "tree": json.dumps(structure, allow_nan=False)}
    write_bytes_atomic(Path(path), save(tensors, metadata=metadata))


def load_state(path: str | os.PathLike[str]) -> Any:
    """Read a tree that `save_state` wrote.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    Any
        The tree, with the container types, numbers, shapes and dtypes that were saved.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated or was not written by `save_state`.
    """
    path = Path(path)
    if not path.is_file():
        got = "something that is not a file" if path.exists() else "no such file"
        raise CheckpointError(f"{path}: expected a state file ({_FORMAT}), got {got}", path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Cloned, because the tensors are views of a memory map of a file that may be replaced.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: expected a complete state file ({_FORMAT}), got a truncated or foreign one "
            f"of {path.stat().st_size} bytes ({error})",
            path,
        ) from error
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path}: expected a state file with format {_FORMAT!r}, got a safetensors file with "
            f"format {metadata.get('format')!r}",
            path,
        )
    try:
        return _decode(json.loads(metadata["tree"]), tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: expected a description of the state tree in the file's metadata, got one "
            f"that cannot be read ({type(error).__name__}: {error})",
            path,
        ) from error


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file (UTF-8, newlines as given), atomically.

    Parameters
    ----------
    path : path
        The file to write; its folder is created when missing.
    text : str
        The whole content.
    """
    write_bytes_atomic(Path(path), text.encode())


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write a file, atomically.

    Parameters
    ----------
    path : Path
        The file to write; its folder is created when missing.
    content : bytes
        The whole content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # One fixed name per file: what a killed process leaves behind is overwritten, not piled up.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _encode(node: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for one node: scalars as they are, every other type as ``{type: content}``."""
    match node:
        case None | bool() | int() | str():
            return node
        case float():
            return node if math.isfinite(node) else {"float": str(node)}
        case Tensor():
            name = str(len(tensors))
            tensors[name] = _storable(node, place)
            return {"tensor": name}
        case list() | tuple():
            items = [_encode(item, f"{place}[{i}]", tensors) for i, item in enumerate(node)]
            return {"list" if isinstance(node, list) else "tuple": items}
        case Mapping():
            pairs = []
            for key, value in node.items():
                if isinstance(key, bool) or not isinstance(key, str | int):
                    raise CheckpointError(
                        f"{place}: expected str or int keys, got {key!r} ({type(key).__name__})"
                    )
                pairs.append([key, _encode(value, f"{place}[{key!r}]", tensors)])
            return {"dict": pairs}
    raise CheckpointError(
        f"{place}: expected a dict, list, tuple, None, bool, int, float, str or tensor, "
        f"got {type(node).__name__}, which cannot be stored"
    )


def _storable(tensor: Tensor, place: str) -> Tensor:
    try:
        stored = tensor.detach().cpu().resolve_conj().resolve_neg()
        stored = stored.clone(memory_format=torch.contiguous_format)
        save({"": stored.flatten()[:0]})  # fails here, where the place is known, if it cannot later
    except (KeyError, NotImplementedError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{place}: expected a dense tensor of a dtype that safetensors stores, "
            f"got {tensor.dtype}, {tensor.layout}, on {tensor.device}"
        ) from error
    return stored


def _decode(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    match kind:
        case "float":
            return float(content)
        case "tensor":
            return tensors[content]
        case "list":
            return [_decode(item, tensors) for item in content]
        case "tuple":
            return tuple(_decode(item, tensors) for item in content)
        case "dict":
            return {key: _decode(value, tensors) for key, value in content}
    raise ValueError(f"unknown kind of node {kind!r}")
