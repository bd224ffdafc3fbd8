"""The comparison with MEGSplitting as tables for people: every published number beside its computed one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megopt.analysis.report import rich_table

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table


def latency_table(comparison: pd.DataFrame) -> Table:
    """Return the printed latencies of region split, model split and edge only, published and computed [s]."""
    rows = comparison[(comparison["quantity"] == "latency") & comparison["latency_s"].notna()]
    cells = [
        [
            str(row["model"]),
            str(row["scheme"]).replace("_", " "),
            "-" if row["region_ratio"] != row["region_ratio"] else f"{row['region_ratio']:.1f}",
            f"{row['latency_s']:.4f}",
            f"{row['computed_latency_s']:.4f}",
            f"{row['error_s']:+.1e}",
        ]
        for _, row in rows.iterrows()
    ]
    header = ["model", "scheme", "split ratio", "published s", "computed s", "error s"]
    return rich_table("latency at full device power, cost factor 2", header, cells)


def pareto_table(comparison: pd.DataFrame) -> Table:
    """Return least latencies, "published / computed" [s]: a row per limit, a column per power and cost factor."""
    rows = comparison[(comparison["quantity"] == "pareto") & comparison["latency_s"].notna()]
    cells = {
        (row["energy_limit_j"], f"{row['power_policy']} power, beta {row['cost_factor']:g}"): (
            f"{row['latency_s']:.2f} / {row['computed_latency_s']:.3f}"
        )
        for _, row in rows.iterrows()
    }
    columns = list(dict.fromkeys(column for _, column in cells))
    lines = [
        [f"{limit:g}", *(cells.get((limit, column), "-") for column in columns)]
        for limit in sorted({limit for limit, _ in cells})
    ]
    title = "least latency under a limit on device energy, published / computed [s]"
    return rich_table(title, ["limit J", *columns], lines)
