"""The command line. Heavy imports happen inside commands, so that help is quick."""

from __future__ import annotations

import sys

from floco.cli import deliver, federate, train  # noqa: F401  their commands are part of the application
from floco.cli.console import app


def main() -> None:
    """Run the command line."""
    sys.path.insert(0, "")  # module:function is looked for where the user stands
    app()
