"""Figures: what is drawn, in which order and with which labels."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bayesprune import reporting
from bayesprune.errors import DataError, PlanError
from bayesprune.plan import PruningPlan
from bayesprune.posterior import SwitchPosterior
from bayesprune.reporting._figures import format_count
from bayesprune.selection import ChannelScores
from bayesprune.switches import InformationBottleneck, LogNormal


class Gates:
    """A posterior given by draws: normal gates with the given means and one sd."""

    def __init__(
        self, channels: dict[str, list[int]], means: dict[str, list[float]], sd: float
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.names = list(channels)
        self.channels = {name: torch.tensor(index) for name, index in channels.items()}
        self.draws = {
            name: torch.tensor(mean) + sd * torch.randn(400, len(mean), generator=generator)
            for name, mean in means.items()
        }
        self.mean = {name: torch.tensor(mean) for name, mean in means.items()}
        self.switches = {
            name: SimpleNamespace(
                mean=partial(self.mean.get, name), quantile=partial(torch.quantile, drawn, dim=0)
            )
            for name, drawn in self.draws.items()
        }

    def scores(self, measure: str = "importance") -> ChannelScores:
        return ChannelScores(self.mean, measure)

    def rank_probability(self, k: dict[str, int]) -> dict[str, torch.Tensor]:
        ranks = {name: (-self.draws[name]).argsort(1).argsort(1) for name in k}
        return {name: (ranks[name] < k[name]).double().mean(0) for name in k}


def gates(*args: Any) -> Any:
    return Gates(*args)


def plan(kept: dict[str, list[int]]) -> Any:
    return SimpleNamespace(kept=kept, method="importance")


SMALL = gates({"conv": [3, 5, 8, 9]}, {"conv": [0.2, 0.9, 0.5, 0.1]}, 0.01)
MANY = gates({"fc": list(range(500))}, {"fc": np.linspace(1, 2, 500).tolist()}, 0.3)


def tick_labels(figure: Figure, axis: str = "y") -> list[str]:
    return [label.get_text() for label in getattr(figure.axes[0], f"get_{axis}ticklabels")()]


def points(line: Line2D) -> np.ndarray:
    return np.column_stack([np.asarray(line.get_xdata()), np.asarray(line.get_ydata())])


def rendered(figure: Figure) -> Figure:
    figure.canvas.draw()  # layout warnings are errors here
    return figure


# --- forest plot ------------------------------------------------------------------------------


def test_forest_rows_are_sorted_by_mean_and_labelled_with_original_indices() -> None:
    figure = rendered(reporting.forest_plot(SMALL, "conv", plan({"conv": [5, 9]})))
    assert tick_labels(figure) == ["5", "8", "3", "9"]
    axes = figure.axes[0]
    assert axes.yaxis_inverted()
    kept, removed = axes.lines
    assert (kept.get_label(), removed.get_label()) == ("kept (2)", "removed (2)")
    np.testing.assert_allclose(points(kept), [[0.9, 0], [0.1, 3]], rtol=1e-6)
    np.testing.assert_allclose(points(removed), [[0.5, 1], [0.2, 2]], rtol=1e-6)
    assert kept.get_color() != removed.get_color()
    assert kept.get_marker() != removed.get_marker()


def test_forest_intervals_are_the_quantiles() -> None:
    axes = reporting.forest_plot(SMALL, "conv").axes[0]
    thin, thick = (c for c in axes.collections if isinstance(c, LineCollection))
    order = [1, 2, 0, 3]
    for lines, (low, high) in ((thin, (0.03, 0.97)), (thick, (0.25, 0.75))):
        ends = np.array([segment[:, 0] for segment in lines.get_segments()])
        expected = [SMALL.switches["conv"].quantile(q)[order] for q in (low, high)]
        np.testing.assert_allclose(ends.T, np.stack(expected), rtol=1e-6)


@pytest.mark.parametrize("decided", [None, plan({"other": [0]})])
def test_forest_without_a_decision_draws_one_kind_of_channel(decided: Any) -> None:
    axes = reporting.forest_plot(SMALL, "conv", decided).axes[0]
    assert [line.get_label() for line in axes.lines] == ["channels"]


def test_forest_of_many_channels_is_a_band_with_a_rug() -> None:
    figure = rendered(reporting.forest_plot(MANY, "fc", plan({"fc": list(range(455, 500))})))
    band, rug = figure.axes
    assert sum(isinstance(c, PolyCollection) for c in band.collections) == 2
    np.testing.assert_allclose(points(band.lines[0])[:, 1], np.linspace(2, 1, 500), rtol=1e-6)
    assert [label.get_text() for label in rug.get_yticklabels()] == ["kept (45)", "removed (455)"]
    kept = rug.collections[0]
    assert isinstance(kept, LineCollection)
    assert [s[0, 0] for s in kept.get_segments()] == list(range(1, 46))


@pytest.mark.parametrize(("size", "panels"), [(60, 1), (61, 2)])
def test_forest_changes_its_form_beyond_max_channels(size: int, panels: int) -> None:
    posterior = gates({"fc": list(range(size))}, {"fc": [1.0] * size}, 0.1)
    assert len(rendered(reporting.forest_plot(posterior, "fc")).axes) == panels


def test_forest_of_one_channel() -> None:
    figure = rendered(reporting.forest_plot(gates({"a": [7]}, {"a": [1.0]}, 0.1), "a"))
    assert tick_labels(figure) == ["7"]


def test_channels_come_in_the_order_of_the_selection() -> None:
    switch = LogNormal().bind(4)
    with torch.no_grad():
        switch.loc.copy_(torch.tensor([-3.0, -0.1, -3.0, -2.0]))
        switch.log_scale.copy_(torch.tensor([-4.0, -1.0, -4.0, -3.0]))
    posterior = SwitchPosterior({"a": switch}, [])
    mean, snr = posterior.mean["a"], posterior.scores().values["a"]
    assert mean[1] > mean[0] == mean[2]  # by size 1 is the best …
    assert snr[0] == snr[2] > snr[3] > snr[1]  # … and by signal to noise the worst
    kept = {"a": posterior.scores().best("a", 1)}
    chosen = PruningPlan(kept, {"a": 4}, "importance")
    figure = reporting.forest_plot(posterior, "a", chosen)
    assert tick_labels(figure) == ["2", "0", "3", "1"]
    (panel,) = reporting.rank_probability_plot(posterior, chosen).axes
    kept_line, removed = (line for line in panel.lines if line.get_marker() in ("o", "D"))
    assert points(kept_line)[:, 0].tolist() == [1]  # of the tied channels the kept one is first
    assert points(removed)[-1].tolist() == [4, 1.0]  # surely the largest gate, in the last place
    by_size = PruningPlan({"a": [1]}, {"a": 4}, "mean")
    assert tick_labels(reporting.forest_plot(posterior, "a", by_size))[0] == "1"
    foreign = PruningPlan({"a": [2]}, {"a": 4}, "Taylor")
    assert tick_labels(reporting.forest_plot(posterior, "a", foreign)) == ["2", "0", "3", "1"]


def test_forest_rejects_unknown_groups_and_channels() -> None:
    with pytest.raises(PlanError, match=r"expected a group .*'conv'.*got 'fc'"):
        reporting.forest_plot(SMALL, "fc")
    with pytest.raises(PlanError, match=r"conv: .*got \[0, 1\]"):
        reporting.forest_plot(SMALL, "conv", plan({"conv": [0, 1, 3]}))


# --- decisions --------------------------------------------------------------------------------


def test_ladder_shows_numbers_in_network_order() -> None:
    figure = rendered(
        reporting.kept_ladder({"conv2": {"kept": 5, "of": 20}, "conv1": {"kept": 50, "of": 50}})
    )
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["5 / 20", "50 / 50"]
    assert tick_labels(figure) == ["conv2", "conv1"]
    assert axes.yaxis_inverted()
    widths = [patch.get_width() for patch in axes.patches]  # pyright: ignore[reportAttributeAccessIssue]
    assert widths == [1, 1, 0.25, 1]


def test_ladder_cuts_the_middle_of_long_names() -> None:
    name = "features.denseblock4.denselayer16.conv2"
    (label,) = tick_labels(reporting.kept_ladder({name: {"kept": 1, "of": 2}}))
    head, tail = label.split("…")
    assert name.startswith(head)
    assert name.endswith(tail)
    assert len(label) == 24


def test_ladder_of_nothing() -> None:
    with pytest.raises(DataError, match="at least one group"):
        reporting.kept_ladder({})


def test_rank_panels_sort_channels_and_mark_decisions() -> None:
    posterior = gates(
        {"a": [0, 1, 2], "b": [0, 1], "c": [0, 1]},
        {"a": [0.0, 2.0, 1.0], "b": [1.0, 0.0], "c": [1.0, 0.0]},
        0.01,
    )
    figure = rendered(reporting.rank_probability_plot(posterior, plan({"a": [1, 2], "b": [1]})))
    a, b = figure.axes
    assert a.get_title(loc="left") == "a: 2 of 3"
    assert b.get_title(loc="left") == "b: 1 of 2"
    kept, removed = (line for line in b.lines if line.get_marker() in ("o", "D"))
    # The plan of b goes against the ranking: channel 0 is surely the best and was removed.
    assert (kept.get_label(), removed.get_label()) == ("kept", "removed")
    np.testing.assert_allclose(points(removed), [[1, 1.0]])
    np.testing.assert_allclose(points(kept), [[2, 0.0]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["kept", "removed"]


def test_rank_panel_of_a_large_group_stops_where_nothing_is_left_to_see() -> None:
    posterior = gates({"fc": list(range(500))}, {"fc": [1.0] * 45 + [0.0] * 455}, 0.01)
    axes = reporting.rank_probability_plot(posterior, plan({"fc": list(range(45))})).axes[0]
    right = axes.get_xlim()[1]
    assert 45 < right < 70
    assert axes.texts[0].get_text() == f"{500 - int(right)} more\nbelow 0.005"


def test_rank_panels_in_two_columns() -> None:
    names = "abcde"
    posterior = gates({n: [0, 1] for n in names}, {n: [1.0, 0.0] for n in names}, 0.01)
    figure = rendered(reporting.rank_probability_plot(posterior, plan({n: [0] for n in names})))
    assert len(figure.axes) == 5


def test_rank_plot_needs_a_common_group() -> None:
    with pytest.raises(PlanError, match=r"\['conv'\], got \['fc'\]"):
        reporting.rank_probability_plot(SMALL, plan({"fc": [0]}))


# --- fitting ----------------------------------------------------------------------------------


def test_elbo_rounds_follow_each_other() -> None:
    history = [{"epoch": e, "elbo": -1.0 / e, "nll": 1.0} for _ in range(2) for e in (1, 2, 3)]
    elbo, nll = rendered(reporting.elbo_plot(history)).axes
    curves = [line for line in elbo.lines if line.get_linestyle() == "-"]
    assert [points(curve)[:, 0].tolist() for curve in curves] == [[1, 2, 3], [4, 5, 6]]
    assert [points(line)[0, 0] for line in elbo.lines if line not in curves] == [3.5]
    assert nll.get_title(loc="left") == "negative log likelihood"
    assert nll.get_xlabel() == "epoch (2 rounds)"


def test_elbo_rounds_by_name() -> None:
    history = [{"epoch": e, "round": e // 2, "elbo": 1.0} for e in range(4)]
    assert reporting.elbo_plot(history).axes[0].get_xlabel() == "epoch (2 rounds)"


def test_elbo_of_one_epoch() -> None:
    (axes,) = rendered(reporting.elbo_plot([{"epoch": 0, "elbo": -2.0}])).axes
    assert axes.lines[0].get_marker() == "o"


def test_elbo_needs_rows() -> None:
    with pytest.raises(DataError, match="elbo"):
        reporting.elbo_plot([{"epoch": 1.0, "loss": 2.0}])


def test_training_curves_read_text_and_skip_blanks() -> None:
    rows = [
        {"stage": "pretrain", "epoch": "1", "loss": "2.0", "error": ""},
        {"stage": "pretrain", "epoch": "2", "loss": "1.0", "error": "0.5"},
        {"stage": "finetune", "epoch": "3", "loss": "0.1"},
    ]
    loss, error = rendered(reporting.training_plot(rows)).axes
    curves = {str(line.get_label()): line for line in loss.lines if line.get_linestyle() == "-"}
    np.testing.assert_allclose(points(curves["pretrain"]), [[1, 2], [2, 1]])
    np.testing.assert_allclose(points(curves["finetune"]), [[3, 0.1]])
    assert loss.get_yscale() == "log"
    assert error.get_yscale() == "linear"
    np.testing.assert_allclose(points(error.lines[0]), [[2, 0.5]])


def test_training_needs_numbers() -> None:
    with pytest.raises(DataError, match=r"\['loss', 'error'\], got 1 rows"):
        reporting.training_plot([{"stage": "pretrain", "loss": "none"}])


# --- feature maps -----------------------------------------------------------------------------


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() or axes.get_title(loc="left") for axes in figure.axes]


def test_feature_maps_are_ranked_and_framed() -> None:
    maps = np.random.default_rng(0).random((4, 6, 6))
    figure = rendered(
        reporting.feature_maps(
            np.zeros((1, 8, 8)), maps, torch.tensor([0.25, 1.5, 0.001, 0.5]), {1, 0}
        )
    )
    assert titles(figure) == ["input", "1: 1.5", "3: 0.5", "0: 0.25", "2: 0.001"]
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), maps[3])
    frames = [axes.spines["left"].get_edgecolor() for axes in figure.axes[1:]]
    assert frames[0] == frames[2] != frames[1] == frames[3]
    assert [axes.images[0].get_alpha() == 1 for axes in figure.axes[1:]] == [
        True, False, True, False,
    ]  # fmt: skip


def test_feature_maps_without_values_put_kept_ones_first() -> None:
    figure = reporting.feature_maps(np.zeros((8, 8)), np.ones((3, 4, 4)), kept=[2])
    assert titles(figure) == ["input", "2", "0", "1"]
    importance = [np.nan, 0.1, np.nan]
    figure = reporting.feature_maps(np.zeros((8, 8)), np.ones((3, 4, 4)), importance, kept=[1, 2])
    assert titles(figure) == ["input", "1: 0.1", "2", "0"]


def test_feature_maps_stop_at_max_maps() -> None:
    figure = rendered(reporting.feature_maps(np.ones((3, 8, 8)), np.ones((9, 4, 4)), max_maps=2))
    assert len(figure.axes) == 3
    assert "first 2 of 9" in figure.get_supxlabel()


def test_a_figure_asks_its_own_group_only(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = SwitchPosterior({n: InformationBottleneck().bind(3) for n in ("a", "b")}, [])
    asked = []
    quantile = InformationBottleneck.quantile  # slow where a family has to draw
    monkeypatch.setattr(
        InformationBottleneck, "quantile", lambda self, q: asked.append(self) or quantile(self, q)
    )
    reporting.forest_plot(posterior, "a")
    assert set(asked) == {posterior.switches["a"]}


def test_a_few_wide_gates_do_not_flatten_all_others() -> None:
    switch = InformationBottleneck(init_sd=0.1).bind(100)
    with torch.no_grad():
        switch.log_scale[7] = 4.0
    figure = reporting.forest_plot(SwitchPosterior({"a": switch}, []), "a")
    assert figure.axes[0].get_ylim()[1] < 2
    assert figure.axes[0].get_ylabel() == "gate (1 beyond the edge)"


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [
        ((8, 9), (8, 9)),
        ((1, 8, 9), (8, 9)),
        ((2, 8, 9), (8, 9)),
        ((3, 8, 9), (8, 9, 3)),
        ((8, 9, 3), (8, 9, 3)),
    ],
)
def test_input_layouts(shape: tuple[int, ...], drawn: tuple[int, ...]) -> None:
    image = np.linspace(-2, 2, int(np.prod(shape))).reshape(shape)
    picture = reporting.feature_maps(image, np.ones((1, 4, 4))).axes[0].images[0].get_array()
    assert picture is not None
    assert picture.shape == drawn
    assert (picture.min(), picture.max()) == (0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.ones((2, 2, 8, 8))}, "image"),
        ({"maps": np.ones((4, 4))}, r"maps: expected shape \(C, h, w\), got \(4, 4\)"),
        ({"importance": np.ones(3)}, r"importance: expected shape \(2,\), got \(3,\)"),
        ({"kept": [2]}, "kept: expected indices below 2, got 2"),
    ],
)
def test_feature_maps_reject_wrong_shapes(change: dict[str, Any], message: str) -> None:
    good = {"image": np.ones((8, 8)), "maps": np.ones((2, 4, 4)), "importance": np.ones(2)}
    with pytest.raises(DataError, match=message):
        reporting.feature_maps(**{**good, **change})


# --- several runs -----------------------------------------------------------------------------

RUNS = [
    {"label": "b", "macs": 3e5, "error": 0.008, "error_sd": 0.001},
    {"label": "b", "macs": 1e5, "error": 0.012},
    {"label": "_a $x$", "macs": 2e5, "error": 0.013},
    {"label": "whatever", "macs": 2.3e6, "error": 0.005, "dense": True},
]


def test_pareto_joins_runs_and_draws_the_frontier() -> None:
    figure = rendered(reporting.pareto_plot(RUNS))
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["b", "_a $x$", "dense"]
    front, *curves = (line for line in axes.lines if line.get_marker() not in ("_",))
    np.testing.assert_allclose(points(front), [[1e5, 0.012], [3e5, 0.008], [2.3e6, 0.005]])
    np.testing.assert_allclose(points(curves[0]), [[1e5, 0.012], [3e5, 0.008]])


@pytest.mark.parametrize("runs", [RUNS[:1], RUNS[:3], RUNS])
def test_pareto_axis_has_labels_at_every_width(runs: list[dict[str, Any]]) -> None:
    axes = rendered(reporting.pareto_plot(runs)).axes[0]
    low, high = axes.get_xlim()
    shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert 3 <= len(shown) <= 6
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert all(format_count(tick) in labels for tick in shown)


@pytest.mark.parametrize("errors", [(0.10, 0.11), (0.005, 0.013), (0.009, 0.64)])
def test_pareto_errors_have_labels_at_every_range(errors: tuple[float, float]) -> None:
    runs = [{"label": "a", "macs": 10 + error, "error": error} for error in errors]
    axes = rendered(reporting.pareto_plot(runs)).axes[0]
    assert axes.get_yscale() == "log"
    low, high = axes.get_ylim()
    assert low < min(errors) < max(errors) < high
    shown = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert 3 <= len(shown) <= 8
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert all(f"{100 * tick:g}%" in labels for tick in shown)


def test_pareto_shows_a_run_without_errors() -> None:
    axes = rendered(reporting.pareto_plot([{"label": "a", "macs": 9, "error": 0.0}])).axes[0]
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[0] == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one run"),
        ([{"label": "a", "macs": 0, "error": 0.1}], "run 'a': .*got 0 and 0.1"),
        ([{"label": "a", "macs": 1, "error": None}], "run 'a': .*got 1 and None"),
    ],
)
def test_pareto_rejects(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        reporting.pareto_plot(rows)


# --- calibration ------------------------------------------------------------------------------


def test_reliability_shows_bins_with_examples_and_how_sure_their_accuracy_is() -> None:
    bins = {"count": [0.0, 100.0, 400.0], "confidence": [0, 0.6, 0.95], "accuracy": [0, 0.5, 1.0]}
    figure = rendered(reporting.reliability_plot({"dense": bins, "pruned": bins}))
    above, below = figure.axes
    dense, pruned = above.containers
    assert (dense.get_label(), pruned.get_label()) == ("dense", "pruned")
    np.testing.assert_allclose(points(dense.lines[0]), [[0.6, 0.5], [0.95, 1.0]])
    segments = dense.lines[2][0].get_segments()
    # Wilson: (p + z²/2n ± z sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n)
    np.testing.assert_allclose(segments[0][:, 1], [0.4038, 0.5962], atol=1e-4)
    np.testing.assert_allclose(segments[1][:, 1], [0.9905, 1.0], atol=1e-4)
    np.testing.assert_allclose(points(below.lines[0]), [[0.6, 100], [0.95, 400]])


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ({}, "expected at least one, got none"),
        ({"dense": {"count": [0.0], "confidence": [0.0], "accuracy": [0.0]}}, "dense: expected"),
    ],
)
def test_reliability_rejects(networks: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        reporting.reliability_plot(networks)


# --- style ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (950, "950"),
        (999.9, "1K"),
        (158_700, "159K"),
        (2_293_000, "2.29M"),
        (4.1e9, "4.1G"),
    ],
)
def test_format_count(number: float, text: str) -> None:
    assert format_count(number) == text


def test_figures_leave_no_global_state_and_show_in_notebooks() -> None:
    before = dict(matplotlib.rcParams)
    figure: Any = reporting.kept_ladder({"a": {"kept": 1, "of": 2}})
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []
    assert figure._repr_png_().startswith(b"\x89PNG")
