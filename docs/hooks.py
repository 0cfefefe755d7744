"""What the site needs beside docs/: documents of the repository that pages link to, under links that work in both."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md", "benchmarks/results/bench.md")
FOLDER = "benchmarks/results"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents and the result tables outside of docs/."""
    root = Path(config.config_file_path).parent
    tables = (p.relative_to(root).as_posix() for p in (root / FOLDER).glob("*.csv"))
    for name in (*OUTSIDE, *tables):
        files.append(
            File.generated(
                config, name, content=(root / name).read_bytes() if name[-3:] != ".md" else _text(root, name)
            )
        )
    return files


def _text(root: Path, name: str) -> str:
    """Return a document from outside of docs/, with its links as they must be in the site."""
    text = (root / name).read_text()
    if not text.startswith("# "):
        text = f"# {Path(name).stem.capitalize()}\n\n{text}"
    return re.sub(r"\]\((\.\./)*docs/", lambda m: f"]({m.group(1) or ''}", text)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to the outside lead to the copy in the site, and read table cells as GitHub does."""
    if page.file.src_uri not in OUTSIDE:
        markdown = re.sub(rf"\]\(\.\./(?=benchmarks/|{'|'.join(map(re.escape, OUTSIDE))})", "](", markdown)
    return re.sub(r"^\|.*$", lambda row: _cells(row[0]), markdown, flags=re.M)


def _cells(row: str) -> str:
    """Return a row of a table with its pipes and angle brackets as characters: `|mean update|`, `<v - w, g>`."""
    row = re.sub(r"(?<!\\)\|mean update\|", r"\|mean update\|", row)
    parts = re.split(r"(`[^`]*`)", row)
    return "".join(p.replace(r"\|", "|") if p[:1] == "`" else re.sub(r"<(?=[a-z] )", "&lt;", p) for p in parts)


def on_page_content(html: str, **kwargs: object) -> str:
    """Let names in tables break after a dot, an underscore or a slash, and nowhere else."""
    return re.sub(
        r"<td.*?</td>",
        lambda cell: re.sub(r"<code>[^<]+</code>", lambda c: re.sub(r"(?<=\w[._/,])(?=\w)", "<wbr>", c[0]), cell[0]),
        html,
        flags=re.S,
    )
