from types import SimpleNamespace

import pytest

from bayesprune.selection import progress
from bayesprune.selection.progress import Descent


def test_what_is_quick_shows_nothing(capsys) -> None:
    with Descent(100.0, 50.0, shown=True) as descent:
        descent.at(75.0)
    assert capsys.readouterr().err == ""


def test_lines_without_a_terminal(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    clock = iter([0.0, 29.0, 31.0, 60.0, 62.0, 90.0, 93.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with Descent(100.0, 50.0, shown=True) as descent:
        for cost in (95.0, 90.0, 80.0, 45.0):
            descent.at(cost)
        descent.filling()
        descent.filling()
    assert capsys.readouterr().err.splitlines() == [
        "select: 20% of the way",
        "select: 100% of the way",
        "select: filling up the budget",
    ]


def test_a_bar_on_a_terminal(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with Descent(100.0, 50.0, shown=True) as descent:
        descent.at(75.0)
        descent._bar.refresh()
        assert "select" in capsys.readouterr().err
        assert descent._bar.tasks[0].percentage == 50
        descent.filling()
        descent._bar.refresh()
    assert "filling up" in capsys.readouterr().err
    assert descent._bar.finished is False


def test_nothing_if_nobody_wants_it(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    monkeypatch.setattr(progress, "_PAUSE", 0.0)
    with Descent(100.0, 50.0, shown=False) as descent:
        descent.at(75.0)
    assert capsys.readouterr().err == ""
