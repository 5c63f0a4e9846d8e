"""The report: self-contained, escaped, honest in its counts, and complete with parts missing."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bayesprune.errors import DataError, PlanError
from bayesprune.plan import PruningPlan
from bayesprune.posterior import SwitchPosterior
from bayesprune.reporting.report import ReportData, write_report
from bayesprune.selection import ChannelScores
from bayesprune.switches import Dirichlet, LogNormal

DENSE = {
    "error": 0.0051, "nll": 0.017, "ece": 0.002, "macs": 2_293_000, "params": 431_080,
    "weights": 430_500, "latency_ms": 0.4,
}  # fmt: skip
PRUNED = {
    "error": 0.0099, "nll": 0.031, "ece": 0.003, "macs": 158_700, "params": 12_345,
    "weights": 12_000, "latency_ms": 0.5,
}  # fmt: skip
SIZES = {"conv1": 4, "fc1": 80}
KEPT = {"conv1": [1, 3], "fc1": [0, 1, 2]}


class Probabilities:
    """A posterior with known rank probabilities."""

    def __init__(self, probability: dict[str, list[float]], channels: Any = None) -> None:
        self.probability = {n: torch.tensor(p) for n, p in probability.items()}
        self.names = list(probability)
        self.channels = channels or {n: torch.arange(len(p)) for n, p in probability.items()}
        self.mean = self.probability
        self.history = [{"epoch": e, "elbo": -1 / e, "nll": 0.9 / e, "kl": 0.1} for e in (1, 2)]

    def scores(self, measure: str = "importance") -> ChannelScores:
        return ChannelScores(self.mean, measure)

    def ranks_by(self, measure: str) -> None:
        assert measure == "importance"

    @property
    def switches(self) -> dict[str, Any]:
        return {
            name: SimpleNamespace(mean=lambda p=p: p, quantile=lambda q, p=p: p * (0.5 + q))
            for name, p in self.mean.items()
        }

    def rank_probability(self, count: dict[str, int]) -> dict[str, torch.Tensor]:
        assert list(count) == self.names
        return self.probability

    def summary(self) -> pd.DataFrame:
        return pd.DataFrame(
            {"layer": n, "channel": int(c), "mean": float(m)}
            for n in self.names
            for c, m in zip(self.channels[n], self.mean[n], strict=True)
        )


def posterior(*args: Any) -> Any:
    return Probabilities(*args)


def plan(kept: dict[str, list[int]], sizes: dict[str, int]) -> Any:
    return SimpleNamespace(kept=kept, sizes=sizes, method="importance")


def summary(kept: dict[str, list[int]] = KEPT, sizes: dict[str, int] = SIZES) -> dict[str, Any]:
    return {
        "schema": 1,
        "method": "Dirichlet",
        "model": "lenet5",
        "data": "MNIST",
        "seed": 0,
        "dense": DENSE,
        "pruned": PRUNED,
        "architecture": {n: {"kept": len(kept[n]), "of": sizes[n]} for n in sizes},
        "seconds": {"pretrain": 81.25, "finetune": 4212.0},
        "versions": {"torch": "2.15.0"},
    }


FULL = ReportData(
    config="method: Dirichlet  # <script>alert(1)</script>\n",
    summary=summary(),
    plan=plan(KEPT, SIZES),
    posterior=posterior(
        {
            "conv1": [0.5, 0.96, 0.04, 0.5],
            "fc1": [0.99, 0.99, 0.02] + [0.97] + [0.03] * 76,
        }
    ),
    metrics=[{"stage": "pretrain", "epoch": str(e), "loss": str(1 / e)} for e in (1, 2, 3)],
    image=np.eye(6),
    feature_maps=np.random.default_rng(0).random((4, 5, 5)),
)

QUICK = replace(FULL, posterior=None, metrics=(), image=None)


class Page(HTMLParser):
    """What a test wants to know of a page; complains about tags that do not match."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def pictures(self) -> Iterator[tuple[dict[str, str | None], bytes]]:
        for image in self.all("img"):
            kind, _, content = (image["src"] or "").partition(",")
            assert kind == "data:image/png;base64"
            yield image, base64.b64decode(content, validate=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "new"
    assert write_report(folder, FULL) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(folder / "report.html")


def text(tmp_path: Path, data: ReportData) -> str:
    return Page(write_report(tmp_path, data)).text


# --- the page ---------------------------------------------------------------------------------


def test_every_figure_is_embedded_described_and_on_disk(folder: Path, page: Page) -> None:
    embedded = []
    for image, content in page.pictures():
        assert len(image["alt"] or "") > 20
        size = struct.unpack(">II", content[16:24])  # PNG header
        assert (image["width"], image["height"]) == tuple(map(str, size))
        embedded.append(content)
    assert sorted(path.name for path in (folder / "figures").iterdir()) == [
        "architecture.png", "elbo.png", "feature-maps.png", "gates-00-conv1.png",
        "gates-01-fc1.png", "rank-probability.png", "training.png",
    ]  # fmt: skip
    assert {path.read_bytes() for path in (folder / "figures").iterdir()} == set(embedded)
    assert sorted(path.name for path in folder.iterdir()) == ["figures", "report.html"]


def test_nothing_is_fetched_or_run(folder: Path, page: Page) -> None:
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|url\(|@import", (folder / "report.html").read_text())


def test_config_is_escaped(page: Page) -> None:
    assert "# <script>alert(1)</script>" in page.text


def test_structure_for_assistive_technology(page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert page.all("title")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert set(levels[1:]) == {2}
    assert all(header.get("scope") for header in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) == 4
    viewport = next(tag for tag in page.all("meta") if tag.get("name") == "viewport")
    assert "width=device-width" in (viewport["content"] or "")


def test_tables_scroll_in_their_own_box(page: Page) -> None:
    boxes = [tag for tag, attributes in page.tags if attributes.get("class") == "scroll"]
    assert len(boxes) == len(page.all("table"))


def test_order_of_the_parts(page: Page) -> None:
    parts = [
        "lenet5 pruned by Dirichlet", "14.4× fewer multiply-accumulates,", "How sure",
        "On what grounds", "Dense and pruned", "Architecture", "Posterior of the gates",
        "All channels as a table", "Can the approximation be trusted?", "Calibration",
        "Feature maps",
        "Fitting and training", "Configuration and versions",
    ]  # fmt: skip
    places = [page.text.rindex(part) for part in parts]
    assert places == sorted(places)


# --- the words --------------------------------------------------------------------------------


def test_verdict_says_what_went_and_what_it_cost(page: Page) -> None:
    assert "79 of 84 channels are gone, 5 stay (2 of 4 in conv1, 3 of 80 in fc1)." in page.text
    assert "went from 2.29M to 159K (14.4× fewer)" in page.text
    assert "Test error went from 0.51% to 0.99% (+0.48 points)." in page.text
    assert "one run with one seed" in page.text


def test_verdict_counts_decisions(page: Page) -> None:
    # Kept: 0.96, 0.5 in conv1; 0.99, 0.99, 0.02 in fc1. Removed: 0.5, 0.04; 0.97, 76 times 0.03.
    assert "80 of 84 decisions (95.2%) are clear-cut" in page.text
    assert "3 of 5 kept channels" in page.text
    assert "77 of 79 removed ones" in page.text
    assert "In between, 2 (2.4%) are uncertain: 1 kept, 1 removed." in page.text
    assert "2 went clearly against the ranking of the gates" in page.text


def test_widths_that_the_prior_decides_are_not_sold_as_certainty(tmp_path: Path) -> None:
    data = replace(FULL, summary={**summary(), "estimator": "AnalyticMean"})
    words = text(tmp_path, data)
    assert "clear-cut" not in words
    assert "How sure This run does not say. The switches were fitted with AnalyticMean" in words
    section = words.partition("A gate multiplies the output")[2]
    assert "the prior alone decides how wide the posterior is." in section
    assert section.count("The prior alone decides how wide the intervals are.") == 2
    assert "The prior alone decides how steep the fall" in section
    assert "the less sure" not in words
    assert "too confident" not in words
    assert "How good the approximation is was not measured" in words


def test_verdict_gives_counts_where_the_test_size_is_known(tmp_path: Path) -> None:
    more = {
        "test_size": 10_000,
        "held_out": {"dense": {"error": 0.006}, "cut": {"error": 0.18}, "pruned": {"error": 0.01}},
        "scratch": {"error": 0.0125},
    }
    words = text(tmp_path, replace(QUICK, summary={**summary(), **more}))
    assert "51 wrong of 10,000 before, 99 after" in words
    assert "0.81% to 1.20%" in words  # Wilson interval of 99 in 10,000
    assert (
        "On held-out training data the error was 0.60% before, 18.00% right after the cut, "
        "1.00% of the finished network." in words
    )
    assert "trained from scratch has 1.25%" in words
    assert "Same widths from scratch" in words
    assert "Measured on 10,000 test examples" in words


def test_table_of_costs(page: Page) -> None:
    for row in (
        "Test error 0.51% 0.99% +0.48 points",
        "NLL (nats) 0.0170 0.0310 +0.0140",
        "MACs 2,293,000 158,700 14.4× fewer",
        "Latency 0.4 ms 0.5 ms –",
        "pretrain 81.2 s finetune 1 h 10 min",
    ):
        assert row in page.text


@pytest.mark.parametrize(
    ("before", "after", "size", "said"),
    [
        (4, 3, 360, "no measurable change (4 → 3 wrong of 360)"),
        (56, 66, 360, "no measurable change (56 → 66 wrong of 360)"),
        (0, 0, 100, "no measurable change (0 → 0 wrong of 100)"),
        (51, 99, 10_000, "+0.48 points of test error"),
        (99, 51, 10_000, "−0.48 points of test error"),
    ],
)
def test_the_headline_does_not_sell_noise(
    tmp_path: Path, before: int, after: int, size: int, said: str
) -> None:
    shares = {"dense": before / size, "pruned": after / size}
    errors = {name: {**summary()[name], "error": share} for name, share in shares.items()}
    words = text(tmp_path, replace(QUICK, summary={**summary(), **errors, "test_size": size}))
    assert f"14.4× fewer multiply-accumulates, {said} Removed" in words


def test_the_interval_of_the_change(tmp_path: Path) -> None:
    # Newcombe 1998, Table II (b), method 10, for 9/10 - 3/10: 0.1705 to 0.8090.
    errors = {"dense": {**DENSE, "error": 0.3}, "pruned": {**PRUNED, "error": 0.9}}
    words = text(tmp_path, replace(QUICK, summary={**summary(), **errors, "test_size": 10}))
    assert "+17.05 points to +80.90 points for the change" in words


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        ([0.9, 1.03, 1.1], "no difference measurable (0.90× to 1.10×)"),
        ([1.004, 1.006, 1.008], "no difference measurable (1.00× to 1.01×)"),
        ([1.2, 1.25, 1.3], "1.25× slower (1.20 to 1.30)"),
        ([0.4, 0.5, 0.8], "2.00× faster (1.25 to 2.50)"),
    ],
)
def test_latency_is_compared_with_its_spread(tmp_path: Path, ratio: list[float], said: str) -> None:
    latency = {"ratio": ratio, "blocks": 60, "batch_size": 1, "device": "cpu", "threads": 2}
    words = text(tmp_path, replace(QUICK, summary={**summary(), "latency": latency}))
    assert f"Latency 0.4 ms 0.5 ms {said}" in words
    assert "latency of a batch of 1 on cpu with 2 CPU threads" in words
    assert "median over 60 blocks" in words


def test_what_was_not_measured_is_said(page: Page) -> None:
    assert "How good the approximation is was not measured in this run." in page.text
    assert "Not measured in this run: neither Pareto k-hat" in page.text
    assert "By confidence, it was not measured in this run." in page.text


def test_checks_of_the_approximation(tmp_path: Path) -> None:
    checks = {
        "Pareto k-hat": {
            "value": 1.3125,
            "threshold": 0.7,
            "verdict": "<too far>",
        },
        "Restarts": {"value": "3 fits"},
    }
    words = text(tmp_path, replace(FULL, summary={**summary(), "diagnostics": checks}))
    assert (
        "Check Value Verdict Pareto k-hat 1.31 (threshold 0.7) <too far> Restarts 3 fits –" in words
    )
    assert "Checks: Pareto k-hat 1.31 failed (threshold 0.7); Restarts 3 fits." in words
    assert "Not measured in this run" not in words


def test_calibration(tmp_path: Path) -> None:
    bins = {"count": [0.0, 10.0, 90.0], "confidence": [0, 0.6, 0.99], "accuracy": [0, 0.5, 0.98]}
    more = {"reliability": {"dense": bins, "pruned": bins}}
    page = Page(write_report(tmp_path, replace(QUICK, summary={**summary(), **more})))
    assert "were 0.20 points apart before pruning and are 0.30 points apart now" in page.text
    assert "(NLL) went from 0.0170 to 0.0310 nats." in page.text
    assert "not measured in this run" not in page.text
    [alt] = [image["alt"] for image in page.all("img") if "confidence" in (image["alt"] or "")]
    assert alt is not None
    assert "pruned: 90.00% of the examples have a confidence near 99.00%, of which 98.00%" in alt


def test_class_paths_are_named_by_their_class(tmp_path: Path) -> None:
    method = {"class_path": "my.package.Gates", "init_args": {"strength": 1}}
    words = text(tmp_path, replace(QUICK, summary={**summary(), "method": method}))
    assert "lenet5 pruned by Gates" in words


# --- missing and extreme parts ----------------------------------------------------------------


def test_deterministic_method(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path, replace(FULL, posterior=None)))
    assert "ranks channels without an uncertainty" in page.text
    assert "Posterior of the gates" not in page.text
    assert "approximation" not in page.text
    alts = " ".join(image["alt"] or "" for image in page.all("img"))
    assert "feature maps of conv1, kept ones first, 2 of 4 kept" in alts


