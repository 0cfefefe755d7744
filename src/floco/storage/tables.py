"""Tables in CSV files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd

from floco.core.errors import FlocoError


def read_table(path: Path) -> pd.DataFrame:
    """Return a table of a run directory, empty if there is none; ids and labels are text, empty cells are missing."""
    if not path.is_file() or not path.stat().st_size:
        return pd.DataFrame()
    if not os.access(path, os.R_OK):
        raise FlocoError(f"{path} cannot be read: permission denied")
    text = dict.fromkeys(("client", "method", "size", "label", "predicted", "group"), str)
    missing: Any = {column: ["", "nan"] for column in pd.read_csv(path, nrows=0) if column not in text}
    return pd.read_csv(path, dtype={**text, "positive": str}, keep_default_na=False, na_values=missing)
