"""Questions to the dataset of runs, in SQL.

Two tables: `records` holds a row per request, with the columns of `megopt.analysis.records.RECORD` and besides

    sweep, run    where it comes from
    config        the resolved configuration of its run: config.channel.snr_db, config.seed, ...
    choice        the yaml chosen in each group: choice.channel, choice.link, ...

and `runs` holds a row per run: sweep, run, status, message, overrides, config, choice, call_s, written, megopt,
num_records.
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

from megopt.errors import ConfigError
from megopt.sweeps.aggregates import Aggregate
from megopt.sweeps.store import METADATA_KEY, require_sweep_name

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

QUOTING = """in a shell, texts and names in quotes are written as 'where="policy='\\''optimal'\\''"'"""
"""How the quotes of SQL get through a shell and Hydra."""
SUCH_AS = "config.channel.snr_db"
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
            raise ConfigError(self._explain(error, "sql", sql)) from None

    def means(self, asked: Aggregate) -> pd.DataFrame:
        """Return means over groups.

        Raises:
            ConfigError: if the question is wrong; names the clause at fault, and what there is.
        """
        import duckdb

        try:
            return self.connection.execute(asked.sql()).df()
        except duckdb.Error as error:
            for key, text, alone in asked.parts():
                try:
                    self.connection.execute(alone).fetchone()
                except duckdb.Error as own:
                    raise ConfigError(self._explain(own, key, text)) from None
            raise ConfigError(self._explain(error, "sql", asked.sql())) from None

    def columns(self) -> list[str]:
        """Return the columns of `records`, without the configuration."""
        names = self.connection.execute("SELECT column_name FROM (DESCRIBE records)").fetchall()
        return [name for (name,) in names if name not in {"config", "choice"}]

    def config_keys(self) -> list[str]:
        """Return what can be asked of the configuration, as config.KEY, and of its groups, as choice.GROUP."""
        asked = "SELECT json_structure(to_json(config)), json_structure(to_json(choice)) FROM runs LIMIT 1"
        found = self.connection.execute(asked).fetchone() or ("{}", "{}")
        pairs = zip(("config", "choice"), found, strict=True)
        return [key for name, text in pairs for key in _leaves(json.loads(text), name) if "._" not in key]

    def _explain(self, error: Exception, key: str, text: str) -> str:
        """Return one line: which key, what came, what is wrong with it, and what there is."""
        kept = re.split(r"LINE 1|Candidate |Did you mean", str(error))[0]
        why = " ".join(kept.removeprefix(f"{type(error).__name__}: ").split()).rstrip("!; ")
        why = re.sub(r"^(Binder|Parser|Conversion|Catalog|Invalid Input) Error: ", "", why)
        words, why = (
            _words(why),
            re.sub(r'Referenced column "(.*)" not found in FROM clause', r"there is no column \1", why),
        )
        came = f"results: {key} = {text!r}: {why}"
        if not ("no column" in why or "Could not find key" in why):
            return f"{came}; {self._offered()}; {QUOTING}"
        known = [*self.columns(), *self.config_keys()]
        wrong = next((word for word in re.findall(r"(?:config|choice)[.][\w.]+", text) if word not in known), "")
        near = [
            name
            for word in ([wrong] if wrong else words)
            for name in difflib.get_close_matches(word, known, n=1, cutoff=0.7)
        ]
        guess = f"; did you mean {near[0]}?" if near else ""
        if wrong:
            return f"{came}{guess}; expected one of {', '.join(_beside(wrong, known))}"
        return f"{came}{guess or f'; a text needs quotes: {QUOTING}'}; {self._offered()}"

    def _offered(self) -> str:
        tops = dict.fromkeys(".".join(key.split(".")[:2]) for key in self.config_keys() if key.startswith("config"))
        choices = [key for key in self.config_keys() if key.startswith("choice")]
        return f"columns are {', '.join([*self.columns(), *choices])}; keys are {', '.join(tops)}, such as {SUCH_AS}"


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
    structure, choices = (_structure(connection, name) for name in ("config", "choices"))
    facts = ", ".join(f"(fact->>'{name}')::{kind} AS {name}" for name, kind in RUN_FACTS.items())
    connection.execute(
        "CREATE TABLE runs AS SELECT regexp_extract(file_name, 'sweep=([^/]+)/[^/]*$', 1) AS sweep, "
        f"fact->>'run' AS run, {facts}, num_records, (fact->'overrides')::VARCHAR[] AS overrides, "
        f"from_json(fact->'config', '{structure}') AS config, from_json(fact->'choices', '{choices}') AS choice "
        "FROM facts JOIN counts USING (file_name)"
    )


def _structure(connection: duckdb.DuckDBPyConnection, name: str) -> str:
    """Return the keys that a part of the facts has in any run, with their types, for use within quotes."""
    found = connection.execute(f"SELECT json_group_structure(fact->'{name}') FROM facts").fetchone()
    text = str(found[0]) if found and found[0] is not None else "{}"
    return _quoted(text if text.strip('"') not in {"NULL", "{}", "JSON"} else '{"profile":"VARCHAR"}')


def _create_records(connection: duckdb.DuckDBPyConnection, files: str) -> None:
    """Create the view `records`; a column that only newer files hold is NULL in the others."""
    connection.execute(
        f"CREATE VIEW records AS SELECT rows.*, runs.config, runs.choice FROM read_parquet('{_quoted(files)}', "
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


def _beside(wrong: str, known: Sequence[str]) -> list[str]:
    """Return the known keys below the nearest parent of a wrong one that has any."""
    parent = wrong
    while "." in parent:
        parent = parent.rpartition(".")[0]
        if found := [key for key in known if key.startswith(f"{parent}.")]:
            return found
    return list(known)
