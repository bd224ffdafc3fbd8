"""Split runs equal unsplit runs and the stock pipelines bit for bit; hand-over, loading, failures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.conditioning import Conditioning, conditioning_hash, encode
from megopt.diffusion.guidance import guided
from megopt.diffusion.pipelines import LatentSpace, latent_space, load
from megopt.diffusion.sampling import advance, decode, start
from megopt.diffusion.schedulers import SAMPLERS
from megopt.errors import ConfigError, PayloadError, PipelineError

# diffusers' schedulers hand torch tensors to numpy.array; torch has no copy keyword yet
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NUM_STEPS = 5
PROMPTS = ("a red cube", "a blue cat")
GUIDANCE = 4.0
FEW = {("sd", "ddim"), ("sdxl", "euler"), ("sd", "dpmpp_2m")}
"""What is tried where slow tests are left out, beside all of sd3: every sampler and every family once."""
CASES = [
    pytest.param(name, sampler, marks=[] if name == "sd3" or (name, sampler) in FEW else pytest.mark.slow)
    for sampler, entry in SAMPLERS.items()
    for name in entry.families
]
LoadTiny = Callable[[str], Any]


@pytest.fixture(scope="module")
def pipelines(load_tiny: LoadTiny) -> dict[str, Any]:
    return {name: load_tiny(name) for name in ("sd", "sd_device", "sdxl", "sd3")}


def begun(pipeline: Any, sampler: str, **changes: Any) -> Checkpoint:
    arguments: dict[str, Any] = {"num_steps": NUM_STEPS, "seed": 3, "guidance_scale": GUIDANCE} | changes
    return start(pipeline, arguments.pop("prompt", PROMPTS), sampler=sampler, **arguments)


def finished(pipeline: Any, sampler: str, **changes: Any) -> Checkpoint:
    begin = begun(pipeline, sampler, **changes)
    return advance(pipeline, begin, begin.num_steps)


def stock(pipeline: Any, sampler: str, **changes: Any) -> Any:
    """What the pipeline's own call makes of the same request."""
    import diffusers

    arguments: dict[str, Any] = {"num_inference_steps": NUM_STEPS, "guidance_scale": GUIDANCE, "output_type": "latent"}
    scheduler = pipeline.scheduler
    pipeline.scheduler = getattr(diffusers, SAMPLERS[sampler].scheduler).from_config(scheduler.config)
    try:
        generator = torch.Generator().manual_seed(3)
        return pipeline(**{"prompt": list(PROMPTS), "generator": generator} | arguments | changes).images
    finally:
        pipeline.scheduler = scheduler


# --- equality -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "sampler"), CASES)
def test_unsplit_run_is_the_stock_pipeline(pipelines: dict[str, Any], name: str, sampler: str) -> None:
    assert torch.equal(finished(pipelines[name], sampler).latent, stock(pipelines[name], sampler))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("negative", [None, "blurry"])
@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_prompts_reach_the_model_as_in_the_stock_pipeline(
    pipelines: dict[str, Any], name: str, negative: str | None, guidance: float
) -> None:
    sampler = "flow_match_euler" if name == "sd3" else "euler"
    ours = finished(pipelines[name], sampler, prompt="a cat", negative_prompt=negative, guidance_scale=guidance)
    theirs = stock(pipelines[name], sampler, prompt="a cat", negative_prompt=negative, guidance_scale=guidance)
    assert torch.equal(ours.latent, theirs)


@pytest.mark.parametrize("name", ["sd", "sdxl"])  # SD3's own pipeline knows no rescale
def test_rescaled_guidance_is_the_stock_pipelines(pipelines: dict[str, Any], name: str) -> None:
    ours = finished(pipelines[name], "ddim", guidance_rescale=0.7).latent
    assert torch.equal(ours, stock(pipelines[name], "ddim", guidance_rescale=0.7))
    assert not torch.equal(ours, finished(pipelines[name], "ddim").latent)


@pytest.mark.parametrize("scale", [1.5, 8.0])
def test_rescale_of_one_keeps_the_spread_of_the_output_for_the_prompt(scale: float) -> None:
    told = Conditioning(text=torch.empty(0), is_guided=True, hash="")
    output = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    given = output[2:]
    rescaled = guided(output, told, scale, 1.0).std((1, 2, 3))
    assert torch.allclose(rescaled, given.std((1, 2, 3)), rtol=1e-5)
    assert (guided(output, told, scale).std((1, 2, 3)) > rescaled).all()


