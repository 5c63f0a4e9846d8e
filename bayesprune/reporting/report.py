"""The report of a run folder: one self-contained HTML page, and its figures as PNG files."""

from __future__ import annotations

import base64
import io
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from scipy.stats import binomtest

from bayesprune.checkpoint import write_bytes_atomic
from bayesprune.errors import DataError
from bayesprune.estimators import AnalyticMean
from bayesprune.reporting import map_plots, posterior_plots, run_plots, training_plots
from bayesprune.reporting._figures import format_count, numbers
from bayesprune.reporting.summary import METRICS

if TYPE_CHECKING:
    from bayesprune.plan import PruningPlan
    from bayesprune.posterior import SwitchPosterior

_DPI = 170
_MAX_TABLE_ROWS = 1000
_NONE = "–"
_CHANGES = {
    "macs": ("fewer", "more"),
    "params": ("fewer", "more"),
    "weights": ("fewer", "more"),
}


@dataclass(frozen=True)
class ReportData:
    """What a report is made of.

    Attributes
    ----------
    config : str
        The run's configuration, YAML.
    summary : dict
        ``summary.json``: ``method``, ``model``, ``data``, ``seed``, the metrics ``dense`` and
        ``pruned`` (``error`` as a fraction, ``nll`` in nats, ``ece``, ``macs``, ``params``,
        ``weights``, ``latency_ms``), ``architecture`` (``{group: {"kept", "of"}}``); where
        present also ``estimator``, ``seconds``, ``versions``, the metrics ``scratch`` (same widths
        trained from scratch), ``latency`` (of the networks timed in turn: ``ratio``, the quartiles
        and the median of pruned over dense, ascending, ``blocks``, ``batch_size``, ``device`` and
        ``threads``), ``held_out`` (metrics on held-out training data: ``dense``, ``cut``
        before fine-tuning, ``pruned``), ``reliability`` (of ``dense`` and ``pruned``, see
        `bayesprune.training.reliability`), ``test_size`` (number of test examples, turns fractions
        into counts), and ``diagnostics`` of the posterior approximation: by name a mapping of
        ``value``, ``threshold`` and ``verdict`` (in words), any of which may be absent.
    plan : PruningPlan
        What was kept.
    posterior : SwitchPosterior, optional
        What the switches learnt; None for methods that leave no posterior.
    metrics : sequence of mappings
        Rows of ``metrics.csv`` in time order: ``stage``, ``epoch``, ``loss``, ...
    image : array, optional
        An example input, (h, w), (1 or 3, h, w) or (h, w, 1 or 3).
    feature_maps : array of shape (C, h', w'), optional
        What the dense network's first group makes of `image`, one map per original channel.
    """

    config: str
    summary: Mapping[str, Any]
    plan: PruningPlan
    posterior: SwitchPosterior | None = None
    metrics: Sequence[Mapping[str, Any]] = ()
    image: Any | None = None
    feature_maps: Any | None = None


class _Picture(NamedTuple):
    file: str
    alt: str
    caption: str
    png: bytes
    width: int
    height: int

    @property
    def uri(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.png).decode('ascii')}"


class _Table(NamedTuple):
    caption: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


def write_report(folder: Path | str, data: ReportData) -> Path:
    """Write ``report.html`` and ``figures/*.png`` into a run folder.

    The page needs no other file, no script and no network.  Everything is made before anything
    is written, and each file is replaced in one step, so a failure leaves the old report intact.

    Parameters
    ----------
    folder : Path or str
        The run folder; created if missing.
    data : ReportData
        What to report.

    Returns
    -------
    Path
        The HTML file.

    Raises
    ------
    DataError
        The summary lacks a required entry, or `feature_maps` does not fit the plan.
    PlanError
        Plan and posterior do not belong together.
    """
    missing = [
        k for k in ("method", "model", "dense", "pruned", "architecture") if k not in data.summary
    ]
    if missing:
        raise DataError(f"summary: expected the entries {missing}, got {[*data.summary]}")
    pictures = {
        "ladder": _ladder(data),
        "gates": _gates(data),
        "ranks": _ranks(data),
        "bins": _bins(data),
        "maps": _maps(data),
        "curves": _curves(data),
    }
    page = _render(data, **pictures)

    folder = Path(folder)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for picture in chain.from_iterable(pictures.values()):
        write_bytes_atomic(folder / "figures" / picture.file, picture.png)
    report = folder / "report.html"
    write_bytes_atomic(report, page.encode())
    return report


