"""Files of a run directory: tensors, JSON and CSV, with equal bytes for equal values, synced to disk."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import safetensors.torch
import torch
from filelock import FileLock, Timeout

from floco.core.errors import FlocoError
from floco.core.values import Row, Tensors


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write tensors to a safetensors file and return its checksum."""
    data = to_safetensors(tensors)
    write_file(path, data)
    return checksum(data)


def checksum(data: bytes) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def to_safetensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return tensors as safetensors: sorted, contiguous, without metadata, so that equal tensors give equal bytes."""
    data: bytes = safetensors.torch.save({n: tensors[n].detach().contiguous().clone() for n in sorted(tensors)})
    return data


def read_tensors(path: Path, expected: str | None = None) -> Tensors:
    """Return the tensors of a safetensors file, after checking its checksum if one is `expected`."""
    try:
        data = path.read_bytes()
        tensors: Tensors = safetensors.torch.load(data)
    except FileNotFoundError as error:
        again = "if the run goes on, it has replaced this file, and is to be opened again"
        raise FlocoError(f"{path} is missing: {again}; otherwise restore it from a copy") from error
    except Exception as error:
        raise FlocoError(f"{path} cannot be read as safetensors: {error}") from error
    if expected is not None and checksum(data) != expected:
        raise FlocoError(f"{path} was changed after it was written (its SHA-256 differs): restore it from a copy")
    return tensors


def file_name(client: str) -> str:
    """Return a file name for a client's id, different for different ids.

    On case-insensitive file systems, ids must differ in more than case.
    """
    name = quote(client, safe="")
    name = f"%2E{name[1:]}" if name.startswith(".") else name  # neither a hidden file nor a folder
    if len(name) > 150:  # file systems allow 255
        name = f"{name[:100]}-{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}"
    return name


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and sync it to disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Write a file atomically: a kill leaves the old one or the new one."""
    new = path.with_name(path.name + ".new")
    try:
        write_file(new, data)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def lock_folder(path: Path, wait: float = 0.2) -> FileLock:
    """Return the lock of a folder, locked; wait up to `wait` seconds for it.

    The default is not 0, because `floco status` holds a lock for a moment to see whether it is free.

    Raises:
        FlocoError: another process has it, or the folder cannot be written to.
    """
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=wait)
    except Timeout as error:
        raise FlocoError(f"{path} is in use by another process; wait for it, or stop it first") from error
    except OSError as error:
        raise FlocoError(f"cannot write to {path}: {error.strerror or error}") from error
    return lock


def move_all(entries: Sequence[Path], folder: Path) -> None:
    """Move files and folders into an empty folder, all or none."""
    try:
        for entry in entries:
            entry.rename(folder / entry.name)
    except BaseException:
        for entry in entries:
            if (folder / entry.name).exists():
                (folder / entry.name).rename(entry)
        raise


def temporary_folder(owner: object, parent: Path | None = None) -> Path:
    """Return a new folder, which is deleted with its owner, or at the end of this process."""
    folder = Path(tempfile.mkdtemp(prefix="floco-", dir=parent))
    delete_with(owner, partial(shutil.rmtree, folder, ignore_errors=True))
    return folder


def delete_with(owner: object, delete: Callable[[], object]) -> Callable[[], object]:
    """Have files deleted with their owner, in this process and not in forked copies of it; return what deletes them."""
    return weakref.finalize(owner, _here_only, os.getpid(), delete)


def _here_only(process: int, delete: Callable[[], object]) -> None:
    if os.getpid() == process:
        delete()


def sync_folder(path: Path) -> None:
    """Sync the entries of a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def to_json(value: Any) -> bytes:
    """Return a value as JSON with sorted keys."""
    return (json.dumps(value, sort_keys=True, indent=1) + "\n").encode()


def csv_text(rows: Sequence[Row], *, header: bool, columns: Sequence[str] = ()) -> str:
    """Return rows as CSV; None is an empty cell, floats have full precision; `columns` are those of no rows."""
    buffer = io.StringIO()
    names = list(rows[0]) if rows else columns
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    if header and names:
        writer.writeheader()
    writer.writerows({k: repr(v) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return buffer.getvalue()


def read_json(path: Path) -> dict[str, Any]:
    """Return the object stored in a JSON file."""
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FlocoError(f"{path} cannot be read: {error}; there is no whole checkpoint without it") from error
    return facts