@pytest.mark.parametrize("rescale", [-0.1, 1.1, float("nan")])
def test_rescale_outside_its_range_is_refused(pipelines: dict[str, Any], rescale: float) -> None:
    with pytest.raises(PayloadError, match=r"guidance_rescale .*, not 0 to 1"):
        begun(pipelines["sd"], "ddim", guidance_rescale=rescale)


@pytest.mark.parametrize(("name", "sampler"), CASES)
def test_split_at_every_step_is_the_unsplit_run(
    pipelines: dict[str, Any], load_tiny: LoadTiny, name: str, sampler: str
) -> None:
    begin, whole = begun(pipelines[name], sampler), finished(pipelines[name], sampler)
    receiver = load_tiny(name)  # another object, with another scheduler
    for step in range(NUM_STEPS + 1):
        sent = advance(pipelines[name], begin, step)
        received = Checkpoint.from_bytes(sent.to_bytes())
        assert torch.equal(advance(pipelines[name], sent, NUM_STEPS).latent, whole.latent)
        assert torch.equal(advance(receiver, received, NUM_STEPS).latent, whole.latent)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sampler"), CASES)
def test_one_step_at_a_time_is_the_unsplit_run(pipelines: dict[str, Any], name: str, sampler: str) -> None:
    # 15 steps and more switch off the first-order end of DPM-Solver++
    begin, num_steps = begun(pipelines[name], sampler, num_steps=16, prompt="a cat"), 16
    checkpoint = begin
    for step in range(num_steps):
        checkpoint = Checkpoint.from_bytes(advance(pipelines[name], checkpoint, step + 1).to_bytes())
    assert torch.equal(checkpoint.latent, advance(pipelines[name], begin, num_steps).latent)


@pytest.mark.slow
def test_split_among_equal_times_is_the_unsplit_run(load_tiny: LoadTiny) -> None:
    # Karras' levels crowd at the end and round to the same model time: times alone do not say where a run stands
    from diffusers import DPMSolverMultistepScheduler

    pipeline = load_tiny("sd")
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, use_karras_sigmas=True)
    begin = begun(pipeline, "dpmpp_2m", num_steps=150, prompt="a cat")
    before = advance(pipeline, begin, 145)
    assert len(set(begin.timesteps.tolist())) < 150
    whole = advance(pipeline, before, 150).latent
    for step in range(145, 151):
        received = Checkpoint.from_bytes(advance(pipeline, before, step).to_bytes())
        assert torch.equal(advance(pipeline, received, 150).latent, whole)


def test_split_is_exact_in_bfloat16(tiny_pipelines: dict[str, Path]) -> None:
    pipeline = load(tiny_pipelines["sd"], dtype="bfloat16")
    whole = finished(pipeline, "dpmpp_2m")
    sent = Checkpoint.from_bytes(advance(pipeline, begun(pipeline, "dpmpp_2m"), 3).to_bytes())
    assert sent.dtype == torch.bfloat16
    assert torch.equal(advance(pipeline, sent, NUM_STEPS).latent, whole.latent)


def test_a_scheduler_used_before_does_not_matter(pipelines: dict[str, Any]) -> None:
    before = finished(pipelines["sd"], "dpmpp_2m").latent
    stock(pipelines["sd"], "dpmpp_2m", num_inference_steps=3)
    assert torch.equal(finished(pipelines["sd"], "dpmpp_2m").latent, before)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_images_are_those_of_the_stock_pipeline(pipelines: dict[str, Any], name: str) -> None:
    sampler = "flow_match_euler" if name == "sd3" else "ddim"
    images = decode(pipelines[name], finished(pipelines[name], sampler))
    assert images.dtype == np.uint8
    assert images.shape == (2, 32, 32, 3)
    assert np.array_equal(images, (stock(pipelines[name], sampler, output_type="np") * 255).round().astype(np.uint8))


def test_resolution_dependent_times(pipelines: dict[str, Any], load_tiny: LoadTiny) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipeline = load_tiny("sd3")
    config = pipeline.scheduler.config
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(config, use_dynamic_shifting=True)
    ours = finished(pipeline, "flow_match_euler", resolution_px=(48, 32))
    assert torch.equal(ours.latent, stock(pipeline, "flow_match_euler", height=48, width=32))
    # the times travel with the run: a receiver with other settings goes on with the sender's
    sent = advance(pipeline, begun(pipeline, "flow_match_euler", resolution_px=(48, 32)), 2)
    assert torch.equal(advance(pipelines["sd3"], sent, NUM_STEPS).latent, ours.latent)


