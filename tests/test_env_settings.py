"""What the settings may be said as in `gym.make`: objects, names of conf/, mappings; anything else is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import megopt.envs  # noqa: F401  registers the environments
from megopt.configuration import group_choices
from megopt.envs import scenarios, settings
from megopt.envs.arrivals import ArrivalTrace, Poisson
from megopt.errors import ConfigError, MegoptError
from megopt.problem import Limit, Problem
from megopt.schemes.conventional import Conventional
from megopt.schemes.step_split import StepSplit
from megopt.system.channel import Rayleigh, Rician, Static, Trace, UrbanMacro, UrbanMicro
from megopt.system.link import Link
from tests.environments import PHONE, loaded

REQUEST_ID, CELL_ID = "megopt/Request-v0", "megopt/Cell-v0"


def table_of_phone() -> Any:
    return scenarios.request(profile=loaded(PHONE), schemes="conventional").table


def test_plain_words_make_environments_that_run() -> None:
    for env_id, words in (
        (REQUEST_ID, {"channel": "static", "link": "shannon", "problem": "min_latency", "schemes": ["conventional"]}),
        (REQUEST_ID, {"channel": {"name": "rician", "k_factor_db": 3.0}, "link": {"bandwidth_hz": 5e6}}),
        (CELL_ID, {"channel": "umi", "arrivals": 0.1, "problem": {"limits": {"device_energy_j": 30.0}}}),
    ):
        env = gym.make(env_id, **words)  # type: ignore[arg-type]
        env.reset(seed=0)
        env.action_space.seed(0)
        assert np.isfinite(env.step(env.action_space.sample())[1])


@pytest.mark.parametrize("name", group_choices("channel"))
def test_a_name_is_the_channel_of_conf(name: str) -> None:
    made = settings.channel_of(name, Link(bandwidth_hz=7e6))
    assert settings.channel_of(made, Link()) is made
    if isinstance(made, UrbanMicro | UrbanMacro):
        assert made.bandwidth_hz == 7e6  # noise over the band of the link


def test_fields_stand_in_place_of_those_of_the_name() -> None:
    assert settings.channel_of("rayleigh", Link()) == Rayleigh(snr_db=10.0)
    assert settings.channel_of({"name": "rician", "snr_db": 4.0}, Link()) == Rician(snr_db=4.0, k_factor_db=9.0)
    assert settings.channel_of({"name": "trace", "snr_db": np.array([1.0, 2.0])}, Link()).recorded_snr.size == 2  # type: ignore[attr-defined]
    assert settings.link_of({"bandwidth_hz": 3e6}, Link()) == Link(bandwidth_hz=3e6)
    wide = Link(bandwidth_hz=20e6)
    assert settings.link_of({"device_rx_power_w": 1.0}, wide) == replace(wide, device_rx_power_w=1.0)
    assert settings.link_of({"name": "cqi", "bler": 0.2}, Link()).adaptation == "cqi"
    assert settings.link_of("megsplitting", Link()) == Link(bandwidth_hz=1e6)
    assert settings.arrivals_of(0.2) == Poisson(requests_per_s=0.2)
    assert settings.arrivals_of({"requests_per_s": [0.1, 0.2]}) == Poisson(requests_per_s=[0.1, 0.2])
    assert settings.arrivals_of({"num_requests": [1, 0]}) == ArrivalTrace(num_requests=[1, 0])
    one, other = settings.schemes_of(["conventional", {"name": "step_split", "num_steps": [8]}])
    assert isinstance(one, Conventional)
    assert isinstance(other, StepSplit)
    assert list(other.num_steps or ()) == [8]
    assert settings.schemes_of(one) == [one]
    assert len(settings.schemes_of("region_split")) == 1


def test_problems_of_words() -> None:
    table = table_of_phone()
    first = table.metrics[0]
    assert settings.problem_of("max_quality", table) == Problem(objective="quality", metric=first)
    said = {"objective": "latency_s", "metric": "ssim", "limits": {"quality": 0.8, "energy_j": None}}
    limits = (Limit(quantity="quality", bound=0.8),)
    assert settings.problem_of(said, table) == Problem(objective="latency_s", metric="ssim", limits=limits)
    assert settings.problem_of({"name": "min_energy", "limits": limits}, table).limits == limits
    made = Problem()
    assert settings.problem_of(made, table) is made


BAD: list[tuple[str, dict[str, Any], str]] = [
    (REQUEST_ID, {"channel": {}}, "channel is {}; expected an object, one of gauss_markov,.*such as {'name'"),
    (REQUEST_ID, {"channel": "umii"}, "channel is 'umii'; expected .* umi, or a mapping"),
    (
        REQUEST_ID,
        {"channel": {"name": "rician", "k": 1.0}},
        "expected some of snr_db, k_factor_db.*not k; change channel",
    ),
    (REQUEST_ID, {"channel": {"name": "rician", "k_factor_db": "x"}}, "k_factor_db is 'x'; expected a number"),
    (REQUEST_ID, {"channel": np.zeros(2)}, "channel is array"),
    (REQUEST_ID, {"link": {"bandwith_hz": 1e6}}, "expected fields of Link: bandwidth_hz, uplink_bandwidth_hz"),
    (REQUEST_ID, {"link": 3}, "link is 3; expected an object, one of cqi, megsplitting"),
    (REQUEST_ID, {"schemes": [3]}, "scheme is 3; expected an object, one of conventional"),
    (REQUEST_ID, {"schemes": 3}, "schemes is 3; expected a list of schemes, or of their names: conventional"),
    (REQUEST_ID, {"schemes": []}, "no scheme was named"),
    (REQUEST_ID, {"problem": {"limit": 3}}, "expected objective, metric and limits, not limit; change problem"),
    (REQUEST_ID, {"problem": {"limits": 3}}, "limits is 3; expected a mapping of quantities"),
    (REQUEST_ID, {"problem": 3}, "problem is 3; expected a Problem, max_quality"),
    (REQUEST_ID, {"profile": 3}, "profile is 3; expected a Profile, or the name"),
    (REQUEST_ID, {"is_pipelined": "yes"}, "is_pipelined is 'yes'; expected true or false"),
    (REQUEST_ID, {"episode_length": 2.5}, "episode_length is 2.5; expected a whole number"),
    (REQUEST_ID, {"params": {}}, "params are {}; expected those that a function of megopt.envs.scenarios returns"),
    (REQUEST_ID, {"params": {"a": 1}, "link": 3}, "params and link are given"),
    (REQUEST_ID, {"scenario": []}, "scenario is \\[\\]; expected one of request, meg_cvpo"),
    (CELL_ID, {"arrivals": [0.1]}, "arrivals is \\[0.1\\]; expected a rate"),
    (CELL_ID, {"arrivals": {"rate": 1.0}}, "expected fields of Poisson: requests_per_s"),
    (CELL_ID, {"arrivals": True}, "arrivals is True; expected a rate"),
    (CELL_ID, {"arrivals": Path("nowhere.csv")}, "nowhere.csv: no such file"),
    (REQUEST_ID, {"num_envs": 4}, "num_envs = 4 for a single environment; .*use gym.make_vec for several"),
    (
        CELL_ID,
        {"num_envs": 4, "autoreset_mode": "Disabled"},
        "Disabled' and num_envs = 4 for a single",
    ),
    (REQUEST_ID, {"problem": {"limits": [{"latency_s": 3.0}]}}, "expected a mapping of quantities to bounds"),
    (REQUEST_ID, {"problem": {"limits": {"latency_s": []}}}, "limit on latency_s is \\[\\]; expected a number"),
    (REQUEST_ID, {"problem": {"metric": {}}}, "metric {}; expected one of ssim"),
    (REQUEST_ID, {"problem": {1: 2}}, "expected objective, metric and limits, not 1"),
    (REQUEST_ID, {"channel": {"name": "rayleigh", "snr_db": []}}, "snr_db is \\[\\]; expected one number from -200"),
    (REQUEST_ID, {"link": {"bandwidth_hz": []}}, "bandwidth_hz is \\[\\]; expected one number from 1"),
    (REQUEST_ID, {"battery_j": []}, "battery_j is \\[\\]; expected one number"),
    (REQUEST_ID, {"deadline_s": [3.0]}, "deadline_s is \\[3.0\\]; expected one number"),
    (CELL_ID, {"slot_s": np.ones(2)}, "slot_s is array.*; expected one number"),
    (CELL_ID, {"batch_slope": []}, "slope is \\[\\]; expected one number"),
    (
        CELL_ID,
        {"arrivals": {"requests_per_s": []}},
        "requests_per_s is \\[\\]; expected numbers .*; give at least one",
    ),
    (CELL_ID, {"arrivals": {"num_requests": ["a"]}}, "num_requests is \\['a'\\]; expected a number"),
    (CELL_ID, {"num_devices": "8"}, "num_devices is '8'; expected a whole number from 1"),
]


@pytest.mark.parametrize(("env_id", "words", "message"), BAD)
def test_words_that_make_no_sense_say_what_does(env_id: str, words: dict[str, Any], message: str) -> None:
    few: dict[str, Any] = {} if {"params", "scenario"} & set(words) else {"schemes": "conventional"}  # soon compiled
    with pytest.raises(MegoptError, match=message):
        gym.make(env_id, **few | words)


ODD: tuple[Any, ...] = (-1, 0.5, float("nan"), "x", "", ["x"], [], {}, {"name": "x"}, object(), True)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["request", "cell"])
def test_whatever_comes_either_works_or_is_refused_in_words(scenario: str) -> None:
    """Every keyword with values of every kind: no error but those of megopt."""
    make = {**scenarios.SCENARIOS, **scenarios.CELL_SCENARIOS}[scenario]
    own = set(make.__kwdefaults__ or {}) - (
        set(scenarios.request.__kwdefaults__ or {}) if scenario == "cell" else set()
    )
    refused: list[str] = []
    for name in sorted(own):
        for value in ODD:
            try:
                make(**{"profile": loaded(PHONE), "schemes": "conventional", name: value})
            except MegoptError as error:
                refused.append(str(error))
    assert len(refused) > 6 * len(own)
    assert min(map(len, refused)) > 20


def test_unknown_autoreset_modes_are_refused() -> None:
    for mode in ("NextStep", "SameSteps", 3):
        with pytest.raises(ConfigError, match=r"autoreset_mode is .*; expected SameStep or Disabled"):
            gym.make_vec(REQUEST_ID, num_envs=2, autoreset_mode=mode)


def test_noise_of_static_channels_needs_no_link() -> None:
    assert settings.channel_of("static", Link()) == Static(snr_db=10.0)
    assert isinstance(settings.channel_of("trace", Link()), Trace)


def test_a_cell_without_limits_decides() -> None:
    env = gym.make("megopt/Cell-v0", problem="min_latency", num_devices=3)
    env.reset(seed=0)
    *_, info = env.step(env.action_space.sample())
    assert info["costs"].shape == (0,)
    assert info["cost"] == 0.0


def test_a_vector_environment_takes_no_settings_on_top() -> None:
    from megopt.envs.sb3 import RequestVecEnv

    vector: Any = gym.make_vec("megopt/Request-v0", num_envs=2)
    for given in ({"vector": vector, "actions": "box"}, {"vector": 3}):
        with pytest.raises(ConfigError, match="expected a vector environment of megopt alone"):
            RequestVecEnv(**given)


def test_a_nan_is_not_advised_to_be_clipped() -> None:
    env = gym.make("megopt/Request-v0", actions="box", bad_actions="clip")
    env.reset(seed=0)
    with pytest.raises(MegoptError, match="look for the NaN or infinity in the policy") as caught:
        env.step(np.full(env.action_space.shape or (), np.nan))
    assert "clip" not in str(caught.value)
