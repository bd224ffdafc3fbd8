"""All figures of a dataset, from its records and the folders of trained agents; the same records, the same files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from omegaconf import DictConfig, OmegaConf

from megopt.analysis.curve_images import can_be_drawn, save_row_images
from megopt.errors import ConfigError, MegoptError
from megopt.schemes.action_table import ActionTable
from megopt.sweeps.figure_choices import save_choices
from megopt.sweeps.figure_curves import save_curves
from megopt.sweeps.figure_data import Means, means_of
from megopt.sweeps.figure_front import save_front
from megopt.sweeps.figure_learning import learned_in, save_learned
from megopt.sweeps.figure_lines import save_lines
from megopt.sweeps.figure_timelines import save_timelines
from megopt.sweeps.query import Results
from megopt.tables.profile import Profile

KINDS = {
    "curves": "objective against the limited quantity, per policy and setting, with 95 % intervals",
    "lines": "latency, energy and quality over the number that the settings vary",
    "front": "Pareto surface of mean latency, energy and quality",
    "choices": "maps of split step, merge ratio and super-resolution over SNR and limit",
    "timelines": "where the time of a mean request goes, per policy and limit",
    "images": "images along the curve, as the most frequent choices make them (bundled models)",
    "learning": "learning curves with their limits",
}
"""Kinds of figures and what they show."""
Compiled: TypeAlias = Callable[[DictConfig], tuple[Profile, ActionTable, Any]]
"""From a run's configuration to its profile and table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One figure.

    Attributes:
        kind: a key of `KINDS`.
        what: the sweep and profile, or the problem that was learned.
        files: its files; none where there is nothing to see.
    """

    kind: str
    what: str
    files: Sequence[Path]


def require_kinds(kinds: Sequence[str]) -> list[str]:
    """Return `kinds`.

    Raises:
        ConfigError: if one is not known, or there is none.
    """
    for kind in kinds:
        if kind not in KINDS:
            message = f"kinds: {kind!r}; expected some of {', '.join(KINDS)}"
            raise ConfigError(message)
    if not kinds:
        message = f"kinds is []; expected some of {', '.join(KINDS)}"
        raise ConfigError(message)
    return list(kinds)


def draw_sweep(results: Results, sweep: str, kinds: Sequence[str], folder: Path, compiled: Compiled) -> list[Drawn]:
    """Draw the figures of one sweep into FOLDER/SWEEP/, a set per profile."""
    makers: dict[str, Callable[[Means, Path], Sequence[Path]]] = {
        "curves": save_curves,
        "lines": save_lines,
        "front": save_front,
        "choices": lambda means, path: save_choices(results, means, path),
        "timelines": save_timelines,
        "images": lambda means, path: _save_images(results, means, compiled, path),
    }
    drawn = []
    for means in means_of(results, sweep):
        for kind in (kind for kind in kinds if kind in makers):
            files = makers[kind](means, folder / sweep / f"{means.profile.replace('.', 'p')}__{kind}")
            drawn.append(Drawn(kind=kind, what=f"{sweep}, {means.profile}", files=files))
    return drawn


def draw_learning(folders: Sequence[Path], folder: Path) -> list[Drawn]:
    """Draw the learning curves of the trained agents below some folders into FOLDER/learning/."""
    return [
        Drawn(kind="learning", what=learned.name, files=save_learned(learned, folder / "learning" / learned.name))
        for learned in learned_in(folders)
    ]


def _save_images(results: Results, means: Means, compiled: Compiled, path: Path) -> list[Path]:
    """Draw images of what the optimum chose most often under each limit, in the middle setting."""
    config = _config_of(results, means)
    if config is None or "scheme" not in config or "profile" not in config:
        return []
    try:
        profile, table, _ = compiled(config)
    except MegoptError:  # the profile of the records is not on this machine
        return []
    chosen = _rows_by_limit(results, means)
    is_other = any(row >= len(table) or table.label[row] != label for row, (_, label) in chosen.items())
    if not can_be_drawn(profile) or not chosen or is_other:
        return []
    limits = {row: limit for row, (limit, _) in chosen.items()}
    quantity = str(means.points["limit_quantity"].iloc[0])
    return save_row_images(limits, table, profile, quantity, [path.with_suffix(end) for end in (".pdf", ".png")])


def _config_of(results: Results, means: Means) -> DictConfig | None:
    """Return the configuration of a run in the middle setting."""
    runs = means.runs.get(means.middle, [""])
    rows = results.ask("SELECT config::JSON AS config FROM runs WHERE sweep = ? AND run = ?", [means.sweep, runs[0]])
    return OmegaConf.create(json.loads(str(rows["config"].iloc[0]))) if len(rows) else None


def _rows_by_limit(results: Results, means: Means) -> dict[int, tuple[float, str]]:
    """Return the rows that the optimum chose most often, each with the least limit where it did and its label."""
    found = results.ask(
        'SELECT "limit", "row", label, count(*) AS num FROM records WHERE sweep = ? AND list_contains(?, run) '
        "AND policy = 'optimal' AND isfinite(latency_s) AND isfinite(\"limit\") AND violation <= 0 "
        'GROUP BY ALL ORDER BY "limit", num DESC, "row"',
        [means.sweep, list(means.runs.get(means.middle, []))],
    )
    chosen: dict[int, tuple[float, str]] = {}
    for limit, group in found.groupby("limit", sort=True):
        chosen.setdefault(int(group["row"].iloc[0]), (float(limit), str(group["label"].iloc[0])))  # type: ignore[arg-type]
    return chosen
