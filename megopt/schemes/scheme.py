"""What a scheme is: a way to share one request, compiled from a profile into rows of an ActionTable."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol

import numpy as np

from megopt.arrays import FloatArray
from megopt.errors import NotOfferedError, SchemeError
from megopt.schemes.action_table import ActionTable, Knob, concat
from megopt.system.outcome import Work
from megopt.tables.schema import METRICS

if TYPE_CHECKING:
    from megopt.tables.profile import Profile, Side


class Scheme(Protocol):
    """A way to share a request between edge and device."""

    @property
    def name(self) -> str:
        """Name in tables, figures and configurations."""
        ...

    def compile(self, profile: Profile) -> ActionTable:
        """Return one row per configuration that `profile` can carry.

        Raises:
            NotOfferedError: if the profile lacks a component that the scheme needs.
            SchemeError: if a knob has a value that it cannot have.
            OutOfTableError: if a knob asks for a point outside the measured tables.
        """
        ...


def require(profile: Profile, scheme: str, *parts: tuple[Side, str], resolution_px: int | None = None) -> None:
    """Raise `NotOfferedError` unless the profile times every (side, component) of `parts`.

    Args:
        profile: the profile.
        scheme: name of the scheme.
        *parts: what is needed.
        resolution_px: side of the image [px]; None for the profile's full resolution.
    """
    missing = [" ".join(part) for part in parts if not profile.has(*part, resolution_px=resolution_px)]
    if missing:
        side_px = resolution_px or profile.provenance.resolution_px
        message = (
            f"scheme {scheme}: profile {profile.name} has no row for {', '.join(missing)} at {side_px} px; "
            "choose another profile or scheme (`megopt info`)"
        )
        raise NotOfferedError(message)


def refuse_unmeasured(profile: Profile, scheme: str, held: Collection[str], **lossy_knobs: bool) -> None:
    """Refuse knobs that cost quality where the profile holds no quality over them: they would look free.

    Args:
        profile: the profile.
        scheme: name of the scheme.
        held: knobs that its quality rows name.
        **lossy_knobs: by knob name, whether the scheme offers values that differ in quality.

    Raises:
        SchemeError: if a lossy knob is not held.
    """
    free = [knob for knob, is_lossy in lossy_knobs.items() if is_lossy and knob not in held]
    if free:
        message = (
            f"scheme {scheme}: profile {profile.name} holds no quality over {', '.join(free)}, which would look free; "
            "keep merge_ratio at 0, codec_bits at 16, sr_scale at 1 and one num_steps, or use a profile that measured "
            "them"
        )
        raise SchemeError(message)


def table(
    *,
    scheme: str,
    profile: Profile,
    labels: list[str],
    knobs: tuple[Knob, ...],
    settings: dict[str, FloatArray],
    work: dict[str, FloatArray | float],
    quality: dict[str, FloatArray],
    kind: list[str],
) -> ActionTable:
    """Return an ActionTable from columns; scalars in `work` are spread over all rows.

    Args:
        scheme: name of the scheme.
        profile: where the rows come from.
        labels: text of each row, num_rows long.
        knobs: knobs of the scheme; each has a column in `settings`.
        settings: knob values by name, each of shape (num_rows,).
        work: fields of `Work`, each of shape (num_rows,) or a number.
        quality: metric values by name, each of shape (num_rows,).
        kind: provenance kinds of each row, num_rows long.
    """
    num_rows = len(labels)
    spread = {
        name: np.broadcast_to(np.asarray(value, dtype=np.float64), num_rows).copy() for name, value in work.items()
    }
    metrics = tuple(quality)
    return ActionTable(
        scheme=np.full(num_rows, scheme, dtype="U32"),
        label=np.array(labels, dtype="U64"),
        knobs=knobs,
        settings=np.stack([settings[knob.name] for knob in knobs], axis=-1) if knobs else np.zeros((num_rows, 0)),
        work=Work(**spread),
        metrics=metrics,
        quality=np.stack([quality[name] for name in metrics], axis=-1) if metrics else np.zeros((num_rows, 0)),
        kind=np.array(kind, dtype="U64"),
        profile=profile.name,
    )


def identity_quality(profile: Profile, num_rows: int) -> dict[str, FloatArray]:
    """Return every metric at the value that an unaltered full edge output has, each (num_rows,).

    SSIM and PSNR are always among them: payload.csv holds them for every image codec.
    """
    names = dict.fromkeys([*profile.quality["metric"], "ssim", "psnr_db"])
    return {name: np.full(num_rows, METRICS[name].identity) for name in names}


def compile_all(schemes: list[Scheme], profile: Profile) -> tuple[ActionTable, list[str]]:
    """Return the joint table of all schemes that the profile can carry, and one line for each that it cannot.

    Raises:
        SchemeError: if none can be carried.
    """
    tables, notes = [], []
    for scheme in schemes:
        try:
            tables.append(scheme.compile(profile))
        except NotOfferedError as error:
            notes.append(str(error))
    if not tables:
        message = "; ".join(notes) or "no scheme was named; name some, such as conventional and step_split"
        raise SchemeError(message)
    return concat(tables), notes
