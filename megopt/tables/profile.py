"""A profile: the measured tables of one edge, one device and one model, and how to ask them.

Nothing is extrapolated: a query outside the measured range raises `OutOfTableError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from megopt.arrays import FloatArray
from megopt.errors import OutOfTableError, ProfileError
from megopt.tables.checks import read_table
from megopt.tables.interpolation import interpolate
from megopt.tables.provenance import Parameter, Provenance, read_provenance
from megopt.tables.quality_points import QualityPoints, quality_points
from megopt.tables.schema import COMPUTE, PAYLOAD, QUALITY, QUALITY_KNOBS

if TYPE_CHECKING:
    import pandas as pd

from megopt.tables.profile_checks import check_sources, check_together

Side = Literal["edge", "device"]
PROFILES_DIR = Path(__file__).resolve().parent.parent / "profiles"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Time and energy of one component.

    Attributes:
        latency_s: wall time [s].
        energy_j: energy [J]; NaN where it was not measured.
        kind: provenance kind of the rows behind it.
    """

    latency_s: float
    energy_j: float
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The checked tables of one profile folder.

    Attributes:
        name: name of the folder.
        compute: rows of `schema.COMPUTE`.
        quality: rows of `schema.QUALITY`; empty where quality was not measured.
        payload: rows of `schema.PAYLOAD`: sizes of encoded images.
        provenance: where all of it comes from.
    """

    name: str
    compute: pd.DataFrame
    quality: pd.DataFrame
    payload: pd.DataFrame
    provenance: Provenance

    def has(self, side: Side, component: str, *, resolution_px: int | None = None) -> bool:
        """Return whether the profile times `component` on `side` at `resolution_px`, None for its full resolution."""
        return len(self._rows(side, component, resolution_px)) > 0

    def cost(self, side: Side, component: str, *, batch_size: int = 1, resolution_px: int | None = None) -> Cost:
        """Return time and energy of one batch of `component` on `side`, interpolated over batch size.

        Args:
            side: "edge" or "device".
            component: a key of `schema.COMPONENTS`.
            batch_size: images computed together.
            resolution_px: side of the image [px], for super-resolution of its output; None for the full resolution.

        Raises:
            OutOfTableError: if the component was not timed there, or `batch_size` lies outside the measured ones.
        """
        rows = self._rows(side, component, resolution_px).sort_values("batch_size")
        where = f"profiles/{self.name}/compute.csv: {component} on the {side}"
        if rows.empty:
            side_px = resolution_px or self.provenance.resolution_px
            message = f"{where}: no row at {side_px} px; add one, or choose a scheme that does without"
            raise OutOfTableError(message)
        sizes = rows["batch_size"].to_numpy(dtype=float)
        point = {"batch_size": np.array([float(batch_size)])}
        latency_s = interpolate({"batch_size": sizes}, rows["latency_s"].to_numpy(dtype=float), point, where)
        energy_j = interpolate({"batch_size": sizes}, rows["energy_j"].to_numpy(dtype=float), point, where)
        return Cost(latency_s=float(latency_s[0]), energy_j=float(energy_j[0]), kind=joined_kinds(rows["kind"]))

    def metrics(self, scheme: str) -> tuple[str, ...]:
        """Return the quality metrics that the profile holds for `scheme`."""
        return tuple(self.quality.loc[self.quality["scheme"] == scheme, "metric"].unique())

    def quality_at(self, scheme: str, metric: str, knobs: Mapping[str, FloatArray]) -> FloatArray:
        """Return `metric` at the given knob values, linear between measured points of a full grid.

        Args:
            scheme: name of the scheme.
            metric: one of `metrics(scheme)`.
            knobs: values by knob name, each of shape (num_points,). With snr_db the rows of analog hand-overs are read,
                without it those of digital ones.

        Returns:
            Metric values, shape (num_points,); NaN where the profile holds no such rows at all.

        Raises:
            OutOfTableError: if a knob value lies outside the measured range.
        """
        is_row = (self.quality["scheme"] == scheme) & (self.quality["metric"] == metric)
        rows = self.quality.loc[is_row & (self.quality["snr_db"].notna() == ("snr_db" in knobs))]
        num_points = len(next(iter(knobs.values())))
        if rows.empty:
            return np.full(num_points, np.nan)
        held = {name: rows[name].to_numpy(dtype=float) for name in QUALITY_KNOBS if rows[name].notna().all()}
        where = f"profiles/{self.name}/quality.csv: {metric} of {scheme}"
        absent = [name for name in held if name not in knobs]
        if absent:
            message = f"{where}: the query names no {', '.join(absent)}; expected the knobs {', '.join(held)}"
            raise OutOfTableError(message)
        return interpolate(held, rows["value"].to_numpy(dtype=float), {name: knobs[name] for name in held}, where)

    def quality_points(self, scheme: str, *, upscaled: str = "") -> QualityPoints:
        """Return the measured points of a scheme on a digital link, for exact lookups.

        Args:
            scheme: name of the scheme in quality.csv.
            upscaled: scheme name of the rows with sr_scale above 1; empty for the same.

        Raises:
            OutOfTableError: if one metric is given twice at one point.
        """
        table = self.quality
        is_upscaled = table["sr_scale"] > 1
        is_row = np.where(is_upscaled, table["scheme"] == (upscaled or scheme), table["scheme"] == scheme)
        rows = table.loc[is_row & table["snr_db"].isna()]
        return quality_points(rows, joined_kinds(rows["kind"]), f"profiles/{self.name}/quality.csv: {scheme}")

    def quality_knobs(self, scheme: str) -> frozenset[str]:
        """Return the knobs that the scheme's quality rows name."""
        rows = self.quality.loc[self.quality["scheme"] == scheme, list(QUALITY_KNOBS)]
        return frozenset(rows.columns[rows.notna().any()])

    def quality_kind(self, scheme: str) -> str:
        """Return the provenance kinds of the scheme's quality rows; "" where there are none."""
        return joined_kinds(self.quality.loc[self.quality["scheme"] == scheme, "kind"])

    def num_steps_range(self) -> tuple[int, int]:
        """Return the smallest and largest step count that the tables cover.

        Raises:
            OutOfTableError: if no row names a step count.
        """
        columns = [self.quality["num_steps"], self.compute["num_steps"]]
        for column in columns:
            if column.notna().any():
                return int(column.min()), int(column.max())
        message = (
            f"profiles/{self.name}: no row names num_steps; use a scheme without steps, or measure a profile by steps"
        )
        raise OutOfTableError(message)

    def check_num_steps(self, num_steps: int) -> None:
        """Raise `OutOfTableError` if a run of `num_steps` steps lies outside the tables."""
        low, high = self.num_steps_range()
        if not low <= num_steps <= high:
            message = f"profiles/{self.name}: num_steps = {num_steps} lies outside the table; expected {low} to {high}"
            raise OutOfTableError(message)

    def parameter(self, name: str) -> Parameter:
        """Return a stated parameter.

        Raises:
            ProfileError: if provenance.json states no such parameter.
        """
        if name not in self.provenance.parameters:
            held = ", ".join(self.provenance.parameters) or "none"
            message = f"profiles/{self.name}/provenance.json: parameter {name} is missing (it has {held}); add it"
            raise ProfileError(message)
        return self.provenance.parameters[name]

    def kinds(self) -> str:
        """Return all provenance kinds of the profile, as "composed+published"."""
        return joined_kinds(self.compute["kind"], self.quality["kind"])

    def _rows(self, side: Side, component: str, resolution_px: int | None) -> pd.DataFrame:
        table = self.compute
        is_row = (table["side"] == side) & (table["component"] == component)
        return table.loc[is_row & (table["resolution_px"] == (resolution_px or self.provenance.resolution_px))]


