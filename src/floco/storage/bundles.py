"""A run as one file: what reading it needs from the disk."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import zipfile
from pathlib import Path

from floco.core.errors import FlocoError


def unpack(path: Path) -> Path:
    """Return a folder with the contents of a bundle, which lasts until the process ends."""
    try:
        with zipfile.ZipFile(path) as bundle:
            folder = Path(tempfile.mkdtemp(prefix="floco-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            bundle.extractall(folder / path.stem)
    except (OSError, zipfile.BadZipFile) as error:
        raise FlocoError(f"{path} is neither a run directory nor a bundle of one: {error}") from error
    return folder / path.stem
