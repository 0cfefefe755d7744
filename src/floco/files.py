"""Files of a run directory: tensors, JSON and CSV that are equal bytes for equal values, written down to the disk."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from floco.errors import FlocoError
from floco.evaluation import Row
from floco.values import Tensors


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors to a safetensors file."""
    write_file(path, to_safetensors(tensors))


def to_safetensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return tensors as safetensors: sorted, contiguous, no metadata, so that equal tensors are equal bytes."""
    data: bytes = safetensors.torch.save({n: tensors[n].detach().contiguous().clone() for n in sorted(tensors)})
    return data


def read_tensors(path: Path) -> Tensors:
    """Return the tensors of a safetensors file."""
    try:
        tensors: Tensors = safetensors.torch.load(path.read_bytes())
    except Exception as error:
        raise FlocoError(f"{path} cannot be read as safetensors: {error}") from error
    return tensors


def write_file(path: Path, data: bytes) -> None:
    """Write a new file down to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Write a file in one step: a kill leaves the old one or the new one."""
    write_file(path.with_name(path.name + ".new"), data)
    path.with_name(path.name + ".new").replace(path)


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
