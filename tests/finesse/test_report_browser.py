"""The report in a real browser: Chromium and its driver, where both are installed."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merger_plugins.finesse.report import write
from tests.finesse import pages
from tests.finesse.pages import HOSTILE, SETTINGS

selenium = pytest.importorskip("selenium", reason="selenium is not installed")

from selenium import webdriver  # noqa: E402 -- after the check that it is there
from selenium.common.exceptions import NoSuchElementException  # noqa: E402
from selenium.webdriver import ActionChains  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="no Chromium with its driver here (Debian: apt-get install chromium chromium-driver)",
)


class Page:
    """The report as somebody sees and uses it."""

    def __init__(self, driver: webdriver.Chrome, data: dict[str, Any]) -> None:
        self.driver = driver
        self.data = data

    def choose(self, control: str, label: str) -> None:
        Select(self.driver.find_element(By.ID, control)).select_by_visible_text(label)

    def choices(self, control: str) -> list[str]:
        return [option.text for option in Select(self.driver.find_element(By.ID, control)).options]

    def text(self, name: str) -> str:
        return self.driver.find_element(By.ID, name).text

    def rows(self) -> list[str]:
        """Names in the leaderboard, from the top."""
        script = (
            'return [...document.querySelectorAll("#board tbody th")].map((cell) => cell.firstChild.data)'
        )
        return list(self.driver.execute_script(script))

    def ranks(self) -> list[str]:
        cells = self.driver.find_elements(By.CSS_SELECTOR, "#board tbody td:first-child")
        return [cell.text for cell in cells]

    def sort(self, heading: str) -> Any:
        (button,) = [one for one in self.headings() if one.text == heading]
        button.send_keys(Keys.ENTER)
        return next(one for one in self.headings() if one.text == heading).find_element(By.XPATH, "..")

    def headings(self) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, "#board thead button")

    def plot(self, name: str) -> Any:
        """The traces that plotly drew, with names and values."""
        script = (
            "return document.getElementById(arguments[0]).data.map(({name, x, y, z}) => ({name, x, y, z}))"
        )
        return self.driver.execute_script(script, name)

    def wait(self, found: Callable[[], Any]) -> Any:
        """What is found within three seconds, which plotly takes now and then."""
        ignored = (NoSuchElementException,)
        return WebDriverWait(self.driver, 3, 0.05, ignored).until(lambda _driver: found())

    def complaints(self) -> list[str]:
        return [line["message"] for line in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def resize(self, width: int) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)  # type: ignore[no-untyped-call]

    def records(self, metric: str) -> list[dict[str, Any]]:
        return [row for row in self.data["records"] if row["metric"] == metric]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("browser")
    written = pages.page(folder)
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        driver.get(written.as_uri())
        shown = Page(driver, pages.data(written))
        shown.resize(1200)
        yield shown
    finally:
        driver.quit()


@pytest.fixture(autouse=True)
def silent(page: Page) -> Iterator[None]:
    yield
    assert page.complaints() == []


def test_it_loads_as_it_was_written(page: Page) -> None:
    assert page.driver.title == f"Title {HOSTILE}"
    assert page.driver.execute_script("return window.harmed") is None
    assert page.driver.find_elements(By.TAG_NAME, "img") == []
    assert page.driver.execute_script('return performance.getEntriesByType("resource").length') == 0


def test_headings_sort_the_leaderboard(page: Page) -> None:
    page.choose("board-axis", "retrieval")
    values = {row["rival"]: row["value"] for row in page.records("ndcg@10")}
    best = page.sort("nDCG@10")
    best = page.sort("nDCG@10") if best.get_attribute("aria-sort") == "ascending" else best
    assert best.get_attribute("aria-sort") == "descending"
    assert HOSTILE in page.rows()
    down = [values[name] for name in page.rows()]
    assert down == sorted(values.values(), reverse=True)
    assert down[0] > down[-1]
    ranks = [str(1 + sum(other > value for other in down)) for value in down]
    assert page.ranks() == ranks
    assert page.sort("nDCG@10").get_attribute("aria-sort") == "ascending"
    assert [values[name] for name in page.rows()] == sorted(values.values())
    assert page.ranks() == ranks[::-1]  # the worst first keeps its rank
    space = {row["rival"]: row["value"] for row in page.records("vectors a document")}
    assert page.sort("vectors a document").get_attribute("aria-sort") == "ascending"  # the best is the least
    assert [space[name] for name in page.rows()] == sorted(space.values())


def test_axis_task_and_figures_choose_what_the_leaderboard_shows(page: Page) -> None:
    assert page.choices("board-axis") == ["finesse", "retrieval", "extrapolation", "cost"]
    page.choose("board-axis", "finesse")
    assert set(page.rows()) == {"mean", "ridge"}
    page.choose("board-figures", "td, Top-Down, by chunks")
    assert [button.text for button in page.headings()] == [f"{length} chunks" for length in SETTINGS.lengths]
    shown = page.text("board")
    for row in page.records("td"):
        if row["at"] is not None:
            assert f"{row['low']:.3f} to {row['high']:.3f}".replace("-", "−") in shown
    page.choose("board-axis", "cost")
    assert "ms to fit" in [button.text for button in page.headings()]


def test_quality_is_drawn_against_time_and_storage(page: Page) -> None:
    (wanted,) = [one for one in page.choices("price-quality") if one.startswith("retrieval: nDCG@10")]
    page.choose("price-quality", wanted)
    quality = {row["rival"]: row["value"] for row in page.records("ndcg@10")}
    for kind, metric in (("time", "ms a thousand merges"), ("space", "MB a thousand documents")):
        (choice,) = [one for one in page.choices(f"price-{kind}") if f": {metric} (" in one]
        page.choose(f"price-{kind}", choice)
        cost = {row["rival"]: row["value"] for row in page.records(metric)}
        drawn = [(trace["x"][0], trace["y"][0]) for trace in page.plot(f"price-{kind}-plot")]
        assert sorted(drawn) == sorted((cost[name], quality[name]) for name in quality if name in cost)
    assert "every chunk" in page.text("price-time-note")  # it merges nothing
    page.choose("price-quality", wanted.replace("nDCG@10", "MRR@100"))
    other = sorted(trace["y"][0] for trace in page.plot("price-space-plot"))
    assert other == sorted(row["value"] for row in page.records("mrr@100"))


def test_curves_have_the_limit_drawn_in(page: Page) -> None:
    page.choose("curve-task", "extrapolation, by chunks (synthetic)")
    page.choose("curve-metric", "member cosine")
    lines = {line["name"]: line for line in page.plot("curve-plot")}
    limit = lines["limit 1/√n"]
    np.testing.assert_allclose(limit["y"], np.array(limit["x"]) ** -0.5)
    mean = {row["at"]: row["value"] for row in page.records("member cosine") if row["rival"] == "mean"}
    assert dict(zip(lines["mean"]["x"], lines["mean"]["y"], strict=True)) == mean
    page.choose("curve-metric", "members found first")
    assert "limit 1/√n" not in {line["name"] for line in page.plot("curve-plot")}
    page.driver.find_element(By.CSS_SELECTOR, "input[name=curve-scale][value=linear]").click()
    assert page.driver.execute_script('return document.getElementById("curve-plot").layout.xaxis.type') == (
        "linear"
    )


def test_the_anatomy_follows_its_controls(page: Page) -> None:
    def matrix(merger: str, length: int, sample: int) -> Any:
        (found,) = [
            one
            for one in page.data["samples"]
            if (one["merger"], one["length"], one["sample"]) == (merger, length, sample)
        ]
        return found

    for merger, length, sample in (("mean", 9, 1), ("ridge", 9, 1), ("ridge", 6, 0), ("ridge", 6, 1)):
        page.choose("anatomy-merger", merger)
        page.choose("anatomy-length", str(length))
        page.choose("anatomy-sample", str(sample + 1))
        wanted = matrix(merger, length, sample)
        heat, _stairs, down, up = page.plot("anatomy-plot")
        assert heat["z"] == wanted["similarity"]
        assert (down["x"], up["y"]) == (wanted["td"]["q1q3"], wanted["bu"]["q1q3"])
        td, bu = (np.mean(wanted[way]["q1q3"]) for way in ("td", "bu"))
        score = f"td {td:.3f}, bu {bu:.3f}".replace("-", "−")
        assert page.text("anatomy-score").startswith(score)
    page.choose("anatomy-gap", "medians: members less others")
    assert page.plot("anatomy-plot")[2]["x"] == wanted["td"]["q2q2"]


def test_each_step_of_the_anatomy_is_computed_before_the_reader(page: Page) -> None:
    page.choose("anatomy-merger", "mean")
    page.choose("anatomy-length", "6")
    page.choose("anatomy-sample", "1")
    page.choose("anatomy-gap", "quartiles: Q1 of members less Q3 of others")
    wanted = next(one for one in page.data["samples"] if (one["merger"], one["length"]) == ("mean", 6))
    similarity = np.array(wanted["similarity"])
    step = page.driver.find_element(By.ID, "anatomy-step")
    step.send_keys(Keys.HOME)
    before = page.text("anatomy-words")
    step.send_keys(Keys.ARROW_RIGHT)  # to the merge of three chunks
    low, high = np.quantile(similarity[2, :3], 0.25), np.quantile(similarity[2, 3:], 0.75)
    words = page.text("anatomy-words")
    assert words != before
    assert "Merge of chunks 1 to 3: 3 members against 3 others." in words
    shown = f"the members' Q1 {low:.3f} less the others' Q3 {high:.3f} = {wanted['td']['q1q3'][1]:.3f}"
    assert shown.replace("-", "−") in words
    page.driver.find_element(By.CSS_SELECTOR, "input[name=anatomy-way][value=bu]").click()
    assert "Chunk 3: the 4 merges that hold it against 2 made before." in page.text("anatomy-words")
    page.driver.find_element(By.CSS_SELECTOR, "#anatomy-chunks summary").click()
    listed = [item.text for item in page.driver.find_elements(By.CSS_SELECTOR, "#anatomy-texts li")]
    assert len(listed) == 6
    assert all("<img src=x" in text for text in listed)
    page.driver.find_element(By.CSS_SELECTOR, "#anatomy-chunks summary").click()


def test_the_text_of_a_chunk_is_shown_where_the_pointer_is(page: Page) -> None:
    page.choose("anatomy-length", "4")
    heat = page.driver.find_element(By.CSS_SELECTOR, "#anatomy-plot .heatmaplayer image")
    # From the middle of four rows and columns to the second row, first column.
    x, y = round(-0.375 * heat.size["width"]), round(-0.125 * heat.size["height"])
    ActionChains(page.driver).move_to_element_with_offset(heat, x, y).perform()
    label = "#anatomy-plot .hoverlayer .hovertext"
    text = page.wait(lambda: page.driver.find_element(By.CSS_SELECTOR, label).text)
    assert "merge of chunks 1 to 2, chunk 1 alone: member" in text
    assert "<b>bold</b></script><img src=x" in text
    assert page.driver.execute_script("return window.harmed") is None


@pytest.mark.parametrize("width", [1200, 600])
def test_it_fits(page: Page, width: int, tmp_path: Path) -> None:
    page.resize(width)
    page.wait(lambda: page.driver.execute_script("return document.documentElement.scrollWidth") <= width)
    for plot in page.driver.find_elements(By.CSS_SELECTOR, ".js-plotly-plot"):
        assert 0 < plot.size["width"] <= width
    shot = Path(os.environ.get("REPORT_SCREENSHOTS", tmp_path)) / f"report-{width}.png"
    assert page.driver.save_screenshot(str(shot))
    assert shot.stat().st_size > 20_000  # not an empty sheet


def test_a_merger_may_have_fewer_lengths_than_others(page: Page, tmp_path: Path) -> None:
    """As an embedder of whole texts has: comes last, as it leaves the page of the other tests."""
    first, *rest = pages.MERGERS
    longest = max(SETTINGS.lengths)
    fewer = [one for one in pages.samples() if one.merger != first or one.length < longest]
    page.complaints()
    page.driver.get(write([], tmp_path / "fewer.html", anatomy=fewer).as_uri())
    assert page.complaints() == []
    assert page.choices("anatomy-length") == [str(length) for length in sorted(SETTINGS.lengths)[:-1]]
    page.choose("anatomy-merger", rest[0])
    page.choose("anatomy-length", str(longest))
    page.choose("anatomy-merger", first)
    page.wait(lambda: page.text("anatomy-score").startswith("td "))
    assert page.complaints() == []