# --- batches, seeds, conditioning -----------------------------------------------------------------------------------


def test_seeds_per_image_make_the_noise_independent_of_the_batch(pipelines: dict[str, Any]) -> None:
    batch = begun(pipelines["sd"], "ddim", seed=(3, 4))
    alone = begun(pipelines["sd"], "ddim", seed=4, prompt="a blue cat")
    assert torch.equal(batch.latent[1], alone.latent[0])
    # the convolutions may round differently in another batch size
    together, single = (advance(pipelines["sd"], each, NUM_STEPS).latent[-1] for each in (batch, alone))
    torch.testing.assert_close(together, single, rtol=1e-4, atol=1e-4)


def test_prompt_may_stay_at_home(pipelines: dict[str, Any]) -> None:
    whole = finished(pipelines["sdxl"], "euler")
    sent = Checkpoint.from_bytes(
        advance(pipelines["sdxl"], begun(pipelines["sdxl"], "euler"), 2).without_prompt().to_bytes()
    )
    told = encode(pipelines["sdxl"], PROMPTS, guidance_scale=GUIDANCE, resolution_px=sent.resolution_px)
    assert sent.prompt is None
    assert torch.equal(advance(pipelines["sdxl"], sent, NUM_STEPS, told).latent, whole.latent)
    with pytest.raises(PipelineError, match="without its prompt"):
        advance(pipelines["sdxl"], sent, NUM_STEPS)
    other = encode(pipelines["sdxl"], "a cat", guidance_scale=GUIDANCE, resolution_px=sent.resolution_px)
    with pytest.raises(PipelineError, match="other texts"):
        advance(pipelines["sdxl"], sent, NUM_STEPS, other)


def test_hash_tells_texts_apart() -> None:
    texts = [(("a", "b"), None), (("a",), None), (("a b",), None), (("a",), ("b",)), (("a", "b"), ("", ""))]
    assert len({conditioning_hash(*each) for each in texts}) == len(texts)


def test_dropped_history_restarts_the_solver(pipelines: dict[str, Any]) -> None:
    whole = finished(pipelines["sd"], "dpmpp_2m").latent
    half = advance(pipelines["sd"], begun(pipelines["sd"], "dpmpp_2m"), 3)
    assert len(half.solver_history) == 1
    restarted = advance(pipelines["sd"], replace(half, solver_history=()), NUM_STEPS).latent
    assert not torch.equal(restarted, whole)
    assert (restarted - whole).abs().mean() < 0.1 * whole.abs().mean()


# --- hand-over ------------------------------------------------------------------------------------------------------


def test_a_smaller_model_of_the_same_space_goes_on(pipelines: dict[str, Any]) -> None:
    half = advance(pipelines["sd"], begun(pipelines["sd"], "dpmpp_2m"), 3)
    mixed = advance(pipelines["sd_device"], Checkpoint.from_bytes(half.to_bytes()), NUM_STEPS)
    ends = [finished(pipelines[name], "dpmpp_2m").latent for name in ("sd", "sd_device")]
    assert not any(torch.equal(mixed.latent, end) for end in ends)
    assert mixed.latent.isfinite().all()


def test_number_format_is_the_receivers(tiny_pipelines: dict[str, Path], pipelines: dict[str, Any]) -> None:
    half = advance(load(tiny_pipelines["sd"], dtype="bfloat16"), begun(pipelines["sd"], "ddim"), 3)
    assert half.dtype == torch.bfloat16
    assert advance(pipelines["sd_device"], half, NUM_STEPS).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels": 16}, "channels 16 against 4"),
        ({"scaling_factor": 0.13025}, "scaling_factor 0.13025 against 0.18215"),
        ({"shift_factor": 0.1}, "shift_factor"),
        ({"scale_factor": 8}, "scale_factor 8 against 4"),
        ({"prediction_type": "v_prediction"}, "prediction_type 'v_prediction' against 'epsilon'"),
        ({"noise_schedule": "linear"}, "noise_schedule"),
    ],
)
def test_another_latent_space_is_refused(pipelines: dict[str, Any], change: dict[str, Any], words: str) -> None:
    begin = begun(pipelines["sd"], "ddim")
    latent = begin.latent.repeat(1, 4, 1, 1) if "channels" in change else begin.latent
    foreign = replace(begin, latent=latent, latent_space=replace(begin.latent_space, **change))
    with pytest.raises(PipelineError, match=words):
        advance(pipelines["sd"], foreign, 1)
    with pytest.raises(PipelineError, match=words):
        decode(pipelines["sd"], replace(foreign, step=NUM_STEPS))


