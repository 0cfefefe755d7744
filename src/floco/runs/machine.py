"""The machine of a run: its devices, and the versions of its packages."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from floco.core.errors import FlocoError


def find_device(name: str) -> torch.device:
    """Return the device called `name`; raises if it is not available."""
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise FlocoError(f"run.device = {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return found


def environment() -> dict[str, Any]:
    """Return package versions, the commit of floco and the type of machine."""
    packages = ("floco", "torch", "numpy", "safetensors", "datasets", "flwr-datasets", "scikit-learn")
    machine = {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    return {"python": platform.python_version(), **{p: version(p) for p in packages}, "commit": _commit(), **machine}


def _commit() -> str:
    """Return the commit of this package's checkout; "" if it is not a checkout, or git is not installed."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return ""
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip()
