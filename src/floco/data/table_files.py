"""Tables in files, CSV, Parquet and JSON, as DataFrames; cells of CSV files are text."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from floco.core.errors import FlocoError, warn

if TYPE_CHECKING:
    import pandas as pd

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
}
"""Endings of files with tables, and the scheme that reads them."""
_FOREIGN = {
    b"PK\3\4": "a zip archive, as npz files and workbooks are",
    b"\x93NUMPY": "one array of NumPy",
    b"PAR1": "Parquet",
}
TABLES = ("csv", "parquet", "json")
"""Schemes of `data.source` that read tables."""


def read_frame(path: str, scheme: str, what: str = "data.source") -> pd.DataFrame:
    """Return the table of a file.

    Args:
        path: the file.
        scheme: `csv`, `parquet` or `json` (an array of records, or one record a line).
        what: what names the file, for error messages.

    Raises:
        FlocoError: there is no such file, or it is no such table.
    """
    if not Path(path).is_file():
        raise FlocoError(f"{what}: there is no file {path}")
    where = f"{what}: {path}"
    try:
        made = _parquet(path, where) if scheme == "parquet" else _READERS[scheme](_text(path, where), where)
    except OSError as error:
        raise FlocoError(f"{where} cannot be read: {error.strerror or error}") from error
    if not len(made):
        raise FlocoError(f"{where} holds no rows")
    return made


def _text(path: str, where: str) -> str:
    data = Path(path).read_bytes()
    if kind := next((k for start, k in _FOREIGN.items() if data.startswith(start)), None):
        raise FlocoError(f"{where} is no text but {kind}: arrays end in .npz, and tables are CSV, JSON or Parquet")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        known = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
        raise FlocoError(
            f"{where} is not UTF-8 (byte {error.start}): save it as UTF-8 (Excel: CSV UTF-8), or convert it, "
            f"e.g. with iconv -f {known} -t utf-8"
        ) from error
    if "\0" in text:
        raise FlocoError(f"{where} is no text: it holds zero bytes")
    return text


def _csv(text: str, where: str) -> pd.DataFrame:
    import pandas as pd

    said = re.match(r"\s*sep=(.)\r?(?=\n)", text, re.I)  # a line by which some programs name the separator
    text = text[said.end() :] if said else text  # its end stays, so that lines keep their numbers
    first = text.lstrip("\r\n").partition("\n")[0]
    separator = said[1] if said else _separator(re.sub(r'"[^"]*"', "", first), where)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    try:
        for row in reader:
            if not row:
                continue
            if rows and len(row) != len(rows[0]):
                raise FlocoError(
                    f"{where}, line {reader.line_num}: there are {len(row)} cells, and {len(rows[0])} columns: write "
                    "text that holds a separator in quotes"
                )
            rows.append(row)
    except csv.Error as error:
        raise FlocoError(f"{where}, line {reader.line_num}: {error}") from error
    if not rows:
        raise FlocoError(f"{where} is empty")
    if len(rows[0]) > 1 and not any(row[-1].strip() for row in rows):  # each line ends with a separator
        rows = [row[:-1] for row in rows]
    names = [n.strip() for n in rows[0]]
    if all(re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", n) for n in names):
        raise FlocoError(f"{where}: the first line must hold the names of the columns, got {', '.join(names[:5])}")
    made = pd.DataFrame(rows[1:], columns=range(len(names)), dtype=object)
    made.columns = pd.Index(names)
    return made


def _separator(header: str, where: str) -> str:
    times = {s: header.count(s) for s in _SEPARATORS}
    most = max(times.values())
    if most == 0:
        return ","
    best = [s for s, n in times.items() if n == most]
    if len(best) > 1:
        both = " or ".join(_SEPARATORS[s] for s in best)
        raise FlocoError(f"{where}: are columns separated by {both}? Write names that hold one of them in quotes")
    if best != [","]:
        warn(f"{where}: columns are separated by {_SEPARATORS[best[0]]}")
    return best[0]


def _parquet(path: str, where: str) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_parquet(path, dtype_backend="numpy_nullable")
    except Exception as error:
        raise FlocoError(f"{where} cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def _json(text: str, where: str) -> pd.DataFrame:
    import pandas as pd

    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text, object_pairs_hook=_record)
        else:
            rows = [json.loads(line, object_pairs_hook=_record) for line in text.splitlines() if line.strip()]
    except FlocoError as error:
        raise FlocoError(f"{where}: {error}") from error
    except (ValueError, RecursionError) as error:
        form = "it must be an array of records, or one record a line"
        raise FlocoError(f"{where} cannot be read as JSON: {form}: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise FlocoError(f'{where} must hold records such as {{"age": 61, "sex": "f"}}')
    if len(rows) == 1 and all(isinstance(v, list | dict) for v in rows[0].values()):
        raise FlocoError(f"{where} holds one record of columns: write an array of records, or one record a line")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pd.DataFrame({n: pd.Series([row.get(n) for row in rows], dtype=object) for n in names})


def _record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [n for n, _ in pairs]
        raise FlocoError(f"a record has {max(names, key=names.count)!r} twice")
    return made


_READERS = {"csv": _csv, "json": _json}