def test_too_large_a_latent_is_refused(pipelines: dict[str, Any]) -> None:
    big = begun(pipelines["sd3"], "flow_match_euler", resolution_px=256)
    with pytest.raises(PipelineError, match="too large"):
        advance(pipelines["sd3"], big, 1)


def test_times_of_another_sampler_are_refused(pipelines: dict[str, Any]) -> None:
    half = advance(pipelines["sd"], begun(pipelines["sd"], "dpmpp_2m"), 3)
    with pytest.raises(PipelineError, match=r"noise levels .*history"):
        advance(pipelines["sd"], replace(half, sampler="ddim"), 4)
    with pytest.raises(PipelineError, match="outside"):
        advance(pipelines["sd"], replace(half, timesteps=half.timesteps + 5000), 4)


# --- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to_step", [-1, 1, NUM_STEPS + 1])
def test_steps_outside_the_run_are_refused(pipelines: dict[str, Any], to_step: int) -> None:
    with pytest.raises(ConfigError, match=f"to_step {to_step}: expected 2, where the run is, to 5"):
        advance(pipelines["sd"], replace(begun(pipelines["sd"], "ddim"), step=2), to_step)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sampler": "flow_match_euler"}, "the sd family can use ddim, euler, dpmpp_2m"),
        ({"sampler": "heun"}, "the sd family can use"),
        ({"num_steps": 0}, "expected 1 to 1000"),
        ({"num_steps": 1001}, "expected 1 to 1000"),
        ({"resolution_px": 30}, "multiple of 4"),
        ({"resolution_px": (32, -4)}, "multiple of 4"),
        ({"prompt": ()}, "0 prompts"),
        ({"negative_prompt": ("blurry",)}, "2 prompts, 1 negative"),
        ({"seed": (1, 2, 3)}, "3 seeds for 2 images"),
    ],
)
def test_impossible_requests_are_refused(pipelines: dict[str, Any], change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        begun(pipelines["sd"], **{"sampler": "ddim"} | change)


def test_unfinished_runs_are_not_decoded(pipelines: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="step 0 of 5"):
        decode(pipelines["sd"], begun(pipelines["sd"], "ddim"))


# --- loading --------------------------------------------------------------------------------------------------------


def test_latent_spaces(pipelines: dict[str, Any]) -> None:
    assert latent_space(pipelines["sd"]) == latent_space(pipelines["sd_device"])
    assert latent_space(pipelines["sd3"]) == LatentSpace(
        family="sd3",
        channels=16,
        scale_factor=4,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        prediction_type="flow",
        noise_schedule="flow, 1000 levels",
    )


def test_missing_folders_parts_and_classes_are_named(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no such folder"):
        load(tmp_path / "nothing")
    with pytest.raises(PipelineError, match=r"model_index\.json"):
        load(tmp_path)
    for part in ("unet", "vae", "scheduler"):
        folder = tmp_path / part
        shutil.copytree(tiny_pipelines["sd"], folder)
        shutil.rmtree(folder / part)
        with pytest.raises(PipelineError, match=f"without {part}"):
            load(folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps({"_class_name": "FluxPipeline"}), encoding="utf-8")
    with pytest.raises(PipelineError, match="FluxPipeline; supported are StableDiffusionPipeline"):
        load(folder)
    with pytest.raises(ConfigError, match="dtype 'int8'"):
        load(tiny_pipelines["sd"], dtype="int8")


def test_damaged_weights_are_named(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_pipelines["sd"], folder)
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(PipelineError, match="diffusers cannot load it"):
        load(folder)


def test_lost_parts_are_named(load_tiny: LoadTiny) -> None:
    pipeline = load_tiny("sd3")
    pipeline.transformer = None
    with pytest.raises(PipelineError, match="without transformer"):
        latent_space(pipeline)
