"""Save screenshots of the figures of a report: python benchmarks/pictures.py REPORT.html FOLDER.

Needs /usr/bin/chromium and playwright.
"""

import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright
from plotly.graph_objects import Figure

OFFLINE = "--disable-background-networking --disable-component-update --disable-sync --no-first-run"
FLAGS = f"--headless --no-sandbox --disable-gpu --disable-quic {OFFLINE}".split()


@contextmanager
def opened(html: Path, width: int, height: int) -> Iterator[Page]:
    """Open a page with figures in Chromium, and wait until they are drawn."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
        page.goto(html.resolve().as_uri())
        page.wait_for_selector(".main-svg", state="attached")
        page.wait_for_timeout(1000)
        yield page
        browser.close()


def save(figure: Figure, path: Path, width: int, height: int) -> None:
    """Save a picture of a figure, in a window of this size."""
    with tempfile.TemporaryDirectory() as folder:
        html = Path(folder) / "figure.html"
        figure.write_html(html)
        with opened(html, width, height) as page:
            page.query_selector(".plotly-graph-div").screenshot(path=path)


if __name__ == "__main__":
    report, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    with opened(report, 1400, 1000) as page:
        for section in page.query_selector_all("section"):
            if section.query_selector(".figure"):
                name = re.sub(r"\W+", "-", section.query_selector("h2").text_content().lower())
                section.screenshot(path=folder / f"{name}.png")
