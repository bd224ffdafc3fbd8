"""Read a table against its schema: every fault is named with file, lines and remedy, and all are named at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megopt.errors import ProfileError
from megopt.tables.schema import Column

if TYPE_CHECKING:
    import pandas as pd

MAX_NAMED = 6
"""Faults, and lines of one fault, that a message names before it only counts the rest."""


def read_table(path: Path, schema: Sequence[Column]) -> pd.DataFrame:
    """Return the table in `path`, its columns converted and checked against `schema`.

    Lines that start with '#' are comments. An empty cell means "not measured" and is NaN; the text "nan" is a fault.

    Raises:
        ProfileError: if the file is missing or any cell breaks the schema; the message names every fault.
    """
    text, line_numbers = _read_text(path)
    faults = _column_faults(text, schema)
    if not faults:
        converted = {column.name: _convert(text[column.name], column) for column in schema}
        for column in schema:
            faults += _cell_faults(text[column.name], converted[column.name], column, line_numbers)
    if faults:
        named = "; ".join(faults[:MAX_NAMED]) + (
            f"; and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else ""
        )
        message = f"{_shown(path)}: {named}"
        raise ProfileError(message)
    import pandas as pd

    return pd.DataFrame(converted)


def _shown(path: Path) -> str:
    """Return folder and file name: enough to find it, free of machine paths."""
    return f"{path.parent.name}/{path.name}"


def _read_text(path: Path) -> tuple[pd.DataFrame, list[int]]:
    """Return all cells as text, and the line of the file that each row stands on."""
    import pandas as pd

    if not path.is_file():
        message = f"{_shown(path)}: file not found; a profile folder needs it (see profiles/README.md)"
        raise ProfileError(message)
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [number for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if not kept:
        message = f"{_shown(path)}: no header line; expected the column names (see profiles/README.md)"
        raise ProfileError(message)
    try:
        frame = pd.read_csv(path, comment="#", dtype=str, keep_default_na=False, skip_blank_lines=True)
    except pd.errors.ParserError as error:
        message = f"{_shown(path)}: not a table: {str(error).strip()}; every line needs as many cells as the header"
        raise ProfileError(message) from error
    return frame, kept[1:]


def _column_faults(text: pd.DataFrame, schema: Sequence[Column]) -> list[str]:
    expected, found = [column.name for column in schema], list(text.columns)
    missing, unknown = [n for n in expected if n not in found], [n for n in found if n not in expected]
    faults = []
    if missing:
        faults.append(f"column {', '.join(missing)} is missing; add it to the header line")
    if unknown:
        faults.append(f"column {', '.join(unknown)} is unknown; expected {', '.join(expected)}")
    return faults


def _convert(cells: pd.Series, column: Column) -> pd.Series:
    """Return the column with its dtype; numbers become float so that empty cells can be NaN."""
    import pandas as pd

    if column.dtype == "text":
        return cells.str.strip()
    return pd.to_numeric(cells.str.strip().where(cells.str.strip() != "", None), errors="coerce").astype(float)


def _cell_faults(cells: pd.Series, values: pd.Series, column: Column, line_numbers: list[int]) -> list[str]:
    """Return the faults of one column, each with the lines where it stands."""
    is_empty = (cells.str.strip() == "").to_numpy()
    tests: list[tuple[np.ndarray[tuple[int, ...], np.dtype[np.bool_]], str]] = []
    if not column.is_nullable:
        tests.append((is_empty, f"{column.name} is empty; fill it in"))
    if column.dtype == "text":
        if column.choices:
            is_wrong = ~is_empty & ~values.isin(column.choices).to_numpy()
            tests.append((is_wrong, f"{column.name} is none of {', '.join(column.choices)}"))
    else:
        number = values.to_numpy(dtype=float)
        is_nan = ~is_empty & ~np.isfinite(number)
        tests.append(
            (is_nan, f"{column.name} is NaN, infinite or no number; leave the cell empty if it was not measured")
        )
        with np.errstate(invalid="ignore"):
            tests.append((number < column.low, f"{column.name} < {column.low:g}; {_remedy(column)}"))
            tests.append((number > column.high, f"{column.name} > {column.high:g}; {_remedy(column)}"))
            if column.dtype == "int":
                tests.append((~is_empty & np.isfinite(number) & (number % 1 != 0), f"{column.name} is no whole number"))
    return [f"{what} ({_lines(is_bad, line_numbers)})" for is_bad, what in tests if np.any(is_bad)]


def _remedy(column: Column) -> str:
    low, high = column.low, column.high
    if np.isfinite(low) and np.isfinite(high):
        span = f"between {low:g} and {high:g}"
    else:
        span = f">= {low:g}" if np.isfinite(low) else f"<= {high:g}"
    unit = "" if column.unit in {"", "1"} else f" in {column.unit}"
    return f"expected {span}{unit}; correct it or measure again"


def _lines(is_bad: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], line_numbers: list[int]) -> str:
    bad = [line_numbers[i] for i in np.flatnonzero(is_bad)]
    shown = ", ".join(str(line) for line in bad[:MAX_NAMED])
    rest = f" and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else ""
    return f"line{'s' if len(bad) > 1 else ''} {shown}{rest}"