def _render(data: ReportData, **pictures: list[_Picture]) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = files(__package__ or "").joinpath("report.html.jinja").read_text(encoding="utf-8")
    summary = data.summary
    return environment.from_string(source).render(
        title=title(summary),
        about=about(summary),
        headline=headline(summary),
        verdict=verdict(data),
        costs=costs(summary),
        calibration=_calibration(summary),
        diagnostics=_diagnostics(summary),
        gates_are=_gates_are(data),
        channels=_channels(data),
        seconds=_pairs("Time spent", ("Stage", "Time"), summary.get("seconds"), _duration),
        versions=_pairs("Versions", ("Package", "Version"), summary.get("versions"), str),
        config=data.config,
        **pictures,
    )


# --- words ------------------------------------------------------------------------------------


def short_name(value: Any) -> str:
    """Name a model, data set or method as configured: by name or by class path."""
    if isinstance(value, Mapping) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    return str(value.get("name", value) if isinstance(value, Mapping) else value)


def _number(metrics: Mapping[str, Any] | None, field: str) -> float | None:
    """Read a measured value; None if it was not measured."""
    value = (metrics or {}).get(field)
    return None if value is None or not math.isfinite(value) else float(value)


def _both(summary: Mapping[str, Any], field: str) -> tuple[float, float] | None:
    """Read a value of the dense and of the pruned network; None unless both were measured."""
    before, after = _number(summary["dense"], field), _number(summary["pruned"], field)
    return None if before is None or after is None else (before, after)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}%"


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f} points".replace("-", "−")


def _ratio(before: float, after: float, less: str, more: str) -> str:
    """Write ``"14.5× fewer"``, or ``"1.2× more"`` if the number grew."""
    if before <= 0 or after <= 0:
        return _NONE
    if f"{before:.3g}" == f"{after:.3g}":
        return "unchanged"
    factor, word = (before / after, less) if before > after else (after / before, more)
    return f"{factor:.3g}× {word}"


def _speed(low: float, middle: float, high: float) -> str:
    """Say how much faster or slower, from quartiles of the time of pruned over that of dense."""
    if round(low, 2) <= 1 <= round(high, 2):
        return f"no difference measurable ({low:.2f}× to {high:.2f}×)"
    if high < 1:
        return f"{1 / middle:.2f}× faster ({1 / high:.2f} to {1 / low:.2f})"
    return f"{middle:.2f}× slower ({low:.2f} to {high:.2f})"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def title(summary: Mapping[str, Any]) -> str:
    """Name the network and the method."""
    return f"{short_name(summary['model'])} pruned by {short_name(summary['method'])}"


def about(summary: Mapping[str, Any]) -> str:
    """Name data, estimator and seed, where known."""
    parts = [
        f"{key} {short_name(summary[key])}"
        for key in ("data", "estimator", "seed")
        if summary.get(key) is not None
    ]
    return ", ".join(parts)


