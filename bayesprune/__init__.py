"""Smaller PyTorch networks, and how sure one can be of each channel that is removed."""

import pyro as _pyro

# Pyro's global parameter store outlives models and mixes them up: keep parameters in modules.
_pyro.settings.set(module_local_params=True)

from bayesprune import criteria, models, switches  # noqa: E402
from bayesprune._version import __version__  # noqa: E402
from bayesprune.cost import Cost, cost, latency  # noqa: E402
from bayesprune.errors import BayespruneError  # noqa: E402
from bayesprune.estimators import AnalyticMean, Implicit  # noqa: E402
from bayesprune.groups import ChannelGroup, ChannelGroups, trace_groups  # noqa: E402
from bayesprune.network import SwitchedNetwork  # noqa: E402
from bayesprune.posterior import SwitchPosterior  # noqa: E402
from bayesprune.selection import (  # noqa: E402
    Budget,
    ChannelScores,
    KeepFraction,
    Probability,
    PruningPlan,
    Threshold,
    TopK,
    select,
)
from bayesprune.storage import load_pruned, save_pruned  # noqa: E402
from bayesprune.surgery import remove_channels  # noqa: E402
from bayesprune.svi import fit_switches  # noqa: E402
from bayesprune.training import TrainConfig, evaluate, train_network  # noqa: E402
from bayesprune.experiment import Run, load_run, run_experiment  # noqa: E402
from bayesprune.config import RunConfig  # noqa: E402
