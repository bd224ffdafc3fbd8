"""What a verb answers: a JSON object for scripts, tables and lines for people."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rich.table import Table

PIPE_WIDTH = 160
"""Columns of a table that is not printed to a terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The answer of one run.

    Attributes:
        summary: plain data, written to report.json and printed by output=json.
        headline: one line for the table of a multirun.
        tables: what output=table prints.
        lines: text after the tables: notes and where the files are.
        complaints: one-line errors; they go to stderr.
        exit_code: 0, or 2 where no limit can be kept.
    """

    summary: dict[str, Any]
    headline: str
    tables: Sequence[Table] = ()
    lines: Sequence[str] = ()
    complaints: Sequence[str] = ()
    exit_code: int = 0

    def as_json(self) -> str:
        """Return the summary as one line of JSON; NaN and infinity become null."""
        return json.dumps(
            _plain({"headline": self.headline, "exit_code": self.exit_code, **self.summary}), allow_nan=False
        )

    def print(self) -> None:
        """Print tables and lines to stdout."""
        from rich.console import Console

        console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
        for table in self.tables:
            console.print(table)
        for line in self.lines:
            console.print(line, highlight=False, soft_wrap=True, markup=False)


def _plain(value: Any) -> Any:
    """Return `value` as JSON data."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def shown_path(path: Path) -> str:
    """Return `path` relative to the working folder where it lies below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def rich_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table; columns whose cells are numbers are right-aligned."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        is_number = all(_is_number(row[i]) for row in rows)
        table.add_column(escape(name), justify="right" if is_number else "left", no_wrap=not is_number, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace("%", "").replace("±", "").replace(" ", "") or "0")
    except ValueError:
        return cell in {"-", ""}
    return True
