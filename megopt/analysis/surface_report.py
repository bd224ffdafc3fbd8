"""What `megopt surface` says: corners, knee and policies, what is proved, and which rows are worth offering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.analysis.report import rich_table
from megopt.analysis.surface import REFERENCE, Surface
from megopt.arrays import FloatArray
from megopt.solvers.solution import Status
from megopt.tables.profile import Profile

if TYPE_CHECKING:
    from rich.table import Table

MAX_ROWS_SHOWN = 12


def tables(found: Surface) -> list[Table]:
    """Return the tables of a run; none where no state has a row."""
    return [_points_table(found), _facts_table(found), _rows_table(found)] if len(found.means.points) else []


def _named_points(found: Surface) -> dict[str, int]:
    """Return the points that have a name: the best in each objective, and the knee."""
    means = found.means
    named = {f"best {name}": int(np.argmin(means.points[:, i])) for i, name in enumerate(means.quantities)}
    return named | ({} if found.knee is None else {"knee": found.knee.index})


def _points_table(found: Surface) -> Table:
    means = found.means
    rows = []
    for name, point in _named_points(found).items():
        count = found.uses(point)
        common = int(np.argmax(count))
        share = f"{found.table.name(common)} ({count[common] / count.sum():.0%})"
        rows.append([name, *_numbers(found.reported(means.points[point])), "0.0%", share])
    for name, values in found.baselines.items():
        saved = f"{saving(found, values):.1%}" if np.isfinite(values).all() else "-"
        rows.append([name.replace("_", " "), *_numbers(found.reported(values)), saved, ""])
    header = ["point", *_shown_names(found), f"{means.quantities[0]} to save", "commonest row"]
    return rich_table("means over the channel states; what could be saved while the others stay", header, rows)


def saving(found: Surface, values: FloatArray) -> float:
    """Return the share of the first objective that the surface saves while the others stay as in `values` [1]."""
    least = float(found.means.least_given(values[None], 0)[0])
    return max(float(values[0]) - least, 0.0) / max(abs(float(values[0])), 1e-300)


def _numbers(values: FloatArray) -> list[str]:
    return [f"{value:.4g}" if np.isfinite(value) else "-" for value in values]


def _shown_names(found: Surface) -> list[str]:
    return [found.means.metric if name == "quality" else name for name in found.means.quantities]


def facts(found: Surface) -> dict[str, Any]:
    """Return what is proved of the surface and of the sets of rows."""
    means, sizes = found.means, found.fronts.sizes
    return {
        "status": str(means.status),
        "points": len(means.points),
        "facets": len(means.normals),
        "gap": means.gap,
        "fresh_distance": found.fresh_distance,
        "prices_tried": means.num_prices,
        "runtime_s": means.runtime_s,
        "hypervolume_at_least": found.hypervolume[0],
        "hypervolume_at_most": found.hypervolume[1],
        "rows": len(found.table),
        "rows_non_dominated_somewhere": int(np.count_nonzero(found.fronts.shares)),
        "rows_on_surface": int(found.row_frame()["on_surface"].sum()),
        "median_rows_per_state": float(np.median(sizes)) if len(sizes) else 0.0,
        "row_sets_certified": found.fronts.is_certified,
    }


def _facts_table(found: Surface) -> Table:
    rows = [[name.replace("_", " "), _fact(v)] for name, v in facts(found).items()]
    title = f"proved; hypervolumes are shares of the box up to {REFERENCE:g} ranges"
    return rich_table(title, ["fact", "value"], rows)


def _fact(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return "-" if np.isnan(value) else f"{value:.4g}"


def _rows_table(found: Surface) -> Table:
    frame = found.row_frame().sort_values(["on_surface", "non_dominated_share"], ascending=False, kind="stable")
    shown = frame[frame["non_dominated_share"] > 0].head(MAX_ROWS_SHOWN)
    rows = [
        [f"{row['scheme']}: {row['label']}", f"{row['non_dominated_share']:.0%}", "yes" if row["on_surface"] else ""]
        for _, row in shown.iterrows()
    ]
    kept = int((frame["non_dominated_share"] > 0).sum())
    title = f"{len(rows)} of {kept} rows that are non-dominated in some state, of {len(frame)}; all are in rows.csv"
    return rich_table(title, ["row", "states", "on the surface"], rows)


def summary(found: Surface, profile: Profile, files: Sequence[Path]) -> dict[str, Any]:
    """Return the JSON object of the run."""
    means = found.means
    knee = None
    if found.knee is not None:
        values = found.reported(means.points[found.knee.index])
        knee = {**asdict(found.knee), **dict(zip(means.quantities, values, strict=True))}
    return {
        "profile": profile.name,
        "parameters": {name: parameter.value for name, parameter in profile.provenance.parameters.items()},
        "objectives": list(means.quantities),
        "metric": means.metric,
        **facts(found),
        "hypervolume_reference": REFERENCE,
        "ideal": found.reported(means.ideal),
        "worst": found.reported(means.worst),
        "knee": knee,
        "points_on_surface": found.frame().to_dict("records"),
        "policies": {
            name: {**dict(zip(means.quantities, found.reported(values), strict=True)), "saving": saving(found, values)}
            for name, values in found.baselines.items()
        },
        "notes": list(found.notes),
        "files": [str(path) for path in files],
    }


def headline(found: Surface) -> str:
    """Return one line: size and distance of the bound."""
    if found.means.status == Status.INFEASIBLE:
        return "infeasible: no state has a row with finite costs"
    low, high = found.hypervolume
    return f"{len(found.means.points)} points, bound within {found.means.gap:.1e}, hypervolume {low:.4f} to {high:.4f}"


def complaints(found: Surface) -> list[str]:
    """Return what the user must hear: nothing can be reached."""
    return [headline(found)] if found.means.status == Status.INFEASIBLE else []
