"""The report: what is measured over the simplex, and the page in a real browser."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from html import unescape
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from conftest import PATIENCE, floco, make, rows, train, write_blobs
from floco.algorithms import FedAvg, Floco
from floco.analysis.landscape import barrier, between, common_sample, landscape, measure, network_of
from floco.analysis.report.price import price
from floco.analysis.report.sections import write
from floco.client.mixtures import Mixtures
from floco.client.predict import compute_outputs
from floco.client.setup import Setup
from floco.core.errors import FlocoError
from floco.core.values import ServerState
from floco.server.progress import Progress
from floco.tasks import Classification

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
NAMES = ("north", "south</script><script>document.title='broken'</script>", "east <b>", "west & co", "ü", "0")


def trained(algorithm: Floco | FedAvg, **more: Any) -> tuple[Setup, ServerState]:
    setup = make(algorithm, **more)
    return setup, train(setup)[-1].state


@pytest.mark.parametrize("mix", ["last", "all"])
def test_endpoints_and_middle_are_the_networks_with_these_weights(mix: str) -> None:
    setup, state = trained(Floco(endpoints=3, assign_at=2, mix=mix))
    found = landscape(setup, setup.algorithm.mixing, Progress(state))
    x, y = common_sample(setup.federation)
    assert found.samples == len(y) == 24
    for m, point in enumerate(found.endpoints):
        network = {n: t[m] if n in setup.algorithm.mixing.names else t for n, t in state.shared.items()}
        expected = Classification().score(compute_outputs(setup, network, x), y)
        assert (point.loss, point.value) == (
            pytest.approx(expected.loss, rel=1e-5),
            pytest.approx(expected.accuracy),
        )
        assert point.alpha == tuple(float(i == m) for i in range(3))
    middle = Classification().score(compute_outputs(setup, network_of(setup, state), x), y)
    assert found.middle.loss == pytest.approx(middle.loss, rel=1e-5)


def test_the_short_way_for_a_last_layer_is_the_long_way() -> None:
    setup, state = trained(Floco(endpoints=4, assign_at=2))
    x, y = common_sample(setup.federation)
    alphas = torch.rand(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alphas /= alphas.sum(1, keepdim=True)
    mixtures = Mixtures(setup, setup.algorithm.mixing, state.shared, x)
    assert mixtures.linear
    for alpha, point in zip(alphas, measure(setup.task, mixtures, alphas, y), strict=True):
        expected = Classification().score(
            compute_outputs(setup, setup.algorithm.mixing(state.shared, alpha.float()), x), y
        )
        assert (point.loss, point.value) == (
            pytest.approx(expected.loss, rel=1e-4),
            pytest.approx(expected.accuracy),
        )


def test_a_first_layer_is_not_taken_for_linear() -> None:
    setup, state = trained(Floco(endpoints=3, assign_at="never", mix=("0.weight",)))
    x, y = common_sample(setup.federation)
    alpha = torch.tensor([[0.5, 0.2, 0.3]])
    expected = Classification().score(compute_outputs(setup, setup.algorithm.mixing(state.shared, alpha[0]), x), y).loss
    mixtures = Mixtures(setup, setup.algorithm.mixing, state.shared, x)
    assert not mixtures.linear
    assert measure(setup.task, mixtures, alpha, y)[0].loss == pytest.approx(expected, rel=1e-5)


def test_a_mixed_last_layer_has_no_barrier() -> None:
    setup, state = trained(Floco(endpoints=4, assign_at=2))
    assert landscape(setup, setup.algorithm.mixing, Progress(state)).barrier <= 1e-9


def test_a_barrier_is_the_rise_above_the_straight_line() -> None:
    assert barrier([0.0, 1.0, 2.0]) == 0
    assert barrier([1.0, 1.5, 3.0, 1.0]) == pytest.approx(2.0)
    setup, one = trained(FedAvg(), rounds=2)
    _, two = trained(FedAvg(), rounds=2, seed=5)
    line = between(setup, network_of(setup, one), network_of(setup, two))
    x, y = common_sample(setup.federation)
    assert line[0][0] == pytest.approx(Classification().score(compute_outputs(setup, one.shared, x), y).loss, rel=1e-5)
    assert line[-1][0] == pytest.approx(Classification().score(compute_outputs(setup, two.shared, x), y).loss, rel=1e-5)
    assert len(line) == 11


def test_points_of_a_subregion_lie_in_it_and_are_judged_on_the_clients_own_test_part() -> None:
    setup, state = trained(Floco(endpoints=4, assign_at=2, radius=0.3))
    found = landscape(setup, setup.algorithm.mixing, Progress(state), draws=5)
    assert set(found.subregions) == set(setup.federation.ids)
    for client, (center, middle, *inside) in found.subregions.items():
        beta = state.by_client[client]["center"]
        assert center.alpha == tuple(beta.tolist())
        assert middle.alpha == (0.25,) * 4
        assert len(inside) == 5
        assert all((torch.tensor(p.alpha, dtype=torch.float64) - beta).abs().sum() <= 0.3 + 1e-9 for p in inside)
        test = setup.federation.client(client).test
        expected = Classification().score(
            compute_outputs(setup, setup.algorithm.mixing(state.shared, beta.float()), setup.federation.x[test]),
            setup.federation.y[test],
        )
        assert center.loss == pytest.approx(expected.loss, rel=1e-4)


def settings(folder: Path, **more: Any) -> list[str]:
    data = write_blobs(folder / "blobs.npz", NAMES, test=60)
    pairs = {
        "data.source": f"npz:{data}",
        "data.split": "natural",
        "model.name": "mlp",
        "training.rounds": 6,
        "run.engine": "serial",
        "run.evaluate_every": 2,
        **more,
    }
    return [part for key, value in pairs.items() for part in ("-s", f"{key}={value}")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on a comparison whose clients have awkward names."""
    folder = tmp_path_factory.mktemp("report")
    done = floco(
        "compare",
        *settings(folder),
        "-a",
        "floco,fedavg,fedavg+ft",
        "--seeds",
        2,
        "-s",
        "algorithm.mix=all",
        "--out",
        folder / "out",
    )
    assert done.exit_code == 0, done.output
    made = floco("report", folder / "out")
    assert made.exit_code == 0, made.output
    return folder / "out" / "report.html"


