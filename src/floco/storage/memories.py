"""The clients' memories: in RAM up to a budget, the rest in files."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from floco.core.errors import FlocoError
from floco.core.values import Tensors
from floco.storage.files import delete_with, read_tensors, temporary_folder, to_safetensors

BUDGET = 32  # MB


class Memory:
    """The tensors that one client keeps: in RAM, in a file, or both."""

    def __init__(self, tensors: Tensors | None, file: Path | None = None) -> None:
        self._tensors, self._file = tensors, file
        self._spilled: Callable[[], object] | None = None  # deletes the spill file, if `release` wrote one

    @property
    def tensors(self) -> Tensors:
        """The tensors, read from the file if they are not in RAM."""
        if self._tensors is not None:
            return self._tensors
        assert self._file is not None
        return read_tensors(self._file)

    @property
    def size(self) -> int:
        """Bytes in RAM."""
        return sum(t.nbytes for t in (self._tensors or {}).values())

    def stored(self, file: Path) -> None:
        """Point at an immutable checkpoint file; delete the spill file, if any."""
        if self._spilled is not None:
            self._spilled()
        self._file = file.resolve()

    def release(self, folder: Callable[[], Path]) -> None:
        """Drop the tensors from RAM.

        If they are in no file, write a spill file into `folder`; it is deleted with this object.
        """
        if self._file is None:
            self._file = folder() / f"{id(self)}.safetensors"
            self._file.write_bytes(to_safetensors(self.tensors))
            self._spilled = delete_with(self, partial(self._file.unlink, missing_ok=True))
        self._tensors = None

    def __deepcopy__(self, memo: object) -> Memory:
        """Return this object: its tensors never change, and its file has one owner."""
        return self

    def __reduce__(self) -> tuple[type[Memory], tuple[Tensors]]:
        return Memory, (self.tensors,)  # not the file, which is deleted with this object

    def by_file(self) -> tuple[type[Memory], tuple[Tensors | None, Path | None]]:
        """Return how to rebuild this object in a worker process, which reads the file if there is one."""
        return Memory, (self._tensors if self._file is None else None, self._file)


class LeftOut(Memory):
    """What a client keeps, where a bundle does not have it."""

    def __init__(self, client: str) -> None:
        super().__init__(None)
        self._client = client

    @property
    def tensors(self) -> Tensors:
        """Raise, saying what is missing."""
        raise FlocoError(
            f'what client "{self._client}" keeps to itself is not in this bundle, as a method of your own may keep '
            "samples: its model is only in the run directory"
        )


class Memories(Mapping[str, Tensors]):
    """An immutable mapping client -> tensors; clients that keep nothing are absent.

    Memories of a stored run's earlier rounds are readable until the next checkpoint replaces their files.
    """

    def __init__(
        self, kept: Mapping[str, Memory] | None = None, *, budget: int = BUDGET, folder: Path | None = None
    ) -> None:
        """Store memories.

        Args:
            kept: client -> its memory.
            budget: MB that stay in RAM.
            folder: parent of the folder for the others (None: the system's folder for temporary files).
        """
        self._kept = dict(kept or {})
        self._shelf = _Shelf(budget, folder)
        self._shelf.hold(self._kept.values())

    def __getitem__(self, client: str) -> Tensors:
        return self._kept[client].tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, client: str) -> Memory | None:
        """Return a client's memory, which may still be in a file."""
        return self._kept.get(client)

    def updated(self, new: Mapping[str, Tensors]) -> Memories:
        """Return a new mapping with the memories of some clients replaced."""
        fresh = {client: Memory(tensors) for client, tensors in new.items()}
        after = object.__new__(Memories)
        after._kept, after._shelf = {**self._kept, **fresh}, self._shelf
        after._shelf.hold(fresh.values())
        return after


class _Shelf:
    """Keeps the newest memories in RAM, and moves the others to files."""

    def __init__(self, budget: int, folder: Path | None) -> None:
        self._budget = budget * 1_000_000
        self._parent = folder
        self._held: deque[weakref.ref[Memory]] = deque()  # weak, so that replaced memories are freed
        self._folder: Path | None = None

    def hold(self, memories: Iterable[Memory]) -> None:
        """Add memories, and release the oldest ones beyond the budget."""
        self._held.extend(map(weakref.ref, memories))
        held = [m for ref in self._held if (m := ref()) is not None]
        excess = sum(m.size for m in held) - self._budget
        while excess > 0:
            excess -= held[0].size
            held.pop(0).release(self._files)
        self._held = deque(map(weakref.ref, held))

    def _files(self) -> Path:
        if self._folder is None:
            self._folder = temporary_folder(self, self._parent)
        return self._folder
