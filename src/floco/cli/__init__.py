"""The command line. Heavy imports happen inside commands, so that help is quick."""

from __future__ import annotations

import importlib
import sys

from floco.cli.console import app

for _commands in ("train", "deliver", "federate"):  # in the order in which help shows them
    importlib.import_module(f"floco.cli.{_commands}")


def main() -> None:
    """Run the command line."""
    sys.path.insert(0, "")  # module:function is looked for where the user stands
    app()
