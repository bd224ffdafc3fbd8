"""ActionTable: one row per configuration of a request, the language of every room below `schemes`.

A scheme compiles a profile into rows; environments, solvers, policies and the live runtime only ever see rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megopt.arrays import FloatArray, IntArray, TextArray
from megopt.errors import ProblemError, SchemeError
from megopt.system.outcome import Work

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One decision of a scheme.

    Attributes:
        name: column name, with its SI suffix where it has a unit.
        unit: unit as text, "1" for pure numbers.
        low: smallest legal value.
        high: largest legal value.
        meaning: one line for tables and help.
    """

    name: str
    unit: str
    low: float
    high: float
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionTable:
    """Rows that a request may choose from.

    Attributes:
        scheme: name of the scheme of each row, shape (num_rows,).
        label: short text that names the row inside its scheme, shape (num_rows,).
        knobs: the decisions that any row may hold.
        settings: knob values, shape (num_rows, num_knobs); NaN where a row's scheme lacks the knob.
        work: seconds, bits and joules of each row, fields of shape (num_rows,).
        metrics: names of the quality metrics.
        quality: metric values, shape (num_rows, num_metrics); NaN where not measured.
        kind: provenance kinds that entered the row, such as "published+modelled", shape (num_rows,).
        profile: name of the profile the rows come from.
    """

    scheme: TextArray
    label: TextArray
    knobs: tuple[Knob, ...]
    settings: FloatArray
    work: Work
    metrics: tuple[str, ...]
    quality: FloatArray
    kind: TextArray
    profile: str

    def __post_init__(self) -> None:
        num_rows = len(self.scheme)
        expected = {
            "label": (num_rows,),
            "settings": (num_rows, len(self.knobs)),
            "quality": (num_rows, len(self.metrics)),
            "kind": (num_rows,),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                message = f"ActionTable: {name} has shape {getattr(self, name).shape}; expected {shape}"
                raise ValueError(message)
        if self.work.edge_s.shape != (num_rows,):
            message = f"ActionTable: work has shape {self.work.edge_s.shape}; expected {(num_rows,)}"
            raise ValueError(message)

    def __len__(self) -> int:
        return len(self.scheme)

    def name(self, row: int) -> str:
        """Return "scheme: label" of one row."""
        return f"{self.scheme[row]}: {self.label[row]}"

    def metric(self, name: str) -> FloatArray:
        """Return the column of one quality metric, shape (num_rows,).

        Raises:
            ProblemError: if the table has no such metric.
        """
        if name not in self.metrics:
            offered = ", ".join(self.metrics) or "none: its quality was not measured"
            message = f"metric {name!r} is not in the tables of profile {self.profile}; it offers {offered}"
            raise ProblemError(message)
        return np.asarray(self.quality[:, self.metrics.index(name)])

    def take(self, rows: IntArray) -> ActionTable:
        """Return the table of the given rows, shape (num_taken,)."""
        return ActionTable(
            scheme=self.scheme[rows],
            label=self.label[rows],
            knobs=self.knobs,
            settings=self.settings[rows],
            work=self.work.take(rows),
            metrics=self.metrics,
            quality=self.quality[rows],
            kind=self.kind[rows],
            profile=self.profile,
        )

    def of_scheme(self, scheme: str) -> ActionTable:
        """Return the rows of one scheme."""
        return self.take(np.flatnonzero(self.scheme == scheme))

    def frame(self) -> pd.DataFrame:
        """Return the table as a DataFrame for people: scheme, label, knobs, work, metrics, kind."""
        import pandas as pd

        columns: dict[str, object] = {"scheme": self.scheme, "label": self.label}
        columns |= {knob.name: self.settings[:, i] for i, knob in enumerate(self.knobs)}
        columns |= {name: getattr(self.work, name) for name in Work.__dataclass_fields__}
        columns |= {metric: self.quality[:, i] for i, metric in enumerate(self.metrics)}
        return pd.DataFrame({**columns, "kind": self.kind})


def concat(tables: list[ActionTable]) -> ActionTable:
    """Return one table with the rows of all `tables`; knobs and metrics are united, absent ones are NaN.

    Raises:
        SchemeError: if there is no table, or the tables come from different profiles.
    """
    profiles = sorted({table.profile for table in tables})
    if len(profiles) != 1:
        message = f"concat: tables come from the profiles {profiles}; expected exactly one profile"
        raise SchemeError(message)
    knobs = tuple({knob.name: knob for table in tables for knob in table.knobs}.values())
    metrics = tuple(dict.fromkeys(metric for table in tables for metric in table.metrics))
    return ActionTable(
        scheme=np.concatenate([table.scheme for table in tables]),
        label=np.concatenate([table.label for table in tables]),
        knobs=knobs,
        settings=_united(
            [t.settings for t in tables], [[k.name for k in t.knobs] for t in tables], [k.name for k in knobs]
        ),
        work=Work.concat([table.work for table in tables]),
        metrics=metrics,
        quality=_united([t.quality for t in tables], [list(t.metrics) for t in tables], list(metrics)),
        kind=np.concatenate([table.kind for table in tables]),
        profile=profiles[0],
    )


def _united(parts: list[FloatArray], names: list[list[str]], united: list[str]) -> FloatArray:
    """Stack `parts` (num_rows_i, num_names_i) into one array whose columns are `united`; NaN where a part lacks one."""
    blocks = []
    for part, part_names in zip(parts, names, strict=True):
        block = np.full((len(part), len(united)), np.nan)
        for column, name in enumerate(part_names):
            block[:, united.index(name)] = part[:, column]
        blocks.append(block)
    return np.concatenate(blocks)
