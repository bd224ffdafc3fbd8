"""Quality as measured points: settings of the knobs with a value per metric, looked up exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.errors import OutOfTableError

if TYPE_CHECKING:
    import pandas as pd

POINT_KNOBS = ("num_steps", "split_step", "merge_ratio", "codec_bits", "sr_scale")
"""Columns of every array of settings here."""
NEUTRAL = {"merge_ratio": 0.0, "codec_bits": 16.0, "sr_scale": 1.0}
"""Values of knobs that a row leaves empty: nothing is merged, packed or upscaled."""
UNALTERED = np.array([NEUTRAL.get(knob, np.nan) for knob in POINT_KNOBS])
"""Settings of an unaltered run of any length, shape (5,)."""
_DECIMALS = 9
"""Settings that agree to so many decimals are the same point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityPoints:
    """What a profile measured of a scheme on a digital link.

    Without any rows there is one point, the unaltered run of any length, and no metric.

    Attributes:
        settings: knob values in the order of `POINT_KNOBS`, shape (num_points, 5); NaN in num_steps or split_step
            stands for any value: the measured quality does not tell them apart.
        held: knobs that some row names.
        metrics: names of the metrics.
        values: metric values, shape (num_points, num_metrics); NaN where a point lacks the metric.
        kind: provenance kinds of the rows, "" where there are none.
    """

    settings: FloatArray
    held: frozenset[str]
    metrics: tuple[str, ...]
    values: FloatArray
    kind: str

    def column(self, knob: str) -> FloatArray:
        """Return the values of one knob, shape (num_points,)."""
        return self.settings[:, POINT_KNOBS.index(knob)]

    def at(self, settings: FloatArray) -> FloatArray:
        """Return the metrics at measured settings.

        Args:
            settings: knob values in the order of `POINT_KNOBS`, shape (num_rows, 5).

        Returns:
            Metric values, shape (num_rows, num_metrics); NaN at settings that were not measured.
        """
        is_told_apart = ~np.isnan(self.settings).all(axis=0)
        both = np.concatenate([self.settings, settings])[:, is_told_apart]
        _, group = _grouped(both)
        point_of = np.full(len(both), len(self.settings))
        point_of[group[: len(self.settings)]] = np.arange(len(self.settings))
        unknown = np.full((1, len(self.metrics)), np.nan)
        return np.asarray(np.concatenate([self.values, unknown])[point_of[group[len(self.settings) :]]])


def quality_points(rows: pd.DataFrame, kind: str, where: str) -> QualityPoints:
    """Return the points of digital quality rows.

    Args:
        rows: rows of `schema.QUALITY` of one scheme.
        kind: their provenance kinds.
        where: file and scheme, for messages.

    Raises:
        OutOfTableError: if one metric is given twice at one point.
    """
    if rows.empty:
        return QualityPoints(
            settings=UNALTERED[np.newaxis], held=frozenset(), metrics=(), values=np.empty((1, 0)), kind=""
        )
    given = rows[list(POINT_KNOBS)].to_numpy(dtype=float)
    held = frozenset(knob for knob, column in zip(POINT_KNOBS, given.T, strict=True) if not np.isnan(column).all())
    settings, point = _grouped(np.where(np.isnan(given), UNALTERED, given))
    metrics = tuple(dict.fromkeys(rows["metric"]))
    metric = np.array([metrics.index(name) for name in rows["metric"]])
    num_repeats = len(rows) - len(np.unique(point * len(metrics) + metric))
    if num_repeats:
        message = (
            f"{where}: {num_repeats} rows repeat metric and knobs of another (an empty cell is 0, 16 bit, x1); keep one"
        )
        raise OutOfTableError(message)
    values = np.full((len(settings), len(metrics)), np.nan)
    values[point, metric] = rows["value"].to_numpy(dtype=float)
    return QualityPoints(settings=settings, held=held, metrics=metrics, values=values, kind=kind)


def _grouped(settings: FloatArray) -> tuple[FloatArray, IntArray]:
    """Return the distinct rows of `settings`, NaN counting as equal, and the index of each row's."""
    comparable = np.nan_to_num(np.round(settings, _DECIMALS), nan=-1.0)
    _, first, group = np.unique(comparable, axis=0, return_index=True, return_inverse=True)
    return settings[first], np.ravel(group)