def verdict(data: ReportData) -> list[tuple[str, str]]:
    """Say what was removed, what it cost and how sure that is, as (heading, text)."""
    said = [("Removed", _removed(data.summary)), ("Cost", _cost(data.summary))]
    if data.posterior is None:
        text = (
            f"{short_name(data.summary['method'])} ranks channels without an uncertainty, so "
            "nothing can be said here about how clear each decision is."
        )
        return [*said, ("How sure", text)]
    checks = _checks(data.summary)
    trust = (
        f"Checks: {'; '.join(_outcome(name, check) for name, check in checks.items())}."
        if checks
        else "How good the approximation is was not measured in this run."
    )
    if _widths_of_the_prior(data.summary):
        sure = (
            f"This run does not say. {_WIDTHS_OF_THE_PRIOR} Neither its intervals nor its "
            "probabilities tell how clear a decision is; fit with another estimator (fit.estimator "
            "Implicit) for some that do, or see with restarts whether other fits choose the same "
            "channels."
        )
    else:
        sure = _certainty(data.posterior, data.plan)
        trust = (
            "The probabilities come from the fitted approximation of the posterior, which can be "
            "too confident. They say how clearly the gates differ in size, not how much the "
            f"network would lose without a channel. {trust}"
        )
    return [*said, ("How sure", sure), ("On what grounds", trust)]


_WIDTHS_OF_THE_PRIOR = (
    "The switches were fitted with AnalyticMean, which sees the mean of each gate and never its "
    "spread, so the prior alone decides how wide the posterior is."
)


def _widths_of_the_prior(summary: Mapping[str, Any]) -> bool:
    """Whether the fit left the posterior as wide as the prior made it."""
    return summary.get("estimator") == AnalyticMean.__name__


def _outcome(name: str, check: Mapping[str, Any]) -> str:
    """Say in words how a check of the approximation went."""
    value, threshold = check.get("value"), check.get("threshold")
    if value is None:
        return f"{name}: {check.get('verdict', 'could not be measured')}"
    if threshold is None:
        return f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
    kind = "passed" if value <= threshold else "failed"
    return f"{name} {value:.3g} {kind} (threshold {threshold:.3g})"


def headline(summary: Mapping[str, Any]) -> str:
    """Put the run in one line: how much cheaper for how much error."""
    macs, error = _both(summary, "macs"), _both(summary, "error")
    parts = []
    if macs:
        parts.append(f"{_ratio(*macs, 'fewer', 'more')} multiply-accumulates")
    if found := _mistakes(summary):
        (before, after), size = found
        low, high = _change_interval(before, after, size)
        if low <= 0 <= high:
            parts.append(f"no measurable change ({before:,} → {after:,} wrong of {size:,})")
            return ", ".join(parts)
    if error:
        parts.append(f"{_points(error[1] - error[0])} of test error")
    return ", ".join(parts)


def _mistakes(summary: Mapping[str, Any]) -> tuple[tuple[int, int], int] | None:
    """How many test examples both networks got wrong, and of how many; None if not known."""
    errors, size = _both(summary, "error"), summary.get("test_size")
    if errors is None or not size:
        return None
    return (round(errors[0] * size), round(errors[1] * size)), size


def _wilson(wrong: int, size: int) -> tuple[float, float]:
    interval = binomtest(wrong, size).proportion_ci(method="wilson")
    return interval.low, interval.high


def _change_interval(before: int, after: int, size: int) -> tuple[float, float]:
    """95% interval of the change in error, from two Wilson intervals (Newcombe 1998, method 10).

    That both networks see the same examples makes it wide: their mistakes go together.
    """
    (low, high), (low_after, high_after) = _wilson(before, size), _wilson(after, size)
    one, other = before / size, after / size
    down, up = math.hypot(other - low_after, high - one), math.hypot(high_after - other, one - low)
    return other - one - down, other - one + up


def _removed(summary: Mapping[str, Any]) -> str:
    architecture = summary["architecture"]
    kept = sum(group["kept"] for group in architecture.values())
    size = sum(group["of"] for group in architecture.values())
    text = f"{size - kept} of {size} channels are gone, {kept} stay"
    if len(architecture) <= 6:
        widths = (
            f"{group['kept']} of {group['of']} in {name}" for name, group in architecture.items()
        )
        text += f" ({', '.join(widths)})"
    text += "."
    for field, noun in (("macs", "multiply-accumulates for one input"), ("params", "parameters")):
        if counts := _both(summary, field):
            before, after = map(format_count, counts)
            ratio = _ratio(*counts, "fewer", "more")
            text += f" {noun.capitalize()} went from {before} to {after} ({ratio})."
    return text