def test_the_bare_minimum(tmp_path: Path) -> None:
    needed = ("method", "model", "architecture")
    bare = {**{key: summary()[key] for key in needed}, "dense": {}, "pruned": {"macs": None}}
    page = Page(write_report(tmp_path, ReportData("", bare, plan(KEPT, SIZES))))
    assert len(page.all("img")) == 1
    assert "MACs – – –" in page.text
    assert "the cost is unknown" in page.text
    assert "The calibration error was not measured" in page.text


def test_one_channel(tmp_path: Path) -> None:
    sizes, kept = {"conv1": 1}, {"conv1": [0]}
    data = ReportData("", summary(kept, sizes), plan(kept, sizes), posterior({"conv1": [1.0]}))
    assert "No group had both" in text(tmp_path, data)


def test_many_groups_and_channels(tmp_path: Path) -> None:
    sizes = {f"block/{i}": 500 if i == 0 else 2 for i in range(8)}
    kept = {name: [0] for name in sizes}
    gates = posterior({n: [0.99] + [0.001] * (size - 1) for n, size in sizes.items()})
    page = Page(
        write_report(tmp_path, ReportData("", summary(kept, sizes), plan(kept, sizes), gates))
    )
    assert (tmp_path / "figures" / "gates-07-block-7.png").exists()
    assert "2 more groups" in page.text
    assert "8 of 8 kept channels" in page.text
    assert "in block/0" not in page.text  # too many groups to list in a sentence


