"""Drives Chromium through the console, beside Tidemill's own packages: `python browser.py CHROMIUM DRIVER URL KEY`.

Prints one line when a step begins that the test must answer, and a JSON object with what it found at the end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import axe_core_python
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

PATIENCE_S = 60
AXE = next(Path(axe_core_python.__file__).parent.rglob("axe.min.js")).read_text()
PAGES = (
    *("", "/pipelines/headlines", "/pipelines/headlines/cycles/01jtest", "/pipelines/headlines/cycles/01jtest/cancel"),
    *("/rollouts", f"/rollouts/{'a' * 26}", f"/rollouts/{'a' * 26}/force", "/audit", "/reviews", "/reviews/next"),
    "/judges",
    *("/models", "/models/headlines", "/models/headlines/versions/3", "/answers/01jwriter"),
    *("/datasets", "/datasets/headlines", "/datasets/headlines/versions/7", "/records?record=r1", "/logs"),
)


class Browser:
    """One window, and what went wrong in it."""

    def __init__(self, chromium: str, driver: str, url: str) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(driver))
        self.url = url

    def go(self, path: str) -> None:
        self.driver.get(f"{self.url}/console{path}")

    def show(self, width: int, scheme: str) -> None:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def press(self, *keys: str) -> None:
        self.driver.switch_to.active_element.send_keys(*keys)

    def until(self, done: Callable[[], bool]) -> None:
        WebDriverWait(self.driver, PATIENCE_S, poll_frequency=0.1).until(lambda _: done())

    def text(self) -> str:
        # What stands beside the pages' own moving parts; a part may be replaced while it is read.
        return str(self.run("return document.body.innerText"))

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def sign_in(browser: Browser, key: str) -> None:
    """By keyboard alone: the field has the focus already."""
    browser.go("/sign-in")
    browser.press(key, Keys.TAB)
    browser.press("Anna", Keys.ENTER)
    browser.until(lambda: browser.driver.current_url.endswith("/console"))


def look(browser: Browser) -> list[str]:
    """Every page at two widths in two colour schemes: nothing overflows, nothing is said on the console, and axe finds
    neither weak contrast nor a field without a name."""
    found = []
    for path in PAGES:
        browser.go(path)
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                browser.show(width, scheme)
                shown = f"{path} at {width} {scheme}"
                if (needed := browser.run("return document.documentElement.scrollWidth")) > width:
                    found.append(f"{shown}: needs {needed} pixels")
                if width == 1280:
                    browser.run(AXE)
                    results = browser.driver.execute_async_script("axe.run(document).then(arguments[0])")
                    for rule in results["violations"]:
                        found.append(f"{shown}: {rule['id']}: {rule['nodes'][0]['html'][:200]}")
        if "taken" in browser.driver.title:
            found.append(f"{path}: a text ran as a script")
        found += [f"{path}: {message}" for message in browser.complaints()]
    browser.show(1280, "light")
    return found


def watch(browser: Browser) -> bool:
    """A page follows a cycle without being loaded again."""
    browser.go("/pipelines/headlines")
    browser.run("window.sameDocument = true")
    assert "34/60 steps" in browser.text(), browser.text()
    sys.stdout.write("watching\n")
    sys.stdout.flush()
    browser.until(lambda: "published" in browser.text())
    return bool(browser.run("return window.sameDocument === true"))


def review(browser: Browser) -> str:
    """The queue by keyboard alone: an edit, then another label."""
    browser.go("/reviews")
    browser.press("n")
    browser.until(lambda: "Rates rise again" in browser.text())
    browser.press("e")
    browser.until(lambda: browser.run("return document.activeElement.id") == "target")
    browser.press(Keys.CONTROL, "a")
    browser.press("Rates climb, again")
    browser.press(Keys.CONTROL, Keys.ENTER)
    browser.until(lambda: "The right label" in browser.text())
    browser.press("1")
    browser.until(lambda: "Nothing is left to review." in browser.text())
    return browser.text()


def roll_back(browser: Browser) -> str:
    """A roll-out by keyboard alone: its page, the question, the reason."""
    browser.go(f"/rollouts/{'a' * 26}")
    browser.driver.find_element(By.PARTIAL_LINK_TEXT, "Roll back").send_keys(Keys.ENTER)
    browser.until(lambda: "all users get the version before" in browser.text())
    browser.press("worse", Keys.TAB)
    browser.press(Keys.ENTER)
    browser.until(lambda: "Rolled back." in browser.text())
    return str(browser.driver.current_url)


def skip(browser: Browser) -> list[str]:
    """What the first two presses of Tab and Enter reach."""
    browser.go("")
    browser.press(Keys.TAB)
    reached = [browser.run("return document.activeElement.className")]
    browser.press(Keys.ENTER)
    return [*reached, browser.run("return document.activeElement.id")]


def attack(browser: Browser) -> tuple[str, list[str]]:
    """What an injected text could do, if one got in."""
    browser.go("")
    browser.run(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">');"
        "const s = document.createElement('script'); s.textContent = 'document.title = 2'; document.body.append(s);"
    )
    browser.run("return new Promise(done => setTimeout(done, 200))")
    return str(browser.driver.title), browser.complaints()


def main() -> None:
    """Runs all of it."""
    chromium, driver, url, key = sys.argv[1:]
    browser = Browser(chromium, driver, url)
    found: dict[str, Any] = {}
    try:
        sign_in(browser, key)
        found["problems"] = look(browser)
        found["live"] = watch(browser)
        found["reviewed"] = review(browser)
        found["rolled_back"] = roll_back(browser)
        found["skipped"] = skip(browser)
        found["complaints"] = browser.complaints()
        found["cookies"] = browser.run("return document.cookie")
        found["addresses"] = browser.run("return performance.getEntries().map(entry => entry.name)")
        found["attacked"], found["refused"] = attack(browser)
        browser.driver.find_element(By.XPATH, "//button[text()='Sign out']").send_keys(Keys.ENTER)
        browser.until(lambda: browser.driver.current_url.endswith("/sign-in"))
        browser.go("")
        found["out"] = browser.driver.current_url
    finally:
        browser.driver.quit()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
