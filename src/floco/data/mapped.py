"""Arrays that stay in their file: memory-mapped, so that data may be larger than memory."""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from floco.core.errors import FlocoError, warn

LARGE = 2**29  # bytes from which an array of an npz file is mapped, not read
_KEPT = (np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.int64))  # types that need no conversion
_BLOCK = 2**26  # bytes looked at together


def is_mapped(x: object) -> bool:
    """Return whether an array, or the one that it is a view of, is in a memory-mapped file."""
    while isinstance(x, np.ndarray):
        if isinstance(x, np.memmap) or isinstance(x.base, mmap.mmap):
            return True
        x = x.base
    return False


def blocks(x: Any) -> Iterator[Any]:
    """Yield an array or tensor (N, ...) in blocks of consecutive samples, each of 64 MB at most, or one sample."""
    size = x.nbytes // max(1, len(x))
    step = max(1, _BLOCK // max(1, size))
    for start in range(0, len(x), step):
        yield x[start : start + step]


def every(x: Any, check: Callable[[Any], Any]) -> np.ndarray:
    """Return for each sample whether `check`, from a block (n, ...) to a boolean array, holds in all its entries."""
    return np.concatenate([np.asarray(check(b)).reshape(len(b), -1).all(axis=1) for b in blocks(x)])


def read_members(path: Path) -> dict[str, Any]:
    """Return the arrays of an npz file; those above half a gigabyte are mapped if they are not compressed.

    A mapped array must stay as it is while a run uses it.

    Raises:
        FlocoError: an array holds objects.
        ValueError, OSError: the file is no npz file.
    """
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file, zipfile.ZipFile(path) as archive:
        made: dict[str, Any] = {}
        for name in file.files:
            found = next((i for i in archive.infolist() if i.filename in (name, f"{name}.npy")), None)
            large = found is not None and found.file_size >= LARGE
            mapped = _mapped(path, found) if found is not None and large else None
            if large and mapped is None:
                warn(
                    f"{path}: {name} is read into memory; uncompressed (numpy.savez) and as float32, uint8 or int64, "
                    "an array of this size stays in its file"
                )
            made[name] = _member(path, file, name) if mapped is None else mapped
        return made


def _member(path: Path, file: Any, name: str) -> Any:
    try:
        return file[name]
    except ValueError as error:
        kinds = "numbers, e.g. x.astype('float32'), or text, y.astype(str)"
        raise FlocoError(
            f"{path}: {name} holds Python objects (not read, as that can run code) or is damaged: write {kinds}"
        ) from error


def _mapped(path: Path, member: zipfile.ZipInfo) -> np.ndarray | None:
    """Return a member of an npz file as a mapped array; None if it is compressed, or of a type to be converted."""
    if member.compress_type != zipfile.ZIP_STORED:
        return None
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)  # of the member in the archive: its last two numbers are the lengths of name and extras
        name, extra = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
        file.seek(member.header_offset + 30 + name + extra)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype not in _KEPT or fortran:
            return None
        return np.memmap(path, dtype, mode="c", offset=file.tell(), shape=shape)  # private: nothing writes to the file
