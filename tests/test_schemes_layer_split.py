"""Layer split as rows: known bits, what it costs beside model split, and how rows become decisions."""

from __future__ import annotations

import hydra
import numpy as np
import pytest
from hydra.utils import instantiate

from megopt.errors import NotOfferedError
from megopt.live.decision import Decision
from megopt.live.modes_rows import SharingTerms
from megopt.live.modes_shares import LayerShare
from megopt.live.predictions import hidden_s, with_frames
from megopt.live.rows import decision_of
from megopt.schemes.action_table import ActionTable
from megopt.schemes.conventional import Conventional
from megopt.schemes.layer_split import LayerSplit
from megopt.system.outcome import Outcome
from megopt.system.payload import frame_bits
from megopt.tables.profile import Profile, load_profile

TERMS = SharingTerms(resolution_px=64, scale_factor=4, num_steps=8)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile("bundled")


@pytest.fixture(scope="module")
def rows(profile: Profile) -> ActionTable:
    return LayerSplit(num_steps=None).compile(profile)


def test_a_frame_of_noise_crosses_at_every_step(rows: ActionTable, profile: Profile) -> None:
    num_steps = rows.settings[:, 0]
    assert np.array_equal(rows.work.downlink_bits, num_steps * frame_bits(profile.provenance.latent_shape, 16))
    assert set(rows.scheme) == {"layer_split"}
    assert rows.label[0] == f"noise of {num_steps[0]:g} steps from the edge"


def test_it_costs_at_least_as_much_as_model_split_and_gives_its_quality(rows: ActionTable, profile: Profile) -> None:
    plain = Conventional(num_steps=None, ways=("model_split",)).compile(profile)
    for name in ("edge_s", "device_s", "downlink_bits", "edge_energy_j", "device_energy_j"):
        assert np.all(getattr(rows.work, name) >= getattr(plain.work, name))
    assert np.array_equal(rows.quality, plain.quality, equal_nan=True)
    assert np.array_equal(rows.work.uplink_bits, plain.work.uplink_bits)
    assert all("modelled" in kind for kind in rows.kind)


def test_one_step_is_model_split(profile: Profile) -> None:
    counts = Conventional(num_steps=None, ways=("model_split",)).compile(profile)
    fewest = int(counts.settings[:, 0].min())
    one = LayerSplit(num_steps=(fewest,)).compile(profile)
    plain = Conventional(num_steps=(fewest,), ways=("model_split",)).compile(profile)
    extra_s = one.work.edge_s - plain.work.edge_s
    packing = profile.cost("edge", "codec_encode").latency_s
    assert extra_s == pytest.approx((fewest - 1) * packing)


def test_rows_become_decisions_and_their_frames_are_counted(rows: ActionTable) -> None:
    num_steps = int(rows.settings[0, 0])
    expected = Decision(mode="layer_split", num_steps=num_steps, split_step=num_steps, layers=LayerShare())
    assert decision_of(rows, 0, TERMS) == expected
    with pytest.raises(NotOfferedError, match="carries out step_split and conventional"):
        decision_of(rows, 0)
    more = with_frames(rows).work.downlink_bits - rows.work.downlink_bits
    per_step = np.diff(more) / np.diff(rows.settings[:, 0])
    assert np.allclose(per_step, per_step[0])
    assert 8 * 300 < per_step[0] < 8 * 1500


@pytest.mark.parametrize(("edge_s", "downlink_s", "hidden"), [(8.0, 4.0, 3.5), (2.0, 4.0, 1.75), (1.0, np.inf, 0.875)])
def test_frames_are_under_way_while_the_edge_computes(
    profile: Profile, edge_s: float, downlink_s: float, hidden: float
) -> None:
    rows = LayerSplit(num_steps=(8,)).compile(profile)
    values = {name: np.full(1, np.nan) for name in Outcome.__dataclass_fields__}
    costs = Outcome(**values | {"edge_s": np.array([edge_s]), "downlink_s": np.array([downlink_s])})
    assert hidden_s(rows, 0, costs) == pytest.approx(hidden)
    assert hidden_s(rows, -1, costs) == 0.0
    plain = Conventional(num_steps=(8,), ways=("model_split",)).compile(profile)
    assert hidden_s(plain, 0, costs) == 0.0


def test_a_profile_without_steps_is_told() -> None:
    with pytest.raises(NotOfferedError, match="no row for edge denoise_step"):
        LayerSplit(num_steps=(25,)).compile(load_profile("megsplitting_sdxl"))


@pytest.mark.parametrize("name", ["layer_split", "shared_steps"])
def test_the_configuration_composes_scheme_and_policy(name: str) -> None:
    with hydra.initialize_config_module(version_base="1.3", config_module="megopt.conf"):
        config = hydra.compose("live", [f"scheme=[conventional,{name}]", f"policy=[{name}]", "policy@shadow=optimal"])
    assert list(config.policy) == [name]
    assert instantiate(config.scheme, _convert_="all")[name].name == name
    assert list(config.shadow) == ["optimal"]
