"""A run directory: written so that a kill at any moment loses at most the rounds since the last checkpoint.

config.toml environment.json run.json   written once, with the directory
history.csv clients.csv failures.csv timings.csv   grow; cut back to the checkpoint on resume
checkpoint/<round>/state.safetensors progress.json   immutable
checkpoint/memories/<client>.<round>.safetensors     immutable, one version in use per client
checkpoint/latest                                     the pointer, replaced last
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import safetensors.torch
import torch
from filelock import FileLock, Timeout

from floco.errors import FlocoError, RunFailed
from floco.evaluation import Counts, Row
from floco.loop import Progress
from floco.values import ServerState, Tensors

FORMAT = 1
_TABLES = ("history", "clients", "failures", "timings")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors: sorted, contiguous, no metadata, so that equal tensors are equal files."""
    _write(path, safetensors.torch.save({n: tensors[n].detach().contiguous().clone() for n in sorted(tensors)}))


def read_tensors(path: Path) -> Tensors:
    """Return the tensors of a safetensors file."""
    try:
        tensors: Tensors = safetensors.torch.load(path.read_bytes())
    except Exception as error:
        raise FlocoError(f"{path} cannot be read as safetensors: {error}") from error
    return tensors


def _write(path: Path, data: bytes) -> None:
    """Write a new file down to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _json(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True, indent=1) + "\n").encode()


def csv_text(rows: Sequence[Row], *, header: bool) -> str:
    """Return rows as CSV; None is an empty cell, numbers have all their digits."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n") if rows else None
    if writer is not None and header:
        writer.writeheader()
    if writer is not None:
        writer.writerows({k: repr(v) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return buffer.getvalue()


class Store:
    """One run directory, locked while it is open."""

    def __init__(self, path: Path) -> None:
        """Open and lock an existing run."""
        self.path = path
        if not (path / "run.json").is_file():
            raise FlocoError(f"{path} is no run directory: it has no run.json")
        self.facts: dict[str, Any] = json.loads((path / "run.json").read_text())
        if self.facts["format"] != FORMAT:
            raise FlocoError(f"{path} has format {self.facts['format']}, this version of floco reads format {FORMAT}; use the version named in its environment.json")
        self._lock = FileLock(path / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise FlocoError(f"{path} is in use by another process; wait for it, or stop it first") from error
        self._memories: dict[str, int] = {}
        self._round: int | None = None
        self._pending: dict[str, list[Row]] = {t: [] for t in _TABLES}
        self._changed: set[str] = set()

    @staticmethod
    def create(path: Path, texts: Mapping[str, str], facts: Mapping[str, Any], start: Progress) -> None:
        """Make a run directory that can be resumed, in one step: before it there is nothing, or an empty folder."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FlocoError(f"--out {path} is not empty; choose another place, or continue the run in it: floco resume {path}")
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            (partial / "checkpoint" / "memories").mkdir(parents=True)
            for name, text in texts.items():
                _write(partial / name, text.encode())
            _write(partial / "run.json", _json({"format": FORMAT, **facts}))
            store = Store(partial)
            store.save(start)
            store.close()
            (partial / ".lock").unlink(missing_ok=True)
            partial.replace(path)
            _sync_folder(path.parent)
        except OSError as error:
            raise FlocoError(f"cannot make the run directory {path}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def close(self) -> None:
        """Unlock the directory."""
        self._lock.release()

    def add(self, table: str, rows: Iterable[Row]) -> None:
        """Add rows to a table; they are written with the next checkpoint."""
        self._pending[table] += rows

    def save(self, progress: Progress) -> None:
        """Write a checkpoint. Until the pointer is replaced, the one before stays in force."""
        try:
            self._save(progress)
        except OSError as error:
            raise RunFailed(
                f"round {progress.round}: cannot write to {self.path}: {error.strerror or error}; the checkpoint before is whole: make room, then floco resume {self.path}"
            ) from error

    def note_changed(self, clients: Iterable[str]) -> None:
        """Remember whose memory the next checkpoint has to write."""
        self._changed |= set(clients)

    def _save(self, progress: Progress) -> None:
        base, number = self.path / "checkpoint", progress.round
        sizes = {table: self._append(table) for table in _TABLES}
        versions = {**self._memories, **dict.fromkeys(self._changed, number)}
        for client in sorted(self._changed):
            write_tensors(self._memory_file(client, number), progress.memories[client])
        folder = base / str(number)
        shutil.rmtree(folder, ignore_errors=True)  # what a kill left of the same round
        folder.mkdir()
        write_tensors(folder / "state.safetensors", _flat(progress.state))
        facts = {"participated": dict(progress.participated), "since": asdict(progress.since), "memories": versions, "sizes": sizes}
        _write(folder / "progress.json", _json(facts))
        _sync_folder(folder)
        _write(base / "latest.new", f"{number}\n".encode())
        (base / "latest.new").replace(base / "latest")
        _sync_folder(base)
        self._forget(versions)
        self._memories, self._round, self._changed = versions, number, set()

    def _append(self, table: str) -> int:
        """Write the pending rows of a table and return its size in bytes."""
        path, rows = self.path / f"{table}.csv", self._pending[table]
        with path.open("ab") as file:
            file.write(csv_text(rows, header=file.tell() == 0).encode())
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        self._pending[table] = []
        return size

    def _memory_file(self, client: str, number: int) -> Path:
        return self.path / "checkpoint" / "memories" / f"{quote(client, safe='')}.{number}.safetensors"

    def _forget(self, versions: Mapping[str, int]) -> None:
        """Delete what the checkpoint before needed and this one does not."""
        for client, number in self._memories.items():
            if versions[client] != number:
                self._memory_file(client, number).unlink(missing_ok=True)
        if self._round is not None:
            shutil.rmtree(self.path / "checkpoint" / str(self._round), ignore_errors=True)

    def load(self) -> Progress:
        """Return the progress of the last checkpoint, the tables cut back to it and all leftovers deleted."""
        base = self.path / "checkpoint"
        try:
            number = int((base / "latest").read_text())
            facts = json.loads((base / str(number) / "progress.json").read_text())
        except (OSError, ValueError) as error:
            raise FlocoError(f"{self.path} has no whole checkpoint: {error}") from error
        self._memories, self._round = facts["memories"], number
        self._tidy(number)
        for table, size in facts["sizes"].items():
            os.truncate(self.path / f"{table}.csv", size)
        state = _state(read_tensors(base / str(number) / "state.safetensors"), number)
        memories = {client: read_tensors(self._memory_file(client, n)) for client, n in self._memories.items()}
        return Progress(state, memories, facts["participated"], Counts(**facts["since"]))

    def _tidy(self, number: int) -> None:
        base = self.path / "checkpoint"
        used = {self._memory_file(c, n) for c, n in self._memories.items()}
        for path in base.iterdir():
            if path.is_dir() and path.name not in (str(number), "memories"):
                shutil.rmtree(path)
        for path in (base / "memories").iterdir():
            if path not in used:
                path.unlink()
        with suppress(FileNotFoundError):
            (base / "latest.new").unlink()


def _flat(state: ServerState) -> Tensors:
    flat = {f"shared/{n}": t for n, t in state.shared.items()} | {f"kept/{n}": t for n, t in state.kept.items()}
    return flat | {f"client/{quote(c, safe='')}/{n}": t for c, tensors in state.by_client.items() for n, t in tensors.items()}


def _state(flat: Tensors, number: int) -> ServerState:
    shared: Tensors = {}
    kept: Tensors = {}
    by_client: dict[str, Tensors] = {}
    for name, tensor in flat.items():
        kind, _, rest = name.partition("/")
        if kind == "client":
            client, _, leaf = rest.partition("/")
            by_client.setdefault(unquote(client), {})[leaf] = tensor
        else:
            (shared if kind == "shared" else kept)[rest] = tensor
    return ServerState(shared, kept, by_client, number)
