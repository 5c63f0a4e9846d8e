"""Every network of the support table: switches, a step of inference, removal, exactness."""

import pytest
import support


@pytest.mark.parametrize("name", support.CASES)
@pytest.mark.filterwarnings("ignore:.*weights='inception:FutureWarning")
def test_network_is_supported(name: str) -> None:
    row = support.check(name)
    assert row.shapes_kept
    assert row.difference < 1e-5 < 1e-3 < row.effect
    assert row.exact + sum(row.inexact.values()) == row.groups
    assert row.prunable > 0.5
    # Whatever is inexact is so for a known reason.
    assert all("LayerNorm" in reason for reason in row.inexact)
    assert f"| {name} | {row.groups} |" in support.page([row])


@pytest.mark.parametrize("name", support.REFUSED)
def test_network_is_refused_with_a_reason(name: str) -> None:
    assert "no channel can be removed" in support.refusal(name)


def test_every_family_of_torchvision_is_there() -> None:
    import torchvision

    families = {
        getattr(torchvision.models, name).__module__.rpartition(".")[2]
        for name in torchvision.models.list_models(torchvision.models)
    }
    there = {
        getattr(torchvision.models, name).__module__.rpartition(".")[2]
        for name in support.CASES
        if hasattr(torchvision.models, name)
    }
    assert there == families
