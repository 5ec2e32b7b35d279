"""The page in a real browser: drawn with the record's numbers, sorted, used by keys, narrow and wide, light and dark.

    uv run --with playwright --with axe-playwright-python pytest tests/page/test_in_browser.py

Needs Chromium (Debian's: apt install chromium); left out where it, or one of the two packages, is not there.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs_to_show import HOSTILE, changed_section, hostile, kept
from workplace import Workplace

from raq.page.parts import Page
from raq.page.records import RunRecords
from raq.page.render import render
from raq.page.run_page import page_of
from raq.store.files import read_json, write_json
from raq.store.local import Store, sealed

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Opened:
    """A page that was opened, and what it said and asked for."""

    def __init__(self, browser: Any, file: Path, width: int = 1280, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-drawn=yes]", timeout=60_000)

    def open_all(self) -> None:
        self.page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        self.page.wait_for_timeout(500)


@pytest.fixture(params=["cifar10", "mixed-precision", "minilm"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[RunRecords, Path]:
    run = kept(request.param)
    (tmp_path / "page.html").write_text(render(page_of(run)), encoding="utf-8")
    return run, tmp_path / "page.html"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_it_is_quiet_and_asks_for_nothing(browser: Any, file: tuple[RunRecords, Path], width: int, scheme: str) -> None:
    """No message on the console, no request but the file itself, no scrolling to the side."""
    opened = Opened(browser, file[1], width, scheme)
    opened.open_all()
    assert opened.said == []
    assert opened.asked == [file[1].as_uri()]
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.page.evaluate("document.documentElement.dataset.theme") == scheme


def test_plots_are_drawn_with_the_records_numbers(browser: Any, file: tuple[RunRecords, Path]) -> None:
    """Read back from the document: where each marker of the raw rounds stands on its axis."""
    run, path = file
    opened = Opened(browser, path)
    opened.open_all()
    drawn = opened.page.evaluate("""() => [...document.querySelectorAll('.plot[id^="rounds"]')].map((plot) => {
      const axis = plot._fullLayout.yaxis;
      const markers = [...plot.querySelectorAll('.scatterlayer .trace')].map((trace) =>
        [...trace.querySelectorAll('.point')].map((point) => {
          const at = new DOMMatrix(getComputedStyle(point).transform).f ||
            Number(/translate\\([^,]+,([^)]+)\\)/.exec(point.getAttribute('transform'))[1]);
          return axis.p2d(at);
        }));
      return [plot.id, plot.data.map((trace) => trace.name), markers];
    })""")
    assert drawn
    for name, names, markers in drawn:
        _, device, size = name.split("-")
        for trace, values in zip(names, markers, strict=True):
            candidate, runtime = trace.rsplit("/", 1)
            row = next(
                row
                for c in run.summary["candidates"]
                if c["name"] == candidate
                for row in c["latency"]
                if (row["runtime"], row["device"], row["batch_size"]) == (runtime, device, int(size))
            )
            assert values == pytest.approx(row["round_p50_ms"], rel=0.01)


def test_hover_says_everything_of_a_point(browser: Any, file: tuple[RunRecords, Path]) -> None:
    opened = Opened(browser, file[1])
    plot = opened.page.locator(".plot").first
    plot.scroll_into_view_if_needed()
    opened.page.evaluate("(plot) => Plotly.Fx.hover(plot, [{curveNumber: 1, pointNumber: 0}])", plot.element_handle())
    text = opened.page.locator(".hoverlayer").first.text_content()
    assert "ms" in text
    assert "times as fast as eager FP32" in text


def test_a_table_is_sorted_by_mouse_and_by_keys(browser: Any, file: tuple[RunRecords, Path]) -> None:
    """A click sorts upwards, Enter on the heading downwards; numbers as numbers."""
    opened = Opened(browser, file[1])
    column = opened.page.locator("#candidates th", has_text="ms").first
    at = column.evaluate("(heading) => [...heading.parentNode.children].indexOf(heading)")

    def values() -> list[float]:
        cells = opened.page.locator(f"#candidates tbody tr td:nth-child({at + 1})").all_text_contents()
        return [float(cell) for cell in cells if cell]

    column.locator("button").click()
    assert column.get_attribute("aria-sort") == "ascending"
    assert values() == sorted(values())
    column.locator("button").focus()
    opened.page.keyboard.press("Enter")
    assert column.get_attribute("aria-sort") == "descending"
    assert values() == sorted(values(), reverse=True)


def test_keys_reach_the_link_that_skips_first(browser: Any, file: tuple[RunRecords, Path]) -> None:
    opened = Opened(browser, file[1])
    opened.page.keyboard.press("Tab")
    assert opened.page.evaluate("document.activeElement.className") == "skip"
    opened.page.keyboard.press("Enter")
    assert opened.page.evaluate("location.hash") == "#decision"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Any, file: tuple[RunRecords, Path], scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    opened = Opened(browser, file[1], scheme=scheme)
    opened.open_all()
    opened.page.evaluate(  # the policy of the page itself forbids what the checker adds
        "document.querySelector('meta[http-equiv]').remove()"
    )
    found = axe.Axe().run(opened.page).response["violations"]
    bad = [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found if one["impact"] in SERIOUS]
    assert bad == []


def test_a_hostile_record_runs_nothing(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(render(page_of(hostile("minilm"))), encoding="utf-8")
    opened = Opened(browser, tmp_path / "page.html")
    opened.open_all()
    assert opened.said == []
    assert opened.asked == [(tmp_path / "page.html").as_uri()]
    assert "alert(1)" in opened.page.locator("body").inner_text()
    assert "\u202e" in HOSTILE
    assert "\u202e" not in opened.page.content()


@pytest.fixture(scope="module", params=["compare", "runs", "changed"])
def other_page(request: pytest.FixtureRequest, finished: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of two real runs, and the section with pictures of what changed."""
    folder = tmp_path_factory.mktemp("pages")
    path = folder / "page.html"
    if request.param == "changed":
        path.write_text(render(Page("changed", "changed", "", "", False, [changed_section()])), encoding="utf-8")
        return path
    shutil.copytree(finished.folder / "results", folder / "results")
    first = Store(folder / "results").run_folders()[0]
    other = first.with_name("99990101T000000-tiny")
    shutil.copytree(first, other)
    write_json(other / "run.json", sealed({**read_json(first / "run.json"), "id": other.name}))
    runs = (first.name, other.name) if request.param == "compare" else ()
    done = finished.raq_here(request.param, *runs, "--results", str(folder / "results"), "--html", str(path))
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_other_pages_are_quiet_and_accessible(browser: Any, other_page: Path, width: int, scheme: str) -> None:
    """No message, no request, no scrolling to the side; plots drawn, pictures shown, nothing serious by axe."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    opened = Opened(browser, other_page, width, scheme)
    opened.open_all()
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith("data:")] == [other_page.as_uri()]
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    drawn = opened.page.evaluate("[...document.querySelectorAll('.plot')].map((p) => !!p.querySelector('.main-svg'))")
    assert drawn and all(drawn)
    shown = opened.page.evaluate("[...document.querySelectorAll('.gallery img')].map((image) => image.naturalWidth)")
    assert all(shown)
    opened.page.evaluate("document.querySelector('meta[http-equiv]').remove()")
    found = axe.Axe().run(opened.page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in SERIOUS] == []
