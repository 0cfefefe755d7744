"""A run as one file: `floco bundle`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from floco.cli.console import Debug, Json, app, emit, report_errors, say
from floco.cli.deliver import RunPath

ZipPath = Annotated[Path | None, typer.Option("-o", metavar="FILE.zip", help="The file. Default: RUN.zip, here.")]


@app.command()
def bundle(path: RunPath, out: ZipPath = None, as_json: Json = False, debug: Debug = False) -> None:
    """Write a run as one file without anybody's data, which all commands that read runs take in its place."""
    with report_errors(debug, as_json):
        from floco.runs.bundle import bundle as write

        file = write(path, out or Path(f"{path.resolve().name}.zip"))
        say(f"the bundle is {file} ({file.stat().st_size / 1e6:.1f} MB)")
        say("it names the clients and columns, and holds ranges, counts by label and the models; no samples")
        emit(as_json, file=file)
