"""The documentation: it builds without a warning, nothing is left out, its links lead somewhere, its scripts run."""

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from difflib import SequenceMatcher
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import floco
from floco.algorithms import ALGORITHMS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CHROMIUM = Path("/usr/bin/chromium")
EXAMPLES = {  # script -> what it must say
    "start": ("accuracy_personal", "client-19", "probability"),
    "own_data": ("accuracy_personal", "harbour", "p(broken)"),
    "tables": ("accuracy_personal", "north", "p(ill)"),
    "pictures": ("accuracy_personal", "north", "label"),
    "time_series": ("machine-5", "n_test", "accuracy_personal"),
    "text": ("perplexity_personal", "zipfile"),
    "own_dataset": ("laboratory-4", "p(class_1)"),
    "own_model": ("floco: global 0.", "fedavg+ft: global 0.", "Net 2762 parameters"),
}
ENVIRONMENT = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
# Neither the build nor an example may reach a network: whatever asks for one is sent to a port where nobody listens.
OFFLINE = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


class Page(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {k: v for k, v in attrs if v is not None}
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("img", "script", "iframe", "source") and "src" in given:
            self.loaded.append(given["src"])
        if tag == "link" and "href" in given and given.get("rel") != "canonical":
            self.loaded.append(given["href"])


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: any warning of the generator is an error."""
    if any(importlib.util.find_spec(name) is None for name in ("material", "mkdocstrings_handlers")):
        pytest.skip("the documentation tools are not installed: pip install -c constraints.txt -e '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, env={**ENVIRONMENT, **OFFLINE}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return out


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[Path, Page]:
    return {p.relative_to(site): Page(p) for p in sorted(site.rglob("*.html"))}


def test_every_page_is_in_the_navigation(site: Path, pages: dict[Path, Page]) -> None:
    start = {unquote(urlsplit(link).path) for link in pages[Path("index.html")].links} | {"index.html"}
    for source in sorted(DOCS.rglob("*.md")):
        assert source.relative_to(DOCS).with_suffix(".html").as_posix() in start, source
    for name in ("CONTRIBUTING", "SECURITY", "CHANGELOG"):
        assert f"{name}.html" in start


def test_links_lead_to_pages_and_anchors_of_the_site(site: Path, pages: dict[Path, Page]) -> None:
    for name, page in pages.items():
        for link in page.links if name.name != "404.html" else ():
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert parts.scheme == "https", (name, link)
                continue
            target = (site / name.parent / unquote(parts.path)).resolve() if parts.path else site / name
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (name, link)
            if parts.fragment and target.suffix == ".html":
                anchors = pages[target.relative_to(site)].anchors | {"__search"}
                assert unquote(parts.fragment) in anchors, (name, link)


def test_pages_load_nothing_from_a_network(site: Path, pages: dict[Path, Page]) -> None:
    for name, page in pages.items():
        for source in page.loaded if name.name != "404.html" else ():
            parts = urlsplit(source)
            assert not parts.netloc, (name, source)
            assert parts.scheme == "data" or (site / name.parent / unquote(parts.path)).is_file(), (name, source)
    for sheet in (*site.rglob("*.css"), DOCS / "site.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", sheet.read_text()), sheet


def test_the_reference_has_every_public_name(pages: dict[Path, Page]) -> None:
    anchors = set().union(*(page.anchors for name, page in pages.items() if name.parts[0] == "reference"))
    methods = {a.__name__ for a in ALGORITHMS.values()}
    names = {f"floco.{n}" for n in set(floco.__all__) - methods - {"simplex"}}
    names |= {f"floco.simplex.{n}" for n in floco.simplex.__all__} | {f"floco.algorithms.{n}" for n in methods}
    assert not names - anchors


def test_sources_are_wrapped_at_120_columns() -> None:
    for path in (*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert len(line) <= 120 or line.startswith("|"), (path.name, number)
    assert max(map(len, (ROOT / "README.md").read_text().splitlines())) <= 120


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error::UserWarning", str(ROOT / "examples" / f"{name}.py")]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=200, env={**ENVIRONMENT, **OFFLINE}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in EXAMPLES[name]:
        assert words in done.stdout


def test_every_example_is_shown_on_a_page() -> None:
    shown = "".join(p.read_text() for p in DOCS.glob("*.md"))
    for name in EXAMPLES:
        assert f'--8<-- "examples/{name}.py' in shown
    readme = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert readme[0] in (ROOT / "examples" / "start.py").read_text()  # the ten lines of the README are the script


def test_no_page_scrolls_sideways_on_a_telephone(
    site: Path, pages: dict[Path, Page], tmp_path: Path, served: str
) -> None:
    if not CHROMIUM.exists():
        assert "FLOCO_NEEDS_BROWSER" not in os.environ, f"{CHROMIUM} is missing"
        pytest.skip(f"{CHROMIUM} is not installed: pages are not looked at")
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
    arguments = [*quiet, "--disable-sync", "--no-first-run"]
    with sync_playwright() as play:
        context = play.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=str(CHROMIUM),
            headless=True,
            args=arguments,
            viewport={"width": 400, "height": 800},
        )
        page = context.new_page()
        said: list[str] = []
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not request.url.startswith(served) else None)
        page.on("response", lambda answer: said.append(answer.url) if answer.status >= 400 else None)
        for name in pages:
            page.goto(f"{served}/{name.as_posix()}", wait_until="load")
            wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, (name, wide)
            broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
            assert not broken, (name, broken)
        context.close()
    assert not said


@pytest.fixture
def served(site: Path) -> Iterator[str]:
    """The address of the site on this machine."""
    import functools
    import http.server
    import threading

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_commands_of_the_hospitals_print_what_the_page_says(tmp_path: Path) -> None:
    page = runpy.run_path(str(DOCS / "execute.py"))
    page["prepare"](DOCS / "hospitals.md", tmp_path)
    shown = page["blocks"]((DOCS / "hospitals.md").read_text(encoding="utf-8"))
    assert len(shown) >= 11

    def words(text: str) -> list[str]:  # numbers differ between processors, and with them the widths of tables
        return re.sub(r"[-+]?\d[\d.,]*", "#", re.sub(r"[─-╿]+", " ", text)).split()

    for (command, expected), found in zip(shown, page["execute"]([c for c, _ in shown], tmp_path), strict=True):
        code = re.compile(r"\(exit code \d+\)")
        assert code.findall(found) == code.findall(expected), (command, found)
        alike = SequenceMatcher(None, words(expected), words(found), autojunk=False).ratio()
        assert alike > 0.9, (command, found)
