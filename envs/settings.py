"""What a setting may be said as: an object, a name of conf/, or a mapping with a name and the fields that differ.

    gym.make("megopt/Request-v0", channel="umi", link={"bandwidth_hz": 5e6}, schemes=["conventional", "step_split"])
    gym.make("megopt/Request-v0", channel={"name": "rician", "k_factor_db": 3.0})
    gym.make("megopt/Cell-v0", problem={"objective": "energy_j", "limits": {"latency_s": 9.0}}, arrivals=0.1)

A name stands for the file of that name in conf/, with the defaults that are written there: one place for each channel.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from megopt.configuration import CONF_DIR, group_choices
from megopt.envs.arrivals import Arrivals, ArrivalTrace, Poisson
from megopt.envs.parameters import EnvParams
from megopt.errors import ConfigError
from megopt.problem import Limit, Problem
from megopt.schemes.action_table import ActionTable
from megopt.schemes.scheme import Scheme
from megopt.system.channel import Channel
from megopt.system.link import Link
from megopt.tables.profile import Profile, load_profile

Said = str | Mapping[str, Any]
"""A name, or a mapping that may hold a name and fields."""
Made = TypeVar("Made")
Scenarios = Mapping[str, Callable[..., EnvParams]]
"""Functions that return the parameters of a scenario, by name."""
_SCHEME_KEYS = {"num_steps": [25], "prompt_bits": 0.0}
"""What the files of schemes leave to the verbs: as in the scenarios' own schemes."""


def params_of(scenario: str, settings: dict[str, object], scenarios: Scenarios) -> EnvParams:
    """Return the parameters of a scenario by name, of those that the environment knows.

    Raises:
        ConfigError: for a name or a setting that does not exist.
    """
    if not isinstance(scenario, str) or scenario not in scenarios:
        message = f"environment: scenario is {scenario!r}; expected one of {', '.join(scenarios)}; change scenario"
        raise ConfigError(message)
    known = list(inspect.signature(scenarios[scenario]).parameters)
    unknown = sorted(set(settings) - set(known))
    if unknown:
        message = f"environment: scenario {scenario} has no {', '.join(unknown)}; expected some of {', '.join(known)}"
        raise ConfigError(message)
    return scenarios[scenario](**settings)


def profile_of(said: str | Path | Profile) -> Profile:
    """Return a profile: itself, or that of a name or folder.

    Raises:
        ConfigError: for anything else; `ProfileError` for a name that does not exist.
    """
    if isinstance(said, Profile):
        return said
    if not isinstance(said, str | Path):
        _refuse("profile", said, "a Profile, or the name or folder of one (`megopt info`)")
    return load_profile(said)


def channel_of(said: Channel | Said, link: Link) -> Channel:
    """Return a channel; one whose noise band is left open takes that of `link`.

    Raises:
        ConfigError: for a name or a field that does not exist.
    """
    if isinstance(said, Channel):
        return said
    made = _from_conf("channel", said, {"link": {"bandwidth_hz": link.bandwidth_hz}})
    assert isinstance(made, Channel)
    return made


def link_of(said: Link | Said, default: Link) -> Link:
    """Return a link; a mapping without a name changes fields of `default`.

    Raises:
        ConfigError: for a name or a field that does not exist.
    """
    if isinstance(said, Link):
        return said
    if isinstance(said, Mapping) and "name" not in said:
        _call("link", Link, said)
        return replace(default, **{str(key): value for key, value in said.items()})
    made = _from_conf("link", said, {})
    assert isinstance(made, Link)
    return made


def schemes_of(said: Scheme | Said | Sequence[Scheme | Said]) -> list[Scheme]:
    """Return schemes, of one or of several; those of a name offer 25 steps and send no prompt bits.

    Raises:
        ConfigError: for a name or a field that does not exist.
    """
    is_one = isinstance(said, str | Mapping) or hasattr(said, "compile")
    several = [said] if is_one else said
    if not isinstance(several, Sequence):
        _refuse("schemes", said, f"a list of schemes, or of their names: {_names('scheme')}")
    schemes: list[Scheme] = [
        one if hasattr(one, "compile") else _from_conf("scheme", one, _SCHEME_KEYS)  # type: ignore[misc]
        for one in several
    ]
    return schemes


