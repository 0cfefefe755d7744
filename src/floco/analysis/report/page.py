"""HTML of the report: parts for the template `report.html`, and the whole page."""

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
    """A part of the page with a heading."""

    title: str
    body: str


def plots(*shown: go.Figure) -> str:
    """Return figures as HTML; a script in the page draws them. Titles are headings, which plotly's bar cannot cover."""

    def one(figure: go.Figure) -> str:
        heading = escape(figure.layout.title.text or "")
        untitled = figure.update_layout(title=None)
        safe = str(untitled.to_json()).replace("<", "\\u003c")  # client ids may contain markup
        data = f'<script type="application/json">{safe}</script>'
        return f'<div><h3>{heading}</h3><div class="figure"></div>{data}</div>'

    return f'<div class="figures">{"".join(map(one, shown))}</div>\n'


def text(*paragraphs: str) -> str:
    """Return paragraphs as HTML."""
    return "".join(f"<p>{escape(p)}</p>\n" for p in paragraphs)


def html_table(table: pd.DataFrame, text_columns: Sequence[str] = ()) -> str:
    """Return a table as HTML; missing values become dashes, and `text_columns` may wrap."""
    wraps = [' class="text"' if c in text_columns else "" for c in table.columns]
    names = [escape(str(c)) for c in table.columns]
    head = "".join(f"<th{style}>{name}</th>" for name, style in zip(names, wraps, strict=True))
    kinds = [f'<td data-column="{name}"{style}>' for name, style in zip(names, wraps, strict=True)]

    def row(values: Sequence[object]) -> str:
        shown = [escape("-" if value != value else str(value)) for value in values]
        return f"<tr>{''.join(f'{kind}{value}</td>' for kind, value in zip(kinds, shown, strict=True))}</tr>"

    body = "".join(map(row, table.itertuples(index=False)))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n'


def render(title: str, about: str, sections: Sequence[Section]) -> str:
    """Return the whole page, including the plotting library."""
    template = Template(files("floco.analysis.report").joinpath("report.html").read_text(encoding="utf-8"))
    titles = [escape(s.title) for s in sections]
    links = " ".join(f'<a href="#s{i}">{t}</a>' for i, t in enumerate(titles))
    parts = [f'<section id="s{i}"><h2>{titles[i]}</h2>\n{s.body}</section>' for i, s in enumerate(sections)]
    page = {"title": escape(title), "about": escape(about), "links": links, "sections": "\n".join(parts)}
    return template.substitute(page, plotly=get_plotlyjs())