def test_the_page_needs_no_network_and_names_all_that_it_shows(page: Path) -> None:
    text = page.read_text()
    body = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.findall(r'(?:src|href)="(?!#|data:)', body)
    for title in (
        "Which model to deploy",
        "Comparison",
        "What accuracy costs",
        "Curves",
        "Paired tests",
        "Clients",
        "Who has what",
        "Clients on the simplex",
        "Loss over the simplex",
        "Settings and environment",
    ):
        assert f"<h2>{title}</h2>" in body
    assert "The highest rise of the loss on an edge" in body
    assert body.index("ECE comes out too high on few samples") < body.index("ECE %, personal")
    assert "Between whole networks trained from different initial weights" in body
    kinds = {r["kind"] for r in rows(page.with_name("report-landscape.csv"))}
    assert kinds == {"middle", "endpoint", "edge", "plane", "subregion", "networks"}


def test_a_single_run_a_folder_of_nothing_and_an_unfinished_run(tmp_path: Path) -> None:
    assert floco("run", *settings(tmp_path), "-s", "algorithm.name=local", "--out", tmp_path / "run").exit_code == 0
    done = floco("report", tmp_path / "run", "-o", tmp_path / "local.html")
    assert done.exit_code == 0, done.output
    written = (tmp_path / "local.html").read_text()
    assert "Clients on the simplex" not in written
    assert "<h2>Results</h2>" in written
    assert "<h2>Comparison</h2>" not in written
    assert not (tmp_path / "run" / "report.html").exists()
    nothing = floco("report", tmp_path)
    assert nothing.exit_code == 2
    assert "neither a run directory nor that of a comparison" in nothing.output
    (tmp_path / "run" / "history.csv").write_text("")
    assert "holds no finished run" in floco("report", tmp_path / "run").output
    with pytest.raises(FlocoError, match="neither a run directory"):
        write([tmp_path / "absent"], tmp_path / "x.html")


def table(page: Path, number: int) -> list[dict[str, str]]:
    """A table of the page as its rows."""
    found = unescape(re.findall(r"<table>(.*?)</table>", page.read_text(), re.S)[number])
    head = re.findall(r"<th>(.*?)</th>", found)
    return [
        dict(zip(head, re.findall(r"<td[^>]*>(.*?)</td>", row), strict=True))
        for row in re.findall(r"<tr>(<td.*?)</tr>", found)
    ]


def test_the_tables_of_the_page_are_those_of_the_files(page: Path) -> None:
    methods = {r["method"]: r for r in rows(page.with_name("methods.csv"))}
    accuracy, harm, calibration, cost = ({r["method"]: r for r in table(page, k)} for k in range(4))
    for name, row in methods.items():
        assert accuracy[name]["seeds"] == "2"
        apart = 100 * float(row["accuracy_personal_seed_std"])
        shown = f"{100 * float(row['accuracy_personal']):.1f}" + (
            f" ± {apart:.1f}" if apart else ""
        )  # seeds may happen to agree
        assert accuracy[name]["personal %"] == shown
        assert harm[name]["worse than global %"].split(" ")[0] == f"{100 * float(row['harm_global']):.1f}"
        assert calibration[name]["NLL, global"].startswith(f"{float(row['loss_global']):.3f} ± ")
        assert cost[name]["bytes up / FedAvg's"] == f"{float(row['bytes_up_ratio']):.2f}"
        assert cost[name]["kB up a round"] == f"{float(row['bytes_up']) / 1000:,.0f}"
    assert float(methods["floco"]["bytes_up_ratio"]) > 1
    assert cost["fedavg"]["update variance"].split(" ")[0] == f"{float(methods['fedavg']['update_variance']):.3g}"


