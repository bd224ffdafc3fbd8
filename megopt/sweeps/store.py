"""The dataset of all runs: one parquet file per run, below one folder per sweep.

    FOLDER/sweep=NAME/RUN_ID.parquet

A file holds the records of its run with a column `run`, and in its metadata the resolved configuration, the overrides
and the status. It is written under another name and moved into place, so records and configuration appear together
or not at all: whoever looks sees whole runs only, and a run is done when its file exists. Writers share nothing but
the folder, so any number of processes and machines may write at the same time; two that write the same run write the
same records. Where machines share the work they must share the folder.
"""

from __future__ import annotations

import datetime
import json
import re
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt import __version__
from megopt.analysis.records import RECORD
from megopt.errors import ConfigError, ProblemError
from megopt.sweeps.chosen_knobs import CHOSEN
from megopt.sweeps.run import Run, RunStatus, json_text

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

METADATA_KEY = b"megopt"
_PARTIAL = ".partial"
_STALE_S = 3600.0
"""Age after which a file that was never moved into place belongs to a writer that is gone [s]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A folder of runs.

    Attributes:
        folder: where the dataset is.
    """

    folder: Path

    def path_of(self, run: Run) -> Path:
        """Return where a run's file is or would be."""
        return self.folder / f"sweep={run.sweep}" / f"{run.run_id}.parquet"

    def write(self, run: Run, records: pd.DataFrame | None, *, status: RunStatus, message: str, call_s: float) -> Path:
        """Write one run; readers see all of it or nothing.

        Args:
            run: the run.
            records: its records; None writes a file without rows, for a run that has none to give.
            status: what became of the run.
            message: why there are no records.
            call_s: seconds inside the library call [s].

        Raises:
            ProblemError: if a column of a record is missing or of another type.
        """
        import pyarrow.parquet as pq

        facts = {
            "run": run.run_id,
            "call": run.call,
            "overrides": list(run.overrides),
            "config": run.config,
            "choices": run.choices,
            "status": str(status),
            "message": message,
            "call_s": call_s,
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "megopt": __version__,
        }
        table = _table(run, records).replace_schema_metadata({METADATA_KEY: json_text(facts).encode()})
        path = self.path_of(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.stem}.{uuid.uuid4().hex}{_PARTIAL}")
        try:
            pq.write_table(table, partial, compression="zstd")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def done(self, runs: list[Run]) -> set[str]:
        """Return the names of those runs whose file exists."""
        written = {sweep: self._names(sweep) for sweep in {run.sweep for run in runs}}
        return {run.run_id for run in runs if run.run_id in written[run.sweep]}

    def _names(self, sweep: str) -> set[str]:
        return {path.stem for path in (self.folder / f"sweep={sweep}").glob("*.parquet")}

    def remove_stale(self) -> int:
        """Remove what writers that were killed have left half-written; return how many files that were."""
        stale = [
            path
            for path in self.folder.glob(f"sweep=*/*{_PARTIAL}")
            if path.exists() and time.time() - path.stat().st_mtime > _STALE_S
        ]
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)

    def records(self, run: Run) -> pd.DataFrame:
        """Return the records of a run."""
        import pyarrow.parquet as pq

        records: pd.DataFrame = pq.read_table(self.path_of(run), partitioning=None).to_pandas()
        return records

    def facts(self, run: Run) -> dict[str, Any]:
        """Return what a run's file says of the run: configuration, overrides, status, seconds, versions."""
        import pyarrow.parquet as pq

        facts: dict[str, Any] = json.loads(pq.read_schema(self.path_of(run)).metadata[METADATA_KEY])
        return facts


def require_sweep_name(name: object) -> str:
    """Return `name`, a folder name.

    Raises:
        ConfigError: for anything else.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        message = f"name = {name!r}; expected letters, digits, '_', '-' and '.', such as name=my_sweep"
        raise ConfigError(message)
    return name


def _table(run: Run, records: pd.DataFrame | None) -> pa.Table:
    """Return the records with the run's name, of the same columns and types in every file."""
    import pyarrow as pa

    kinds = {"text": pa.string(), "float": pa.float64(), "int": pa.int64()}
    schema = pa.schema([(column.name, kinds[column.dtype]) for column in (*RECORD, *CHOSEN)])
    if records is None:
        table = schema.empty_table()
    else:
        records = records.assign(**{column.name: np.nan for column in CHOSEN if column.name not in records})
        try:
            table = pa.Table.from_pandas(records[schema.names], schema=schema, preserve_index=False)
        except (KeyError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
            message = f"{run.call}: {error}; expected the columns of `megopt.analysis.records.RECORD`"
            raise ProblemError(message) from None
    return table.add_column(0, "run", pa.array([run.run_id] * len(table), pa.string()))