def test_long_tables_are_cut_and_say_so(tmp_path: Path) -> None:
    sizes, kept = {"fc": 1001}, {"fc": [0]}
    gates = posterior({"fc": [0.99] + [0.001] * 1000})
    data = ReportData("", summary(kept, sizes), plan(kept, sizes), gates)
    assert "(first 1000 of 1001)" in text(tmp_path, data)


def test_channels_removed_in_earlier_rounds(tmp_path: Path) -> None:
    gates = posterior({"conv1": [0.99, 0.2, 0.3]}, {"conv1": torch.tensor([0, 2, 3])})
    sizes, kept = {"conv1": 4}, {"conv1": [0]}
    data = ReportData("", summary(kept, sizes), plan(kept, sizes), gates)
    words = text(tmp_path, replace(data, image=np.eye(6), feature_maps=np.ones((4, 5, 5))))
    assert "Channels removed in earlier rounds (1) have no gate." in words
    assert "1 of 1 kept channels" in words


def test_real_posterior_and_plan(tmp_path: Path) -> None:
    gates = SwitchPosterior(
        {name: Dirichlet(concentration=0.1).bind(size, size) for name, size in SIZES.items()},
        [{"epoch": 1, "elbo": -1.0, "nll": 0.9, "kl": 0.1}],
    )
    words = text(tmp_path, replace(QUICK, posterior=gates, plan=PruningPlan(KEPT, SIZES)))
    assert "of 84 decisions" in words
    assert "by the mean gate. The closer a kept and a removed channel lie" in words


