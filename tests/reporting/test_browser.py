"""The report in a real browser: on a phone, on a desk and on paper.

Chromium is driven through its DevTools protocol over a pipe, so nothing but the browser is needed.
Without one the tests are skipped, or fail if BAYESPRUNE_BROWSER=required.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bayesprune.plan import PruningPlan
from bayesprune.posterior import SwitchPosterior
from bayesprune.reporting import ReportData, write_report
from bayesprune.switches import Dirichlet

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-pipe", "--force-prefers-reduced-motion",
]  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 120.0  # seconds for one answer of a browser on a busy machine
WIDTHS = [380, 1280]

# Text whose contrast with what is behind it is below 4.5 (WCAG 2.2, 1.4.3), as [ratio, text].
CONTRAST = """
(() => {
  const parse = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
  const light = rgb => rgb.slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), node = walker.currentNode.parentElement;
    if (!text) continue;
    seen += 1;
    const [one, other] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) faint.push([ratio, text]);
  }
  return {seen, faint};
})()
"""
# Boxes that reach over the right edge and do not scroll in a box of their own.
OVERFLOW = """
(() => ({
  page: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  wide: [...document.querySelectorAll("body *")]
    .filter(e => !e.closest(".scroll, pre"))
    .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map(e => e.tagName + " " + e.textContent.trim().slice(0, 40)),
}))()
"""
IMAGES = """
Promise.all([...document.images].map(i => i.decode().catch(() => null))).then(() =>
  [...document.images].map(i => ({alt: i.alt, width: i.naturalWidth, shown: i.clientWidth})))
"""


def browser() -> str:
    """The path of a Chromium; skips the test, or fails it where one is required."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        message = f"no Chromium here (looked for {', '.join(NAMES)})"
        if os.environ.get("BAYESPRUNE_BROWSER") == "required":
            pytest.fail(message)
        pytest.skip(message)
    return found


