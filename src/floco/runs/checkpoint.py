"""Run directories: a kill at any moment loses at most the rounds since the last checkpoint.

config.toml environment.json                          written once, with the directory
run.json                                              likewise; replaced if settings change
federation.json network.pt2                           likewise: what reading needs in place of data and code
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

from floco.core.errors import FlocoError, RunFailed
from floco.core.values import Row
from floco.server.evaluation import Counts
from floco.server.progress import FAILURE, Progress
from floco.storage.files import (
    csv_text,
    file_name,
    lock_folder,
    move_all,
    read_json,
    read_tensors,
    replace_file,
    sync_folder,
    to_json,
    write_file,
    write_tensors,
)
from floco.storage.memories import BUDGET, LeftOut, Memories, Memory
from floco.storage.states import flat_state, restore_state

FORMAT = 8  # 6: run.json names method and metrics; split a table; 7: progress.json says last_trained; 8: prior
BUNDLE = "bundle.json"
"""File that only a bundle has: what was left out."""
_TABLES = ("history", "clients", "failures", "timings")


class Store:
    """One run directory, locked while it is open, unless it is only read."""

    def __init__(self, path: Path, *, wait: float = 0.2, read: bool = False) -> None:
        """Open an existing run directory; unless to `read` it, lock it, and wait up to `wait` seconds for the lock."""
        self.path = path
        if os.path.isfile(path):
            raise FlocoError(f"{path} is a file: a bundle is for reading only, continue the run that it was made of")
        if not os.path.isfile(path / "run.json"):
            why = "it has no run.json, or cannot be read" if os.path.lexists(path) else "there is nothing"
            raise FlocoError(f"{path} is no run directory: {why} (of a comparison, name one of the runs in it)")
        self.facts: dict[str, Any] = read_json(path / "run.json")
        if self.facts.get("format") != FORMAT:
            raise FlocoError(
                f"{path} has format {self.facts.get('format')}, this version of floco reads format {FORMAT}; "
                "use the version named in its environment.json"
            )
        self.bundled = read_json(path / BUNDLE) if (path / BUNDLE).is_file() else {}
        if self.bundled and not read:
            raise FlocoError(f"{path} was a bundle, which is for reading only: continue the run that it was made of")
        self._lock = None if read else lock_folder(path, wait)
        self._memories: dict[str, int] = {}
        self._checksums: dict[str, str] = {}  # of the memories' files, by client
        self._round: int | None = None
        self._pending: dict[str, list[Row]] = {t: [] for t in _TABLES}
        self._changed: set[str] = set()

    @staticmethod
    def create(path: Path, files: Mapping[str, str | bytes], facts: Mapping[str, Any], start: Progress) -> None:
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
            for name, data in files.items():
                write_file(partial / name, data if isinstance(data, bytes) else data.encode())
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

    def note(self, facts: Mapping[str, Any]) -> None:
        """Replace the content of run.json, atomically."""
        try:
            replace_file(self.path / "run.json", to_json(facts))
        except OSError as error:
            raise RunFailed(f"cannot write to {self.path}: {error.strerror or error}") from error
        self.facts = dict(facts)

    def close(self) -> None:
        """Unlock the directory."""
        if self._lock is not None:
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
            self._checksums[client] = write_tensors(self.memory_file(client, number), memory.tensors)
            memory.stored(self.memory_file(client, number))
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
        number, facts = self.latest()
        sizes = {**facts["sizes"], **{table: self._append(table) for table in tables}}
        file = self.path / "checkpoint" / str(number) / "progress.json"
        replace_file(file, to_json({**facts, "sizes": sizes, "counts": asdict(counts)}))

    def _append(self, table: str) -> int:
        """Append the pending rows of a table, and return its size in bytes."""
        path, rows = self.path / f"{table}.csv", self._pending[table]
        with path.open("ab") as file:
            known = FAILURE if table == "failures" else ()  # the columns of the others come with their first rows
            file.write(csv_text(rows, header=file.tell() == 0, columns=known).encode())
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        self._pending[table] = []
        return size

    def memory_file(self, client: str, number: int) -> Path:
        """Return the file of what a client kept after round `number`."""
        return self.path / "checkpoint" / "memories" / f"{file_name(client)}.{number}.safetensors"

    def _forget(self, versions: Mapping[str, int], number: int) -> None:
        """Delete files of the previous checkpoint that the current one does not use."""
        for client, before in self._memories.items():
            if versions.get(client) != before:
                self.memory_file(client, before).unlink(missing_ok=True)
        if self._round not in (None, number):
            shutil.rmtree(self.path / "checkpoint" / str(self._round), ignore_errors=True)

    def _number(self) -> int:
        """Return the round of the current checkpoint."""
        try:
            return int((self.path / "checkpoint" / "latest").read_text())
        except (OSError, ValueError) as error:
            raise FlocoError(f"{self.path} has no whole checkpoint: {error}") from error

    def latest(self) -> tuple[int, dict[str, Any]]:
        """Return the round of the current checkpoint, and its facts."""
        number = self._number()
        return number, read_json(self.path / "checkpoint" / str(number) / "progress.json")

    def load(self, budget: int = BUDGET) -> Progress:
        """Return the progress of the last checkpoint, with up to `budget` MB of memories in RAM; writes nothing."""
        while True:
            number = self._number()
            try:
                return self._load(budget)
            except FlocoError:
                if number == self._number():  # else: the run goes on, and has replaced these files
                    raise

    def _load(self, budget: int) -> Progress:
        number, facts = self.latest()
        self._memories, self._checksums, self._round = facts["memories"], facts["checksums"]["memories"], number
        base = self.path.resolve() / "checkpoint"
        tensors = read_tensors(base / str(number) / "state.safetensors", facts["checksums"]["state"])
        files = {client: self.memory_file(client, n).resolve() for client, n in self._memories.items()}
        kept: dict[str, Memory] = {c: LeftOut(c) for c in files if self.bundled.get("memories") == "left out"}
        for client in files.keys() - kept.keys():
            read_tensors(files[client], self._checksums[client])  # find damaged files now, not when the client fails
            kept[client] = Memory(None, files[client])
        memories = Memories({c: kept[c] for c in files}, budget=budget, folder=base)
        state, counts = restore_state(tensors, number), Counts(**facts["counts"])
        return Progress(state, memories, facts["participated"], facts["last_trained"], counts)

    def rewind(self) -> None:
        """Truncate the tables to the last checkpoint, and delete the remains of a later one."""
        number, facts = self.latest()
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
        used = {self.memory_file(c, n) for c, n in facts["memories"].items()}
        for path in [p for p in base.iterdir() if p.is_dir() and p.name not in (str(number), "memories")]:
            shutil.rmtree(path)
        for path in [*(base / "memories").iterdir(), base / "latest.new"]:
            if path not in used:
                path.unlink(missing_ok=True)
