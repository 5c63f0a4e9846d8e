"""A selection rule that was tried for the default recipe and is not part of the package.

With this folder on the Python path, a config or the command line names it by class path::

    PYTHONPATH=experiments bayesprune run experiments/lenet300_100_mnist.yaml \\
        --method LogNormal --select rules.EvidenceFirst --select.macs 9000 \\
        --fit.constraint null --out runs/evidence_first
"""

from __future__ import annotations

from dataclasses import dataclass

import bayesprune as bp
from bayesprune.selection.scores import Normalisation


@dataclass(frozen=True)
class EvidenceFirst(bp.GlobalRank):
    """`EvidenceStop`, then topped up to a budget, or cut down to it.

    Units are ranked by how much log evidence their removal loses. Those that `EvidenceStop` removes
    rank lowest: they come back, the most useful first, only if the budget has room for them.
    """

    measure = "evidence"
    normalise: Normalisation = "none"
