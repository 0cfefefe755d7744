"""The one error family of the package: what must hold, what was given, what to do."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable


class FlocoError(ValueError):
    """Wrong use, wrong data or a broken run, said so that a user can act on it (exit code 2 on the command line)."""


class RunFailed(FlocoError):
    """A run that was started correctly and could not go on (exit code 1); it can be resumed once the cause is gone."""


class WorkerDied(RunFailed):
    """A worker process ended, e.g. for want of memory: nothing is known of the settings it ran with."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the known word closest to `word`, else the list of known words."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def warn(text: str) -> None:
    """Warn, and name the line of the caller's own code that led here: the first frame outside this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == "floco":
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)
