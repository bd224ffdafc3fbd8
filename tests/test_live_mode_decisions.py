"""Decisions of the modes beyond step split: read from rows, refused where they are impossible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megopt.errors import ConfigError, NotOfferedError, PayloadError
from megopt.live.decision import Decision
from megopt.live.messages import Request
from megopt.live.modes_edge import SharingEdge
from megopt.live.modes_rows import SharingTerms, sharing_decision
from megopt.live.modes_shares import LayerShare, RegionShare
from megopt.live.wire import Frame
from tests.live_modes import (
    GROUP,
    NOISE,
    PART,
    REGION,
    SHARED,
    request_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_rows_of_the_schemes_are_read_as_decisions() -> None:
    terms = SharingTerms(resolution_px=32, scale_factor=4, num_steps=4, group=GROUP, codec_bits=8)
    region = sharing_decision("region_split", {"region_ratio": 0.25, "device_power_ratio": 1.0}, terms)
    assert region.region == RegionShare(top_px=8, left_px=8, height_px=16, width_px=16)
    assert (region.mode, region.num_steps, region.split_step, region.codec_bits) == ("region_split", 4, 4, 8)
    whole = sharing_decision("region_split", {"region_ratio": 1.0}, terms).region
    assert whole == RegionShare(top_px=0, left_px=0, height_px=32, width_px=32)
    knobs = {"num_steps": 5.0, "common_steps": 2.0, "split_step": 3.0}
    assert sharing_decision("shared_steps", knobs, terms) == replace(SHARED, codec_bits=8)
    alone = sharing_decision("shared_steps", knobs | {"common_steps": 0.0}, terms)
    assert alone == Decision(mode="step_split", num_steps=5, split_step=3, codec_bits=8)
    with pytest.raises(NotOfferedError, match="region_ratio nan"):
        sharing_decision("region_split", {"region_ratio": np.nan}, terms)
    with pytest.raises(NotOfferedError, match="rows of shared_steps need a group"):
        sharing_decision("shared_steps", knobs, replace(terms, group=None))


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decision", "changes", "text"),
    [
        (REGION, {"region": None}, "mode region_split without region"),
        (NOISE, {"region": PART}, "mode layer_split with region"),
        (NOISE, {"merge_ratio": 0.5, "codec_bits": 8}, "noise has no similar tokens"),
        (NOISE, {"split_step": 2}, "split_step 2 of 4 steps"),
        (SHARED, {"split_step": 1}, "common_steps 2 of 1 steps at the edge"),
        (SHARED, {"split_step": 5}, "split_step 5 of 5 steps"),
        (REGION, {"region": replace(PART, coarse_scale=2, refine_steps=9)}, "refine_steps 9 of 4"),
        (REGION, {"sr_kind": "magic"}, "sr_kind 'magic', not one of light"),
    ],
)
def test_impossible_decisions_are_refused(decision: Decision, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        replace(decision, **changes)


def test_impossible_shares_are_refused(load_tiny: Callable[[str], Any]) -> None:
    with pytest.raises(ConfigError, match=r"a rectangle of 16x0 px"):
        replace(PART, width_px=0)
    with pytest.raises(ConfigError, match="refine_steps 2 with coarse_scale 1"):
        replace(PART, refine_steps=2)
    with pytest.raises(ConfigError, match=r"a region of 16x32 px at \(8, 8\), outside the image of 32x32 px"):
        request_of(replace(REGION, region=replace(PART, left_px=8, width_px=32)))
    with pytest.raises(ConfigError, match="which is no name of a layer"):
        LayerShare(first="../weights")
    with pytest.raises(ConfigError, match="group_id 'x', not 32 hexadecimal digits"):
        replace(GROUP, group_id="x")
    edge = SharingEdge(load_tiny("sd"))
    odd = request_of(replace(REGION, region=replace(PART, left_px=2)))
    with pytest.raises(PayloadError, match="in steps of 4 px"):
        edge.check(odd)
    inner = replace(NOISE, layers=LayerShare(first="mid_block", last="mid_block"))
    with pytest.raises(PayloadError, match="open it with POST /v1/layers"):
        edge.check(request_of(inner))


@given(value=st.none() | st.integers() | st.text(max_size=3), name=st.sampled_from(sorted(asdict(PART))))
def test_any_value_in_a_region_is_read_or_refused(name: str, value: Any) -> None:
    fields = asdict(request_of(REGION))
    fields["decision"]["region"][name] = value
    try:
        found = Request.of_frame(Frame(kind="request", fields=fields))
    except PayloadError:
        return
    assert getattr(found.decision.region, name) == value


@pytest.mark.parametrize("decision", [REGION, NOISE, SHARED])
def test_requests_of_every_mode_come_back_as_they_were(decision: Decision) -> None:
    request = request_of(decision)
    assert Request.of_frame(Frame.from_bytes(request.frame().to_bytes())) == request
