"""What `megopt generate` says of one image: what was decided, predicted and measured, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.analysis.parity import TERMS, outcome_terms_s
from megopt.analysis.report import Report, rich_table, shown_path
from megopt.errors import ConfigError
from megopt.files import write_atomically
from megopt.units import BITS_PER_BYTE

if TYPE_CHECKING:
    from megopt.diffusion.rendering import Images
    from megopt.live.course import Generated
    from megopt.schemes.action_table import ActionTable
    from megopt.system.outcome import Outcome


def save_image(image: Images, path: Path) -> Path:
    """Write an image as PNG, and return its path.

    Args:
        image: uint8, shape (height, width, 3).
        path: of the file.

    Raises:
        ConfigError: if it cannot be written, as on a full disk.
    """
    from PIL import Image

    try:
        return write_atomically(path, lambda target: Image.fromarray(image).save(target))
    except OSError as error:
        message = f"{path}: the image is made and cannot be written ({error}); free some space, or set hydra.run.dir"
        raise ConfigError(message) from error


@dataclass(slots=True)
class PreviewFiles:
    """Previews of one image as files beside it.

    Attributes:
        folder: of the files.
        paths: of what was written so far.
    """

    folder: Path
    paths: list[Path] = field(default_factory=list)

    def save(self, step: int, image: Images) -> None:
        """Write the preview after `step` steps, uint8, shape (height, width, 3)."""
        self.paths.append(save_image(image, self.folder / f"preview_{step:03d}.png"))


def generated_report(found: Generated, table: ActionTable, path: Path, previews: Sequence[Path] = ()) -> Report:
    """Return the report of one image.

    Args:
        found: the image and what it cost.
        table: rows that the policy chose from.
        path: of the saved image.
        previews: of saved previews.
    """
    name = table.name(found.row) if found.row >= 0 else f"{found.decision.mode}, as stated"
    results = {"predicted": found.predicted, "measured": found.measured}
    predicted, measured = (
        {term: float(values[0]) for term, values in outcome_terms_s(result, of, found.predicted_runtime_s).items()}
        for of, result in results.items()
    )
    joules = {of: _joules(result) for of, result in results.items()}
    sources = {
        "device": found.energy_source,
        "edge": "not_measured" if found.result is None else found.result.energy_source,
    }
    off = abs(predicted["total"] - measured["total"]) / measured["total"]
    cells = _cells(predicted, measured, joules, sources)
    shadow = None if found.shadow_row is None else table.name(found.shadow_row)
    what = f"predicted {predicted['total']:.3g} s" if found.row >= 0 else "no row of the table, so not predicted"
    return Report(
        summary={
            "row": name,
            "mode": found.decision.mode,
            "probability": found.probability,
            "shadow_row": shadow,
            "edge_steps": found.edge_steps,
            "predicted_s": predicted,
            "measured_s": measured,
            "abs_error": off,
            "device_energy_j": {of: one["device"] for of, one in joules.items()},
            "edge_energy_j": {of: one["edge"] for of, one in joules.items()},
            "energy_source": sources["device"],
            "edge_energy_source": sources["edge"],
            **_course(found),
            "previews": [str(one) for one in previews],
            "image": str(path),
        },
        headline=f"{name}: {what}, measured {measured['total']:.3g} s",
        tables=[
            rich_table("predicted against measured", ["term", "predicted", "measured", "unit"], cells),
            rich_table("timeline", ["stage", "ms", ""], _bars(found.timeline)),
        ],
        lines=[
            f"chosen: {name}",
            f"done at the edge: {found.edge_steps} of {found.decision.num_steps} steps",
            *([f"the shadow would have chosen: {shadow}"] if shadow else []),
            *(f"note: {note}" for note in found.notes),
            *(f"wrote {shown_path(one)}" for one in (*previews, path)),
        ],
    )


def _course(found: Generated) -> dict[str, Any]:
    """Return what was decided and what became of it, as plain data."""
    payload_bits = float(found.measured.payload_bits[0])
    return {
        "decision": asdict(found.decision),
        "payload_bits": payload_bits,
        "crossed_bytes": {
            "up": sum(one.up_bytes for one in found.crossed),
            "down": round(payload_bits / BITS_PER_BYTE),
            "frames": len(found.crossed),
        },
        "timeline_s": dict(found.timeline),
        "notes": list(found.notes),
    }


def _cells(
    predicted: Mapping[str, float],
    measured: Mapping[str, float],
    joules: Mapping[str, Mapping[str, float]],
    sources: Mapping[str, str],
) -> list[list[str]]:
    """Return the rows of the table: terms of the latency, and energy of the sides that were metered."""
    cells = [[term, f"{1e3 * predicted[term]:.1f}", f"{1e3 * measured[term]:.1f}", "ms"] for term in TERMS]
    for side, source in sources.items():
        if np.isfinite(joules["measured"][side]):
            values = [f"{one[side]:.3f}" for one in joules.values()]
            cells.append([f"{side} energy ({source})", *values, "J"])
    return cells


def _joules(result: Outcome) -> dict[str, float]:
    return {"device": float(result.device_energy_j[0]), "edge": float(result.edge_energy_j[0])}


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
