"""Questions to the dataset of runs, in SQL.

Two tables: `records` holds a row per request, with the columns of `megopt.analysis.records.RECORD` and besides

    sweep, run    where it comes from
    config        the resolved configuration of its run: config.channel.snr_db, config.seed, ...

and `runs` holds a row per run: sweep, run, status, message, overrides, config, call_s, written, megopt, num_records.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megopt.analysis.records import RECORD
from megopt.errors import ConfigError
from megopt.sweeps.store import METADATA_KEY, require_sweep_name

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

QUOTING = """in a shell, texts and names in quotes are written as 'where="policy='\\''optimal'\\''"'"""
"""How the quotes of SQL get through a shell and Hydra."""
RUN_FACTS = {"status": "VARCHAR", "message": "VARCHAR", "call_s": "DOUBLE", "written": "VARCHAR", "megopt": "VARCHAR"}
"""What a file's metadata says of its run, and the SQL type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The dataset of a folder, open for questions.

    Attributes:
        connection: a database in memory; it reads the files when it is asked.
        folder: where the dataset is.
    """

    connection: duckdb.DuckDBPyConnection
    folder: Path

    def ask(self, sql: str, parameters: Sequence[object] = ()) -> pd.DataFrame:
        """Return the answer of a query.

        Raises:
            ConfigError: if the query is wrong; names what there is where a name is unknown.
        """
        import duckdb

        try:
            return self.connection.execute(sql, list(parameters)).df()
        except duckdb.Error as error:
            raise ConfigError(self._explain(error, sql)) from None

    def columns(self) -> list[str]:
        """Return the columns of `records`, without the configuration."""
        names = self.connection.execute("SELECT column_name FROM (DESCRIBE records)").fetchall()
        return [name for (name,) in names if name != "config"]

    def config_keys(self) -> list[str]:
        """Return what can be asked of the configuration, as config.KEY."""
        found = self.connection.execute("SELECT json_structure(to_json(config)) FROM runs LIMIT 1").fetchone()
        return [key for key in _leaves(json.loads(found[0]), "config") if "._" not in key] if found else []

    def _explain(self, error: Exception, sql: str) -> str:
        text = str(error).split("LINE 1")[0].split("Candidate bindings")[0]
        text = " ".join(text.removeprefix(f"{type(error).__name__}: ").split())
        if not ("not found" in text or "Could not find key" in text):
            return f"results: {text}; the query was: {sql}; {QUOTING}"
        known = [*self.columns(), *self.config_keys()]
        near = [name for word in _words(text) for name in difflib.get_close_matches(word, known, n=1, cutoff=0.7)]
        guess = f"; did you mean {near[0]}?" if near else ""
        guess += f"; a text needs quotes: {QUOTING}" if "config" not in text and "Could not" not in text else ""
        shown = self.config_keys() if "config" in text or "key" in text else [*self.columns(), "config.KEY"]
        return f"results: {text}{guess}; expected one of {', '.join(shown)}"


@contextmanager
def open_results(folder: Path, sweep: str | None = None) -> Iterator[Results]:
    """Open the dataset of a folder.

    Args:
        folder: the dataset.
        sweep: one sweep alone; None takes all.

    Raises:
        ConfigError: if there is no run.
    """
    import duckdb

    part = "*" if sweep is None else require_sweep_name(sweep)
    files = f"{folder.resolve()}/sweep={part}/*.parquet"
    if not any(folder.glob(f"sweep={part}/*.parquet")):
        known = sorted(path.name.removeprefix("sweep=") for path in folder.glob("sweep=*"))
        where = f"results={folder}: no runs" + ("" if sweep is None else f" of sweep {sweep}")
        message = f"{where}; expected one of {', '.join(known)}" if known else f"{where}; make some with `megopt sweep`"
        raise ConfigError(message)
    connection = duckdb.connect(":memory:", config={"autoinstall_known_extensions": False, "threads": 2})
    connection.execute("SET enable_progress_bar = false")
    try:
        _create_runs(connection, files)
        _create_records(connection, files)
        yield Results(connection=connection, folder=folder)
    finally:
        connection.close()


def _create_runs(connection: duckdb.DuckDBPyConnection, files: str) -> None:
    """Read the metadata of all files into the table `runs`."""
    key = METADATA_KEY.decode()
    connection.execute(
        "CREATE TEMP TABLE facts AS SELECT file_name, decode(value)::JSON AS fact FROM parquet_kv_metadata(?) "
        "WHERE decode(key) = ?",
        [files, key],
    )
    connection.execute(
        "CREATE TEMP TABLE counts AS SELECT file_name, num_rows AS num_records FROM parquet_file_metadata(?)", [files]
    )
    (structure,) = connection.execute("SELECT json_group_structure(fact->'config') FROM facts").fetchone() or ("{}",)
    facts = ", ".join(f"(fact->>'{name}')::{kind} AS {name}" for name, kind in RUN_FACTS.items())
    connection.execute(
        "CREATE TABLE runs AS SELECT regexp_extract(file_name, 'sweep=([^/]+)/[^/]*$', 1) AS sweep, "
        f"fact->>'run' AS run, {facts}, num_records, (fact->'overrides')::VARCHAR[] AS overrides, "
        f"from_json(fact->'config', '{_quoted(structure)}') AS config FROM facts JOIN counts USING (file_name)"
    )


def _create_records(connection: duckdb.DuckDBPyConnection, files: str) -> None:
    """Create the view `records`; a column that only newer files hold is NULL in the others."""
    connection.execute(
        f"CREATE VIEW records AS SELECT rows.*, runs.config FROM read_parquet('{_quoted(files)}', "
        "union_by_name = true, hive_partitioning = true, hive_types = {'sweep': VARCHAR}) AS rows "
        "JOIN runs USING (sweep, run)"
    )


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def _words(text: str) -> list[str]:
    """Return what an error message puts in quotes: the names that it did not find."""
    return re.findall(r'"([^"]+)"', text)


def _leaves(node: Any, prefix: str) -> list[str]:
    if not isinstance(node, dict):
        return [prefix]
    return [leaf for key, value in node.items() for leaf in _leaves(value, f"{prefix}.{key}")]


def _expression(text: str) -> str:
    """Return an SQL expression; a record's column by its bare name, also where that is a word of SQL, as limit is."""
    return f'"{text}"' if text in {column.name for column in RECORD} else text


