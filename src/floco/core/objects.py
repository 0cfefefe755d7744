"""Import the objects that settings name as `module:name`."""

from __future__ import annotations

import importlib
from typing import Any

from floco.core.errors import FlocoError


def load_object(path: str, key: str) -> Any:
    """Return the callable that `module:name` names; errors mention the configuration key `key`."""
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module or "(no module)"), name or "(no function)")
    except ModuleNotFoundError as error:
        hint = "it must be importable from the folder where floco is started"
        raise FlocoError(f"{key} = {path!r}: {error}; {hint}") from error
    except AttributeError as error:
        raise FlocoError(f"{key} = {path!r}: module {module!r} has no {name!r}") from error
    if not callable(found):
        raise FlocoError(f"{key} = {path!r} must be a function, got {type(found).__name__}")
    return found
