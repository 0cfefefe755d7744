"""The command line. Commands import heavy modules themselves, so that `--help` is fast."""

from __future__ import annotations

import importlib
import sys

from floco.cli.console import app, print_in_any_encoding

for _commands in ("train", "watch", "deliver", "bundle", "federate"):  # in the order of the help page
    importlib.import_module(f"floco.cli.{_commands}")


def main() -> None:
    """Run the command line."""
    sys.path.insert(0, "")  # module:function may name a module in the working directory
    print_in_any_encoding()
    app()
