"""What `megopt live` says: the JSON summary, the tables, and the contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.analysis.contact_sheet import write_contact_sheet
from megopt.analysis.parity import TERMS, Errors, errors, errors_by
from megopt.analysis.parity_book import ParityBook
from megopt.analysis.parity_figure import save_parity_figure
from megopt.analysis.plots import profile_note
from megopt.analysis.report import Report, rich_table, shown_path

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from megopt.diffusion.rendering import Images
    from megopt.live.parity import Cell
    from megopt.tables.profile import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the predictions of an experiment come from.

    Attributes:
        profile: whose tables they are.
        compute: where its compute rows come from: "measure", "profile" or a folder.
        notes: what the reader must know.
    """

    profile: Profile
    compute: str
    notes: Sequence[str]


def write_parity(book: ParityBook, policies: Sequence[str], wanted: Sequence[Cell], origin: Origin) -> Report:
    """Write figure and contact sheet beside the records of a book, and return the report.

    Args:
        book: holds every request of `wanted`.
        policies: names, in order.
        wanted: the cells.
        origin: of the predictions.
    """
    assert book.records is not None
    folder, first = book.path.parent, {cell.level_db: cell for cell in wanted}
    captions = [f"{level:g} dB: {cell.prompts[0].text}" for level, cell in first.items()]
    note = profile_note(origin.profile, book.records)
    note += {"measure": "; timed here", "profile": ""}.get(origin.compute, "; timed elsewhere")
    sheet = write_parity_sheet(folder / "contact_sheet.png", book.images(policies, list(first)), captions)
    files = [book.path, *save_parity_figure(book.records, note, folder / "parity"), sheet]
    return parity_report(book.records, files, origin.notes)


def parity_report(records: pd.DataFrame, files: Sequence[Path], notes: Sequence[str] = ()) -> Report:
    """Return the report of served requests.

    Args:
        records: of `megopt.analysis.parity.parity_record`.
        files: that were written.
        notes: what the reader must know.
    """
    overall, by_policy = errors(records), errors_by(records, "policy")
    by_level = errors_by(records, "level_db")
    columns = {"device": "energy_source", "edge": "edge_energy_source"}
    sources = {side: ", ".join(sorted(records[column].unique())) for side, column in columns.items()}
    agreed = records[records["shadow_row"] >= 0]
    return Report(
        summary={
            **_plain(overall),
            "policies": {name: _plain(found) for name, found in by_policy.items()},
            "snr_db": {f"{level:g}": _plain(found) for level, found in by_level.items()},
            "energy_source": sources["device"],
            "edge_energy_source": sources["edge"],
            "shadow_agreement": float((agreed["shadow_row"] == agreed["row"]).mean()) if len(agreed) else None,
            "median_waited_s": float(records["waited_s"].median()),
            "notes": list(notes),
            "files": [str(path) for path in files],
        },
        headline=f"total latency off by {overall.median_abs_error:.1%} at the median, {overall.p95_abs_error:.1%} at "
        f"the 95th percentile, over {overall.num_requests} requests",
        tables=[error_table(by_policy, overall), term_table(by_policy, sources)],
        lines=[
            f"by the table alone: off by {overall.table_median_abs_error:.1%} at the median, "
            f"{overall.table_p95_abs_error:.1%} at the 95th percentile",
            *(f"note: {note}" for note in notes),
            *(f"wrote {shown_path(path)}" for path in files),
        ],
    )


def error_table(by_policy: Mapping[str, Errors], overall: Errors) -> Table:
    """Return the table of errors of the total, and of limits."""
    header = ["policy", "requests", "median error", "95th percentile", "limits kept", "not as decided"]
    rows = [
        [
            name,
            f"{found.num_requests}",
            f"{found.median_abs_error:.1%}",
            f"{found.p95_abs_error:.1%}",
            f"{found.limits_kept_share:.1%}",
            f"{found.num_noted}",
        ]
        for name, found in {**by_policy, "all": overall}.items()
    ]
    return rich_table("total latency: |predicted - measured| / measured", header, rows)


def term_table(by_policy: Mapping[str, Errors], energy_sources: Mapping[str, str]) -> Table:
    """Return the table of terms, medians over the requests of a policy; sources of joules are those of each side."""
    header = ["policy", "term", "predicted", "measured", "absolute error", "unit"]
    rows = []
    for name, found in by_policy.items():
        rows += [[name, term, *(f"{1e3 * value:.1f}" for value in found.terms_s[term]), "ms"] for term in TERMS]
        for side, joules in (("device", found.device_energy_j), ("edge", found.edge_energy_j)):
            if np.isfinite(joules[1]):
                rows.append([name, f"{side} energy ({energy_sources[side]})", *(f"{j:.3f}" for j in joules), "J"])
    return rich_table("terms, medians over requests", header, rows)


def write_parity_sheet(path: Path, images: Mapping[str, Images], captions: Sequence[str]) -> Path:
    """Write a contact sheet with a row per policy and a column per SNR; the prompt of a column is the same in all rows.

    Args:
        path: of the PNG.
        images: by policy, uint8, shape (num_levels, height, width, 3).
        captions: over the columns.
    """
    return write_contact_sheet(path, {name.replace("_", " "): shown for name, shown in images.items()}, captions)


def _plain(found: Errors) -> dict[str, Any]:
    terms = {
        term: dict(zip(("predicted_s", "measured_s", "abs_error_s"), v, strict=True))
        for term, v in found.terms_s.items()
    }
    device_j, edge_j = (
        dict(zip(("predicted_j", "measured_j", "abs_error_j"), joules, strict=True))
        for joules in (found.device_energy_j, found.edge_energy_j)
    )
    kept = {"limits_kept": found.limits_kept}
    return {**asdict(found), **kept, "terms_s": terms, "device_energy_j": device_j, "edge_energy_j": edge_j}
