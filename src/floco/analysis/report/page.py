"""The report as HTML: parts that are put into the page `report.html`, and the page itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs


@dataclass(frozen=True)
class Section:
    """A headed part of the page."""

    title: str
    body: str


def plots(*shown: go.Figure) -> str:
    """Return figures as HTML; the page draws them."""

    def one(figure: go.Figure) -> str:
        safe = str(figure.to_json()).replace("<", "\\u003c")  # a client's name may be anything
        return f'<div><div class="figure"></div><script type="application/json">{safe}</script></div>'

    return f'<div class="figures">{"".join(map(one, shown))}</div>\n'


def text(*paragraphs: str) -> str:
    """Return paragraphs as HTML."""
    return "".join(f"<p>{escape(p)}</p>\n" for p in paragraphs)


def html_table(table: pd.DataFrame, text_columns: Sequence[str] = ()) -> str:
    """Return a table as HTML; missing values are dashes, `text_columns` may break lines."""
    head = "".join(f"<th>{escape(str(c))}</th>" for c in table.columns)
    kinds = ['<td class="text">' if c in text_columns else "<td>" for c in table.columns]
    rows = ("".join(f"{kind}{escape('-' if value != value else str(value))}</td>" for kind, value in zip(kinds, row, strict=True)) for row in table.itertuples(index=False))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(f"<tr>{r}</tr>" for r in rows)}</tbody></table></div>\n'


def render(title: str, about: str, sections: Sequence[Section]) -> str:
    """Return the whole page, with the plotting library inside."""
    return Template(files("floco.analysis.report").joinpath("report.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        about=escape(about),
        plotly=get_plotlyjs(),
        links=" ".join(f'<a href="#s{i}">{escape(s.title)}</a>' for i, s in enumerate(sections)),
        sections="\n".join(f'<section id="s{i}"><h2>{escape(s.title)}</h2>\n{s.body}</section>' for i, s in enumerate(sections)),
    )
