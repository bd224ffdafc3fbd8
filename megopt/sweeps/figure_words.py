"""Words and pages of the figures of a sweep: axis labels, titles of settings, the note above, the legend below."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from megopt.analysis.learning_figure import legend_below_all
from megopt.analysis.records import LABELS
from megopt.sweeps.figure_data import Means

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {
    "channel.snr_db": "Mean SNR [dB]",
    "scenario.num_devices": "Devices in the cell",
    "link.bandwidth_hz": "Bandwidth [Hz]",
    "channel.distance_m": "Distance [m]",
    "scheme.step_split.sr_kind": "Super-resolution",
}
"""Axis labels of keys of the configuration."""
SHORT = {"energy_j": "Energy [J]", "edge_energy_j": "Edge energy [J]", "device_energy_j": "Device energy [J]"}
"""Axis labels of columns, where that of a record is long."""
UNITS = {"s": "s", "j": "J"}
"""Units by the last word of a quantity."""
CHARACTERS_PER_IN = 18
"""Characters of a note, at its size, on an inch [1/in]."""
NOTE_PT = 7
LEGEND_CHARACTERS_PER_IN, HANDLE_IN = 13.5, 0.55
"""The same of a legend, and what its handle and gaps take of the width [in]."""


def finish_page(panels: Sequence[Axes], note: str) -> None:
    """Put one legend below all panels and a note above them, both in as many lines as the width asks for."""
    figure = panels[0].get_figure(root=True)
    assert figure is not None
    width_in = float(figure.get_figwidth())
    names = {name for panel in panels for name in panel.get_legend_handles_labels()[1]}
    if names:
        legend_below_all(panels, num_columns=columns_within(width_in, [len(name) for name in names]))
    whole, width = note.replace(" %", "\N{NO-BREAK SPACE}%"), int(CHARACTERS_PER_IN * width_in)
    lines = textwrap.wrap(whole, width, break_on_hyphens=False)
    figure.suptitle("\n".join(lines), x=0.995, ha="right", fontsize=NOTE_PT, color="0.35", multialignment="right")


def columns_within(width_in: float, lengths: Sequence[int]) -> int:
    """Return how many columns a legend may have, in rows that are as full as each other.

    Args:
        width_in: width of the figure [in].
        lengths: characters of each name.
    """
    entries_in = HANDLE_IN + np.sort(lengths)[::-1] / LEGEND_CHARACTERS_PER_IN
    most = max(1, int((np.cumsum(entries_in) <= width_in).sum()))
    num_rows = -(-len(lengths) // most)
    return -(-len(lengths) // num_rows)


def title_of(setting: Mapping[str, str]) -> str:
    """Return the keys and values of a setting in words: Mean SNR 10 dB, policy optimal."""
    return ", ".join(f"{_name(key)} {value} {_unit_of_key(key)}".strip() for key, value in setting.items())


def title_of_all(settings: Sequence[Mapping[str, str]]) -> str:
    """Return the words of several settings that show the same: Mean SNR 0 to 20 dB."""
    if len(settings) == 1:
        return title_of(settings[0])
    parts = []
    for key in settings[0]:
        values = list(dict.fromkeys(setting[key] for setting in settings))
        shown = f"{values[0]} to {values[-1]}" if len(values) > 2 else " and ".join(values)
        parts.append(f"{_name(key)} {shown} {_unit_of_key(key)}".strip())
    return ", ".join(parts)


def _name(key: str) -> str:
    return NAMES[key].partition(" [")[0] if key in NAMES else key.rpartition(".")[2].replace("_", " ")


def _unit_of_key(key: str) -> str:
    return NAMES.get(key, "").partition(" [")[2].removesuffix("]")


def key_label(key: str) -> str:
    """Return the axis label of a key of the configuration."""
    return NAMES.get(key, key)


def mean_label(means: Means, column: str) -> str:
    """Return the axis label of a mean: Mean latency [s]."""
    name = means.quality_label if column == "quality" else SHORT.get(column, LABELS.get(column, column))
    return f"Mean {name if name[:2].isupper() else name[0].lower() + name[1:]}"


def limit_label(quantity: str) -> str:
    """Return the axis label of a limit: Limit on energy [J]."""
    name = SHORT.get(quantity, LABELS.get(quantity, quantity))
    return f"Limit on {name[0].lower()}{name[1:]}"


def limit_words(quantity: str, limit: float) -> str:
    """Return a limit in words: energy ≤ 600 J."""
    name, _, unit = quantity.rpartition("_")
    return f"{name.replace('_', ' ')} ≤ {limit:.4g} {UNITS.get(unit, '')}".strip()


def limited(means: Means, least: int = 2) -> str:
    """Return the limited quantity; empty where fewer limits than `least` were set, or several quantities limited."""
    finite = means.points[np.isfinite(means.points["limit"])]
    quantities = finite["limit_quantity"].unique()
    return str(quantities[0]) if len(quantities) == 1 and len(finite["limit"].unique()) >= least else ""
