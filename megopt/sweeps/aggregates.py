"""The SQL of means over groups of records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megopt.analysis.records import RECORD


def served_mean(expression: str) -> str:
    """Return the SQL of a mean over the served requests; NULL where it was not measured in one of them."""
    served = "FILTER (isfinite(latency_s))"
    return f"CASE WHEN count({expression}) {served} = count(*) {served} THEN avg({expression}) {served} END"


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """Means over groups of records.

    As in `megopt.analysis.rollout.summarise`, a mean is over the requests that were served, that is, whose latency is
    finite, and NaN over any value that was not measured. The share of the others stands in `outage_rate`, and the share
    of requests that exceed a limit in `violation_rate`.

    Attributes:
        where: SQL condition on records; empty for all.
        group_by: SQL expressions; empty for one group.
        show: columns whose means are shown.
    """

    where: str = ""
    group_by: Sequence[str] = ()
    show: Sequence[str] = ()

    def sql(self) -> str:
        """Return the query."""
        keys = [f"{_expression(text)} AS key_{i}" for i, text in enumerate(self.group_by)]
        means = [f"{served_mean(_expression(text))} AS mean_{i}" for i, text in enumerate(self.show)]
        names = [f"key_{i} AS {_alias(text)}" for i, text in enumerate(self.group_by)]
        names += [f"mean_{i} AS {_alias(text)}" for i, text in enumerate(self.show)]
        numbers = ", ".join(str(i + 1) for i in range(len(keys)))
        return (
            f"SELECT {', '.join([*names, *_COUNTS])} FROM ("
            f"SELECT {', '.join([*keys, *means, *(f'{sql} AS {name}' for name, sql in _COUNTS.items())])} FROM records"
            + (f" WHERE {self.where}" if self.where else "")
            + (f" GROUP BY {numbers})" if keys else ")")
            + (f" ORDER BY {numbers}" if keys else "")
        )

    def parts(self) -> Iterator[tuple[str, str, str]]:
        """Return each thing that was asked: the key it stands under, its text, and a query with it alone."""
        if self.where:
            yield "where", self.where, f"SELECT count(*) FROM records WHERE {self.where}"
        for text in self.group_by:
            yield "group_by", text, f"SELECT {_expression(text)} FROM records GROUP BY 1"
        for text in self.show:
            yield "show", text, f"SELECT {served_mean(_expression(text))} FROM records"


_COUNTS = {
    "num_records": "count(*)",
    "num_runs": "count(DISTINCT run)",
    "outage_rate": "avg((NOT isfinite(latency_s))::INT)",
    "violation_rate": "avg((violation > 0)::INT)",
}
"""Columns that every answer has, and their SQL."""


def _expression(text: str) -> str:
    """Return an SQL expression; a record's column by its bare name, also where that is a word of SQL, as limit is."""
    return f'"{text}"' if text in {column.name for column in RECORD} else text


def _alias(text: str) -> str:
    return '"' + text.replace('"', "") + '"'
