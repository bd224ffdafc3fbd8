"""Rows of an ActionTable as decisions that a live system carries out."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from megopt.errors import MegoptError, NotOfferedError
from megopt.live.decision import Decision
from megopt.live.modes_rows import SCHEMES, SharingTerms, sharing_decision
from megopt.schemes.action_table import ActionTable

WAYS = {"edge only": "edge_only", "model split": "model_split", "device only": "device_only"}
"""Beginnings of labels of the scheme "conventional", and their modes."""


def decision_of(table: ActionTable, row: int, terms: SharingTerms | None = None) -> Decision:
    """Return what `row` of `table` asks for.

    Args:
        table: the rows.
        row: one of them.
        terms: what rows leave open; None to refuse those of the schemes in `modes_rows.SCHEMES`.

    Raises:
        NotOfferedError: for a scheme that the live system does not carry out, or a row of unknown step count.
        ConfigError: for knobs that no real hand-over has.
    """
    scheme, label = str(table.scheme[row]), str(table.label[row])
    knobs = {knob.name: float(value) for knob, value in zip(table.knobs, table.settings[row], strict=True)}
    if terms is not None and scheme in SCHEMES:
        return sharing_decision(scheme, knobs, terms)
    way = label.split(",")[0]
    mode = {"step_split": "step_split", "conventional": WAYS.get(way, "")}.get(scheme, "")
    if not mode or not np.isfinite(knobs.get("num_steps", np.nan)):
        more = "" if terms is None else f", {', '.join(SCHEMES)}"
        message = (
            f"row {row}, {table.name(row)}: the live system carries out step_split{more} and conventional rows of "
            "known num_steps; choose among those"
        )
        raise NotOfferedError(message)
    num_steps = int(knobs["num_steps"])
    split_step = {"step_split": int(np.nan_to_num(knobs.get("split_step", 0.0))), "device_only": 0}.get(mode, num_steps)
    codec, _, quality = label.split(", ")[1].partition(" ") if mode == "edge_only" else ("png", "", "")
    return Decision(
        mode=mode,
        num_steps=num_steps,
        split_step=split_step,
        merge_ratio=_known(knobs, "merge_ratio", 0.0),
        codec_bits=int(_known(knobs, "codec_bits", 16.0)),
        image_codec=codec,
        image_quality=int(quality or 0),
        sr_scale=int(_known(knobs, "sr_scale", 1.0)),
        sr_kind="light" if terms is None else terms.sr_kind,
    )


def row_of(table: ActionTable, decision: Decision, terms: SharingTerms | None = None) -> int:
    """Return the first row that asks for `decision`; -1 if none does."""
    for row in range(len(table)):
        with suppress(MegoptError):
            if decision_of(table, row, terms) == decision:
                return row
    return -1


def device_only_row(table: ActionTable) -> int:
    """Return the fastest row that needs neither an edge nor an upscaler.

    Raises:
        NotOfferedError: if there is none.
    """
    names = [knob.name for knob in table.knobs]
    scale = table.settings[:, names.index("sr_scale")] if "sr_scale" in names else np.ones(len(table))
    is_local = (table.scheme == "conventional") & np.char.startswith(table.label, "device only") & ~(scale > 1.0)
    if not is_local.any():
        message = f"profile {table.profile}: no row device only at the full side; the live device falls back on it"
        raise NotOfferedError(message)
    rows = np.flatnonzero(is_local)
    return int(rows[np.argmin(table.work.device_s[rows])])


def _known(knobs: dict[str, float], name: str, neutral: float) -> float:
    value = knobs.get(name, np.nan)
    return neutral if np.isnan(value) else value
