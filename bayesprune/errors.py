"""Errors raised on purpose: each a `BayespruneError` and a `ValueError` or `RuntimeError`."""

from pathlib import Path


class BayespruneError(Exception):
    """Base of every error that bayesprune raises on purpose."""


class TraceError(BayespruneError, ValueError):
    """A network, or a part of it, cannot be traced into channel groups."""


class DataError(BayespruneError, ValueError):
    """A loader or data set does not have the expected content or shape."""


class PlanError(BayespruneError, ValueError):
    """A pruning plan, or the scores behind it, does not fit the network."""


class BudgetError(BayespruneError, ValueError):
    """A budget cannot be met."""


class ConfigError(BayespruneError, ValueError):
    """A configuration field is unknown or has an unusable value."""


class CheckpointError(BayespruneError, RuntimeError):
    """A file on disk is truncated, foreign, or belongs to another network.

    Parameters
    ----------
    message : str
    path : Path, optional
        The file, if it cannot be read as what it should be.
    """

    def __init__(self, message: str, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path


class ExportError(BayespruneError, RuntimeError):
    """A network cannot be exported, or its exported form computes something else."""


class FitError(BayespruneError, RuntimeError):
    """Training or inference cannot go on, for example because the loss is not finite."""