def joined_kinds(*columns: pd.Series) -> str:
    """Return the distinct kinds of the columns, sorted and joined by "+"."""
    return "+".join(sorted({kind for column in columns for kind in column}))


def join_kinds(*kinds: str) -> str:
    """Return the union of kinds that are already joined: "published", "composed+published" -> "composed+published"."""
    return "+".join(sorted({part for kind in kinds for part in kind.split("+") if part}))


def profile_names() -> list[str]:
    """Return the names of the profiles that come with megopt."""
    return sorted(path.parent.name for path in PROFILES_DIR.glob("*/compute.csv"))


def load_profile(name: str | Path, device_power_w: float | None = None) -> Profile:
    """Return the profile of a folder, or of a name that comes with megopt, with every cell checked.

    Args:
        name: path of a folder, or one of `profile_names()`.
        device_power_w: power of the device while it computes [W], in place of the profile's stated one.

    Raises:
        ProfileError: if the folder is missing or breaks the schema, or the profile states no device power.
    """
    folder = Path(name) if Path(name).is_dir() else PROFILES_DIR / str(name)
    if not folder.is_dir():
        message = f"profile {str(name)!r} is neither a folder nor one of {', '.join(profile_names())}"
        raise ProfileError(message)
    provenance = read_provenance(folder / "provenance.json")
    payload_folder = folder if (folder / "payload.csv").is_file() else folder.parent / provenance.image_payload
    if not payload_folder.is_dir():
        payload_folder = PROFILES_DIR / provenance.image_payload
    payload_sources = set(read_provenance(payload_folder / "provenance.json").sources)
    profile = Profile(
        name=folder.resolve().name,
        compute=read_table(folder / "compute.csv", COMPUTE),
        quality=read_table(folder / "quality.csv", QUALITY),
        payload=read_table(payload_folder / "payload.csv", PAYLOAD),
        provenance=provenance,
    )
    check_sources(f"{payload_folder.name}/payload.csv", profile.payload, payload_sources)
    check_together(profile)
    return profile if device_power_w is None else _with_device_power(profile, device_power_w)


def _with_device_power(profile: Profile, device_power_w: float) -> Profile:
    """Return the profile with its modelled device joules scaled to another stated power [W]."""
    stated = profile.parameter("device_power_w")
    if not (isinstance(device_power_w, int | float) and device_power_w > 0):
        message = f"profile.device_power_w = {device_power_w}; expected watts above 0"
        raise ProfileError(message)
    compute = profile.compute.copy()
    is_stated = (compute["side"] == "device") & (compute["energy_source"] == "power_model")
    compute.loc[is_stated, "energy_j"] *= device_power_w / stated.value
    parameter = replace(stated, value=float(device_power_w), kind="modelled", is_set_by_user=True)
    provenance = replace(profile.provenance, parameters={**profile.provenance.parameters, "device_power_w": parameter})
    return replace(profile, compute=compute, provenance=provenance)
