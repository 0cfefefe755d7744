"""The errors of the package. A message says what must hold, what was given, and what to do."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable


class FlocoError(ValueError):
    """Wrong use, wrong data or a broken run, with a message a user can act on (exit code 2)."""


class RunFailed(FlocoError):
    """A correctly started run that could not continue (exit code 1); resume it once the cause is fixed."""


class WorkerDied(RunFailed):
    """A worker process died, e.g. out of memory; this says nothing about the settings it ran with."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the known word closest to `word`, or else the list of known words."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def some(names: Iterable[object], most: int = 8) -> str:
    """Return the first names, and how many more there are.

    >>> some(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    shown = list(map(str, names))
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def warn(text: str) -> None:
    """Issue a warning at the line of the caller's own code: the first frame outside this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == "floco":
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)
