"""What `floco status` shows of runs and comparisons, and `floco doctor` of this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group as Shown
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from floco.core.errors import some
from floco.runs.status import Group, Status

_COLOURS = {"running": "green", "stopped": "yellow", "failed": "red", "unknown": "red"}
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def duration(seconds: float | None) -> str:
    """Return a time with its one or two largest units; "" if it is not known.

    >>> duration(4000), duration(59.6), duration(0.2)
    ('1 h 7 min', '1 min', '0 s')
    """
    if seconds is None:
        return ""
    size = next((n for _, n in _UNITS[1:] if seconds >= 2 * n), 1)
    rest, parts = round(seconds / size) * size, []
    for name, n in _UNITS:
        if rest >= n:
            parts.append(f"{rest // n} {name}")
            rest %= n
    return " ".join(parts[:2]) or "0 s"


def show(groups: Sequence[Group]) -> Shown:
    """Return a table of all runs, and below it the comparisons as a whole, and what went wrong."""
    table = Table(padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in ("state", "round", "a round", "left", "personal", "failed"):
        table.add_column(name, justify="left" if name == "state" else "right")
    for group in groups:
        for run in group.runs:
            table.add_row(*_cells(group, run))
    return Shown(table, *(Text(line) for group in groups for line in _notes(group)))


def _cells(group: Group, run: Status) -> Iterator[str]:
    yield escape(run.path.name if group.path is None else f"{group.path.name}/{run.path.name}")
    yield f"[{_COLOURS[run.state]}]{run.state}[/]" if run.state in _COLOURS else run.state
    yield f"{run.round}/{run.rounds}"
    yield "" if run.seconds is None else f"{run.seconds:.2g} s" if run.seconds < 10 else duration(run.seconds)
    yield duration(run.left) if run.state == "running" else ""
    value = run.evaluation.get(f"{run.metrics.primary}_personal") if run.metrics else None
    yield "" if value is None else run.metrics.text(run.metrics.primary, value)
    yield str(sum(run.failures.values()) or "")


def _notes(group: Group) -> Iterator[str]:
    if group.path is not None:
        count = sum(run.state == "finished" for run in group.runs)
        left = "" if group.left is None else f", about {duration(group.left)} left"
        yield f"{group.path} is {group.state}: {count} of {len(group.runs)} runs finished{left}"
        if group.state == "stopped":
            yield f"  continue with: floco resume {group.path}"
    for run in group.runs:
        if run.state == "stopped" and group.path is None:
            ago = f", {duration(run.age)} ago" if run.age is not None else ""
            yield f"{run.path} stopped after round {run.round}{ago}; continue with: floco resume {run.path}"
        if run.failures:
            who = some([f"{client} ({n})" for client, n in run.failures.items()], 5)
            yield f"{run.path}: clients left out: {who}"
        if run.reason:
            yield f"  {'the last: ' if run.failures and run.state != 'failed' else ''}{run.reason}"


def describe_machine(found: Mapping[str, Any], width: int) -> Table:
    """Return what `examine` has found as a table without borders."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.width = width
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")

    def line(name: str, text: str) -> None:
        table.add_row(name, escape(text))

    memory = found["memory"]
    for name in ("floco", "python", "torch"):
        line(name, found[name])
    line("system", f"{found['system']}, {found['machine']} ({found['cpu']})")
    line("devices", ", ".join(f"{d} ({name})" if name else d for d, name in found["devices"].items()))
    line("workers", f"{found['workers']} by default; torch uses {found['threads']} threads")
    parts = [f"{memory[k] / 1e9:.1f} GB {k}" for k in ("total", "available") if memory[k] is not None]
    line("memory", ", ".join(parts) or "unknown")
    for name, extra in found["extras"].items():
        missing = ", ".join(extra["missing"])
        line(name, f"{extra['purpose']}: installed" if extra["installed"] else f"{extra['purpose']}: missing {missing}")
        if not extra["installed"]:
            line("", extra["install"])
    line("report", "one HTML file, which any browser shows; no browser is needed to write the file")
    for problem in found["problems"]:
        table.add_row("[red]problem[/]", escape(problem))
    return table