def test_the_figures_of_cost_show_bytes_steps_accuracy_and_harm_of_every_method(page: Path) -> None:
    section = re.findall(r"<h2>What accuracy costs</h2>(.*?)</section>", page.read_text(), re.S)[0]
    by_bytes, by_steps = map(json.loads, re.findall(r'<script type="application/json">(.*?)</script>', section, re.S))
    methods = {r["method"]: r for r in rows(page.with_name("methods.csv"))}
    for figure, paid in (
        (by_bytes, lambda r: (float(r["bytes_down"]) + float(r["bytes_up"])) / 1e6),
        (by_steps, lambda r: float(r["steps_per_client"])),
    ):
        shown = [
            (name, x, y, harm)
            for trace in figure["data"]
            for name, x, y, harm in zip(trace["text"], trace["x"], trace["y"], trace["marker"]["color"], strict=True)
        ]
        assert sorted(name for name, *_ in shown) == sorted(methods)
        for name, *numbers in shown:
            row = methods[name]
            wanted = [paid(row), 100 * float(row["accuracy_personal"]), 100 * float(row["harm_global"])]
            assert numbers == pytest.approx(wanted), name
        assert {a["text"] for a in figure["layout"]["annotations"]} == {*methods}


def test_a_method_whose_harm_is_not_known_is_grey() -> None:
    made = pd.DataFrame(
        {
            "method": ["fedavg", "ifca"],
            "accuracy_personal": [0.7, 0.8],
            "harm_global": [0.0, float("nan")],
            "bytes_up": [1e6, 2e6],
            "bytes_down": [1e6, 2e6],
            "steps_per_client": [10.0, 10.0],
        }
    )
    known, grey = price(made, Classification.metrics)[0].data
    assert (known.text, grey.text) == (("fedavg",), ("ifca",))
    assert grey.marker.color == "#999999"


def test_runs_of_other_data_or_lengths_are_not_put_into_one_table(tmp_path: Path) -> None:
    for name, more in (
        ("one", {}),
        ("longer", {"training.rounds": 8}),
        ("other", {"data.split": "iid", "data.clients": 6}),
        ("wider", {"algorithm.radius": 0.5}),
    ):
        assert floco("run", *settings(tmp_path, **more), "--out", tmp_path / name).exit_code == 0
    for second in ("longer", "other"):
        refused = floco("report", tmp_path / "one", tmp_path / second, "-o", tmp_path / "x.html")
        assert refused.exit_code == 2
        assert "cannot be compared" in refused.output
        assert not (tmp_path / "x.html").exists()
    assert (
        floco("report", tmp_path / "one", tmp_path / "wider", tmp_path / "one", "-o", tmp_path / "x.html").exit_code
        == 0
    )
    assert [r["method"] for r in table(tmp_path / "x.html", 0)] == ["floco", "floco (wider)"]
    assert "2 finished runs" in (tmp_path / "x.html").read_text()


def test_a_place_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    assert floco("run", *settings(tmp_path), "--out", tmp_path / "run").exit_code == 0
    for place in (tmp_path / "nowhere" / "x.html", tmp_path):
        refused = floco("report", tmp_path / "run", "-o", place)
        assert refused.exit_code == 2
        assert "must be a file in an existing folder" in refused.output


def test_a_comparison_that_is_not_complete_says_so(page: Path, tmp_path: Path) -> None:
    shutil.copytree(page.parent, tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "runs" / "floco-seed0")
    (tmp_path / "part" / "runs" / "fedavg-seed1" / "history.csv").write_text("")
    made = floco("report", tmp_path / "part")
    assert made.exit_code == 0, made.output
    report = tmp_path / "part" / "report.html"
    assert "Not finished, and not in any table: floco-seed0, fedavg-seed1." in report.read_text()
    assert [(r["method"], r["seeds"]) for r in table(report, 0)] == [
        ("floco", "1"),
        ("fedavg", "1"),
        ("fedavg+ft", "2"),
    ]
    assert "serves worst under seed 1" in report.read_text()  # the seed of the run whose data are shown


