"""Records: one row per request, the common form of simulated, solved and measured outcomes; parquet on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from megopt.errors import ProblemError
from megopt.files import write_atomically
from megopt.tables.schema import Column

if TYPE_CHECKING:
    import pandas as pd

RECORD = (
    Column(name="profile", unit="", dtype="text", meaning="profile"),
    Column(name="policy", unit="", dtype="text", meaning="policy"),
    Column(name="limit_quantity", unit="", dtype="text", meaning="quantity whose limit is swept"),
    Column(name="limit", unit="", dtype="float", meaning="swept limit"),
    Column(name="trace", unit="1", dtype="int", meaning="fading trace"),
    Column(name="request", unit="1", dtype="int", meaning="request"),
    Column(name="snr_db", unit="dB", dtype="float", meaning="received SNR"),
    Column(name="scheme", unit="", dtype="text", meaning="scheme of the chosen row"),
    Column(name="label", unit="", dtype="text", meaning="chosen row"),
    Column(name="row", unit="1", dtype="int", meaning="index of the chosen row"),
    Column(name="latency_s", unit="s", dtype="float", meaning="latency"),
    Column(name="edge_s", unit="s", dtype="float", meaning="edge compute time"),
    Column(name="device_s", unit="s", dtype="float", meaning="device compute time"),
    Column(name="downlink_s", unit="s", dtype="float", meaning="downlink time"),
    Column(name="uplink_s", unit="s", dtype="float", meaning="uplink time"),
    Column(name="energy_j", unit="J", dtype="float", meaning="edge and device energy"),
    Column(name="edge_energy_j", unit="J", dtype="float", meaning="edge energy"),
    Column(name="device_energy_j", unit="J", dtype="float", meaning="device energy"),
    Column(name="payload_bits", unit="bit", dtype="float", meaning="downlink payload"),
    Column(name="quality", unit="metric", dtype="float", meaning="quality"),
    Column(name="objective", unit="", dtype="float", meaning="objective, to be minimised"),
    Column(name="violation", unit="1", dtype="float", meaning="largest excess over a limit, relative to the limit"),
    Column(name="kind", unit="", dtype="text", meaning="provenance kinds of the chosen row"),
)
"""Columns of a record, in order."""
LABELS = {column.name: column.label[0].upper() + column.label[1:] for column in RECORD}
"""Axis labels by column."""


def write_records(records: pd.DataFrame, path: Path) -> Path:
    """Write `records` as parquet, atomically: readers see the old file or the new one, never half of one.

    Raises:
        ProblemError: if a column of `RECORD` is missing.
    """
    missing = [column.name for column in RECORD if column.name not in records]
    if missing:
        message = (
            f"records: column {', '.join(missing)} is missing; records come from `megopt.analysis.rollout.rollout`"
        )
        raise ProblemError(message)
    return write_atomically(path, lambda target: records.to_parquet(target, index=False))


def write_tables(tables: Mapping[str, pd.DataFrame], folder: Path) -> list[Path]:
    """Write each table as NAME.csv into `folder`, atomically. Returns the files."""
    return [
        write_atomically(folder / f"{name}.csv", lambda path, table=table: table.to_csv(path, index=False))  # type: ignore[misc]
        for name, table in tables.items()
    ]


def read_records(path: Path) -> pd.DataFrame:
    """Return the records of a parquet file written by `write_records`."""
    import pandas as pd

    return pd.read_parquet(path)
