"""provenance.json: who measured, on what, when, how; what a profile's parameters are and where they come from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megopt.errors import ProfileError
from megopt.tables.schema import KINDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where rows come from.

    Attributes:
        title: the publication, repository or run.
        where: how to find it: an identifier, an address, a file inside it.
        method: how it was measured or computed, in a sentence.
    """

    title: str
    where: str
    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A stated number of a profile that is no table row.

    Attributes:
        value: its value.
        unit: its unit, "1" for pure numbers.
        kind: one of `KINDS`.
        source: why this value, in a sentence.
        is_set_by_user: True where an override replaced the profile's value.
    """

    value: float
    unit: str
    kind: str
    source: str
    is_set_by_user: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            message = f"parameter kind {self.kind!r}: expected one of {', '.join(KINDS)}"
            raise ProfileError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The content of provenance.json.

    Attributes:
        title: the profile in one line.
        edge: hardware of the edge.
        device: hardware of the device.
        model: what is generated with.
        created: date of the tables, ISO 8601.
        command: the command that measured them; empty for published tables.
        latent_shape: channels, height, width of the latent that crosses the link.
        resolution_px: side of the square output [px].
        energy: the energy quantity that this profile holds for every scheme.
        image_payload: name of the profile folder that holds payload.csv.
        sources: by the key that rows carry.
        parameters: stated numbers by name.
        caveats: what a reader must know before quoting a number.
    """

    title: str
    edge: str
    device: str
    model: str
    created: str
    command: str
    latent_shape: tuple[int, int, int]
    resolution_px: int
    energy: str
    image_payload: str
    sources: dict[str, Source]
    parameters: dict[str, Parameter]
    caveats: tuple[str, ...]


def read_provenance(path: Path) -> Provenance:
    """Return the provenance in `path`.

    Raises:
        ProfileError: if the file is missing, is no JSON, or lacks or misspells a key.
    """
    shown = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        message = f"{shown}: file not found; every profile states where its numbers come from (see profiles/README.md)"
        raise ProfileError(message)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return _provenance(data)
    except json.JSONDecodeError as error:
        message = f"{shown}: no JSON: {error}; correct the file"
        raise ProfileError(message) from error
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        reason = str(error).replace("Provenance.__init__() ", "").replace("__init__() ", "")
        message = f"{shown}: {reason}; expected the keys {', '.join(Provenance.__dataclass_fields__)}"
        raise ProfileError(message) from error


def _provenance(data: dict[str, Any]) -> Provenance:
    channels, height, width = data["latent_shape"]
    fields = {
        **data,
        "latent_shape": (int(channels), int(height), int(width)),
        "sources": {key: Source(**source) for key, source in data["sources"].items()},
        "parameters": {key: Parameter(**parameter) for key, parameter in data["parameters"].items()},
        "caveats": tuple(data["caveats"]),
    }
    return Provenance(**fields)
