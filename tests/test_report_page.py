"""The report and the audit, opened in Chromium, clicked and typed into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from gradalign.alignment.record import Alignment, Numbers
from gradalign.alignment.table import write_alignments
from gradalign.cli.main import main
from gradalign.files import write_json
from gradalign.policy.group import Group
from gradalign.rollouts.table import write_rollouts
from tests.conftest import Ran, make_groups

Run = Callable[..., Ran]
pytestmark = pytest.mark.filterwarnings("ignore::gradalign.errors.GradAlignWarning")
NASTY = "</script><img src=x onerror=\"alert(1)\"><b>&amp; %{x} \u2028 'so'\nsecond line"
ROWS = "#problems-table tbody tr"


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as library:
        opened = library.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "r.html"
    assert main(["report", str(demo), "--out", str(out)]) == 0
    return out


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page; in the end nothing may have been asked of a network, nor said on the console."""
    requests: list[str] = []
    said: list[str] = []
    opened: list[Any] = []

    def go(path: Path, width: int = 1280, scheme: Any = "light", **more: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, **more)
        opened.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append("dialog"))
        page.goto(path.as_uri())
        return page

    yield go
    for context in opened:
        context.close()
    assert {url.split(":")[0] for url in requests} <= {"file", "blob", "data"}, requests
    assert [url for url in requests if url.startswith("file")] == [url for url in requests if url.endswith(".html")], (
        requests
    )
    assert said == []


def column(page: Page, name: str) -> list[str]:
    heads = page.locator("#problems-table thead button").all_inner_texts()
    return page.locator(f"{ROWS} > :nth-child({heads.index(name) + 1})").all_inner_texts()


def floats(texts: list[str]) -> list[float]:
    return [float(text) for text in texts if text != "-"]


def test_problems_are_sorted_and_searched(visit: Callable[..., Page], report: Path) -> None:
    page = visit(report)
    table = page.locator("#problems-table")
    assert floats(column(page, "rank")) == list(range(1, 51))
    expect(page.locator("#place")).to_have_text("1 to 50 of 64")
    page.click("#after")
    assert floats(column(page, "rank")) == list(range(51, 65))
    table.get_by_role("button", name="pass rate").click()
    rates = floats(column(page, "pass rate"))
    assert rates == sorted(rates)
    head = page.locator("#problems-table th", has_text="pass rate")
    expect(head).to_have_attribute("aria-sort", "ascending")
    page.keyboard.press("Enter")  # the heading kept the focus
    expect(head).to_have_attribute("aria-sort", "descending")
    rates = floats(column(page, "pass rate"))
    assert rates == sorted(rates, reverse=True)
    cosines = column(page, "cosine")
    table.get_by_role("button", name="cosine", exact=True).click()
    assert column(page, "cosine") != cosines
    assert column(page, "cosine")[-1] != "-"  # what has none comes last, on the next page

    page.select_option("#which", "1")
    assert set(column(page, "choice")) == {"chosen"}
    assert page.locator(ROWS).count() == 8
    page.select_option("#which", "")
    page.select_option("#source", "countdown")
    assert set(column(page, "source")) == {"countdown"}
    page.select_option("#source", "")
    first = page.locator(f"{ROWS} th button").first.inner_text()
    page.fill("#search", first)
    assert all(first in text for text in column(page, "problem")[:1])
    assert page.locator(ROWS).count() < 50
    page.fill("#search", "no such words")
    expect(page.locator("#place")).to_have_text("no problem has these words")
    page.fill("#search", "")

    button = page.locator(f"{ROWS} th button").first
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_have_attribute("aria-expanded", "true")
    expect(page.locator("td.detail")).to_contain_text("times")
    page.keyboard.press("Enter")
    expect(page.locator("td.detail")).to_have_count(0)