def _cost(summary: Mapping[str, Any]) -> str:
    errors = _both(summary, "error")
    if errors is None:
        return "The test error was not measured before and after, so the cost is unknown."
    before, after = errors
    text = (
        f"Test error went from {_percent(before)} to {_percent(after)} ({_points(after - before)})"
    )
    if found := _mistakes(summary):
        (wrong_before, wrong), size = found
        low, high = map(_percent, _wilson(wrong, size))
        least, most = map(_points, _change_interval(wrong_before, wrong, size))
        text += (
            f": {wrong_before:,} wrong of {size:,} before, {wrong:,} after. The luck of the test "
            f"sample alone leaves {low} to {high} for the pruned network (95% interval, Wilson, "
            f"JASA 1927) and {least} to {most} for the change (Newcombe, Statistics in Medicine "
            "1998; rather wide, since both networks saw the same examples)"
        )
    text += "."
    held_out = summary.get("held_out", {})
    stages = {
        "before": "dense",
        "right after the cut": "cut",
        "of the finished network": "pruned",
    }
    shares = [
        f"{_percent(share)} {when}"
        for when, key in stages.items()
        if (share := _number(held_out.get(key), "error")) is not None
    ]
    if shares:
        text += f" On held-out training data the error was {', '.join(shares)}."
    scratch = _number(summary.get("scratch"), "error")
    if scratch is not None:
        text += f" A network of the same widths trained from scratch has {_percent(scratch)}."
    return f"{text} This is one run with one seed; other seeds will differ."


def _certainty(posterior: SwitchPosterior, plan: PruningPlan) -> str:
    """Count clear and unclear decisions over the groups in which there was something to decide."""
    kept, removed = list[float](), list[float]()
    for name, probability in posterior_plots.rank_probability(posterior, plan).items():
        channels, chosen = posterior.channels[name].tolist(), set(plan.kept.get(name, ()))
        if 0 < len(chosen) < len(channels):
            for channel, p in zip(channels, probability.tolist(), strict=True):
                (kept if channel in chosen else removed).append(p)
    if not kept:
        return "No group had both channels to keep and channels to remove."
    kept, removed = np.array(kept), np.array(removed)
    unsure_kept, unsure_removed = (int(((p >= 0.05) & (p <= 0.95)).sum()) for p in (kept, removed))
    against = int((kept < 0.05).sum() + (removed > 0.95).sum())
    clear_kept, clear_removed = int((kept > 0.95).sum()), int((removed < 0.05).sum())
    clear, unsure = clear_kept + clear_removed, unsure_kept + unsure_removed
    total = len(kept) + len(removed)
    if by := _ranked_by(posterior, plan):
        text = (
            f"Channels were ranked by {by}; the probabilities are of the gate's size, which is "
            f"something else. {clear_kept} of {len(kept)} kept channels have one of the k largest "
            "gates of their group (k = number kept) with probability above 0.95, and "
            f"{clear_removed} of {len(removed)} removed ones with less than 0.05."
        )
        if against:
            text += f" {against} are clearly the other way round, which the ranking allows for."
        return text
    text = (
        f"{clear} of {total} decisions ({100 * clear / total:.1f}%) are clear-cut: {clear_kept} of "
        f"{len(kept)} kept channels are among the best k of their group (k = number kept) with "
        f"probability above 0.95, and {clear_removed} of {len(removed)} removed ones with less "
        f"than 0.05. In between, {unsure} ({100 * unsure / total:.1f}%) are uncertain: "
        f"{unsure_kept} kept, {unsure_removed} removed."
    )
    if against:
        text += (
            f" {against} went clearly against the ranking of the gates: the selection did not "
            "follow the gates alone."
        )
    return text