def problem_of(said: Problem | Said, table: ActionTable) -> Problem:
    """Return a problem; a metric that is left open is the first that the table holds.

    Raises:
        ConfigError: for a name or a key that does not exist; `ProblemError` for what makes no sense together.
    """
    if isinstance(said, Problem):
        return said
    keys: dict[str, Any] = {"objective": "latency_s", "metric": "auto", "limits": {}}
    if isinstance(said, str) or (isinstance(said, Mapping) and "name" in said):
        name, given = _name_and_fields("problem", said)
        keys |= {key: _conf("problem", name)[key] for key in keys} | dict(given)
    elif isinstance(said, Mapping):
        keys |= said
    else:
        _refuse("problem", said, f"a Problem, {_names('problem')}, or a mapping such as {_EXAMPLES['problem']}")
    unknown = set(keys) - {"objective", "metric", "limits"}
    if unknown:
        _refuse("problem", said, f"objective, metric and limits, not {', '.join(sorted(map(str, unknown)))}")
    metric = (table.metrics or ("",))[0] if keys["metric"] == "auto" else keys["metric"]
    return Problem(objective=keys["objective"], metric=metric, limits=_limits_of(keys["limits"]))


def _limits_of(said: object) -> tuple[Limit, ...]:
    """Return limits from a mapping of quantities to bounds, None being no limit, or from a list of limits."""
    if isinstance(said, Mapping):
        return tuple(Limit(quantity=name, bound=bound) for name, bound in said.items() if bound is not None)
    if isinstance(said, Sequence) and all(isinstance(one, Limit) for one in said):
        return tuple(said)
    _refuse("problem: limits", said, "a mapping of quantities to bounds, such as {'latency_s': 3.0}")


def arrivals_of(said: Arrivals | float | str | Path | Mapping[str, Any]) -> Arrivals:
    """Return arrivals: a number is a Poisson rate [1/s], a path a recorded trace, a mapping the fields of either.

    Raises:
        ConfigError: for anything else.
    """
    if isinstance(said, Arrivals):
        return said
    if isinstance(said, int | float | np.number) and not isinstance(said, bool):
        return Poisson(requests_per_s=float(said))
    if isinstance(said, str | Path):
        return ArrivalTrace(num_requests=said)
    if isinstance(said, Mapping) and said:
        return _call("arrivals", ArrivalTrace if "num_requests" in said else Poisson, said)
    _refuse("arrivals", said, f"a rate [1/s], the path of a trace, or a mapping such as {_EXAMPLES['arrivals']}")


_EXAMPLES = {
    "channel": "{'name': 'rayleigh', 'snr_db': 5.0}",
    "link": "{'bandwidth_hz': 5e6}",
    "scheme": "{'name': 'step_split', 'num_steps': [25]}",
    "problem": "{'objective': 'latency_s', 'limits': {'device_energy_j': 40.0}}",
    "arrivals": "{'requests_per_s': 0.1}",
}
"""A mapping for each setting, for the messages."""


def _from_conf(group: str, said: object, parents: Mapping[str, Any]) -> Any:
    """Return what the file of a name in conf/ makes, with the given fields in place of its own."""
    from hydra.utils import get_class
    from omegaconf import OmegaConf

    name, given = _name_and_fields(group, said)
    conf = _conf(group, name)
    whole = OmegaConf.to_container(OmegaConf.create({**parents, group: conf.get(name, conf)}), resolve=True)
    assert isinstance(whole, dict)
    keys = dict(whole[group])
    kind = get_class(keys.pop("_target_"))
    unknown = sorted(str(key) for key in set(given) - set(keys))
    if unknown:
        _refuse(group, said, f"some of {', '.join(keys)}, not {', '.join(unknown)}")
    return _call(group, kind, keys | dict(given))


def _conf(group: str, name: str) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.load(CONF_DIR / group / f"{name}.yaml")


def _name_and_fields(group: str, said: object) -> tuple[str, Mapping[str, Any]]:
    """Return the name that was said, one of conf/, and the fields beside it."""
    fields = {key: value for key, value in said.items() if key != "name"} if isinstance(said, Mapping) else {}
    name = said.get("name") if isinstance(said, Mapping) else said
    if not isinstance(name, str) or name not in group_choices(group):
        example = f"an object, one of {_names(group)}, or a mapping such as {_EXAMPLES[group]}"
        _refuse(group, said, example)
    return name, fields


def _names(group: str) -> str:
    return ", ".join(group_choices(group))


def _call(where: str, kind: type[Made], fields: Mapping[str, Any]) -> Made:
    """Return `kind` with these fields; its own errors name what is out of range."""
    try:
        return kind(**fields)
    except TypeError:
        known = ", ".join(inspect.signature(kind).parameters)
        _refuse(where, dict(fields), f"fields of {kind.__name__}: {known}")


def _refuse(where: str, came: object, expected: str) -> NoReturn:
    message = f"environment: {where} is {came!r}; expected {expected}; change {where}"
    raise ConfigError(message)