def test_points_show_their_problem(visit: Callable[..., Page], report: Path) -> None:
    page = visit(report)
    points = page.locator("#scatter .points path")
    drawn = points.count()
    assert drawn == 64 - column_of_unscored(page)
    page.locator("#scatter").scroll_into_view_if_needed()
    points.nth(drawn - 1).hover(force=True)
    hover = page.locator("#scatter .hoverlayer .hovertext")
    expect(hover).to_contain_text("pass rate")
    expect(hover).to_contain_text("chosen")  # drawn last
    expect(hover).to_contain_text("\u00d7")  # responses, so many times each
    points.nth(drawn - 1).click(force=True)
    expect(page.locator("#kept")).to_be_visible()
    expect(page.locator("#kept .responses")).to_be_visible()
    page.locator("#kept").get_by_role("button", name="close").click()
    expect(page.locator("#kept")).to_be_hidden()
    heights = [point.get_attribute("transform") for point in points.all()[:5]]
    page.select_option("#measure", "dot")
    assert [point.get_attribute("transform") for point in points.all()[:5]] != heights
    page.select_option("#view", label="demo/train-random, round 1")  # nothing was sampled there
    expect(page.locator("#point-note")).to_contain_text("Nothing in this round has both numbers.")
    assert page.locator(ROWS).count() == 32
    page.select_option("#view", label="demo/train-guarded, round 1")
    expect(page.locator("#scatter")).to_be_visible()


def column_of_unscored(page: Page) -> int:
    page.select_option("#which", "0")
    page.fill("#search", "")
    counted = 0
    for button in ("", "#after"):
        if button:
            page.click(button)
        counted += sum(text in ("zero variance", "failed", "no tokens") for text in column(page, "choice"))
    page.select_option("#which", "")
    return counted


def test_runs_are_hidden_and_tables_sorted(visit: Callable[..., Page], report: Path) -> None:
    page = visit(report)
    lines = page.locator("[data-figure=test] .scatterlayer .trace")
    expect(lines).to_have_count(3)
    box = page.get_by_role("checkbox", name="demo/train-guarded")
    box.uncheck()
    expect(lines).to_have_count(2)
    box.check()
    expect(lines).to_have_count(3)
    assert page.locator("figure .plot .main-svg").count() >= 2 * page.locator("[data-figure]").count()
    rounds = page.locator("#timeline table")
    rounds.get_by_role("button", name="test reward").click()
    values = floats(rounds.locator("tbody tr > :nth-child(12)").all_inner_texts())
    assert len(values) == 6
    assert values == sorted(values)
    assert rounds.locator("tbody tr > :nth-child(12)").all_inner_texts()[-1] == "-"
    for name in ("In short", "Timeline", "Sources", "Cost", "Chosen by both", "Problems"):
        page.get_by_role("link", name=name).click()
    assert page.locator("h1, h2").all_inner_texts() == [
        "GradAlign: 4 runs", "In short", "Timeline", "Sources of the chosen problems", "Cost", "Chosen by both",
        "Problems",
    ]  # fmt: skip
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, select, .plot')].filter((e) =>"
        " !(e.textContent.trim() || e.labels?.length || e.getAttribute('aria-label'))).map((e) => e.outerHTML)"
    )
    assert unnamed == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_modes_have_their_colours(visit: Callable[..., Page], report: Path, scheme: str) -> None:
    page = visit(report, scheme=scheme)
    # Of what is on the page: what a reader must be able to tell apart has the contrast that WCAG asks for.
    look = """() => {
      const linear = (v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
      const light = (text) => {
        const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(Number).map(linear);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const paper = light(getComputedStyle(document.body).backgroundColor);
      const least = (where, name) => Math.min(...[...document.querySelectorAll(where)].map((element) => {
        const [a, b] = [light(getComputedStyle(element)[name]), paper].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
      }));
      return {
        dark: paper < 0.2, texts: least("h1, .note, th button, .chosen, a", "color"),
        ticks: least("[data-figure=test] .xtick text", "fill"),
        lines: least("[data-figure=test] path.js-line", "stroke"),
        parts: least("[data-figure=cost] .point path", "fill"),
      };
    }"""
    for dark in (scheme == "dark", scheme == "light"):
        found = page.evaluate(look)
        assert found["dark"] is dark
        assert found["texts"] >= 4.5
        assert found["ticks"] >= 4.5
        assert found["lines"] >= 3
        assert found["parts"] >= 2
        page.locator("#theme").click()


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_the_screen(visit: Callable[..., Page], report: Path, width: int) -> None:
    page = visit(report, width, has_touch=width == 390, is_mobile=width == 390)
    page.locator(f"{ROWS} th button").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    over = page.evaluate(
        "[...document.querySelectorAll('.plot svg.main-svg')].filter(e => e.getBoundingClientRect().right > innerWidth)"
        ".length"
    )
    assert over == 0
    if width == 390:
        point = page.locator("#scatter .points path").last
        point.scroll_into_view_if_needed()
        point.tap(force=True)
        expect(page.locator("#kept")).to_be_visible()


