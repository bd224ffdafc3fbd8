"""Layer split on tiny pipelines: every cut is the unsplit run bit for bit, crossings have stated shapes; failures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations_with_replacement
from typing import Any

import pytest
import torch

from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.conditioning import Conditioning, encode
from megopt.diffusion.layer_pieces import Body, Crossing, denoiser_crc, layer_names
from megopt.diffusion.layers import LayerSplit, model_input, step_with
from megopt.diffusion.sampling import advance, start
from megopt.errors import ConfigError, PipelineError

# diffusers' schedulers hand torch tensors to numpy.array; torch has no copy keyword yet
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAMES = ("conv_in", "down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1", "conv_out")
CUTS = [
    pytest.param(*cut, marks=[] if number % 5 == 0 else pytest.mark.slow)
    for number, cut in enumerate(combinations_with_replacement(NAMES, 2))
]
"""Every body; where slow tests are left out, six from the whole network to its last layer alone."""
NUM_STEPS = 3
LATENT = (4, 8, 8)


@pytest.fixture(scope="module")
def pipelines(load_tiny: Callable[[str], Any]) -> dict[str, Any]:
    return {name: load_tiny(name) for name in ("sd", "sd_device", "sdxl", "sd3")}


def begun(pipeline: Any, sampler: str = "ddim", **changes: Any) -> tuple[Checkpoint, Conditioning]:
    arguments: dict[str, Any] = {"num_steps": NUM_STEPS, "seed": 3, "guidance_scale": 3.0} | changes
    run = start(pipeline, "a red cube", sampler=sampler, **arguments)
    told = encode(pipeline, "a red cube", guidance_scale=run.guidance_scale, resolution_px=run.resolution_px)
    return run, told


def shapes(crossing: Crossing) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape[1:]) for tensor in crossing.tensors)


def noise_of(split: LayerSplit, run: Checkpoint, told: Conditioning) -> torch.Tensor:
    """The next guided noise, by way of what crosses."""
    up, held = split.head(run, told)
    assert shapes(up) == split.shapes_up(LATENT)
    down = split.run_body(up, run, told)
    assert shapes(down) == split.shapes_down(LATENT)
    return split.tail(down, held, run, told)


def through(split: LayerSplit, run: Checkpoint, told: Conditioning) -> Checkpoint:
    while run.step < run.num_steps:
        run = step_with(split.pipeline, run, noise_of(split, run, told))
    return run


# --- equality -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "last"), CUTS)
def test_every_body_gives_the_unsplit_run(pipelines: dict[str, Any], first: str, last: str) -> None:
    run, told = begun(pipelines["sd"])
    split = LayerSplit(pipelines["sd"], Body(first=first, last=last))
    assert torch.equal(through(split, run, told).latent, advance(pipelines["sd"], run, NUM_STEPS).latent)


@pytest.mark.parametrize("body", [Body(), Body(first="down_blocks.1", last="up_blocks.0"), Body(first="mid_block")])
@pytest.mark.parametrize(
    ("name", "sampler", "guidance"),
    [("sd", "euler", 3.0), ("sd", "dpmpp_2m", 3.0), ("sdxl", "dpmpp_2m", 3.0), ("sdxl", "euler", 1.0)],
)
def test_every_sampler_and_both_families_are_exact(
    pipelines: dict[str, Any], name: str, sampler: str, guidance: float, body: Body
) -> None:
    run, told = begun(pipelines[name], sampler, guidance_scale=guidance)
    found = through(LayerSplit(pipelines[name], body), run, told)
    whole = advance(pipelines[name], run, NUM_STEPS)
    assert torch.equal(found.latent, whole.latent)
    assert (found.step, found.solver_history) == (whole.step, whole.solver_history) == (NUM_STEPS, ())


def test_a_run_goes_on_whole_after_any_step_with_noise_from_elsewhere(pipelines: dict[str, Any]) -> None:
    run, told = begun(pipelines["sd"], "dpmpp_2m")
    split = LayerSplit(pipelines["sd"], Body())
    after = step_with(split.pipeline, run, noise_of(split, run, told))
    assert torch.equal(after.solver_history[0], advance(pipelines["sd"], run, 1).solver_history[0])
    assert torch.equal(
        advance(pipelines["sd"], after, NUM_STEPS).latent, advance(pipelines["sd"], run, NUM_STEPS).latent
    )


# --- what crosses ---------------------------------------------------------------------------------------------------


def test_known_crossings(pipelines: dict[str, Any]) -> None:
    inner = LayerSplit(pipelines["sd"], Body(first="down_blocks.1", last="up_blocks.0"))
    # equal depth: the hidden state alone, after one halving of the sides up, after one doubling down
    assert (inner.shapes_up(LATENT), inner.shapes_down(LATENT)) == (((16, 4, 4),), ((32, 8, 8),))
    assert (inner.needs_uplink, inner.gives_noise) == (True, False)
    one_cut = LayerSplit(pipelines["sd"], Body(first="mid_block"))
    assert one_cut.shapes_up(LATENT) == ((32, 4, 4), (16, 8, 8), (16, 8, 8), (16, 4, 4))
    assert one_cut.shapes_down(LATENT) == (LATENT,)
    whole = LayerSplit(pipelines["sd"], Body())
    assert (whole.shapes_up(LATENT), whole.shapes_down(LATENT)) == ((LATENT,), (LATENT,))
    assert (whole.needs_uplink, whole.gives_noise) == (False, True)
    assert LayerSplit(pipelines["sd"], Body(first="mid_block", last="mid_block")).shapes_up(LATENT) == ((32, 4, 4),)


def test_layers_are_named_in_order_and_weights_have_a_checksum(
    pipelines: dict[str, Any], load_tiny: Callable[[str], Any]
) -> None:
    assert layer_names(pipelines["sd"]) == NAMES
    assert denoiser_crc(pipelines["sd"]) == denoiser_crc(load_tiny("sd"))
    assert denoiser_crc(pipelines["sd"]) != denoiser_crc(pipelines["sd_device"])
    changed = load_tiny("sd")
    with torch.no_grad():
        changed.unet.conv_out.bias[0] += 1.0
    assert denoiser_crc(changed) != denoiser_crc(pipelines["sd"])


def test_the_body_never_looks_at_the_latent(pipelines: dict[str, Any]) -> None:
    run, told = begun(pipelines["sd"])
    split = LayerSplit(pipelines["sd"], Body(first="down_blocks.1", last="up_blocks.0"))
    up, _ = split.head(run, told)
    blind = replace(run, latent=torch.full_like(run.latent, torch.nan))
    assert torch.equal(split.run_body(up, blind, told).hidden, split.run_body(up, run, told).hidden)


# --- failures -------------------------------------------------------------------------------------------------------


def test_impossible_cuts_are_refused(pipelines: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"no layer 'down_blocks\.7'; expected one of conv_in, down_blocks\.0"):
        LayerSplit(pipelines["sd"], Body(first="down_blocks.7"))
    with pytest.raises(ConfigError, match=r"ends at conv_in before it begins at up_blocks\.0"):
        LayerSplit(pipelines["sd"], Body(first="up_blocks.0", last="conv_in"))
    with pytest.raises(PipelineError, match="SD3Transformer2DModel; expected a UNet2DConditionModel"):
        layer_names(pipelines["sd3"])


def test_odd_sizes_and_foreign_noise_are_refused(pipelines: dict[str, Any]) -> None:
    run, told = begun(pipelines["sd"], resolution_px=36)
    with pytest.raises(ConfigError, match=r"a latent of \(9, 9\); expected multiples of 2"):
        LayerSplit(pipelines["sd"], Body()).head(run, told)
    with pytest.raises(ConfigError, match="expected a step that is left"):
        step_with(pipelines["sd"], run, torch.zeros(1, 4, 8, 8))
    done = replace(run, step=NUM_STEPS)
    with pytest.raises(ConfigError, match="step 3 of 3"):
        step_with(pipelines["sd"], done, torch.zeros_like(run.latent))


def test_unguided_runs_cross_once(pipelines: dict[str, Any]) -> None:
    run, told = begun(pipelines["sd"], guidance_scale=1.0)
    assert len(model_input(pipelines["sd"], run, told)) == 1
    guided, told = begun(pipelines["sd"])
    assert len(model_input(pipelines["sd"], guided, told)) == 2