def test_a_family_that_does_not_rank_by_size_is_not_contradicted(tmp_path: Path) -> None:
    switch = LogNormal().bind(4)
    with torch.no_grad():
        switch.loc.copy_(torch.tensor([-3.0, -0.1, -2.5, -2.0]))
        switch.log_scale.copy_(torch.tensor([-4.0, 0.5, -4.0, -3.0]))
    gates, sizes, kept = SwitchPosterior({"a": switch}, []), {"a": 4}, {"a": [0, 2]}
    for method, by in (
        ("importance", "the signal to noise ratio of the gate"),
        ("evidence", "the evidence that would be lost with the channel"),
    ):
        data = ReportData("", summary(kept, sizes), PruningPlan(kept, sizes, method), gates)
        words = text(tmp_path, data)
        assert f"ranked by {by}; the probabilities are of the gate's size" in words
        assert "0 of 2 kept channels have one of the k largest gates" in words
        assert "which the ranking allows for" in words
        assert f"sorted as the selection ranked them, by {by}." in words
        assert f"a: gates, 2 of them kept, sorted by {by}." in words
        for wrong in ("against", "clear-cut", "the less sure", "clearer the cut"):
            assert wrong not in words


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"summary": {"method": "x"}}, DataError, "summary: expected .*'model', 'dense'"),
        (
            {"summary": {**summary(), "diagnostics": {"Pareto k-hat": 1.3}}},
            DataError,
            "diagnostics: expected a mapping of names to value, .* got {'Pareto k-hat': 1.3}",
        ),
        ({"feature_maps": np.ones((3, 5, 5))}, DataError, "expected 4 maps for conv1, got 3"),
        ({"plan": plan({"conv1": [9], "fc1": [0]}, SIZES)}, PlanError, r"conv1: .*got \[9\]"),
    ],
)
def test_bad_input_leaves_the_old_report(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    report = tmp_path / "report.html"
    report.write_text("old")
    with pytest.raises(error, match=message):
        write_report(tmp_path, replace(FULL, **change))
    assert report.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_rebuilding_replaces_and_repeats(tmp_path: Path) -> None:
    first = write_report(tmp_path, QUICK).read_bytes()
    assert write_report(tmp_path, QUICK).read_bytes() == first
    assert not list(tmp_path.rglob(".*"))