def test_texts_stay_texts(visit: Callable[..., Page], gradalign: Run, tmp_path: Path) -> None:
    groups = make_groups(12, 1)
    named = [Group(f"{NASTY}{i}", g.prompt_ids, g.rollouts, NASTY) for i, g in enumerate(groups)]
    for group in named:
        for rollout in group.rollouts:
            rollout.response = NASTY
    write_rollouts(tmp_path / "c.parquet", named)
    rows = [Alignment(g.key, NASTY, "scored", 0.5, 5, 20, Numbers(dot=i - 3.0), None, i / 7, None, i + 1, i < 3)
            for i, g in enumerate(named)]  # fmt: skip
    write_alignments(tmp_path / "s.parquet", rows)
    options = {"candidates": str(tmp_path / "c.parquet"), "model": "embedded"}
    write_json(tmp_path / "s.config.json", {"command": "score", "strategy": NASTY, "options": options})
    ran = gradalign("report", tmp_path / "s.parquet")
    assert ran.status == 0, ran.err
    page = visit(tmp_path / "s.report.html")
    page.locator(f"{ROWS} th button").first.click()
    expect(page.locator("td.detail .responses pre")).to_have_text(NASTY)
    page.locator("#scatter .points path").last.hover(force=True)
    expect(page.locator("#scatter .hovertext")).to_contain_text("onerror")
    assert page.locator("img").count() == 0
    expect(page.locator("#boxes .ytick text").first).to_contain_text("onerror")
    expect(page.locator("#boxes .xtitle")).to_contain_text("onerror")
    ran = gradalign("report", tmp_path / "s.parquet", "--format", "md")
    text = (tmp_path / "s.report.md").read_text()
    assert "<img" not in text.replace("\\<img", "")


def test_thousands_of_problems_stay_quick(visit: Callable[..., Page], gradalign: Run, tmp_path: Path) -> None:
    rows = [Alignment(f"k{i:05d}", f"s{i % 30}", "scored", i % 17 / 16, 16, 90, Numbers(cosine=(i * 7919 % 1000) / 1e3),
                      None, i * 7919 % 1000 / 1e3, None, i + 1, i < 250) for i in range(20_000)]  # fmt: skip
    write_alignments(tmp_path / "s.parquet", rows)
    write_json(tmp_path / "s.config.json", {"command": "score", "options": {"candidates": "none", "model": "embedded"}})
    ran = gradalign("report", tmp_path / "s.parquet")
    assert "At most 4,000 problems of a round are listed" in ran.out, ran.err
    page = visit(tmp_path / "s.report.html")
    expect(page.locator("#view-note")).to_have_text("4,000 of this round's 20,000 problems are listed.")
    page.fill("#search", "k0024")
    expect(page.locator("#place")).to_have_text("1 to 10 of 10")  # the chosen are all among them
    page.fill("#search", "")
    page.get_by_role("button", name="cosine", exact=True).click()
    assert page.evaluate("document.querySelectorAll('#problems-table tbody tr').length") == 50
    assert (tmp_path / "s.report.html").stat().st_size < 8e6


def test_the_audits_page_shares_the_shell(visit: Callable[..., Page], gradalign: Run, tmp_path: Path) -> None:
    sampling = ["-n", "8", "--reward", "countdown", "--max-new-tokens", "12"]
    for name, seed in (("c", 1), ("v", 2)):
        problems, out = f"embedded:mixed?size=24&seed={seed}", tmp_path / f"{name}.parquet"
        ran = gradalign("rollout", "--model", "embedded", "--problems", problems, *sampling, "--out", out)
        assert ran.status == 0, ran.err
    files = ["--candidates", tmp_path / "c.parquet", "--validation", tmp_path / "v.parquet"]
    ran = gradalign("audit", "--model", "embedded", *files, "--out", tmp_path / "D")
    assert ran.status == 0, ran.err
    page = visit(tmp_path / "D" / "audit.html", 390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for box in page.locator("form input[type=checkbox]").all():
        box.check()
    shown = page.locator("tbody tr:visible")
    assert shown.count() == 24
    page.get_by_role("button", name="pass rate").click()
    rates = floats(page.locator("td.pass_rate").all_inner_texts())
    assert rates == sorted(rates)
    first = page.locator("summary").first.inner_text()
    page.fill("input[type=search]", first)
    assert 0 < shown.count() < 24
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
