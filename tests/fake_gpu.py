"""A GPU without a GPU: tensors that are moved to it stay on the CPU, are marked, and refuse what a GPU refuses.

Values and bits are those of the CPU, so that a run on the fake GPU can be compared with one on the CPU. What is checked
is where tensors are: functions of tensors of both devices raise, but for numbers (no axes) of the CPU, and so do numpy
arrays of marked tensors. Not seen are the kernels of a GPU, its random numbers, and what happens within C++, such as
the graph of autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

GPU = torch.device("cuda", 0)
_CROSSING = {"to", "cpu", "copy_", "set_", "__set__", "grad", "backward", "_has_compatible_shallow_copy_type"}
_ANY = {"__getitem__", "index_select"}  # a GPU's tensor may be indexed by positions on the CPU


class _Marks(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, StorageWeakRef] = {}
        self.moved = 0

    def there(self, tensor: torch.Tensor) -> bool:
        found = self._storages.get(tensor.untyped_storage()._cdata)
        return found is not None and not found.expired()

    def mark(self, value: Any) -> Any:
        for tensor in pytree.tree_leaves(value):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = StorageWeakRef(storage)
        return value

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "_parse_to":  # of a module's `to`, which then moves its tensors one by one
            return func(*args, **kwargs)
        leaves = pytree.tree_leaves((args, kwargs))
        tensors = [t for t in leaves if isinstance(t, torch.Tensor)]
        marked = [t for t in tensors if self.there(t)]
        if getattr(func, "__self__", None) is torch.Tensor.device:
            return GPU if marked else func(*args)
        wanted = [d for d in leaves if isinstance(d, torch.device)]
        if name == "to" and isinstance(args[-1], torch.Tensor) and len(args) > 1:  # as another tensor
            made = func(*args, **kwargs)
            return self.mark(made.clone()) if self.there(args[1]) else made.clone() if marked else made
        to_gpu, to_cpu = any(d.type == "cuda" for d in wanted), any(d.type == "cpu" for d in wanted) or name == "cpu"
        args, kwargs = pytree.tree_map(
            lambda v: torch.device("cpu") if isinstance(v, torch.device) else v, (args, kwargs)
        )
        if to_gpu and not marked:
            self.moved += 1
            found = func(*args, **kwargs)
            return self.mark(found.clone() if tensors else found)  # on a GPU, it would be a copy
        if to_cpu and marked:
            return func(*args, **kwargs).clone()
        if name == "numpy" and marked:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        index = name in _ANY and self.there(args[0])
        if name not in _CROSSING and not index and marked and any(t.ndim for t in tensors if not self.there(t)):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, found cuda:0 and cpu")
        found = func(*args, **kwargs)
        return self.mark(found) if marked and name not in ("copy_", "tolist", "item") else found


@contextmanager
def fake_gpu() -> Iterator[_Marks]:
    """Have `torch.device("cuda", 0)` in the block."""
    here = {
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        "manual_seed": lambda *_: None,
        "device": mock.MagicMock(),
        "device_count": lambda: 1,
        "is_available": lambda: True,
    }
    with mock.patch.multiple(torch.cuda, **here), _Marks() as marks:
        yield marks
