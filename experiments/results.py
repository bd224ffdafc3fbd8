"""`megopt results`: filter and aggregate the records of all sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, ListConfig

from megopt.analysis.report import Report, rich_table, shown_path
from megopt.errors import ConfigError
from megopt.files import write_atomically
from megopt.ranges import require_whole
from megopt.sweeps.aggregates import Aggregate
from megopt.sweeps.query import open_results

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".parquet")


def run(config: DictConfig, output_dir: Path) -> Report:
    """Return the answer to one question."""
    require_whole("results", 1, num_rows=config.num_rows)
    target = _target(config.save)
    asked = _aggregate(config)
    sql = str(config.sql) if config.sql is not None else asked.sql()
    with open_results(Path(config.results), config.sweep) as results:
        answer = results.means(asked) if config.sql is None else results.ask(sql)
    lines = [f"{len(answer)} rows" + (f"; {config.num_rows} are shown" if len(answer) > config.num_rows else "")]
    if target is not None:
        write_atomically(target, lambda path: _write(answer, path))
        lines.append(f"wrote {shown_path(target.resolve())}")
    return Report(
        summary={"sql": sql, "columns": list(answer.columns), "rows": answer.to_dict("records")},
        headline=f"{len(answer)} rows",
        tables=[rich_table("results", list(answer.columns), _cells(answer.head(config.num_rows)))],
        lines=lines,
    )


def _aggregate(config: DictConfig) -> Aggregate:
    for name in ("group_by", "show"):
        if not isinstance(config[name], ListConfig):
            message = f"{name} = {config[name]!r}; expected a list, such as {name}=[{config[name]}]"
            raise ConfigError(message)
    return Aggregate(where=str(config.where), group_by=list(config.group_by), show=list(config.show))


def _target(save: str | None) -> Path | None:
    if save is not None and Path(save).suffix not in SUFFIXES:
        message = f"save = {save!r}; expected a file name that ends in {' or '.join(SUFFIXES)}"
        raise ConfigError(message)
    return None if save is None else Path(save)


def _write(answer: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".csv":
        answer.to_csv(path, index=False)
    else:
        answer.to_parquet(path, index=False)


def _cells(answer: pd.DataFrame) -> list[list[str]]:
    return [
        [f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in row] for row in answer.to_numpy(object)
    ]
