"""A measurement as a row of compute.csv."""

from __future__ import annotations

import math

from megopt.errors import ConfigError
from megopt.metering.measure import Measurement
from megopt.tables import schema


def compute_row(
    measurement: Measurement,
    *,
    side: str,
    model: str,
    component: str,
    resolution_px: int,
    batch_size: int,
    source: str,
    num_steps: int | None = None,
    flops: float | None = None,
) -> dict[str, object]:
    """Return a row of compute.csv, a cell per column of `schema.COMPUTE`; None is an empty cell.

    Args:
        measurement: of the whole batch.
        side: "edge" or "device".
        model: model that was run.
        component: a key of `schema.COMPONENTS`.
        resolution_px: side of the square image that the component works on, of super-resolution its output [px].
        batch_size: images computed together.
        source: key of the source in provenance.json.
        num_steps: denoising steps of a whole run; None for other components.
        flops: floating point operations of the whole batch [1]; None where not counted.

    Raises:
        ConfigError: if a cell is none that its column allows.
    """
    row: dict[str, object] = {
        "side": side,
        "model": model,
        "component": component,
        "resolution_px": resolution_px,
        "batch_size": batch_size,
        "num_steps": num_steps,
        "latency_s": _rounded(measurement.median_s),
        "latency_std_s": _cell(measurement.std_s),
        "energy_j": _cell(measurement.energy_j),
        "energy_source": measurement.energy_source,
        "flops": None if flops is None else float(flops),
        "num_trials": len(measurement.samples_s),
        "kind": "measured",
        "source": source,
    }
    assert list(row) == [column.name for column in schema.COMPUTE]
    for column in schema.COMPUTE:
        _check_cell(column, row[column.name])
    return row


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _cell(value: float) -> float | None:
    """Return the rounded value, None where it was not measured."""
    return None if math.isnan(value) else _rounded(value)


def _check_cell(column: schema.Column, cell: object) -> None:
    is_wrong = column.choices and cell not in column.choices
    if cell is None:
        is_wrong = not column.is_nullable
    elif column.dtype != "text":
        is_wrong = not isinstance(cell, int | float) or not column.low <= cell <= column.high
    if is_wrong:
        legal = f"one of {', '.join(column.choices)}" if column.choices else f"{column.dtype} >= {column.low:g}"
        message = f"compute.csv: {column.name} is {cell!r}; expected {legal}; change {column.name}"
        raise ConfigError(message)