class Chromium:
    """A headless browser with one page, spoken to in DevTools messages that end in a zero byte."""

    def __init__(self, profile: Path) -> None:
        (child_in, self._out), (self._in, child_out) = os.pipe(), os.pipe()
        # The browser reads from descriptor 3 and writes to 4; no pipe may have these numbers.
        given = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (child_in, child_out)]
        self._process = subprocess.Popen(
            [
                *("bash", "-c", 'exec "$@" 3<&{} 4>&{}'.format(*given), "bash"),
                *(browser(), *FLAGS, f"--user-data-dir={profile}", "about:blank"),
            ],
            pass_fds=given,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (child_in, child_out, *given):
            os.close(end)
        self._buffer, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        targets = self.ask("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        attached = self.ask("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], PATIENCE)
            part = os.read(self._in, 1 << 20) if ready else b""
            if not part:
                raise RuntimeError(f"no answer of the browser, exit code {self._process.poll()}")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command; events on the way are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.ask(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def open(self, page: Path, width: int) -> None:
        """Load a page in a window of a width in CSS pixels; its events start anew."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=800, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self.events.clear()
        self.ask("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def close(self) -> None:
        """End it, and wait."""
        self._session = ""
        try:
            self.ask("Browser.close")
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._in)
            os.close(self._out)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all parts, and names and numbers of awkward length."""
    sizes = {"conv1": 6, "features.denseblock3.denselayer17.norm1.convolution": 80, "fc": 4}
    kept = {name: list(range(size // 2)) for name, size in sizes.items()}
    switches = {name: Dirichlet().bind(size, size) for name, size in sizes.items()}
    with torch.no_grad():
        for switch in switches.values():
            for parameter in switch.parameters():
                parameter += torch.linspace(2, -2, switch.size)
    history = [{"epoch": e, "elbo": -1 / e, "nll": 0.9 / e, "kl": 0.1} for e in (1, 2, 3)]
    metrics = {
        "error": 0.0099, "nll": 0.031, "ece": 0.003, "macs": 4_158_700_123, "params": 12_345_678,
        "weights": 12_000_000, "latency_ms": 0.5,
    }  # fmt: skip
    bins = {"count": [0.0, 20.0, 980.0], "confidence": [0, 0.6, 0.99], "accuracy": [0, 0.5, 0.98]}
    check = {
        "value": 1.31,
        "threshold": 0.7,
        "verdict": "The guide is too far from the posterior for importance sampling to help.",
    }
    summary = {
        "method": "Dirichlet",
        "model": "a.package.with.a.long.path:a_factory_with_a_long_name",
        "data": "digits",
        "seed": 0,
        "dense": metrics,
        "pruned": metrics,
        "scratch": metrics,
        "test_size": 1000,
        "architecture": {name: {"kept": len(kept[name]), "of": sizes[name]} for name in sizes},
        "reliability": {"dense": bins, "pruned": bins},
        "diagnostics": {"Pareto k-hat": check},
        "seconds": {"pretrain": 81.25},
        "versions": {"torch": "2.15.0"},
    }
    data = ReportData(
        config="method:\n  class_path: " + "a_very_long_name." * 20 + "\n",
        summary=summary,
        plan=PruningPlan(kept, sizes),
        posterior=SwitchPosterior(switches, history),
        metrics=[{"stage": "pretrain", "epoch": str(e), "loss": str(1 / e)} for e in (1, 2, 3)],
        image=np.eye(6),
        feature_maps=np.random.default_rng(0).random((6, 5, 5)),
    )
    return write_report(tmp_path_factory.mktemp("report"), data)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    started = Chromium(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_report_in_a_browser(chromium: Chromium, page: Path, width: int) -> None:
    chromium.open(page, width)
    assert chromium.run("innerWidth") == width
    overflow = chromium.run(OVERFLOW)
    assert overflow["page"] <= 0
    assert overflow["wide"] == []
    images = chromium.run(IMAGES)
    assert len(images) == len(list((page.parent / "figures").iterdir())) == 9
    for image in images:
        assert image["width"] > 0
        assert image["shown"] > 0.5 * min(width, 500)
        assert len(image["alt"]) > 20
    contrast = chromium.run(CONTRAST)
    assert contrast["seen"] > 200
    assert contrast["faint"] == []
    # Every entry of the contents leads to a heading.
    links = "[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))"
    targets = chromium.run(f"{links}.map(h => document.querySelector(h)?.tagName)")
    assert len(targets) == 8
    assert set(targets) == {"H2"}
    said = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    assert [event for event in chromium.events if event["method"] in said] == []
    fetched = [
        event["params"]["request"]["url"]
        for event in chromium.events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in fetched if not url.startswith(("file:", "data:"))] == []


def test_checks_of_the_page_can_fail(chromium: Chromium, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<meta name='viewport' content='width=device-width'><body>"
        "<p style='width: 900px; color: #aaa'>pale</p><img src='none.png'>"
        "<script>console.error('oh')</script>"
    )
    chromium.open(bad, 380)
    overflow = chromium.run(OVERFLOW)
    assert overflow["page"] > 500
    assert overflow["wide"] == ["P pale"]
    [[ratio, text]] = chromium.run(CONTRAST)["faint"]
    assert (round(ratio, 2), text) == (2.32, "pale")  # 1.05 / (0.402 + 0.05)
    assert chromium.run(IMAGES)[0]["width"] == 0
    assert any(event["method"] == "Runtime.consoleAPICalled" for event in chromium.events)


def test_report_on_paper(chromium: Chromium, page: Path) -> None:
    chromium.open(page, 1280)
    printed = chromium.ask("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)
    pdf = base64.b64decode(printed["data"])
    assert pdf.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12
    chromium.ask("Emulation.setEmulatedMedia", media="print")
    try:
        chromium.open(page, 718)  # A4 less its margins, in CSS pixels
        assert chromium.run(OVERFLOW)["page"] <= 0
        hidden = "getComputedStyle(document.querySelector('nav')).display"
        assert chromium.run(hidden) == "none"
        scrolled = "[...document.querySelectorAll('.scroll, pre')]"
        assert (
            chromium.run(
                f"{scrolled}.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.innerText)"
            )
            == []
        )
    finally:
        chromium.ask("Emulation.setEmulatedMedia", media="")
