"""Files of a run directory: tensors, JSON and CSV that are equal bytes for equal values, written down to the disk."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import safetensors.torch
import torch

from floco.core.errors import FlocoError
from floco.core.values import Row, Tensors


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write tensors to a safetensors file and return its checksum."""
    data = to_safetensors(tensors)
    write_file(path, data)
    return checksum(data)


def checksum(data: bytes) -> str:
    """Return the SHA-256 of a file's content."""
    return hashlib.sha256(data).hexdigest()


def to_safetensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return tensors as safetensors: sorted, contiguous, no metadata, so that equal tensors are equal bytes."""
    data: bytes = safetensors.torch.save({n: tensors[n].detach().contiguous().clone() for n in sorted(tensors)})
    return data


def read_tensors(path: Path, expected: str | None = None) -> Tensors:
    """Return the tensors of a safetensors file, whose checksum must be the expected one if that is known."""
    try:
        data = path.read_bytes()
        tensors: Tensors = safetensors.torch.load(data)
    except Exception as error:
        raise FlocoError(f"{path} cannot be read as safetensors: {error}") from error
    if expected is not None and checksum(data) != expected:
        raise FlocoError(f"{path} was changed after it was written (its SHA-256 is not the one noted then): restore it from a copy")
    return tensors


def file_name(client: str) -> str:
    """Return a file name for a client's id: different ids have different ones (also where case does not count, unless they differ in case only)."""
    name = quote(client, safe="")
    name = f"%2E{name[1:]}" if name.startswith(".") else name  # a hidden file, or a folder
    if len(name) > 150:  # file systems allow 255
        name = f"{name[:100]}-{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}"
    return name


def write_file(path: Path, data: bytes) -> None:
    """Write a new file down to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Write a file in one step: a kill leaves the old one or the new one."""
    new = path.with_name(path.name + ".new")
    try:
        write_file(new, data)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def sync_folder(path: Path) -> None:
    """Write the entries of a folder down to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def to_json(value: Any) -> bytes:
    """Return a value as JSON, keys sorted."""
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


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file."""
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FlocoError(f"{path} cannot be read: {error}; there is no whole checkpoint without it") from error
    return facts
