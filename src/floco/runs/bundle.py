"""A run as one file, without anybody's data."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

from floco.algorithms import ALGORITHMS
from floco.core.errors import FlocoError
from floco.core.values import Row
from floco.runs.checkpoint import BUNDLE, Store
from floco.runs.reading import find_run
from floco.runs.session import AFTER, GRAPH, KNOWN
from floco.storage.files import csv_text, to_json

_WHOLE = ("config.toml", "environment.json", "run.json", KNOWN, GRAPH)
_TEXTS = {
    "failures.csv": "reason",
    "newcomers.csv": "problem",
    "metrics.csv": "problem",
}  # columns with errors, which may show data
_LEFT_OUT = "(not in bundles)"


def bundle(path: Path, out: Path) -> Path:
    """Write what reading a run needs into the zip file `out`, and return it.

    What may hold data is left out: the texts of errors, what trackers, exports and reports wrote, and what clients keep
    under a method of one's own. Only known files are taken.

    Raises:
        FlocoError: the run cannot be read, or `out` exists or cannot be written.
    """
    if out.exists():
        raise FlocoError(f"{out} exists already: remove it, or choose another place with -o")
    path, new = find_run(path), out.with_name(f"{out.name}.new")
    store = Store(path, read=True)
    store.load()  # so that damaged files are found now
    try:
        with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as file:
            _fill(file, store)
        new.replace(out)
    except OSError as error:
        raise FlocoError(f"cannot write {out}: {error}; choose another place with -o, or try again") from error
    finally:
        new.unlink(missing_ok=True)
    return out


def _fill(file: zipfile.ZipFile, store: Store) -> None:
    number, facts = store.latest()
    kept = facts["memories"] and store.facts["config"]["algorithm"]["name"] in ALGORITHMS
    left_out = {"memories": "left out"} if facts["memories"] and not kept else {}
    file.writestr(BUNDLE, to_json({"texts of errors": "left out", **left_out}))
    for name in _WHOLE:
        if (store.path / name).is_file():
            file.write(store.path / name, name)
    for name, size in [
        *((f"{table}.csv", n) for table, n in facts["sizes"].items()),
        *((f"{table}.csv", None) for table in AFTER),
    ]:
        if (store.path / name).is_file():
            data = (store.path / name).read_bytes()[:size]
            file.writestr(name, _without(data, _TEXTS[name]) if name in _TEXTS else data)
    base = f"checkpoint/{number}"
    names = [f"{base}/state.safetensors", f"{base}/progress.json"]
    if kept:
        files = (store.memory_file(client, n) for client, n in facts["memories"].items())
        names += [str(file.relative_to(store.path)) for file in files]
    for name in names:
        file.write(store.path / name, name)
    file.writestr("checkpoint/latest", f"{number}\n")


def _without(table: bytes, column: str) -> bytes:
    reader = csv.DictReader(io.StringIO(table.decode()))
    rows: list[Row] = [{**row, column: row[column] and _LEFT_OUT} for row in reader]
    return csv_text(rows, header=True, columns=tuple(reader.fieldnames or ())).encode()
