"""Modes beyond step split over a real socket: exactness, bytes a step, groups, what goes wrong, what is refused."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from megopt.diffusion import codec
from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.conditioning import encode_run
from megopt.diffusion.layer_pieces import Body
from megopt.diffusion.layers import LayerSplit, step_with
from megopt.diffusion.region_completion import complete, make_region
from megopt.diffusion.sampling import advance, decode
from megopt.errors import ConfigError, PayloadError, PipelineError
from megopt.live import runs
from megopt.live.decision import MODES, Decision
from megopt.live.handover import received_checkpoint
from megopt.live.messages import Capabilities, Request
from megopt.live.modes_edge import SharingEdge, Stages, heard
from megopt.live.modes_runs import region_of, with_context
from megopt.live.modes_shares import LayerShare, RegionShare
from megopt.live.wire import Frame
from tests import live_modes
from tests.live_modes import (
    GROUP,
    HYBRID,
    NOISE,
    PART,
    PROMPT,
    REGION,
    SHARED,
    Edge,
    device_of,
    heard_by,
    made,
    request_of,
    unsplit,
)

pipelines, edge = live_modes.pipelines, live_modes.edge
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


# --- region split ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coarse", [{}, {"coarse_scale": 2, "refine_steps": 3}])
def test_region_split_is_the_algorithm_in_one_process(
    edge: Edge, pipelines: dict[str, Any], coarse: dict[str, int]
) -> None:
    decision = replace(REGION, region=replace(PART, **coarse))
    found = made(device_of(pipelines["sd_device"]), decision, edge)
    begun = runs.begin(pipelines["sd"], request_of(decision))
    region = region_of(PART, (32, 32), 4)
    known = make_region(pipelines["sd"], begun, region)
    whole = complete(pipelines["sd_device"], begun, region, known, **coarse)
    assert np.array_equal(found.image, decode(pipelines["sd_device"], whole)[0])
    assert found.notes == ()
    assert found.result is not None
    assert found.result.step == 4


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_region_of_everything_is_the_model_split(edge: Edge, pipelines: dict[str, Any], bits: int) -> None:
    whole = RegionShare(top_px=0, left_px=0, height_px=32, width_px=32)
    device = device_of(pipelines["sd_device"])
    found = made(device, replace(REGION, region=whole, codec_bits=bits), edge)
    plain = made(device, Decision(mode="model_split", num_steps=4, split_step=4, codec_bits=bits), edge)
    assert np.array_equal(found.image, plain.image)
    assert [one.down_bytes for one in found.crossed] == [codec.payload_bytes((4, 8, 8), bits)]


def test_a_region_with_the_whole_image_around_it_is_cut_out_of_the_edge_run(
    edge: Edge, pipelines: dict[str, Any]
) -> None:
    decision = replace(REGION, region=replace(PART, context_px=32))
    found = made(device_of(pipelines["sd_device"]), decision, edge)
    begun, region = runs.begin(pipelines["sd"], request_of(decision)), region_of(PART, (32, 32), 4)
    known = make_region(pipelines["sd"], begun, region, sees_whole=True)
    whole = complete(pipelines["sd_device"], begun, region, known)
    assert np.array_equal(found.image, decode(pipelines["sd_device"], whole)[0])
    wider = with_context(region, 1)
    assert (wider.top, wider.left, wider.height, wider.width) == (1, 0, 6, 7)
    with pytest.raises(ConfigError, match="context_px 2, no multiples of 4 px"):
        region_of(replace(PART, context_px=2), (32, 32), 4)


def test_sdxl_is_told_where_the_region_was_cut_out(pipelines: dict[str, Any]) -> None:
    request = request_of(REGION)
    *_, last = SharingEdge(pipelines["sdxl"]).stages(request)
    begun = runs.begin(pipelines["sdxl"], request)
    taken = received_checkpoint(Frame(kind="result", parts=last.parts), begun, 4, REGION)
    region = region_of(PART, (32, 32), 4)
    whole = complete(pipelines["sdxl"], begun, region, make_region(pipelines["sdxl"], begun, region))
    told = encode_run(pipelines["sdxl"], begun)
    (finished,) = runs.steps(pipelines["sdxl"], taken, told, 4)
    assert torch.equal(finished.latent, whole.latent)


# --- shared steps ---------------------------------------------------------------------------------------------------


def shared_reference(pipelines: dict[str, Any], prompt: str, decision: Decision) -> Any:
    """The common steps, a member's own, and the device's, in one process."""
    group = decision.group
    assert group is not None
    public = request_of(decision, prompt=group.prompt, guidance_scale=group.guidance_scale)
    common = advance(pipelines["sd"], runs.begin(pipelines["sd"], public), group.common_steps)
    own = runs.begin(pipelines["sd"], request_of(decision, prompt=prompt))
    own = replace(own, latent=common.latent, step=common.step, solver_history=common.solver_history)
    passed = advance(pipelines["sd"], own, decision.split_step)
    return decode(pipelines["sd_device"], advance(pipelines["sd_device"], passed, decision.num_steps))[0]


@pytest.mark.parametrize("split_step", [2, 3])
def test_a_group_makes_its_common_steps_once(
    edge: Edge, pipelines: dict[str, Any], split_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decision = replace(SHARED, split_step=split_step, group=replace(GROUP, group_id=uuid.uuid4().hex))
    counted: list[Request] = []
    common_steps = SharingEdge._common_steps

    def counting(self: SharingEdge, request: Request) -> Iterator[Checkpoint]:
        counted.append(request)
        return common_steps(self, request)

    monkeypatch.setattr(SharingEdge, "_common_steps", counting)
    device = device_of(pipelines["sd_device"])
    for text in ("a red cube", "a blue cube"):
        found = made(device, decision, edge, replace(PROMPT, text=text))
        assert found.notes == ()
        assert np.array_equal(found.image, shared_reference(pipelines, text, decision))
    assert len(counted) == 1
    third = made(device, decision, edge, replace(PROMPT, text="a cat"))
    assert "its 2 members are there already" in third.notes[0]
    assert third.notes[-1] == "finished alone from step 0"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_steps": 6}, "num_steps 6 against 5 of its first member"),
        ({"group": replace(GROUP, common_steps=1)}, "common_steps 1 against 2"),
        ({"group": replace(GROUP, prompt="a dog")}, "prompt of the group; members share"),
    ],
)
def test_groups_of_mixed_requests_are_refused(
    edge: Edge, pipelines: dict[str, Any], changes: dict[str, Any], text: str
) -> None:
    group_id = uuid.uuid4().hex
    first = replace(SHARED, group=replace(GROUP, group_id=group_id))
    assert heard_by(edge, request_of(first))[-1].kind == "result"
    other = replace(SHARED, **changes)
    assert other.group is not None
    other = replace(other, group=replace(other.group, group_id=group_id))
    with pytest.raises(PayloadError, match=text):
        edge.service.submit(request_of(other).frame().to_bytes())
    found = made(device_of(pipelines["sd_device"]), other, edge)
    assert text in found.notes[0]
    assert found.image.shape == (32, 32, 3)


# --- layer split, all layers at the edge ----------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_guided_noise_of_every_step_makes_the_unsplit_run(edge: Edge, pipelines: dict[str, Any], sampler: str) -> None:
    found = made(device_of(pipelines["sd_device"]), NOISE, edge, replace(PROMPT, sampler=sampler))
    assert np.array_equal(found.image, decode(pipelines["sd"], unsplit(pipelines["sd"], NOISE, sampler=sampler))[0])
    assert [one.step for one in found.crossed] == [1, 2, 3, 4]
    assert {one.down_bytes for one in found.crossed} == {4 * 4 * 8 * 8 + 80}  # the values and the head of safetensors


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_both_ends_stay_in_step_at_any_number_of_bits(edge: Edge, pipelines: dict[str, Any], bits: int) -> None:
    decision = replace(NOISE, codec_bits=bits)
    found = made(device_of(pipelines["sd_device"]), decision, edge)
    run = runs.begin(pipelines["sd"], request_of(decision))
    told, split = encode_run(pipelines["sd"], run), LayerSplit(pipelines["sd"], Body())
    while run.step < run.num_steps:
        noise = split.run_body(split.head(run, told)[0], run, told).hidden
        sent = codec.decode(codec.encode(noise[0].numpy(), bits))
        run = step_with(pipelines["sd"], run, torch.from_numpy(sent[np.newaxis].copy()))
    assert np.array_equal(found.image, decode(pipelines["sd"], run)[0])
    assert [one.down_bytes for one in found.crossed] == [codec.payload_bytes((4, 8, 8), bits)] * 4


def test_a_device_goes_on_alone_after_some_noise(edge: Edge, pipelines: dict[str, Any]) -> None:
    request = request_of(NOISE)
    first, second, *_ = heard_by(edge, request)
    begun = runs.begin(pipelines["sd"], request)
    taken = received_checkpoint(second, received_checkpoint(first, begun, 1, NOISE), 2, NOISE)
    told = encode_run(pipelines["sd"], taken)
    *_, finished = runs.steps(pipelines["sd"], taken, told, 4)
    assert torch.equal(finished.latent, unsplit(pipelines["sd"], NOISE).latent)
    with pytest.raises(PayloadError, match="expected step 1; a frame is missing"):
        received_checkpoint(second, begun, 2, NOISE)


def test_an_edge_that_fails_on_the_way_is_finished_alone(
    edge: Edge, pipelines: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = SharingEdge._noise

    def failing(self: SharingEdge, request: Request) -> Stages:
        yield from islice(noise(self, request), 2)
        message = "out of memory"
        raise PipelineError(message)

    monkeypatch.setitem(edge.service.sharing._stages, "layer_split", partial(failing, edge.service.sharing))
    found = made(device_of(pipelines["sd"]), NOISE, edge)
    assert found.notes == ("the edge ended it: out of memory", "finished alone from step 2")
    assert np.array_equal(found.image, decode(pipelines["sd"], unsplit(pipelines["sd"], NOISE))[0])
    assert [one.step for one in found.crossed] == [1, 2]


def test_regions_that_do_not_fit_are_refused_before_anything_is_sent(edge: Edge, pipelines: dict[str, Any]) -> None:
    odd = replace(REGION, region=replace(PART, left_px=2))
    with pytest.raises(ConfigError, match="in steps of 4 px"):
        made(device_of(pipelines["sd_device"]), odd, edge)
    with pytest.raises(PayloadError, match="in steps of 4 px"):
        edge.service.submit(request_of(odd).frame().to_bytes())


# --- together -------------------------------------------------------------------------------------------------------


def test_hybrid_upscaling_after_a_hand_over(edge: Edge, pipelines: dict[str, Any]) -> None:
    device = device_of(pipelines["sd_device"])
    small = Decision(mode="step_split", num_steps=4, split_step=2, codec_bits=32)
    low = made(device, small, edge).image
    found = made(device, replace(small, sr_scale=2, sr_kind="hybrid"), edge, replace(PROMPT, resolution_px=64))
    assert np.array_equal(found.image, HYBRID.upscale(low[np.newaxis])[0])
    assert "enlarge, hybrid" in dict(found.timeline)
    with pytest.raises(ConfigError, match="no such upscaler"):
        made(device, replace(small, sr_scale=2, sr_kind="diffusion"), edge, replace(PROMPT, resolution_px=64))


def test_the_edge_lists_its_modes_and_layers(edge: Edge, pipelines: dict[str, Any]) -> None:
    told = Capabilities.of_plain(edge.service.capabilities().plain())
    assert set(told.modes) == set(MODES) - {"device_only"}
    assert told.layers[0] == "conv_in"
    assert told.problems(REGION, told.latent_space) == []
    assert SharingEdge(pipelines["sd3"]).modes == ("region_split", "shared_steps")
    device = device_of(pipelines["sd_device"])
    with pytest.raises(ConfigError, match=r"it does not offer layer down_blocks\.9"):
        made(device, replace(NOISE, layers=LayerShare(first="down_blocks.9")), edge)


def test_modes_wait_together_and_each_gets_its_own(edge: Edge, pipelines: dict[str, Any]) -> None:
    long = request_of(Decision(mode="step_split", num_steps=100, split_step=99))
    job = edge.service.submit(long.frame().to_bytes())
    plain = request_of(Decision(mode="model_split", num_steps=4, split_step=4, codec_bits=32))
    requests = [plain, request_of(REGION), request_of(NOISE)]
    jobs = [edge.service.submit(request.frame().to_bytes()) for request in requests]
    edge.service.cancel(long.request_id)
    assert [heard_by(edge, request)[-1].kind for request in requests] == ["result"] * 3
    assert [len(heard_by(edge, request)) for request in requests] == [1, 1, 4]
    assert (job.reason, {one.reason for one in jobs}) == ("cancelled", {"done"})
    cancelled = request_of(replace(NOISE, num_steps=100, split_step=100))
    edge.service.submit(cancelled.frame().to_bytes())
    assert edge.service.cancel(cancelled.request_id)
    assert heard_by(edge, cancelled)[-1].fields["reason"] == "cancelled"


def test_what_the_sender_goes_on_from_is_what_the_receiver_decodes(pipelines: dict[str, Any]) -> None:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    (stage, *_) = SharingEdge(pipelines["sd"]).stages(request_of(replace(NOISE, codec_bits=4)))
    assert not stage.is_last
    decision = replace(NOISE, codec_bits=4)
    decoded = heard(stage.parts[0], noise, decision)
    assert decoded.shape == noise.shape
    assert np.array_equal(decoded[0].numpy(), codec.decode(stage.parts[0].payload))
