"""Run directories: a kill at any moment loses at most the rounds since the last checkpoint.

config.toml environment.json run.json                 written once, with the directory
history.csv clients.csv failures.csv timings.csv      append-only; truncated to the checkpoint on resume
checkpoint/<round>/state.safetensors progress.json    immutable
checkpoint/memories/<client>.<round>.safetensors      immutable, one version per client in use
checkpoint/latest                                     the pointer to the checkpoint, replaced last
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from floco.core.errors import FlocoError, RunFailed
from floco.core.values import Row
from floco.server.evaluation import Counts
from floco.server.progress import Progress
from floco.storage.files import (
    csv_text,
    file_name,
    move_all,
    read_json,
    read_tensors,
    replace_file,
    sync_folder,
    to_json,
    write_file,
    write_tensors,
)
from floco.storage.memories import BUDGET, Memories, Memory
from floco.storage.states import flat_state, restore_state

FORMAT = 7  # 6: run.json names method and metrics; [data.split] is a table. 7: progress.json says last_trained
_TABLES = ("history", "clients", "failures", "timings")


class Store:
    """One run directory, locked while it is open."""

    def __init__(self, path: Path, *, wait: float = 0.2) -> None:
        """Open and lock an existing run directory; wait up to `wait` seconds for the lock.

        They are not 0, because `floco status` holds the lock for a moment to see whether it is free.
        """
        self.path = path
        if not (path / "run.json").is_file():
            raise FlocoError(f"{path} is no run directory: it has no run.json")
        self.facts: dict[str, Any] = read_json(path / "run.json")
        if self.facts.get("format") != FORMAT:
            raise FlocoError(
                f"{path} has format {self.facts.get('format')}, this version of floco reads format {FORMAT}; "
                "use the version named in its environment.json"
            )
        self._lock = FileLock(path / ".lock")
        try:
            self._lock.acquire(timeout=wait)
        except Timeout as error:
            raise FlocoError(f"{path} is in use by another process; wait for it, or stop it first") from error
        self._memories: dict[str, int] = {}
        self._checksums: dict[str, str] = {}  # of the memories' files, by client
        self._round: int | None = None
        self._pending: dict[str, list[Row]] = {t: [] for t in _TABLES}
        self._changed: set[str] = set()

    @staticmethod
    def create(path: Path, texts: Mapping[str, str], facts: Mapping[str, Any], start: Progress) -> None:
        """Create a resumable run directory atomically; `path` must not exist, or be an empty folder."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            instead = f"choose another place, or continue the run in it: floco resume {path}"
            raise FlocoError(f"--out {path} is not empty; {instead}")
        path = path.resolve()
        partial = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            inside = path if path.exists() else path.parent
            partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=inside))
            partial.chmod(0o755)
            (partial / "checkpoint" / "memories").mkdir(parents=True)
            for name, text in texts.items():
                write_file(partial / name, text.encode())
            write_file(partial / "run.json", to_json({"format": FORMAT, **facts}))
            store = Store(partial)
            store._save(start)
            store.close()
            (partial / ".lock").unlink(missing_ok=True)
            if path.exists():  # kept, as it may be a working directory; it is a run once it has run.json, the last file
                move_all(sorted(partial.iterdir(), key=lambda p: p.name == "run.json"), path)
            else:
                partial.rename(path)
            sync_folder(path.parent)
        except OSError as error:
            raise FlocoError(f"cannot make the run directory {path}: {error.strerror or error}") from error
        finally:
            if partial != path:
                shutil.rmtree(partial, ignore_errors=True)

    @property
    def last_round(self) -> int:
        """The round of the last checkpoint."""
        return self._latest()[0]

    def note(self, facts: Mapping[str, Any]) -> None:
        """Replace the content of run.json, atomically."""
        try:
            replace_file(self.path / "run.json", to_json(facts))
        except OSError as error:
            raise RunFailed(f"cannot write to {self.path}: {error.strerror or error}") from error
        self.facts = dict(facts)

    def close(self) -> None:
        """Unlock the directory."""
        self._lock.release()

    def add(self, table: str, rows: Iterable[Row]) -> None:
        """Add rows to a table; they are written with the next checkpoint."""
        self._pending[table] += rows

    def save(self, progress: Progress) -> None:
        """Write a checkpoint; the previous one stays valid until the pointer is replaced."""
        try:
            self._save(progress)
        except OSError as error:
            raise RunFailed(
                f"round {progress.round}: cannot write to {self.path}: {error.strerror or error}; "
                f"the last checkpoint is intact: make room, then floco resume {self.path}"
            ) from error

    def note_changed(self, clients: Iterable[str]) -> None:
        """Mark clients whose memory the next checkpoint has to write."""
        self._changed |= set(clients)

    def _save(self, progress: Progress) -> None:
        base, number = self.path / "checkpoint", progress.round
        sizes = {table: self._append(table) for table in _TABLES}
        numbers = {**self._memories, **dict.fromkeys(self._changed, number)}
        versions = {c: n for c, n in numbers.items() if c in progress.memories}
        for client in sorted(self._changed):
            memory = progress.memories.of(client)
            assert memory is not None
            self._checksums[client] = write_tensors(self._memory_file(client, number), memory.tensors)
            memory.stored(self._memory_file(client, number))
        folder = base / str(number)
        shutil.rmtree(folder, ignore_errors=True)  # remains of a killed attempt
        folder.mkdir()
        written = write_tensors(folder / "state.safetensors", flat_state(progress.state))
        checksums = {"state": written, "memories": self._checksums}
        facts = {n: dict(getattr(progress, n)) for n in ("participated", "last_trained")}
        facts |= {"counts": asdict(progress.counts), "memories": versions, "sizes": sizes, "checksums": checksums}
        write_file(folder / "progress.json", to_json(facts))
        for synced in (folder, base / "memories", self.path):
            sync_folder(synced)
        write_file(base / "latest.new", f"{number}\n".encode())
        (base / "latest.new").replace(base / "latest")
        sync_folder(base)
        self._forget(versions, number)
        self._memories, self._round, self._changed = versions, number, set()

    def amend(self, counts: Counts, *tables: str) -> None:
        """Add the pending rows of some tables to the current checkpoint, atomically."""
        number, facts = self._latest()
        sizes = {**facts["sizes"], **{table: self._append(table) for table in tables}}
        file = self.path / "checkpoint" / str(number) / "progress.json"
        replace_file(file, to_json({**facts, "sizes": sizes, "counts": asdict(counts)}))

    def _append(self, table: str) -> int:
        """Append the pending rows of a table, and return its size in bytes."""
        path, rows = self.path / f"{table}.csv", self._pending[table]
        with path.open("ab") as file:
            file.write(csv_text(rows, header=file.tell() == 0).encode())
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        self._pending[table] = []
        return size

    def _memory_file(self, client: str, number: int) -> Path:
        return self.path / "checkpoint" / "memories" / f"{file_name(client)}.{number}.safetensors"

    def _forget(self, versions: Mapping[str, int], number: int) -> None:
        """Delete files of the previous checkpoint that the current one does not use."""
        for client, before in self._memories.items():
            if versions.get(client) != before:
                self._memory_file(client, before).unlink(missing_ok=True)
        if self._round not in (None, number):
            shutil.rmtree(self.path / "checkpoint" / str(self._round), ignore_errors=True)

    def _latest(self) -> tuple[int, dict[str, Any]]:
        """Return the round of the current checkpoint, and its facts."""
        base = self.path / "checkpoint"
        try:
            number = int((base / "latest").read_text())
        except (OSError, ValueError) as error:
            raise FlocoError(f"{self.path} has no whole checkpoint: {error}") from error
        return number, read_json(base / str(number) / "progress.json")

    def load(self, budget: int = BUDGET) -> Progress:
        """Return the progress of the last checkpoint, with up to `budget` MB of memories in RAM; writes nothing."""
        number, facts = self._latest()
        self._memories, self._checksums, self._round = facts["memories"], facts["checksums"]["memories"], number
        base = self.path.resolve() / "checkpoint"
        tensors = read_tensors(base / str(number) / "state.safetensors", facts["checksums"]["state"])
        files = {client: self._memory_file(client, n).resolve() for client, n in self._memories.items()}
        for client, file in files.items():
            read_tensors(file, self._checksums[client])  # find damaged files now, not as a failure of the client
        memories = Memories({c: Memory(None, file) for c, file in files.items()}, budget=budget, folder=base)
        state, counts = restore_state(tensors, number), Counts(**facts["counts"])
        return Progress(state, memories, facts["participated"], facts["last_trained"], counts)

    def rewind(self) -> None:
        """Truncate the tables to the last checkpoint, and delete the remains of a later one."""
        number, facts = self._latest()
        for table, size in facts["sizes"].items():
            path = self.path / f"{table}.csv"
            if not path.is_file() or path.stat().st_size < size:
                raise FlocoError(
                    f"{path} is shorter than its checkpoint says ({size} bytes): it was changed, "
                    "and the run cannot be continued from it"
                )
            os.truncate(path, size)
        base = self.path / "checkpoint"
        if not (base / "memories").is_dir():
            raise FlocoError(f"{base / 'memories'} is missing: the run was changed, and cannot be continued")
        used = {self._memory_file(c, n) for c, n in facts["memories"].items()}
        for path in [p for p in base.iterdir() if p.is_dir() and p.name not in (str(number), "memories")]:
            shutil.rmtree(path)
        for path in [*(base / "memories").iterdir(), base / "latest.new"]:
            if path not in used:
                path.unlink(missing_ok=True)


def run_directory(path: Path) -> Path:
    """Return the run directory at a path: the path itself or, in a Flower site's state directory, its last run."""
    current = path / "current"
    return path / current.read_text().strip() if current.is_file() and not (path / "run.json").exists() else path
