"""Use of trained models: `floco export`, `predict`, `place`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from floco.cli.console import Debug, Json, app, emit, note, out_console, report_errors, say
from floco.core.errors import FlocoError

if TYPE_CHECKING:
    import pandas as pd

    from floco.runs.results import Run

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or a bundle of one.")]
Client = Annotated[str | None, typer.Option("--client", metavar="ID", help="Whose model.")]
Global = Annotated[bool, typer.Option("--global", help="The global model.")]
_FORMAT = "Default: by the suffix of PATH, else safetensors."
Format = Annotated[str | None, typer.Option("--format", metavar="safetensors|pt2|onnx|peft", help=_FORMAT)]
_AT = "Floco and Floco+: the model at the client's center, or the best mixture for its training part."
At = Annotated[str, typer.Option("--at", metavar="center|best", help=_AT)]
Everyone = Annotated[bool, typer.Option("--all", help="Every client's model, and the global one.")]
ModelPath = Annotated[
    Path | None, typer.Option("-o", metavar="PATH", help="File or folder. Default: RUN/models; none for a bundle.")
]
_NEWCOMER = (
    "The newcomer's samples x (or x.NAME for several inputs) and targets y in an npz file, in the format of the run's "
    "data; of tables, a .csv, .parquet or .json file with the same columns, in any order."
)
Newcomer = Annotated[Path, typer.Argument(metavar="DATA", help=_NEWCOMER)]
_EXIT_CODES = {"fits": 0, "moved": 3, "strange": 4}  # of place --check
_DOUBTFUL = 3  # of place: the model is not shown to be better than a guess
_CHECK = "Only check whether a known client's subregion still fits these data. Exit code 0: fits, 3: moved, 4: strange."
Check = Annotated[bool, typer.Option("--check", help=_CHECK)]
_INPUT = (
    "Samples x (or x.NAME for several inputs) in an npz file, in the format of the run's data; of tables, a .csv, "
    ".parquet or .json file with the same columns, in any order. Labels y, if present, are compared."
)
Input = Annotated[Path, typer.Argument(metavar="INPUT", help=_INPUT)]
_TABLE = "One line per sample: label (several: a JSON list), probabilities; .npz: arrays. Default: print the first."
TablePath = Annotated[Path | None, typer.Option("-o", metavar="OUT.csv|npz", help=_TABLE)]
_MOVED = "Where the run's data are now, if not where they were, e.g. csv:hospitals.csv; most questions need none."
Moved = Annotated[str | None, typer.Option("--data", metavar="SOURCE", help=_MOVED)]
_DEVICE = "Where models compute: cpu, cuda, cuda:1, ... (as in the run, or the CPU if that device is not here)."
Device = Annotated[str | None, typer.Option("--device", metavar="NAME", help=_DEVICE)]
Draws = Annotated[int, typer.Option(min=0, help="Average this many models of the client's subregion.")]


@app.command()
def export(
    path: RunPath,
    client: Client = None,
    global_: Global = False,
    everyone: Everyone = False,
    out: ModelPath = None,
    kind: Format = None,
    at: At = "center",
    moved: Moved = None,
    device: Device = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Export models with model cards for use without floco: state dicts, or graphs that include the preprocessing."""
    with report_errors(debug, as_json):
        if [client is not None, global_, everyone].count(True) != 1:
            raise FlocoError("name one of --client ID, --global and --all")
        whose = None if everyone else [client]
        files = _opened(path, moved, device).export(out or _models(path), whose, kind=kind, at=at)
        size = sum(f.stat().st_size for f in files)
        what, where = ("models", files[0].parent) if len(files) > 1 else ("model", files[0])
        say(f"{len(files)} {what} with cards ({size / 1e6:.1f} MB): {where}")
        emit(as_json, files=files)


