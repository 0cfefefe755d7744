"""A model's adapter alone, in the files of the library peft."""

from __future__ import annotations

import hashlib
import importlib
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from floco.core.errors import FlocoError
from floco.core.values import Layout

FILE, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
"""What `peft.PeftModel.from_pretrained(backbone, folder)` reads."""


def check_adapter(module: nn.Module, layout: Layout) -> None:
    """Raise unless everything that training changes is part of the adapter of a `peft.PeftModel`."""
    peft = _peft()
    if not isinstance(module, peft.PeftModel):
        raise FlocoError(
            "--format peft writes the adapter of a model that is a peft.PeftModel as a whole, as peft.get_peft_model "
            f"makes it, and this is a {type(module).__name__}: use --format safetensors"
        )
    held = {id(t) for t in _state(peft, module).values()}
    outside = [n for n, p in module.named_parameters() if p.requires_grad and id(p) not in held]
    if missing := [*outside, *layout.buffers]:
        raise FlocoError(
            f"{missing[0]!r} is trained and no part of the adapter, which alone would be another model: name its layer "
            "in modules_to_save of the LoraConfig, put a frozen BatchNorm into eval mode, or use --format safetensors"
        )


def adapter_files(module: Any) -> Mapping[str, bytes]:
    """Return the files of the adapter of a `peft.PeftModel` by name: `FILE` and `SETTINGS`."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a backbone without a name on a hub
        module.save_pretrained(folder)
        return {name: (Path(folder) / name).read_bytes() for name in (FILE, SETTINGS)}


def backbone(module: nn.Module) -> dict[str, Any]:
    """Return for a card what is frozen: the number of parameters, and a SHA-256 of names, shapes and bytes.

    Names are those of the model without its adapter.
    """
    digest, n = hashlib.sha256(), 0
    for name, p in sorted((_plain(name), p) for name, p in module.named_parameters() if not p.requires_grad):
        digest.update(f"{name} {tuple(p.shape)} {p.dtype} ".encode())
        digest.update(p.detach().cpu().contiguous().numpy().data)
        n += p.numel()
    return {"parameters": n, "sha256": digest.hexdigest()}


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")


def _state(peft: Any, module: nn.Module) -> Mapping[str, Any]:
    found: Mapping[str, Any] = peft.get_peft_model_state_dict(module, module.state_dict(keep_vars=True))
    return found


def _peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise FlocoError("--format peft needs the package peft: pip install 'floco[peft]'") from error
