"""Objects that settings name: a word, or `module:name` for a user's own."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

from floco.core.errors import FlocoError, nearest

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+_-]*")  # it becomes part of file names and of keys


def load_object(path: str, key: str) -> Any:
    """Return what `module:name` names; `key` is the setting, for error messages."""
    module, _, name = path.partition(":")
    try:
        holder = importlib.import_module(module or "(no module)")
    except ModuleNotFoundError as error:
        where = "it must be importable from the folder where floco is started"
        raise FlocoError(f"{key} = {path!r}: {error}; {where}") from error
    except Exception as error:  # whatever the user's module raises
        raise FlocoError(f"{key} = {path!r}: importing it raised {type(error).__name__}: {error}") from error
    if not hasattr(holder, name):
        raise FlocoError(f"{key} = {path!r}: module {module!r} has no {name!r}")
    if not callable(found := getattr(holder, name)):
        raise FlocoError(f"{key} = {path!r} must be a function, got {type(found).__name__}")
    return found


def check_call(function: Any, path: str, key: str, gets: str, *args: Any, **kwargs: Any) -> None:
    """Raise if a user's function cannot be called with these arguments, which `gets` says in words."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # of C, without one
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        name = path.partition(":")[2]
        raise FlocoError(f"{key} = {path!r} is called with {gets}, and has {name}{signature}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Registry:
    """The classes that a setting can name: built-in ones, those of installed packages, and a user's own."""

    key: str
    """The setting, e.g. `algorithm.name`."""
    base: type[Any]
    known: Mapping[str, type[Any]]
    group: str = ""
    """Entry-point group of packages that bring such classes; "": none."""

    def find(self, name: Any) -> type[Any]:
        """Return the class called `name`: a built-in word, an entry point, or `module:Class`.

        Raises:
            FlocoError: there is none, or it is not a frozen dataclass of the right kind with a name.
        """
        if not isinstance(name, str) or not (name in self.known or name in self._installed or ":" in name):
            words = [*self.known, *self._installed]
            raise FlocoError(
                f"{self.key} must be one of {', '.join(words)}, or module:Class, "
                f"got {name!r}{nearest(str(name), words)}"
            )
        if name in self.known:
            return self.known[name]
        return self.check(self._installed[name].load() if name in self._installed else load_object(name, self.key))

    def check(self, cls: Any) -> type[Any]:
        """Return a class that can be used under this setting."""
        kind = self.base.__name__
        if not isinstance(cls, type) or not issubclass(cls, self.base):
            raise FlocoError(f"{self.key}: {cls!r} must be a class, a subclass of {kind}")
        if missing := sorted(getattr(cls, "__abstractmethods__", ())):
            raise FlocoError(f"{self.key}: {cls.__name__} has no {', '.join(missing)}, which each {kind} needs")
        if not dataclasses.is_dataclass(cls) or not getattr(cls, "__dataclass_params__").frozen:  # noqa: B009
            raise FlocoError(f"{self.key}: put @dataclass(frozen=True) above class {cls.__name__}")
        name = vars(cls).get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            needed = 'a name of its own, of letters, digits, "+", "-" and "_", e.g. name: ClassVar[str] = "mine"'
            raise FlocoError(f"{self.key}: class {cls.__name__} needs {needed}; got {name!r}")
        if self.known.get(name, cls) is not cls:
            raise FlocoError(f"{self.key}: class {cls.__name__} needs a name of its own: {name!r} is built in")
        for field in (f for f in dataclasses.fields(cls) if "doc" not in f.metadata):
            of = getattr(field.type, "__name__", str(field.type))
            better = f'{field.name}: {of} = setting({field.default!r}, "what it is")'
            raise FlocoError(f"{self.key}: {cls.__name__}.{field.name} needs a description: {better}, of floco.core")
        return cls

    def name_of(self, cls: type[Any]) -> str:
        """Return the name by which `find` finds a class again."""
        for name, known in self.known.items():
            if known is cls:
                return name
        for name, entry in self._installed.items():
            if entry.value == f"{cls.__module__}:{cls.__qualname__}":
                return name
        return f"{cls.__module__}:{cls.__qualname__}"

    @property
    def _installed(self) -> Mapping[str, Any]:
        return _entry_points(self.group) if self.group else {}


@cache
def _entry_points(group: str) -> dict[str, Any]:
    from importlib.metadata import entry_points  # imported here, since it takes a tenth of a second

    return {entry.name: entry for entry in entry_points(group=group)}


def lazy(package: str, homes: Mapping[str, tuple[str, ...]]) -> tuple[Callable[[str], Any], list[str]]:
    """Return `__getattr__` and `__all__` of a package whose public names are imported when they are first used.

    Args:
        package: its name.
        homes: names by the module that defines them.
    """
    home = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(home[name]), name)

    return get, sorted(home)