def test_data_that_are_gone_cost_the_pictures_of_the_data_only(tmp_path: Path) -> None:
    assert floco("run", *settings(tmp_path), "--out", tmp_path / "run").exit_code == 0
    (tmp_path / "blobs.npz").unlink()
    done = floco("report", tmp_path / "run")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "run" / "report.html").read_text()
    assert "<h2>Which model to deploy</h2>" in text
    assert "Not shown: " in text
    assert "blobs.npz" in text


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, as people have it."""
    if not CHROMIUM.exists():
        assert "FLOCO_NEEDS_BROWSER" not in os.environ, f"{CHROMIUM} is missing"
        pytest.skip(f"{CHROMIUM} is not installed: the report is not looked at in a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS, timeout=1000 * PATIENCE)
        yield opened
        opened.close()


def looked_at(browser: Any, page: Path, width: int, scheme: str) -> tuple[Any, list[str], list[str]]:
    """The page in a window, what it complained about, and what it asked the network for."""
    window = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    window.set_default_timeout(1000 * PATIENCE)
    complaints: list[str] = []
    asked: list[str] = []
    window.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    window.on("pageerror", lambda e: complaints.append(str(e)))
    window.on("request", lambda r: asked.append(r.url))
    window.goto(page.as_uri())
    figures = "[...document.querySelectorAll('.figure')]"
    window.wait_for_function(f"{figures}.length && {figures}.every(f => f.querySelector('.main-svg'))")
    return window, complaints, [url for url in asked if not url.startswith(("file:", "data:"))]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_in_a_browser_all_charts_are_there_and_nothing_complains(
    browser: Any, page: Path, width: int, scheme: str
) -> None:
    window, complaints, asked = looked_at(browser, page, width, scheme)
    assert complaints == []
    assert asked == []
    assert window.title() == "Federated learning: floco, fedavg, fedavg+ft"
    charts = window.query_selector_all(".figure")
    assert len(charts) >= 11
    assert all(c.query_selector(".main-svg") for c in charts)
    assert window.evaluate("document.documentElement.scrollWidth") <= width
    fits = "[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)"
    assert window.evaluate(fits)  # no table scrolls sideways
    for chart in charts:
        heading, bar = chart.query_selector("xpath=preceding-sibling::h3"), chart.query_selector(".modebar")
        assert bar.bounding_box()["y"] >= heading.bounding_box()["y"] + heading.bounding_box()["height"]
    for box in (c.bounding_box() for c in charts):
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["width"] > 300
    assert float(window.evaluate("parseFloat(getComputedStyle(document.body).fontSize)")) >= 16
    window.context.close()


def brightness(window: Any, code: str) -> float:
    found = [float(x) for x in re.findall(r"[\d.]+", window.evaluate(code))[:3]]
    return sum(found) / 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_of_page_and_charts_stands_out_in_both_colour_schemes(browser: Any, page: Path, scheme: str) -> None:
    window, _, _ = looked_at(browser, page, 1400, scheme)
    paper = brightness(window, "getComputedStyle(document.body).backgroundColor")
    assert (paper > 200) == (scheme == "light")
    for element in (
        "document.body",
        "document.querySelector('.figure .xtick text')",
        "document.querySelector('.figure .xtitle')",
    ):
        ink = brightness(
            window, f"getComputedStyle({element}).fill" if "figure" in element else f"getComputedStyle({element}).color"
        )
        assert abs(paper - ink) > 120, element
    window.context.close()


def test_charts_follow_a_change_of_the_colour_scheme(browser: Any, page: Path) -> None:
    window, complaints, _ = looked_at(browser, page, 1400, "light")
    before = window.evaluate("getComputedStyle(document.querySelector('.figure .xtitle')).fill")
    window.emulate_media(color_scheme="dark")
    window.wait_for_function(f"getComputedStyle(document.querySelector('.figure .xtitle')).fill != {before!r}")
    assert complaints == []
    window.context.close()


def test_hovering_over_a_client_tells_its_name_labels_and_accuracy(browser: Any, page: Path) -> None:
    window, complaints, _ = looked_at(browser, page, 1400, "light")
    places = window.query_selector_all(".figures > div")
    chart = next(c for c in places if "clients on the simplex" in c.query_selector("h3").text_content())
    chart.scroll_into_view_if_needed()
    told, end = set[str](), time.monotonic() + PATIENCE
    for point in cycle(chart.query_selector_all(".scatterlayer .trace .points path.point")):
        box = point.bounding_box()
        window.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        window.wait_for_timeout(120)
        seen = {label.text_content() for label in chart.query_selector_all(".hoverlayer .hovertext")}
        told |= {text for text in seen if re.search(r"client .*\d+ of .*personal accuracy [\d.]+ %", text)}
        if len(told) >= 3:
            break
        assert time.monotonic() < end, (seen, told)
    assert window.title() == "Federated learning: floco, fedavg, fedavg+ft"  # no name of a client ran as a script
    assert complaints == []
    window.context.close()