def _ranked_by(posterior: SwitchPosterior, plan: PruningPlan) -> str | None:
    """What the plan ranked channels by, in words; None if by the mean gate."""
    return posterior.ranks_by(posterior_plots.selection_scores(posterior, plan).measure)


def _gates_are(data: ReportData) -> str:
    """Say how to read the figures of the gates."""
    if data.posterior is None:
        return ""
    by = _ranked_by(data.posterior, data.plan)
    said = [
        "A gate multiplies the output of its channel.",
        f"Channels are sorted as the selection ranked them, by {by or 'the mean gate'}.",
    ]
    if by:
        said.append("So a kept channel may have a smaller gate than a removed one.")
    if _widths_of_the_prior(data.summary):
        said.append(_WIDTHS_OF_THE_PRIOR)
    elif not by:
        said.append(
            "The closer a kept and a removed channel lie, the less sure the choice between them."
        )
    return " ".join(said)


# --- tables -----------------------------------------------------------------------------------


def costs(summary: Mapping[str, Any]) -> _Table:
    """Dense against pruned, and whatever other networks the run measured."""
    sides = {"Dense": summary["dense"], "Pruned": summary["pruned"]}
    others = {"Same widths from scratch": summary["scratch"]} if summary.get("scratch") else {}
    timed = summary.get("latency")

    def write(field: str, value: float | None) -> str:
        if value is None:
            return _NONE
        if field == "error":
            return _percent(value)
        if field in ("macs", "params", "weights"):
            return f"{value:,.0f}"
        return f"{value:.3g} ms" if field == "latency_ms" else f"{value:.4f}"

    def change(field: str) -> str:
        values = _both(summary, field)
        if values is None:
            return _NONE
        before, after = values
        if field == "error":
            return _points(after - before)
        if field in ("nll", "ece"):
            return f"{after - before:+.4f}".replace("-", "−")
        if field == "latency_ms":  # networks timed at different moments cannot be compared
            return _speed(*timed["ratio"]) if timed else _NONE
        return _ratio(*values, *_CHANGES[field])

    rows = [
        [title, *(write(field, _number(side, field)) for side in sides.values()), change(field)]
        + [write(field, _number(side, field)) for side in others.values()]
        for field, title in METRICS.items()
    ]
    size = summary.get("test_size")
    caption = f"Measured on {f'{size:,} test examples' if size else 'the test set'}"
    if timed:
        caption += (
            f"; latency of a batch of {timed['batch_size']} on {timed['device']} with "
            f"{timed['threads']} CPU thread{'s' if timed['threads'] > 1 else ''}"
        )
    note = (
        "NLL: negative log likelihood. ECE: expected calibration error. MACs: multiply-accumulates "
        "for one input. Weights: without biases and norms."
    )
    if timed:
        note += (
            f" Latency: median over {timed['blocks']} blocks of calls, in which the networks took "
            "turns; in brackets the quartiles over the blocks of how the two compare."
        )
    return _Table(caption, ["", *sides, "Change", *others], rows, note)


def _channels(data: ReportData) -> _Table | None:
    """Print the posterior's own summary, one row per channel."""
    if data.posterior is None:
        return None
    frame = data.posterior.summary()
    rows = [
        [f"{cell:.3g}" if isinstance(cell, float | np.floating) else str(cell) for cell in row]
        for row in frame.head(_MAX_TABLE_ROWS).itertuples(index=False)
    ]
    shown = "" if len(rows) == len(frame) else f" (first {len(rows)} of {len(frame)})"
    return _Table(f"Posterior summary per channel{shown}", [*map(str, frame.columns)], rows)


