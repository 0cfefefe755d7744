"""The tables of settings and methods in the documentation, as Markdown."""

from __future__ import annotations

from typing import Any

from floco.algorithms import ALGORITHMS
from floco.core.settings import key_of
from floco.runs.config import DEFAULTS, REGISTRIES, SECTIONS, Config
from floco.runs.toml import describe, documented, to_text


def reference() -> str:
    """Return the table of all keys with default and meaning, as Markdown."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    groups: dict[str, type[Any]] = {"": Config} | {f"{name}.": cls for name, cls in SECTIONS.items()}
    groups |= {f"{table}. ({name})": cls for table, r in REGISTRIES.items() for name, cls in r.known.items()}
    for prefix, cls in groups.items():
        start, _, which = prefix.partition(" ")
        lines = (f"| `{start}{key_of(f)}` {which} | `{to_text(f.default)}` | {describe(f)} |" for f in documented(cls))
        rows += [line.replace("  |", " |") for line in lines]
    for table, registry in REGISTRIES.items():
        rows.append(f'| `{table}.name` | `"{DEFAULTS[table]}"` | {", ".join(registry.known)}, or module:Class |')
    return "\n".join(rows) + "\n"


def methods() -> str:
    """Return the table of all algorithms with rule, global and personal model, and settings, as Markdown."""
    rows = ["| method | rule | global model | personal model | settings and defaults |", "|---|---|---|---|---|"]
    classes: dict[str, type[Any]] = {**ALGORITHMS}
    for name, cls in classes.items():
        rule = " ".join((cls.__doc__ or "").split(">>>")[0].split()).replace("|", "\\|")
        one, own = cls.global_model, cls.personal_model
        settings = "; ".join(f"`{f.name}` = `{to_text(f.default)}`: {describe(f)}" for f in documented(cls))
        rows.append(f"| `{name}` | {rule} | {one} | {own} | {settings or 'none'} |")
    return "\n".join(rows) + "\n"
