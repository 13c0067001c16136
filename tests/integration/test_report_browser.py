"""The report in a real browser: it renders, reports no error, loads nothing, and is readable where it is read."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stm_training.report.html import write_report
from tests.integration.headless_chromium import Tab, chromium, find_chromium
from tests.report_summaries import rich_summary

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="no Chromium is installed (or name one: STM_CHROMIUM)"
)
PHONE, DESK = 360, 1200

# Texts whose contrast to what is behind them is too low to read, by the W3C's formula (WCAG 2.2, 1.4.3).
_CONTRAST = """(() => {
  const number = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = rgb => { const [r, g, b] = rgb.map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const behind = element => { for (let node = element; node; node = node.parentElement) {
    const rgb = number(getComputedStyle(node).backgroundColor);
    if (rgb.length === 3 || rgb[3] > 0) return rgb.slice(0, 3); } return [255, 255, 255]; };
  const low = [];
  for (const element of document.querySelectorAll("h1, h2, h3, p, li, th, td, pre, summary, figcaption, svg text, span")) {
    if (!element.textContent.trim() || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const ink = number(element.closest("svg") ? style.fill : style.color).slice(0, 3);
    const [a, b] = [light(ink), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < (element.closest("svg") ? 3.0 : 4.5)) low.push(element.textContent.trim().slice(0, 30) + " " + ratio.toFixed(2));
  }
  return low;
})()"""

# Elements that reach out of the page, but for those inside a box that scrolls by itself.
_OUTSIDE = """[...document.querySelectorAll("main *")]
  .filter(one => !one.closest(".wide, pre") && one.getClientRects().length)
  .filter(one => one.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(one => one.tagName + ": " + one.textContent.trim().slice(0, 40))"""

# Texts of charts that are drawn smaller than 7 pixels.
_SMALL = """[...document.querySelectorAll("svg text")]
  .map(one => [one.textContent, one.getBoundingClientRect().height])
  .filter(([text, height]) => text.trim() && height < 7)"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    assert PROGRAM is not None
    with chromium(PROGRAM, tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(rich_summary(), tmp_path_factory.mktemp("report") / "report.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_report_renders_without_an_error_and_asks_for_nothing(
    tab: Tab, report: Path, width: int, scheme: str
) -> None:
    tab.open(report, width=width, scheme="dark" if scheme == "dark" else "light")
    assert tab.errors == []
    assert [url for url in tab.requests if not url.startswith("data:")] == [report.as_uri()]
    assert tab.evaluate("document.querySelectorAll('section').length") >= 5
    drawn = (
        "[...document.querySelectorAll('svg')].filter(one => one.getBoundingClientRect().height > 80).length"
    )
    assert tab.evaluate(drawn) == tab.evaluate("document.querySelectorAll('svg').length") >= 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(tab: Tab, report: Path, scheme: str) -> None:
    tab.open(report, width=DESK, scheme="dark" if scheme == "dark" else "light")
    tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert tab.evaluate(_CONTRAST) == []


def test_dark_is_dark_and_light_is_light(tab: Tab, report: Path) -> None:
    brightness = {}
    for scheme in ("light", "dark"):
        tab.open(report, width=DESK, scheme="dark" if scheme == "dark" else "light")
        brightness[scheme] = _pixels(tab.screenshot()).mean()
    assert brightness["light"] > 0.8
    assert brightness["dark"] < 0.3


def test_a_phone_scrolls_down_and_never_sideways(tab: Tab, report: Path) -> None:
    tab.open(report, width=PHONE, height=740)
    tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE
    assert tab.evaluate(_OUTSIDE) == []
    assert tab.evaluate("parseFloat(getComputedStyle(document.querySelector('.verdict')).fontSize)") >= 16
    assert tab.evaluate("parseFloat(getComputedStyle(document.querySelector('td')).fontSize)") >= 12


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_texts_in_charts_are_large_enough_to_read(tab: Tab, report: Path, width: int) -> None:
    tab.open(report, width=width)
    assert tab.evaluate(_SMALL) == []


def test_hostile_texts_stay_texts(tab: Tab, tmp_path: Path) -> None:
    text = "<script>document.title = 'broken'</script><img src=x onerror=alert(1)>$x$ & \"'"
    page = write_report(rich_summary(text), tmp_path / "report.html")
    tab.open(page, width=DESK)
    assert tab.errors == []
    assert len(tab.requests) == 1
    assert tab.evaluate("document.scripts.length + document.images.length") == 0
    assert tab.evaluate("document.title") == f"{text}: retriever report"


def test_the_report_prints(tab: Tab, report: Path) -> None:
    tab.open(report, width=DESK, scheme="dark")
    printed = tab.printed()
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") >= 2 or printed.count(b"/Type /Page ") >= 2


def test_the_browser_does_report_an_error_and_a_request_where_there_is_one(tab: Tab, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><title>x</title><img src='http://127.0.0.1:9/x.png'><script>throw 1</script>"
    )
    tab.open(page, width=DESK)
    assert tab.errors
    assert any(url.startswith("http://") for url in tab.requests)


def _pixels(png: bytes) -> Any:
    from matplotlib.image import imread

    return imread(io.BytesIO(png), format="png")[..., :3]
