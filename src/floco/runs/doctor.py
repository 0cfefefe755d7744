"""What this machine and this installation can do."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

from floco.core.errors import FlocoError
from floco.engines.engine import default_workers
from floco.runs.machine import find_device

PURPOSES = {
    "flower": "runs across organisations",
    "onnx": "export as ONNX",
    "tracking": "TensorBoard and MLflow",
    "bench": "the benchmarks",
    "docs": "building the documentation",
}
"""The extras, and what each is for."""
_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


def examine() -> dict[str, Any]:
    """Return versions, devices, cores, memory (bytes) and extras, and what is wrong with the installation.

    Keys are `floco`, `python`, `torch`, `system`, `machine`, `cpu`, `devices` (name -> model), `workers`, `threads`,
    `memory` (`total` and `available`; None if unknown), `extras` and `problems`. An extra has `purpose`, `installed`,
    `missing` and `install`, the command.
    """
    needed = [Requirement(text) for text in requires("floco") or []]
    extras = {name: _extra(name, purpose, needed) for name, purpose in PURPOSES.items()}
    base = [r for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return {
        "floco": version("floco"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "devices": _devices(),
        "workers": default_workers(),
        "threads": torch.get_num_threads(),
        "memory": {"total": _total(), "available": _available()},
        "extras": extras,
        "problems": [f"{lack}: pip install '{r}'" for r in base if (lack := _lack(r)) is not None],
    }


def _extra(name: str, purpose: str, needed: list[Requirement]) -> dict[str, Any]:
    own = (
        r for r in needed if r.marker and r.marker.evaluate({"extra": name}) and not r.marker.evaluate({"extra": ""})
    )
    missing = [lack for r in own if (lack := _lack(r)) is not None]
    command = f"pip install 'floco[{name}]'"
    return {"purpose": purpose, "installed": not missing, "missing": missing, "install": command}


def _lack(requirement: Requirement) -> str | None:
    """Return what is missing, in words; None if the package is installed in a version that suits."""
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return requirement.name
    suits = requirement.specifier.contains(found, prereleases=True)
    return None if suits else f"{requirement.name} {found} (needs {requirement.specifier})"


def _devices() -> dict[str, str]:
    """Return the devices that `run.device` can name, and what each is."""
    found = {"cpu": ""}
    for i in range(torch.cuda.device_count()):
        found[f"cuda:{i}"] = torch.cuda.get_device_name(i)
    for name in ("mps", "xpu"):
        try:
            find_device(name)
        except FlocoError:
            continue
        found[name] = ""
    return found


def _total() -> int | None:
    """Return the memory that this process can have, in bytes: the machine's, or that of its container."""
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
    limit = _LIMIT.read_text().strip() if _LIMIT.is_file() else "max"
    return min(whole, int(limit)) if limit.isdigit() else whole


def _available() -> int | None:
    """Return the memory that is free for new processes, in bytes."""
    table = Path("/proc/meminfo")
    if not table.is_file():
        return None
    lines = dict(line.split(":", 1) for line in table.read_text().splitlines())
    free, total = int(lines["MemAvailable"].split()[0]) * 1024, _total()
    return free if total is None else min(free, total)
