"""What `megopt generate` says of one image: what was decided, predicted and measured, and where the time went."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megopt.analysis.parity import TERMS, outcome_terms_s
from megopt.analysis.report import Report, rich_table, shown_path

if TYPE_CHECKING:
    from megopt.live.course import Generated


def generated_report(found: Generated, name: str, path: Path) -> Report:
    """Return the report of one image.

    Args:
        found: the image and what it cost.
        name: of the row that was carried out.
        path: of the saved image.
    """
    predicted, measured = (
        {term: float(values[0]) for term, values in outcome_terms_s(result, of=of).items()}
        for result, of in ((found.predicted, "predicted"), (found.measured, "measured"))
    )
    joules = [float(result.device_energy_j[0]) for result in (found.predicted, found.measured)]
    off = abs(predicted["total"] - measured["total"]) / measured["total"]
    cells = [[term, f"{1e3 * predicted[term]:.1f}", f"{1e3 * measured[term]:.1f}", "ms"] for term in TERMS]
    if np.isfinite(joules[1]):
        cells.append([f"device energy ({found.energy_source})", *(f"{value:.3f}" for value in joules), "J"])
    return Report(
        summary={
            "row": name,
            "edge_steps": found.edge_steps,
            "predicted_s": predicted,
            "measured_s": measured,
            "abs_error": off,
            "payload_bits": float(found.measured.payload_bits[0]),
            "device_energy_j": dict(zip(("predicted", "measured"), joules, strict=True)),
            "energy_source": found.energy_source,
            "timeline_s": dict(found.timeline),
            "notes": list(found.notes),
            "image": str(path),
        },
        headline=f"{name}: predicted {predicted['total']:.3g} s, measured {measured['total']:.3g} s",
        tables=[
            rich_table("predicted against measured", ["term", "predicted", "measured", "unit"], cells),
            rich_table("timeline", ["stage", "ms", ""], _bars(found.timeline)),
        ],
        lines=[f"chosen: {name}", *(f"note: {note}" for note in found.notes), f"wrote {shown_path(path)}"],
    )


def _bars(timeline: tuple[tuple[str, float], ...], width: int = 40) -> list[list[str]]:
    """Return stage, time [ms] and a bar from where the stage begins; parts of a stage lie below its bar."""
    total_s = sum(took_s for stage, took_s in timeline if not stage.startswith("of which"))
    scale = width / total_s if total_s > 0.0 else 0.0
    rows, begin_s, inner_s = [], 0.0, 0.0
    for stage, took_s in timeline:
        is_inner = stage.startswith("of which")
        at_s = inner_s if is_inner else begin_s
        bar = " " * round(scale * at_s) + ("-" if is_inner else "#") * max(1, round(scale * took_s))
        rows.append([f"  {stage}" if is_inner else stage, f"{1e3 * took_s:.1f}", bar])
        if is_inner:
            inner_s += took_s
        else:
            begin_s, inner_s = begin_s + took_s, begin_s
    return rows
