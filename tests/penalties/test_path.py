"""Grids of settings."""

import pytest
import torch
from torch.utils.data import DataLoader

from bayesprune import penalties
from bayesprune.errors import ConfigError
from bayesprune.penalties import regularisation_path, sensitivity
from bayesprune.training import TrainConfig, evaluate

CONFIG = TrainConfig(epochs=2, learning_rate=0.05, optimizer="sgd", schedule="constant")


def test_a_path_is_warm_started(network, groups, data, fabric) -> None:
    loader, options = DataLoader(data, 6), {"fabric": fabric, "progress": False}
    table = regularisation_path(
        penalties.GroupLasso(scale="none"), [0.0, 1.0, 8.0], network, groups, loader, CONFIG,
        validation=loader, **options,
    )  # fmt: skip
    assert table["strength"].tolist() == [0.0, 1.0, 8.0]
    assert table["units"].tolist() == sorted(table["units"], reverse=True)
    assert table["units"].iloc[0] == 11
    assert table["units"].iloc[-1] < 11
    parts = table[["units:conv1", "units:conv3", "units:fc1"]].sum(axis=1)
    assert parts.tolist() == table["units"].tolist()
    by_hand = network
    for strength in (0.0, 1.0):
        fit = penalties.GroupLasso(strength, scale="none").train(
            by_hand, groups, loader, CONFIG, stage=f"strength {strength:g}", **options
        )
        by_hand = fit.network
    assert table["error"].iloc[1] == evaluate(by_hand, loader)["error"]
    assert table["nll"].iloc[1] == evaluate(by_hand, loader)["nll"]


def test_sensitivity_crosses_all_settings_from_one_start(network, groups, data, fabric) -> None:
    loader = DataLoader(data, 6)
    table = sensitivity(
        penalties.GroupLasso(scale="none"), {"strength": [0.0, 1.0], "threshold": [0.0, 1e3]},
        network, groups, loader, CONFIG, validation=loader, fabric=fabric, progress=False,
    )  # fmt: skip
    assert table[["strength", "threshold"]].to_numpy().tolist() == [
        [0.0, 0.0],
        [0.0, 1e3],
        [1.0, 0.0],
        [1.0, 1e3],
    ]
    assert table["units"].iloc[0] == 11
    assert table["units"].iloc[1] == table["units"].iloc[3] == 0
    assert network.training
    assert torch.isfinite(torch.tensor(table["nll"])).all()


def test_bad_grids(network, groups, data, fabric) -> None:
    loader = DataLoader(data, 6)
    for strengths in ([], [1.0, 0.5]):
        with pytest.raises(ConfigError, match="strengths: expected ascending numbers"):
            regularisation_path(
                penalties.GroupLasso(),
                strengths,
                network,
                groups,
                loader,
                CONFIG,
                validation=loader,
            )
    with pytest.raises(ConfigError, match="ADMM: expected a setting of keep, low"):
        regularisation_path(
            penalties.ADMM(), [1.0], network, groups, loader, CONFIG, validation=loader
        )
