"""Save screenshots of the figures of a report: python benchmarks/pictures.py REPORT.html FOLDER.

Needs /usr/bin/chromium and playwright.
"""

import re
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

OFFLINE = "--disable-background-networking --disable-component-update --disable-sync --no-first-run"
FLAGS = f"--headless --no-sandbox --disable-gpu --disable-quic {OFFLINE}".split()

report, folder = Path(sys.argv[1]), Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
    page = browser.new_page(viewport={"width": 1400, "height": 1000}, color_scheme="light")
    page.goto(report.resolve().as_uri())
    page.wait_for_function("document.querySelectorAll('.figure .main-svg').length > 0")
    page.wait_for_timeout(1000)
    for section in page.query_selector_all("section"):
        if section.query_selector(".figure"):
            name = re.sub(r"\W+", "-", section.query_selector("h2").text_content().lower())
            section.screenshot(path=folder / f"{name}.png")
    browser.close()