def _alias(text: str) -> str:
    return '"' + text.replace('"', "") + '"'


def served_mean(expression: str) -> str:
    """Return the SQL of a mean over the served requests; NULL where it was not measured in one of them."""
    served = "FILTER (isfinite(latency_s))"
    return f"CASE WHEN count({expression}) {served} = count(*) {served} THEN avg({expression}) {served} END"


def aggregate_sql(where: str, group_by: Sequence[str], show: Sequence[str]) -> str:
    """Return the query for means over groups.

    As in `megopt.analysis.rollout.summarise`, a mean is over the requests that were served, that is, whose latency is
    finite, and NaN over any value that was not measured. The share of the others stands in `outage_rate`, and the share
    of requests that exceed a limit in `violation_rate`.

    Args:
        where: SQL condition on records; empty for all.
        group_by: SQL expressions; empty for one group.
        show: columns whose means are shown.
    """
    keys = [f"{_expression(text)} AS key_{i}" for i, text in enumerate(group_by)]
    means = [f"{served_mean(_expression(text))} AS mean_{i}" for i, text in enumerate(show)]
    names = [f"key_{i} AS {_alias(text)}" for i, text in enumerate(group_by)]
    names += [f"mean_{i} AS {_alias(text)}" for i, text in enumerate(show)]
    counts = [
        "count(*) AS num_records",
        "count(DISTINCT run) AS num_runs",
        "avg((NOT isfinite(latency_s))::INT) AS outage_rate",
        "avg((violation > 0)::INT) AS violation_rate",
    ]
    numbers = ", ".join(str(i + 1) for i in range(len(keys)))
    return (
        f"SELECT {', '.join([*names, 'num_records', 'num_runs', 'outage_rate', 'violation_rate'])} FROM ("
        f"SELECT {', '.join([*keys, *means, *counts])} FROM records"
        + (f" WHERE {where}" if where else "")
        + (f" GROUP BY {numbers})" if keys else ")")
        + (f" ORDER BY {numbers}" if keys else "")
    )