@app.command()
def predict(
    path: RunPath,
    data: Input,
    client: Client = None,
    global_: Global = False,
    out: TablePath = None,
    at: At = "center",
    mixtures: Draws = 0,
    moved: Moved = None,
    device: Device = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Predict labels and probabilities with a client's model or the global one."""
    with report_errors(debug, as_json):
        if (client is None) != global_:
            raise FlocoError("name one of --client ID and --global")
        if out is not None and out.exists():
            raise FlocoError(f"{out} exists already: remove it, or choose another place with -o")
        if out is not None and out.suffix not in (".csv", ".npz"):
            raise FlocoError(f"the file of predictions must end in .csv, or in .npz for arrays, got {out}")
        run, arrays = _both(path, moved, device, data, "x")
        groups = run.setup.federation.groups
        group = None if groups is None else arrays.get(groups.column)
        answer = run.answer(arrays["x"], arrays.get("y"), client=client, group=group, at=at, mixtures=mixtures)
        table, judged = answer.table, answer.measured
        if out is None:
            rest = f"\n... {len(table)} in all; -o FILE.csv writes them" if len(table) > 10 else ""
            say(_in_words(table.head(10).round(4)).to_string() + rest)
        else:
            as_arrays = out.suffix == ".npz"
            _write(out, _packed(answer.arrays) if as_arrays else _in_words(table).to_csv(index=False).encode())
            say(f"{len(table)} predictions: {out}")
        if "y" in arrays:
            from floco.cli import views

            say("\n".join(views.measure_lines(judged, run.setup.federation, len(table))))
        found = {} if out is not None else {"predictions": table.to_dict("records")}
        emit(as_json, file=out, **found, **({} if judged is None else judged._asdict()))


@app.command()
def place(
    path: RunPath,
    data: Newcomer,
    out: ModelPath = None,
    kind: Format = None,
    check: Check = False,
    client: Client = None,
    moved: Moved = None,
    device: Device = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Place a new client on the simplex and export its model, without training; no other client changes.

    Exit code 3: a model was written, and the samples do not show that it is better than a guess.
    """
    with report_errors(debug, as_json):
        if check != (client is not None) or (check and (out, kind) != (None, None)):
            without = "--check and --client ID belong together, without -o and --format"
            raise FlocoError(f"{without}, to check a known client's subregion; omit both to place a newcomer")
        run, arrays = _both(path, moved, device, data, "x", "y")
        if client is not None:
            checked = _check(run, client, arrays)
            emit(as_json, **checked)
            raise typer.Exit(_EXIT_CODES[checked["verdict"]])
        placed = _place(run, arrays, data, out or _models(path), kind)
        emit(as_json, **placed)
        raise typer.Exit(_DOUBTFUL if placed["doubt"] else 0)


def _models(path: Path) -> Path:
    if path.is_file():
        raise FlocoError(f"{path} is a bundle, into which nothing is written: say with -o where models are to go")
    return path / "models"


def _place(run: Run, arrays: dict[str, Any], data: Path, out: Path, kind: str | None) -> dict[str, Any]:
    from floco.cli import views
    from floco.deliver.export import choose_file

    choose_file(out, data.stem, kind)  # check the output path before the work
    placed = run.place(arrays["x"], arrays["y"])
    file = run.export_placed(placed, arrays["y"], out, data.stem, source=data.name, kind=kind)
    out_console.print(views.placement_table(placed, run.setup.task.metrics))
    say(f"its model and card: {file}")
    chosen, doubt = placed.chosen, placed.compared if placed.doubtful else ""
    return {"file": file, "rule": chosen.rule, "mixture": chosen.alpha.tolist(), "loss": chosen.loss, "doubt": doubt}


def _check(run: Run, client: str, arrays: dict[str, Any]) -> dict[str, Any]:
    from floco.cli import views

    found = run.check(client, arrays["x"], arrays["y"])
    out_console.print(views.drift_table(found))
    if found.classes and found.verdict == "strange":
        out_console.print(views.drift_classes(found))
    say(f"{found.verdict}: {found.advice}")
    moved, worse = f"p = {found.p_moved:.4f}", f"p = {found.p_worse:.4f}"
    say(
        f"(chance of another point being this much better: {moved}, of the loss at its center being this high: {worse})"
    )
    return {**asdict(found), "advice": found.advice}


def _opened(path: Path, moved: str | None, device: str | None) -> Run:
    from floco.api import open_run

    run = open_run(path, data=moved, device=device)
    if (done := run.progress.round) < (rounds := run.setup.training.rounds):
        note(f"the run is not finished: these are its models of round {done} of {rounds}")
    return run


def _both(path: Path, moved: str | None, device: str | None, data: Path, *needed: str) -> tuple[Run, dict[str, Any]]:
    """Return a run, and the samples and targets of a file: its arrays, or the columns that the run's table has."""
    from floco.data.table_files import SUFFIXES, read_frame

    if (scheme := SUFFIXES.get(data.suffix.lower())) is None:
        arrays = _arrays(data, *needed)
        return _opened(path, moved, device), arrays
    frame, run = read_frame(str(data), scheme, "data"), _opened(path, moved, device)
    if (table := run.setup.federation.table) is None:
        raise FlocoError(f"{data} is a table, and the data of {path} are arrays: give an npz file in their format")
    y = table.targets(frame, str(data))
    if y is None and "y" in needed:
        raise FlocoError(f"{data} must hold the targets, in the column that they have in the data of {path}")
    column = table.roles.group
    group = {} if column is None or column not in frame else {column: frame[column].to_numpy(object)}
    return run, {**group, "x": frame, **({} if y is None else {"y": y})}


def _arrays(path: Path, *needed: str) -> dict[str, Any]:
    from floco.data.reading import gather
    from floco.data.sources import read_npz

    arrays: dict[str, Any] = gather(read_npz(str(path), "data"))
    for name in needed:
        if name not in arrays:
            among = ", ".join(arrays) or "nothing"
            raise FlocoError(f"{path} must hold {' and '.join(needed)}, and {name} is missing among {among}")
    return arrays


def _in_words(table: pd.DataFrame) -> pd.DataFrame:
    """Return predictions with lists of labels as JSON, which is clear whatever characters labels have."""
    return table.map(lambda cell: json.dumps(cell, ensure_ascii=False) if isinstance(cell, list) else cell)


def _packed(arrays: dict[str, Any]) -> bytes:
    import io

    import numpy as np

    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _write(path: Path, data: bytes) -> None:
    from floco.storage.files import replace_file

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data)
    except OSError as error:
        raise FlocoError(f"cannot write {path}: {error.strerror or error}") from error
