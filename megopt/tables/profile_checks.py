"""What no single column of a profile shows: sources exist, no point is given twice, metrics are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megopt.errors import ProfileError
from megopt.tables.schema import METRICS, QUALITY_KNOBS

if TYPE_CHECKING:
    import pandas as pd

    from megopt.tables.profile import Profile


def check_sources(file: str, table: pd.DataFrame, known: set[str]) -> None:
    """Raise `ProfileError` for a source of a table that is not among the `known` ones."""
    unknown = sorted(set(table["source"]) - known)
    if unknown:
        message = f'{file}: source {", ".join(unknown)} is not in provenance.json; add it to "sources"'
        raise ProfileError(message)


def check_together(profile: Profile) -> None:
    """Check what no single column shows: sources exist, no point is given twice, metrics are known."""
    assert set(profile.quality["metric"]) <= set(METRICS)
    for file, table, key in (
        ("compute.csv", profile.compute, ["side", "model", "component", "resolution_px", "batch_size", "num_steps"]),
        ("quality.csv", profile.quality, ["scheme", *QUALITY_KNOBS, "metric"]),
    ):
        check_sources(f"{profile.name}/{file}", table, set(profile.provenance.sources))
        is_twice = table.duplicated(key)
        if is_twice.any():
            twice = ", ".join(key)
            message = f"{profile.name}/{file}: {is_twice.sum()} rows repeat the {twice} of another; keep one of each"
            raise ProfileError(message)
    is_silent = profile.compute["energy_j"].isna() != (profile.compute["energy_source"] == "not_measured")
    if is_silent.any():
        rows = ", ".join(str(i + 1) for i in np.flatnonzero(is_silent.to_numpy()))
        message = (
            f"{profile.name}/compute.csv: energy_j must be empty exactly where energy_source is not_measured; "
            f"correct table rows {rows}"
        )
        raise ProfileError(message)
