"""Tables in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd


def read_table(path: Path) -> pd.DataFrame:
    """Return a table of a run directory; client ids stay text, empty cells are missing values."""
    if not path.is_file() or not path.stat().st_size:
        return pd.DataFrame()
    missing: Any = {column: ["", "nan"] for column in pd.read_csv(path, nrows=0) if column not in ("client", "method", "size")}
    return pd.read_csv(path, dtype={"client": str, "method": str, "size": str}, keep_default_na=False, na_values=missing)
