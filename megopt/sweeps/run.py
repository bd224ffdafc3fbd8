"""One run of a sweep: a resolved configuration, the library call that it goes to, and what became of it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import import_module
from typing import TYPE_CHECKING, Any

from megopt import __version__
from megopt.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd
    from omegaconf import DictConfig

    Call = Callable[[DictConfig], pd.DataFrame]

_ID_DIGITS = 16


class RunStatus(StrEnum):
    """What became of a run."""

    DONE = "done"
    LEFT_OUT = "left out"  # the profile does not hold what the run asks for
    REFUSED = "refused"  # the input is at fault
    FAILED = "failed"  # the call or its worker is at fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One point of a sweep.

    Attributes:
        sweep: name of the sweep.
        call: dotted path of the library call: a function from the configuration to records.
        overrides: what sets this run apart from the others of its sweep, as key=value.
        config: the resolved configuration.
        run_id: name of the run: a digest of call, configuration and version of megopt. The same run has the same name
            in every sweep, on every machine and in every process.
        choices: the yaml chosen in each group of the configuration, to be asked for; no part of the name.
    """

    sweep: str
    call: str
    overrides: Sequence[str]
    config: Mapping[str, Any]
    run_id: str
    choices: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        *,
        sweep: str,
        call: str,
        overrides: Sequence[str],
        config: Mapping[str, Any],
        choices: Mapping[str, str] | None = None,
    ) -> Run:
        """Return the run of a resolved configuration, named by its digest."""
        text = json_text({"call": call, "config": config, "megopt": __version__})
        run_id = hashlib.sha256(text.encode()).hexdigest()[:_ID_DIGITS]
        varied, chosen = tuple(overrides), dict(choices or {})
        return cls(sweep=sweep, call=call, overrides=varied, config=config, run_id=run_id, choices=chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one run.

    Attributes:
        run_id: name of the run.
        status: see `RunStatus`.
        message: why there are no records; empty where there are.
        call_s: seconds inside the library call [s].
        num_records: records written [1].
        worker: host and process that ran it.
    """

    run_id: str
    status: RunStatus
    message: str = ""
    call_s: float = 0.0
    num_records: int = 0
    worker: str = ""


def json_text(value: object) -> str:
    """Return `value` as JSON with sorted keys; infinities and NaN become the texts inf, -inf and nan."""
    return json.dumps(_finite(value), sort_keys=True, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def function_at(path: str) -> Call:
    """Return the function at a dotted path.

    Raises:
        ConfigError: if there is none.
    """
    module_name, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        message = f"call = {path!r}: {error}; expected the dotted path of a function from a configuration to records"
        raise ConfigError(message) from None
    call: Call = found
    return call
