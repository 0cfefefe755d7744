"""Tensors of large models in a file, of which only what is looked at is in memory."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

from floco.core.errors import FlocoError
from floco.core.values import Lazy
from floco.storage.files import delete_with

LARGE = 2**26
"""Bytes from which tensors are put into a file."""
_ALIGNMENT = 64


class OnDisk(Mapping[str, torch.Tensor]):
    """Tensors in a file. Each is mapped into memory when it is asked for, and is gone from it with the last reference.

    Writing to a mapped tensor changes neither the file nor other mappings of it.
    """

    def __init__(self, tensors: Lazy, scratch: str) -> None:
        """Write tensors to a new file in a folder for temporary files (`scratch_name`).

        Raises:
            FlocoError: there is no space left, or no such folder that can be written to.
        """
        self._places: dict[str, tuple[int, torch.dtype, torch.Size]] = {}
        try:
            folder = Path(tempfile.gettempdir(), scratch)
            folder.mkdir(mode=0o700, exist_ok=True)
            self.file = folder / uuid.uuid4().hex
            with self.file.open("xb") as file:
                self._write(tensors, file)
                self._size = file.tell()
        except OSError as error:
            if hasattr(self, "file"):
                self.file.unlink(missing_ok=True)
            raise FlocoError(
                f"cannot write the tensors of a large model to a temporary file: {error.strerror or error}; free some "
                "space, or set the environment variable TMPDIR to another folder"
            ) from error

    def _write(self, tensors: Lazy, file: IO[bytes]) -> None:
        for name, tensor in tensors.items():
            file.write(bytes(-file.tell() % _ALIGNMENT))
            self._places[name] = file.tell(), tensor.dtype, tensor.shape
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def __getitem__(self, name: str) -> torch.Tensor:
        start, dtype, shape = self._places[name]
        whole: Any = torch.UntypedStorage.from_file(str(self.file), False, self._size)
        flat = torch.empty(0, dtype=dtype).set_(whole, start // dtype.itemsize, (shape.numel(),), (1,))
        return flat.view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def scratch_name(owner: object) -> tuple[str, Callable[[], object]]:
    """Return the name of a folder for temporary files, and what deletes it, also with its owner.

    It exists from its first file on, so that runs without large models need no such folder.
    """
    name = f"floco-{uuid.uuid4().hex}"
    return name, delete_with(owner, partial(_delete, name))


def _delete(name: str) -> None:
    with suppress(FileNotFoundError):  # there is no folder for temporary files, and so none of ours
        shutil.rmtree(Path(tempfile.gettempdir(), name))


def aside(tensors: Lazy, scratch: str) -> Lazy:
    """Return tensors, in a new file if they are large.

    Raises:
        FlocoError: there is no space left, or no folder that can be written to.
    """
    return OnDisk(tensors, scratch) if sum(t.nbytes for t in tensors.values()) >= LARGE else tensors


def delete_later(groups: Iterable[Lazy]) -> None:
    """Have files deleted when nobody in this process refers to their tensors any more."""
    for tensors in groups:
        if isinstance(tensors, OnDisk):
            delete_with(tensors, partial(tensors.file.unlink, missing_ok=True))
