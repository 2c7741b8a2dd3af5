"""The page as a reader sees it, in headless Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.chromium import chromium, resize
from xen_save_helper.toolstack.timeline.files import write_page
from xen_save_helper.toolstack.timeline.picture import Picture

WIDTHS = (400, 1280)


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with chromium() as found:
        yield found


class Shown:
    """A page that is open at a width."""

    def __init__(self, browser: webdriver.Chrome, path: Path) -> None:
        self.browser = browser
        self.path = path

    def open(self, width: int) -> None:
        resize(self.browser, width, 900)
        self.browser.get(self.path.as_uri())

    def js(self, code: str, *arguments: object) -> Any:
        return self.browser.execute_script(code, *arguments)

    def one(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.browser).send_keys(*keys).perform()

    @property
    def focused(self) -> tuple[str, str]:
        """The lane and the name of what has the focus."""
        lane, name = self.js(
            "const item = document.activeElement;"
            "return [item.closest('.lane')?.dataset.lane ?? '', item.dataset.name ?? ''];"
        )
        return lane, name


@pytest.fixture(scope="module")
def path(real_picture: Picture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "timeline.html"
    write_page(real_picture, path)
    return path


@pytest.fixture
def shown(browser: webdriver.Chrome, path: Path) -> Shown:
    page = Shown(browser, path)
    page.open(1280)
    return page


def test_nothing_is_fetched_and_nothing_fails(shown: Shown) -> None:
    for log in ("browser", "performance"):
        shown.browser.get_log(log)
    shown.open(1280)
    shown.one("#zoom-in").click()
    assert shown.browser.get_log("browser") == []
    messages = [
        json.loads(entry["message"])["message"] for entry in shown.browser.get_log("performance")
    ]
    fetched = {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    assert fetched == {shown.path.as_uri()}


@pytest.mark.parametrize("width", WIDTHS)
def test_all_of_it_can_be_read(shown: Shown, width: int) -> None:
    shown.open(width)
    text = shown.one("body").text
    for words in ("Migration of demo: postcopy", "stood still", "Downtime, taken apart", "suspend"):
        assert words in text
    assert shown.js("return document.documentElement.scrollWidth") <= width
    # Neither do texts lie upon each other, nor are they cut off, in any lane.
    problems = shown.js(
        """
        const found = [];
        for (const track of document.querySelectorAll(".lane:not(.counter) .track")) {
          const boxes = [...track.querySelectorAll("text")]
            .filter((text) => getComputedStyle(text).display !== "none" && text.textContent)
            .map((text) => [text.textContent, text.getBoundingClientRect(),
              text.closest(".span")?.querySelectorAll("rect")[1].getBoundingClientRect()]);
          for (const [name, box, bar] of boxes) {
            if (bar && box.right > bar.right + 1) found.push(`${name} is cut`);
            for (const [other, place] of boxes) {
              if (other !== name && box.left < place.right && place.left < box.right
                && box.top < place.bottom - 2 && place.top < box.bottom - 2) {
                found.push(`${name} on ${other}`);
              }
            }
          }
        }
        for (const cell of document.querySelectorAll("td, th, h1, h2, .label, .figures li")) {
          if (cell.offsetParent && cell.scrollWidth > cell.clientWidth + 1) {
            found.push(`${cell.textContent} is wider than its place`);
          }
        }
        return found;
        """
    )
    assert problems == []


def test_the_keyboard_moves_between_bars_and_lanes(shown: Shown) -> None:
    reached: list[tuple[str, str]] = []
    for _ in range(8):
        shown.press(Keys.TAB)
        if shown.focused[0]:
            break
    assert shown.focused == ("guest", "runs at the source")
    shown.press(Keys.ARROW_RIGHT)
    assert shown.focused == ("guest", "stands still")
    details = shown.one("#details")
    assert details.text.startswith("guest: stands still")
    assert "took" in details.text
    shown.press(Keys.END)
    assert shown.focused == ("guest", "runs at the destination")
    shown.press(Keys.HOME)
    for _ in range(9):
        reached.append(shown.focused)
        shown.press(Keys.ARROW_DOWN)
    lanes = [lane for lane, _name in reached]
    assert list(dict.fromkeys(lanes)) == [
        "guest",
        "source controller",
        "source helper",
        "link",
        "destination helper",
        "destination controller",
    ]
    shown.press(Keys.ARROW_UP)
    assert shown.focused[0] == "destination helper"
    # One stop of the tabulator key is enough to go past all of them.
    shown.press(Keys.TAB)
    assert shown.focused == ("", "")


def test_plus_and_minus_zoom_about_what_is_chosen(shown: Shown) -> None:
    wide = "return document.querySelector('.canvas').getBoundingClientRect().width"
    item = ".item[data-name='stands still']"
    before = shown.js(wide)
    shown.js("document.querySelector(arguments[0]).focus()", item)
    for _ in range(5):
        shown.press("+")
    assert shown.js(wide) > 4 * before
    left, right, chart = shown.js(
        """
        const box = document.querySelector(arguments[0]).getBoundingClientRect();
        const chart = document.querySelector(".chart").getBoundingClientRect();
        return [box.left, box.right, chart.right];
        """,
        item,
    )
    assert right > 148
    assert left < chart
    assert shown.js("return document.documentElement.scrollWidth") <= 1280
    shown.press("-")
    assert shown.js(wide) < 7.6 * before
    shown.press("0")
    assert shown.js(wide) == before


def test_the_downtime_fills_the_chart_at_a_press(shown: Shown) -> None:
    shown.one("#zoom-downtime").click()
    left, right = shown.js(
        """
        const box = document.querySelector(".lane[data-lane=guest] .stands rect:nth-of-type(2)")
          .getBoundingClientRect();
        return [box.left, box.right];
        """
    )
    track = 1280 - 148
    assert 0.6 * track < right - left < track
    assert left > 148
    assert right < 1280
    ticks = shown.js(
        "return [...document.querySelectorAll('#ticks text')].map((t) => t.textContent)"
    )
    assert len(ticks) == len(set(ticks)) > 3


def test_events_can_be_listed_and_the_noise_with_them(shown: Shown) -> None:
    summary = shown.one(".events summary")
    summary.click()
    every = "[...document.querySelectorAll('.events tbody tr')]"
    seen = f"return {every}.filter((row) => row.offsetParent).length"
    few = shown.js(seen)
    shown.one("#noise").click()
    assert shown.js(seen) > few > 20


def test_without_javascript_the_figures_are_there(shown: Shown) -> None:
    command = "Emulation.setScriptExecutionDisabled"
    shown.browser.execute_cdp_cmd(command, {"value": True})
    try:
        shown.open(1280)
        text = shown.one("body").text
    finally:
        shown.browser.execute_cdp_cmd(command, {"value": False})
    assert "Zoom and keys need JavaScript" in text
    assert "Downtime, taken apart" in text
    assert "device model" in text