def _calibration(summary: Mapping[str, Any]) -> str:
    """Say whether confidence can be taken at its word, before and after."""
    gaps = _both(summary, "ece")
    if gaps is None:
        return "The calibration error was not measured before and after."
    before, after = gaps
    text = (
        "A network is calibrated if it is right as often as its confidence says. On average the "
        f"two were {_share(before)} apart before pruning and are {_share(after)} apart now "
        "(expected calibration error, ECE)"
    )
    likelihoods = _both(summary, "nll")
    if likelihoods is not None:
        text += "; the negative log likelihood (NLL) went from {:.4f} to {:.4f} nats".format(
            *likelihoods
        )
    if not summary.get("reliability"):
        text += ". By confidence, it was not measured in this run"
    return f"{text}."


def _share(gap: float) -> str:
    return f"{100 * gap:.2f} points"


def _checks(summary: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    entries = summary.get("diagnostics") or {}
    if not isinstance(entries, Mapping) or not all(
        isinstance(entry, Mapping) for entry in entries.values()
    ):
        raise DataError(
            f"diagnostics: expected a mapping of names to value, threshold and verdict, "
            f"got {entries!r}"
        )
    return entries


def _diagnostics(summary: Mapping[str, Any]) -> _Table | None:
    """Checks of the approximation, as the run recorded them."""
    entries = _checks(summary)
    if not entries:
        return None

    def write(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    rows = []
    for name, entry in entries.items():
        value, threshold, verdict = (
            None if entry.get(key) is None else write(entry[key])
            for key in ("value", "threshold", "verdict")
        )
        number = (value or _NONE) + (f" (threshold {threshold})" if threshold else "")
        rows.append([str(name), number, verdict or _NONE])
    return _Table("Checks of the approximation", ["Check", "Value", "Verdict"], rows)


def _pairs(caption: str, header: tuple[str, str], values: Any, write: Any) -> _Table | None:
    if not values:
        return None
    return _Table(caption, [*header], [[str(key), write(value)] for key, value in values.items()])


# --- figures ----------------------------------------------------------------------------------


def _picture(file: str, figure: Figure, alt: str, caption: str) -> _Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    png = buffer.getvalue()
    width, height = struct.unpack(">II", png[16:24])  # from the file's own header
    return _Picture(f"{file}.png", alt, caption, png, width, height)


def _ladder(data: ReportData) -> list[_Picture]:
    architecture = data.summary["architecture"]
    listed = ", ".join(f"{name} {g['kept']} of {g['of']}" for name, g in architecture.items())
    return [
        _picture(
            "architecture",
            run_plots.kept_ladder(architecture),
            f"Bars of channels kept per group: {listed}.",
            "Channels kept per group, in network order.",
        )
    ]


def _gates(data: ReportData) -> list[_Picture]:
    posterior = data.posterior
    if posterior is None:
        return []
    pictures = []
    by = _ranked_by(posterior, data.plan) or "the mean gate"
    for place, name in enumerate(posterior.names):
        size, kept = len(posterior.channels[name]), data.plan.kept.get(name)
        decided = "" if kept is None else f", {len(kept)} of them kept"
        gone = data.plan.sizes.get(name, size) - size
        notes = f" Channels removed in earlier rounds ({gone}) have no gate." if gone else ""
        if _widths_of_the_prior(data.summary):
            notes += " The prior alone decides how wide the intervals are."
        mean = posterior.mean[name]
        pictures.append(
            _picture(
                f"gates-{place:02d}-{re.sub(r'[^A-Za-z0-9._-]', '-', name)}",
                posterior_plots.forest_plot(posterior, name, data.plan),
                f"Posterior of the gates of {name}: {size} channels{decided}, sorted by {by}; "
                f"means from {float(mean.min()):.2g} to {float(mean.max()):.2g}.",
                f"{name}: gates{decided}, sorted by {by}.{notes}",
            )
        )
    return pictures


def _ranks(data: ReportData) -> list[_Picture]:
    posterior = data.posterior
    if posterior is None or not any(name in data.plan.kept for name in posterior.names):
        return []
    by = _ranked_by(posterior, data.plan)
    meaning = []
    if by:
        meaning.append(f"Best by the size of the gate; channels are sorted by {by}.")
    if _widths_of_the_prior(data.summary):
        meaning.append("The prior alone decides how steep the fall from 1 to 0 is.")
    elif not by:
        meaning.append(
            "The steeper the fall from 1 to 0, the clearer the cut; decisions between the dashed "
            "lines are uncertain."
        )
    return [
        _picture(
            "rank-probability",
            posterior_plots.rank_probability_plot(posterior, data.plan),
            "Per group, each channel's probability of being among the best k, sorted by "
            f"{by or 'the mean gate'}, with k the number of channels kept; lines at 0.05 and 0.95.",
            " ".join(["Probability of being among the best k of the group.", *meaning]),
        )
    ]


def _bins(data: ReportData) -> list[_Picture]:
    reliability = data.summary.get("reliability")
    if not reliability:
        return []
    said = []
    for name, bins in reliability.items():
        place = max(range(len(bins["count"])), key=bins["count"].__getitem__)
        share = bins["count"][place] / sum(bins["count"])
        said.append(
            f"{name}: {_percent(share)} of the examples have a confidence near "
            f"{_percent(bins['confidence'][place])}, of which {_percent(bins['accuracy'][place])} "
            "are right"
        )
    return [
        _picture(
            "reliability",
            run_plots.reliability_plot(reliability),
            f"Accuracy against confidence on the test set, and the number of examples. "
            f"{'; '.join(said)}.",
            "Accuracy among the test examples of similar confidence, with 95% intervals. Below the "
            "diagonal a network is too sure of itself.",
        )
    ]


def _maps(data: ReportData) -> list[_Picture]:
    if data.image is None or data.feature_maps is None:
        return []
    group = next(iter(data.summary["architecture"]))
    size, kept = data.plan.sizes[group], data.plan.kept.get(group)
    if len(data.feature_maps) != size:
        raise DataError(
            f"feature_maps: expected {size} maps for {group}, got {len(data.feature_maps)}"
        )
    importance = None
    if data.posterior is not None and group in data.posterior.names:
        # Channels removed in an earlier round have no gate any more.
        importance = np.full(size, math.nan)
        channels = data.posterior.channels[group].tolist()
        scores = posterior_plots.selection_scores(data.posterior, data.plan)
        importance[channels] = scores.values[group].tolist()
    order = "kept ones first" if importance is None else "ranked by the score of the selection"
    count = "" if kept is None else f", {len(kept)} of {size} kept"
    return [
        _picture(
            "feature-maps",
            map_plots.feature_maps(data.image, data.feature_maps, importance, kept),
            f"An input image and the feature maps of {group}, {order}{count}.",
            f"An input and what {group} makes of it, {order}. Titles: original channel index"
            f"{'' if importance is None else ' and score'}.",
        )
    ]


def _curves(data: ReportData) -> list[_Picture]:
    pictures = []
    if data.posterior is not None and data.posterior.history:
        history = data.posterior.history
        pictures.append(
            _picture(
                "elbo",
                training_plots.elbo_plot(history),
                f"ELBO, negative log likelihood and KL over {len(history)} epochs"
                f"{_ending(history, 'elbo')}.",
                "The evidence lower bound (ELBO) of the switches and its two parts.",
            )
        )
    columns = [c for c in ("loss", "error") if np.isfinite(numbers(data.metrics, c)).any()]
    if columns:
        pictures.append(
            _picture(
                "training",
                training_plots.training_plot(data.metrics, columns),
                f"{' and '.join(columns).capitalize()} over {len(data.metrics)} epochs of all "
                f"stages{_ending(data.metrics, columns[0])}.",
                "Training, stage after stage. Losses of different stages need not be comparable.",
            )
        )
    return pictures


def _ending(rows: Sequence[Mapping[str, Any]], column: str) -> str:
    """First and last value of a curve, for readers who cannot see it."""
    values = numbers(rows, column)
    values = values[np.isfinite(values)]
    return f", {column} from {values[0]:.3g} to {values[-1]:.3g}" if len(values) else ""
